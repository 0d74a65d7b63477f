//! The integration tests, as one binary.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod agent_worker;
mod api_agents;
mod api_bad_fields;
mod api_bad_input;
mod api_create;
mod api_credentials;
mod api_dequeue;
mod api_logs;
mod api_operator;
mod api_reads;
mod api_unavailable;
mod api_work;
mod architecture;
mod bench;
mod claims;
mod client_commands;
mod deliveries;
mod dev_demo;
mod dispatch;
mod drain;
mod edge;
mod end_to_end;
mod execution;
mod heartbeats;
mod interleavings;
mod issues;
mod lanes;
mod leases;
mod liveness;
mod phase2;
mod pins;
mod races;
mod schema;
mod serve_process;
mod ssh_faults;
mod ssh_runs;
mod statements;
mod support;
mod takeover;
mod vanished;
mod wake;
mod webhook;

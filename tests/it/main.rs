//! The integration tests, as one binary.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

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
mod claims;
mod dispatch;
mod execution;
mod lanes;
mod liveness;
mod phase2;
mod pins;
mod schema;
mod statements;
mod support;

//! The integration tests, as one binary.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod architecture;
mod deliveries;
mod execution;
mod issues;
mod ssh_faults;
mod ssh_runs;
mod statements;
mod support;
mod takeover;
mod webhook;

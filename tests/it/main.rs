//! The integration tests, as one binary.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod architecture;
mod bad_input;
mod claims;
mod credentials;
mod dispatch;
mod execution;
mod interleavings;
mod lanes;
mod leases;
mod liveness;
mod phase2;
mod pins;
mod races;
mod schema;
mod statements;
mod support;
mod vanished;
mod wake;

//! The integration tests, as one binary.

mod execution;
mod support;

//! `agent-fleet dev`: everything on one machine, with nothing to set up.

pub mod postgres;

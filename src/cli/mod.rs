//! One subcommand a file.

pub mod dev;

//! One subcommand a file.

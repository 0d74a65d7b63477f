//! `agent-fleet config`: what can be set, and whether what is set makes sense.

use std::path::Path;

use super::{Outcome, terminal::print};
use crate::config::DEFAULT_FILE;

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read file and environment, and say what is wrong with them.
    Check,
    /// Print every key with its default, as a file to begin with.
    Default,
}

/// Runs `config`.
pub(super) fn run(args: &Args, path: Option<&Path>) -> Outcome {
    match args.command {
        Command::Default => Ok(print(DEFAULT_FILE)?),
        Command::Check => {
            let config = super::load_config(path)?;
            print("The configuration is valid.\n")?;
            if let Err(lacking) = config.check_serve() {
                // Other commands need less, and the environment of `serve` may be another one.
                eprintln!("It is not enough for `serve` as it stands: {lacking}");
            }
            Ok(())
        }
    }
}

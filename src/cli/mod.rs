//! The command line: one subcommand a file.
//!
//! Exit codes: 0 done, 1 failed, 2 bad usage or configuration. What a command answers goes to stdout, everything else to
//! stderr.

pub mod agent;
mod agents;
mod bench;
pub mod client;
mod config;
pub mod dev;
mod doctor;
mod hosts;
mod list;
mod migrate;
pub mod serve;
mod shell;
mod task;
mod terminal;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use self::client::ClientError;
use crate::{
    config::{Config, Overrides},
    execution,
};

/// A coordinator for a fleet of coding agents, on one PostgreSQL.
#[derive(Debug, Parser)]
#[command(name = "agent-fleet", version, propagate_version = true)]
struct Cli {
    /// The configuration file; else `AGENT_FLEET_CONFIG` names it, else it is `agent-fleet.toml` if that exists.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve as one replica of the coordinator.
    Serve(serve::Args),
    /// Bring the database to the schema of this version.
    Migrate(migrate::Args),
    /// Try it: a PostgreSQL, a coordinator, a host, an agent and two demo tasks, on this machine.
    Dev,
    /// Measure how fast it is, beside raw SQL clients on the same database.
    Bench(bench::Args),
    /// Pull tasks over HTTP and run a coding agent for each.
    Agent(agent::Args),
    /// Submit tasks, look at them, steer them.
    Task(task::Args),
    /// The agents that pull tasks over HTTP.
    Agents(agents::Args),
    /// The hosts that tasks are pushed to over SSH.
    Hosts(hosts::Args),
    /// The configuration.
    Config(config::Args),
    /// Look at configuration, database, hosts and forge, and say what is wrong and how to mend it. Exit code 1 when
    /// anything fails.
    Doctor(doctor::Args),
    /// Print what a shell needs to complete these commands.
    Completions(shell::CompletionsArgs),
    /// Write the manual's pages into a folder.
    Man(shell::ManArgs),
}

/// How a command ended without success.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 1.
    Failed(anyhow::Error),
    /// Exit code 2: the command line or the configuration is wrong.
    Usage(anyhow::Error),
}

/// What a command answers.
pub type Outcome = Result<(), Failure>;

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        match error.downcast_ref() {
            Some(ClientError::BadUrl(_) | ClientError::BadToken) => Self::Usage(error),
            _ => Self::Failed(error),
        }
    }
}

/// Runs the program: reads the arguments, does what they say, and makes an exit code of it.
pub fn main() -> ExitCode {
    // Ends with 2 by itself on bad usage.
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::Failed(error.into())),
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

async fn run(cli: Cli) -> Outcome {
    let path = cli.config.as_deref();
    match cli.command {
        Command::Serve(args) => {
            let flags =
                Overrides { listen: args.listen.clone(), replica_id: args.replica_id.clone() };
            serve::command(args, load_config_with(path, &flags)?).await
        }
        Command::Migrate(args) => migrate::command(&args, &load_config(path)?).await,
        Command::Dev => {
            let serve = async |config, shutdown| serve::run(config, true, shutdown).await;
            dev::run(load_config(path)?, serve).await
        }
        Command::Bench(args) => bench::run(args).await,
        Command::Agent(args) => agent::command(args, &load_config(path)?).await,
        Command::Task(args) => task::run(args).await,
        Command::Agents(args) => agents::run(args).await,
        Command::Hosts(args) => hosts::run(args).await,
        Command::Config(args) => config::run(&args, path),
        Command::Doctor(args) => doctor::run(&args, path).await,
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
    }
}

/// The configuration from file and environment.
fn load_config(path: Option<&Path>) -> Result<Config, Failure> {
    load_config_with(path, &Overrides::default())
}

/// The same, with flags on top.
fn load_config_with(path: Option<&Path>, flags: &Overrides) -> Result<Config, Failure> {
    let env = |name: &str| std::env::var(name).ok();
    Config::load(path, env, flags, execution::built_in())
        .map_err(|error| Failure::Usage(error.into()))
}

/// Says on stderr what went wrong, with its causes.
fn report(failure: &Failure) -> ExitCode {
    let (error, code) = match failure {
        Failure::Failed(error) => (error, 1),
        Failure::Usage(error) => (error, 2),
    };
    let nobody_reads = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    if error.downcast_ref().is_some_and(nobody_reads) {
        // As in `task list | head`: the reader has what it wanted.
        return ExitCode::SUCCESS;
    }
    eprintln!("agent-fleet: {}", terminal::printable(&format!("{error:#}")));
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bad_address_is_bad_usage() {
        let failure = Failure::from(client::Client::new("x", None).unwrap_err());
        assert!(matches!(failure, Failure::Usage(_)));
        assert!(matches!(Failure::from(anyhow::anyhow!("x")), Failure::Failed(_)));
    }
}

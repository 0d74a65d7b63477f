//! How it is called.

use std::time::Duration;

pub(crate) const USAGE: &str =
    "usage: chaos [--seed N] [--minutes N] [--rate TASKS_PER_SECOND] [--quick | --patroni]";

/// What to do.
pub(crate) enum Called {
    Run(Options),
    /// Pull agents, started by a run.
    Worker(WorkerOptions),
    /// `cargo test -- --list`.
    Listed,
    /// `cargo test NAME`, where the name is not this one's.
    FilteredOut,
}

/// One run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    /// How long faults go on. Each comes `rounds` times, also when that takes longer.
    pub(crate) length: Duration,
    pub(crate) rounds: usize,
    /// Tasks a second.
    pub(crate) rate: f64,
    /// A three-node cluster of Patroni, whose leader is killed, and nothing else.
    pub(crate) patroni: bool,
}

/// One process of pull agents.
#[derive(Debug, Clone)]
pub(crate) struct WorkerOptions {
    pub(crate) url: String,
    pub(crate) agent_id: String,
    pub(crate) slots: usize,
    /// Where its token and its ledger are.
    pub(crate) dir: std::path::PathBuf,
}

impl Called {
    /// Takes our own flags, and those of `cargo test` that any test binary is given.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut seed, mut minutes, mut rate) = (None, None, None);
        let (mut quick, mut patroni, mut own, mut listed) = (false, false, false, false);
        let mut filters = Vec::new();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "worker" => return worker(args),
                "--seed" => seed = Some(number(&arg, args.next())?),
                "--minutes" => minutes = Some(number(&arg, args.next())?),
                "--rate" => rate = Some(number(&arg, args.next())?),
                "--quick" => quick = true,
                "--patroni" => patroni = true,
                "--list" => listed = true,
                "--nocapture" | "--no-capture" | "--show-output" | "--exact" | "-q" | "--quiet"
                | "--include-ignored" => {}
                "--test-threads" | "--skip" | "--color" | "--format" => drop(args.next()),
                flag if flag.starts_with("--test-threads=") => {}
                flag if flag.starts_with('-') => return Err(format!("there is no flag {flag}")),
                _ => filters.push(arg),
            }
            own |= seed.is_some() || minutes.is_some() || rate.is_some();
        }
        if listed {
            return Ok(Self::Listed);
        }
        if !filters.is_empty() && !filters.iter().any(|f| "chaos".contains(f.as_str())) {
            return Ok(Self::FilteredOut);
        }
        let (usual_rate, usual_minutes, rounds) = match (patroni, quick || !own) {
            (true, _) => (30.0, 0.1, 3),
            (false, true) => (12.0, 0.1, 1),
            (false, false) => (50.0, 10.0, 3),
        };
        let minutes: f64 = minutes.unwrap_or(usual_minutes);
        let rate: f64 = rate.unwrap_or(usual_rate);
        if !(0.1..=1000.0).contains(&minutes) || !(1.0..=1000.0).contains(&rate) {
            return Err("--minutes is at least 0.1, --rate from 1 to 1000".to_owned());
        }
        let length = Duration::from_secs_f64(minutes * 60.0);
        let seed = seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
        Ok(Self::Run(Options { seed, length, rounds, rate, patroni }))
    }
}

fn number<T: std::str::FromStr>(flag: &str, value: Option<String>) -> Result<T, String> {
    let value = value.ok_or_else(|| format!("{flag} wants a number"))?;
    value.parse().map_err(|_| format!("{flag} wants a number, not `{value}`"))
}

fn worker(mut args: impl Iterator<Item = String>) -> Result<Called, String> {
    let mut next = || args.next().ok_or("worker wants URL AGENT_ID SLOTS DIR");
    let (url, agent_id) = (next()?, next()?);
    let slots = number("SLOTS", Some(next()?))?;
    Ok(Called::Worker(WorkerOptions { url, agent_id, slots, dir: next()?.into() }))
}

//! Whether runs can work on a host: reachable, a writable `work_dir`, the CLIs there, and processes that outlive their
//! connection.

use std::{collections::BTreeMap, time::Duration};

use uuid::Uuid;

use super::{
    executor::{Executor, Script},
    run_dir::{Answer, RunDir, RunError, script},
};
use crate::model::{Lease, TaskId};

const PROBE: &str = script!("run_dir", "process", "profile", "probe");
const PROBE_AGAIN: &str = script!("run_dir", "process", "probe_again");
/// A start that was held up longer than this is believed never to arrive, and its tombstone goes.
const TOMBSTONE_DAYS: u32 = 7;
/// A profile that hangs must not hold the probe for long.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// What a probe found on a host that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    /// Names the boot of the host.
    pub boot_id: String,
    /// Such as `Linux 6.12.0`.
    pub system: String,
    /// Why no run can work there, none when it can: a `work_dir` that cannot be written, or processes that do not
    /// outlive their connection.
    pub problem: Option<String>,
    /// For each agent type, where its CLI is, or why it cannot be used.
    pub programs: BTreeMap<String, Result<String, String>>,
    /// Runs of this fleet that are no tombstones: at work, or left over. At most 500.
    pub runs: Vec<(TaskId, Lease)>,
}

/// Looks at a host. `programs` are pairs of an agent type and the first word of its command. An error means that the host
/// could not be asked at all.
pub async fn probe(
    executor: &dyn Executor,
    work_dir: &str,
    fleet_id: Uuid,
    programs: &[(String, String)],
) -> Result<ProbeReport, RunError> {
    // The scripts want to know of a run; there is none here.
    let task_id = TaskId(Uuid::nil());
    let nowhere = RunDir { work_dir: work_dir.to_owned(), fleet_id, task_id, run_lease: Lease(0) };
    let script = |text, more: Vec<String>| {
        let mut args = nowhere.args();
        args.extend(more);
        Script { text, args, stdin: Vec::new(), time_limit: TIME_LIMIT }
    };
    let mut more = vec![TOMBSTONE_DAYS.to_string()];
    more.extend(programs.iter().map(|(_, program)| program.clone()));
    let answer = Answer::of(executor, script(PROBE, more)).await?;
    let mut facts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in answer.lines() {
        let (fact, value) = line.split_once(' ').unwrap_or((&line, ""));
        facts.entry(fact.to_owned()).or_default().push(value.trim().to_owned());
    }
    let one = |fact: &'static str| {
        let value = facts.get(fact).and_then(|values| values.first()).cloned();
        value.ok_or_else(|| answer.garbled(fact))
    };
    let found = facts.get("program").cloned().unwrap_or_default();
    if found.len() != programs.len() {
        return Err(answer.garbled("program"));
    }
    let programs = programs.iter().zip(found).map(|((agent_type, program), path)| {
        let missing = || format!("`{program}` is not found on the host, also after ~/.profile; install it, or name it by its absolute path");
        (agent_type.clone(), if path.is_empty() { Err(missing()) } else { Ok(path) })
    });
    let mut report = ProbeReport {
        boot_id: one("boot")?,
        system: one("system")?,
        problem: None,
        programs: programs.collect(),
        runs: facts.get("run").into_iter().flatten().filter_map(|name| run_of(name)).collect(),
    };
    let work_dir_says = one("work_dir")?;
    let detached = one("detached")?;
    if work_dir_says != "ok" {
        report.problem = Some(format!("work_dir cannot be used: {work_dir_says}"));
    } else if detached.is_empty() {
        report.problem =
            Some("the host has neither setsid nor perl to detach a run with".to_owned());
    } else {
        executor.reconnect().await;
        let pid_and_start = detached.split(' ').map(str::to_owned).collect();
        let answer = Answer::of(executor, script(PROBE_AGAIN, pid_and_start)).await?;
        if answer.split().0.trim() != "detached yes" {
            report.problem = Some(
                "detached processes are ended when their connection closes \
                 (logind: try `loginctl enable-linger`)"
                    .to_owned(),
            );
        }
    }
    Ok(report)
}

/// `<task_id>.<run_lease>`
fn run_of(name: &str) -> Option<(TaskId, Lease)> {
    let (task, lease) = name.split_once('.')?;
    Some((TaskId(task.parse().ok()?), Lease(lease.parse().ok()?)))
}

//! The books: what was acknowledged, what the database says, what CLIs and workers wrote down themselves. They have to
//! agree to the last task.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use uuid::Uuid;

use crate::{
    ledger::{Ledgers, Start},
    load::Acknowledged,
    postgres::connect,
    report::Report,
    stage::Stage,
    support::history,
};

/// One task as the database has it.
#[derive(Debug)]
struct Task {
    status: String,
    attempt: i32,
    /// Transitions to completed.
    completions: i64,
    /// Receipts that say completed: who sent it, and its attempt.
    receipts: Vec<(String, i32)>,
}

/// Everything there is to compare.
#[derive(Debug)]
pub(crate) struct Books {
    tasks: BTreeMap<Uuid, Task>,
    receipts: BTreeSet<(Uuid, i64)>,
    /// Stored output of each task's last run or claim.
    outputs: BTreeMap<Uuid, String>,
    broken_history: Vec<String>,
    /// Sessions that were thought dead, whoever it was.
    silent: i64,
    ledgers: Ledgers,
    /// Runs whose processes still live.
    left_over: Vec<String>,
}

impl Books {
    pub(crate) async fn read(stage: &mut Stage) -> anyhow::Result<Self> {
        let mut tasks = BTreeMap::new();
        for row in stage.watch.rows(TASKS, &[]).await {
            let who: Vec<String> = row.get(4);
            let attempts: Vec<i32> = row.get(5);
            let task = Task {
                status: row.get(1),
                attempt: row.get(2),
                completions: row.get(3),
                receipts: who.into_iter().zip(attempts).collect(),
            };
            tasks.insert(row.get(0), task);
        }
        let receipts = stage.watch.rows("select task_id, lease from fleet.receipts", &[]).await;
        let outputs = stage.watch.rows(OUTPUTS, &[]).await;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let admin = connect(&stage.database.url()).await?;
        let ledgers = Ledgers::read(&stage.dir.join("ledgers"))?;
        Ok(Self {
            tasks,
            receipts: receipts.iter().map(|row| (row.get(0), row.get(1))).collect(),
            outputs: outputs.iter().map(|row| (row.get(0), text(row.get(1)))).collect(),
            broken_history: history::check(&admin).await?,
            silent: stage.watch.count(SILENT).await,
            left_over: left_over(&ledgers.starts),
            ledgers,
        })
    }
}

const TASKS: &str = "
select t.task_id, t.status, t.attempt,
       (select count(*) from fleet.task_events e where e.task_id = t.task_id and e.to_status = 'completed'
                                                   and e.from_status is distinct from 'completed'),
       array(select r.agent_id from fleet.receipts r
              where r.task_id = t.task_id and r.status = 'completed' order by r.lease),
       array(select r.attempt from fleet.receipts r
              where r.task_id = t.task_id and r.status = 'completed' order by r.lease)
  from fleet.tasks t";
const OUTPUTS: &str = "
select distinct on (task_id) task_id, data
  from (select task_id, lease, string_agg(data, '' order by \"offset\") as data
          from fleet.task_logs group by task_id, lease) l
 order by task_id, lease desc";
const SILENT: &str = "select count(*) from fleet.sessions where end_reason = 'silent'";

/// Compares everything with everything.
pub(crate) fn reconcile(books: &Books, made: &[Acknowledged], report: &mut Report) {
    let completed = |task: &Task| task.status == "completed";
    let by = |prefix: &str| {
        let sent = |t: &&Task| t.receipts.iter().any(|(who, _)| who.starts_with(prefix));
        books.tasks.values().filter(|t| completed(t)).filter(sent).count()
    };
    report.figure("tasks created and acknowledged", made.len());
    let (workers, programs, hosts) = (by("worker-"), by("program-"), by("host-"));
    report.figure("  completed by workers (pull)", workers);
    report.figure("  completed by `agent-fleet agent` (pull)", programs);
    report.figure("  completed on hosts (SSH)", hosts);
    let attempts: i64 = books.tasks.values().map(|t| i64::from(t.attempt)).sum();
    report.figure("attempts", attempts);
    report.figure("starts", books.ledgers.starts.len());
    report.figure("sessions that fell silent", books.silent);

    let mut lost = Vec::new();
    for task in made {
        match books.tasks.get(&task.task_id) {
            None => lost.push(format!("{}: acknowledged, and not there", task.task_id)),
            Some(found) if !completed(found) => {
                lost.push(format!("{}: {} at the end", task.task_id, found.status));
            }
            Some(_) => {}
        }
    }
    for receipt in &books.ledgers.accepted {
        if !books.receipts.contains(receipt) {
            lost.push(format!("{} lease {}: accepted, and not there", receipt.0, receipt.1));
        }
    }
    report.must_be_none("lost", lost);
    let mut not_created = Vec::new();
    if books.tasks.len() != made.len() {
        not_created.push(format!("{} in the database, {} made", books.tasks.len(), made.len()));
    }
    report.must_be_none("created otherwise than acknowledged", not_created);

    report.must_be_none("completed twice", completed_twice(books));
    report.must_be_none("started twice within an attempt", started_twice(books));
    report.must_be_none("completed without a start in that attempt", never_started(books));
    report.must_be_none("output of hosts that is not whole and in order", outputs(books, made));
    report.must_be_none("histories that cannot be", books.broken_history.clone());
    report.must_be_none("answers that should not be", books.ledgers.odd.clone());
    report.must_be_none("processes left over", books.left_over.clone());
}

fn completed_twice(books: &Books) -> Vec<String> {
    let mut twice = Vec::new();
    let mut accepted: BTreeMap<Uuid, BTreeSet<i64>> = BTreeMap::new();
    for (task_id, lease) in &books.ledgers.accepted {
        accepted.entry(*task_id).or_default().insert(*lease);
    }
    for (task_id, task) in &books.tasks {
        let accepted = accepted.get(task_id).map_or(0, BTreeSet::len);
        if task.completions > 1 || task.receipts.len() > 1 || accepted > 1 {
            twice.push(format!(
                "{task_id}: {} transitions, {} receipts, {accepted} accepted leases",
                task.completions,
                task.receipts.len()
            ));
        }
    }
    twice
}

fn started_twice(books: &Books) -> Vec<String> {
    let mut starts: BTreeMap<(Uuid, i32), Vec<&Start>> = BTreeMap::new();
    for start in &books.ledgers.starts {
        starts.entry((start.task_id, start.attempt)).or_default().push(start);
    }
    let describe = |all: Vec<&Start>| {
        let each: Vec<String> =
            all.iter().map(|s| format!("{} lease {} pid {}", s.by, s.lease, s.pid)).collect();
        format!("{} attempt {}: {}", all[0].task_id, all[0].attempt, each.join(", "))
    };
    starts.into_values().filter(|all| all.len() > 1).map(describe).collect()
}

fn never_started(books: &Books) -> Vec<String> {
    let starts: BTreeSet<(Uuid, i32)> =
        books.ledgers.starts.iter().map(|start| (start.task_id, start.attempt)).collect();
    let mut never = Vec::new();
    for (task_id, task) in &books.tasks {
        for (who, attempt) in &task.receipts {
            if !starts.contains(&(*task_id, *attempt)) {
                never.push(format!("{task_id} attempt {attempt} by {who}"));
            }
        }
    }
    never
}

/// What was completed on a host has all of its output, each line once.
fn outputs(books: &Books, made: &[Acknowledged]) -> Vec<String> {
    let mut wrong = Vec::new();
    for task in made {
        let Some(found) = books.tasks.get(&task.task_id) else { continue };
        if !found.receipts.iter().any(|(who, _)| who.starts_with("host-")) {
            continue;
        }
        let lines = task.length.div_ceil(task.line_every);
        let mut expected: String = (1..=lines).map(|n| format!("line {n}\n")).collect();
        expected.push_str(&format!("end {lines}\n"));
        let stored = books.outputs.get(&task.task_id).map(String::as_str).unwrap_or_default();
        if stored != expected {
            wrong.push(format!("{}: {lines} lines, stored {stored:?}", task.task_id));
        }
    }
    wrong
}

/// Processes of runs that are over.
fn left_over(starts: &[Start]) -> Vec<String> {
    let is_cli = |start: &&Start| {
        let command = std::fs::read(Path::new("/proc").join(start.pid.to_string()).join("cmdline"));
        start.by == "cli"
            && String::from_utf8_lossy(&command.unwrap_or_default()).contains("cli.sh")
    };
    let left = starts.iter().filter(is_cli);
    left.map(|start| format!("{} attempt {}: pid {}", start.task_id, start.attempt, start.pid))
        .collect()
}

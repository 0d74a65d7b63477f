//! kill -9 of the replica in the middle of a run on a host that prints a line a second for 20 s.

use crate::{
    load::{Acknowledged, client, create_one},
    report::Report,
    stage::Stage,
};

const LENGTH: u64 = 20_000;
const LINE_EVERY: u64 = 1_000;
/// Bytes of `line 1` to `line 5`.
const SOME_LINES: i64 = 35;

/// Does it under the load that is there, and checks attempt and status; starts and output are checked with all others.
pub(crate) async fn kill_replica_in_the_middle(
    stage: &mut Stage,
    report: &mut Report,
) -> anyhow::Result<Acknowledged> {
    let url = stage.balancer.url();
    let task = create_one(&client(), &url, "long", "agent:host", LENGTH, LINE_EVERY).await;
    let id = task.task_id;
    let sql = "select s.subject from fleet.tasks t join fleet.sessions s on s.session_id = t.holder
                 join fleet.runs r on r.task_id = t.task_id where t.task_id = $1 and r.next_offset >= $2";
    let what = "five lines of the long run are stored";
    let holder: String = stage.watch.until(what, sql, &[&id, &SOME_LINES]).await?.get(0);
    let replica = stage.replicas.iter_mut().find(|r| r.name == holder).unwrap();
    replica.kill();
    let sql = "select status, attempt, lease from fleet.tasks where task_id = $1 and completed_at is not null";
    let row = stage.watch.until("the long run has ended", sql, &[&id]).await?;
    stage.start_all();
    let (status, attempt, lease): (String, i32, i64) = (row.get(0), row.get(1), row.get(2));
    let mut off = Vec::new();
    if (status.as_str(), attempt) != ("completed", 1) || lease < 2 {
        off.push(format!("{status}, attempt {attempt}, lease {lease}"));
    }
    println!(
        "the replica of a run of 20 s was killed in the middle: {status}, attempt {attempt}, lease {lease}"
    );
    report.must_be_none("a run of 20 s whose replica was killed, gone wrong", off);
    Ok(task)
}

//! What was leased at a fault, and when all of it runs again or has ended.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use crate::watch::Watch;

/// After so long a fault counts as not recovered from.
const LIMIT: Duration = Duration::from_secs(60);

/// The tasks that were leased at one moment.
#[derive(Debug)]
pub(crate) struct Leased {
    /// By the database's clock.
    pub(crate) at: Timestamp,
    tasks: Vec<Uuid>,
}

/// From when on the clock runs, and what no longer counts as a holder.
#[derive(Debug)]
pub(crate) struct Blow {
    pub(crate) since: Instant,
    /// Sessions of what was killed.
    pub(crate) dead: Vec<Uuid>,
    /// After the database was away: a holder must have been heard of since this moment of its clock.
    pub(crate) heard_since: Option<Timestamp>,
}

impl Leased {
    pub(crate) async fn now(watch: &mut Watch) -> Self {
        let sql = "select now(), array(select task_id from fleet.tasks where holder is not null)";
        let row = watch.rows(sql, &[]).await.remove(0);
        Self { at: row.get(0), tasks: row.get(1) }
    }

    pub(crate) fn count(&self) -> usize {
        self.tasks.len()
    }

    /// Waits until every task has ended or is running in the hands of a holder that lives. Tells how long that took,
    /// or which tasks are left.
    pub(crate) async fn recovered(
        &self,
        watch: &mut Watch,
        blow: &Blow,
    ) -> Result<Recovered, Vec<String>> {
        let mut last = Vec::new();
        loop {
            let params: [&(dyn ToSql + Sync); 4] =
                [&self.tasks, &blow.dead, &blow.heard_since, &self.at];
            let left = watch.rows(LEFT, &params).await;
            let took = blow.since.elapsed();
            if left.is_empty() {
                return Ok(Recovered { took, last });
            }
            last = left.iter().take(5).map(describe).collect();
            if took > LIMIT {
                return Err(last);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Everything runs again or has ended.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) took: Duration,
    /// What was left at the last look before, for who wants to know why it took so long.
    pub(crate) last: Vec<String>,
}

/// The longest that a task created since then has waited for an agent.
pub(crate) async fn longest_wait(watch: &mut Watch, since: Timestamp) -> Duration {
    let rows = watch.rows(LONGEST_WAIT, &[&since]).await;
    Duration::from_secs_f64(rows[0].get(0))
}

fn describe(row: &Row) -> String {
    let text = |at: usize| row.get::<_, Option<String>>(at).unwrap_or_default();
    format!(
        "{} is {} lease {} with {}, since the fault: {}",
        row.get::<_, Uuid>(0),
        text(1),
        row.get::<_, i64>(2),
        text(3),
        text(4)
    )
}

const LEFT: &str = "
select t.task_id, t.status, t.lease, coalesce(t.assigned_host, t.assigned_agent_id),
       (select string_agg(format('%s %s after %s s', e.type, e.lease, round(extract(epoch from e.at - $4), 1)), ', '
                          order by e.at)
          from fleet.task_events e where e.task_id = t.task_id and e.at >= $4::timestamptz)
  from fleet.tasks t left join fleet.sessions s on s.session_id = t.holder
 where t.task_id = any ($1::uuid[])
   and t.status not in ('completed', 'failed', 'agent_lost', 'cancelled')
   and (t.status = 'running' and s.ended_at is null and s.session_id <> all ($2::uuid[])
        and s.last_heartbeat_at >= coalesce($3::timestamptz, '-infinity')) is not true";

const LONGEST_WAIT: &str = "
select coalesce(max(extract(epoch from coalesce(claimed.at, clock_timestamp()) - t.created_at)), 0)::float8
  from fleet.tasks t join fleet.lanes l on l.lane_id = t.lane_id
  left join lateral (select min(e.at) as at from fleet.task_events e
                      where e.task_id = t.task_id and e.type = 'claimed') claimed on true
 where t.created_at >= $1 and l.capabilities = '{agent:pull}'";

//! What the loops write: each in bounded batches, safe on all replicas at once.

use std::time::Duration;

use tokio_postgres::Row;

use super::{
    Store, StoreError,
    journal::Journal,
    rows::get,
    statement::{
        CHECK_PARTITIONS, DECIDE_PULL, DELETE_OLD_NOTICES, DELETE_RETIRED_LANES, EXPIRE_PINS,
        LIST_LANELESS_SETS, LIST_VACUUM_BLOCKERS, MAKE_PARTITIONS, PROMOTE_DUE_TASKS, Params,
        READ_DUE, READ_SILENCE, RETIRE_LANES, SET_LANES,
    },
};
use crate::model::{Actor, EventType, Status};

/// Rows changed in one statement, at most.
pub(crate) const BATCH: i64 = 500;

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// Scheduled tasks whose time has come.
    pub scheduled: bool,
    /// Reservations that ran out.
    pub pins: bool,
    /// Leases past their deadline.
    pub deadlines: bool,
    /// Ready tasks without a lane.
    pub laneless: bool,
    /// In how long something will be next, as things stand.
    pub next: Option<Duration>,
}

/// Who is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// Some session, whether or not anybody may judge it yet.
    pub silent: bool,
    /// Some lease whose session has ended.
    pub lost: bool,
    /// In how long the next session will be, unless it is heard of.
    pub next: Option<Duration>,
}

/// Who holds back vacuum.
#[derive(Debug, Clone, PartialEq)]
pub struct VacuumBlocker {
    /// `transaction`, `prepared transaction` or `replication slot`.
    pub kind: String,
    /// The backend, if one is behind it.
    pub pid: Option<i32>,
    /// The application, account, transaction or slot.
    pub name: String,
    /// What the backend does, as far as this account may see.
    pub state: Option<String>,
    /// For how long, in seconds, where that is known.
    pub age_secs: Option<f64>,
}

impl Store {
    /// The scheduler's look.
    pub async fn read_due(&self, grace: Duration) -> Result<Due, StoreError> {
        let client = self.client().await?;
        let row = READ_DUE.one(&client, &[&grace.as_secs_f64()]).await?;
        Ok(Due {
            scheduled: get(&row, "scheduled"),
            pins: get(&row, "pins"),
            deadlines: get(&row, "deadlines"),
            laneless: get(&row, "laneless"),
            next: next_of(&row),
        })
    }

    /// The reaper's look. Unless `in_full`, leases are lost only by sessions that ended within the last two minutes.
    pub async fn read_silence(&self, in_full: bool) -> Result<Silence, StoreError> {
        let client = self.client().await?;
        let row = READ_SILENCE.one(&client, &[&in_full]).await?;
        Ok(Silence { silent: get(&row, "silent"), lost: get(&row, "lost"), next: next_of(&row) })
    }

    /// Who holds back vacuum for longer than this.
    pub async fn list_vacuum_blockers(
        &self,
        longer: Duration,
    ) -> Result<Vec<VacuumBlocker>, StoreError> {
        let client = self.client().await?;
        let rows = LIST_VACUUM_BLOCKERS.rows(&client, &[&longer.as_secs_f64()]).await?;
        Ok(rows
            .iter()
            .map(|row| VacuumBlocker {
                kind: get(row, "kind"),
                pid: get(row, "pid"),
                name: get(row, "name"),
                state: get(row, "state"),
                age_secs: get(row, "age_secs"),
            })
            .collect())
    }

    /// Retires lanes that nothing has referred to for a day. Returns how many.
    pub async fn retire_lanes(&self) -> Result<i64, StoreError> {
        let client = self.client().await?;
        Ok(get(&RETIRE_LANES.one(&client, &[&BATCH]).await?, "retired"))
    }

    /// Drops lanes that were retired before, once nobody can have read them in time. Returns how many.
    pub async fn delete_retired_lanes(&self) -> Result<i64, StoreError> {
        let client = self.client().await?;
        Ok(get(&DELETE_RETIRED_LANES.one(&client, &[&BATCH]).await?, "dropped"))
    }

    /// Phase 2: decides what waited too long and no known host could ever serve. Returns how many.
    pub async fn decide_pull(&self, grace: Duration, actor: &Actor) -> Result<i64, StoreError> {
        let client = self.client().await?;
        let params: Params<'_> = &[&grace.as_secs_f64(), &BATCH, &actor.to_string()];
        let rows = DECIDE_PULL.rows(&client, params).await?;
        Ok(written(&rows, EventType::Decided, None, actor))
    }

    /// Makes scheduled tasks ready whose time has come. Returns how many.
    pub async fn promote_due_tasks(&self, actor: &Actor) -> Result<i64, StoreError> {
        let client = self.client().await?;
        let rows = PROMOTE_DUE_TASKS.rows(&client, &[&BATCH, &actor.to_string()]).await?;
        Ok(written(&rows, EventType::Due, Some((Status::Scheduled, Status::Created)), actor))
    }

    /// Frees tasks whose reservation ran out. Returns how many.
    pub async fn expire_pins(&self, actor: &Actor) -> Result<i64, StoreError> {
        let client = self.client().await?;
        let rows = EXPIRE_PINS.rows(&client, &[&BATCH, &actor.to_string()]).await?;
        Ok(written(&rows, EventType::PinExpired, Some((Status::Assigned, Status::Created)), actor))
    }

    /// Gives lanes to ready tasks that came by SQL with a set that was unknown. Returns how many.
    pub async fn intern_laneless(&self) -> Result<u64, StoreError> {
        let client = self.client().await?;
        let sets = LIST_LANELESS_SETS
            .rows(&client, &[])
            .await?
            .iter()
            .map(|row| {
                serde_json::from_value(get(row, "capabilities")).map_err(|e| StoreError::Unknown {
                    what: format!("capabilities of an unknown shape ({e})"),
                })
            })
            .collect::<Result<Vec<Vec<String>>, _>>()?;
        drop(client);
        if sets.is_empty() {
            return Ok(0);
        }
        self.intern_lanes(sets.iter().map(Vec::as_slice)).await?;
        let client = self.client().await?;
        SET_LANES.run(&client, &[&500_i32]).await
    }

    /// Makes the partitions of the time ahead. Returns how many were missing.
    pub async fn make_partitions(&self, ahead: Duration) -> Result<i32, StoreError> {
        let client = self.client().await?;
        Ok(get(&MAKE_PARTITIONS.one(&client, &[&ahead.as_secs_f64()]).await?, "made"))
    }

    /// True when the partitions of this week and the next are there.
    pub async fn check_partitions(&self) -> Result<bool, StoreError> {
        let client = self.client().await?;
        Ok(get(&CHECK_PARTITIONS.one(&client, &[]).await?, "ready"))
    }

    /// Forgets cancel notices older than a day.
    pub async fn delete_old_notices(&self) -> Result<u64, StoreError> {
        let client = self.client().await?;
        DELETE_OLD_NOTICES.run(&client, &[]).await
    }
}

/// Logs what a statement that commits by itself did to each task of its rows. Returns how many there are.
fn written(rows: &[Row], event: EventType, change: Option<(Status, Status)>, actor: &Actor) -> i64 {
    let mut journal = Journal::default();
    journal.note_rows(rows, event, change, &actor.to_string());
    journal.write();
    i64::try_from(rows.len()).unwrap_or(i64::MAX)
}

fn next_of(row: &Row) -> Option<Duration> {
    let secs = get::<Option<f64>>(row, "next_secs")?;
    Some(Duration::try_from_secs_f64(secs.max(0.0)).unwrap_or(Duration::MAX))
}

//! Output, by byte offset; and the runs on hosts that it comes from.

use jiff::Timestamp;

use super::{
    HeldLease, Refusal, Store, StoreError,
    error::retry,
    rows::get,
    statement::{
        APPEND_LOG, APPEND_RUN_OUTPUT, FIND_LOG_LEASE, INSERT_RUN, LOCK_LEASE, MARK_RUN_STARTED,
        READ_LOGS,
    },
};
use crate::model::{Lease, TaskId};

/// A run that is about to start. It keeps this even if the configuration changes meanwhile.
#[derive(Debug, Clone)]
pub struct NewRun<'a> {
    /// The argument vector.
    pub command: &'a [String],
    /// `stdin` or `file`.
    pub prompt_via: &'a str,
    /// How the output is read.
    pub output: &'a str,
    /// On the host.
    pub work_dir: &'a str,
    /// Seconds.
    pub timeout_secs: i32,
}

/// What came of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It was stored; the next offset.
    Stored(i64),
    /// It overlaps what is there; nothing was stored; the true next offset.
    Overlaps(i64),
    /// Bytes are missing before it; nothing was stored; the true next offset.
    Gap(i64),
    /// The lease is not held.
    Refused(Refusal),
}

/// A stored chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// The lease that produced it.
    pub lease: Lease,
    /// Its attempt.
    pub attempt: i32,
    /// Bytes from the start of that lease's output.
    pub offset: i64,
    /// When it was stored.
    pub at: Timestamp,
    /// The bytes.
    pub data: Vec<u8>,
}

/// A page of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPage {
    /// In order, without gaps.
    pub chunks: Vec<LogChunk>,
    /// Where the next page starts.
    pub next_offset: i64,
    /// No more can come under this lease.
    pub done: bool,
}

/// Chunks a page, at most.
const PAGE: i64 = 64;

impl Store {
    /// Stores a chunk of an agent's output.
    pub async fn append_log(
        &self,
        held: &HeldLease,
        offset: i64,
        data: &[u8],
    ) -> Result<Appended, StoreError> {
        retry!(self.append_log_once(held, offset, data).await)
    }

    async fn append_log_once(
        &self,
        held: &HeldLease,
        offset: i64,
        data: &[u8],
    ) -> Result<Appended, StoreError> {
        let mut client = self.client().await?;
        let tx = client
            .transaction()
            .await
            .map_err(|source| StoreError::Statement { statement: "begin", source })?;
        let Some(row) = LOCK_LEASE.row(&tx, &[&held.task_id.0]).await? else {
            return Ok(Appended::Refused(Refusal::Missing));
        };
        let own = get::<i64>(&row, "lease") == held.lease.0
            && get::<Option<uuid::Uuid>>(&row, "holder") == Some(held.holder.0);
        if !own {
            return Ok(Appended::Refused(Refusal::LeaseLost));
        }
        let attempt: i32 = get(&row, "attempt");
        let params: super::statement::Params<'_> =
            &[&held.task_id.0, &held.lease.0, &attempt, &offset, &data];
        let next: i64 = get(&APPEND_LOG.one(&tx, params).await?, "next");
        tx.commit()
            .await
            .map_err(|source| StoreError::Statement { statement: "commit", source })?;
        Ok(match offset.cmp(&next) {
            std::cmp::Ordering::Equal => {
                Appended::Stored(next + i64::try_from(data.len()).unwrap_or(i64::MAX))
            }
            std::cmp::Ordering::Less => Appended::Overlaps(next),
            std::cmp::Ordering::Greater => Appended::Gap(next),
        })
    }

    /// Records a run before anything is done on its host. False when the lease is not held.
    pub async fn insert_run(&self, held: &HeldLease, run: &NewRun<'_>) -> Result<bool, StoreError> {
        let client = self.client().await?;
        let row = INSERT_RUN
            .row(
                &client,
                &[
                    &held.task_id.0,
                    &held.lease.0,
                    &held.holder.0,
                    &run.command,
                    &run.prompt_via,
                    &run.output,
                    &run.work_dir,
                    &run.timeout_secs,
                ],
            )
            .await?;
        Ok(row.is_some())
    }

    /// Records that a run is known to have started.
    pub async fn mark_run_started(&self, task: TaskId, run_lease: Lease) -> Result<(), StoreError> {
        let client = self.client().await?;
        MARK_RUN_STARTED.run(&client, &[&task.0, &run_lease.0]).await?;
        Ok(())
    }

    /// Stores a chunk of a run's output, if it continues what is there and the lease is held. False when it does not.
    pub async fn append_run_output(
        &self,
        held: &HeldLease,
        run_lease: Lease,
        offset: i64,
        data: &[u8],
    ) -> Result<bool, StoreError> {
        let client = self.client().await?;
        let params: super::statement::Params<'_> =
            &[&held.task_id.0, &run_lease.0, &held.lease.0, &held.holder.0, &offset, &data];
        Ok(APPEND_RUN_OUTPUT.run(&client, params).await? == 1)
    }

    /// A page of output: of `lease`, else of the last one that has any. `None` when there is no such task.
    pub async fn read_logs(
        &self,
        task: TaskId,
        lease: Option<Lease>,
        offset: i64,
    ) -> Result<Option<LogPage>, StoreError> {
        let client = self.client().await?;
        let Some(row) = FIND_LOG_LEASE.row(&client, &[&task.0, &lease.map(|l| l.0)]).await? else {
            return Ok(None);
        };
        // Read before the chunks, so that `done` is not said while some are still being added.
        let done: bool = get(&row, "done");
        let lease: i64 = get(&row, "lease");
        let rows = READ_LOGS.rows(&client, &[&task.0, &lease, &offset, &PAGE]).await?;
        let full = i64::try_from(rows.len()).unwrap_or(PAGE) >= PAGE;
        let mut next_offset = offset;
        let mut chunks = Vec::with_capacity(rows.len());
        for row in &rows {
            let (start, data): (i64, Vec<u8>) = (get(row, "offset"), get(row, "data"));
            let cut = usize::try_from(next_offset - start).unwrap_or(0).min(data.len());
            chunks.push(LogChunk {
                lease: Lease(lease),
                attempt: get(row, "attempt"),
                offset: start + i64::try_from(cut).unwrap_or(0),
                at: get(row, "at"),
                data: data[cut..].to_vec(),
            });
            next_offset = start + i64::try_from(data.len()).unwrap_or(0);
        }
        Ok(Some(LogPage { chunks, next_offset, done: done && !full }))
    }
}

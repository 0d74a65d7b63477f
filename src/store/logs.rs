//! Output, by byte offset.

use jiff::Timestamp;

use super::{
    HeldLease, Refusal, Store, StoreError,
    connection::{begin, commit},
    error::retry,
    rows::{get, moment},
    statement::{APPEND_LOG, FIND_LOG_LEASE, LOCK_LEASE, READ_LOGS},
};
use crate::model::{Lease, TaskId};

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
/// Bytes of them; a chunk may have more, and then is a page.
const PAGE_BYTES: i64 = 4 << 20;

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
        let tx = begin(&mut client).await?;
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
        commit(tx).await?;
        Ok(match offset.cmp(&next) {
            std::cmp::Ordering::Equal => {
                Appended::Stored(next + i64::try_from(data.len()).unwrap_or(i64::MAX))
            }
            std::cmp::Ordering::Less => Appended::Overlaps(next),
            std::cmp::Ordering::Greater => Appended::Gap(next),
        })
    }

    /// A page of output: of `lease`, else of the last one that has any. `None` when there is no such task.
    pub async fn read_logs(
        &self,
        task: TaskId,
        lease: Option<Lease>,
        offset: i64,
    ) -> Result<Option<LogPage>, StoreError> {
        let wanted = lease.map(|l| l.0);
        let Some(row) = self.read_row(&FIND_LOG_LEASE, &[&task.0, &wanted]).await? else {
            return Ok(None);
        };
        // Read before the chunks, so that `done` is not said while some are still being added.
        let done: bool = get(&row, "done");
        let lease: i64 = get(&row, "lease");
        let params: super::statement::Params<'_> = &[&task.0, &lease, &offset, &PAGE, &PAGE_BYTES];
        let rows = self.read(&READ_LOGS, params).await?;
        let found: i64 = rows.first().map_or(0, |row| get(row, "found"));
        // There may be more chunks, or there are some that would have been too much.
        let full = found >= PAGE || i64::try_from(rows.len()).unwrap_or(found) < found;
        let mut next_offset = offset;
        let mut chunks = Vec::with_capacity(rows.len());
        for row in &rows {
            let (start, data): (i64, Vec<u8>) = (get(row, "offset"), get(row, "data"));
            let cut = usize::try_from(next_offset - start).unwrap_or(0).min(data.len());
            chunks.push(LogChunk {
                lease: Lease(lease),
                attempt: get(row, "attempt"),
                offset: start + i64::try_from(cut).unwrap_or(0),
                at: moment(row, "at"),
                data: data[cut..].to_vec(),
            });
            next_offset = start + i64::try_from(data.len()).unwrap_or(0);
        }
        Ok(Some(LogPage { chunks, next_offset, done: done && !full }))
    }
}

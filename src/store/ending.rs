//! The ends of leases: the statements, and what their rows mean.

use std::collections::HashSet;

use sha2::{Digest, Sha256};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    EndLease, Ended, Outcome, Refusal, StoreError,
    connection::GenericClient,
    issues,
    journal::{Journal, Line},
    rows::{get, word},
    statement::{COMPLETE_LEASES, END_LEASES, FIND_LEASE_END, FIND_RECEIPT, LIST_PENDING_ISSUES},
    traced::Traced,
};
use crate::model::{EventType, Receipt, ReceiptStatus};

/// The statements that end leases, with their parameters.
pub(super) struct Ending<'a> {
    ends: &'a [EndLease],
    /// Places in `ends`.
    places: Vec<i64>,
    tasks: Vec<Uuid>,
    leases: Vec<i64>,
    holders: Vec<Uuid>,
    outcomes: Vec<&'static str>,
    reasons: Vec<Option<&'a str>>,
    waits: Vec<Option<i32>>,
    receipts: Vec<Option<serde_json::Value>>,
    hashes: Vec<Option<Vec<u8>>>,
    actors: Vec<String>,
    pull_requests: Vec<Option<&'a str>>,
    backoff: f64,
}

impl<'a> Ending<'a> {
    pub(super) fn new(ends: &'a [EndLease], backoff: std::time::Duration) -> Self {
        let receipts: Vec<Option<serde_json::Value>> = ends
            .iter()
            .map(|e| e.receipt.as_ref().map(|r| serde_json::to_value(r).unwrap_or_default()))
            .collect();
        Self {
            ends,
            places: (0..).take(ends.len()).collect(),
            tasks: ends.iter().map(|e| e.held.task_id.0).collect(),
            leases: ends.iter().map(|e| e.held.lease.0).collect(),
            holders: ends.iter().map(|e| e.held.holder.0).collect(),
            outcomes: ends.iter().map(|e| e.outcome.as_str()).collect(),
            reasons: ends.iter().map(|e| e.reason.as_deref()).collect(),
            waits: ends.iter().map(|e| e.wait_secs).collect(),
            hashes: receipts.iter().map(|r| r.as_ref().map(receipt_hash)).collect(),
            receipts,
            actors: ends.iter().map(|e| e.actor.to_string()).collect(),
            pull_requests: ends
                .iter()
                .map(|e| e.receipt.as_ref().and_then(Receipt::pull_request))
                .collect(),
            backoff: backoff.as_secs_f64(),
        }
    }

    /// Runs the statements; nothing when no lease is to end.
    pub(super) async fn rows<C: GenericClient>(&self, client: &C) -> Result<Vec<Row>, StoreError> {
        if self.ends.is_empty() {
            return Ok(Vec::new());
        }
        // One statement for all, so that tasks are locked in one order.
        if !self.ends.iter().all(is_completed) {
            return self.judge(client, &self.places).await;
        }
        let mut rows = COMPLETE_LEASES
            .rows(
                client,
                &[
                    &self.tasks,
                    &self.leases,
                    &self.holders,
                    &self.receipts,
                    &self.hashes,
                    &self.actors,
                    &self.pull_requests,
                    &self.places,
                ],
            )
            .await?;
        if rows.len() < self.ends.len() {
            let done: HashSet<i64> = rows.iter().map(|row| get(row, "place")).collect();
            let left: Vec<i64> =
                self.places.iter().copied().filter(|place| !done.contains(place)).collect();
            rows.extend(self.judge(client, &left).await?);
        }
        Ok(rows)
    }

    /// Ends those in these places, whatever their outcome.
    async fn judge<C: GenericClient>(
        &self,
        client: &C,
        places: &[i64],
    ) -> Result<Vec<Row>, StoreError> {
        /// Of each column what stands in these places.
        macro_rules! of {
            ($column:ident) => {{
                let at = |place: &i64| self.$column.get(usize::try_from(*place).ok()?);
                places.iter().filter_map(at).collect::<Vec<_>>()
            }};
        }
        END_LEASES
            .rows(
                client,
                &[
                    &of!(tasks),
                    &of!(leases),
                    &of!(holders),
                    &of!(outcomes),
                    &of!(reasons),
                    &of!(waits),
                    &of!(receipts),
                    &of!(hashes),
                    &of!(actors),
                    &of!(pull_requests),
                    &places,
                    &self.backoff,
                ],
            )
            .await
    }

    /// What its rows mean, in the order of the ends. Applies newer states of issues that waited, and looks for receipts
    /// that were stored before; with `unheard`, an earlier try may have been committed and not been heard of.
    pub(super) async fn outcomes<C: GenericClient>(
        &self,
        client: &C,
        rows: &[Row],
        unheard: bool,
        journal: &mut Journal,
    ) -> Result<Vec<Ended>, StoreError> {
        let mut by_place: Vec<Option<&Row>> = vec![None; self.ends.len()];
        let mut from_forge: Vec<Uuid> = Vec::new();
        for row in rows {
            let place = usize::try_from(get::<i64>(row, "place")).unwrap_or(usize::MAX);
            if get::<bool>(row, "applied")
                && let Some(end) = self.ends.get(place)
            {
                journal.note(|| ended_line(end, row));
            }
            if get::<bool>(row, "applied") && get::<&str>(row, "source") == "forgejo" {
                from_forge.extend(self.tasks.get(place));
            }
            if let Some(slot) = by_place.get_mut(place) {
                *slot = Some(row);
            }
        }
        if !from_forge.is_empty() {
            for row in LIST_PENDING_ISSUES.rows(client, &[&from_forge]).await? {
                issues::apply(client, get(&row, "key"), journal).await?;
            }
        }
        let mut ended = Vec::with_capacity(self.ends.len());
        for ((end, hash), row) in self.ends.iter().zip(&self.hashes).zip(by_place) {
            ended.push(match row {
                Some(row) if get::<bool>(row, "applied") => Ended::Now(word(row, "to_status")?),
                Some(_) => refused(client, end, hash.as_deref(), unheard).await?,
                None => Ended::Not(Refusal::Missing),
            });
        }
        Ok(ended)
    }
}

/// A receipt says that the work is done: the commonest end, for which there are statements of their own.
pub(super) fn is_completed(end: &EndLease) -> bool {
    let says = end.receipt.as_ref().map(|receipt| receipt.status);
    end.outcome == Outcome::Completed
        && says == Some(ReceiptStatus::Completed)
        && end.reason.is_none()
}

/// The log line of an end, by a row of its statement.
pub(super) fn ended_line(end: &EndLease, row: &Row) -> Line {
    let event: &str = get(row, "type");
    let stays = event == EventType::LeaseEnded.as_str();
    Line {
        task_id: end.held.task_id.0,
        event: event.to_owned(),
        from: Some(get(row, "from_status")),
        status: (!stays).then(|| get(row, "to_status")),
        lease: end.held.lease,
        attempt: Some(get(row, "attempt")),
        actor: end.actor.to_string(),
        traced: Traced::attempt(row, end.receipt.is_some()),
        ..Line::default()
    }
}

/// The canonical bytes of a receipt, to recognise it when it is sent again.
pub(super) fn receipt_hash(receipt: &serde_json::Value) -> Vec<u8> {
    Sha256::digest(receipt.to_string()).to_vec()
}

/// A receipt whose lease is gone may be one that was stored before; any end of a lease may be one whose commit was not heard
/// of.
async fn refused<C: GenericClient>(
    client: &C,
    end: &EndLease,
    hash: Option<&[u8]>,
    unheard: bool,
) -> Result<Ended, StoreError> {
    let actor = end.actor.to_string();
    let Some(hash) = hash else {
        let done = unheard
            && FIND_LEASE_END
                .row(client, &[&end.held.task_id.0, &end.held.lease.0, &actor])
                .await?
                .is_some();
        return Ok(if done { Ended::Before } else { Ended::Not(Refusal::LeaseLost) });
    };
    let sender = actor.split_once(':').map_or("", |(_, name)| name);
    let row =
        FIND_RECEIPT.row(client, &[&end.held.task_id.0, &end.held.lease.0, &hash, &sender]).await?;
    Ok(match row {
        Some(row) if get(&row, "same") => Ended::Before,
        _ => Ended::Not(Refusal::LeaseLost),
    })
}

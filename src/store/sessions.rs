//! Sessions and replicas: who lives.

use std::time::Duration;

use uuid::Uuid;

use super::{
    Store, StoreError,
    connection::{begin, commit},
    error::retry,
    rows::get,
    statement::{
        BEAT_REPLICA, BEGIN_SESSION, END_SESSION, END_SESSIONS_OF, END_SILENT_SESSIONS,
        READ_IDENTITY, READ_SESSION_END, UPSERT_REPLICA,
    },
};
use crate::model::SessionId;

/// Why the session of a replica has ended whose id another boot has now.
pub(crate) const BOOTED_AGAIN: &str = "booted again";

/// A session that was found silent and has been ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SilentSession {
    /// The session.
    pub session_id: SessionId,
    /// `agent` or `replica`.
    pub kind: String,
    /// Whose it was.
    pub subject: String,
}

/// What a replica learns from its heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beaten {
    /// It has beaten for its ttl without a gap: it may judge others.
    pub is_steady: bool,
    /// Where it stands.
    pub standing: Standing,
}

/// Where a replica stands among those that live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Its place, from 0.
    pub place: u32,
    /// How many there are.
    pub of: u32,
}

impl Store {
    /// The name of this fleet on its hosts.
    pub async fn fleet_id(&self) -> Result<Uuid, StoreError> {
        let client = self.client().await?;
        Ok(get(&READ_IDENTITY.one(&client, &[]).await?, "fleet_id"))
    }

    /// A replica boots: earlier boots of its id end, a session begins.
    pub async fn begin_replica(
        &self,
        replica_id: &str,
        hostname: &str,
        machine: &str,
        ttl: Duration,
    ) -> Result<SessionId, StoreError> {
        let mut tries = 0;
        loop {
            match retry!(self.begin_replica_once(replica_id, hostname, machine, ttl).await) {
                // Another boot of this id began at this moment; the later one replaces the earlier.
                Err(e) if tries < 5 && e.is_unique_violation("sessions_live") => tries += 1,
                result => return result,
            }
        }
    }

    async fn begin_replica_once(
        &self,
        replica_id: &str,
        hostname: &str,
        machine: &str,
        ttl: Duration,
    ) -> Result<SessionId, StoreError> {
        let mut client = self.client().await?;
        let tx = begin(&mut client).await?;
        END_SESSIONS_OF.run(&tx, &[&"replica", &replica_id, &BOOTED_AGAIN]).await?;
        let row = BEGIN_SESSION.one(&tx, &[&"replica", &replica_id, &ttl.as_secs_f64()]).await?;
        let session: Uuid = get(&row, "session_id");
        let version = env!("CARGO_PKG_VERSION");
        UPSERT_REPLICA.run(&tx, &[&replica_id, &session, &hostname, &version, &machine]).await?;
        commit(tx).await?;
        Ok(SessionId(session))
    }

    /// A replica's heartbeat. `None` when its session has been ended: begin another.
    pub async fn beat_replica(&self, session: SessionId) -> Result<Option<Beaten>, StoreError> {
        let client = self.client().await?;
        let row = BEAT_REPLICA.row(&client, &[&session.0]).await?;
        Ok(row.map(|row| {
            let number = |column| u32::try_from(get::<i64>(&row, column)).unwrap_or(u32::MAX);
            Beaten {
                is_steady: get(&row, "steady"),
                standing: Standing { place: number("place"), of: number("replicas") },
            }
        }))
    }

    /// Why a session has ended.
    pub async fn read_session_end(&self, session: SessionId) -> Result<Option<String>, StoreError> {
        let client = self.client().await?;
        let row = READ_SESSION_END.row(&client, &[&session.0]).await?;
        Ok(row.and_then(|row| get(&row, "end_reason")))
    }

    /// Ends a session; nothing if it has ended.
    pub async fn end_session(&self, session: SessionId, reason: &str) -> Result<(), StoreError> {
        let client = self.client().await?;
        END_SESSION.run(&client, &[&session.0, &reason]).await?;
        Ok(())
    }

    /// Ends sessions that are silent for longer than their ttl, as far as this replica may judge.
    pub async fn end_silent_sessions(
        &self,
        me: SessionId,
        limit: i64,
    ) -> Result<Vec<SilentSession>, StoreError> {
        let client = self.client().await?;
        let rows = END_SILENT_SESSIONS.rows(&client, &[&me.0, &limit]).await?;
        Ok(rows
            .iter()
            .map(|r| SilentSession {
                session_id: SessionId(get::<Uuid>(r, "session_id")),
                kind: get(r, "kind"),
                subject: get(r, "subject"),
            })
            .collect())
    }
}

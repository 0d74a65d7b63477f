//! Heartbeats of agents, in batches: one narrow row a session.

use std::{collections::HashMap, time::Instant};

use uuid::Uuid;

use super::{
    Store, StoreError,
    rows::get,
    statement::{BEAT_AGENTS, TOUCH_SESSIONS},
};
use crate::model::{Lease, SessionId, TaskId};

/// An agent's heartbeat.
#[derive(Debug, Clone)]
pub struct AgentBeat {
    /// The session that it renews.
    pub session: SessionId,
    /// What the agent says that it works on, if it says so.
    pub running: Option<Vec<TaskId>>,
    /// When it arrived here.
    pub arrived: Instant,
}

/// What a heartbeat is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The agent is to take nothing new.
    pub draining: bool,
    /// Tasks that were cancelled under it lately. Told for as long as a session may be silent, so that a lost reply loses
    /// nothing.
    pub cancelled: Vec<TaskId>,
    /// What it held when the heartbeat before came, and neither list names.
    pub dropped: Vec<(TaskId, Lease)>,
    /// What it lists and does not hold.
    pub lost: Vec<TaskId>,
}

/// What came of signs of life.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Sessions that were renewed.
    pub renewed: Vec<SessionId>,
    /// Sessions that live and that somebody else had locked: to be tried again.
    pub busy: Vec<SessionId>,
}

impl Store {
    /// Renews sessions, each at most once; answers each in the order given, `None` for those that have ended. Never done
    /// again by itself: a second time would count as the agent's next heartbeat.
    pub async fn beat_agents(&self, beats: &[AgentBeat]) -> Result<Vec<Option<Heard>>, StoreError> {
        let client = self.client().await?;
        let sessions: Vec<Uuid> = beats.iter().map(|b| b.session.0).collect();
        let has_list: Vec<bool> = beats.iter().map(|b| b.running.is_some()).collect();
        let ages: Vec<f64> = beats.iter().map(|b| b.arrived.elapsed().as_secs_f64()).collect();
        let (owners, tasks): (Vec<Uuid>, Vec<Uuid>) = beats
            .iter()
            .flat_map(|b| b.running.iter().flatten().map(|task| (b.session.0, task.0)))
            .unzip();
        let rows =
            BEAT_AGENTS.rows(&client, &[&sessions, &has_list, &ages, &owners, &tasks]).await?;
        let mut heard: HashMap<Uuid, Heard> = rows
            .iter()
            .map(|row| {
                let ids = |column| -> Vec<TaskId> {
                    get::<Vec<Uuid>>(row, column).into_iter().map(TaskId).collect()
                };
                let leases = get::<Vec<i64>>(row, "dropped_leases").into_iter().map(Lease);
                let heard = Heard {
                    draining: get(row, "draining"),
                    cancelled: ids("cancelled"),
                    dropped: ids("dropped").into_iter().zip(leases).collect(),
                    lost: ids("lost"),
                };
                (get(row, "session_id"), heard)
            })
            .collect();
        Ok(sessions.iter().map(|session| heard.remove(session)).collect())
    }

    /// Signs of life in a batch, each with when it was heard. Sessions that have ended are in neither list.
    pub async fn touch_sessions(
        &self,
        heard: &[(SessionId, Instant)],
    ) -> Result<Touched, StoreError> {
        let client = self.client().await?;
        let (ids, ages): (Vec<Uuid>, Vec<f64>) =
            heard.iter().map(|(session, at)| (session.0, at.elapsed().as_secs_f64())).unzip();
        let mut touched = Touched::default();
        for row in TOUCH_SESSIONS.rows(&client, &[&ids, &ages]).await? {
            let list = if get(&row, "renewed") { &mut touched.renewed } else { &mut touched.busy };
            list.push(SessionId(get::<Uuid>(&row, "session_id")));
        }
        Ok(touched)
    }
}

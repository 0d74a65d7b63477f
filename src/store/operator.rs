//! What an operator does to a task: cancel, retry, assign.

use super::{
    Store, StoreError,
    connection::{begin, commit},
    error::retry,
    issues,
    journal::{Journal, Line},
    rows::{get, word},
    statement::{
        ASSIGN_TASK, CANCEL_TASK, FIND_EVENT_OF, FIND_TARGET, LIST_PENDING_ISSUES, Params,
        RETRY_TASK, Statement,
    },
    traced::Traced,
};
use crate::model::{Actor, EventType, ExecutionMode, Lease, Status, TaskId, words};

/// Why nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperatorRefusal {
    /// There is no such task.
    Missing,
    /// Its status does not allow it.
    Status(Status),
}

words! {
    /// What a task can be assigned to.
    TargetKind {
        /// A registered agent.
        Agent = "agent",
        /// A host, or one CLI of it.
        Host = "host",
    }
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Agent or host.
    pub kind: TargetKind,
    /// Whether it has what the task requires.
    pub capable: bool,
}

impl Store {
    /// Calls a task off.
    pub async fn cancel_task(
        &self,
        task: TaskId,
        actor: &Actor,
        reason: Option<&str>,
    ) -> Result<Result<(), OperatorRefusal>, StoreError> {
        let done = (EventType::Cancelled, Status::Cancelled);
        self.operate(task, done, actor, &CANCEL_TASK, &[&task.0, &actor.to_string(), &reason]).await
    }

    /// Wants an ended task run again, if given in another mode from now on. A newer state of its issue that waited is applied
    /// in the same transaction.
    pub async fn retry_task(
        &self,
        task: TaskId,
        actor: &Actor,
        mode: Option<ExecutionMode>,
    ) -> Result<Result<(), OperatorRefusal>, StoreError> {
        let mode = mode.map(ExecutionMode::as_str);
        let done = (EventType::Retried, Status::Created);
        let params: Params<'_> = &[&task.0, &actor.to_string(), &mode, &"retried"];
        self.operate(task, done, actor, &RETRY_TASK, params).await
    }

    /// Pins a task to an agent, host or host agent.
    pub async fn assign_task(
        &self,
        task: TaskId,
        target: &str,
        mode: ExecutionMode,
        reservation: std::time::Duration,
        actor: &Actor,
    ) -> Result<Result<(), OperatorRefusal>, StoreError> {
        self.operate(
            task,
            (EventType::Pinned, Status::Assigned),
            actor,
            &ASSIGN_TASK,
            &[&task.0, &target, &mode.as_str(), &reservation.as_secs_f64(), &actor.to_string()],
        )
        .await
    }

    /// What a name stands for; an agent goes before a host. `None` when it is nobody's, or there is no such task.
    pub async fn find_target(
        &self,
        name: &str,
        task: TaskId,
    ) -> Result<Option<Target>, StoreError> {
        let mut targets = self
            .read(&FIND_TARGET, &[&name, &task.0])
            .await?
            .iter()
            .map(|row| Ok(Target { kind: word(row, "kind")?, capable: get(row, "capable") }))
            .collect::<Result<Vec<_>, StoreError>>()?;
        targets.sort_by_key(|t| t.kind);
        Ok(targets.into_iter().next())
    }

    async fn operate(
        &self,
        task: TaskId,
        done: (EventType, Status),
        actor: &Actor,
        statement: &Statement,
        params: Params<'_>,
    ) -> Result<Result<(), OperatorRefusal>, StoreError> {
        let mut unheard = None;
        retry!(self.operate_once(task, done, actor, statement, params, &mut unheard).await)
    }

    /// `unheard` is the transaction of an earlier try whose commit was not heard of. If it went through, this one finds
    /// the task as that one left it: refused, and yet done.
    async fn operate_once(
        &self,
        task: TaskId,
        done: (EventType, Status),
        actor: &Actor,
        statement: &Statement,
        params: Params<'_>,
        unheard: &mut Option<String>,
    ) -> Result<Result<(), OperatorRefusal>, StoreError> {
        let mut client = self.client().await?;
        let tx = begin(&mut client).await?;
        let Some(row) = statement.row(&tx, params).await? else {
            return Ok(Err(OperatorRefusal::Missing));
        };
        if get(&row, "applied") {
            *unheard = Some(get(&row, "xid"));
            let mut journal = Journal::default();
            journal.note(|| Line {
                task_id: task.0,
                event: done.0.to_string(),
                from: Some(get(&row, "status")),
                status: Some(done.1.to_string()),
                lease: Lease(get(&row, "lease")),
                actor: actor.to_string(),
                // Only the end of an attempt says anything to its trace.
                traced: (done.0 == EventType::Cancelled)
                    .then(|| Traced::attempt(&row, false))
                    .flatten(),
                ..Line::default()
            });
            if done.0 == EventType::Retried {
                // What its issue said during a lease that a cancel ended, which applies nothing, has waited for this.
                for row in LIST_PENDING_ISSUES.rows(&tx, &[&vec![task.0]]).await? {
                    issues::apply(&tx, get(&row, "key"), &mut journal).await?;
                }
            }
            commit(tx).await?;
            journal.write();
            return Ok(Ok(()));
        }
        if let Some(xid) = unheard.as_ref()
            && FIND_EVENT_OF.row(&tx, &[&task.0, xid]).await?.is_some()
        {
            return Ok(Ok(()));
        }
        Ok(Err(OperatorRefusal::Status(word(&row, "status")?)))
    }
}

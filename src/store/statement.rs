//! The statements: each is one file in `sql/`, prepared once per connection, run and timed under its name.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use tokio_postgres::{Row, types::ToSql};

use super::{StoreError, connection::GenericClient};

/// One file of `sql/`.
#[derive(Debug)]
pub struct Statement {
    /// The file's name without its ending.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
}

macro_rules! statements {
    ($($constant:ident $name:literal)+) => {
        $(pub(super) const $constant: Statement =
            Statement { name: $name, text: include_str!(concat!("../../sql/", $name, ".sql")) };)+

        /// Every statement; a test holds this against the folder and prepares each.
        pub const STATEMENTS: &[Statement] = &[$($constant,)+];
    };
}

statements! {
    APPEND_LOG "append_log"
    APPEND_RUN_OUTPUT "append_run_output"
    ASSIGN_TASK "assign_task"
    AWAIT_CREATIONS "await_creations"
    BEAT_AGENTS "beat_agents"
    BEAT_REPLICA "beat_replica"
    BEGIN_SESSION "begin_session"
    CANCEL_TASK "cancel_task"
    CHECK_CALLERS "check_callers"
    CHECK_HOST_ID "check_host_id"
    CHECK_LEASE "check_lease"
    CHECK_PARTITIONS "check_partitions"
    CHECK_SESSIONS "check_sessions"
    CLAIM_PULL_1_LOCK "claim_pull_1_lock"
    CLAIM_PULL_2_HELD "claim_pull_2_held"
    CLAIM_PULL_2_PINNED "claim_pull_2_pinned"
    CLAIM_PULL_2_READY "claim_pull_2_ready"
    CLAIM_PULL_3_TAKE "claim_pull_3_take"
    CLAIM_PULL_4_SWITCH "claim_pull_4_switch"
    CLAIM_PULL_AT_ONCE "claim_pull_at_once"
    CLAIM_PULL_NEXT "claim_pull_next"
    CLAIM_PUSH_1_LOCK "claim_push_1_lock"
    CLAIM_PUSH_2_COUNT "claim_push_2_count"
    CLAIM_PUSH_2_PINNED "claim_push_2_pinned"
    CLAIM_PUSH_2_READY "claim_push_2_ready"
    CLAIM_PUSH_3_TAKE "claim_push_3_take"
    COMPLETE_BY_FORGE "complete_by_forge"
    COMPLETE_LEASES "complete_leases"
    COUNT_TASKS "count_tasks"
    COUNT_WORKERS "count_workers"
    DECIDE_PULL "decide_pull"
    DELETE_AGENT "delete_agent"
    DELETE_HOST_AGENTS "delete_host_agents"
    DELETE_OLD_DELIVERIES "delete_old_deliveries"
    DELETE_OLD_KEYS "delete_old_keys"
    DELETE_OLD_NOTICES "delete_old_notices"
    DELETE_OLD_SESSIONS "delete_old_sessions"
    DELETE_RETIRED_LANES "delete_retired_lanes"
    DESCRIBE_SESSIONS "describe_sessions"
    END_LEASES "end_leases"
    END_SESSION "end_session"
    END_SESSIONS_OF "end_sessions_of"
    END_SILENT_SESSIONS "end_silent_sessions"
    EXAMINE_DATABASE "examine_database"
    EXPIRE_PINS "expire_pins"
    FIND_AGENT_BY_TOKEN "find_agent_by_token"
    FIND_AGENT_SESSION "find_agent_session"
    FIND_CLAIMS "find_claims"
    FIND_DEFINITIONS "find_definitions"
    FIND_DELIVERY "find_delivery"
    FIND_EVENT_OF "find_event_of"
    FIND_EVENT_STALL "find_event_stall"
    FIND_EVENT_XID "find_event_xid"
    FIND_IDEMPOTENCY_KEY "find_idempotency_key"
    FIND_ISSUE_HASH "find_issue_hash"
    FIND_LEASE_END "find_lease_end"
    FIND_LOG_LEASE "find_log_lease"
    FIND_OVERDUE_LEASE "find_overdue_lease"
    FIND_READY_BELOW "find_ready_below"
    FIND_RECEIPT "find_receipt"
    FIND_TAKEN "find_taken"
    FIND_TARGET "find_target"
    FIND_TASK "find_task"
    FIND_TASKS_BY_KEY "find_tasks_by_key"
    GET_TASKS "get_tasks"
    INSERT_DEFINITIONS "insert_definitions"
    INSERT_DELIVERIES "insert_deliveries"
    INSERT_IDEMPOTENCY_KEY "insert_idempotency_key"
    INSERT_ISSUES "insert_issues"
    INSERT_REPLICA_HOST "insert_replica_host"
    INSERT_RUN "insert_run"
    INSERT_TASKS "insert_tasks"
    INTERN_LANES "intern_lanes"
    KEEP_CLAIMS "keep_claims"
    LIST_AGENTS "list_agents"
    LIST_EARLIER_RUNS "list_earlier_runs"
    LIST_ENDED_RUNS "list_ended_runs"
    LIST_EVENTS "list_events"
    LIST_EXPIRED_LEASES "list_expired_leases"
    LIST_HOSTS "list_hosts"
    LIST_LANELESS_SETS "list_laneless_sets"
    LIST_LANES "list_lanes"
    LIST_LOST_LEASES "list_lost_leases"
    LIST_MIGRATIONS "list_migrations"
    LIST_OLD_PARTITIONS "list_old_partitions"
    LIST_OWN_RUNS "list_own_runs"
    LIST_PENDING_ISSUES "list_pending_issues"
    LIST_RECEIPTS "list_receipts"
    LIST_SESSION_LEASES "list_session_leases"
    LIST_TASKS "list_tasks"
    LIST_TASK_EVENTS "list_task_events"
    LIST_VACUUM_BLOCKERS "list_vacuum_blockers"
    LOCK_AGENT "lock_agent"
    LOCK_AGENT_ID "lock_agent_id"
    LOCK_AGENT_SESSION "lock_agent_session"
    LOCK_HOST_AGENTS "lock_host_agents"
    LOCK_ISSUE_TASK "lock_issue_task"
    LOCK_LEASE "lock_lease"
    MAKE_PARTITIONS "make_partitions"
    MAKE_ROLES "make_roles"
    MAKE_TASK_IDS "make_task_ids"
    MARK_RUN_STARTED "mark_run_started"
    PARK_HOST_AGENT "park_host_agent"
    PROMOTE_DUE_TASKS "promote_due_tasks"
    PURGE_TASKS "purge_tasks"
    READ_DEAD_TASKS "read_dead_tasks"
    READ_DUE "read_due"
    READ_EVENT_HORIZON "read_event_horizon"
    READ_IDENTITY "read_identity"
    READ_ISSUE "read_issue"
    READ_LOGS "read_logs"
    READ_NOTIFY_QUEUE "read_notify_queue"
    READ_SESSION_END "read_session_end"
    READ_SILENCE "read_silence"
    READ_STATS "read_stats"
    RESUME_LEASES "resume_leases"
    RETIRE_LANES "retire_lanes"
    RETRY_TASK "retry_task"
    SEND_NOTIFY "send_notify"
    SET_AGENT_DRAINED "set_agent_drained"
    SET_DELIVERY_RESULT "set_delivery_result"
    SET_HOST_AGENT_SOUND "set_host_agent_sound"
    SET_HOSTS_LISTED "set_hosts_listed"
    SET_HOST_DRAINED "set_host_drained"
    SET_HOST_PROBE "set_host_probe"
    SET_IDEMPOTENCY_TASKS "set_idempotency_tasks"
    SET_ISSUE_APPLIED "set_issue_applied"
    SET_LANES "set_lanes"
    SET_LANE_PAUSED "set_lane_paused"
    START_TASK "start_task"
    TAKE_OVER_RUNS "take_over_runs"
    TOUCH_SESSIONS "touch_sessions"
    UNPARK_HOST "unpark_host"
    UPDATE_SPEC "update_spec"
    UPSERT_AGENT "upsert_agent"
    UPSERT_HOST "upsert_host"
    UPSERT_HOST_AGENTS "upsert_host_agents"
    UPSERT_ISSUE "upsert_issue"
    UPSERT_REPLICA "upsert_replica"
    USE_TOKEN "use_token"
    VACUUM_TASKS "vacuum_tasks"
}

/// A server that lives ends a statement by itself, at its `statement_timeout` of 15 s. One that does not answer after this
/// is frozen, or out of reach; its caller is not kept.
const ANSWER: Duration = Duration::from_secs(20);

/// Waits for the server, but not for ever.
pub(super) async fn in_time<T>(running: impl Future<Output = T>) -> Result<T, StoreError> {
    tokio::time::timeout(ANSWER, running).await.map_err(|_| StoreError::silent(ANSWER))
}

/// Parameters of a statement.
pub(super) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Statement {
    /// Runs it for its rows.
    pub(super) async fn rows<C: GenericClient>(
        &self,
        client: &C,
        params: Params<'_>,
    ) -> Result<Vec<Row>, StoreError> {
        let started = Instant::now();
        let result = in_time(client.query(self, params)).await?;
        let rows = result.as_ref().ok().map(|rows| rows.len() as u64);
        self.record(started.elapsed(), rows);
        result.map_err(|source| StoreError::Statement { statement: self.name, source })
    }

    /// Tells how long it took; no rows mean that it failed.
    fn record(&self, took: Duration, rows: Option<u64>) {
        tracing::trace!(
            statement = self.name,
            duration_us = took.as_micros(),
            rows = rows.unwrap_or(0),
            "statement"
        );
        crate::metrics::statement(self.name, took, rows);
    }

    /// Has it ready on a connection, so that statements sent together arrive in the order in which they were sent.
    pub(super) async fn prepare<C: GenericClient>(&self, client: &C) -> Result<(), StoreError> {
        in_time(client.prepare(self))
            .await?
            .map_err(|source| StoreError::Statement { statement: self.name, source })
    }

    /// Runs it for at most one row.
    pub(super) async fn row<C: GenericClient>(
        &self,
        client: &C,
        params: Params<'_>,
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.rows(client, params).await?.into_iter().next())
    }

    /// Runs it for its one row.
    pub(super) async fn one<C: GenericClient>(
        &self,
        client: &C,
        params: Params<'_>,
    ) -> Result<Row, StoreError> {
        self.needed(self.row(client, params).await?)
    }

    /// The row that there has to be.
    pub(super) fn needed(&self, row: Option<Row>) -> Result<Row, StoreError> {
        row.ok_or_else(|| StoreError::Unknown {
            what: format!("no row where `{}` needs one", self.name),
        })
    }

    /// Runs it for the number of rows that it changed.
    pub(super) async fn run<C: GenericClient>(
        &self,
        client: &C,
        params: Params<'_>,
    ) -> Result<u64, StoreError> {
        let started = Instant::now();
        let result = in_time(client.execute(self, params)).await?;
        self.record(started.elapsed(), result.as_ref().ok().copied());
        result.map_err(|source| StoreError::Statement { statement: self.name, source })
    }
}

//! The database: reachable, fit, and of this program's schema.

use super::{Finding, Findings};
use crate::{
    config::Config,
    store::{Examination, OLDEST, Store, StoreError, notify_queue_problem},
    telemetry::error_chain,
};

/// What mends a server that is older than [`OLDEST`].
const UPGRADE: &str = "upgrade the server to 14 or newer";
/// Connections of one replica beside its pool: its own heartbeat, the agents', and its listener.
const BESIDE_THE_POOL: usize = 3;
/// A clock that is off by more than this misleads who reads logs of both machines.
const CLOCK: f64 = 2.0;

pub(super) async fn look(store: &Store, config: &Config) -> Vec<Finding> {
    let mut findings = Findings::new("database");
    if let Err(error) = store.ping().await {
        let mend = if matches!(error, StoreError::TooOld { .. }) {
            UPGRADE
        } else if error.is_refusal() {
            "the server answers and refuses: check user, password and database name in DATABASE_URL (database.url), and pg_hba.conf"
        } else {
            "check that PostgreSQL runs, and host and port in DATABASE_URL (database.url); try `psql \"$DATABASE_URL\"` from this machine"
        };
        findings.fail("connection", error_chain(&error), mend);
        return findings.all;
    }
    match store.examine().await {
        Ok(found) => judge(&found, config, &mut findings),
        Err(error) => findings.fail(
            "examination",
            error_chain(&error),
            "PostgreSQL 14 or newer is needed; see the server's log for what it refused",
        ),
    }
    match store.check_settings().await {
        Ok(()) => findings.ok("session", "the timeouts of a session are in force"),
        Err(error) => {
            findings.fail("session", error_chain(&error), "see PgBouncer in docs/operations.md");
        }
    }
    schema(store, &mut findings).await;
    findings.all
}

async fn schema(store: &Store, findings: &mut Findings) {
    match store.check_schema().await {
        Ok(()) => findings.ok("schema", format!("of version {}", env!("CARGO_PKG_VERSION"))),
        Err(error @ StoreError::Schema(_)) => {
            let mend = "run `agent-fleet migrate` of the newest version in use, as the owner of the schema";
            findings.fail("schema", error.to_string(), mend);
            return;
        }
        Err(error) => {
            let mend = "give this account its rights: `agent-fleet migrate --roles`, then `grant fleet_app to <account>`";
            findings.fail("schema", error_chain(&error), mend);
            return;
        }
    }
    match store.check_partitions().await {
        Ok(true) => findings.ok("partitions", "those of this week and the next are there"),
        Ok(false) => findings.fail(
            "partitions",
            "those of the coming week are missing: events could not be stored",
            "a running replica makes them; by hand: `select fleet.make_partitions('60 days')` as fleet_app",
        ),
        Err(error) => findings.fail("partitions", error_chain(&error), "see the server's log"),
    }
}

fn judge(found: &Examination, config: &Config, findings: &mut Findings) {
    if found.version_num < OLDEST {
        let says = format!("PostgreSQL {} is too old", found.version);
        findings.fail("version", says, UPGRADE);
    } else {
        findings.ok("version", format!("PostgreSQL {}", found.version));
    }

    if found.standby {
        let mend = "name all servers in DATABASE_URL (host1,host2), or promote this one";
        findings.fail("writes", "the server is a standby: it can only be read", mend);
    } else if found.read_only {
        let says = "the database is read-only (default_transaction_read_only)";
        let mend = "find out why it was made so (a full disk?), then `alter database … reset default_transaction_read_only`";
        findings.fail("writes", says, mend);
    } else {
        findings.ok("writes", "it takes writes");
    }

    let wanted = config.database.max_connections + BESIDE_THE_POOL;
    let allowed = usize::try_from(found.connections).unwrap_or(0);
    let says = format!(
        "a replica takes up to {wanted} connections; the server allows {allowed}, {} are open",
        found.connected
    );
    if wanted > allowed {
        let mend = "raise max_connections of the server, or lower database.max_connections";
        findings.fail("connections", says, mend);
    } else if wanted * 2 > allowed {
        let mend = "a second replica may find none left: raise max_connections of the server, or lower database.max_connections";
        findings.warn("connections", says, mend);
    } else {
        findings.ok("connections", says);
    }

    roles(found, findings);

    if !found.autovacuum {
        let mend = "set autovacuum = on and track_counts = on: without them the queue slows down within hours";
        findings.fail("autovacuum", "the server does not vacuum by itself", mend);
    } else if found.unvacuumed.is_empty() {
        findings.ok("autovacuum", "on, for every table");
    } else {
        findings.fail(
            "autovacuum",
            format!("off for fleet.{}", found.unvacuumed.join(", fleet.")),
            "`alter table … reset (autovacuum_enabled)` for each of them",
        );
    }

    let used = found.notify_queue * 100.0;
    match notify_queue_problem(found.notify_queue) {
        None => findings.ok("notifications", format!("their queue is {used:.0} % full")),
        Some(problem) => findings.fail(
            "notifications",
            problem,
            "a session that listens sits in an open transaction: find it in pg_stat_activity (state `idle in transaction`), and end it with pg_terminate_backend",
        ),
    }

    let (ahead, unsure) = (found.clock_ahead_secs, found.clock_uncertainty_secs);
    let says = format!("the server's clock is {ahead:+.1} s from this machine's (± {unsure:.1} s)");
    if ahead.abs() > CLOCK + unsure {
        let mend = "nothing is decided by this machine's clock, but logs will not match: run chrony or another NTP client on both";
        findings.warn("clock", says, mend);
    } else {
        findings.ok("clock", says);
    }
}

fn roles(found: &Examination, findings: &mut Findings) {
    let account = &found.account;
    if !found.uses_schema || !found.lacking_rights.is_empty() {
        let says = match found.lacking_rights.as_slice() {
            [] => format!("{account} may not use the schema fleet"),
            rights => format!("{account} lacks rights: {}", rights.join(", ")),
        };
        let mend = format!(
            "`agent-fleet migrate --roles` as an account that may create roles, then `grant fleet_app to {account}`"
        );
        findings.fail("rights", says, &mend);
    } else if found.superuser {
        let mend = "let the coordinator connect as an account that has fleet_app and no more; see docs/dba.md";
        findings.warn("rights", format!("{account} is a superuser"), mend);
    } else if found.lacking_roles.is_empty() {
        findings.ok("rights", format!("{account} may do what the coordinator does"));
    } else {
        findings.warn(
            "rights",
            format!("these roles do not exist: {}", found.lacking_roles.join(", ")),
            "`agent-fleet migrate --roles` as an account that may create roles",
        );
    }
}

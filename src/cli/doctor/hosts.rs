//! The hosts, as this machine reaches them: the same look that a replica takes.

use futures_util::future::join_all;
use uuid::Uuid;

use super::{Finding, Findings};
use crate::{
    config::{self, Config},
    coordinator::{make_executor, programs_of},
    execution::probe,
    store::Store,
    telemetry::error_chain,
};

/// `fleet` is the database with its fleet's id, when it could be read.
pub(super) async fn look(config: &Config, fleet: Option<(&Store, Uuid)>) -> Vec<Finding> {
    if config.hosts.is_empty() {
        let mut findings = Findings::new("host");
        findings.ok("list", "no [[hosts]]: tasks are pulled by agents alone");
        return findings.all;
    }
    let sockets = match tempfile::Builder::new().prefix("af-").tempdir_in("/tmp") {
        Ok(sockets) => sockets,
        Err(error) => {
            let mut findings = Findings::new("host");
            let says =
                format!("no private folder for ssh's control sockets could be made: {error}");
            findings.fail("list", says, "make /tmp writable");
            return findings.all;
        }
    };
    let looks = config.hosts.iter().map(|host| look_at(config, host, sockets.path(), fleet));
    join_all(looks).await.into_iter().flatten().collect()
}

async fn look_at(
    config: &Config,
    host: &config::Host,
    sockets: &std::path::Path,
    fleet: Option<(&Store, Uuid)>,
) -> Vec<Finding> {
    let mut findings = Findings::new("host");
    let id = &host.host_id;
    let executor = match make_executor(host, sockets) {
        Ok(executor) => executor,
        Err(error) => {
            findings.fail(id, error_chain(&error), "mend hostname and ssh_user of this host");
            return findings.all;
        }
    };
    let fleet_id = fleet.map_or(Uuid::nil(), |(_, fleet_id)| fleet_id);
    let probed =
        probe(executor.as_ref(), &host.work_dir, fleet_id, &programs_of(config, host)).await;
    executor.reconnect().await;
    let report = match probed {
        Ok(report) => report,
        Err(error) => {
            let mend = if host.is_local() {
                "see what this machine says; `sh` must be there".to_owned()
            } else {
                let user =
                    host.ssh_user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
                format!(
                    "try it by hand as the account that serves: `ssh -p {} {user}{}`; then compare ssh_key_path and known_hosts_path",
                    host.ssh_port, host.hostname
                )
            };
            findings.fail(id, error_chain(&error), &mend);
            return findings.all;
        }
    };
    findings.ok(id, format!("reached: {}", report.system));
    let named = |what: &str| format!("{id}/{what}");
    match &report.problem {
        None => findings.ok(&named("work_dir"), format!("{} can be written", host.work_dir)),
        Some(problem) => {
            let mend = format!(
                "make {} writable for the account, or set another work_dir; no run starts here until then",
                host.work_dir
            );
            findings.fail(&named("work_dir"), problem, &mend);
        }
    }
    for (program, found) in &report.programs {
        match found {
            Ok(path) => findings.ok(&named(program), path),
            Err(why) => findings.fail(
                &named(program),
                why,
                "install it for the account, or name it by its absolute path in [cli.…] command",
            ),
        }
    }
    if let Some((store, _)) = fleet {
        match store.list_ended_runs(&report.runs).await {
            Ok(left) if left.is_empty() => findings.ok(&named("runs"), "nothing is left over"),
            Ok(left) => findings.warn(
                &named("runs"),
                format!("{} left over that no task has any more, the first of task {}", left.len(), left[0].0),
                "a replica that reaches the host clears them up within a minute; if none does, see its log",
            ),
            Err(error) => findings.warn(&named("runs"), error_chain(&error), "mend the database first"),
        }
    }
    findings.all
}

//! The bench's own database, reached with PostgreSQL's own programs: `psql` for what has to be prepared and counted,
//! `pgbench` for the floor. So nothing of the coordinator's is in the measure it is held against.

use std::process::Stdio;

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, Command},
};

use crate::cli::dev::postgres::Cluster;

/// One database of the bench's own cluster.
#[derive(Debug)]
pub(super) struct Database<'a> {
    cluster: &'a Cluster,
    name: String,
}

/// What a database has done so far, and how large it is; see `sql/activity.sql`.
#[derive(Debug, Deserialize)]
pub(super) struct Activity {
    /// Ended well or not.
    pub(super) transactions: f64,
    /// Those of them in which autovacuum looked whether there is anything to do, `autovacuum_naptime` after `autovacuum_naptime`.
    pub(super) looks: f64,
    pub(super) commits: f64,
    /// Bytes of the write-ahead log, all of the cluster's.
    pub(super) wal: f64,
    /// Bytes of all tables, and of all indexes.
    pub(super) tables: f64,
    pub(super) indexes: f64,
    /// Bytes of the two ready indexes.
    pub(super) ready_indexes: f64,
}

/// A transaction that is left open, and with it what it sees.
#[derive(Debug)]
pub(super) struct Snapshot {
    psql: Child,
    stdin: ChildStdin,
}

impl Activity {
    /// Reads it now.
    pub(super) async fn read(database: &Database<'_>) -> anyhow::Result<Self> {
        database.run(include_str!("sql/activity.sql"), &[]).await
    }
}

impl Snapshot {
    /// Ends the transaction.
    pub(super) async fn release(mut self) -> anyhow::Result<()> {
        self.stdin.write_all(b"commit;\n").await?;
        drop(self.stdin);
        let status = self.psql.wait().await?;
        ensure!(status.success(), "the transaction that was left open did not last: {status}");
        Ok(())
    }
}

impl<'a> Database<'a> {
    /// Creates it, empty.
    pub(super) async fn create(cluster: &'a Cluster, name: String) -> anyhow::Result<Self> {
        cluster.create_database(&name).await?;
        Ok(Self { cluster, name })
    }

    /// Removes it: autovacuum looks into every database, and who forks a process for that is missing elsewhere.
    pub(super) async fn remove(self) -> anyhow::Result<()> {
        Ok(self.cluster.drop_database(&self.name).await?)
    }

    /// How a coordinator connects.
    pub(super) fn url(&self) -> String {
        self.cluster.url(&self.name)
    }

    /// How the bench itself does. Like a coordinator's sessions, its own wake nobody by a trigger: raw clients that paid for
    /// notifications would be a low floor.
    fn own_url(&self) -> String {
        format!("{} options='-c agent_fleet.tells=itself'", self.url())
    }

    /// Runs a script with these variables; its last line is JSON.
    pub(super) async fn run<T: DeserializeOwned>(
        &self,
        script: &str,
        variables: &[(&str, &str)],
    ) -> anyhow::Result<T> {
        let mut command = self.psql();
        for (name, value) in variables {
            command.arg("-v").arg(format!("{name}={value}"));
        }
        let output = run(command, script).await?;
        let line = output.trim_end().lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("psql answered `{line}`"))
    }

    /// A `psql` that reads a script.
    fn psql(&self) -> Command {
        let mut command = self.cluster.program("psql");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-", "-d"]);
        command.arg(self.own_url());
        command
    }

    /// Opens a transaction and leaves it open.
    pub(super) async fn hold_snapshot(&self) -> anyhow::Result<Snapshot> {
        let mut command = self.psql();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut psql = command.spawn().context("cannot run psql")?;
        let (stdin, stdout) = psql.stdin.take().zip(psql.stdout.take()).context("no pipes")?;
        let mut snapshot = Snapshot { psql, stdin };
        snapshot.stdin.write_all(include_bytes!("sql/hold_snapshot.sql")).await?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).await?;
        ensure!(line.trim() == "held", "the transaction could not be opened");
        Ok(snapshot)
    }

    /// Runs a script `transactions` times on each of `clients` connections, with prepared statements. Transactions a
    /// second.
    pub(super) async fn pgbench(
        &self,
        script: &str,
        variables: &[(&str, &str)],
        clients: usize,
        transactions: usize,
    ) -> anyhow::Result<f64> {
        let mut command = self.cluster.program("pgbench");
        command.args(["-n", "-M", "prepared", "-j", "2"]);
        command.arg("-c").arg(clients.to_string()).arg("-t").arg(transactions.to_string());
        for (name, value) in variables {
            command.arg("-D").arg(format!("{name}={value}"));
        }
        command.args(["-f", "-"]).arg(self.own_url());
        let output = run(command, script).await?;
        let all = clients * transactions;
        if !output.contains(&format!("actually processed: {all}/{all}")) {
            bail!("pgbench did not do all {all} transactions: {output}");
        }
        parse_rate(&output).with_context(|| format!("pgbench answered {output}"))
    }
}

/// 4211.5 from `tps = 4211.5 (without initial connection time)`.
fn parse_rate(output: &str) -> Option<f64> {
    let line =
        output.lines().find(|line| line.starts_with("tps = ") && !line.contains("including"))?;
    line.split(' ').nth(2)?.parse().ok()
}

/// Runs a program to its end with this input; what it printed.
async fn run(mut command: Command, input: &str) -> anyhow::Result<String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| {
        format!("cannot run {program} (Debian, Ubuntu: `apt-get install postgresql` has it)")
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading says why by its exit status.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read() {
        let output = "number of failed transactions: 0 (0.000%)\ntps = 4211.512345 (without initial connection time)\n";
        assert_eq!(parse_rate(output), Some(4211.512345));
        assert_eq!(parse_rate("tps"), None);
    }
}

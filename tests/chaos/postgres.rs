//! A primary and its synchronous standby, as processes on loopback ports.
//!
//! `fsync` is off: the machine does not crash here, only processes do, and what a process wrote stays. Commits wait for
//! the standby while there is one, so a failover loses nothing that was acknowledged.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::process::Command;
use tokio_postgres::NoTls;

use crate::support::{eventually, free_port};

pub(crate) const ROLE: &str = "agent_fleet";

/// One server's folder and port.
struct Server {
    data: PathBuf,
    port: u16,
}

/// Both.
pub(crate) struct Pair {
    bin: PathBuf,
    /// Who runs them: PostgreSQL refuses to run as root.
    account: Option<(u32, u32)>,
    dir: PathBuf,
    servers: [Server; 2],
    primary: usize,
    has_standby: bool,
}

impl Pair {
    /// Starts both.
    pub(crate) async fn start(dir: &Path) -> anyhow::Result<Self> {
        let account = account()?;
        make_dir(dir, account)?;
        let servers = ["a", "b"].map(|n| Server { data: dir.join(n), port: free_port() });
        let bin = binaries()?;
        let dir = dir.to_owned();
        let mut pair = Self { bin, account, dir, servers, primary: 0, has_standby: false };
        let data = pair.servers[0].data.clone();
        let mut initdb = pair.command("initdb");
        initdb.args(["-A", "trust", "-U", ROLE, "--no-locale", "-E", "UTF8", "--no-sync", "-D"]);
        pair.run(initdb.arg(&data)).await?;
        let conf = data.join("postgresql.conf");
        let own = fs::read_to_string(&conf)?;
        fs::write(&conf, own + "\ninclude 'chaos.conf'\n")?;
        pair.launch(0).await?;
        pair.admin("postgres").await?.batch_execute("create database fleet").await?;
        pair.build_standby().await?;
        Ok(pair)
    }

    /// First and second server's.
    pub(crate) fn ports(&self) -> [u16; 2] {
        [self.servers[0].port, self.servers[1].port]
    }

    /// Stops the primary and starts it again, in good order or not.
    pub(crate) async fn restart(&self, mode: &str) -> anyhow::Result<()> {
        self.stop(self.primary, mode).await?;
        self.launch(self.primary).await
    }

    /// The primary dies, the standby becomes the primary. There is no standby afterwards.
    pub(crate) async fn fail_over(&mut self) -> anyhow::Result<()> {
        self.stop(self.primary, "immediate").await?;
        self.primary = 1 - self.primary;
        self.has_standby = false;
        let mut promote = self.pg_ctl(self.primary);
        promote.args(["promote", "-w"]);
        self.run(&mut promote).await
    }

    /// Makes the other server the standby, from nothing, and waits until commits wait for it.
    pub(crate) async fn build_standby(&mut self) -> anyhow::Result<()> {
        let (from, to) = (self.primary, 1 - self.primary);
        let data = self.servers[to].data.clone();
        if data.exists() {
            fs::remove_dir_all(&data)?;
        }
        let port = self.servers[from].port.to_string();
        let mut backup = self.command("pg_basebackup");
        backup.args(["-h", "127.0.0.1", "-p", &port, "-U", ROLE, "-X", "stream", "-c", "fast"]);
        backup.args(["-R", "--no-sync", "-D"]);
        self.run(backup.arg(&data)).await?;
        self.launch(to).await?;
        self.has_standby = true;
        self.configure(from)?;
        let mut reload = self.pg_ctl(from);
        self.run(reload.arg("reload")).await?;
        let admin = self.admin("fleet").await?;
        eventually("commits wait for the standby", async || {
            let sql = "select 1 from pg_stat_replication where sync_state = 'sync'";
            admin.query_opt(sql, &[]).await.ok().flatten()
        })
        .await;
        Ok(())
    }

    async fn admin(&self, dbname: &str) -> anyhow::Result<tokio_postgres::Client> {
        let port = self.servers[self.primary].port;
        connect(&format!("host=127.0.0.1 port={port} user={ROLE} dbname={dbname}")).await
    }

    async fn launch(&self, at: usize) -> anyhow::Result<()> {
        self.configure(at)?;
        let mut start = self.pg_ctl(at);
        start.args(["start", "-w", "-t", "60", "-s", "-l"]).arg(self.dir.join("server.log"));
        self.run(&mut start).await
    }

    async fn stop(&self, at: usize, mode: &str) -> anyhow::Result<()> {
        let mut stop = self.pg_ctl(at);
        stop.args(["stop", "-w", "-t", "60", "-s", "-m", mode]);
        self.run(&mut stop).await
    }

    fn configure(&self, at: usize) -> anyhow::Result<()> {
        let server = &self.servers[at];
        let waits_for = if at == self.primary && self.has_standby { "*" } else { "" };
        let text = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\nmax_connections = 200\n\
             fsync = off\nwal_retrieve_retry_interval = '200ms'\nwal_keep_size = '1GB'\nsynchronous_standby_names = '{waits_for}'\n\
             log_line_prefix = '%m {} [%p] %q%a '\n",
            server.port, server.port,
        );
        fs::write(server.data.join("chaos.conf"), text)?;
        Ok(())
    }

    fn pg_ctl(&self, at: usize) -> Command {
        let mut command = self.command("pg_ctl");
        command.arg("-D").arg(&self.servers[at].data);
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        if let Some((uid, gid)) = self.account {
            command.uid(uid).gid(gid);
        }
        command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
        command
    }

    async fn run(&self, command: &mut Command) -> anyhow::Result<()> {
        // Not by pipes: the server keeps what it inherits.
        let said = self.dir.join("said");
        let file = || fs::File::options().create(true).append(true).open(&said);
        let status = command.stdout(file()?).stderr(file()?).status().await?;
        if !status.success() {
            let all = fs::read_to_string(&said)?;
            let tail: Vec<&str> = all.lines().rev().take(5).collect();
            bail!("{command:?}: {status}: {tail:?}");
        }
        Ok(())
    }
}

/// A multi-host address that leads to whichever takes writes.
pub(crate) fn url_of(ports: &[u16]) -> String {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!(
        "postgres://{ROLE}@{}/fleet?target_session_attrs=read-write&connect_timeout=2",
        hosts.join(",")
    )
}

/// A connection.
pub(crate) async fn connect(url: &str) -> anyhow::Result<tokio_postgres::Client> {
    let connecting = tokio_postgres::connect(url, NoTls);
    let (client, connection) = tokio::time::timeout(Duration::from_secs(3), connecting).await??;
    tokio::spawn(connection);
    Ok(client)
}

/// Who runs a server: `None` for this account, else user and group of `postgres`, because this is root.
pub(crate) fn account() -> anyhow::Result<Option<(u32, u32)>> {
    let id = |args: &[&str]| -> anyhow::Result<u32> {
        let output = std::process::Command::new("id").args(args).output()?;
        let text = String::from_utf8(output.stdout)?;
        text.trim()
            .parse()
            .context("PostgreSQL does not run as root, and there is no user postgres")
    };
    if id(&["-u"])? != 0 {
        return Ok(None);
    }
    Ok(Some((id(&["-u", "postgres"])?, id(&["-g", "postgres"])?)))
}

/// Makes a folder that the account owns.
pub(crate) fn make_dir(dir: &Path, account: Option<(u32, u32)>) -> anyhow::Result<()> {
    fs::create_dir_all(dir)?;
    if let Some((uid, gid)) = account {
        std::os::unix::fs::chown(dir, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// `PG_BIN`, else Debian's newest.
pub(crate) fn binaries() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("PG_BIN") {
        return Ok(dir.into());
    }
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .context("no PostgreSQL server is installed here; set PG_BIN")?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .collect();
    found.sort();
    Ok(found.pop().context("no PostgreSQL server is installed here; set PG_BIN")?.1)
}

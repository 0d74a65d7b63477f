//! Coordinators of the bench's own: processes of this very program, as in production.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use super::http::{Address, Connection};

/// How long one may take to be ready; it migrates first.
const READY_WAIT: Duration = Duration::from_secs(60);
/// Starts the program in the background, says its process id, and ends it when stdin closes, which happens when the
/// bench lets go of it or ends, however it ends.
const GUARD: &str = r#"trap '' INT TERM HUP; "$@" 2>"$BENCH_LOG" >&2 </dev/null & echo $!; cat >/dev/null; kill $!; wait"#;

/// What all of them are started with.
#[derive(Debug)]
pub(super) struct Settings<'a> {
    pub(super) database_url: String,
    pub(super) admin_token: &'a str,
    pub(super) webhook_secret: &'a str,
    /// For their logs.
    pub(super) dir: &'a Path,
}

/// One that runs. It is told to stop when this is dropped.
#[derive(Debug)]
pub(super) struct Replica {
    guard: Child,
    pub(super) pid: u32,
    pub(super) address: Address,
}

impl Replica {
    /// Starts one and waits until it is ready.
    pub(super) async fn start(settings: &Settings<'_>, number: usize) -> anyhow::Result<Self> {
        let listen = free_address()?;
        let log = settings.dir.join(format!("replica-{number}.log"));
        let mut command = Command::new("sh");
        command.args(["-c", GUARD, "agent-fleet-bench-guard"]);
        command.arg(std::env::current_exe()?).args(["serve", "--migrate"]);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AGENT_FLEET_") {
                command.env_remove(name);
            }
        }
        command
            .env("AGENT_FLEET_LISTEN", &listen)
            .env("AGENT_FLEET_REPLICA_ID", format!("bench-{number}"))
            .env("DATABASE_URL", &settings.database_url)
            .env("AGENT_FLEET_ADMIN_TOKEN", settings.admin_token)
            .env("AGENT_FLEET_WEBHOOK_SECRET", settings.webhook_secret)
            .env("AGENT_FLEET_UNDECIDED_GRACE", "1h")
            .env("AGENT_FLEET_LOG_FORMAT", "text")
            .env("RUST_LOG", "warn")
            .env("BENCH_LOG", &log)
            // No configuration lies here.
            .current_dir(settings.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the bench, which clears up.
            .process_group(0);
        let mut guard = command.spawn().context("cannot start a coordinator")?;
        let stdout = guard.stdout.take().context("the guard has no stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).await?;
        let pid = line.trim().parse().context("the guard named no process")?;
        let replica = Self { guard, pid, address: Address::parse(&format!("http://{listen}"))? };
        replica.ready().await.with_context(|| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            format!("a coordinator of the bench did not become ready: {}", said.trim())
        })?;
        Ok(replica)
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let asking = async {
            while !self.is_ready().await {
                if !Path::new(&format!("/proc/{}", self.pid)).exists() && cfg!(target_os = "linux")
                {
                    bail!("it ended");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        };
        tokio::time::timeout(READY_WAIT, asking).await?
    }

    async fn is_ready(&self) -> bool {
        let Ok(mut connection) = Connection::open(&self.address, None).await else { return false };
        matches!(connection.call("GET", "/readyz", &[], b"").await, Ok(reply) if reply.status == 200)
    }

    /// Megabytes (of a million bytes) of memory that it has in use.
    pub(super) fn resident_megabytes(&self) -> anyhow::Result<f64> {
        let path = format!("/proc/{}/status", self.pid);
        let status =
            std::fs::read_to_string(&path).context("memory is read from /proc, as Linux has it")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        Ok(kibibytes.with_context(|| format!("{path} has no VmRSS"))? * 1024.0 / 1e6)
    }

    /// Ends it.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.guard.stdin.take());
        self.guard.wait().await?;
        Ok(())
    }
}

fn free_address() -> std::io::Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

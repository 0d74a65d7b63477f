//! Three nodes of Patroni in synchronous mode, with one etcd, on loopback ports; see <https://patroni.readthedocs.io>.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::Value;

use crate::{
    postgres::{ROLE, account, binaries, connect, make_dir, url_of},
    process::Process,
    support::free_port,
};

const NODES: usize = 3;

/// A node: its process, where its data is, its ports.
struct Node {
    process: Process,
    data: PathBuf,
    port: u16,
    api: u16,
}

/// The cluster.
pub(crate) struct Patroni {
    nodes: Vec<Node>,
    http: reqwest::Client,
    /// Held for its drop.
    _etcd: Process,
}

impl Patroni {
    /// Starts it, and waits for a leader and its synchronous standby.
    pub(crate) async fn start(dir: &Path) -> anyhow::Result<Self> {
        agent_fleet::tls::install_provider();
        let (logs, account) = (dir.join("logs"), account()?);
        let dir = dir.join("postgres");
        fs::create_dir_all(&logs)?;
        make_dir(&dir, account)?;
        let etcd_port = free_port();
        let mut etcd = etcd(&dir, &logs, etcd_port);
        etcd.start();
        let mut nodes = Vec::new();
        for number in 1..=NODES {
            let (port, api) = (free_port(), free_port());
            let name = format!("node-{number}");
            let (data, config) = (dir.join(&name), dir.join(format!("{name}.yml")));
            let text = configuration(&name, &data, [port, api, etcd_port])?;
            fs::write(&config, text)?;
            let process = Process::new(&name, &logs, move || {
                let mut command = Command::new("patroni");
                command.arg(&config).current_dir("/").env("LC_ALL", "C");
                if let Some((uid, gid)) = account {
                    std::os::unix::process::CommandExt::uid(&mut command, uid);
                    std::os::unix::process::CommandExt::gid(&mut command, gid);
                }
                command
            });
            nodes.push(Node { process, data, port, api });
        }
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        let mut patroni = Self { nodes, http, _etcd: etcd };
        patroni.start_all().await?;
        let admin = url_of(&patroni.ports()).replace("/fleet?", "/postgres?");
        connect(&admin).await?.batch_execute("create database fleet").await?;
        Ok(patroni)
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(|node| node.port).collect()
    }

    /// Starts what does not run, and waits for a leader, its synchronous standby and the third one.
    pub(crate) async fn start_all(&mut self) -> anyhow::Result<()> {
        self.nodes.iter_mut().for_each(|node| node.process.start());
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            let states = self.states().await;
            let is = |role: &str| states.iter().filter(|(r, s)| r == role && is_up(s)).count();
            if is("leader") == 1 && is("sync_standby") == 1 && is("replica") == NODES - 2 {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < until, "Patroni is not whole: {states:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// kill -9 of the leader's Patroni and its PostgreSQL. Waits until Patroni has made another one the leader, and
    /// tells how long that took.
    pub(crate) async fn kill_leader(&mut self) -> anyhow::Result<Duration> {
        let at = self.leader().await.context("there is no leader")?;
        let node = &mut self.nodes[at];
        let pid = fs::read_to_string(node.data.join("postmaster.pid"))?;
        let pid = pid.lines().next().context("postmaster.pid is empty")?.to_owned();
        let began = Instant::now();
        node.process.kill();
        Command::new("kill").args(["-KILL", &pid]).status()?;
        let until = began + Duration::from_secs(120);
        while self.leader().await.is_none_or(|leader| leader == at) {
            anyhow::ensure!(Instant::now() < until, "Patroni made no new leader");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(began.elapsed())
    }

    /// Which node says of itself that it is the leader and takes writes.
    async fn leader(&self) -> Option<usize> {
        for (at, node) in self.nodes.iter().enumerate() {
            let url = format!("http://127.0.0.1:{}/primary", node.api);
            if self.http.get(url).send().await.is_ok_and(|reply| reply.status().is_success()) {
                return Some(at);
            }
        }
        None
    }

    /// Role and state of each member, as Patroni has them.
    async fn states(&self) -> Vec<(String, String)> {
        let Some(node) = self.nodes.first() else { return Vec::new() };
        let Ok(reply) =
            self.http.get(format!("http://127.0.0.1:{}/cluster", node.api)).send().await
        else {
            return Vec::new();
        };
        let cluster: Value = reply.json().await.unwrap_or_default();
        let text =
            |member: &Value, name: &str| member[name].as_str().unwrap_or_default().to_owned();
        let members = cluster["members"].as_array().into_iter().flatten();
        members.map(|member| (text(member, "role"), text(member, "state"))).collect()
    }
}

/// `running`, or, of newer versions, `streaming`.
fn is_up(state: &str) -> bool {
    matches!(state, "running" | "streaming")
}

fn etcd(dir: &Path, logs: &Path, port: u16) -> Process {
    let data = dir.join("etcd");
    let (client, peer) =
        (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
    Process::new("etcd", logs, move || {
        let mut command = Command::new("etcd");
        command.args(["--name", "etcd", "--data-dir"]).arg(&data);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("etcd={peer}")]);
        command
    })
}

fn configuration(name: &str, data: &Path, ports: [u16; 3]) -> anyhow::Result<String> {
    let [port, api, etcd] = ports;
    Ok(format!(
        "scope: fleet
name: {name}
restapi: {{ listen: '127.0.0.1:{api}', connect_address: '127.0.0.1:{api}' }}
etcd3: {{ host: '127.0.0.1:{etcd}' }}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 5
    retry_timeout: 5
    synchronous_mode: true
    postgresql:
      use_pg_rewind: true
      parameters: {{ max_connections: 200, wal_keep_size: 1GB, wal_retrieve_retry_interval: 200ms }}
  initdb: [ {{ encoding: UTF8 }}, {{ locale: C }}, {{ auth: trust }}, data-checksums ]
  pg_hba: [ 'host all all 127.0.0.1/32 trust', 'host replication all 127.0.0.1/32 trust' ]
postgresql:
  listen: 127.0.0.1:{port}
  connect_address: 127.0.0.1:{port}
  data_dir: {data}
  bin_dir: {bin}
  pgpass: {data}.pgpass
  authentication:
    superuser: {{ username: {ROLE}, password: chaos }}
    replication: {{ username: replicator, password: chaos }}
    rewind: {{ username: {ROLE}, password: chaos }}
  parameters: {{ unix_socket_directories: '' , fsync: 'off' }}
",
        data = data.display(),
        bin = binaries()?.display(),
    ))
}

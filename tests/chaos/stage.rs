//! What there is: databases, replicas, workers, programs, hosts, and how they are connected.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    database::Database,
    postgres::url_of,
    process::Process,
    proxy::{Balancer, Line},
    support::{Sshd, agent_fleet, free_port},
    watch::Watch,
};

pub(crate) const REPLICAS: usize = 3;
pub(crate) const HOSTS: usize = 2;
const SLOTS_OF_HOST: usize = 6;
const PROGRAMS: usize = 2;
const SLOTS_OF_PROGRAM: usize = 3;
pub(crate) const SLOTS_OF_WORKER: usize = 16;

/// A replica silent this long is dead.
pub(crate) const REPLICA_TTL: Duration = Duration::from_secs(9);
/// An agent silent this long is lost.
pub(crate) const AGENT_WINDOW: Duration = Duration::from_secs(9);
/// `coordinator::matchmaker` polls every 2 s, give or take a quarter.
pub(crate) const POLL_FLOOR: Duration = Duration::from_millis(2500);
/// All of it is there this long after it was started: many times what it takes on two cores.
const READY: Duration = Duration::from_secs(60);
/// The administrator's credential.
pub(crate) const ADMIN: &str = "chaos-admin-token";
const ENROLL: &str = "chaos-enrollment-token";

/// All of it.
pub(crate) struct Stage {
    pub(crate) database: Database,
    pub(crate) watch: Watch,
    pub(crate) balancer: Balancer,
    /// `replica-1` and so on.
    pub(crate) replicas: Vec<Process>,
    /// Between each replica and each server.
    pub(crate) lines: Vec<Line>,
    /// `worker-1` and so on: one pull agent with many slots each.
    pub(crate) workers: Vec<Process>,
    /// `program-1` and so on: `agent-fleet agent`.
    pub(crate) programs: Vec<Process>,
    pub(crate) hosts: Vec<Sshd>,
    pub(crate) dir: PathBuf,
}

/// What a host or a program runs: it says that it starts, prints a line now and then, and ends.
const CLI: &str = r#"set -- $(sed -n 's/^run \([0-9][0-9]*\) \([0-9][0-9]*\)$/\1 \2/p' | head -n 1)
run=$(readlink /proc/$$/fd/1); run=${run%/*}
echo "start $AGENT_FLEET_TASK_ID $AGENT_FLEET_ATTEMPT ${run##*.} $$" >>"$CHAOS_STARTS"
left=$1 line=0
while [ "$left" -gt 0 ]; do
    line=$((line + 1)); echo "line $line"
    nap=$((left < $2 ? left : $2)); left=$((left - nap))
    sleep "$((nap / 1000)).$(printf %03d $((nap % 1000)))"
done
echo "end $line"
"#;

impl Stage {
    /// Starts everything and waits until it is ready. Workers have `slots` slots in all.
    pub(crate) async fn start(
        dir: &Path,
        database: Database,
        slots: usize,
    ) -> anyhow::Result<Self> {
        agent_fleet::tls::install_provider();
        for name in ["logs", "ledgers", "home"] {
            fs::create_dir_all(dir.join(name))?;
        }
        let logs = dir.join("logs");
        fs::write(dir.join("cli.sh"), CLI)?;
        let mut hosts = Vec::new();
        for _ in 0..HOSTS {
            hosts.push(Sshd::start(&dir.join("home")).await);
        }
        let config = dir.join("agent-fleet.toml");
        fs::write(&config, configuration(dir, &hosts))?;
        migrate(&database.url(), &config).await?;
        let (mut replicas, mut lines, mut ports) = (Vec::new(), Vec::new(), Vec::new());
        for number in 1..=REPLICAS {
            let mut line_ports = Vec::new();
            for port in database.ports() {
                let line = Line::start(port).await?;
                line_ports.push(line.port);
                lines.push(line);
            }
            let port = free_port();
            let (url, config) = (url_of(&line_ports), config.clone());
            let name = format!("replica-{number}");
            replicas.push(Process::new(&name.clone(), &logs, move || {
                let listen = format!("127.0.0.1:{port}");
                let mut command =
                    agent_fleet(&["serve", "--replica-id", &name, "--listen", &listen, "--config"]);
                command.arg(&config).env("DATABASE_URL", &url);
                command
            }));
            ports.push(port);
        }
        let balancer = Balancer::start(&ports).await?;
        let workers = slots.div_ceil(SLOTS_OF_WORKER);
        let workers = (1..=workers).map(|n| worker(dir, &balancer, n)).collect();
        let programs = (1..=PROGRAMS).map(|n| program(dir, &balancer, n)).collect();
        let watch = Watch::new(database.url());
        let dir = dir.to_owned();
        let mut stage =
            Self { database, watch, balancer, replicas, lines, workers, programs, hosts, dir };
        stage.start_all();
        stage.ready().await?;
        Ok(stage)
    }

    /// Starts whatever does not run.
    pub(crate) fn start_all(&mut self) {
        for process in self.replicas.iter_mut().chain(&mut self.workers).chain(&mut self.programs) {
            process.start();
        }
    }

    /// Everything is there: replicas beat, agents are registered, each replica reaches each host.
    async fn ready(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let agents = i64::try_from(self.workers.len() + self.programs.len())?;
        let reached = i64::try_from(REPLICAS * HOSTS)?;
        let sql = "select (select count(*) from fleet.sessions where kind = 'agent' and ended_at is null),
                          (select count(*) from fleet.replica_hosts where online)";
        loop {
            let rows = self.watch.try_rows(sql, &[]).await.unwrap_or_default();
            let (registered, online) =
                rows.first().map_or((0, 0), |row| (row.get::<_, i64>(0), row.get::<_, i64>(1)));
            if registered >= agents && online >= reached {
                println!("all of the fleet was there after {:.1} s", began.elapsed().as_secs_f64());
                return Ok(());
            }
            if began.elapsed() > READY {
                self.tell_of_all();
                anyhow::bail!(
                    "{registered} of {agents} agents are registered and {online} of {reached} ways to hosts are \
                     open, {} s after everything was started",
                    READY.as_secs()
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Prints of each process whether it runs and the last it said.
    fn tell_of_all(&mut self) {
        for process in self.replicas.iter_mut().chain(&mut self.workers).chain(&mut self.programs) {
            let state = if process.is_running() { "runs" } else { "has ended" };
            println!("{} {state}; the last of its log:\n{}", process.name, process.last_lines(15));
        }
    }
}

fn configuration(dir: &Path, hosts: &[Sshd]) -> String {
    let dir = dir.display();
    let interval = AGENT_WINDOW.as_secs() / 3;
    let mut text = format!(
        "[auth]\nadmin_token = \"{ADMIN}\"\nenrollment_token = \"{ENROLL}\"\n\
         [dispatch]\ninterval = \"2s\"\n\
         [lease]\nreplica_ttl = \"{}s\"\nheartbeat_interval = \"{interval}s\"\nheartbeat_misses = 3\n\
         [tasks]\nretry_backoff = \"500ms\"\nmax_retries = 50\ntimeout = \"2m\"\n\
         [log]\nformat = \"text\"\n\
         [cli.chaos]\ncommand = [\"sh\", \"{dir}/cli.sh\"]\noutput = \"raw\"\n\
         env = {{ CHAOS_STARTS = \"{dir}/ledgers/cli\" }}\n",
        REPLICA_TTL.as_secs()
    );
    for (number, sshd) in (1..).zip(hosts) {
        text.push_str(&format!(
            "[[hosts]]\nhost_id = \"host-{number}\"\nhostname = \"127.0.0.1\"\nssh_port = {}\nssh_user = \"{}\"\n\
             ssh_key_path = \"{}\"\nknown_hosts_path = \"{}\"\nwork_dir = \"{dir}/home/host-{number}\"\n\
             agents = [{{ agent_type = \"chaos\", max_concurrency = {SLOTS_OF_HOST}, \
             capabilities = [\"agent:host\", \"agent:any\"] }}]\n",
            sshd.port,
            account(),
            sshd.file("user_key").display(),
            sshd.file("known_hosts").display(),
        ));
    }
    text
}

/// Who runs this.
fn account() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn migrate(url: &str, config: &Path) -> anyhow::Result<()> {
    let mut command = agent_fleet(&["migrate", "--config"]);
    command.arg(config).env("DATABASE_URL", url);
    let output = tokio::process::Command::from(command).output().await?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn worker(dir: &Path, balancer: &Balancer, number: usize) -> Process {
    let name = format!("worker-{number}");
    let (url, ledgers) = (balancer.url(), dir.join("ledgers"));
    Process::new(&name.clone(), &dir.join("logs"), move || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["worker", &url, &name, &SLOTS_OF_WORKER.to_string()]).arg(&ledgers);
        command.env("AGENT_FLEET_TOKEN", ENROLL);
        command
    })
}

fn program(dir: &Path, balancer: &Balancer, number: usize) -> Process {
    let name = format!("program-{number}");
    let (url, dir, logs) = (balancer.url(), dir.to_owned(), dir.join("logs"));
    Process::new(&name.clone(), &logs, move || {
        let slots = SLOTS_OF_PROGRAM.to_string();
        let mut command = agent_fleet(&["agent", "--agent-id", &name, "--type", "chaos"]);
        command.args(["--capability", "agent:pull", "--capability", "agent:any"]);
        command.args(["--max-concurrency", &slots, "--work-dir"]).arg(dir.join("home").join(&name));
        command.arg("--config").arg(dir.join("agent-fleet.toml"));
        command.env("AGENT_FLEET_URL", &url).env("AGENT_FLEET_TOKEN", ENROLL);
        command
    })
}

//! A PostgreSQL of one's own, from the server binaries on the machine: kept between runs for `agent-fleet dev`, thrown
//! away for tests.
//!
//! It listens on a Unix socket only, in a folder that nobody but its owner can enter; hence `trust` is enough.

mod account;
mod binaries;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::{Child, Command};

use self::{account::Account, binaries::Binaries};

/// The role that owns everything in the cluster.
const ROLE: &str = "agent_fleet";
/// Only names the socket file; nothing listens on TCP.
const PORT: u16 = 5432;
/// A socket's path must fit `sockaddr_un`: 104 bytes on macOS, 108 on Linux.
const MAX_SOCKET_PATH: usize = 100;
/// What a modest machine would be given: memory, and room for the log so that no checkpoint falls into what is measured.
///
/// And a look every second at what is to be vacuumed, since a queue's dead rows are in the way of its live ones; and no
/// haste with pages in memory, since while an old snapshot holds vacuum back, it goes through all of them in vain.
/// Everything else, durability above all, is PostgreSQL's default.
pub const MEASURED: &str = "max_connections = 300\nshared_buffers = '1GB'\nmax_wal_size = '24GB'\ncheckpoint_timeout = '15min'\n\
     track_commit_timestamp = on\nautovacuum_naptime = 1s\nvacuum_cost_page_hit = 10\n";
/// Lines of the server's log that an error shows.
const LOG_LINES: usize = 8;

/// What the data is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Kept: survives a crash of the machine, and the server may outlive this process.
    Kept,
    /// Thrown away: fast and unsafe; server and folder vanish with this process, however it ends.
    ThrownAway,
    /// Vanishes like that, but until then is as durable as PostgreSQL is by default: what is measured on it holds.
    Measured,
}

/// A running PostgreSQL.
#[derive(Debug)]
pub struct Cluster {
    binaries: Binaries,
    account: Account,
    data: PathBuf,
    /// The folder of the Unix socket.
    socket: PathBuf,
    /// Ends the server and removes the folder when its stdin closes; only for a thrown-away one.
    guard: Option<Child>,
    /// Held so that no second process uses the folder; the system lets go of it when this process ends.
    _lock: File,
}

/// Why there is no PostgreSQL.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum ClusterError {
    #[error(
        "no PostgreSQL server is installed here; install it (Debian, Ubuntu: `apt-get install postgresql`; macOS: \
         `brew install postgresql@17`), or set PG_BIN to the folder that holds `postgres` and `initdb`"
    )]
    NoBinaries,
    #[error("PG_BIN is {}, where a working `postgres`, `initdb`, `pg_ctl` or `psql` is missing", dir.display())]
    NotBinaries { dir: PathBuf },
    #[error(
        "PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody` to run it"
    )]
    NoAccount,
    #[error(
        "the user `{account}`, who runs PostgreSQL for root, cannot enter {}; choose another folder with \
         AGENT_FLEET_DEV_DIR",
        dir.display()
    )]
    Closed { dir: PathBuf, account: &'static str },
    #[error("another process already uses the database in {}", dir.display())]
    InUse { dir: PathBuf },
    #[error(
        "the data in {} was written by PostgreSQL {data}, but only PostgreSQL {installed} was found; install \
         version {data} again, or move the folder away to begin anew",
        dir.display()
    )]
    VersionChanged { dir: PathBuf, data: String, installed: u32 },
    #[error("cannot {act} {}", path.display())]
    Io { act: &'static str, path: PathBuf, source: std::io::Error },
    #[error("`{program}` failed: {output}")]
    Failed { program: String, output: String },
}

/// True when this program is run by root, and the server therefore by somebody else.
pub(super) async fn is_root() -> bool {
    account::id(&["-u"]).await == Some(0)
}

/// Turns an I/O error into one that names what was tried.
fn io(act: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ClusterError {
    move |source| ClusterError::Io { act, path: path.to_owned(), source }
}

impl Cluster {
    /// Starts a server whose data is kept in `dir` (made if missing), or takes over one that an earlier process left
    /// running there. Waits until it answers, at most a minute.
    pub async fn start(dir: &Path) -> Result<Self, ClusterError> {
        let account = Account::choose().await?;
        account.make_dir(dir)?;
        Self::start_in(dir, account, Durability::Kept).await
    }

    /// Starts a server in a temporary folder. Both are gone as soon as this value is dropped or this process ends, even
    /// if it is killed.
    pub async fn start_temporary() -> Result<Self, ClusterError> {
        Self::start_vanishing(Durability::ThrownAway).await
    }

    /// The same, but with the durability that PostgreSQL has by default.
    pub async fn start_measured() -> Result<Self, ClusterError> {
        Self::start_vanishing(Durability::Measured).await
    }

    async fn start_vanishing(durability: Durability) -> Result<Self, ClusterError> {
        let account = Account::choose().await?;
        let parent = std::env::temp_dir();
        let dir = tempfile::Builder::new()
            .prefix("agent-fleet-pg-")
            .tempdir_in(&parent)
            .map_err(io("create a folder in", &parent))?
            // From here on it is the guard's to remove.
            .keep();
        account.own(&dir)?;
        Self::start_in(&dir, account, durability).await
    }

    async fn start_in(
        dir: &Path,
        account: Account,
        durability: Durability,
    ) -> Result<Self, ClusterError> {
        account.check_entry(dir).await?;
        let lock = lock(dir)?;
        let data = dir.join("data");
        let written_by = std::fs::read_to_string(data.join("PG_VERSION")).ok();
        let written_by = written_by.as_deref().map(str::trim);
        let binaries = Binaries::find(written_by.and_then(|v| v.parse().ok())).await?;
        match written_by {
            None => init(&binaries, &account, &data, durability).await?,
            Some(version) if version != binaries.major.to_string() => {
                return Err(ClusterError::VersionChanged {
                    dir: data,
                    data: version.to_owned(),
                    installed: binaries.major,
                });
            }
            Some(_) => {}
        }
        let socket = socket_dir(dir);
        let mut cluster = Self { binaries, account, data, socket, guard: None, _lock: lock };
        if durability != Durability::Kept {
            cluster.guard = Some(cluster.spawn_guard(dir)?);
        }
        if let Some(socket) = running_socket(&cluster.data) {
            tracing::info!(data = %cluster.data.display(), "taking over the PostgreSQL that still runs");
            cluster.socket = socket;
        } else {
            cluster.launch(&dir.join("log"), durability).await?;
        }
        Ok(cluster)
    }

    /// Starts the server process, detached from this one, and waits for it.
    async fn launch(&self, log: &Path, durability: Durability) -> Result<(), ClusterError> {
        self.account.make_dir(&self.socket)?;
        let conf = self.data.join("agent-fleet.conf");
        std::fs::write(&conf, settings(&self.socket, durability)).map_err(io("write", &conf))?;
        self.account.own(&conf)?;
        let before = std::fs::metadata(log).map_or(0, |m| m.len());
        let mut command = self.pg_ctl();
        command.args(["start", "-w", "-t", "60", "-s", "-l"]).arg(log);
        run(command).await.map_err(|error| with_log(error, log, before))
    }

    /// How to connect to the database `dbname`, as `key=value` pairs that libpq and `tokio_postgres` read.
    pub fn url(&self, dbname: &str) -> String {
        let socket = self.socket.to_string_lossy();
        format!(
            "host={} port={PORT} user={ROLE} dbname={}",
            quote_value(&socket),
            quote_value(dbname)
        )
    }

    /// A program of PostgreSQL's own, `psql` or `pgbench`, run by the account that runs the server.
    pub fn program(&self, name: &str) -> Command {
        self.account.command(self.binaries.path(name))
    }

    /// The process id of the server, while it runs.
    pub fn pid(&self) -> Option<u32> {
        let pid_file = std::fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        pid_file.lines().next()?.trim().parse().ok()
    }

    /// Creates the database `name` unless it exists.
    pub async fn create_database(&self, name: &str) -> Result<(), ClusterError> {
        const SCRIPT: &str = "SELECT format('CREATE DATABASE %I', :'name') \
            WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \\gexec\n";
        self.run_for(name, SCRIPT).await
    }

    /// Removes the database `name`, whoever is connected to it.
    pub async fn drop_database(&self, name: &str) -> Result<(), ClusterError> {
        self.run_for(name, "DROP DATABASE :\"name\" WITH (FORCE);\n").await
    }

    /// Runs a script for the database `:name`, which it is not connected to.
    async fn run_for(&self, name: &str, script: &str) -> Result<(), ClusterError> {
        let mut command = self.program("psql");
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-v"]).arg(format!("name={name}"));
        // A variable is interpolated in a script, not in `-c`.
        command.args(["-f", "-", "-d"]).arg(self.url("postgres"));
        run_with_input(command, script).await
    }

    /// Stops the server and waits until it is gone. A kept one disconnects its clients and writes everything to disk; a
    /// thrown-away one is removed.
    pub async fn stop(mut self) -> Result<(), ClusterError> {
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            guard.wait().await.map_err(io("wait for the end of", &self.data))?;
            return Ok(());
        }
        let mut command = self.pg_ctl();
        command.args(["stop", "-m", "fast", "-w", "-t", "60", "-s"]);
        run(command).await
    }

    fn pg_ctl(&self) -> Command {
        let mut command = self.program("pg_ctl");
        command.arg("-D").arg(&self.data);
        command
    }

    /// A shell that waits for its stdin to close, which happens when this process lets go of it or ends, and then
    /// clears up. In a process group of its own, so that Ctrl-C does not end it first.
    fn spawn_guard(&self, dir: &Path) -> Result<Child, ClusterError> {
        const SCRIPT: &str = r#"trap '' TERM INT HUP; cat >/dev/null
            "$1" -D "$2" -m immediate -w -s stop; rm -rf "$3""#;
        let mut command = self.account.command("sh");
        command.args(["-c", SCRIPT, "agent-fleet-pg-guard"]);
        command.arg(self.binaries.path("pg_ctl")).arg(&self.data).arg(dir);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        command.spawn().map_err(io("guard", dir))
    }
}

/// Takes the folder for this process.
fn lock(dir: &Path) -> Result<File, ClusterError> {
    let path = dir.join("lock");
    let file = File::create(&path).map_err(io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(ClusterError::InUse { dir: dir.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(io("lock", &path)(source)),
    }
}

/// Fills the data folder. Under another name until it is whole, so that an interrupted start can be repeated.
async fn init(
    binaries: &Binaries,
    account: &Account,
    data: &Path,
    durability: Durability,
) -> Result<(), ClusterError> {
    let unfinished = data.with_extension("new");
    if unfinished.exists() {
        std::fs::remove_dir_all(&unfinished).map_err(io("remove", &unfinished))?;
    }
    let mut command = account.command(binaries.path("initdb"));
    command.args(["-A", "trust", "-U", ROLE, "--no-locale", "-E", "UTF8", "--no-instructions"]);
    if durability == Durability::ThrownAway {
        command.arg("--no-sync");
    }
    command.arg("-D").arg(&unfinished);
    run(command).await?;
    let conf = unfinished.join("postgresql.conf");
    let own = std::fs::read_to_string(&conf).map_err(io("read", &conf))?;
    std::fs::write(&conf, own + "\ninclude 'agent-fleet.conf'\n").map_err(io("write", &conf))?;
    std::fs::rename(&unfinished, data).map_err(io("create", data))
}

/// Where the socket goes: beside the data, unless that path is too long for a socket.
fn socket_dir(dir: &Path) -> PathBuf {
    let beside = dir.join("run");
    let file = beside.join(format!(".s.PGSQL.{PORT}"));
    if file.as_os_str().len() <= MAX_SOCKET_PATH {
        return beside;
    }
    Path::new("/tmp").join(format!("agent-fleet-pg-{}", uuid::Uuid::now_v7().simple()))
}

/// The socket folder of a server that already runs on `data` and answers. Line 5 of `postmaster.pid` names it
/// (PostgreSQL's `miscadmin.h`, `LOCK_FILE_LINE_SOCKET_DIR`).
fn running_socket(data: &Path) -> Option<PathBuf> {
    let pid_file = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let dir = PathBuf::from(pid_file.lines().nth(4).filter(|line| !line.is_empty())?);
    std::os::unix::net::UnixStream::connect(dir.join(format!(".s.PGSQL.{PORT}"))).ok()?;
    Some(dir)
}

/// The settings of this cluster, on top of what `initdb` wrote.
fn settings(socket: &Path, durability: Durability) -> String {
    let socket = socket.to_string_lossy().replace('\'', "''");
    let mut text = format!(
        "# Written at every start.\n\
         listen_addresses = ''\nport = {PORT}\nunix_socket_directories = '{socket}'\n\
         unix_socket_permissions = 0700\nlog_line_prefix = '%m [%p] %q%a '\n"
    );
    match durability {
        Durability::Kept => text.push_str("max_connections = 100\n"),
        Durability::ThrownAway => text.push_str(
            "max_connections = 300\nfsync = off\nsynchronous_commit = off\nfull_page_writes = off\n",
        ),
        Durability::Measured => text.push_str(MEASURED),
    }
    text
}

/// A value of a connection string, quoted where needed (libpq, 34.1.1.1).
fn quote_value(value: &str) -> String {
    if !value.is_empty() && !value.contains([' ', '\'', '\\', '\t', '\n']) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Runs a command to its end; what it printed is in the error.
async fn run(command: Command) -> Result<(), ClusterError> {
    run_with_input(command, "").await
}

async fn run_with_input(mut command: Command, input: &str) -> Result<(), ClusterError> {
    use tokio::io::AsyncWriteExt as _;
    let program = command.as_std().get_program().to_owned();
    let program = PathBuf::from(program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(io("run", &program))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading says why by its exit status.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(io("run", &program))?;
    if output.status.success() {
        return Ok(());
    }
    let mut text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if text.is_empty() {
        text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    }
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    Err(ClusterError::Failed { program: name, output: format!("{text} ({})", output.status) })
}

/// Adds what the server logged since byte `from`, at most the last lines.
fn with_log(error: ClusterError, log: &Path, from: u64) -> ClusterError {
    let ClusterError::Failed { program, mut output } = error else { return error };
    let text = std::fs::read(log).unwrap_or_default();
    let new = text.get(usize::try_from(from).unwrap_or(0)..).unwrap_or(&text);
    let new = String::from_utf8_lossy(new);
    let lines: Vec<&str> = new.lines().collect();
    output.push_str(&format!("\nthe end of {}:", log.display()));
    for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
        output.push_str(&format!("\n  {line}"));
    }
    ClusterError::Failed { program, output }
}

#[cfg(test)]
mod tests;

//! One replica: its loops, and what they share with the API.
//!
//! A loop a file. Each is idempotent, takes no input, is woken by a hint and by a timer, is safe on any number of replicas
//! at once, and keeps its state in the database.
//!
//! | loop | does |
//! |---|---|
//! | [`dispatcher`] | phase 1 pushes tasks to hosts; phase 2 leaves to pull what no host could ever serve |
//! | [`matchmaker`] | claims for the agents that wait |
//! | [`settle`](mod@settle), [`create`](mod@create), [`deliver`](mod@deliver), [`start`](mod@start), [`batch`] | no loops: writes that arrive together commit together |
//! | [`callers`] | remembers who callers are, and looks again |
//! | [`runner`] | one run on a host: start, follow, settle; also runs taken over from a dead replica |
//! | [`hosts`], [`sweep`] | probes the hosts, and ends what is left over there |
//! | [`reaper`] | ends silent sessions and what they held |
//! | [`scheduler`] | makes due tasks ready, frees pins, ends what is past its deadline |
//! | [`membership`], [`heartbeats`] | say who lives |
//! | [`wake`] | hears and tells |
//! | [`retention`] | forgets what ended long ago |
//! | [`janitor`] | keeps partitions ahead, drops what nobody needs |
//! | [`vacuum`] | keeps the ready indexes small while much is taken |
//! | [`watchdog`] | names who holds back vacuum |

mod batch;
mod callers;
mod create;
mod deliver;
mod dispatcher;
pub(crate) mod gauges;
mod handed;
mod heartbeats;
mod hints;
mod hosts;
mod janitor;
mod machine;
mod matchmaker;
mod membership;
mod reaper;
mod replies;
mod retention;
mod runner;
mod scheduler;
mod settle;
mod start;
mod sweep;
mod vacuum;
mod wake;
mod watchdog;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicBool},
    time::Duration,
};

use uuid::Uuid;

pub(crate) use self::hosts::programs_of;
pub use self::{
    callers::Callers,
    create::create,
    deliver::deliver,
    handed::Handed,
    heartbeats::{Answer as HeartbeatAnswer, Heartbeats},
    matchmaker::{Answer, Matchmaker, Place},
    replies::{Replies, Reply},
    settle::{Settled, end_unlocked, settle},
    start::start,
    wake::Wake,
};
use crate::{
    config::{self, Config, Database},
    execution::{Executor, InvalidTarget, LocalExecutor, SshExecutor},
    model::{Actor, SessionId},
    shutdown::Shutdown,
    store::{Store, StoreError},
    telemetry::error_chain,
};

/// Connections to hosts have so long to close when a replica stops.
const CLOSING: Duration = Duration::from_secs(3);

/// Why a replica did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database.
    #[error("the database is not ready for this replica")]
    Store(#[from] StoreError),
    /// A host's configuration.
    #[error("a host cannot be used")]
    Host(#[from] InvalidTarget),
    /// A place for control sockets.
    #[error("no private folder for ssh's control sockets could be made")]
    ControlDirectory(#[source] std::io::Error),
}

/// How long a loop pauses after a look that `took` so long: looks take a fiftieth of the time at most, also where an old
/// snapshot keeps all that was taken in the indexes they read. No longer than half a minute, since a look may also have taken
/// long because the database was away.
fn pause_after(took: Duration, least: Duration) -> Duration {
    (took * 50).min(Duration::from_secs(30)).max(least)
}

/// Makes the executor of a host; tests inject faults here. The path is a short private folder for control sockets.
pub type MakeExecutor =
    dyn Fn(&config::Host, &Path) -> Result<Arc<dyn Executor>, InvalidTarget> + Send + Sync;

/// The real executors: a subprocess for `localhost`, else SSH.
pub fn make_executor(
    host: &config::Host,
    control_directory: &Path,
) -> Result<Arc<dyn Executor>, InvalidTarget> {
    Ok(if host.is_local() {
        Arc::new(LocalExecutor::new())
    } else {
        Arc::new(SshExecutor::new(host, control_directory)?)
    })
}

/// Does an act until the database takes it: while it is merely away, again and again, until the replica stops. A macro,
/// because an async closure that borrows cannot yet be shown to be `Send`.
macro_rules! until_stored {
    ($replica:expr, $act:expr) => {{
        let mut pause = std::time::Duration::from_millis(200);
        loop {
            match $act.await {
                Err(error) if error.is_unavailable() && !$replica.shutdown.is_triggered() => {
                    tracing::warn!(
                        error = %$crate::telemetry::error_chain(&error),
                        "the database is away; trying again"
                    );
                    $replica.shutdown.sleep(pause).await;
                    pause = (pause * 2).min(std::time::Duration::from_secs(2));
                }
                result => break result,
            }
        }
    }};
}
use until_stored;

/// One running coordinator process.
#[derive(Debug)]
pub struct Replica {
    /// As checked at start.
    pub config: Config,
    /// The database.
    pub store: Store,
    /// Who sleeps.
    pub wake: Wake,
    /// Who waits for work.
    pub matchmaker: Matchmaker,
    /// Who has called.
    pub heartbeats: Heartbeats,
    /// What is handed out right now.
    pub replies: Replies,
    /// Who callers are.
    pub callers: Callers,
    /// Ends of leases that arrive together.
    settling: batch::Batch<settle::Settle>,
    /// Creations that arrive together.
    creating: batch::Batch<create::Create>,
    /// Deliveries of the forge that arrive together.
    delivering: batch::Batch<deliver::Deliver>,
    /// KiB of deliveries that may still be kept while the database is away.
    kept: tokio::sync::Semaphore,
    /// What holders say of their work at the same time.
    starting: batch::Batch<start::Say>,
    /// When to stop.
    pub shutdown: Shutdown,
    /// A connection for this replica's own heartbeat, which nothing else may delay: a gap in it blinds the replica for a
    /// whole `replica_ttl`, see `sql/beat_replica.sql`.
    pulse: Store,
    /// A connection for the heartbeats of agents, which may wait for sessions that others have locked, but not for the
    /// pool.
    signs: Store,
    hosts: hosts::Hosts,
    in_hand: runner::InHand,
    hostname: String,
    machine: String,
    fleet_id: Uuid,
    session: RwLock<SessionId>,
    /// As of its last heartbeat it has been there for one `replica_ttl` without a gap.
    is_steady: AtomicBool,
    listening: Mutex<Result<(), String>>,
}

impl Replica {
    /// Connects, waits for the database if it is away, migrates if told to, checks the schema, joins the fleet and starts
    /// the loops.
    pub async fn start(
        config: Config,
        migrate: bool,
        make_executor: &MakeExecutor,
        shutdown: Shutdown,
    ) -> Result<Arc<Self>, StartError> {
        let store = Store::new(&config.database, &config.server.replica_id)?;
        let single = Database { max_connections: 1, ..config.database.clone() };
        let pulse = Store::new(&single, &config.server.replica_id)?;
        let signs = Store::new(&single, &config.server.replica_id)?;
        let hosts = hosts::Hosts::new(&config.hosts, make_executor)?;
        wait_for_database(&store, &shutdown).await?;
        store.check_settings().await?;
        if migrate {
            for name in store.migrate().await?.applied {
                tracing::info!(migration = name, "migration applied");
            }
        }
        store.check_schema().await?;
        let replica = Arc::new(Self {
            fleet_id: store.fleet_id().await?,
            store,
            wake: Wake::new(),
            matchmaker: Matchmaker::default(),
            heartbeats: Heartbeats::new(config.lease.agent_ttl()),
            replies: Replies::default(),
            callers: Callers::default(),
            settling: batch::Batch::default(),
            creating: batch::Batch::default(),
            delivering: batch::Batch::default(),
            kept: tokio::sync::Semaphore::new(deliver::KEPT),
            starting: batch::Batch::default(),
            shutdown,
            pulse,
            signs,
            hosts,
            in_hand: runner::InHand::default(),
            hostname: machine::hostname(),
            machine: machine::machine(),
            session: RwLock::new(SessionId(Uuid::nil())),
            is_steady: AtomicBool::new(false),
            listening: Mutex::new(Err("not connected yet".to_owned())),
            config,
        });
        membership::join(&replica).await?;
        replica.spawn_loops();
        Ok(replica)
    }

    /// Starts the loops. One that panics is started again: its state is in the database, and half a replica is none.
    fn spawn_loops(self: &Arc<Self>) {
        macro_rules! spawn {
            ($($run:path),+) => {$({
                let replica = Arc::clone(self);
                self.shutdown.spawn(async move {
                    loop {
                        let own = Arc::clone(&replica);
                        if tokio::spawn(async move { $run(&own).await }).await.is_ok() {
                            return;
                        }
                        tracing::error!(r#loop = stringify!($run), "a loop panicked and is started again");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                });
            })+};
        }
        spawn!(
            wake::send,
            wake::listen,
            membership::run,
            membership::hold,
            heartbeats::run,
            callers::run,
            matchmaker::run,
            matchmaker::poll,
            dispatcher::run,
            hosts::run,
            runner::run,
            reaper::run,
            scheduler::run,
            janitor::run,
            retention::run,
            vacuum::run,
            watchdog::run
        );
    }

    /// The session of this boot.
    pub fn session(&self) -> SessionId {
        *self.session.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_session(&self, session: SessionId) {
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = session;
    }

    /// `Ok` while notifications arrive, else why not.
    pub fn listening(&self) -> Result<(), String> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_listening(&self, state: Result<(), String>) {
        *self.listening.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// This replica, as the event log names it.
    pub fn actor(&self) -> Actor {
        Actor::Replica(self.config.server.replica_id.clone())
    }

    /// Stops: loops end, runs on hosts go on for others to take over, the session ends. At most `limit`.
    pub async fn stop(&self, limit: Duration) {
        self.shutdown.trigger();
        if !self.shutdown.wait(limit).await {
            tracing::warn!(
                limit_secs = limit.as_secs(),
                "something still ran when the replica stopped"
            );
        }
        // First, so that others need not find out: a script that hangs on a host keeps its connection for as long.
        membership::leave(self).await;
        if tokio::time::timeout(CLOSING, self.hosts.close()).await.is_err() {
            tracing::warn!("a script on a host still ran when the replica stopped");
        }
        self.store.close();
        self.pulse.close();
        self.signs.close();
    }
}

/// Waits with a message for a database that is away; what is wrong with the address or the account ends the wait.
async fn wait_for_database(store: &Store, shutdown: &Shutdown) -> Result<(), StoreError> {
    let mut pause = Duration::from_millis(250);
    loop {
        match store.ping().await {
            Ok(true) => return Ok(()),
            Ok(false) if shutdown.is_triggered() => return Ok(()),
            Ok(false) => tracing::warn!("waiting for the database: it is read-only"),
            Err(error)
                if error.is_retryable() && !error.is_refusal() && !shutdown.is_triggered() =>
            {
                tracing::warn!(error = %error_chain(&error), "waiting for the database");
            }
            Err(error) => return Err(error),
        }
        shutdown.sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_is_dear_is_made_less_often_and_still_twice_a_minute() {
        let [ms, secs] = [Duration::from_millis, Duration::from_secs];
        for (took, least, pause) in [
            (ms(1), secs(2), secs(2)),
            (ms(300), secs(2), secs(15)),
            (secs(20), secs(2), secs(30)),
            (secs(20), secs(60), secs(60)),
        ] {
            assert_eq!(pause_after(took, least), pause, "after {took:?}");
        }
    }
}

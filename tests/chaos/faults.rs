//! What is done to the fleet, one thing at a time, and within what time it has to be whole again.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use rand::{RngExt as _, rngs::StdRng, seq::SliceRandom as _};
use uuid::Uuid;

use crate::{
    database::Database,
    recovery::Blow,
    report::Report,
    stage::{AGENT_WINDOW, POLL_FLOOR, REPLICA_TTL, Stage},
};

/// What may take longer than the mechanism itself: noticing, claiming again, starting.
const SLACK: Duration = Duration::from_secs(5);
/// How long a cut lasts: longer than a poll.
const CUT: Duration = Duration::from_secs(10);

const LOST: &str = "
select format('%s lease %s: %s', task_id, lease, detail)
  from fleet.task_events where type = 'lost' and at >= $1";

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// kill -9 of a replica.
    KillReplica,
    /// A replica stands still (SIGSTOP) until others have taken its place, and then goes on as if nothing had happened.
    FreezeReplica,
    /// SIGTERM to a replica, as a rolling restart does.
    StopReplica,
    /// No replica is there for twice the time after which an agent counts as lost.
    StopAll,
    /// kill -9 of a pull agent, which stays dead.
    KillAgent,
    /// A pull agent stands still until its tasks are somebody else's, and then sends its late receipts.
    FreezeAgent,
    /// kill -9 of `agent-fleet agent`, which comes back and goes on with its runs.
    KillProgram,
    /// Every connection of the replicas is ended by the database.
    TerminateBackends,
    /// PostgreSQL is restarted, in good order or by a crash.
    RestartDatabase,
    /// The primary dies and the standby takes over.
    FailOver,
    /// No notification arrives anywhere, and no connection is closed.
    CutListeners,
    /// sshd dies with all connections, and comes back.
    RestartSshd,
    /// Patroni's leader dies, with its PostgreSQL, as a machine does.
    KillLeader,
}

impl Fault {
    /// What can be done to a pair of servers.
    pub(crate) const ALL: [Self; 12] = [
        Self::KillReplica,
        Self::FreezeReplica,
        Self::StopReplica,
        Self::StopAll,
        Self::KillAgent,
        Self::FreezeAgent,
        Self::KillProgram,
        Self::TerminateBackends,
        Self::RestartDatabase,
        Self::FailOver,
        Self::CutListeners,
        Self::RestartSshd,
    ];

    /// One round of what can be done, in any order.
    pub(crate) fn round(database: &Database, random: &mut StdRng) -> Vec<Self> {
        let mut all = match database {
            Database::Pair(_) => Self::ALL.to_vec(),
            Database::Patroni(_) => vec![Self::KillLeader],
        };
        all.shuffle(random);
        all
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KillReplica => "kill -9 a replica",
            Self::FreezeReplica => "freeze a replica",
            Self::StopReplica => "stop a replica",
            Self::StopAll => "stop all replicas for long",
            Self::KillAgent => "kill -9 an agent",
            Self::FreezeAgent => "freeze an agent",
            Self::KillProgram => "kill -9 `agent-fleet agent`",
            Self::TerminateBackends => "terminate backends",
            Self::RestartDatabase => "restart PostgreSQL",
            Self::FailOver => "fail over to the standby",
            Self::CutListeners => "black-hole the listeners",
            Self::RestartSshd => "restart sshd",
            Self::KillLeader => "kill Patroni's leader",
        }
    }

    /// Within what everything that was leased runs again or has ended, and from when on.
    pub(crate) fn bound(self) -> (Duration, &'static str) {
        match self {
            Self::KillReplica | Self::FreezeReplica | Self::StopReplica | Self::StopAll => {
                (REPLICA_TTL + SLACK, "replica_ttl + 5 s")
            }
            Self::KillAgent | Self::FreezeAgent | Self::KillProgram => {
                (AGENT_WINDOW + SLACK, "their window + 5 s")
            }
            Self::TerminateBackends | Self::RestartDatabase | Self::FailOver => {
                (SLACK, "5 s after it answers")
            }
            Self::CutListeners => (POLL_FLOOR + SLACK, "poll floor + 5 s"),
            Self::RestartSshd => (SLACK, "5 s after it answers"),
            Self::KillLeader => (SLACK, "Patroni's failover + 5 s"),
        }
    }

    /// Does it.
    pub(crate) async fn inflict(
        self,
        stage: &mut Stage,
        random: &mut StdRng,
    ) -> anyhow::Result<(Blow, Aftermath)> {
        let after = |blow: Blow, aftermath: Aftermath| Ok((blow, aftermath));
        match self {
            Self::KillReplica => {
                let at = random.random_range(0..stage.replicas.len());
                let dead = stage.session("replica", &stage.replicas[at].name.clone()).await;
                let blow = Blow::now(dead);
                stage.replicas[at].kill();
                // A supervisor that is quick, or one that is slow.
                if random.random_bool(0.3) {
                    stage.replicas[at].start();
                }
                after(blow, Aftermath::Start)
            }
            Self::FreezeReplica => {
                let at = random.random_range(0..stage.replicas.len());
                let dead = stage.session("replica", &stage.replicas[at].name.clone()).await;
                let blow = Blow::now(dead);
                stage.replicas[at].signal("STOP");
                after(blow, Aftermath::ThawReplica(at))
            }
            Self::StopReplica => {
                let at = random.random_range(0..stage.replicas.len());
                let dead = stage.session("replica", &stage.replicas[at].name.clone()).await;
                let blow = Blow::now(dead);
                stage.replicas[at].signal("TERM");
                after(blow, Aftermath::StartAgain(at))
            }
            Self::StopAll => {
                let since = stage.now().await;
                let in_good_order = random.random_bool(0.5);
                for replica in &mut stage.replicas {
                    if in_good_order { replica.signal("TERM") } else { replica.kill() }
                }
                for replica in &mut stage.replicas {
                    replica.until_ended().await;
                }
                tokio::time::sleep(2 * AGENT_WINDOW).await;
                stage.start_all();
                after(stage.heard().await, Aftermath::NobodyLost { since })
            }
            Self::KillAgent => {
                let at = random.random_range(0..stage.workers.len());
                let dead = stage.session("agent", &stage.workers[at].name.clone()).await;
                let blow = Blow::now(dead);
                stage.workers[at].kill();
                after(blow, Aftermath::Start)
            }
            Self::FreezeAgent => {
                let at = random.random_range(0..stage.workers.len());
                let dead = stage.session("agent", &stage.workers[at].name.clone()).await;
                let blow = Blow::now(dead);
                stage.workers[at].signal("STOP");
                after(blow, Aftermath::ThawWorker(at))
            }
            Self::KillProgram => {
                let at = random.random_range(0..stage.programs.len());
                let dead = stage.session("agent", &stage.programs[at].name.clone()).await;
                let blow = Blow::now(dead);
                stage.programs[at].kill();
                stage.programs[at].start();
                after(blow, Aftermath::Start)
            }
            Self::TerminateBackends => {
                let sql = "select pg_terminate_backend(pid) from pg_stat_activity
                            where application_name like 'agent-fleet/%'";
                stage.watch.rows(sql, &[]).await;
                after(stage.answers().await, Aftermath::Nothing)
            }
            Self::RestartDatabase => {
                let mode = if random.random_bool(0.5) { "fast" } else { "immediate" };
                stage.database.pair()?.restart(mode).await?;
                after(stage.answers().await, Aftermath::Nothing)
            }
            Self::FailOver => {
                stage.database.pair()?.fail_over().await?;
                after(stage.answers().await, Aftermath::BuildStandby)
            }
            Self::CutListeners => {
                let blow = Blow::now(Vec::new());
                for line in &stage.lines {
                    line.set_heard(false);
                }
                tokio::time::sleep(CUT).await;
                after(blow, Aftermath::MendListeners)
            }
            Self::RestartSshd => {
                let at = random.random_range(0..stage.hosts.len());
                stage.hosts[at].stop();
                tokio::time::sleep(Duration::from_millis(random.random_range(0..4000))).await;
                stage.hosts[at].start_again().await;
                after(Blow::now(Vec::new()), Aftermath::Nothing)
            }
            Self::KillLeader => {
                let took = stage.database.patroni()?.kill_leader().await?;
                println!("Patroni took {:.1} s to fail over", took.as_secs_f64());
                after(stage.heard().await, Aftermath::StartNodes)
            }
        }
    }
}

/// How the stage is made whole after everything has recovered.
#[derive(Debug)]
pub(crate) enum Aftermath {
    Nothing,
    /// Looks whether a task was taken from an agent, none of which has died.
    NobodyLost {
        since: Timestamp,
    },
    /// Starts whatever was killed.
    Start,
    /// The same for a replica that ends by itself.
    StartAgain(usize),
    ThawReplica(usize),
    ThawWorker(usize),
    MendListeners,
    BuildStandby,
    /// Starts the dead node of Patroni, and waits until there is a synchronous standby.
    StartNodes,
}

impl Aftermath {
    pub(crate) async fn mend(self, stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
        match self {
            Self::Nothing => {}
            Self::NobodyLost { since } => {
                let lost = stage.watch.rows(LOST, &[&since]).await;
                let lost = lost.iter().map(|row| row.get(0)).collect();
                report.must_be_none("requeued though their agents lived", lost);
            }
            Self::Start => stage.start_all(),
            Self::StartAgain(at) => {
                stage.replicas[at].until_ended().await;
                stage.replicas[at].start();
            }
            Self::ThawReplica(at) => stage.replicas[at].signal("CONT"),
            Self::ThawWorker(at) => stage.workers[at].signal("CONT"),
            Self::MendListeners => {
                stage.lines.iter().for_each(|line| line.set_heard(true));
            }
            Self::BuildStandby => stage.database.pair()?.build_standby().await?,
            Self::StartNodes => stage.database.patroni()?.start_all().await?,
        }
        Ok(())
    }
}

impl Blow {
    fn now(dead: Vec<Uuid>) -> Self {
        Self { since: Instant::now(), dead, heard_since: None }
    }
}

impl Stage {
    /// The live session of an agent or replica.
    async fn session(&mut self, kind: &str, subject: &str) -> Vec<Uuid> {
        let sql = "select session_id from fleet.sessions where kind = $1 and subject = $2 and ended_at is null";
        let rows = self.watch.rows(sql, &[&kind, &subject]).await;
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Waits until the database answers; from then on the clock runs.
    async fn answers(&mut self) -> Blow {
        self.database.answers().await;
        self.heard().await
    }

    /// From now on the clock runs, and who has not been heard of since does not count.
    async fn heard(&mut self) -> Blow {
        let blow = Blow::now(Vec::new());
        Blow { heard_since: Some(self.now().await), ..blow }
    }

    /// By the database's clock.
    async fn now(&mut self) -> Timestamp {
        self.watch.rows("select clock_timestamp()", &[]).await[0].get(0)
    }
}

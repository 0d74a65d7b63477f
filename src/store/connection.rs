//! The pool, and how each session of it is set up.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Pool, QueueMode, RecyclingMethod, Runtime, Timeouts,
};
use tokio::sync::{OnceCell, Semaphore};
use tokio_postgres::{Client as Session, Row, SimpleQueryMessage};

pub(super) use super::client::{
    GenericClient, Transaction, begin, begin_planned, begin_snapshot, commit, open, rows_planned,
};
use super::{
    StoreError,
    client::{self, Client, Types},
    crowd::Crowd,
    error::retry,
    ledger::Ledger,
    ready::Ready,
    servers::{Servers, drive},
    statement::{Params, Statement},
};
use crate::config::Database;

/// The oldest server that has all that is used, as in `server_version_num`.
pub const OLDEST: i32 = 140_000;

/// What every session of ours must have; checked by SHOW, since a pooler may drop connection options.
const SETTINGS: &[(&str, &str)] = &[
    ("statement_timeout", "15s"),
    ("lock_timeout", "5s"),
    // A replica that stands still within a transaction keeps its rows locked for so long: less than `replica_ttl` as a rule,
    // and no longer than others wait for a lock.
    ("idle_in_transaction_session_timeout", "5s"),
    ("client_connection_check_interval", "5s"),
];

/// What every session of ours had better have. Lost in a pooler it costs time only.
const PREFERENCES: &[(&str, &str)] = &[
    // The trigger on fleet.tasks is for plain SQL; a replica tells the others itself.
    ("agent_fleet.tells", "itself"),
    // Every statement that runs often has its index. A plan that was made while a table was small must not read all of it
    // when it has grown; nor is such a plan, dear as it then looks, worth compiling.
    ("enable_seqscan", "off"),
    ("jit", "off"),
];

/// Who finds all connections in use waits so long for one; and who finds as many searches under way as may be, for a turn.
const TURN: Duration = Duration::from_secs(2);
/// A connection that nobody has used for this long is asked for a sign of life before it is handed out.
const FRESH: Duration = Duration::from_secs(2);
/// What a server says to "are you there" comes within this.
const ANSWER: Duration = Duration::from_secs(2);

/// The database, as the rest of the program sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: Pool,
    /// Past a pooler.
    direct: Servers,
    /// There is a pooler, so that nothing may be prepared under a name; once they are known, the types of parameters.
    unnamed: Option<Arc<OnceCell<Arc<Types>>>>,
    /// Turns of those who may have to read everything: too few to have all connections of the pool.
    searches: Arc<Semaphore>,
    ready: Arc<Ready>,
    ledger: Arc<Ledger>,
    crowd: Arc<Crowd>,
}

impl Store {
    /// Sets the pool up; connects nothing yet. `replica_id` shows in `pg_stat_activity`.
    pub fn new(database: &Database, replica_id: &str) -> Result<Self, StoreError> {
        let url = database.url.as_ref().ok_or_else(|| StoreError::Address {
            reason: "it is not set; set DATABASE_URL".into(),
        })?;
        let pooler = database.listen_url.as_ref().filter(|listen_url| *listen_url != url);
        // Poolers refuse connection options, or drop them: there the role must have them.
        let settings = [SETTINGS, PREFERENCES].concat();
        let sent: &[_] = if pooler.is_some() { &[] } else { &settings };
        let servers = Servers::new(url, sent, replica_id)?;
        let direct = match pooler {
            Some(listen_url) => Servers::new(listen_url, &settings, replica_id)?,
            None => servers.clone(),
        };
        let manager = Manager::from_connect(
            servers.config().clone(),
            servers.clone(),
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        let pool = Pool::builder(manager)
            .max_size(database.max_connections)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(TURN),
                create: Some(servers.patience()),
                recycle: Some(ANSWER),
            })
            .pre_recycle(distrust())
            // The one used last, so that few are idle long enough to be asked.
            .queue_mode(QueueMode::Lifo)
            .build()
            .map_err(|e| StoreError::Address { reason: e.to_string() })?;
        Ok(Self {
            pool,
            direct,
            unnamed: pooler.map(|_| Arc::default()),
            searches: Arc::new(Semaphore::new((database.max_connections / 4).max(1))),
            ready: Arc::default(),
            ledger: Arc::new(Ledger::new()),
            crowd: Arc::default(),
        })
    }

    /// A connection of the pool.
    pub(super) async fn client(&self) -> Result<Client, StoreError> {
        let types = match &self.unnamed {
            None => None,
            Some(types) => Some(Arc::clone(
                types
                    .get_or_try_init(async || {
                        let mut client = Client::new(self.pool.get().await?, None);
                        client::describe(&mut client).await.map(Arc::new)
                    })
                    .await?,
            )),
        };
        Ok(Client::new(self.pool.get().await?, types))
    }

    /// Runs a statement that only reads; again on another connection when the first turns out to be dead.
    pub(super) async fn read(
        &self,
        statement: &Statement,
        params: Params<'_>,
    ) -> Result<Vec<Row>, StoreError> {
        let once = async || statement.rows(&self.client().await?, params).await;
        retry!(match once().await {
            // Who waited for a server that is out of reach has waited long enough.
            Err(error @ StoreError::Unreachable(_)) => return Err(error),
            result => result,
        })
    }

    /// The same for at most one row.
    pub(super) async fn read_row(
        &self,
        statement: &Statement,
        params: Params<'_>,
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.read(statement, params).await?.into_iter().next())
    }

    /// The same for its one row.
    pub(super) async fn read_one(
        &self,
        statement: &Statement,
        params: Params<'_>,
    ) -> Result<Row, StoreError> {
        statement.needed(self.read_row(statement, params).await?)
    }

    /// Runs a statement that only reads, and may have to read everything: a few of them at a time, so that what is short never
    /// waits for them.
    pub(super) async fn search(
        &self,
        statement: &Statement,
        params: Params<'_>,
    ) -> Result<Vec<Row>, StoreError> {
        let turn = tokio::time::timeout(TURN, self.searches.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(StoreError::Busy) };
        self.read(statement, params).await
    }

    /// Where ready tasks are, as far as this process knows.
    pub(super) fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Who holds what, as far as this process knows.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Connections of the pool: how many there may be, are, are free, and how many callers wait for one.
    pub(crate) fn pool_status(&self) -> deadpool_postgres::Status {
        self.pool.status()
    }

    /// What is known of other claims.
    pub(super) fn crowd(&self) -> &Crowd {
        &self.crowd
    }

    /// How to connect past a pooler.
    pub(super) fn direct(&self) -> &Servers {
        &self.direct
    }

    /// A connection of its own, outside the pool and past a pooler; closed when dropped.
    pub(super) async fn dedicated(&self) -> Result<Session, StoreError> {
        match self.direct.connect_in_time().await {
            Ok((client, messages)) => {
                tokio::spawn(drive(messages));
                Ok(client)
            }
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// A server that is too old does not even let us in: it does not know a setting of our sessions.
    async fn explain(&self, error: StoreError) -> StoreError {
        if !error.is_unknown_to_it() {
            return error;
        }
        match tokio::time::timeout(ANSWER, self.direct.version()).await {
            Ok(Ok((number, version))) if number < OLDEST => StoreError::TooOld { version },
            _ => error,
        }
    }

    /// Runs a statement that has no parameters for its rows as texts.
    pub(super) async fn texts(
        &self,
        name: &'static str,
        sql: &str,
    ) -> Result<Vec<tokio_postgres::SimpleQueryRow>, StoreError> {
        let client = self.pool.get().await?;
        let messages = client
            .simple_query(sql)
            .await
            .map_err(|source| StoreError::Statement { statement: name, source })?;
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    async fn show(&self, setting: &str) -> Result<String, StoreError> {
        let rows = self.texts("show", &format!("show {setting}")).await?;
        Ok(rows.first().and_then(|row| row.get(0)).unwrap_or_default().to_owned())
    }

    /// Asks the database for a sign of life. False when it can only be read: it is a standby, or was made read-only.
    pub async fn ping(&self) -> Result<bool, StoreError> {
        match self.show("transaction_read_only").await {
            Ok(said) => Ok(said == "off"),
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// Checks that sessions are set up as they must be.
    pub async fn check_settings(&self) -> Result<(), StoreError> {
        for &(setting, wanted) in SETTINGS {
            let actual = self.show(setting).await?;
            if actual != wanted {
                return Err(StoreError::Setting { setting, actual, wanted });
            }
        }
        Ok(())
    }

    /// Closes the pool: what waits for a connection fails, idle ones are closed.
    pub fn close(&self) {
        self.pool.close();
    }
}

/// Asks a connection that nobody has used for a while whether it still is one: the other side may be gone without a word.
/// After one that does not answer, others that were last used before are not even asked, so that a caller waits once. One
/// that can only read goes, too: its server may take writes by now, or another does.
fn distrust() -> Hook {
    let dead_before: Arc<Mutex<Option<Instant>>> = Arc::default();
    Hook::async_fn(move |client, metrics| {
        let dead_before = Arc::clone(&dead_before);
        Box::pin(async move {
            let last_used = metrics.recycled.unwrap_or(metrics.created);
            if last_used.elapsed() < FRESH {
                return Ok(());
            }
            let mark = *dead_before.lock().unwrap_or_else(PoisonError::into_inner);
            if mark.is_some_and(|mark| last_used < mark) {
                return Err(HookError::message("others of its time do not answer"));
            }
            let asked = client.simple_query("show transaction_read_only");
            match tokio::time::timeout(ANSWER, asked).await {
                Ok(Ok(said)) if is_on(&said) => Err(HookError::message("it can only read")),
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(HookError::Backend(error)),
                Err(_) => {
                    *dead_before.lock().unwrap_or_else(PoisonError::into_inner) =
                        Instant::now().checked_sub(FRESH);
                    Err(HookError::message("it does not answer"))
                }
            }
        })
    })
}

/// True when the one value that a server shows is `on`.
fn is_on(said: &[SimpleQueryMessage]) -> bool {
    said.iter()
        .any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("on")))
}

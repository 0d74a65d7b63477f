//! A connection of the pool, or a transaction on one, as statements see it.
//!
//! As a rule a statement is prepared once per connection, under a name. Behind a pooler in transaction mode the next
//! transaction may be on another connection of the server, where that name means nothing or something else. There each
//! statement is sent without a name, in one round trip, which needs the types of its parameters.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use deadpool_postgres::Object;
use futures_util::FutureExt as _;
use tokio_postgres::{
    Error, Row,
    types::{ToSql, Type},
};

use super::{
    StoreError,
    statement::{Params, STATEMENTS, Statement, in_time},
};

/// The types of each statement's parameters, by its name.
pub(super) type Types = HashMap<&'static str, Vec<Type>>;

/// A connection of the pool.
#[derive(Debug)]
pub(super) struct Client {
    object: Object,
    /// Known when nothing may be prepared under a name.
    types: Option<Arc<Types>>,
}

/// A transaction; rolled back when dropped.
///
/// Not the library's, which waits for the answer to `begin` before anything else can be sent.
pub(super) struct Transaction<'a> {
    client: &'a Client,
    is_over: AtomicBool,
}

const BEGIN: &str = "BEGIN";
const COMMIT: &str = "COMMIT";
const BEGIN_SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// Until such a transaction ends, statements are run by the plans that they have. PostgreSQL would plan them anew each time where
/// few rows are asked for, or when the tables have grown since the first few plans were made, which it goes on comparing with.
/// Planning the statements of a claim takes about as long as running them.
const BEGIN_PLANNED: &str = "BEGIN; set local plan_cache_mode = force_generic_plan";

/// What statements run on.
pub(super) trait GenericClient: Sync {
    /// Runs a statement for its rows.
    fn query(
        &self,
        statement: &Statement,
        params: Params<'_>,
    ) -> impl Future<Output = Result<Vec<Row>, Error>> + Send;

    /// Runs a statement for the number of rows that it changed.
    fn execute(
        &self,
        statement: &Statement,
        params: Params<'_>,
    ) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Has a statement ready, where it is prepared at all.
    fn prepare(&self, statement: &Statement) -> impl Future<Output = Result<(), Error>> + Send;
}

macro_rules! run {
    ($inner:expr, $types:expr, $statement:expr, $params:expr, $named:ident, $unnamed:ident) => {
        match $types.and_then(|types| types.get($statement.name)) {
            None => {
                let prepared = $inner.prepare_cached($statement.text).await?;
                $inner.$named(&prepared, $params).await
            }
            Some(types) => {
                let params: Vec<(&(dyn ToSql + Sync), Type)> =
                    $params.iter().copied().zip(types.iter().cloned()).collect();
                $inner.$unnamed($statement.text, &params).await
            }
        }
    };
}

impl GenericClient for Client {
    async fn query(&self, statement: &Statement, params: Params<'_>) -> Result<Vec<Row>, Error> {
        run!(self.object, self.types.as_deref(), statement, params, query, query_typed)
    }

    async fn execute(&self, statement: &Statement, params: Params<'_>) -> Result<u64, Error> {
        run!(self.object, self.types.as_deref(), statement, params, execute, execute_typed)
    }

    async fn prepare(&self, statement: &Statement) -> Result<(), Error> {
        if self.types.is_none() {
            self.object.prepare_cached(statement.text).await?;
        }
        Ok(())
    }
}

impl GenericClient for Transaction<'_> {
    async fn query(&self, statement: &Statement, params: Params<'_>) -> Result<Vec<Row>, Error> {
        self.client.query(statement, params).await
    }

    async fn execute(&self, statement: &Statement, params: Params<'_>) -> Result<u64, Error> {
        self.client.execute(statement, params).await
    }

    async fn prepare(&self, statement: &Statement) -> Result<(), Error> {
        self.client.prepare(statement).await
    }
}

impl Transaction<'_> {
    async fn say(&self, name: &'static str, words: &str) -> Result<(), StoreError> {
        in_time(self.client.object.batch_execute(words))
            .await?
            .map_err(|source| StoreError::Statement { statement: name, source })
    }

    /// Begins one that is open, by the plans that there are. What is sent after this may be sent before it is answered: only
    /// what may be repeated, should it ever be committed by itself because the server cancelled this.
    pub(super) async fn begin_planned(&self) -> Result<(), StoreError> {
        self.say("begin", BEGIN_PLANNED).await
    }

    /// Commits together with what is sent on it last, in one round trip. Should that fail, the server rolls back instead.
    /// `last` must send at once, so its statements must be ready. An error may mean that it was committed all the same.
    pub(super) async fn commit_behind<T>(
        &self,
        last: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let last = async { last.await.map(|done| (done, Instant::now())) };
        let ((done, since), ()) = tokio::try_join!(biased; last, async {
            self.is_over.store(true, Ordering::Relaxed);
            self.say("commit", COMMIT).await
        })?;
        crate::metrics::commit(since.elapsed());
        Ok(done)
    }

    /// True once it is committed, or may be.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.is_over() {
            // Sent at once; whoever has this connection next comes after it.
            let _ = self.client.object.batch_execute("ROLLBACK").now_or_never();
        }
    }
}

impl Client {
    pub(super) fn new(object: Object, types: Option<Arc<Types>>) -> Self {
        Self { object, types }
    }
}

/// A transaction that is to be begun with what is sent on it first.
pub(super) fn open(client: &mut Client) -> Transaction<'_> {
    Transaction { client, is_over: AtomicBool::new(false) }
}

/// Begins a transaction.
pub(super) async fn begin(client: &mut Client) -> Result<Transaction<'_>, StoreError> {
    let tx = open(client);
    tx.say("begin", BEGIN).await?;
    Ok(tx)
}

/// The same, by the plans that there are.
pub(super) async fn begin_planned(client: &mut Client) -> Result<Transaction<'_>, StoreError> {
    let tx = open(client);
    tx.begin_planned().await?;
    Ok(tx)
}

/// Runs one statement for its rows, by the plan that there is, as a transaction of its own, in one round trip. An error may mean
/// that it was committed all the same, and so it may be repeated.
pub(super) async fn rows_planned(
    client: &mut Client,
    statement: &Statement,
    params: Params<'_>,
) -> Result<Vec<Row>, StoreError> {
    statement.prepare(client).await?;
    let tx = open(client);
    tx.commit_behind(async {
        let ((), rows) = tokio::try_join!(biased; tx.begin_planned(), statement.rows(&tx, params))?;
        Ok(rows)
    })
    .await
}

/// Begins a transaction that only reads, all of it as of one moment.
pub(super) async fn begin_snapshot(client: &mut Client) -> Result<Transaction<'_>, StoreError> {
    let tx = open(client);
    tx.say("begin", BEGIN_SNAPSHOT).await?;
    Ok(tx)
}

/// Commits. An error may mean that it was committed all the same: every write must be safe to repeat.
pub(super) async fn commit(tx: Transaction<'_>) -> Result<(), StoreError> {
    tx.commit_behind(async { Ok(()) }).await
}

/// Asks the server itself what types the parameters of all statements have. In one transaction, so that each name is
/// used and given up again on one connection of the server, whatever pooler is between.
pub(super) async fn describe(client: &mut Client) -> Result<Types, StoreError> {
    let tx = begin(client).await?;
    let mut types = Types::new();
    for statement in STATEMENTS {
        let prepared = tx
            .client
            .object
            .prepare(statement.text)
            .await
            .map_err(|source| StoreError::Statement { statement: statement.name, source })?;
        types.insert(statement.name, prepared.params().to_vec());
    }
    commit(tx).await?;
    Ok(types)
}

//! A connection of the pool, or a transaction on one, as statements see it.
//!
//! As a rule a statement is prepared once per connection, under a name. Behind a pooler in transaction mode the next
//! transaction may be on another connection of the server, where that name means nothing or something else. There each
//! statement is sent without a name, in one round trip, which needs the types of its parameters.

use std::{collections::HashMap, future::Future, sync::Arc, time::Instant};

use deadpool_postgres::Object;
use tokio_postgres::{
    Error, IsolationLevel, Row,
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
pub(super) struct Transaction<'a> {
    inner: deadpool_postgres::Transaction<'a>,
    types: Option<&'a Types>,
}

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
        run!(self.inner, self.types, statement, params, query, query_typed)
    }

    async fn execute(&self, statement: &Statement, params: Params<'_>) -> Result<u64, Error> {
        run!(self.inner, self.types, statement, params, execute, execute_typed)
    }

    async fn prepare(&self, statement: &Statement) -> Result<(), Error> {
        if self.types.is_none() {
            self.inner.prepare_cached(statement.text).await?;
        }
        Ok(())
    }
}

impl Client {
    pub(super) fn new(object: Object, types: Option<Arc<Types>>) -> Self {
        Self { object, types }
    }
}

fn begin_failed(source: Error) -> StoreError {
    StoreError::Statement { statement: "begin", source }
}

/// Begins a transaction.
pub(super) async fn begin(client: &mut Client) -> Result<Transaction<'_>, StoreError> {
    let Client { object, types } = client;
    let inner = in_time(object.transaction()).await?.map_err(begin_failed)?;
    Ok(Transaction { inner, types: types.as_deref() })
}

/// Begins a transaction that only reads, all of it as of one moment.
pub(super) async fn begin_snapshot(client: &mut Client) -> Result<Transaction<'_>, StoreError> {
    let Client { object, types } = client;
    let builder = object.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
    let inner = in_time(builder.read_only(true).start()).await?.map_err(begin_failed)?;
    Ok(Transaction { inner, types: types.as_deref() })
}

/// Commits. An error may mean that it was committed all the same: every write must be safe to repeat.
pub(super) async fn commit(tx: Transaction<'_>) -> Result<(), StoreError> {
    let started = Instant::now();
    in_time(tx.inner.commit())
        .await?
        .map_err(|source| StoreError::Statement { statement: "commit", source })?;
    crate::metrics::commit(started.elapsed());
    Ok(())
}

/// Asks the server itself what types the parameters of all statements have. In one transaction, so that each name is
/// used and given up again on one connection of the server, whatever pooler is between.
pub(super) async fn describe(client: &mut Client) -> Result<Types, StoreError> {
    let tx = begin(client).await?;
    let mut types = Types::new();
    for statement in STATEMENTS {
        let prepared = tx
            .inner
            .prepare(statement.text)
            .await
            .map_err(|source| StoreError::Statement { statement: statement.name, source })?;
        types.insert(statement.name, prepared.params().to_vec());
    }
    commit(tx).await?;
    Ok(types)
}

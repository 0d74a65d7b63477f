//! A look into the database from outside, whichever server is the primary, also while it comes and goes.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls, Row, types::ToSql};

/// A statement that takes longer counts as not answered.
const LIMIT: Duration = Duration::from_secs(3);

/// A connection that is made again when it is lost.
pub(crate) struct Watch {
    url: String,
    client: Option<Client>,
}

impl Watch {
    pub(crate) fn new(url: String) -> Self {
        Self { url, client: None }
    }

    /// Rows, or none while the database is away. Panics when the statement is wrong.
    pub(crate) async fn try_rows(
        &mut self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Option<Vec<Row>> {
        let asking = async {
            if self.client.as_ref().is_none_or(Client::is_closed) {
                let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.ok()?;
                tokio::spawn(connection);
                self.client = Some(client);
            }
            match self.client.as_ref()?.query(sql, params).await {
                Ok(rows) => Some(rows),
                Err(error) if error.code().is_some_and(|c| c.code().starts_with("42")) => {
                    panic!("{error:?}: {sql}")
                }
                Err(_) => None,
            }
        };
        let rows = tokio::time::timeout(LIMIT, asking).await.ok().flatten();
        if rows.is_none() {
            self.client = None;
        }
        rows
    }

    /// Rows; waits for the database.
    pub(crate) async fn rows(&mut self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        loop {
            if let Some(rows) = self.try_rows(sql, params).await {
                return rows;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Asks until there is a row, at most a minute.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> anyhow::Result<Row> {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(row) = self.rows(sql, params).await.pop() {
                return Ok(row);
            }
            anyhow::ensure!(Instant::now() < until, "waited a minute in vain until {what}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// One number.
    pub(crate) async fn count(&mut self, sql: &str) -> i64 {
        self.rows(sql, &[]).await[0].get(0)
    }
}

//! The database of a run.

use anyhow::Context as _;

use crate::{
    patroni::Patroni,
    postgres::{Pair, connect, url_of},
    support::eventually,
};

/// Either way it is reached by one multi-host address.
pub(crate) enum Database {
    /// `scripts/chaos`.
    Pair(Pair),
    /// `scripts/ha-check`.
    Patroni(Patroni),
}

impl Database {
    /// Of each server.
    pub(crate) fn ports(&self) -> Vec<u16> {
        match self {
            Self::Pair(pair) => pair.ports().to_vec(),
            Self::Patroni(patroni) => patroni.ports(),
        }
    }

    /// Leads to whichever server takes writes.
    pub(crate) fn url(&self) -> String {
        url_of(&self.ports())
    }

    /// Waits until it takes writes on a new connection.
    pub(crate) async fn answers(&self) {
        let url = self.url();
        eventually("the database answers", async || {
            let client = connect(&url).await.ok()?;
            client.batch_execute("create temp table answers ()").await.ok()
        })
        .await;
    }

    pub(crate) fn pair(&mut self) -> anyhow::Result<&mut Pair> {
        match self {
            Self::Pair(pair) => Some(pair),
            Self::Patroni(_) => None,
        }
        .context("there is no pair of servers")
    }

    pub(crate) fn patroni(&mut self) -> anyhow::Result<&mut Patroni> {
        match self {
            Self::Pair(_) => None,
            Self::Patroni(patroni) => Some(patroni),
        }
        .context("there is no Patroni")
    }
}

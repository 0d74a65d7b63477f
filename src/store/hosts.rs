//! Hosts: what replicas list, and what their probes find.

use jiff::Timestamp;

use super::{
    HeldLease, Store, StoreError,
    connection::{begin, commit},
    error::retry,
    rows::{self, get, moment, moment_if_any, word},
    statement::{
        CHECK_HOST_ID, DELETE_HOST_AGENTS, INSERT_REPLICA_HOST, LIST_HOSTS, LOCK_HOST_AGENTS,
        PARK_HOST_AGENT, SET_HOST_AGENT_SOUND, SET_HOST_DRAINED, SET_HOST_PROBE, SET_HOSTS_LISTED,
        UNPARK_HOST, UPSERT_HOST, UPSERT_HOST_AGENTS,
    },
};
use crate::{
    config,
    model::{Host, HostAgentId, HostStatus, SessionId},
};

/// The hosts of one boot of a replica.
#[derive(Debug, Clone, Copy)]
pub struct HostListing<'a> {
    /// Whose.
    pub replica_id: &'a str,
    /// Which boot.
    pub session: SessionId,
    /// The machine that `localhost` is.
    pub machine: &'a str,
    /// As configured.
    pub hosts: &'a [config::Host],
}

/// A host that this replica may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedHost {
    /// Its id.
    pub host_id: String,
    /// Its CLIs: type and slot id.
    pub agents: Vec<(String, HostAgentId)>,
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostProbe {
    /// Reached, with a usable work folder and at least one CLI.
    pub online: bool,
    /// What is wrong, also when only some CLIs are missing.
    pub reason: Option<String>,
    /// Agent types whose CLI was not found.
    pub missing: Vec<String>,
}

/// What a list of hosts is narrowed to.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the fields are the query parameters of GET /api/v1/hosts")]
pub struct HostFilter {
    pub host_id: Option<String>,
    pub status: Option<HostStatus>,
    /// Only ids above: the next page.
    pub after: Option<String>,
    /// How many, at most.
    pub limit: i64,
}

impl Store {
    /// Records the hosts that a replica lists, in one transaction, and that it has. Returns those that it may use: a
    /// `localhost` that is another machine's is not among them.
    pub async fn upsert_hosts(
        &self,
        listing: HostListing<'_>,
    ) -> Result<Vec<ListedHost>, StoreError> {
        retry!(self.upsert_hosts_once(listing).await)
    }

    async fn upsert_hosts_once(
        &self,
        listing: HostListing<'_>,
    ) -> Result<Vec<ListedHost>, StoreError> {
        let mut hosts: Vec<&config::Host> = listing.hosts.iter().collect();
        hosts.sort_by(|a, b| a.host_id.cmp(&b.host_id));
        let mut client = self.client().await?;
        let tx = begin(&mut client).await?;
        let mut listed = Vec::new();
        for host in hosts {
            let machine = host.is_local().then_some(listing.machine);
            let mine = UPSERT_HOST
                .row(&tx, &[&host.host_id, &host.hostname, &host.work_dir, &machine])
                .await?
                .is_some();
            if !mine {
                continue;
            }
            let agents: serde_json::Value = host
                .agents
                .iter()
                .map(|a| {
                    serde_json::json!({"agent_type": a.agent_type, "capabilities": a.capabilities,
                                       "max_concurrency": a.max_concurrency})
                })
                .collect();
            let rows = UPSERT_HOST_AGENTS.rows(&tx, &[&host.host_id, &agents]).await?;
            let types: Vec<&str> = host.agents.iter().map(|a| a.agent_type.as_str()).collect();
            DELETE_HOST_AGENTS.run(&tx, &[&host.host_id, &types]).await?;
            let reason = "not probed yet";
            INSERT_REPLICA_HOST.run(&tx, &[&listing.session.0, &host.host_id, &reason]).await?;
            listed.push(ListedHost {
                host_id: host.host_id.clone(),
                agents: rows
                    .iter()
                    .map(|r| (get(r, "agent_type"), HostAgentId(get(r, "host_agent_id"))))
                    .collect(),
            });
        }
        SET_HOSTS_LISTED.run(&tx, &[&listing.replica_id, &listing.session.0]).await?;
        commit(tx).await?;
        Ok(listed)
    }

    /// Records what a probe found.
    pub async fn set_host_probe(
        &self,
        session: SessionId,
        host_id: &str,
        probe: &HostProbe,
    ) -> Result<(), StoreError> {
        let client = self.client().await?;
        SET_HOST_PROBE
            .run(&client, &[&session.0, &host_id, &probe.online, &probe.reason, &probe.missing])
            .await?;
        Ok(())
    }

    /// Gives a host nothing new, or gives it work again, also to what was parked. Claims that are under way have ended
    /// when this returns. False when there is no such host.
    pub async fn set_host_drained(&self, host_id: &str, drained: bool) -> Result<bool, StoreError> {
        retry!(
            async {
                let mut client = self.client().await?;
                let tx = begin(&mut client).await?;
                let known = SET_HOST_DRAINED.row(&tx, &[&host_id, &drained]).await?.is_some();
                LOCK_HOST_AGENTS.rows(&tx, &[&host_id]).await?;
                if !drained {
                    UNPARK_HOST.run(&tx, &[&host_id]).await?;
                }
                commit(tx).await?;
                Ok(known)
            }
            .await
        )
    }

    /// The CLI behind a lease is out of quota or not logged in: it is given nothing until `until`, or as long as the
    /// statement says. Returns until when; `None` when the lease is not held.
    pub async fn park_host_agent(
        &self,
        held: &HeldLease,
        until: Option<Timestamp>,
        reason: &str,
    ) -> Result<Option<Timestamp>, StoreError> {
        let client = self.client().await?;
        let params: super::statement::Params<'_> =
            &[&held.task_id.0, &held.lease.0, &held.holder.0, &until, &reason];
        Ok(PARK_HOST_AGENT.row(&client, params).await?.map(|row| moment(&row, "parked_until")))
    }

    /// A CLI has done a task: whatever it was parked for is over.
    pub async fn set_host_agent_sound(&self, host_agent: HostAgentId) -> Result<(), StoreError> {
        let client = self.client().await?;
        SET_HOST_AGENT_SOUND.run(&client, &[&host_agent.0]).await?;
        Ok(())
    }

    /// A page of hosts by id.
    pub async fn list_hosts(&self, filter: &HostFilter) -> Result<Vec<Host>, StoreError> {
        self.read(
            &LIST_HOSTS,
            &[
                &filter.host_id,
                &filter.status.map(HostStatus::as_str),
                &filter.after,
                &filter.limit,
            ],
        )
        .await?
        .iter()
        .map(|row| {
            Ok(Host {
                host_id: get(row, "host_id"),
                hostname: get(row, "hostname"),
                status: word(row, "status")?,
                reason: get(row, "reason"),
                agents: rows::json(row, "agents")?.unwrap_or_default(),
                checked_at: moment_if_any(row, "checked_at"),
                replicas: rows::json(row, "replicas")?.unwrap_or_default(),
            })
        })
        .collect()
    }

    /// Whether an id is a configured host's.
    pub async fn is_host_id(&self, id: &str) -> Result<bool, StoreError> {
        Ok(get(&self.read_one(&CHECK_HOST_ID, &[&id]).await?, "known"))
    }
}

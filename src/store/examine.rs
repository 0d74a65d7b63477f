//! What an operator should know of the database: for `doctor` and `readyz`.

use jiff::Timestamp;

use super::{
    Store, StoreError,
    rows::get,
    statement::{EXAMINE_DATABASE, READ_NOTIFY_QUEUE},
};

/// So full a queue of notifications is told; it takes hours to get there, and minutes to the end.
const NOTIFY_QUEUE_TOLD: f64 = 0.5;

/// The server, and what this account may do there.
#[derive(Debug, Clone, PartialEq)]
pub struct Examination {
    /// Such as `15.4`.
    pub version: String,
    /// Such as 150004.
    pub version_num: i32,
    /// Connections that the server allows to who is no superuser.
    pub connections: i32,
    /// Connections that are open now, of all databases.
    pub connected: i64,
    /// Nothing can be written.
    pub read_only: bool,
    /// It is a standby.
    pub standby: bool,
    /// It vacuums by itself.
    pub autovacuum: bool,
    /// Tables of ours that are excepted from that.
    pub unvacuumed: Vec<String>,
    /// How full the queue of notifications is, from 0 to 1.
    pub notify_queue: f64,
    /// By how many seconds its clock is ahead of this machine's; the round trip makes it uncertain.
    pub clock_ahead_secs: f64,
    /// By how many seconds at most that is wrong.
    pub clock_uncertainty_secs: f64,
    /// The account.
    pub account: String,
    /// It may do everything.
    pub superuser: bool,
    /// Which of the four roles do not exist.
    pub lacking_roles: Vec<String>,
    /// What the coordinator needs and the account may not, as `table: right`.
    pub lacking_rights: Vec<String>,
    /// It may use the schema, or there is none.
    pub uses_schema: bool,
}

impl Store {
    /// Examines the server. Also works without a schema, and on a standby.
    pub async fn examine(&self) -> Result<Examination, StoreError> {
        let client = self.client().await?;
        EXAMINE_DATABASE.prepare(&client).await?;
        let before = Timestamp::now();
        let row = EXAMINE_DATABASE.one(&client, &[]).await?;
        let after = Timestamp::now();
        let half = after.duration_since(before).as_secs_f64() / 2.0;
        let here = before.as_duration().as_secs_f64() + half;
        Ok(Examination {
            version: get(&row, "version"),
            version_num: get(&row, "version_num"),
            connections: get(&row, "connections"),
            connected: get(&row, "connected"),
            read_only: get(&row, "read_only"),
            standby: get(&row, "standby"),
            autovacuum: get(&row, "autovacuum"),
            unvacuumed: get(&row, "unvacuumed"),
            notify_queue: get(&row, "notify_queue"),
            clock_ahead_secs: get::<f64>(&row, "clock_secs") - here,
            clock_uncertainty_secs: half,
            account: get(&row, "account"),
            superuser: get(&row, "superuser"),
            lacking_roles: get(&row, "lacking_roles"),
            lacking_rights: get(&row, "lacking_rights"),
            uses_schema: get(&row, "uses_schema"),
        })
    }

    /// What is wrong with the server's queue of notifications, if it fills up.
    pub async fn check_notify_queue(&self) -> Result<Option<String>, StoreError> {
        let client = self.client().await?;
        Ok(notify_queue_problem(get(&READ_NOTIFY_QUEUE.one(&client, &[]).await?, "notify_queue")))
    }
}

/// What is wrong with a queue of notifications that is so full, from 0 to 1.
pub fn notify_queue_problem(usage: f64) -> Option<String> {
    (usage >= NOTIFY_QUEUE_TOLD).then(|| {
        format!(
            "the server's queue of notifications is {:.0} % full; when it is full, nothing that notifies can commit",
            usage * 100.0
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_fills_up_is_told_with_its_number() {
        assert_eq!(notify_queue_problem(0.49), None);
        assert!(notify_queue_problem(0.5).unwrap().contains("50 % full"));
        assert!(notify_queue_problem(1.0).unwrap().contains("100 % full"));
    }
}

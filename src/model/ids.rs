//! Identifiers, each a type of its own so that none can stand in for another.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::{Uuid, fmt::Hyphenated};

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_id! {
    /// Names a task for ever. A UUIDv7 made by the database, so that ids follow its clock.
    TaskId
}
uuid_id! {
    /// One registration of an agent, or one boot of a replica. Leases belong to sessions.
    SessionId
}

/// The fencing number of a task: grows by one at every claim and never falls.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Lease(pub i64);

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a client names a task: by UUID or by key (`org/repo#42`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskRef {
    /// The task's UUID.
    Id(TaskId),
    /// The task's key.
    Key(String),
}

impl TaskRef {
    /// Reads a path segment or body field that is already percent-decoded. Only what has hyphens is an id, here as in SQL:
    /// 32 hexadecimal digits may well be a key, such as a checksum.
    pub fn parse(text: &str) -> Self {
        match Uuid::try_parse(text) {
            Ok(id) if text.len() == Hyphenated::LENGTH => Self::Id(TaskId(id)),
            _ => Self::Key(text.to_owned()),
        }
    }
}

impl fmt::Display for TaskRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Key(key) => f.write_str(key),
        }
    }
}

/// An agent's name: 1 to 128 of `A-Z a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct AgentId(String);

/// The text is not an agent id.
#[derive(Debug, thiserror::Error)]
#[error("an agent_id is 1 to 128 of the characters A-Z a-z 0-9 . _ -")]
pub struct InvalidAgentId;

impl AgentId {
    /// Checks length and alphabet.
    pub fn parse(text: &str) -> Result<Self, InvalidAgentId> {
        let fits = (1..=128).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidAgentId) }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_id_takes_its_alphabet_only() {
        for good in ["a", "Agent-1.x_2", &"x".repeat(128)] {
            assert_eq!(AgentId::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "a b", "é", "a/b", "a\0", "a\n", &"x".repeat(129)] {
            assert!(AgentId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn task_ref_tells_uuid_from_key() {
        let id = Uuid::from_u128(7);
        assert_eq!(TaskRef::parse(&id.to_string()), TaskRef::Id(TaskId(id)));
        assert_eq!(TaskRef::parse(&id.to_string().to_uppercase()), TaskRef::Id(TaskId(id)));
        let others = [id.simple().to_string(), id.braced().to_string(), id.urn().to_string()];
        for key in others.iter().map(String::as_str).chain(["org/repo#42", &"é".repeat(18)]) {
            assert_eq!(TaskRef::parse(key), TaskRef::Key(key.into()));
        }
    }
}

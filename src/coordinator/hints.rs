//! What replicas tell each other: words of a NOTIFY payload. A hint says where to look; what an older or newer replica does
//! not know is taken for anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use uuid::Uuid;

use crate::{model::SessionId, store::ReadyPlace};

/// What happened, as the others are told: words of a payload, separated by spaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hint {
    /// Something is ready, or a slot is free, or may be.
    Anything,
    /// A lease was ended by somebody else than its holder.
    Revoked,
    /// A task is ready in this lane and priority, from this `seq` on.
    Ready(ReadyPlace),
    /// The same of a task that is being committed: who looks before that does not see it.
    Soon(ReadyPlace),
    /// This session may take more than before.
    Freed(SessionId),
    /// What is remembered of this agent's credentials is not true any more.
    Caller(String),
    /// Somebody wants to know how the hosts are.
    Probe,
    /// A replica's session has ended; its runs are to be taken over.
    Orphaned,
}

/// Bytes of a payload; NOTIFY takes 8,000. What would be longer is told in one word.
const MAX_PAYLOAD: usize = 7_000;

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anything => f.write_str("*"),
            Self::Revoked => f.write_str("revoked"),
            Self::Ready(ReadyPlace { lane_id, priority, seq }) => {
                write!(f, "ready:{lane_id}:{priority}:{seq}")
            }
            Self::Soon(ReadyPlace { lane_id, priority, seq }) => {
                write!(f, "soon:{lane_id}:{priority}:{seq}")
            }
            Self::Freed(session) => write!(f, "freed:{}", session.0.simple()),
            Self::Caller(agent_id) => write!(f, "caller:{agent_id}"),
            Self::Probe => f.write_str("probe"),
            Self::Orphaned => f.write_str(ORPHANED),
        }
    }
}

/// The word for it, also for a replica that stops and has nobody left to send it.
pub(super) const ORPHANED: &str = "orphaned";

impl Hint {
    /// What is unknown, of a newer replica or of plain SQL, may be anything.
    pub(super) fn parse(word: &str) -> Self {
        let (kind, rest) = word.split_once(':').unwrap_or((word, ""));
        match kind {
            "revoked" => Self::Revoked,
            "probe" => Self::Probe,
            ORPHANED => Self::Orphaned,
            "ready" => place(rest).map_or(Self::Anything, Self::Ready),
            "soon" => place(rest).map_or(Self::Anything, Self::Soon),
            "freed" => match Uuid::try_parse(rest) {
                Ok(session) => Self::Freed(SessionId(session)),
                Err(_) => Self::Anything,
            },
            "caller" => Self::Caller(rest.to_owned()),
            _ => Self::Anything,
        }
    }
}

/// A place as a hint names it.
fn place(words: &str) -> Option<ReadyPlace> {
    let mut words = words.split(':');
    let mut next = || words.next()?.parse::<i64>().ok();
    Some(ReadyPlace { lane_id: next()?, priority: next()?.try_into().ok()?, seq: next()? })
}

/// One payload for all hints.
pub(super) fn payload(hints: &BTreeSet<Hint>) -> String {
    let words: Vec<String> = hints.iter().map(Hint::to_string).collect();
    let payload = words.join(" ");
    if payload.len() <= MAX_PAYLOAD {
        return payload;
    }
    // Credentials are not forgotten by a word that says only that there may be work, and what is soon is not there yet.
    let is_kept = |word: &&str| word.starts_with("caller:") || word.starts_with("soon:");
    let kept = words.iter().map(String::as_str).filter(is_kept);
    let short: Vec<&str> = ["*", "revoked", "probe", ORPHANED].into_iter().chain(kept).collect();
    let short = short.join(" ");
    if short.len() <= MAX_PAYLOAD { short } else { "* revoked probe orphaned callers".to_owned() }
}

/// The first of each lane and priority says it for those behind it.
pub(super) fn ready_hints(places: &[ReadyPlace]) -> impl Iterator<Item = Hint> + use<> {
    let mut firsts: BTreeMap<(i64, i16), i64> = BTreeMap::new();
    for place in places {
        let first = firsts.entry((place.lane_id, place.priority)).or_insert(place.seq);
        *first = place.seq.min(*first);
    }
    let place = |((lane_id, priority), seq)| ReadyPlace { lane_id, priority, seq };
    firsts.into_iter().map(place).map(Hint::Ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_travel_and_what_is_unknown_is_anything() {
        let hints = [
            Hint::Anything,
            Hint::Revoked,
            Hint::Ready(ReadyPlace { lane_id: 7, priority: 3, seq: 99 }),
            Hint::Soon(ReadyPlace { lane_id: 7, priority: 0, seq: 100 }),
            Hint::Freed(SessionId(Uuid::from_u128(5))),
            Hint::Caller("a.b-c_1".to_owned()),
            Hint::Probe,
            Hint::Orphaned,
        ];
        for hint in hints {
            assert_eq!(Hint::parse(&hint.to_string()), hint);
        }
        for word in ["", "ready", "ready:1:x:2", "soon:1:99999:2", "freed:?", "what is this"] {
            assert_eq!(Hint::parse(word), Hint::Anything, "{word}");
        }
    }

    #[test]
    fn a_payload_that_would_be_long_says_it_in_one_word() {
        let many = |n: u128| (0..n).map(|n| Hint::Freed(SessionId(Uuid::from_u128(n))));
        let hints: BTreeSet<Hint> = many(10).collect();
        assert_eq!(payload(&hints).split(' ').count(), 10);
        let soon = Hint::Soon(ReadyPlace { lane_id: 1, priority: 2, seq: 3 });
        let hints: BTreeSet<Hint> =
            many(1_000).chain([Hint::Caller("gone".to_owned()), soon]).collect();
        assert_eq!(payload(&hints), "* revoked probe orphaned soon:1:2:3 caller:gone");
    }
}

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
    Ready { lane_id: i64, priority: i16, seq: i64 },
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
            Self::Ready { lane_id, priority, seq } => write!(f, "ready:{lane_id}:{priority}:{seq}"),
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
        let mut numbers = rest.split(':').map(str::parse::<i64>);
        match kind {
            "revoked" => Self::Revoked,
            "probe" => Self::Probe,
            ORPHANED => Self::Orphaned,
            "ready" => match (numbers.next(), numbers.next(), numbers.next()) {
                (Some(Ok(lane_id)), Some(Ok(priority)), Some(Ok(seq))) => {
                    Self::Ready { lane_id, priority: i16::try_from(priority).unwrap_or(0), seq }
                }
                _ => Self::Anything,
            },
            "freed" => match Uuid::try_parse(rest) {
                Ok(session) => Self::Freed(SessionId(session)),
                Err(_) => Self::Anything,
            },
            "caller" => Self::Caller(rest.to_owned()),
            _ => Self::Anything,
        }
    }
}

/// One payload for all hints.
pub(super) fn payload(hints: &BTreeSet<Hint>) -> String {
    let words: Vec<String> = hints.iter().map(Hint::to_string).collect();
    let payload = words.join(" ");
    if payload.len() <= MAX_PAYLOAD {
        return payload;
    }
    // Credentials are not forgotten by a word that says only that there may be work.
    let callers = || words.iter().filter(|word| word.starts_with("caller:"));
    let short: Vec<&str> = ["*", "revoked", "probe", ORPHANED]
        .into_iter()
        .chain(callers().map(String::as_str))
        .collect();
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
    firsts.into_iter().map(|((lane_id, priority), seq)| Hint::Ready { lane_id, priority, seq })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_travel_and_what_is_unknown_is_anything() {
        let hints = [
            Hint::Anything,
            Hint::Revoked,
            Hint::Ready { lane_id: 7, priority: 3, seq: 99 },
            Hint::Freed(SessionId(Uuid::from_u128(5))),
            Hint::Caller("a.b-c_1".to_owned()),
            Hint::Probe,
            Hint::Orphaned,
        ];
        for hint in hints {
            assert_eq!(Hint::parse(&hint.to_string()), hint);
        }
        for word in ["", "ready", "ready:1:x:2", "freed:?", "what is this"] {
            assert_eq!(Hint::parse(word), Hint::Anything, "{word}");
        }
    }

    #[test]
    fn a_payload_that_would_be_long_says_it_in_one_word() {
        let many = |n: u128| (0..n).map(|n| Hint::Freed(SessionId(Uuid::from_u128(n))));
        let hints: BTreeSet<Hint> = many(10).collect();
        assert_eq!(payload(&hints).split(' ').count(), 10);
        let hints: BTreeSet<Hint> = many(1_000).chain([Hint::Caller("gone".to_owned())]).collect();
        assert_eq!(payload(&hints), "* revoked probe orphaned caller:gone");
    }
}

//! The one transition table: what may follow what, and by what.
//!
//! SQL carries these rules out with literals; a test reads the event log that a whole run wrote and holds every row against this table.

use super::{EventType as E, Status as S};

/// `(from, to, by)`; `from` is `None` when the task comes to be.
pub const TRANSITIONS: &[(Option<S>, S, E)] = &[
    (None, S::Created, E::Created),
    (None, S::Scheduled, E::Created),
    (Some(S::Scheduled), S::Created, E::Due),
    (Some(S::Created), S::Assigned, E::Claimed),
    (Some(S::Assigned), S::Assigned, E::Claimed),
    (Some(S::Created), S::Assigned, E::Pinned),
    (Some(S::Scheduled), S::Assigned, E::Pinned),
    (Some(S::Assigned), S::Assigned, E::Pinned),
    (Some(S::Assigned), S::Created, E::PinExpired),
    (Some(S::Assigned), S::Running, E::Started),
    (Some(S::Assigned), S::Completed, E::Completed),
    (Some(S::Running), S::Completed, E::Completed),
    (Some(S::Assigned), S::ReviewPending, E::ReviewPending),
    (Some(S::Running), S::ReviewPending, E::ReviewPending),
    // With retries left: scheduled with backoff.
    (Some(S::Assigned), S::Scheduled, E::Failed),
    (Some(S::Running), S::Scheduled, E::Failed),
    (Some(S::Assigned), S::Scheduled, E::TimedOut),
    (Some(S::Running), S::Scheduled, E::TimedOut),
    (Some(S::Assigned), S::Scheduled, E::Lost),
    (Some(S::Running), S::Scheduled, E::Lost),
    // Without.
    (Some(S::Assigned), S::Failed, E::Failed),
    (Some(S::Running), S::Failed, E::Failed),
    (Some(S::Assigned), S::Failed, E::TimedOut),
    (Some(S::Running), S::Failed, E::TimedOut),
    (Some(S::Assigned), S::AgentLost, E::Lost),
    (Some(S::Running), S::AgentLost, E::Lost),
    // Refunded.
    (Some(S::Assigned), S::Created, E::Released),
    (Some(S::Running), S::Created, E::Released),
    (Some(S::Assigned), S::Scheduled, E::Released),
    (Some(S::Running), S::Scheduled, E::Released),
    (Some(S::Assigned), S::Created, E::Undone),
    (Some(S::Assigned), S::Assigned, E::Undone), // pinned: the pin stands
    // The forge closed the issue with a commit.
    (Some(S::Scheduled), S::Completed, E::Completed),
    (Some(S::Created), S::Completed, E::Completed),
    (Some(S::ReviewPending), S::Completed, E::Completed),
    (Some(S::Failed), S::Completed, E::Completed),
    (Some(S::AgentLost), S::Completed, E::Completed),
    (Some(S::Cancelled), S::Completed, E::Completed),
    // Called off.
    (Some(S::Scheduled), S::Cancelled, E::Cancelled),
    (Some(S::Created), S::Cancelled, E::Cancelled),
    (Some(S::Assigned), S::Cancelled, E::Cancelled),
    (Some(S::Running), S::Cancelled, E::Cancelled),
    (Some(S::ReviewPending), S::Cancelled, E::Cancelled),
    // Wanted again.
    (Some(S::Failed), S::Created, E::Retried),
    (Some(S::AgentLost), S::Created, E::Retried),
    (Some(S::Cancelled), S::Created, E::Retried),
    (Some(S::Completed), S::Created, E::Reopened),
    (Some(S::Failed), S::Created, E::Reopened),
    (Some(S::AgentLost), S::Created, E::Reopened),
    (Some(S::Cancelled), S::Created, E::Reopened),
];

/// True when the table allows it.
pub fn may(from: Option<S>, to: S, by: E) -> bool {
    TRANSITIONS.contains(&(from, to, by))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_stays_terminal_unless_wanted_again_or_completed_by_the_forge() {
        for (from, to, by) in TRANSITIONS {
            if from.is_some_and(S::is_terminal) {
                assert!(
                    matches!(by, E::Retried | E::Reopened)
                        || (*to, *by) == (S::Completed, E::Completed),
                    "{from:?} {to:?} {by:?}"
                );
            }
        }
        assert!(!may(Some(S::Completed), S::Created, E::Retried));
        assert!(!may(Some(S::Completed), S::Running, E::Started));
    }

    #[test]
    fn no_row_stands_twice() {
        for (i, row) in TRANSITIONS.iter().enumerate() {
            assert!(!TRANSITIONS[..i].contains(row), "{row:?}");
        }
    }
}

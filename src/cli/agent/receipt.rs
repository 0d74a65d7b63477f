//! From the judgement of an attempt to what is said of it.

use std::time::Duration;

use crate::{
    execution::{Outcome, OutcomeKind},
    model::{Artifact, Receipt, ReceiptStatus, Task},
};

/// What the coordinator is to hear.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// The attempt counts.
    Receipt(Receipt),
    /// It says nothing about the task: the attempt is refunded, and the CLI is left alone until then; `None` when nobody
    /// knows how long.
    Park {
        /// Why.
        reason: String,
        /// How long.
        wait: Option<Duration>,
    },
}

/// Makes a receipt of an outcome; `took` is the whole attempt.
pub(super) fn verdict(
    outcome: Outcome,
    task: &Task,
    took: Duration,
    now: jiff::Timestamp,
) -> Verdict {
    let status = match outcome.kind {
        OutcomeKind::Succeeded => ReceiptStatus::Completed,
        OutcomeKind::Failed | OutcomeKind::TimedOut => ReceiptStatus::Failed,
        OutcomeKind::Quota { until } => {
            let wait = until.and_then(|until| now.duration_until(until).try_into().ok());
            return Verdict::Park { reason: park_reason("quota", outcome.error), wait };
        }
        OutcomeKind::Auth => {
            return Verdict::Park { reason: park_reason("auth", outcome.error), wait: None };
        }
    };
    let pull_request = match (&task.repo, &outcome.summary) {
        (Some(repo), Some(summary)) => pull_request_in(summary, &repo.full_name),
        _ => None,
    };
    let artifacts = pull_request.map(|url| Artifact::Pr { url }).into_iter().collect();
    Verdict::Receipt(Receipt {
        status,
        duration_seconds: Some(took.as_secs_f64()),
        summary: outcome.summary,
        artifacts,
        error: outcome.error,
        usage: outcome.usage,
    })
}

fn park_reason(kind: &str, error: Option<String>) -> String {
    error.map_or_else(|| kind.to_owned(), |error| format!("{kind}: {error}"))
}

/// The address of the last pull request of `repo` that a text names: `…/org/repo/pulls/7`, on GitHub `pull`.
fn pull_request_in(text: &str, repo: &str) -> Option<String> {
    let is_end = |c: char| {
        c.is_whitespace() || matches!(c, '<' | '>' | '(' | ')' | '[' | ']' | '"' | '`' | '*')
    };
    let mut found = text.split(is_end).filter_map(|word| {
        let (base, number) = word.split_once("/pulls/").or_else(|| word.split_once("/pull/"))?;
        let digits = number.bytes().take_while(u8::is_ascii_digit).count();
        let is_address = base.starts_with("https://") || base.starts_with("http://");
        let path = base.to_lowercase();
        let is_of_repo = path.ends_with(&format!("/{}", repo.to_lowercase()));
        // Behind the number may stand a full stop, or the rest of a longer address.
        let end = word.len() - number.len() + digits;
        (is_address && is_of_repo && digits > 0).then(|| word[..end].to_owned())
    });
    found.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::agent::claims::Claim;

    fn outcome(kind: OutcomeKind, summary: &str) -> Outcome {
        Outcome {
            kind,
            summary: Some(summary.into()),
            error: Some("e".into()),
            usage: None,
            session: None,
        }
    }

    #[test]
    fn the_pull_request_is_found() {
        let text = "See https://f.example/other/repo/pulls/1 and [it](https://f.example/Org/Repo/pulls/42/files).";
        assert_eq!(
            pull_request_in(text, "org/repo").unwrap(),
            "https://f.example/Org/Repo/pulls/42"
        );
        assert_eq!(
            pull_request_in("http://x/org/repo/pull/7.", "org/repo").unwrap(),
            "http://x/org/repo/pull/7"
        );
        for none in
            ["", "/org/repo/pulls/1", "https://x/org/repo/pulls/", "https://x/org/repo/issues/1"]
        {
            assert_eq!(pull_request_in(none, "org/repo"), None, "{none}");
        }
    }

    #[test]
    fn quota_is_no_failure_of_the_task() {
        let now: jiff::Timestamp = "2026-11-24T00:00:00Z".parse().unwrap();
        let until = Some("2026-11-24T01:00:00Z".parse().unwrap());
        let task = Claim::for_test(1).task;
        let took = Duration::from_secs(2);
        let quota = verdict(outcome(OutcomeKind::Quota { until }, ""), &task, took, now);
        let reason = "quota: e".to_owned();
        assert_eq!(quota, Verdict::Park { reason, wait: Some(Duration::from_secs(3600)) });
        let Verdict::Receipt(receipt) =
            verdict(outcome(OutcomeKind::TimedOut, "s"), &task, took, now)
        else {
            panic!("a time-out counts");
        };
        assert_eq!(receipt.status, ReceiptStatus::Failed);
        assert_eq!(receipt.duration_seconds, Some(2.0));
    }
}

//! How an attempt went, in words that hold for every CLI.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::Usage;

/// What became of the task in this attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeKind {
    /// Done.
    Succeeded,
    /// Not done.
    Failed,
    /// The host ended it at the deadline.
    TimedOut,
    /// The CLI's account has used up its allowance. Says nothing about the task.
    Quota {
        /// When there is more, if the CLI said so in a way that names a moment.
        until: Option<Timestamp>,
    },
    /// The CLI is not logged in, or its key is refused. Says nothing about the task.
    Auth,
}

/// The judgement of one attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What became of the task.
    pub kind: OutcomeKind,
    /// The agent's last message.
    pub summary: Option<String>,
    /// Why it is no success, for a person.
    pub error: Option<String>,
    /// What it cost, as far as the CLI said.
    pub usage: Option<Usage>,
    /// The CLI's name for the session, to resume it by.
    pub session: Option<String>,
}

/// What an error's text says: quota, auth, or plain failure. For texts that CLIs and the services behind them wrote as
/// errors, never for what an agent wrote.
pub(super) fn kind_of_error(text: &str, now: Timestamp) -> OutcomeKind {
    let lower = text.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if has(&[
        "usage limit",
        "hit your limit",
        "rate limit",
        "rate_limit",
        "ratelimit",
        "quota exceeded",
        "exceeded your current quota",
        "insufficient_quota",
        "too many requests",
        "credit balance is too low",
        "out of credits",
    ]) {
        return OutcomeKind::Quota { until: moment(&lower, now) };
    }
    if has(&[
        "401 unauthorized",
        "invalid api key",
        "incorrect api key",
        "invalid_api_key",
        "authentication_error",
        "authentication_failed",
        "failed to authenticate",
        "not logged in",
        "please run /login",
        "please log in",
        "oauth token has expired",
        "token has been revoked",
        "missing bearer",
    ]) {
        return OutcomeKind::Auth;
    }
    OutcomeKind::Failed
}

/// The moment that a lower-case text names: a Unix time behind `|`, an RFC 3339 time, or `in 3 days 2 hours 5 minutes`.
/// Anything else (`at 3 pm`) is in a time zone that only the host knows, and counts as none.
fn moment(text: &str, now: Timestamp) -> Option<Timestamp> {
    let epoch = text.split('|').nth(1).and_then(|rest| {
        let digits: String = rest.trim().chars().take_while(char::is_ascii_digit).collect();
        unix_time(digits.parse().ok()?)
    });
    let written = || {
        text.split([' ', '\n', '(', ')', '"', ','])
            .find_map(|word| word.trim_end_matches('.').to_uppercase().parse().ok())
    };
    let found = epoch.or_else(written).or_else(|| now.checked_add(relative(text)?).ok());
    found.filter(|at| *at > now)
}

/// Seconds since 1970, or milliseconds when it would be after the year 5000.
pub(super) fn unix_time(number: i64) -> Option<Timestamp> {
    let result = if number > 100_000_000_000 {
        Timestamp::from_millisecond(number)
    } else {
        Timestamp::from_second(number)
    };
    result.ok()
}

/// The time that `… in 2 days 3 hours` tells.
fn relative(text: &str) -> Option<Duration> {
    let mut words = text.split(" in ").nth(1)?.split_whitespace();
    let mut secs: u64 = 0;
    while let Some(number) = words.next().and_then(|word| word.parse::<u64>().ok()) {
        let unit = match words.next()?.trim_end_matches(['.', ',']) {
            "day" | "days" => 86_400,
            "hour" | "hours" => 3_600,
            "minute" | "minutes" | "min" | "mins" => 60,
            "second" | "seconds" | "sec" | "secs" => 1,
            _ => break,
        };
        secs = secs.checked_add(number.checked_mul(unit)?)?;
    }
    (1..=366 * 86_400).contains(&secs).then(|| Duration::from_secs(secs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart() {
        let now: Timestamp = "2026-11-24T00:00:00Z".parse().unwrap();
        let quota = |until: Option<&str>| OutcomeKind::Quota {
            until: until.map(|text| text.parse().unwrap()),
        };
        for (text, kind) in [
            (
                "You've hit your usage limit. Try again in 1 day 2 hours 5 minutes.",
                quota(Some("2026-11-25T02:05:00Z")),
            ),
            ("You've hit your usage limit ... try again at Nov 27th, 2026 3:05 PM.", quota(None)),
            ("Claude AI usage limit reached|1795600000", quota(Some("2026-11-25T09:46:40Z"))),
            ("rate limit, retry at 2026-11-24T03:00:00Z", quota(Some("2026-11-24T03:00:00Z"))),
            ("usage limit reached|1700000000", quota(None)),
            ("429 Too Many Requests", quota(None)),
            ("Invalid API key · Please run /login", OutcomeKind::Auth),
            ("unexpected status 401 Unauthorized", OutcomeKind::Auth),
            ("stream disconnected before completion", OutcomeKind::Failed),
            ("", OutcomeKind::Failed),
        ] {
            assert_eq!(kind_of_error(text, now), kind, "{text}");
        }
    }
}

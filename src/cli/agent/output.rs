//! A run's output on its way to the coordinator.

use std::sync::Arc;

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::{
    claims::Held,
    session::{CallError, Session},
};
use crate::model::Lease;

/// Bytes of one call; with every character escaped it stays far below the coordinator's 5 MiB.
const PIECE: usize = 256 << 10;
/// Bytes that wait for a coordinator that is away; the output itself stays in the run's directory.
const MAX_WAITING: usize = 4 << 20;

/// The bytes of a run as text, numbered by the bytes of that text.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// The beginning of a character whose end has not come.
    undecoded: Vec<u8>,
    /// Not yet acknowledged.
    waiting: String,
    /// Where `waiting` begins.
    offset: u64,
    /// Under which `offset` counts.
    lease: Lease,
    /// Set when nothing more is sent.
    given_up: bool,
}

#[derive(Deserialize)]
struct Stored {
    next_offset: u64,
}

impl Output {
    /// Takes what the run wrote next.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.undecoded.extend_from_slice(bytes);
        let mut from = 0;
        while from < self.undecoded.len() {
            let rest = &self.undecoded[from..];
            let (valid, skip) = match std::str::from_utf8(rest) {
                Ok(_) => (rest.len(), 0),
                Err(error) => match error.error_len() {
                    Some(len) => (error.valid_up_to(), len),
                    // A character cut in two; its rest is still to come.
                    None if error.valid_up_to() == 0 => break,
                    None => (error.valid_up_to(), 0),
                },
            };
            // NUL cannot be stored as text.
            self.waiting
                .push_str(&String::from_utf8_lossy(&rest[..valid]).replace('\0', "\u{FFFD}"));
            if skip > 0 {
                self.waiting.push('\u{FFFD}');
            }
            from += valid + skip;
        }
        self.undecoded.drain(..from);
    }

    /// Sends what waits. Trouble never ends the run: what cannot be sent now is sent later or, in the end, not at all.
    pub(super) async fn send(&mut self, session: &Session, held: &Arc<Held>) {
        while !self.given_up && !self.waiting.is_empty() {
            if self.lease != held.lease() {
                // Each lease has an output of its own, counted from its start.
                self.lease = held.lease();
                self.offset = 0;
            }
            let piece = &self.waiting[..self.waiting.floor_char_boundary(PIECE)];
            let path = format!("/api/v1/tasks/{}/logs", held.task_id());
            let answer: Result<Option<Stored>, _> = session
                .call(|client| {
                    let body = json!({
                        "agent_id": session.options.agent_id, "lease": self.lease, "offset": self.offset,
                        "data": piece,
                    });
                    client.request(Method::POST, &path).json(&body)
                })
                .await;
            match answer {
                Ok(Some(stored)) if self.acknowledge(stored.next_offset) => {}
                Ok(_) => self.give_up("the coordinator stores none of it"),
                Err(CallError::Client(error)) if error.status() == Some(409) => {
                    session.lose(held, "its lease is over");
                    return;
                }
                Err(CallError::Client(error)) if error.is_passing() => {
                    if self.waiting.len() > MAX_WAITING {
                        self.give_up("too much of it waits for the coordinator");
                    }
                    return;
                }
                Err(error) => self.give_up(&error.to_string()),
            }
        }
    }

    /// Drops what the coordinator has. False when that is nothing new.
    fn acknowledge(&mut self, next_offset: u64) -> bool {
        let known = usize::try_from(next_offset.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let known = self.waiting.floor_char_boundary(known.min(self.waiting.len()));
        self.waiting.drain(..known);
        self.offset += known as u64;
        known > 0
    }

    fn give_up(&mut self, why: &str) {
        tracing::warn!(why, "the output is not sent any further; it stays on this machine");
        self.given_up = true;
        self.waiting = String::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_survive_being_cut() {
        let mut output = Output::default();
        for byte in "aé\0😀".as_bytes() {
            output.push(&[*byte]);
        }
        output.push(b"\xff\xfeb\xe2\x82");
        assert_eq!(output.waiting, "aé\u{FFFD}😀\u{FFFD}\u{FFFD}b");
        assert_eq!(output.undecoded, b"\xe2\x82");
    }

    #[test]
    fn what_is_known_is_dropped() {
        let mut output = Output::default();
        output.push("abcé".as_bytes());
        assert!(output.acknowledge(2));
        assert_eq!((output.waiting.as_str(), output.offset), ("cé", 2));
        assert!(!output.acknowledge(2));
        assert!(output.acknowledge(100));
        assert_eq!((output.waiting.as_str(), output.offset), ("", 5));
    }
}

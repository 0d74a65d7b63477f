//! `codex-json`: the events of `codex exec --json` (openai/codex, `codex-rs/exec/src/exec_events.rs`).

use serde_json::Value;

use super::{Ended, Outcome, OutcomeKind, text_at};
use crate::model::Usage;

#[derive(Debug, Default)]
pub(super) struct Codex {
    thread: Option<String>,
    message: Option<String>,
    turn: Turn,
    usage: Option<Usage>,
    /// Of the last `error` event. Many are passing ("Reconnecting..."), so it counts only when no turn was completed.
    error: Option<String>,
}

/// The last turn.
#[derive(Debug, Default)]
enum Turn {
    /// None yet, or one is under way.
    #[default]
    Open,
    Completed,
    Failed(String),
}

impl Codex {
    pub(super) fn event(&mut self, event: &Value) {
        match event["type"].as_str().unwrap_or_default() {
            "thread.started" => self.thread = text_at(event, "/thread_id"),
            "turn.started" => self.turn = Turn::Open,
            "turn.completed" => {
                self.turn = Turn::Completed;
                self.add(&event["usage"]);
            }
            "turn.failed" => {
                let said = text_at(event, "/error/message").or_else(|| self.error.clone());
                self.turn = Turn::Failed(said.unwrap_or_else(|| "the turn failed".to_owned()));
            }
            "error" => self.error = text_at(event, "/message"),
            "item.completed" if event["item"]["type"] == "agent_message" => {
                self.message = text_at(event, "/item/text");
            }
            _ => {}
        }
    }

    /// Usage is told per turn. `input_tokens` includes the cached ones.
    fn add(&mut self, turn: &Value) {
        let sum = self.usage.get_or_insert_default();
        let add = |sum: &mut Option<i64>, more: Option<i64>| {
            if let Some(more) = more {
                *sum = Some(sum.unwrap_or(0).saturating_add(more));
            }
        };
        add(&mut sum.input_tokens, turn["input_tokens"].as_i64());
        add(&mut sum.output_tokens, turn["output_tokens"].as_i64());
    }

    pub(super) fn is_done(&self) -> bool {
        !matches!(self.turn, Turn::Open)
    }

    pub(super) fn finish(self, ended: Ended<'_>) -> Outcome {
        let (kind, error) = match &self.turn {
            Turn::Completed => (OutcomeKind::Succeeded, None),
            Turn::Failed(said) => {
                let (kind, error) = ended.failure(Some(said));
                (kind, Some(error))
            }
            Turn::Open => {
                let (kind, error) = ended.failure(self.error.as_deref());
                (kind, Some(error))
            }
        };
        Outcome { kind, summary: self.message, error, usage: self.usage, session: self.thread }
    }
}

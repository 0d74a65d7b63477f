//! `gemini-json`: the events of `gemini --output-format stream-json` (google-gemini/gemini-cli, `docs/cli/headless.md`).

use serde_json::Value;

use super::{Ended, MAX_TEXT, Outcome, OutcomeKind, text_at};
use crate::model::Usage;

/// What it exits with when it is not logged in.
const AUTH: i32 = 41;

#[derive(Debug, Default)]
pub(super) struct Gemini {
    session: Option<String>,
    /// The last message; it comes in pieces.
    message: String,
    /// The next piece goes on with it.
    open: bool,
    result: Option<Result<(), String>>,
    usage: Option<Usage>,
    /// Of the last `error` event; these do not end the run.
    error: Option<String>,
}

impl Gemini {
    pub(super) fn event(&mut self, event: &Value) {
        let kind = event["type"].as_str().unwrap_or_default();
        let speaks = kind == "message" && event["role"] == "assistant";
        match kind {
            "init" => self.session = text_at(event, "/session_id"),
            _ if speaks => {
                if !self.open {
                    self.message.clear();
                }
                if self.message.len() < MAX_TEXT {
                    self.message.push_str(&text_at(event, "/content").unwrap_or_default());
                }
            }
            "error" => self.error = text_at(event, "/message"),
            "result" => {
                let stats = &event["stats"];
                self.usage = Some(Usage {
                    input_tokens: stats["input_tokens"].as_i64(),
                    output_tokens: stats["output_tokens"].as_i64(),
                    cost_usd: None,
                });
                self.result = Some(if event["status"] == "success" {
                    Ok(())
                } else {
                    let said = text_at(event, "/error/message").or_else(|| self.error.clone());
                    Err(said.unwrap_or_else(|| "the run failed".to_owned()))
                });
            }
            _ => {}
        }
        self.open = speaks;
    }

    pub(super) fn is_done(&self) -> bool {
        self.result.is_some()
    }

    pub(super) fn finish(self, ended: Ended<'_>) -> Outcome {
        let (kind, error) = match &self.result {
            Some(Ok(())) => (OutcomeKind::Succeeded, None),
            Some(Err(said)) => {
                let (kind, error) = ended.failure(Some(said));
                (kind, Some(error))
            }
            None => {
                let (kind, error) = ended.failure(self.error.as_deref());
                let kind = if ended.code == Some(AUTH) { OutcomeKind::Auth } else { kind };
                (kind, Some(error))
            }
        };
        let summary = Some(self.message);
        Outcome { kind, summary, error, usage: self.usage, session: self.session }
    }
}

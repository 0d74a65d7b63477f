//! `claude-json`: `claude -p --output-format stream-json --verbose`, or the one object of `json`
//! (code.claude.com/docs, headless).

use jiff::Timestamp;
use serde_json::Value;

use super::{Ended, Outcome, OutcomeKind, text_at};
use crate::{execution::outcome::unix_time, model::Usage};

#[derive(Debug, Default)]
pub(super) struct Claude {
    session: Option<String>,
    /// The last text of the agent, in case the result has none.
    message: Option<String>,
    /// The last `result`: none until the work has ended.
    result: Option<Ending>,
    /// When a limit that was hit is lifted.
    resets_at: Option<Timestamp>,
}

#[derive(Debug)]
struct Ending {
    success: bool,
    text: Option<String>,
    error: String,
    usage: Usage,
}

impl Claude {
    pub(super) fn event(&mut self, event: &Value) {
        if let Some(session) = text_at(event, "/session_id") {
            self.session = Some(session);
        }
        match event["type"].as_str().unwrap_or_default() {
            "assistant" => {
                let parts = event.pointer("/message/content").and_then(Value::as_array);
                let text =
                    parts.into_iter().flatten().filter_map(|p| text_at(p, "/text")).next_back();
                self.message = text.or(self.message.take());
            }
            "rate_limit_event" => {
                let info = &event["rate_limit_info"];
                if info["status"] == "rejected" {
                    self.resets_at = info["resetsAt"].as_i64().and_then(unix_time);
                }
            }
            "result" => self.result = Some(Ending::of(event)),
            _ => {}
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.result.is_some()
    }

    pub(super) fn finish(self, ended: Ended<'_>) -> Outcome {
        let usage = self.result.as_ref().map(|result| result.usage);
        let (kind, error, text) = match self.result {
            Some(Ending { success: true, text, .. }) => (OutcomeKind::Succeeded, None, text),
            Some(Ending { error, text, .. }) => {
                let (kind, error) = ended.failure(Some(&error));
                (kind, Some(error), text)
            }
            None => {
                let (kind, error) = ended.failure(None);
                (kind, Some(error), None)
            }
        };
        let kind = match kind {
            OutcomeKind::Quota { until } => OutcomeKind::Quota { until: until.or(self.resets_at) },
            kind => kind,
        };
        Outcome { kind, summary: text.or(self.message), error, usage, session: self.session }
    }
}

impl Ending {
    fn of(event: &Value) -> Self {
        let subtype = event["subtype"].as_str().unwrap_or("no subtype");
        let text = text_at(event, "/result");
        let errors: Vec<&str> =
            event["errors"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let error = match (errors.is_empty(), &text) {
            (false, _) => format!("{subtype}: {}", errors.join("; ")),
            (true, Some(text)) => text.clone(),
            (true, None) => subtype.to_owned(),
        };
        let tokens = |name: &str| event["usage"][name].as_i64();
        // What came from the cache or went into it is counted apart here, unlike elsewhere.
        let input =
            ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"].map(tokens);
        let sum = input.iter().flatten().fold(0_i64, |sum, n| sum.saturating_add(*n));
        Self {
            // An API error ends with subtype `success` and is_error true.
            success: subtype == "success" && event["is_error"] == false,
            text,
            error,
            usage: Usage {
                input_tokens: input.iter().any(Option::is_some).then_some(sum),
                output_tokens: tokens("output_tokens"),
                cost_usd: event["total_cost_usd"].as_f64(),
            },
        }
    }
}

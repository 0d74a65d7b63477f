//! `opencode-json`: the events of `opencode run --format json` (anomalyco/opencode, `packages/opencode/src/cli/cmd/run.ts`).

use serde_json::Value;

use super::{Ended, Outcome, OutcomeKind, text_at};
use crate::{execution::read::ExitReason, model::Usage};

#[derive(Debug, Default)]
pub(super) struct Opencode {
    session: Option<String>,
    message: Option<String>,
    /// The last step ended the turn: a step that wants to go on, or was cut, ends with another reason.
    stopped: bool,
    usage: Option<Usage>,
    /// Since the last step that ended the turn.
    error: Option<String>,
}

impl Opencode {
    pub(super) fn event(&mut self, event: &Value) {
        if self.session.is_none() {
            self.session = text_at(event, "/sessionID");
        }
        match event["type"].as_str().unwrap_or_default() {
            "step_start" => self.stopped = false,
            "text" => self.message = text_at(event, "/part/text"),
            "step_finish" => {
                self.add(&event["part"]);
                self.stopped = event["part"]["reason"] == "stop";
                if self.stopped {
                    self.error = None;
                }
            }
            "error" => {
                let said = ["/error/data/message", "/error/message", "/error/name", "/error"];
                let said = said.iter().find_map(|path| text_at(event, path));
                self.error = Some(said.unwrap_or_else(|| "the session failed".to_owned()));
            }
            _ => {}
        }
    }

    /// Usage and cost are told per step.
    fn add(&mut self, step: &Value) {
        let sum = self.usage.get_or_insert_default();
        let add = |sum: &mut Option<i64>, more: Option<i64>| {
            if let Some(more) = more {
                *sum = Some(sum.unwrap_or(0).saturating_add(more));
            }
        };
        add(&mut sum.input_tokens, step["tokens"]["input"].as_i64());
        add(&mut sum.output_tokens, step["tokens"]["output"].as_i64());
        if let Some(cost) = step["cost"].as_f64() {
            sum.cost_usd = Some(sum.cost_usd.unwrap_or(0.0) + cost);
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.stopped
    }

    pub(super) fn finish(self, ended: Ended<'_>) -> Outcome {
        let clean = ended.reason != ExitReason::Exited || matches!(ended.code, None | Some(0));
        let (kind, error) = if self.stopped && self.error.is_none() && clean {
            (OutcomeKind::Succeeded, None)
        } else {
            let (kind, error) = ended.failure(self.error.as_deref());
            (kind, Some(error))
        };
        Outcome { kind, summary: self.message, error, usage: self.usage, session: self.session }
    }
}

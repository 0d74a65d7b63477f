//! `raw`: anything. The exit code decides, the last lines are the summary.

use std::collections::VecDeque;

use super::{Ended, Outcome, OutcomeKind};
use crate::execution::read::ExitReason;

/// Lines kept.
const LINES: usize = 20;
/// Bytes kept of each.
const LINE: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Raw {
    last: VecDeque<String>,
}

impl Raw {
    pub(super) fn line(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(&line[..line.len().min(LINE)]);
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        if self.last.len() == LINES {
            self.last.pop_front();
        }
        self.last.push_back(text.to_owned());
    }

    pub(super) fn finish(self, ended: Ended<'_>) -> Outcome {
        let summary = Vec::from(self.last).join("\n");
        let (kind, error) = match (ended.reason, ended.code) {
            (ExitReason::Exited, Some(0)) => (OutcomeKind::Succeeded, None),
            (ExitReason::Exited, _) => {
                (OutcomeKind::Failed, Some(format!("{}{}", ended.exit(), ended.stderr())))
            }
            (ExitReason::Timeout | ExitReason::Killed, _) => {
                let (kind, error) = ended.failure(None);
                (kind, Some(error))
            }
        };
        Outcome { kind, summary: Some(summary), error, usage: None, session: None }
    }
}

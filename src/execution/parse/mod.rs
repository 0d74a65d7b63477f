//! Reads what a CLI prints, as it comes, and judges the attempt at the end.
//!
//! For the formats that have one, the stream decides: exit code 0 alone is not success, for any of these CLIs.

mod claude;
mod codex;
mod gemini;
mod opencode;
mod raw;

use jiff::Timestamp;

use super::{
    outcome::{Outcome, OutcomeKind, kind_of_error},
    read::ExitReason,
};
use crate::config::OutputFormat;

/// A longer line is skipped. A line holds a tool's whole output, so these get long.
const MAX_LINE: usize = 8 << 20;
/// Bytes of a summary or error that are kept.
const MAX_TEXT: usize = 16 << 10;

/// Reads one run's output from its start. Memory is bounded, whatever is printed.
#[derive(Debug)]
pub struct Parser {
    line: Vec<u8>,
    /// The line at hand is too long; skip to its end.
    skipping: bool,
    format: Format,
}

#[derive(Debug)]
enum Format {
    Codex(codex::Codex),
    Claude(claude::Claude),
    Opencode(opencode::Opencode),
    Gemini(gemini::Gemini),
    Raw(raw::Raw),
}

/// How the process ended: what decides where the stream says nothing.
#[derive(Debug, Clone, Copy)]
struct Ended<'a> {
    code: Option<i32>,
    reason: ExitReason,
    stderr_tail: &'a str,
    now: Timestamp,
}

impl Parser {
    /// At the start of a stream.
    pub fn new(format: OutputFormat) -> Self {
        let format = match format {
            OutputFormat::CodexJson => Format::Codex(codex::Codex::default()),
            OutputFormat::ClaudeJson => Format::Claude(claude::Claude::default()),
            OutputFormat::OpencodeJson => Format::Opencode(opencode::Opencode::default()),
            OutputFormat::GeminiJson => Format::Gemini(gemini::Gemini::default()),
            OutputFormat::Raw => Format::Raw(raw::Raw::default()),
        };
        Self { line: Vec::new(), skipping: false, format }
    }

    /// Takes the next bytes, cut anywhere.
    pub fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            if self.line.len() + text.len() > MAX_LINE {
                self.line = Vec::new();
                self.skipping = true;
            } else if !self.skipping {
                self.line.extend_from_slice(text);
            }
            if ends {
                self.end_line();
            }
        }
    }

    /// Bytes were left out: the line at hand is none, nor is what comes before the next one's end.
    pub fn skip(&mut self) {
        self.line = Vec::new();
        self.skipping = true;
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.skipping) {
            return;
        }
        match &mut self.format {
            Format::Raw(raw) => raw.line(&line),
            Format::Codex(codex) => json(&line, |event| codex.event(event)),
            Format::Claude(claude) => json(&line, |event| claude.event(event)),
            Format::Opencode(opencode) => json(&line, |event| opencode.event(event)),
            Format::Gemini(gemini) => json(&line, |event| gemini.event(event)),
        }
    }

    /// True once the CLI has said how its work ended. Its process may hang on after that: give it a moment, then end it;
    /// what it said still counts.
    pub fn is_done(&self) -> bool {
        match &self.format {
            Format::Codex(codex) => codex.is_done(),
            Format::Claude(claude) => claude.is_done(),
            Format::Opencode(opencode) => opencode.is_done(),
            Format::Gemini(gemini) => gemini.is_done(),
            Format::Raw(_) => false,
        }
    }

    /// Judges. `code` is none when the process is gone without one; `now` turns "in 5 minutes" into a moment.
    pub fn finish(
        mut self,
        code: Option<i32>,
        reason: ExitReason,
        stderr_tail: &str,
        now: Timestamp,
    ) -> Outcome {
        self.end_line();
        let ended = Ended { code, reason, stderr_tail, now };
        let mut outcome = match self.format {
            Format::Codex(codex) => codex.finish(ended),
            Format::Claude(claude) => claude.finish(ended),
            Format::Opencode(opencode) => opencode.finish(ended),
            Format::Gemini(gemini) => gemini.finish(ended),
            Format::Raw(raw) => raw.finish(ended),
        };
        outcome.summary = outcome.summary.map(head).filter(|text| !text.is_empty());
        outcome.error = outcome.error.map(head);
        outcome
    }
}

impl Ended<'_> {
    /// Judges a stream that did not end in success; `said` is the error in it, if any.
    fn failure(&self, said: Option<&str>) -> (OutcomeKind, String) {
        let said = said.map(str::trim).filter(|text| !text.is_empty());
        match (said, self.reason) {
            (None, ExitReason::Timeout) => {
                return (OutcomeKind::TimedOut, "ended at its time limit".to_owned());
            }
            (None, ExitReason::Killed) => {
                return (OutcomeKind::Failed, "ended by agent-fleet".to_owned());
            }
            _ => {}
        }
        let text = match said {
            Some(said) => said.to_owned(),
            None => format!("{} before it was done{}", self.exit(), self.stderr()),
        };
        let kind = match (kind_of_error(&text, self.now), self.reason) {
            (OutcomeKind::Failed, ExitReason::Timeout) => OutcomeKind::TimedOut,
            (kind, _) => kind,
        };
        (kind, text)
    }

    fn exit(&self) -> String {
        match self.code {
            Some(code) => format!("the CLI ended with exit code {code}"),
            None => "the CLI vanished".to_owned(),
        }
    }

    /// The last of stderr, ready to be put behind a sentence.
    fn stderr(&self) -> String {
        let lines: Vec<&str> = self.stderr_tail.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(5)..].join("\n");
        if last.is_empty() { String::new() } else { format!(": {last}") }
    }
}

/// Hands a line on if it is a JSON object, or each object of an array; anything else a CLI prints is skipped.
fn json(line: &[u8], mut event: impl FnMut(&serde_json::Value)) {
    match serde_json::from_slice(line) {
        Ok(serde_json::Value::Array(events)) => events.iter().for_each(event),
        Ok(value @ serde_json::Value::Object(_)) => event(&value),
        _ => {}
    }
}

/// The beginning of a text, cut at a character.
fn head(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

/// The string at a path of keys.
fn text_at(value: &serde_json::Value, pointer: &str) -> Option<String> {
    value.pointer(pointer)?.as_str().map(str::to_owned).map(head)
}

#[cfg(test)]
mod tests;

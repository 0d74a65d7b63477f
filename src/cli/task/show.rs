//! `agent-fleet task show`: one task, for people.

use serde_json::Value;

use crate::cli::terminal::{cell, one_line, table};

/// The fields on top, in order; what is null is left out.
const FIELDS: [&str; 27] = [
    "task_id",
    "key",
    "title",
    "status",
    "waiting_reason",
    "execution_mode",
    "priority",
    "capabilities",
    "labels",
    "source",
    "issue_url",
    "branch_name",
    "pr_url",
    "pinned_to",
    "assigned_agent_id",
    "assigned_host",
    "attempt",
    "retry_count",
    "max_retries",
    "lease",
    "run_at",
    "created_at",
    "started_at",
    "deadline_at",
    "completed_at",
    "error",
    "summary",
];

/// The task with its events and receipts.
pub(super) fn text(task: &Value) -> String {
    let mut text = String::new();
    for field in FIELDS {
        let value = cell(task, field);
        if !value.is_empty() {
            let value = if field == "summary" { indent(&value) } else { one_line(&value) };
            text.push_str(&format!("{field:<18} {value}\n"));
        }
    }
    let body = cell(task, "body");
    if !body.is_empty() {
        text.push_str(&format!("\n{}\n", body.trim_end()));
    }
    let rows = |field: &str| task[field].as_array().cloned().unwrap_or_default();
    let receipts: Vec<_> = rows("receipts")
        .iter()
        .map(|r| {
            ["received_at", "agent_id", "lease", "status", "error", "summary"].map(|f| cell(r, f))
        })
        .collect();
    if !receipts.is_empty() {
        let headings = ["RECEIPT", "FROM", "LEASE", "STATUS", "ERROR", "SUMMARY"];
        text.push_str(&format!("\n{}", table(headings, &receipts)));
    }
    let events: Vec<_> = rows("events")
        .iter()
        .map(|e| {
            let detail = if e["detail"] == serde_json::json!({}) {
                String::new()
            } else {
                cell(e, "detail")
            };
            [cell(e, "at"), cell(e, "type"), cell(e, "actor"), cell(e, "attempt"), detail]
        })
        .collect();
    if !events.is_empty() {
        let headings = ["EVENT", "TYPE", "BY", "ATTEMPT", "DETAIL"];
        text.push_str(&format!("\n{}", table(headings, &events)));
    }
    text
}

/// Further lines of a value stand under its first.
fn indent(value: &str) -> String {
    value.trim_end().replace('\n', &format!("\n{:19}", ""))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn shows_what_is_there() {
        let task = json!({
            "key": "org/repo#42", "title": "one\ntwo", "error": null, "summary": "a\nb",
            "events": [{"at": "2026-11-24T00:00:00Z", "type": "created", "actor": "forgejo:x", "attempt": 0,
                "detail": {}}],
            "receipts": [],
        });
        let text = super::text(&task);
        assert!(text.contains("title              one two\n"), "{text}");
        assert!(text.contains("summary            a\n                   b\n"), "{text}");
        assert!(text.contains("EVENT") && text.contains("forgejo:x"), "{text}");
        assert!(
            !text.contains("error") && !text.contains("RECEIPT") && !text.contains("{}"),
            "{text}"
        );
    }
}

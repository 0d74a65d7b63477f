//! What a CLI is given to read: goal, context, the issue's text, constraints, notes.

use std::fmt::Write;

use crate::model::Task;

/// All but title, key and body, as a rule.
const FRAME: usize = 512;

/// Writes the prompt. Title, body and notes stand in it byte for byte: they are data, and a prompt never comes near a
/// shell.
pub fn prompt(task: &Task) -> String {
    let body = task.body.as_deref().unwrap_or_default();
    let mut text = String::with_capacity(FRAME + task.title.len() + task.key.len() + body.len());
    for part in ["# Goal\n\n", &task.title, "\n\n# Context\n\n- Task: ", &task.key, "\n"] {
        text.push_str(part);
    }
    let mut fact = |name: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            for part in ["- ", name, ": ", value, "\n"] {
                text.push_str(part);
            }
        }
    };
    let repo = task.repo.as_ref();
    fact("Repository", repo.map(|repo| repo.full_name.as_str()));
    fact("Clone address", repo.and_then(|repo| repo.clone_url.as_deref()));
    fact("Default branch", repo.and_then(|repo| repo.default_branch.as_deref()));
    fact("Issue", task.issue_url.as_deref());
    fact("Labels", Some(&task.labels.join(", ")));
    fact("Attempt", Some(&task.attempt.to_string()));
    if !body.is_empty() {
        text.push_str("\n# Description\n\n");
        text.push_str(body);
        if !body.ends_with('\n') {
            text.push('\n');
        }
    }
    text.push_str("\n# Constraints\n\n- Work only in the current folder.\n");
    if task.attempt > 1 {
        text.push_str(
            "- The folder may hold the work of earlier attempts: look, and build on it.\n",
        );
    }
    if repo.is_some() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "- Work on the branch `{}`.", task.branch_name);
        let closes = match &task.issue_url {
            Some(url) => format!(" whose description names the issue (`Closes {url}`)"),
            None => String::new(),
        };
        let _ = writeln!(
            text,
            "- When done, push that branch and open a pull request{closes}; give its address in your last message."
        );
    }
    text.push_str(
        "- Nobody can answer questions. Decide, and say in your last message what you decided.\n",
    );
    if !task.notes.is_empty() {
        text.push_str("\n# Notes\n");
        for note in &task.notes {
            let _ = write!(text, "\n## From {}, {}\n\n{}\n", note.from, note.at, note.text);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Note, Repo};

    /// One that has nothing but a title.
    fn task(title: &str) -> Task {
        serde_json::from_value(serde_json::json!({
            "task_id": uuid::Uuid::nil(), "key": "k", "source": "api", "title": title, "labels": [], "capabilities": [],
            "priority": "normal", "status": "assigned", "lease": 1, "attempt": 1, "max_retries": 0, "retry_count": 0,
            "review_count": 0, "timeout_secs": 1, "branch_name": "b", "notes": [], "created_at": jiff::Timestamp::UNIX_EPOCH,
        }))
        .unwrap()
    }

    #[test]
    fn texts_stand_in_it_byte_for_byte() {
        let body = "Run `rm -rf $(pwd)`; \"quotes\" 'n\\n' \r\n😀\ttab\n\n";
        let task = Task {
            key: "org/repo#42".into(),
            body: Some(body.into()),
            labels: vec!["agent:code".into(), "bug".into()],
            repo: Some("org/repo".parse::<Repo>().unwrap()),
            issue_url: Some("https://forge/org/repo/issues/42".into()),
            branch_name: "task/x".into(),
            attempt: 2,
            notes: vec![Note {
                at: jiff::Timestamp::UNIX_EPOCH,
                from: "ann".into(),
                text: "please `retry`".into(),
            }],
            ..task("Fix $HOME")
        };
        let text = prompt(&task);
        let part =
            |text: &str, what: &str| assert!(text.contains(what), "{what} is not in\n{text}");
        for what in [
            "# Goal\n\nFix $HOME\n",
            body,
            "`task/x`",
            "- Labels: agent:code, bug",
            "Closes https://forge/org/repo/issues/42",
            "please `retry`",
            "- Attempt: 2",
        ] {
            part(&text, what);
        }
    }

    #[test]
    fn without_a_repository_no_pull_request() {
        let text = prompt(&task("Think"));
        assert!(!text.contains("pull request") && !text.contains("# Description"));
    }
}

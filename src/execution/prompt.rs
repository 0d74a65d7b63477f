//! What a CLI is given to read: goal, context, the issue's text, constraints, notes.

use std::fmt::Write;

use crate::model::TaskSpec;

/// What a prompt is made of, besides the spec.
#[derive(Debug, Clone, Copy)]
pub struct PromptParts<'a> {
    /// `org/repo#42`.
    pub key: &'a str,
    /// What is to be done.
    pub spec: &'a TaskSpec,
    /// The branch to work on.
    pub branch_name: &'a str,
    /// Counted from 1.
    pub attempt: i32,
}

/// Writes the prompt. Title, body and notes stand in it byte for byte: they are data, and a prompt never comes near a
/// shell.
pub fn prompt(parts: PromptParts<'_>) -> String {
    let PromptParts { key, spec, branch_name, attempt } = parts;
    let mut text = format!("# Goal\n\n{}\n\n# Context\n\n- Task: {key}\n", spec.title);
    let mut fact = |name: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "- {name}: {value}");
        }
    };
    let repo = spec.repo.as_ref();
    fact("Repository", repo.map(|repo| repo.full_name.as_str()));
    fact("Clone address", repo.and_then(|repo| repo.clone_url.as_deref()));
    fact("Default branch", repo.and_then(|repo| repo.default_branch.as_deref()));
    fact("Issue", spec.issue_url.as_deref());
    fact("Labels", Some(&spec.labels.join(", ")));
    fact("Attempt", Some(&attempt.to_string()));
    if !spec.body.is_empty() {
        text.push_str("\n# Description\n\n");
        text.push_str(&spec.body);
        if !spec.body.ends_with('\n') {
            text.push('\n');
        }
    }
    text.push_str("\n# Constraints\n\n- Work only in the current folder.\n");
    if attempt > 1 {
        text.push_str(
            "- The folder may hold the work of earlier attempts: look, and build on it.\n",
        );
    }
    if repo.is_some() {
        let _ = writeln!(text, "- Work on the branch `{branch_name}`.");
        let closes = match &spec.issue_url {
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
    if !spec.notes.is_empty() {
        text.push_str("\n# Notes\n");
        for note in &spec.notes {
            let _ = write!(text, "\n## From {}, {}\n\n{}\n", note.from, note.at, note.text);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Note, Repo};

    #[test]
    fn texts_stand_in_it_byte_for_byte() {
        let body = "Run `rm -rf $(pwd)`; \"quotes\" 'n\\n' \r\n😀\ttab\n\n";
        let spec = TaskSpec {
            title: "Fix $HOME".into(),
            body: body.into(),
            labels: vec!["agent:code".into(), "bug".into()],
            repo: Some("org/repo".parse::<Repo>().unwrap()),
            issue_url: Some("https://forge/org/repo/issues/42".into()),
            notes: vec![Note {
                at: jiff::Timestamp::UNIX_EPOCH,
                from: "ann".into(),
                text: "please `retry`".into(),
            }],
            ..TaskSpec::default()
        };
        let parts =
            PromptParts { key: "org/repo#42", spec: &spec, branch_name: "task/x", attempt: 2 };
        let text = prompt(parts);
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
        let spec = TaskSpec { title: "Think".into(), ..TaskSpec::default() };
        let text = prompt(PromptParts { key: "k", spec: &spec, branch_name: "b", attempt: 1 });
        assert!(!text.contains("pull request") && !text.contains("# Description"));
    }
}

//! The CLIs that need no configuration, and what every run finds in its environment.

use std::collections::BTreeMap;

use crate::{
    config::{Cli, OutputFormat, PromptVia, Secret},
    model::Task,
};

/// The built-in `[cli.<agent_type>]` definitions.
///
/// All take the prompt on stdin, which ends (an open stdin makes them wait for ever), and may change files but ask for
/// nothing. Flags as of November 2026; each CLI's own documentation has them.
pub fn built_in() -> BTreeMap<String, Cli> {
    let cli = |command: &str, output| Cli {
        command: command.split(' ').map(str::to_owned).collect(),
        prompt: PromptVia::Stdin,
        output,
        timeout: None,
        env: BTreeMap::new(),
    };
    let codex = "codex exec --json --skip-git-repo-check --sandbox workspace-write -";
    // stream-json needs --verbose.
    let claude = "claude -p --output-format stream-json --verbose --permission-mode acceptEdits";
    let opencode = "opencode run --format json";
    let gemini = "gemini --output-format stream-json --approval-mode auto_edit";
    BTreeMap::from([
        ("codex-cli".to_owned(), cli(codex, OutputFormat::CodexJson)),
        ("claude-code".to_owned(), cli(claude, OutputFormat::ClaudeJson)),
        ("opencode".to_owned(), cli(opencode, OutputFormat::OpencodeJson)),
        ("gemini-cli".to_owned(), cli(gemini, OutputFormat::GeminiJson)),
    ])
}

/// The environment of a run: the CLI's own, then what says which task it is.
///
/// A value that the task lacks is empty, but for `TRACEPARENT`, which only a task with a trace has. Line breaks,
/// which no variable can carry to a host, become spaces.
pub fn task_environment(cli: &Cli, task: &Task) -> Vec<(String, Secret)> {
    let repo = task.repo.as_ref();
    let clone_url = repo.and_then(|repo| repo.clone_url.clone());
    let facts = [
        ("TASK_ID", task.task_id.to_string()),
        ("TASK_KEY", task.key.clone()),
        ("REPO", repo.map(|repo| repo.full_name.clone()).unwrap_or_default()),
        ("CLONE_URL", clone_url.unwrap_or_default()),
        ("BRANCH", task.branch_name.clone()),
        ("ISSUE_URL", task.issue_url.clone().unwrap_or_default()),
        ("ATTEMPT", task.attempt.to_string()),
    ];
    let own = cli.env.iter().map(|(name, value)| (name.clone(), value.clone()));
    let facts = facts.into_iter().map(|(name, value)| {
        let value = value.replace(['\n', '\r', '\0'], " ");
        (format!("AGENT_FLEET_{name}"), Secret::new(value))
    });
    let trace =
        task.traceparent.map(|trace| ("TRACEPARENT".to_owned(), Secret::new(trace.to_string())));
    own.chain(facts).chain(trace).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_commands_are_vectors() {
        let all = built_in();
        assert_eq!(all.len(), 4);
        assert_eq!(all["codex-cli"].command.last().unwrap(), "-");
        assert!(all.values().all(|cli| cli.command.iter().all(|word| !word.is_empty())));
    }
}

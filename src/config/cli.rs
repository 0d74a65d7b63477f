//! `[cli.<agent_type>]`: how a coding agent's command line program is started and read.

use std::{collections::BTreeMap, time::Duration};

use super::{Secret, error::ConfigError, file, host::check_id, sources::nonzero};

/// Where the path of the prompt's file goes in a command.
const PROMPT_FILE: &str = "{prompt_file}";

crate::model::words! {
    /// How the CLI is given its prompt.
    PromptVia {
        /// On stdin.
        Stdin = "stdin",
        /// As a file; `{prompt_file}` in the command is replaced by its path.
        File = "file",
    }
}

crate::model::words! {
    /// What the CLI prints.
    OutputFormat {
        /// `codex exec --json`: JSON lines.
        CodexJson = "codex-json",
        /// `claude -p --output-format stream-json`: JSON lines, or one `json` object.
        ClaudeJson = "claude-json",
        /// `opencode run --format json`.
        OpencodeJson = "opencode-json",
        /// `gemini --output-format stream-json`.
        GeminiJson = "gemini-json",
        /// Anything: the exit code decides, the last lines are the summary.
        Raw = "raw",
    }
}

/// `[cli.<agent_type>]`
#[derive(Debug, Clone)]
pub struct Cli {
    /// An argument vector, never a shell string.
    pub command: Vec<String>,
    /// `stdin` or `file`.
    pub prompt: PromptVia,
    /// How its output is read.
    pub output: OutputFormat,
    /// Time limit; the task's unless set.
    pub timeout: Option<Duration>,
    /// Environment of the CLI; may hold keys, hence secret.
    pub env: BTreeMap<String, Secret>,
}

/// Adds the file's CLIs to the built-in ones. A field that is not given keeps the built-in value of that name; a new
/// name must give a `command`, and reads its output as `raw` unless it says otherwise.
pub(super) fn check(
    given: BTreeMap<String, file::Cli>,
    mut known: BTreeMap<String, Cli>,
) -> Result<BTreeMap<String, Cli>, ConfigError> {
    for (name, given) in given {
        check_id("[cli.<agent_type>]", &name)?;
        let base = known.remove(&name).unwrap_or_else(|| Cli {
            command: Vec::new(),
            prompt: PromptVia::Stdin,
            output: OutputFormat::Raw,
            timeout: None,
            env: BTreeMap::new(),
        });
        let cli = Cli {
            command: given
                .command
                .map_or(base.command, |words| words.into_iter().map(|word| word.0).collect()),
            prompt: given.prompt.map_or(base.prompt, |text| text.0),
            output: given.output.map_or(base.output, |text| text.0),
            timeout: given.timeout.map(|text| text.0).or(base.timeout),
            env: given.env.map_or(base.env, |env| env.into_iter().map(|(k, v)| (k, v.0)).collect()),
        };
        check_one(&name, &cli)?;
        known.insert(name, cli);
    }
    Ok(known)
}

fn check_one(name: &str, cli: &Cli) -> Result<(), ConfigError> {
    let key = |field: &str| format!("cli.{name}.{field}");
    if cli.command.first().is_none_or(|program| program.trim().is_empty()) {
        let problem = "is empty; write the program and its arguments as a list of texts";
        return Err(ConfigError::invalid(key("command"), problem));
    }
    for word in &cli.command {
        check_argument(&key("command"), word)?;
    }
    let takes_file = cli.command.iter().any(|word| word.contains(PROMPT_FILE));
    match cli.prompt {
        PromptVia::File if !takes_file => {
            let problem = format!("must hold {PROMPT_FILE}, because prompt = \"file\"");
            return Err(ConfigError::invalid(key("command"), problem));
        }
        PromptVia::Stdin if takes_file => {
            let problem = format!("must be \"file\", because command holds {PROMPT_FILE}");
            return Err(ConfigError::invalid(key("prompt"), problem));
        }
        PromptVia::File | PromptVia::Stdin => {}
    }
    if let Some(timeout) = cli.timeout {
        nonzero(key("timeout"), timeout)?;
    }
    for (variable, value) in &cli.env {
        let fits = variable
            .bytes()
            .enumerate()
            .all(|(i, b)| b == b'_' || b.is_ascii_alphabetic() || (i > 0 && b.is_ascii_digit()));
        if variable.is_empty() || !fits {
            let problem = format!(
                "holds the name `{}`; expected letters, digits and `_`, no digit first",
                variable.escape_debug()
            );
            return Err(ConfigError::invalid(key("env"), problem));
        }
        check_argument(&key(&format!("env.{variable}")), value.expose())?;
    }
    Ok(())
}

/// Refuses what cannot be handed over whole to a shell on a host, one line a word.
pub(super) fn check_argument(key: &str, text: &str) -> Result<(), ConfigError> {
    if text.contains(['\0', '\n', '\r']) {
        let problem = "holds a NUL or a line break; remove it";
        return Err(ConfigError::invalid(key, problem));
    }
    Ok(())
}

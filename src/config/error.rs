//! Why a configuration is refused: each error names the key or variable, what is wrong, and how to mend it.
//!
//! Values are shown only where they cannot be secret; a token, a password or a line of the file never is.

use std::path::PathBuf;

/// Why [`super::Config::load`] or [`super::Config::check_serve`] refuses.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file was named, or stands in the working directory, and cannot be read.
    #[error("cannot read the configuration file {path}; name another with --config or AGENT_FLEET_CONFIG", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path}, line {line}: not valid TOML: {problem}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser said, without the line itself.
        problem: String,
    },
    /// A key of the file is unknown, or holds the wrong kind of value.
    #[error("{path}, line {line}: {key} {problem}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// With its tables: `lease.heartbeat_interval`, `hosts[0].ssh_port`.
        key: String,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// An environment variable or a flag holds the wrong kind of value.
    #[error("{name} (sets {key}) {problem}")]
    Override {
        /// The variable, or the flag with its dashes.
        name: &'static str,
        /// The key that it sets.
        key: &'static str,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// A value is of the right kind, and still makes no sense.
    #[error("{key} {problem}")]
    Invalid {
        /// The key, and the variable that may set it.
        key: String,
        /// What is wrong and how to mend it.
        problem: String,
    },
}

impl ConfigError {
    /// `key` is what to name, `problem` continues the sentence.
    pub(super) fn invalid(key: impl ToString, problem: impl Into<String>) -> Self {
        Self::Invalid { key: key.to_string(), problem: problem.into() }
    }
}

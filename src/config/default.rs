//! What `agent-fleet config default` prints.

/// Every key with its default, as a file that can be used as it is. Keys without a fixed default are commented out with
/// `#key`; prose is commented with `# `.
pub const DEFAULT_FILE: &str = include_str!("default.toml");

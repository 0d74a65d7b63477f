//! Log lines: for people or as JSON, to stderr, so that stdout stays free for what a command prints.

use std::{error::Error, io::IsTerminal, panic};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{Log, LogFormat};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log.level` or `RUST_LOG` is not a filter.
    #[error(
        "log.level (RUST_LOG) is `{level}`; expected such as \"info\" or \"info,agent_fleet=debug\""
    )]
    Filter {
        /// What was given.
        level: String,
        /// What the parser said.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// A process has one logger.
    #[error("logging is already set up in this process")]
    AlreadySet(#[source] tracing_subscriber::util::TryInitError),
}

/// At `debug` this crate logs the parameters of each statement: issues, prompts, digests of tokens. At `info`, notices.
const NO_PARAMETERS: &str = "tokio_postgres=warn";

/// Starts logging for the whole process, once, and logs panics from then on.
pub fn init(log: &Log) -> Result<(), TelemetryError> {
    // warp calls every client that hangs up an error; long polls do that all day. Naming warp in the level overrides this.
    let level = if log.level.contains("warp") {
        log.level.clone()
    } else {
        format!("{},warp=off", log.level)
    };
    let filter = EnvFilter::builder()
        .parse(level)
        .map_err(|source| TelemetryError::Filter { level: log.level.clone(), source })?
        .add_directive(NO_PARAMETERS.parse().expect("it is a directive"));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    match log.format {
        LogFormat::Text => {
            registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init()
        }
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    }
    .map_err(TelemetryError::AlreadySet)?;
    log_panics();
    Ok(())
}

/// A panic also becomes a log line, so that it is found where all else is; then what happened before still happens.
fn log_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        let message = info.payload_as_str().unwrap_or("a value that is not text");
        let thread = std::thread::current();
        tracing::error!(at, message, thread = thread.name().unwrap_or("unnamed"), "panic");
        before(info);
    }));
}

/// An error with its causes, `: ` between them. Libraries (tokio-postgres since 0.7.14, ours too) leave the cause out of
/// their own text, so log lines print this.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Inner);
    #[derive(Debug, thiserror::Error)]
    #[error("inner")]
    struct Inner(#[source] std::fmt::Error);

    #[test]
    fn the_chain_is_joined() {
        let error = Outer(Inner(std::fmt::Error));
        assert_eq!(error_chain(&error), format!("outer: inner: {}", std::fmt::Error));
    }

    #[test]
    fn a_panic_is_logged() {
        let (reader, writer) = std::io::pipe().unwrap();
        let lines = tracing_subscriber::fmt().json().with_writer(std::sync::Mutex::new(writer));
        tracing::subscriber::with_default(lines.finish(), || {
            log_panics();
            panic::catch_unwind(|| panic!("the lamp fell")).unwrap_err();
        });
        // The writer is gone with the subscriber, so this ends.
        let text = std::io::read_to_string(reader).unwrap();
        assert!(text.contains("the lamp fell") && text.contains("telemetry.rs"), "{text}");
    }

    #[test]
    fn a_bad_filter_is_named() {
        let log = Log { format: LogFormat::Json, level: "agent_fleet=loud".to_owned() };
        let error = init(&log).unwrap_err();
        assert!(matches!(error, TelemetryError::Filter { .. }));
        assert!(error_chain(&error).contains("agent_fleet=loud"), "{error}");
    }
}

//! What can go wrong with the database, told apart by SQLSTATE and never by text.

use std::time::Duration;

use tokio_postgres::error::SqlState;

/// A failed act on the database. The cause is in `source`.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address of the database cannot be used.
    #[error("the database address (database.url) cannot be used: {reason}")]
    Address {
        /// What is wrong with it, without the address: it may hold a password.
        reason: String,
    },
    /// No connection could be had.
    #[error("the database cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// As many searches are under way as may be.
    #[error("as many searches are under way as may be")]
    Busy,
    /// A statement failed.
    #[error("statement `{statement}` failed")]
    Statement {
        /// Its file in `sql/`, without the ending.
        statement: &'static str,
        /// What PostgreSQL said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A session is not set up as it must be.
    #[error(
        "the database session has {setting} = {actual}, not {wanted}: a pooler seems to drop connection options; set it for the role with `alter role … set {setting} = '{wanted}'`"
    )]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// What it is.
        actual: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// The schema is not what this program needs.
    #[error("{0}")]
    Schema(String),
    /// The server lacks what is used.
    #[error("PostgreSQL {version} is too old: 14 or newer is needed")]
    TooOld {
        /// What it says that it is.
        version: String,
    },
    /// A migration failed.
    #[error("the migrations could not be applied")]
    Migration(#[source] refinery::Error),
    /// A stored value is not one that this program knows: written by a newer one, or by hand.
    #[error("the database holds {what}, which this version does not know")]
    Unknown {
        /// Column and value.
        what: String,
    },
}

impl StoreError {
    /// The server said nothing for so long.
    pub(super) fn silent(patience: Duration) -> Self {
        Self::Unreachable(format!("it did not answer within {} s", patience.as_secs_f64()).into())
    }

    fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Statement { source, .. } => source.code(),
            _ => None,
        }
    }

    /// True when the same act may succeed if it is simply done again: serialization failure, deadlock, lost connection,
    /// a server that restarts or has just become a standby.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Statement { source, .. } => source.code().map_or_else(
                || source.is_closed() || std::error::Error::source(source).is_some(),
                |code| {
                    matches!(
                        *code,
                        SqlState::T_R_SERIALIZATION_FAILURE
                            | SqlState::T_R_DEADLOCK_DETECTED
                            | SqlState::ADMIN_SHUTDOWN
                            | SqlState::CRASH_SHUTDOWN
                            | SqlState::CANNOT_CONNECT_NOW
                            | SqlState::IDLE_SESSION_TIMEOUT
                            | SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
                            | SqlState::READ_ONLY_SQL_TRANSACTION
                    ) || code.code().starts_with("08")
                },
            ),
            _ => false,
        }
    }

    /// True when the server answered and said no: wrong account, password or database. Waiting does not help.
    pub fn is_refusal(&self) -> bool {
        self.said().is_some_and(|code| {
            matches!(
                *code,
                SqlState::INVALID_PASSWORD
                    | SqlState::INVALID_AUTHORIZATION_SPECIFICATION
                    | SqlState::INVALID_CATALOG_NAME
            )
        })
    }

    /// True when the server does not know something that it was told, as a setting of the session.
    pub(super) fn is_unknown_to_it(&self) -> bool {
        self.said() == Some(&SqlState::UNDEFINED_OBJECT)
    }

    /// What the server said, wherever in the chain of causes.
    fn said(&self) -> Option<&SqlState> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if let Some(code) = error.downcast_ref::<tokio_postgres::Error>().and_then(|e| e.code())
            {
                return Some(code);
            }
            cause = error.source();
        }
        None
    }

    /// True when the database is away, overloaded or read-only: the caller should come back later.
    pub fn is_unavailable(&self) -> bool {
        self.is_retryable()
            || matches!(self, Self::Busy)
            || self.code().is_some_and(|code| {
                matches!(
                    *code,
                    SqlState::LOCK_NOT_AVAILABLE | SqlState::QUERY_CANCELED | SqlState::IO_ERROR // A full disk, no memory, too many connections.
                ) || code.code().starts_with("53")
            })
    }

    /// True when somebody held a lock on something that this needed, for as long as it waits for locks.
    pub fn is_locked_out(&self) -> bool {
        self.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }

    /// True for the violation of this unique constraint.
    pub(super) fn is_unique_violation(&self, constraint: &str) -> bool {
        match self {
            Self::Statement { source, .. } => source.as_db_error().is_some_and(|e| {
                *e.code() == SqlState::UNIQUE_VIOLATION && e.constraint() == Some(constraint)
            }),
            _ => false,
        }
    }
}

impl From<deadpool_postgres::PoolError> for StoreError {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        Self::Unreachable(Box::new(error))
    }
}

/// Does an act again, up to three times in all, while it fails in a way that doing it again may mend.
macro_rules! retry {
    ($act:expr) => {{
        let mut tries = 1;
        loop {
            match $act {
                Err(error) if tries < 3 && $crate::store::StoreError::is_retryable(&error) => {
                    tracing::debug!(
                        error = %$crate::telemetry::error_chain(&error),
                        tries,
                        "database act is done again"
                    );
                    tokio::time::sleep(std::time::Duration::from_millis(5 * tries)).await;
                    tries += 1;
                }
                result => break result,
            }
        }
    }};
}
pub(super) use retry;

//! Executors that fail or hang when told to.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use agent_fleet::{
    config,
    execution::{
        ConnectFailure, ExecError, Executor, InvalidTarget, LocalExecutor, Output, Script,
    },
};
use futures_util::future::BoxFuture;

/// What all executors of a test share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    down: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
}

impl Faults {
    /// From now on no connection can be made; or again.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// How many scripts were refused.
    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    /// Makes executors that do as told.
    pub(crate) fn make(
        &self,
    ) -> impl Fn(&config::Host, &Path) -> Result<Arc<dyn Executor>, InvalidTarget> + Send + Sync + use<>
    {
        let faults = self.clone();
        move |_, _| {
            Ok(Arc::new(Faulty { faults: faults.clone(), inner: LocalExecutor::new() })
                as Arc<dyn Executor>)
        }
    }
}

#[derive(Debug)]
struct Faulty {
    faults: Faults,
    inner: LocalExecutor,
}

impl Executor for Faulty {
    fn exec(&self, script: Script) -> BoxFuture<'_, Result<Output, ExecError>> {
        if self.faults.down.load(Ordering::SeqCst) {
            self.faults.refused.fetch_add(1, Ordering::SeqCst);
            return Box::pin(async {
                Err(ExecError::Connect {
                    target: "injected".into(),
                    reason: ConnectFailure::Unreachable,
                    detail: String::new(),
                })
            });
        }
        self.inner.exec(script)
    }

    fn reconnect(&self) -> BoxFuture<'_, ()> {
        self.inner.reconnect()
    }
}

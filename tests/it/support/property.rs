//! Properties that are checked against a real database, on a fixed number of random cases.

use proptest::{
    strategy::Strategy,
    test_runner::{Config, FileFailurePersistence, TestRunner},
};

use super::db::Db;

/// Checks a property, given as a test that panics, on so many cases and one database. A case that fails is shrunk, and
/// its seed is kept in the file `regressions` (from the package's root) and tried first from then on.
pub(crate) fn check<S: Strategy>(
    regressions: &'static str,
    cases: u32,
    strategy: &S,
    test: impl AsyncFn(&Db, S::Value),
) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let db = runtime.block_on(Db::new());
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(regressions))),
        max_shrink_iters: 50,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(strategy, |value| {
            runtime.block_on(test(&db, value));
            Ok(())
        })
        .unwrap();
}

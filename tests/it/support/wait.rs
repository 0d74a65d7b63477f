//! Level-triggered waits, instead of sleeps.

use std::time::Duration;

/// Asks again and again until there is an answer. Panics after half a minute.
pub(crate) async fn eventually<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    in_time(ask).await.unwrap_or_else(|| panic!("waited 30 s in vain until {what}"))
}

/// The same without the panic.
pub(crate) async fn in_time<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asking).await.ok()
}

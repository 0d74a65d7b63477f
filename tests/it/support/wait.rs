//! Level-triggered waits, instead of sleeps.

use std::time::Duration;

/// Asks again and again until there is an answer. Panics after half a minute.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(Duration::from_secs(30), asking).await {
        Ok(answer) => answer,
        Err(_) => panic!("waited 30 s in vain until {what}"),
    }
}

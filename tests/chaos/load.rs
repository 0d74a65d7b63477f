//! Creates tasks at a steady rate, and remembers each that was acknowledged.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::stage::ADMIN;

/// How long runs are, in milliseconds.
const LENGTH: std::ops::Range<u64> = 100..5000;
/// Between two lines of a CLI, in milliseconds.
const LINE_EVERY: u64 = 500;

/// A task that the fleet has acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Acknowledged {
    pub(crate) task_id: Uuid,
    /// Of the run, in milliseconds.
    pub(crate) length: u64,
    pub(crate) line_every: u64,
}

/// Tasks on their way.
pub(crate) struct Load {
    stop: CancellationToken,
    made: Arc<Mutex<Vec<Acknowledged>>>,
    running: JoinHandle<()>,
}

impl Load {
    /// So many tasks a second, until stopped.
    pub(crate) fn start(url: String, rate: f64, seed: u64) -> Self {
        let (stop, made) = (CancellationToken::new(), Arc::default());
        let running = tokio::spawn(create(url, rate, seed, stop.clone(), Arc::clone(&made)));
        Self { stop, made, running }
    }

    /// Stops, waits until each creation that was sent is acknowledged, and tells which were.
    pub(crate) async fn stop(self) -> Vec<Acknowledged> {
        self.stop.cancel();
        self.running.await.unwrap();
        std::mem::take(&mut self.made.lock().unwrap())
    }
}

async fn create(
    url: String,
    rate: f64,
    seed: u64,
    stop: CancellationToken,
    made: Arc<Mutex<Vec<Acknowledged>>>,
) {
    let mut random = StdRng::seed_from_u64(seed);
    let http = client();
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut sending = JoinSet::new();
    for number in 0.. {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        // Most for agents, some for hosts, some for whichever takes them first.
        let label = match random.random_range(0..100) {
            0..6 => "agent:host",
            6..15 => "agent:any",
            _ => "agent:pull",
        };
        let length = random.random_range(LENGTH);
        let (http, url, made) = (http.clone(), url.clone(), Arc::clone(&made));
        while sending.try_join_next().is_some() {}
        sending.spawn(async move {
            let key = format!("chaos-{number}");
            let task = create_one(&http, &url, &key, label, length, LINE_EVERY).await;
            made.lock().unwrap().push(task);
        });
    }
    sending.join_all().await;
}

pub(crate) fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap()
}

/// Creates a task, under its key, again and again until that is acknowledged.
pub(crate) async fn create_one(
    http: &reqwest::Client,
    url: &str,
    key: &str,
    label: &str,
    length: u64,
    line_every: u64,
) -> Acknowledged {
    let body =
        json!({"title": format!("run {length} {line_every}"), "key": key, "labels": [label]});
    loop {
        let request = http.post(format!("{url}/api/v1/tasks")).bearer_auth(ADMIN).json(&body);
        if let Ok(reply) = request.send().await {
            let status = reply.status();
            let task: Value = reply.json().await.unwrap_or_default();
            if let Some(id) = task["task_id"].as_str().filter(|_| status.is_success()) {
                return Acknowledged { task_id: id.parse().unwrap(), length, line_every };
            }
            assert!(
                status.is_success() || status.is_server_error() || status.as_u16() == 429,
                "{key} was refused: {status} {task}"
            );
        }
        tokio::time::sleep(Duration::from_millis(rand::random_range(50..250))).await;
    }
}

//! One pull agent with many slots, as a process of its own. It talks HTTP as `docs/skill/SKILL.md` teaches, repeats what
//! got no answer, and writes down what it starts and what was accepted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{ledger::Book, load::client, options::WorkerOptions};

/// How long a dequeue waits.
const WAIT_SECS: u64 = 10;

/// A claim at work.
#[derive(Debug)]
struct Held {
    task_id: Uuid,
    lease: i64,
    /// The coordinator says that it is not ours any more.
    gone: CancellationToken,
}

/// What all slots share.
struct Agent {
    options: WorkerOptions,
    http: reqwest::Client,
    book: Book,
    /// By the number of the claim here. The last one of a task is the one that counts.
    held: Mutex<(u64, BTreeMap<u64, Held>)>,
    /// Counts registrations; the token of the present one.
    session: tokio::sync::RwLock<(u64, String)>,
}

/// Why a call did not do what it should.
enum Failed {
    /// Nobody answered, or the database is away: the same again.
    Again,
    /// This session has ended: register.
    Session,
    /// The coordinator refuses.
    Refused(StatusCode, Value),
}

/// Works until killed.
pub(crate) async fn run(options: WorkerOptions) -> ExitCode {
    agent_fleet::tls::install_provider();
    let book = Book::open(&options.dir.join(&options.agent_id));
    let agent = Arc::new(Agent {
        http: client(),
        book,
        held: Mutex::default(),
        session: tokio::sync::RwLock::new((0, String::new())),
        options,
    });
    agent.register(0).await;
    for _ in 0..agent.options.slots {
        let agent = Arc::clone(&agent);
        tokio::spawn(async move { agent.slot().await });
    }
    agent.heartbeats().await;
    ExitCode::FAILURE
}

impl Agent {
    fn token_file(&self) -> PathBuf {
        self.options.dir.join(format!("{}.token", self.options.agent_id))
    }

    /// Registers, unless somebody else has since `generation`. Keeps what is at work.
    async fn register(&self, generation: u64) {
        let mut session = self.session.write().await;
        while session.0 == generation {
            let resume = self.at_work();
            let body = json!({
                "agent_id": self.options.agent_id, "agent_type": "worker", "hostname": "chaos",
                "capabilities": ["agent:pull", "agent:any"], "max_concurrency": self.options.slots, "resume": resume,
            });
            // Its own token, once it has one.
            let enroll = std::env::var("AGENT_FLEET_TOKEN").unwrap_or_default();
            let token = fs::read_to_string(self.token_file()).unwrap_or(enroll);
            match self.send("agents/register", &token, &body).await {
                Ok(Some(reply)) => {
                    let token = reply["registry_token"].as_str().unwrap().to_owned();
                    let unfinished = self.token_file().with_extension("new");
                    fs::write(&unfinished, &token).unwrap();
                    fs::rename(&unfinished, self.token_file()).unwrap();
                    self.keep(&reply);
                    *session = (generation + 1, token);
                }
                Ok(None) | Err(Failed::Again | Failed::Session) => {}
                Err(Failed::Refused(status, reply)) => {
                    self.book.write(&format!("odd register {status} {reply}"));
                }
            }
            pause().await;
        }
    }

    fn at_work(&self) -> BTreeSet<Uuid> {
        self.held.lock().unwrap().1.values().map(|held| held.task_id).collect()
    }

    /// What a registration says about the tasks at work.
    fn keep(&self, reply: &Value) {
        for task in reply["resumed"].as_array().into_iter().flatten() {
            let task_id = id(&task["task_id"]).unwrap();
            let mut held = self.held.lock().unwrap();
            if let Some(last) = held.1.values_mut().rfind(|held| held.task_id == task_id) {
                last.lease = task["lease"].as_i64().unwrap();
            }
        }
        self.let_go(&reply["lost"]);
    }

    fn let_go(&self, lost: &Value) {
        let lost: Vec<Uuid> = lost.as_array().into_iter().flatten().filter_map(id).collect();
        for held in self.held.lock().unwrap().1.values() {
            if lost.contains(&held.task_id) {
                held.gone.cancel();
            }
        }
    }

    /// One call, as often as it takes, in whichever session.
    async fn call(
        &self,
        path: &str,
        body: impl Fn(&Self) -> Value,
    ) -> Result<Option<Value>, (StatusCode, Value)> {
        loop {
            let (generation, token) = self.session.read().await.clone();
            match self.send(path, &token, &body(self)).await {
                Ok(reply) => return Ok(reply),
                Err(Failed::Refused(status, reply)) => return Err((status, reply)),
                Err(Failed::Session) => self.register(generation).await,
                Err(Failed::Again) => pause().await,
            }
        }
    }

    async fn send(&self, path: &str, token: &str, body: &Value) -> Result<Option<Value>, Failed> {
        let url = format!("{}/api/v1/{path}", self.options.url);
        let request = self.http.post(url).bearer_auth(token).json(body);
        let waits = if path == "tasks/dequeue" { WAIT_SECS } else { 0 };
        let request = request.timeout(Duration::from_secs(waits + 5));
        let reply = request.send().await.map_err(|_| Failed::Again)?;
        let status = reply.status();
        if status == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let bytes = reply.bytes().await.map_err(|_| Failed::Again)?;
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        match status {
            _ if status.is_success() => Ok(Some(body)),
            StatusCode::CONFLICT if body["code"] == "session_ended" => Err(Failed::Session),
            StatusCode::UNAUTHORIZED => Err(Failed::Session),
            _ if status.is_server_error() || status.as_u16() == 429 => Err(Failed::Again),
            _ => Err(Failed::Refused(status, body)),
        }
    }

    async fn heartbeats(&self) {
        loop {
            tokio::time::sleep(crate::stage::AGENT_WINDOW / 3).await;
            let beat = self.call(
                "agents/heartbeat",
                |agent| json!({"agent_id": agent.options.agent_id, "running": agent.at_work()}),
            );
            match beat.await {
                Ok(Some(reply)) => {
                    self.let_go(&reply["lost"]);
                    self.let_go(&reply["cancel"]);
                }
                other => self.book.write(&format!("odd heartbeat {other:?}")),
            }
        }
    }

    async fn slot(&self) {
        let mut request_id = Uuid::now_v7();
        loop {
            let dequeued = self.call("tasks/dequeue", |agent| {
                json!({"agent_id": agent.options.agent_id, "wait_secs": WAIT_SECS, "request_id": request_id})
            });
            match dequeued.await {
                Ok(Some(task)) => self.work(&task).await,
                Ok(None) => {}
                Err((status, reply)) => {
                    self.book.write(&format!("odd dequeue {status} {reply}"));
                    pause().await;
                }
            }
            request_id = Uuid::now_v7();
        }
    }

    /// From the claim to the accepted receipt, or until the coordinator says that it is somebody else's.
    async fn work(&self, task: &Value) {
        let task_id = id(&task["task_id"]).unwrap();
        let (lease, gone) = (task["lease"].as_i64().unwrap(), CancellationToken::new());
        let number = {
            let mut held = self.held.lock().unwrap();
            for earlier in held.1.values().filter(|held| held.task_id == task_id) {
                earlier.gone.cancel();
            }
            held.0 += 1;
            let number = held.0;
            held.1.insert(number, Held { task_id, lease, gone: gone.clone() });
            number
        };
        let (attempt, pid) = (&task["attempt"], std::process::id());
        self.book.write(&format!("start {task_id} {attempt} {lease} {pid}"));
        tokio::select! {
            () = gone.cancelled() => {}
            () = self.work_on(number, task_id, task) => {}
        }
        self.held.lock().unwrap().1.remove(&number);
    }

    async fn work_on(&self, number: u64, task_id: Uuid, task: &Value) {
        // A registration that resumes may have brought another lease.
        let lease = || self.held.lock().unwrap().1[&number].lease;
        let with = |agent: &Self, mut body: Value| {
            body["agent_id"] = json!(agent.options.agent_id);
            body["lease"] = json!(lease());
            body
        };
        let running = |agent: &Self| with(agent, json!({"status": "running"}));
        match self.call(&format!("tasks/{task_id}/status"), running).await {
            Ok(_) => {}
            Err(refused) => return self.refused("status", task_id, &refused),
        }
        let title = task["title"].as_str().unwrap();
        let length = title.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap();
        tokio::time::sleep(Duration::from_millis(length)).await;
        let receipt = |agent: &Self| {
            with(
                agent,
                json!({"status": "completed", "duration_seconds": length / 1000, "summary": "done", "artifacts": []}),
            )
        };
        match self.call(&format!("tasks/{task_id}/complete"), receipt).await {
            Ok(_) => {
                self.book.write(&format!("accepted {task_id} {}", lease()));
            }
            Err(refused) => self.refused("complete", task_id, &refused),
        }
    }

    /// To have lost a lease is what happens here; nothing else is.
    fn refused(&self, what: &str, task_id: Uuid, (status, reply): &(StatusCode, Value)) {
        if reply["code"] != "lease_lost" {
            self.book.write(&format!("odd {what} {task_id} {status} {reply}"));
        }
    }
}

fn id(value: &Value) -> Option<Uuid> {
    value.as_str()?.parse().ok()
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(rand::random_range(50..250))).await;
}

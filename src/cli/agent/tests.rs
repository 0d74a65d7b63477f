//! The whole agent against a coordinator that is played by the test, with real runs.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};

use super::*;
use crate::config::{OutputFormat, PromptVia};

/// One request, to be answered.
struct Call {
    path: String,
    token: String,
    body: Value,
    stream: TcpStream,
}

impl Call {
    async fn read(mut stream: TcpStream) -> Self {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let header = |name: &str| {
            let line = head.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
            line.unwrap_or_default().to_owned()
        };
        let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
        stream.read_exact(&mut body).await.unwrap();
        let path = head.split(' ').nth(1).unwrap().rsplit('/').next().unwrap().to_owned();
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Self { path, token: header("authorization"), body, stream }
    }

    async fn answer(mut self, status: u16, body: Value) {
        let body = body.to_string();
        let reply = format!(
            "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        // The agent may have let go of it.
        let _ = self.stream.write_all(reply.as_bytes()).await;
    }
}

/// What the coordinator is to do.
#[derive(Default)]
struct Plan {
    /// Handed out one after the other.
    tasks: Vec<Value>,
    /// Answers of heartbeats: these tasks are called off.
    cancel: Vec<String>,
    /// Registrations so far.
    sessions: u32,
    /// Ends the session at the next heartbeat.
    end_session: bool,
}

struct Coordinator {
    url: String,
    plan: Arc<Mutex<Plan>>,
    /// Path, token and body of each call that is neither a heartbeat nor a fruitless dequeue.
    calls: mpsc::UnboundedReceiver<(String, String, Value)>,
}

impl Coordinator {
    async fn start(tasks: Vec<Value>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let plan = Arc::new(Mutex::new(Plan { tasks, ..Plan::default() }));
        let (report, calls) = mpsc::unbounded_channel();
        let shared = Arc::clone(&plan);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&shared), report.clone()));
            }
        });
        Self { url, plan, calls }
    }

    /// The next call of this kind; others before it are skipped.
    async fn next(&mut self, path: &str) -> (String, Value) {
        let found = async {
            loop {
                let (found, token, body) = self.calls.recv().await.unwrap();
                if found == path {
                    return (token, body);
                }
            }
        };
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, found).await.unwrap_or_else(|_| panic!("no {path}"))
    }
}

async fn serve(
    stream: TcpStream,
    plan: Arc<Mutex<Plan>>,
    report: mpsc::UnboundedSender<(String, String, Value)>,
) {
    let call = Call::read(stream).await;
    let said = (call.path.clone(), call.token.clone(), call.body.clone());
    let quiet = matches!(call.path.as_str(), "heartbeat" | "dequeue");
    let (status, answer) = match call.path.as_str() {
        "register" => {
            let mut plan = plan.lock().unwrap();
            plan.sessions += 1;
            let resume = call.body["resume"].as_array().unwrap().clone();
            let resumed: Vec<_> =
                resume.iter().map(|id| json!({"task_id": id, "lease": 1})).collect();
            let token = format!("own-{}", plan.sessions);
            let answer =
                json!({"registry_token": token, "heartbeat_interval_secs": 1, "resumed": resumed});
            (200, answer)
        }
        "heartbeat" => {
            let mut plan = plan.lock().unwrap();
            if std::mem::take(&mut plan.end_session) {
                (409, json!({"error": "ended", "code": "session_ended"}))
            } else {
                (200, json!({"cancel": plan.cancel, "lost": []}))
            }
        }
        "dequeue" => {
            let task = plan.lock().unwrap().tasks.pop();
            match task {
                Some(task) => (200, task),
                // As a long poll that finds nothing.
                None => return std::future::pending().await,
            }
        }
        "logs" => {
            let end = call.body["offset"].as_u64().unwrap()
                + call.body["data"].as_str().unwrap().len() as u64;
            (200, json!({"next_offset": end}))
        }
        _ => (200, json!({})),
    };
    call.answer(status, answer).await;
    if !quiet {
        let _ = report.send(said);
    }
}

fn options(url: &str, dir: &std::path::Path, command: &[&str]) -> Options {
    Options {
        client: Client::new(url, Some(crate::config::Secret::new("enroll"))).unwrap(),
        agent_id: AgentId::parse("a-1").unwrap(),
        agent_type: "test".into(),
        hostname: "here".into(),
        capabilities: CapabilitySet::offered(["agent:docs"]).unwrap(),
        max_concurrency: 1,
        work_dir: dir.to_owned(),
        cli: Cli {
            command: command.iter().map(|w| (*w).to_owned()).collect(),
            prompt: PromptVia::Stdin,
            output: OutputFormat::Raw,
            timeout: None,
            env: BTreeMap::new(),
        },
        drain_wait: Duration::from_secs(20),
    }
}

fn start(options: Options) -> (Shutdown, JoinHandle<Result<(), AgentError>>) {
    let shutdown = Shutdown::new();
    let on = shutdown.clone();
    (shutdown, tokio::spawn(async move { run(options, &on).await }))
}

/// Looks until it is so, at most half a minute.
async fn wait_until(holds: impl Fn() -> bool) {
    let looking = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looking).await.unwrap();
}

fn task() -> Value {
    serde_json::to_value(claims::Claim::for_test(1).task).unwrap()
}

#[tokio::test]
async fn a_task_is_run_and_its_receipt_sent() {
    let dir = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(vec![task()]).await;
    let script = r#"read -r line; echo "got $line"; echo "$AGENT_FLEET_TASK_KEY""#;
    let (shutdown, agent) = start(options(&coordinator.url, dir.path(), &["sh", "-c", script]));

    let (token, body) = coordinator.next("register").await;
    assert_eq!((token.as_str(), &body["capabilities"]), ("Bearer enroll", &json!(["agent:docs"])));
    let (token, body) = coordinator.next("status").await;
    assert_eq!(token, "Bearer own-1");
    assert_eq!(body, json!({"agent_id": "a-1", "lease": 1, "status": "running"}));
    let (_, body) = coordinator.next("logs").await;
    assert_eq!((&body["offset"], &body["data"]), (&json!(0), &json!("got do it\norg/repo#1\n")));
    let (_, body) = coordinator.next("complete").await;
    assert_eq!((&body["status"], &body["lease"]), (&json!("completed"), &json!(1)));
    assert!(body["summary"].as_str().unwrap().contains("got do it"), "{body}");
    shutdown.trigger();
    coordinator.next("deregister").await;
    agent.await.unwrap().unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("claims")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_cancelled_run_is_killed_and_nothing_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(vec![task()]).await;
    let script = "echo $$ >pid; echo up; sleep 600";
    let (shutdown, agent) = start(options(&coordinator.url, dir.path(), &["sh", "-c", script]));
    coordinator.next("logs").await;
    let id = task()["task_id"].as_str().unwrap().to_owned();
    let pid = std::fs::read_to_string(dir.path().join("tasks").join(&id).join("pid")).unwrap();
    coordinator.plan.lock().unwrap().cancel.push(id);
    let alive = || std::fs::metadata(format!("/proc/{}", pid.trim())).is_ok();
    let claims = || std::fs::read_dir(dir.path().join("claims")).unwrap().count();
    wait_until(|| !alive() && claims() == 0).await;
    shutdown.trigger();
    let (_, body) = coordinator.next("deregister").await;
    assert_eq!(body["agent_id"], "a-1");
    agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_run_outlives_its_agent_and_its_session() {
    let dir = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(vec![task()]).await;
    let go = dir.path().join("go");
    let script =
        format!("echo up; while [ ! -e '{}' ]; do sleep 0.1; done; echo down", go.display());
    let command = ["sh", "-c", &script];
    let (_, agent) = start(options(&coordinator.url, dir.path(), &command));
    coordinator.next("logs").await;
    coordinator.plan.lock().unwrap().end_session = true;
    let (token, body) = coordinator.next("register").await;
    assert_eq!((token.as_str(), &body["resume"]), ("Bearer own-1", &json!([task()["task_id"]])));

    let saved = || std::fs::read_to_string(dir.path().join("agent-token")).unwrap();
    wait_until(|| saved() == "own-2").await;

    // As after a kill -9.
    agent.abort();
    assert!(agent.await.unwrap_err().is_cancelled());
    let mut again = options(&coordinator.url, dir.path(), &command);
    again.client = Client::new(&coordinator.url, None).unwrap();
    let (shutdown, agent) = start(again);
    let (token, body) = coordinator.next("register").await;
    assert_eq!((token.as_str(), &body["resume"]), ("Bearer own-2", &json!([task()["task_id"]])));
    std::fs::write(&go, "").unwrap();
    let (_, body) = coordinator.next("complete").await;
    assert_eq!(body["status"], "completed");
    assert!(body["summary"].as_str().unwrap().contains("up\ndown"), "{body}");
    shutdown.trigger();
    agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_does_not_end_in_time_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(vec![task()]).await;
    let mut options = options(&coordinator.url, dir.path(), &["sh", "-c", "echo up; sleep 600"]);
    options.drain_wait = Duration::ZERO;
    let (shutdown, agent) = start(options);
    coordinator.next("logs").await;
    shutdown.trigger();
    let (_, body) = coordinator.next("release").await;
    assert_eq!((&body["lease"], &body["reason"]), (&json!(1), &json!("the agent was stopped")));
    coordinator.next("deregister").await;
    agent.await.unwrap().unwrap();
}

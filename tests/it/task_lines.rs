//! One log line for each event of a task, in the process that committed it.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    db::Db,
    eventually,
    forge::{Issue, SECRET, post, sign},
    host::SshHost,
};

/// What a line and a row of `fleet.task_events` have in common.
fn line_fields(line: &Value) -> Value {
    json!([
        line["task.id"],
        line["task.event"],
        line["task.from"],
        line["task.status"],
        line["task.lease"],
        line["actor"]
    ])
}

#[tokio::test]
async fn each_event_has_its_one_line() {
    let host = SshHost::start("cat >/dev/null; echo done").await;
    let db = Db::new().await;
    let toml = format!(
        "[tasks]\nretry_backoff = \"100ms\"\n[forgejo]\nwebhook_secret = \"{SECRET}\"\n[log]\nformat = \"json\"\n"
    );
    let serve = host.serve(&db, "a", &toml).await;
    let http = reqwest::Client::new();
    let must = async |path: &str, body: Value| -> Value {
        let url = format!("{}/api/v1/{path}", serve.url);
        let reply = http.post(url).json(&body).send().await.unwrap();
        let status = reply.status();
        let text = reply.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    };
    let id_of = |task: &Value| task["task_id"].as_str().unwrap().to_owned();
    let until = async |id: &str, status: &str| {
        eventually(&format!("{id} is {status}"), async || {
            let url = format!("{}/api/v1/tasks/{id}", serve.url);
            let task: Value = http.get(url).send().await.ok()?.json().await.ok()?;
            (task["status"] == status).then_some(())
        })
        .await;
    };

    // Pushed to a host.
    let pushed =
        must("tasks", json!({"title": "p", "key": "by-host", "labels": ["agent:code"]})).await;
    until(&id_of(&pushed), "completed").await;
    // Pulled: failed, due again, released, cancelled, retried, pinned, and completed at last.
    let agent =
        json!({"agent_id": "x", "agent_type": "t", "hostname": "h", "capabilities": ["agent:x"]});
    must("agents/register", agent).await;
    let id = id_of(&must("tasks", json!({"title": "q", "labels": ["agent:x"]})).await);
    let dequeue = async || {
        let task = must("tasks/dequeue", json!({"agent_id": "x", "wait_secs": 20})).await;
        assert_eq!(task["task_id"], id.as_str());
        task["lease"].clone()
    };
    let lease = dequeue().await;
    must(
        &format!("tasks/{id}/status"),
        json!({"agent_id": "x", "lease": lease, "status": "running"}),
    )
    .await;
    let failed = json!({"agent_id": "x", "lease": lease, "status": "failed", "summary": "a s3cret of the agent"});
    must(&format!("tasks/{id}/complete"), failed).await;
    let lease = dequeue().await;
    must(&format!("tasks/{id}/release"), json!({"agent_id": "x", "lease": lease})).await;
    must(&format!("tasks/{id}/cancel"), json!({})).await;
    must(&format!("tasks/{id}/retry"), json!({})).await;
    must(&format!("tasks/{id}/assign"), json!({"agent_id": "x"})).await;
    let lease = dequeue().await;
    let done = json!({"agent_id": "x", "lease": lease, "status": "completed", "summary": "ok"});
    must(&format!("tasks/{id}/complete"), done).await;
    // From the forge: opened, renamed, closed, opened again.
    let issue = Issue::new(7).labels(&["agent/none"]);
    for (action, issue) in [
        ("opened", issue.clone()),
        ("edited", issue.clone().title("another").at(1)),
        ("closed", issue.clone().title("another").at(2).closed(None)),
        ("reopened", issue.clone().title("another").at(3).open()),
    ] {
        let delivery = issue.delivery(action);
        let mut headers = delivery.headers();
        headers.push(("x-forgejo-signature", sign(SECRET, &delivery.body)));
        let (status, reply) = post(&serve.url, &headers, delivery.body.clone()).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{reply}");
    }

    let rows = db
        .rows(
            "select jsonb_build_array(task_id, type, from_status, to_status, lease, actor) as fields, attempt
               from fleet.task_events order by event_id",
            &[],
        )
        .await;
    let mut events: Vec<(String, i32)> = rows
        .iter()
        .map(|row| (row.get::<_, Value>("fields").to_string(), row.get("attempt")))
        .collect();
    assert!(events.len() > 18, "{events:?}");
    let text = eventually("the last line is there", async || {
        let text = serve.program.stderr();
        (text.matches("agent_fleet::task\"").count() >= events.len()).then_some(text)
    })
    .await;
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["target"] == "agent_fleet::task")
        .collect();
    for line in &lines {
        let fields = line_fields(line).to_string();
        let attempt = &line["task.attempt"];
        let place = events.iter().position(|(event, number)| {
            *event == fields && (attempt.is_null() || *attempt == *number)
        });
        let Some(place) = place else { panic!("no event, or a second line: {line}") };
        events.remove(place);
    }
    assert!(events.is_empty(), "without a line: {events:?}");
    let claimed = |actor: &str| {
        lines.iter().find(|l| l["task.event"] == "claimed" && l["actor"] == actor).unwrap()
    };
    assert_eq!(claimed("replica:a")["host.name"], "h1/demo");
    assert_eq!(claimed("agent:x")["agent.id"], "x");
    assert!(lines.iter().any(|l| l["task.key"] == "by-host" && l["task.event"] == "created"));
    assert!(!text.contains("s3cret"), "what an agent says of its work is no log line");
    db.check_history().await;
}

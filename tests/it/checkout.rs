//! A run that begins in a checkout of the task's repository.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

use crate::support::{db::Db, host::SshHost, host::output, node::Node};

fn git(at: &Path, args: &[&str]) {
    let mut command = Command::new("git");
    command.current_dir(at).args(["-c", "user.name=t", "-c", "user.email=t@example.org"]);
    let said = command.args(args).output().expect("git is needed for the tests");
    assert!(said.status.success(), "{args:?}: {}", String::from_utf8_lossy(&said.stderr));
}

/// A repository whose default branch is `trunk`.
fn repository(home: &Path) -> String {
    let repo = home.join("it's a $(touch ~/bad) repo");
    fs::create_dir_all(&repo).unwrap();
    git(&repo, &["init", "-q", "-b", "trunk"]);
    fs::write(repo.join("README"), "the readme\n").unwrap();
    git(&repo, &["add", "."]);
    git(&repo, &["commit", "-q", "-m", "first"]);
    repo.to_str().unwrap().to_owned()
}

async fn run(node: &Node, key: &str, repo: Value, end: &str) -> Value {
    let body =
        json!({"title": "x", "labels": ["agent:code"], "key": key, "repo": repo, "max_retries": 1});
    node.must("/api/v1/tasks", body).await;
    node.until(key, end).await
}

#[tokio::test]
async fn a_run_begins_on_the_tasks_branch_and_a_later_attempt_goes_on_there() {
    let cli = "cat >/dev/null; git branch --show-current; cat README; ls
               [ $AGENT_FLEET_ATTEMPT = 2 ] && exit 0
               git -c user.name=t -c user.email=t@example.org commit -q --allow-empty -m mine; touch new; exit 1";
    let mut host = SshHost::start(cli).await;
    host.toml = host.toml.replace("[[hosts]]\n", "[[hosts]]\ncheckout = true\n");
    let clone_url = repository(host.home.path());
    let db = Db::new().await;
    let node = host.node(&db, "a", "").await;
    let repo = json!({"full_name": "org/repo", "clone_url": clone_url});
    let task = run(&node, "org/repo#7", repo, "completed").await;
    let branch = task["branch_name"].as_str().unwrap();
    assert_eq!(output(&node, &task).await, format!("{branch}\nthe readme\nREADME\nnew\n"));
    assert_eq!(task["attempt"], 2);
    let log =
        Command::new("git").args(["log", "--format=%s"]).current_dir(host.folder(&task)).output();
    assert_eq!(String::from_utf8(log.unwrap().stdout).unwrap(), "mine\nfirst\n");
    // What cannot be had is a failed attempt in git's words, and runs no CLI and nothing else.
    let starts = host.starts();
    for (key, url, words) in [
        ("gone", "/nowhere/at/all", "/nowhere/at/all"),
        ("option", "--upload-pack=touch ~/bad", "begins with a dash"),
        ("ext", "ext::sh -c touch% ~/bad", "not allowed"),
    ] {
        let repo = json!({"full_name": "org/repo", "clone_url": url});
        let task = run(&node, key, repo, "failed").await;
        let error = task["error"].as_str().unwrap();
        assert!(error.contains(words) && error.contains("could not be checked out"), "{error}");
    }
    assert_eq!(host.starts(), starts);
    assert!(!host.file("bad").exists());
    db.check_history().await;
    node.stop().await;
}

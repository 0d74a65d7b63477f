//! What a run is given, and what comes out of it.

use std::{fs, time::Duration};

use agent_fleet::{
    config::{PromptVia, Secret},
    execution::{
        Killed, RunDir, RunError, RunState, StartError, Started, kill, read, start, stderr_tail,
        tombstone,
    },
};

use super::{Host, all, exited, sh};
use crate::support::eventually;

#[tokio::test]
async fn output_streams_from_any_offset() {
    for host in Host::each().await {
        let run = host.run();
        // The second half waits for a file, so that reading while it runs is certain.
        let script =
            "echo one; until [ -e go ]; do sleep 0.05; done; echo two; echo err >&2; exit 3";
        assert_eq!(read(host.on(), &run, 0, 9).await.unwrap().state, RunState::NotStarted);
        assert_eq!(start(host.on(), &run, &sh(script)).await.unwrap(), Started::Started);
        let first = eventually("the first line is there", async || {
            let chunk = read(host.on(), &run, 0, 1000).await.unwrap();
            (chunk.size > 0 && chunk.state == RunState::Running).then_some(chunk)
        })
        .await;
        assert_eq!(first.data, b"one\n");
        fs::write(host.folder(&run).join("go"), "").unwrap();
        assert_eq!(all(host.on(), &run, 2).await, (b"e\ntwo\n".to_vec(), exited(3)));
        let middle = read(host.on(), &run, 1, 4).await.unwrap();
        assert_eq!((middle.data.as_slice(), middle.size), (&b"ne\nt"[..], 8));
        assert_eq!(stderr_tail(host.on(), &run, 3).await.unwrap(), "rr\n");
        let mode = fs::metadata(host.dir(&run).join("prompt")).unwrap().permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o77, 0);
        assert!(!host.dir(&run).join("spec").exists());
    }
}

#[tokio::test]
async fn a_prompt_arrives_byte_for_byte_and_runs_nothing() {
    let mut prompt = "'\"`touch bad`$(touch bad)${HOME}\\n\n; touch bad & 😀 {prompt_file}\r\n\0"
        .as_bytes()
        .to_vec();
    prompt.resize(1 << 20, b'\'');
    prompt.extend(b"\n\nlast line without an end");
    for host in Host::each().await {
        for (via, script) in
            [(PromptVia::Stdin, "cat > got"), (PromptVia::File, "cat \"$1\" > got; cat >> got")]
        {
            let run = host.run();
            let mut spec = sh(script);
            spec.command.extend(["sh".into(), "{prompt_file}".into()]);
            spec.prompt = prompt.clone();
            spec.prompt_via = via;
            start(host.on(), &run, &spec).await.unwrap();
            assert_eq!(all(host.on(), &run, 0).await.1, exited(0));
            assert!(fs::read(host.folder(&run).join("got")).unwrap() == prompt, "{via:?}");
            assert!(!host.folder(&run).join("bad").exists());
        }
    }
}

#[tokio::test]
async fn words_and_environment_arrive_as_they_are() {
    let odd = "  $(touch bad) 'q' \"d\" \\n `x` * ~ 😀 ";
    for host in Host::each().await {
        fs::write(host.home.path().join(".profile"), "export A=profile B=profile\n").unwrap();
        let run = host.run();
        let mut spec = sh("printf '%s|' \"$1\" \"$2\" \"$A\" \"$B\" \"$IFS\"; pwd");
        spec.command.extend(["sh".into(), odd.into(), String::new()]);
        spec.env = vec![("A".into(), Secret::new(odd)), ("af".into(), Secret::new(""))];
        start(host.on(), &run, &spec).await.unwrap();
        let (out, state) = all(host.on(), &run, 0).await;
        let folder = host.folder(&run);
        let expected = format!("{odd}||{odd}|profile| \t\n|{}\n", folder.display());
        assert_eq!((String::from_utf8(out).unwrap(), state), (expected, exited(0)));
        assert!(!folder.join("bad").exists());
    }
}

#[tokio::test]
async fn a_missing_cli_is_127() {
    for host in Host::each().await {
        let run = host.run();
        let mut spec = sh("");
        spec.command = vec!["no-such-cli".into()];
        start(host.on(), &run, &spec).await.unwrap();
        assert_eq!(all(host.on(), &run, 0).await.1, exited(127));
        assert!(stderr_tail(host.on(), &run, 1000).await.unwrap().contains("no-such-cli"));
    }
}

#[tokio::test]
async fn profiles_do_no_harm() {
    for host in [Host::local(), Host::local_bash()] {
        profiles_do_no_harm_on(&host).await;
    }
}

async fn profiles_do_no_harm_on(host: &Host) {
    for profile in [
        "echo '@agent-fleet@ exists'; echo noise >&2; export FROM=profile",
        "export FROM=profile; exit 7",
        "set -eu; export FROM=profile; false",
        "export FROM=profile; trap : EXIT; cd /; umask 0; set -- x y z; run=/nowhere; af_run=x",
        "export FROM=profile; cat; read x; sleep 1000 &",
    ] {
        fs::write(host.home.path().join(".profile"), profile).unwrap();
        let run = host.run();
        start(host.on(), &run, &sh("echo $FROM; pwd")).await.unwrap();
        let (out, state) = all(host.on(), &run, 0).await;
        let expected = format!("profile\n{}\n", host.folder(&run).display());
        assert_eq!((String::from_utf8(out).unwrap(), state), (expected, exited(0)), "{profile}");
    }
    // These lose their exports, no more.
    for profile in ["exec true", "if then fi ((", "kill -KILL $(exec sh -c 'echo $PPID')"] {
        fs::write(host.home.path().join(".profile"), profile).unwrap();
        let run = host.run();
        start(host.on(), &run, &sh("echo ran")).await.unwrap();
        let (out, state) = all(host.on(), &run, 0).await;
        assert_eq!((out.as_slice(), state), (&b"ran\n"[..], exited(0)), "{profile}");
    }
}

#[tokio::test]
async fn a_login_shell_may_print() {
    let host = Host::ssh().await;
    fs::write(host.home.path().join(".bashrc"), "echo welcome; printf 'no line end'\n").unwrap();
    let run = host.run();
    start(host.on(), &run, &sh("echo out")).await.unwrap();
    assert_eq!(all(host.on(), &run, 0).await, (b"out\n".to_vec(), exited(0)));
}

#[tokio::test]
async fn a_folder_may_have_an_odd_name() {
    for host in Host::each().await {
        let work_dir = host.home.path().join("a b'c\"d $(touch bad) é");
        let run = RunDir { work_dir: work_dir.to_str().unwrap().into(), ..host.run() };
        let mut spec = sh("pwd; cat \"$1\"");
        spec.command.extend(["sh".into(), "{prompt_file}".into()]);
        spec.prompt_via = PromptVia::File;
        start(host.on(), &run, &spec).await.unwrap();
        let (out, state) = all(host.on(), &run, 0).await;
        let pwd = format!("{}/tasks/{}\ndo it", work_dir.display(), run.task_id);
        assert_eq!((String::from_utf8(out).unwrap(), state), (pwd, exited(0)));
        assert_eq!(kill(host.on(), &run, Duration::ZERO).await.unwrap(), Killed::Gone);
        tombstone(host.on(), &run).await.unwrap();
        let relative = RunDir { work_dir: "here".into(), ..host.run() };
        assert!(matches!(
            start(host.on(), &relative, &spec).await,
            Err(StartError::NotStarted(RunError::Refused(_)))
        ));
    }
}

#[tokio::test]
async fn two_tasks_never_share_a_folder() {
    let host = Host::local();
    let (one, two) = (host.run(), host.run());
    for run in [&one, &two] {
        start(host.on(), run, &sh("ls; echo x > mine")).await.unwrap();
        assert_eq!(all(host.on(), run, 0).await, (Vec::new(), exited(0)));
    }
    assert_ne!(host.folder(&one), host.folder(&two));
}

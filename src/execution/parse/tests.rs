//! Streams in the shapes that the CLIs print.

use proptest::prelude::*;

use super::*;
use crate::model::Usage;

const CODEX: &str = r#"{"type":"thread.started","thread_id":"0199a213-81c0-7800-8aa1-bbab2a035a53"}
{"type":"turn.started"}
{"type":"item.completed","item":{"id":"item_0","type":"reasoning","text":"**Looking**"}}
{"type":"error","message":"Reconnecting... 1/5"}
plain text from some tool
{"type":"item.completed","item":{"id":"item_1","type":"command_execution","command":"bash -lc ls","aggregated_output":"a\n","exit_code":1,"status":"failed"}}
{"type":"item.completed","item":{"id":"item_3","type":"agent_message","text":"Done: é😀"}}
{"type":"turn.completed","usage":{"input_tokens":24763,"cached_input_tokens":24448,"output_tokens":122}}
"#;

const CLAUDE: &str = r#"{"type":"system","subtype":"init","session_id":"b1","model":"m","tools":[],"cwd":"/w"}
{"type":"assistant","message":{"content":[{"type":"text","text":"I look."},{"type":"tool_use","name":"Bash","input":{}}]},"session_id":"b1"}
{"type":"user","message":{"content":[{"type":"tool_result","content":"ü"}]},"session_id":"b1"}
{"type":"result","subtype":"success","is_error":false,"duration_ms":100,"num_turns":2,"result":"All dóne","session_id":"b1","total_cost_usd":0.25,"usage":{"input_tokens":4,"cache_creation_input_tokens":10,"cache_read_input_tokens":100,"output_tokens":7}}
"#;

fn now() -> Timestamp {
    "2026-11-24T00:00:00Z".parse().unwrap()
}

fn judge(format: OutputFormat, text: &str, code: i32) -> Outcome {
    judge_with(format, text, Some(code), ExitReason::Exited, "")
}

fn judge_with(
    format: OutputFormat,
    text: &str,
    code: Option<i32>,
    reason: ExitReason,
    stderr: &str,
) -> Outcome {
    let mut parser = Parser::new(format);
    parser.feed(text.as_bytes());
    parser.finish(code, reason, stderr, now())
}

#[test]
fn codex_succeeds() {
    let outcome = judge(OutputFormat::CodexJson, CODEX, 0);
    assert_eq!(outcome.kind, OutcomeKind::Succeeded);
    assert_eq!(outcome.summary.as_deref(), Some("Done: é😀"));
    assert_eq!(outcome.error, None);
    assert_eq!(outcome.session.as_deref(), Some("0199a213-81c0-7800-8aa1-bbab2a035a53"));
    let usage = Usage { input_tokens: Some(24763), output_tokens: Some(122), cost_usd: None };
    assert_eq!(outcome.usage, Some(usage));
    // A second turn adds to it; one that does not end is no success.
    let twice = judge(OutputFormat::CodexJson, &format!("{CODEX}{CODEX}"), 0);
    assert_eq!(twice.usage.unwrap().output_tokens, Some(244));
    let open = judge(OutputFormat::CodexJson, &format!("{CODEX}{{\"type\":\"turn.started\"}}"), 0);
    assert_eq!(open.kind, OutcomeKind::Failed);
}

#[test]
fn codex_fails_in_its_ways() {
    let fails = |message: &str, code| {
        let event =
            serde_json::json!({"type":"turn.failed","error":{"message":message}}).to_string();
        judge(OutputFormat::CodexJson, &format!("{CODEX}{event}\n"), code)
    };
    // Exit code 0, and a turn that was completed before.
    let outcome = fails("stream disconnected", 0);
    assert_eq!(outcome.kind, OutcomeKind::Failed);
    assert_eq!(outcome.error.as_deref(), Some("stream disconnected"));
    assert!(matches!(
        fails("You've hit your usage limit. Try again in 5 minutes.", 1).kind,
        OutcomeKind::Quota { until: Some(at) } if at.to_string() == "2026-11-24T00:05:00Z"
    ));
    assert_eq!(fails("unexpected status 401 Unauthorized", 1).kind, OutcomeKind::Auth);
    // Nothing but an error event.
    let only = r#"{"type":"error","message":"model not found"}"#;
    assert_eq!(judge(OutputFormat::CodexJson, only, 0).error.as_deref(), Some("model not found"));
    // An agent that writes about limits has not hit one.
    let talk = CODEX.replace("Done", "I added a rate limit and a 401 Unauthorized page");
    assert_eq!(judge(OutputFormat::CodexJson, &talk, 0).kind, OutcomeKind::Succeeded);
}

#[test]
fn claude_succeeds() {
    let outcome = judge(OutputFormat::ClaudeJson, CLAUDE, 0);
    assert_eq!(outcome.kind, OutcomeKind::Succeeded);
    assert_eq!(outcome.summary.as_deref(), Some("All dóne"));
    assert_eq!(outcome.session.as_deref(), Some("b1"));
    let usage = Usage { input_tokens: Some(114), output_tokens: Some(7), cost_usd: Some(0.25) };
    assert_eq!(outcome.usage, Some(usage));
    // The one object of `--output-format json`, and the array it becomes with --verbose.
    let object = CLAUDE.lines().last().unwrap();
    assert_eq!(judge(OutputFormat::ClaudeJson, object, 0).kind, OutcomeKind::Succeeded);
    let array = format!("[{}]", CLAUDE.lines().collect::<Vec<_>>().join(","));
    assert_eq!(judge(OutputFormat::ClaudeJson, &array, 0), outcome);
}

#[test]
fn claude_fails_in_its_ways() {
    let ends = |event: serde_json::Value| {
        let start: Vec<&str> = CLAUDE.lines().take(3).collect();
        judge(OutputFormat::ClaudeJson, &format!("{}\n{event}\n", start.join("\n")), 0)
    };
    let turns = ends(serde_json::json!({"type":"result","subtype":"error_max_turns",
        "is_error":false,"session_id":"b1","usage":{"output_tokens":1}}));
    assert_eq!(turns.kind, OutcomeKind::Failed);
    assert_eq!(turns.error.as_deref(), Some("error_max_turns"));
    assert_eq!(turns.summary.as_deref(), Some("I look."));
    let api = |text: &str| {
        ends(serde_json::json!({"type":"result","subtype":"success","is_error":true,"result":text}))
    };
    assert_eq!(api("API Error: 403").kind, OutcomeKind::Failed);
    assert_eq!(api("Invalid API key · Please run /login").kind, OutcomeKind::Auth);
    assert!(matches!(
        api("Claude AI usage limit reached|1795600000").kind,
        OutcomeKind::Quota { until: Some(_) }
    ));
    // The moment may come in an event of its own.
    let text = concat!(
        r#"{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":1795600000}}"#,
        "\n",
        r#"{"type":"result","subtype":"success","is_error":true,"result":"You've hit your limit · resets 3pm"}"#,
    );
    assert!(matches!(
        judge(OutputFormat::ClaudeJson, text, 1).kind,
        OutcomeKind::Quota { until: Some(_) }
    ));
}

#[test]
fn chunks_may_be_cut_anywhere() {
    for (format, text) in [(OutputFormat::CodexJson, CODEX), (OutputFormat::ClaudeJson, CLAUDE)] {
        let whole = judge(format, text, 0);
        for at in 0..text.len() {
            let mut parser = Parser::new(format);
            parser.feed(&text.as_bytes()[..at]);
            parser.feed(&text.as_bytes()[at..]);
            assert_eq!(parser.finish(Some(0), ExitReason::Exited, "", now()), whole, "cut at {at}");
        }
        let mut parser = Parser::new(format);
        text.bytes().for_each(|byte| parser.feed(&[byte]));
        assert!(parser.is_done());
        assert_eq!(parser.finish(Some(0), ExitReason::Exited, "", now()), whole);
    }
}

#[test]
fn a_stream_that_ends_early_is_no_success() {
    for (format, text) in [(OutputFormat::CodexJson, CODEX), (OutputFormat::ClaudeJson, CLAUDE)] {
        let cut = &text[..text.trim_end().rfind('\n').unwrap() + 20];
        let outcome = judge_with(format, cut, Some(0), ExitReason::Exited, "boom\n");
        assert_eq!(outcome.kind, OutcomeKind::Failed);
        assert!(outcome.error.unwrap().contains(if format == OutputFormat::CodexJson {
            "Reconnecting"
        } else {
            "boom"
        }));
        assert_eq!(judge_with(format, "", None, ExitReason::Exited, "").kind, OutcomeKind::Failed);
        let late = judge_with(format, "", Some(143), ExitReason::Timeout, "");
        assert_eq!(late.kind, OutcomeKind::TimedOut);
        // It had said that it was done; only its process hung on.
        let hung = judge_with(format, text, Some(143), ExitReason::Killed, "");
        assert_eq!(hung.kind, OutcomeKind::Succeeded);
        let login = judge_with(format, "", Some(1), ExitReason::Exited, "Error: not logged in\n");
        assert_eq!(login.kind, OutcomeKind::Auth);
    }
}

#[test]
fn garbage_and_endless_lines_are_survived() {
    for format in OutputFormat::ALL {
        let mut parser = Parser::new(*format);
        parser.feed(b"\xff\xfe{\n[1,null,\"x\"]\nnull\n{\"type\":7}\n{\"type\":\"result\"}\n\n");
        for _ in 0..20 {
            parser.feed(&vec![b'x'; 1 << 20]);
            assert!(parser.line.len() <= MAX_LINE);
        }
        parser.feed(b"\n");
        parser.feed(match format {
            OutputFormat::CodexJson => CODEX.as_bytes(),
            OutputFormat::OpencodeJson => OPENCODE.as_bytes(),
            OutputFormat::GeminiJson => GEMINI.as_bytes(),
            OutputFormat::ClaudeJson | OutputFormat::Raw => CLAUDE.as_bytes(),
        });
        let outcome = parser.finish(Some(0), ExitReason::Exited, "", now());
        assert_eq!(outcome.kind, OutcomeKind::Succeeded, "{format}");
    }
}

#[test]
fn raw_goes_by_the_exit_code() {
    let lines: String = (0..100).map(|i| format!("line {i}\n")).collect();
    let good = judge(OutputFormat::Raw, &lines, 0);
    assert_eq!(good.kind, OutcomeKind::Succeeded);
    let summary = good.summary.unwrap();
    assert!(summary.starts_with("line 80\n") && summary.ends_with("line 99"));
    let bad = judge_with(OutputFormat::Raw, "", Some(127), ExitReason::Exited, "x: not found\n");
    assert_eq!(bad.kind, OutcomeKind::Failed);
    let error = bad.error.unwrap();
    assert!(error.contains("127") && error.contains("x: not found"));
    assert_eq!(
        judge_with(OutputFormat::Raw, "", Some(0), ExitReason::Timeout, "").kind,
        OutcomeKind::TimedOut
    );
    assert_eq!(
        judge_with(OutputFormat::Raw, "", Some(0), ExitReason::Killed, "").kind,
        OutcomeKind::Failed
    );
}

const OPENCODE: &str = r#"{"type":"step_start","sessionID":"ses_1","part":{"type":"step-start"}}
{"type":"tool_use","sessionID":"ses_1","part":{"tool":"bash","state":{"status":"completed"}}}
{"type":"step_finish","sessionID":"ses_1","part":{"reason":"tool-calls","cost":0.5,"tokens":{"input":10,"output":3}}}
{"type":"step_start","sessionID":"ses_1","part":{}}
{"type":"text","sessionID":"ses_1","part":{"text":"Done: é"}}
{"type":"step_finish","sessionID":"ses_1","part":{"reason":"stop","cost":0.25,"tokens":{"input":5,"output":4}}}
"#;

#[test]
fn opencode_goes_by_its_last_step() {
    let judge = |text: &str, code| judge(OutputFormat::OpencodeJson, text, code);
    let good = judge(OPENCODE, 0);
    assert_eq!((good.kind, good.error), (OutcomeKind::Succeeded, None));
    assert_eq!(good.summary.as_deref(), Some("Done: é"));
    assert_eq!(good.session.as_deref(), Some("ses_1"));
    let usage = Usage { input_tokens: Some(15), output_tokens: Some(7), cost_usd: Some(0.75) };
    assert_eq!(good.usage, Some(usage));
    // Hung after its last word, and ended for it.
    let ended = judge_with(OutputFormat::OpencodeJson, OPENCODE, None, ExitReason::Exited, "");
    assert_eq!(ended.kind, OutcomeKind::Succeeded);
    // Exit code 0 alone is nothing: it wanted to go on, or was refused a permission and said nothing.
    let (cut, _) = OPENCODE.split_once("{\"type\":\"text\"").unwrap();
    for (text, code) in [(cut, 0), ("", 0), (OPENCODE, 1)] {
        assert_eq!(judge(text, code).kind, OutcomeKind::Failed, "{text} {code}");
    }
    let error = |message: &str| {
        let event = serde_json::json!({"type": "error", "error": {"name": "APIError", "data": {"message": message}}});
        judge(&format!("{OPENCODE}{event}\n"), 0)
    };
    assert_eq!(error("Too Many Requests").kind, OutcomeKind::Quota { until: None });
    assert_eq!(error("Invalid API key").kind, OutcomeKind::Auth);
    assert_eq!(error("the model broke").error.as_deref(), Some("the model broke"));
}

const GEMINI: &str = r#"{"type":"init","session_id":"g1","model":"m"}
{"type":"message","role":"user","content":"do it"}
{"type":"message","role":"assistant","content":"I look.","delta":true}
{"type":"tool_use","tool_name":"ls"}
{"type":"error","severity":"warning","message":"a loop was detected"}
{"type":"message","role":"assistant","content":"All ","delta":true}
{"type":"message","role":"assistant","content":"dóne","delta":true}
{"type":"result","status":"success","stats":{"total_tokens":9,"input_tokens":7,"output_tokens":2}}
"#;

#[test]
fn gemini_goes_by_its_result() {
    let judge = |text: &str, code| judge(OutputFormat::GeminiJson, text, code);
    let good = judge(GEMINI, 0);
    assert_eq!((good.kind, good.error), (OutcomeKind::Succeeded, None));
    assert_eq!(good.summary.as_deref(), Some("All dóne"));
    assert_eq!(good.session.as_deref(), Some("g1"));
    let usage = Usage { input_tokens: Some(7), output_tokens: Some(2), cost_usd: None };
    assert_eq!(good.usage, Some(usage));
    let (open, _) = GEMINI.split_once("{\"type\":\"result\"").unwrap();
    assert_eq!(judge(open, 0).kind, OutcomeKind::Failed);
    assert_eq!(judge("", 41).kind, OutcomeKind::Auth);
    let result = |message: &str| {
        let event =
            serde_json::json!({"type": "result", "status": "error", "error": {"message": message}});
        judge(&format!("{open}{event}\n"), 0)
    };
    assert_eq!(result("Quota exceeded for requests").kind, OutcomeKind::Quota { until: None });
    assert_eq!(result("it broke").error.as_deref(), Some("it broke"));
}

#[test]
fn left_out_bytes_make_no_line() {
    let mut parser = Parser::new(OutputFormat::Raw);
    parser.feed(b"one\nhalf a li");
    parser.skip();
    parser.feed(b"ne of another\nlast\n");
    let outcome = parser.finish(Some(0), ExitReason::Exited, "", now());
    assert_eq!(outcome.summary.as_deref(), Some("one\nlast"));
}

/// A line as a CLI might print it: an event with any values, half of one, or anything at all.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "type",
        "subtype",
        "result",
        "success",
        "is_error",
        "item",
        "item.completed",
        "agent_message",
        "text",
        "turn.started",
        "turn.completed",
        "turn.failed",
        "error",
        "message",
        "usage",
        "input_tokens",
        "session_id",
        "thread.started",
        "thread_id",
        "assistant",
        "content",
        "errors",
        "rate_limit_event",
        "rate_limit_info",
        "rejected",
        "status",
        "resetsAt",
        "total_cost_usd",
    ]);
    let leaf = prop_oneof![
        3 => word.clone().prop_map(serde_json::Value::from),
        1 => any::<i64>().prop_map(serde_json::Value::from),
        1 => any::<bool>().prop_map(serde_json::Value::from),
        1 => any::<String>().prop_map(serde_json::Value::from),
        1 => Just(serde_json::Value::Null),
    ];
    let event = leaf.prop_recursive(3, 16, 5, move |inner| {
        prop_oneof![
            4 => prop::collection::btree_map(word.clone(), inner.clone(), 1..6)
                .prop_map(|map| map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
            1 => prop::collection::vec(inner, 0..3).prop_map(serde_json::Value::from),
        ]
    });
    prop_oneof![
        6 => event.prop_map(|event| event.to_string().into_bytes()),
        2 => prop::sample::select(CODEX.lines().chain(CLAUDE.lines()).collect::<Vec<_>>())
            .prop_map(|line| line.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..60),
    ]
}

proptest! {
    #[test]
    fn any_stream_cut_anywhere_is_judged_alike(
        lines in prop::collection::vec(line(), 0..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        code in prop::option::of(0..3_i32),
    ) {
        let stream = lines.join(&b'\n');
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        for format in OutputFormat::ALL {
            let mut whole = Parser::new(*format);
            whole.feed(&stream);
            let mut parts = Parser::new(*format);
            for pair in cuts.windows(2) {
                parts.feed(&stream[pair[0]..pair[1]]);
            }
            prop_assert_eq!(whole.is_done(), parts.is_done());
            let whole = whole.finish(code, ExitReason::Exited, "", now());
            let parts = parts.finish(code, ExitReason::Exited, "", now());
            prop_assert_eq!(&whole, &parts);
            for text in [&whole.summary, &whole.error].into_iter().flatten() {
                prop_assert!(text.len() <= MAX_TEXT + 100, "{} bytes are kept", text.len());
            }
            prop_assert_eq!(whole.error.is_none(), whole.kind == OutcomeKind::Succeeded);
        }
    }
}

//! What is wrong in the body: no JSON, odd JSON, and texts and numbers where they do not belong.

use serde_json::{Value, json};

use super::{Case, RUNS, Then, case, hostile_texts, post, send, with};

pub fn cases() -> Vec<Case> {
    let mut cases = no_json();
    cases.extend(odd_json());
    cases.extend(texts());
    cases.extend(numbers());
    cases
}

fn no_json() -> Vec<Case> {
    let deep = |depth: usize| format!("{{\"input\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
    let broken: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("spaces", b"   ".to_vec()),
        ("half", b"{\"input\":".to_vec()),
        ("a comma too many", b"{\"input\":\"x\",}".to_vec()),
        ("two documents", b"{\"input\":\"x\"}{\"input\":\"y\"}".to_vec()),
        ("something behind", b"{\"input\":\"x\"} x".to_vec()),
        ("single quotes", b"{'input':'x'}".to_vec()),
        ("a comment", b"{\"input\":\"x\"/* */}".to_vec()),
        ("NaN", b"{\"input\":NaN}".to_vec()),
        ("Infinity", b"{\"input\":-Infinity}".to_vec()),
        ("1e400", b"{\"input\":\"x\",\"config\":{\"temperature\":1e400}}".to_vec()),
        ("-1e400", b"{\"input\":\"x\",\"config\":{\"temperature\":-1e400}}".to_vec()),
        ("a leading zero", b"{\"input\":\"x\",\"config\":{\"max_steps\":01}}".to_vec()),
        ("a byte-order mark", b"\xef\xbb\xbf{\"input\":\"x\"}".to_vec()),
        ("UTF-16", b"\xff\xfe{\0\"\0".to_vec()),
        ("no UTF-8", b"{\"input\":\"\xff\xfe\"}".to_vec()),
        ("an overlong slash", b"{\"input\":\"\xc0\xaf\"}".to_vec()),
        ("a surrogate in UTF-8", b"{\"input\":\"\xed\xa0\x80\"}".to_vec()),
        ("half a character", b"{\"input\":\"\xf0\x9f\x98".to_vec()),
        ("a lone surrogate", br#"{"input":"\ud800"}"#.to_vec()),
        ("two wrong surrogates", br#"{"input":"\udc00\ud800"}"#.to_vec()),
        ("a lone surrogate in a name", br#"{"input":"x","metadata":{"\ud800":"y"}}"#.to_vec()),
        ("a raw NUL", b"{\"input\":\"\0\"}".to_vec()),
        ("a raw line break", b"{\"input\":\"\n\"}".to_vec()),
        ("a form", b"input=x".to_vec()),
        ("XML", b"<input>x</input>".to_vec()),
        ("depth 65", deep(64).into_bytes()),
        ("depth 10,000", deep(10_000).into_bytes()),
        ("depth 1,000,000", deep(1_000_000).into_bytes()),
        ("depth 1,000,000 without end", "[".repeat(1_000_000).into_bytes()),
        ("objects of depth 10,000", "{\"a\":".repeat(10_000).into_bytes()),
    ];
    let mut cases = Vec::new();
    for (name, body) in broken {
        cases.push(case(format!("a run: {name}"), post(RUNS, &body), Then::Refused(400)));
        cases.push(case(
            format!("an agent: {name}"),
            post("/v1/agents", &body),
            Then::Refused(400),
        ));
        // The change that nobody may have made is looked at afterwards.
        let patch = send("PATCH", "/v1/agents/a", &body);
        cases.push(case(format!("a change: {name}"), patch, Then::Refused(400)));
    }
    cases
}

fn odd_json() -> Vec<Case> {
    let many: String = (0..50_000).map(|n| format!("\"k{n}\":1,")).collect();
    let mut cases = vec![
        case("a name twice", post(RUNS, r#"{"input":"a","input":"b"}"#), Then::Answered),
        case(
            "a name twice in metadata",
            post(RUNS, r#"{"input":"a","metadata":{"k":"1","k":"2"}}"#),
            Then::Answered,
        ),
        case(
            "depth 64",
            post(RUNS, format!("{{\"input\":{}1{}}}", "[".repeat(63), "]".repeat(63))),
            Then::Refused(422),
        ),
        case("50,000 fields", post(RUNS, format!("{{{many}\"input\":\"x\"}}")), Then::Refused(422)),
        case(
            "50,000 pairs of metadata",
            post(RUNS, format!("{{\"input\":\"x\",\"metadata\":{{{many}\"k\":\"v\"}}}}")),
            Then::Refused(422),
        ),
        case(
            "100,000 messages",
            post(RUNS, format!("{{\"input\":[{}1]}}", "1,".repeat(100_000))),
            Then::Refused(422),
        ),
        case(
            "an escape of everything",
            post(RUNS, r#"{"\u0069nput":"\u0000\u001f\ud83d\ude00"}"#),
            Then::Answered,
        ),
        case("__proto__", post(RUNS, r#"{"input":"x","__proto__":{}}"#), Then::Refused(422)),
        case("a cancel with fields", post("/v1/runs/run_x/cancel", r#"{"a":1}"#), Then::Answered),
    ];
    for root in ["[]", "\"x\"", "3", "true", "[{\"input\":\"x\"}]", "-0", "1e300"] {
        cases.push(case(format!("a run: {root}"), post(RUNS, root), Then::Refused(422)));
        cases.push(case(format!("an agent: {root}"), post("/v1/agents", root), Then::Refused(422)));
    }
    cases
}

/// Hostile texts in every field that is a text.
fn texts() -> Vec<Case> {
    let run = json!({"input": "x", "config": {}, "metadata": {}});
    let agent = json!({"agent_id": "garbage", "model": "builtin/echo", "metadata": {}});
    let in_a_run: [&[&str]; 12] = [
        &["input"],
        &["end_user_id"],
        &["idempotency_key"],
        &["metadata", "k"],
        &["on_disconnect"],
        &["on_busy"],
        &["conversation_id"],
        &["callback_url"],
        &["stream"],
        &["config", "model"],
        &["config", "system_prompt"],
        &["config", "tools"],
    ];
    let in_an_agent: [&[&str]; 9] = [
        &["agent_id"],
        &["name"],
        &["description"],
        &["model"],
        &["system_prompt"],
        &["metadata", "k"],
        &["tools"],
        &["output_schema"],
        &["script"],
    ];
    let mut cases = Vec::new();
    for text in hostile_texts() {
        let told: String = text.chars().take(30).collect();
        for place in in_a_run {
            let body = with(run.clone(), place, json!(text));
            cases.push(case(
                format!("{place:?} of a run: {told:?}"),
                post(RUNS, body),
                Then::Answered,
            ));
        }
        for place in in_an_agent {
            let body = with(agent.clone(), place, json!(text));
            cases.push(case(
                format!("{place:?} of an agent: {told:?}"),
                post("/v1/agents", body),
                Then::Answered,
            ));
        }
        let mut named = run.clone();
        named["metadata"] = Value::Object([(text.clone(), json!("v"))].into_iter().collect());
        cases.push(case(
            format!("a name of metadata: {told:?}"),
            post(RUNS, named.to_string()),
            Then::Answered,
        ));
        let message = json!({"input": [{"role": text, "content": text}]}).to_string();
        cases.push(case(format!("a message: {told:?}"), post(RUNS, message), Then::Answered));
        let part = json!({"input": [{"role": "user", "content": [{"type": text, "text": text}]}]});
        cases.push(case(format!("a part: {told:?}"), post(RUNS, part.to_string()), Then::Answered));
        let tool =
            json!([{"type": "http", "name": text, "url": text, "parameters": {"type": text}}]);
        let body = with(agent.clone(), &["tools"], tool);
        cases.push(case(format!("a tool: {told:?}"), post("/v1/agents", body), Then::Answered));
        // A schema that sends its reader elsewhere, or in circles.
        let schema = json!({"$ref": text, "pattern": text});
        let body = with(agent.clone(), &["output_schema"], schema);
        cases.push(case(format!("a schema: {told:?}"), post("/v1/agents", body), Then::Answered));
    }
    cases
}

/// Odd numbers in every field that is a number.
fn numbers() -> Vec<Case> {
    let numbers = [
        "-0",
        "-0.0",
        "-1",
        "0",
        "1.5",
        "1e2",
        "1e-400",
        "9007199254740993",
        "18446744073709551616",
        "-9223372036854775809",
        "1e308",
        "123456789012345678901234567890123456789012345678901234567890",
        "\"1\"",
        "[]",
        "{}",
        "true",
        "null",
    ];
    let fields = [
        "max_steps",
        "max_cost_usd",
        "timeout_seconds",
        "temperature",
        "max_output_tokens",
        "max_total_tokens",
        "max_context_tokens",
        "model",
        "input",
    ];
    let mut cases = Vec::new();
    for number in numbers {
        for field in fields {
            let run = format!("{{\"input\":\"x\",\"config\":{{\"{field}\":{number}}}}}");
            cases.push(case(
                format!("{field} of a run: {number}"),
                post(RUNS, run),
                Then::Answered,
            ));
            let agent =
                format!("{{\"agent_id\":\"n\",\"model\":\"builtin/echo\",\"{field}\":{number}}}");
            cases.push(case(
                format!("{field} of an agent: {number}"),
                post("/v1/agents", agent),
                Then::Answered,
            ));
        }
    }
    cases
}

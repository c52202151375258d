//! P27: what a call does to the world decides what is done about its faults (section 6 of the contract).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{OPEN, caller, log, only};
use crate::support::client::Client;
use crate::support::model_server::{End, ModelServer, Piece, Reply, Request};
use crate::support::on_both_databases;
use crate::support::profile::Report;
use crate::support::server::Setup;

on_both_databases! {
    every_fault_ends_as_its_effect_allows;
    a_call_is_what_the_tool_says_it_is;
    a_call_whose_outcome_is_unknown_holds_up_nobody_and_can_be_cancelled;
    cancelling_a_run_closes_the_sockets_of_its_tools;
}

const EFFECTS: [&str; 3] = ["read", "idempotent", "once"];

/// How a call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Completed,
    Failed,
    /// The run waits for somebody who knows.
    Unknown,
}

/// A fault, how often it comes before the tool works, and what it ends in for calls that may be
/// repeated and for `once`: how, and after how many requests.
struct Fault {
    name: &'static str,
    times: usize,
    reply: fn() -> Reply,
    repeatable: (Ends, usize),
    once: (Ends, usize),
}

const ALWAYS: usize = usize::MAX;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a call may take that is to be given up: long enough for each attempt to leave first.
const SHORT_SECONDS: u64 = 4;

fn status(status: u16, headers: &[(&str, &str)]) -> Reply {
    Reply::error(status, json!("no"), headers)
}

/// 200, and then this end in the middle of the body.
fn broken(end: End) -> Reply {
    let piece = Piece::Bytes(b"{\"half\": ".to_vec());
    Reply::Stream { headers: Vec::new(), pieces: vec![piece], end }
}

/// This status, and a body that never ends.
fn slow(status: u16) -> Reply {
    let headers = vec![("content-length".to_owned(), "100".to_owned())];
    Reply::Head { status, headers }
}

/// 64 MB.
fn huge() -> Reply {
    let pieces = vec![Piece::Repeat(vec![b'x'; 64 * 1024], 1024)];
    Reply::Stream { headers: Vec::new(), pieces, end: End::Clean }
}

#[rustfmt::skip]
const FAULTS: &[Fault] = &[
    fault("none", 0, || Reply::Hang, (Ends::Completed, 1), (Ends::Completed, 1)),
    fault("400", 1, || status(400, &[]), (Ends::Failed, 1), (Ends::Failed, 1)),
    fault("404", 1, || status(404, &[]), (Ends::Failed, 1), (Ends::Failed, 1)),
    fault("500-once", 1, || status(500, &[]), (Ends::Completed, 2), (Ends::Failed, 1)),
    fault("500", ALWAYS, || status(500, &[]), (Ends::Failed, 3), (Ends::Failed, 1)),
    fault("503-twice", 2, || status(503, &[]), (Ends::Completed, 3), (Ends::Failed, 1)),
    fault("429-once", 1, || status(429, &[]), (Ends::Completed, 2), (Ends::Failed, 1)),
    fault("429-soon", 1, || status(429, &[("retry-after", "1")]), (Ends::Completed, 2), (Ends::Failed, 1)),
    fault("429-late", 1, || status(429, &[("retry-after", "3600")]), (Ends::Failed, 1), (Ends::Failed, 1)),
    fault("302", 1, || status(302, &[("location", "/none")]), (Ends::Failed, 1), (Ends::Failed, 1)),
    fault("timeout-once", 1, || Reply::Hang, (Ends::Completed, 2), (Ends::Unknown, 1)),
    fault("timeout", ALWAYS, || Reply::Hang, (Ends::Failed, 3), (Ends::Unknown, 1)),
    fault("reset-once", 1, || Reply::Reset, (Ends::Completed, 2), (Ends::Unknown, 1)),
    fault("reset", ALWAYS, || Reply::Reset, (Ends::Failed, 3), (Ends::Unknown, 1)),
    fault("cut-once", 1, || broken(End::Close), (Ends::Completed, 2), (Ends::Unknown, 1)),
    fault("cut", ALWAYS, || broken(End::Reset), (Ends::Failed, 3), (Ends::Unknown, 1)),
    fault("400-drip", 1, || slow(400), (Ends::Failed, 1), (Ends::Failed, 1)),
    fault("500-drip", 1, || slow(500), (Ends::Completed, 2), (Ends::Failed, 1)),
    fault("drip", ALWAYS, || broken(End::Hang), (Ends::Failed, 3), (Ends::Unknown, 1)),
    fault("huge", 1, huge, (Ends::Completed, 1), (Ends::Completed, 1)),
];

const fn fault(
    name: &'static str,
    times: usize,
    reply: fn() -> Reply,
    repeatable: (Ends, usize),
    once: (Ends, usize),
) -> Fault {
    Fault { name, times, reply, repeatable, once }
}

async fn every_fault_ends_as_its_effect_allows(url: String) {
    let database = if url.starts_with("sqlite") { "SQLite" } else { "Postgres" };
    let report = Report::new("P27", "effects x faults of an HTTP tool", database);
    // What hangs up on huge answers is counted apart from what gives up those that do not come.
    let (tools, hogs) = (ModelServer::start().await, ModelServer::start().await);
    // Requests by path: /{fault}/{effect}.
    let asked = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let asking = asked.clone();
    let answer = move |request: &Request| {
        let mut asked = asking.lock().expect("no panic");
        let count = asked.entry(request.path.clone()).or_default();
        *count += 1;
        let name = request.path.split('/').nth(1).expect("a fault");
        let fault = FAULTS.iter().find(|fault| fault.name == name).expect("a fault");
        if *count <= fault.times { (fault.reply)() } else { Reply::json(&json!({"ok": true})) }
    };
    tools.answer_with(answer.clone());
    hogs.answer_with(answer);
    // Nobody listens there.
    let nobody = ModelServer::start().await;
    nobody.refuse().await;
    let server = Setup::new(url, OPEN).start().await;
    let client = &server.client;
    let run = |name: &'static str, effect: &'static str, url: String| async move {
        let agent_id = format!("{name}-{effect}");
        let hangs = ["timeout", "timeout-once", "drip", "400-drip", "500-drip"].contains(&name);
        let seconds = if hangs { SHORT_SECONDS } else { 60 };
        let tool = json!({"url": url, "effect": effect, "timeout_seconds": seconds});
        client.post("/v1/agents", &caller(&agent_id, tool, &json!({"n": 1}))).await.expect(201);
        let run = client.run_to_end(&agent_id, &json!({"input": "Go"})).await;
        let events = log(client, run["run_id"].as_str().expect("run_id")).await;
        (run, events)
    };
    let mut cases = Vec::new();
    for fault in FAULTS {
        for effect in EFFECTS {
            let path = format!("/{}/{effect}", fault.name);
            let (ends, requests) = if effect == "once" { fault.once } else { fault.repeatable };
            let (report, tools) = (&report, if fault.name == "huge" { &hogs } else { &tools });
            let (asked, url) = (asked.clone(), format!("{}{path}", tools.origin()));
            cases.push(Box::pin(async move {
                let (run, events) = run(fault.name, effect, url).await;
                let count = asked.lock().expect("no panic")[&path];
                report.fault(fault.times > 0);
                let is = outcome(&run, &events);
                report.check(is == Some(ends), || {
                    format!("{path} is {is:?}, not {ends:?}: {events:#?}")
                });
                report.check(count == requests, || {
                    format!("{path}: {count} requests, not {requests}")
                });
                let keys = keys(tools, &path);
                report.check(keys == expected_keys(&run, &events, count), || {
                    format!("{path} has other keys: {keys:?}")
                });
                (fault.name, effect, events)
            }) as std::pin::Pin<Box<dyn Future<Output = _> + '_>>);
        }
    }
    for effect in EFFECTS {
        let (report, url) = (&report, format!("{}/refused", nobody.origin()));
        cases.push(Box::pin(async move {
            let (run, events) = run("refused", effect, url).await;
            report.fault(true);
            let is = outcome(&run, &events);
            report.check(is == Some(Ends::Failed), || format!("refused is {is:?}: {events:#?}"));
            ("refused", effect, events)
        }));
    }
    let count = cases.len() as u64;
    for (name, effect, events) in join_all(cases).await {
        if name == "huge" {
            let result = &only(&events, "tool_call.completed")["result"];
            let text = result.as_str().expect("text");
            report.check(text.len() <= 256 * 1024 && text.contains("[cut:"), || {
                format!("{effect}: {} bytes of a huge body", text.len())
            });
        }
    }
    // Those 64 MB were not read: the connection was closed instead.
    let closed = tokio::time::timeout(PATIENCE, hogs.wait_closed_early(EFFECTS.len())).await;
    report.check(closed.is_ok(), || "huge bodies were read to their ends".to_owned());
    let requests: usize = asked.lock().expect("no panic").values().sum();
    report.note(format!("{requests} requests for {count} calls"));
    report.finish(count - 3);
}

/// How the one call of a run ended, if the run ended or parked as it should.
fn outcome(run: &Value, events: &[Value]) -> Option<Ends> {
    let has = |event_type: &str| events.iter().any(|event| event["type"] == event_type);
    let status = run["status"].as_str()?;
    match (has("tool_call.completed"), has("tool_call.failed"), has("tool_call.outcome_unknown")) {
        (true, false, false) if status == "completed" => Some(Ends::Completed),
        (false, true, false) if status == "completed" => Some(Ends::Failed),
        (false, false, true) if status == "requires_action" => {
            let [action] = &run["required_actions"].as_array()?[..] else { return None };
            let asks = action["type"] == "tool_outcome" && action["expires_at"].is_null();
            asks.then_some(Ends::Unknown)
        }
        _ => None,
    }
}

/// The idempotency keys and run ids of the requests to a path.
fn keys(tools: &ModelServer, path: &str) -> Vec<(String, String)> {
    let of = tools.requests().into_iter().filter(|request| request.path == path);
    let header = |request: &Request, name: &str| request.headers.get(name).cloned();
    of.map(|request| {
        let key = header(&request, "idempotency-key").unwrap_or_default();
        (key, header(&request, "x-run-id").unwrap_or_default())
    })
    .collect()
}

/// The same for each of so many requests.
fn expected_keys(run: &Value, events: &[Value], count: usize) -> Vec<(String, String)> {
    let run_id = run["run_id"].as_str().expect("run_id");
    let call_id = only(events, "tool_call.created")["call_id"].as_str().expect("call_id");
    vec![(format!("{run_id}:{call_id}"), run_id.to_owned()); count]
}

async fn a_call_is_what_the_tool_says_it_is(url: String) {
    let tools = ModelServer::start().await;
    let server = Setup::new(url, OPEN).start().await;
    let client = &server.client;
    let whole = |status, body: &str| Reply::Whole {
        status,
        headers: vec![("content-type".to_owned(), "text/plain".to_owned())],
        body: body.as_bytes().to_vec(),
    };
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let arguments = json!({"id": "a/../b", "n": 1.5, "tags": ["x", "y"], "none": null, "q": "&#"});
    for (n, (method, reply, path, body, answer)) in [
        (
            "GET",
            whole(200, "{\"a\": [1, null]}"),
            "/c/a%2F..%2Fb?fixed=1&n=1.5&q=%26%23&tags=x&tags=y",
            Value::Null,
            ("result", json!({"a": [1, null]})),
        ),
        (
            "DELETE",
            whole(204, ""),
            "/c/a%2F..%2Fb?fixed=1&n=1.5&q=%26%23&tags=x&tags=y",
            Value::Null,
            ("result", json!("")),
        ),
        (
            "POST",
            whole(201, "plain text \u{0} ü"),
            "/c/a%2F..%2Fb?fixed=1",
            json!({"n": 1.5, "tags": ["x", "y"], "none": null, "q": "&#"}),
            ("result", json!("plain text \u{0} ü")),
        ),
        (
            "PUT",
            // Too deep to be a part of an event: it stays text.
            whole(200, &deep),
            "/c/a%2F..%2Fb?fixed=1",
            json!({"n": 1.5, "tags": ["x", "y"], "none": null, "q": "&#"}),
            ("result", json!(deep)),
        ),
        (
            "PATCH",
            whole(422, "tags are wrong"),
            "/c/a%2F..%2Fb?fixed=1",
            json!({"n": 1.5, "tags": ["x", "y"], "none": null, "q": "&#"}),
            ("error", json!("The tool answered 422: tags are wrong")),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        tools.script(vec![reply]);
        let tool = json!({
            "method": method,
            "url": format!("{}/c/{{id}}?fixed=1", tools.origin()),
            "headers": {"X-Own": "yes", "User-Agent": "mine"},
        });
        client.post("/v1/agents", &caller(&format!("a{n}"), tool, &arguments)).await.expect(201);
        let run = client.run_to_end(&format!("a{n}"), &json!({"input": "Go"})).await;
        assert_eq!(run["status"], "completed", "{run}");
        let request = tools.requests().pop().expect("a request");
        assert_eq!((request.method.as_str(), request.path.as_str()), (method, path));
        assert_eq!(request.body, body, "{method}");
        assert_eq!(
            (request.headers["x-own"].as_str(), request.headers["user-agent"].as_str()),
            ("yes", "mine")
        );
        let events = log(client, run["run_id"].as_str().expect("run_id")).await;
        let (field, value) = answer;
        let event_type = if field == "result" { "tool_call.completed" } else { "tool_call.failed" };
        assert_eq!(only(&events, event_type)[field], value, "{method}");
    }
    // What does not fit the template fails without a request.
    let requests = tools.requests().len();
    for (n, arguments) in [json!({}), json!({"id": ".."}), json!({"id": ""}), json!({"id": [1]})]
        .into_iter()
        .enumerate()
    {
        let tool = json!({"url": format!("{}/c/{{id}}", tools.origin())});
        client.post("/v1/agents", &caller(&format!("b{n}"), tool, &arguments)).await.expect(201);
        let run = client.run_to_end(&format!("b{n}"), &json!({"input": "Go"})).await;
        let events = log(client, run["run_id"].as_str().expect("run_id")).await;
        let error =
            only(&events, "tool_call.failed")["error"].as_str().expect("an error").to_owned();
        assert!(error.contains("argument"), "{error}");
    }
    assert_eq!(tools.requests().len(), requests);
}

async fn a_call_whose_outcome_is_unknown_holds_up_nobody_and_can_be_cancelled(url: String) {
    let tools = ModelServer::start().await;
    tools.answer_with(|request| {
        if request.path == "/lost" { Reply::Reset } else { Reply::json(&json!("found")) }
    });
    let server = Setup::new(url, OPEN).start().await;
    let client = &server.client;
    let tool = |name: &str| {
        let url = format!("{}/{name}", tools.origin());
        json!({"type": "http", "name": name, "url": url})
    };
    let mut agent = caller("two", json!({"url": "https://example.com"}), &json!({}));
    agent["tools"] = json!([tool("lost"), tool("found")]);
    agent["script"][0]["tool_calls"] = json!([{"tool": "lost"}, {"tool": "found"}]);
    client.post("/v1/agents", &agent).await.expect(201);
    let run = client.run_to_end("two", &json!({"input": "Go"})).await;
    assert_eq!(run["status"], "requires_action", "{run}");
    let run_id = run["run_id"].as_str().expect("run_id");
    let events = log(client, run_id).await;
    // The other call of the step was made and answered all the same.
    assert_eq!(only(&events, "tool_call.completed")["tool"], "found");
    let unknown = only(&events, "tool_call.outcome_unknown");
    assert_eq!(run["required_actions"][0]["call_id"], unknown["call_id"]);
    // Whoever is to find out reads where to begin, in the log and in the step.
    let broke = "The connection to the tool broke before its answer was there.";
    assert_eq!(unknown["error"], broke);
    let steps = client.get(&format!("/v1/runs/{run_id}/steps")).await.expect(200);
    let call = &steps["data"][0]["tool_calls"][0];
    assert_eq!((&call["status"], &call["error"]), (&json!("unknown"), &json!(broke)), "{call}");
    let cancelled = client.post(&format!("/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    assert_eq!(cancelled["status"], "cancelled");
    let events = log(client, run_id).await;
    let answer = only(&events, "tool_call.failed");
    assert_eq!((&answer["call_id"], &answer["synthetic"]), (&unknown["call_id"], &json!(true)));
    assert_eq!(tools.requests().len(), 2);
}

async fn cancelling_a_run_closes_the_sockets_of_its_tools(url: String) {
    let tools = ModelServer::start().await;
    tools.answer_with(|_| Reply::Hang);
    let server = Setup::new(url, OPEN).start().await;
    let client: &Client = &server.client;
    let tool = json!({"url": tools.origin(), "timeout_seconds": 600});
    client.post("/v1/agents", &caller("hangs", tool, &json!({}))).await.expect(201);
    let run = client.post("/v1/agents/hangs/runs", &json!({"input": "Go"})).await.expect(202);
    tools.wait_requests(1).await;
    let path = format!("/v1/runs/{}/cancel", run["run_id"].as_str().expect("run_id"));
    let answer = client.post(&path, &json!({})).await;
    assert!(matches!(answer.status, 200 | 202), "on its way, or there already: {}", answer.body);
    // Long before its time is over.
    let closed = tokio::time::timeout(PATIENCE, tools.wait_closed_early(1)).await;
    assert!(closed.is_ok(), "the socket is still open");
    let run = client.wait(run["run_id"].as_str().expect("run_id")).await;
    assert_eq!(run["status"], "cancelled");
}

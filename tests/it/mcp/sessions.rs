//! A run has one session with each of its servers: shared by its calls, found again from step to step, and
//! closed when the run is not driven any more.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{YAML, log, of, serve};
use crate::support::client::Client;
use crate::support::mcp_server::{self, McpServer, session_of};
use crate::support::model_server::{End, Gate, ModelServer, Piece, Reply, Request, openai};
use crate::support::on_both_databases;
use crate::support::server::Setup;

on_both_databases! {
    the_calls_of_a_run_find_what_they_left_in_the_session;
    a_run_that_parks_closes_its_session;
    a_cancelled_run_closes_its_session_behind_its_calls;
    a_run_that_is_handed_over_closes_its_session;
    a_session_that_its_server_forgot_is_opened_anew;
    a_call_that_times_out_leaves_the_session_to_its_siblings;
    a_server_that_gives_no_session_is_called_all_the_same;
    a_server_that_does_not_let_go_is_left;
}

/// An agent that makes these calls, one list for each step.
async fn create(client: &Client, agent_id: &str, tools: &Value, steps: &[Value]) {
    let turns = steps.iter().map(|calls| json!({"text": "Calling.", "tool_calls": calls}));
    let script: Vec<Value> = turns.chain([json!({"text": "Done."})]).collect();
    let agent = json!({
        "agent_id": agent_id, "model": "builtin/script", "tools": tools, "script": script,
    });
    client.post("/v1/agents", &agent).await.expect(201);
}

async fn start(client: &Client, agent_id: &str) -> String {
    let path = format!("/v1/agents/{agent_id}/runs");
    let run = client.post(&path, &json!({"input": "Go"})).await.expect(202);
    run["run_id"].as_str().expect("run_id").to_owned()
}

fn act() -> Value {
    json!({"tool": "remote__act"})
}

/// A server that counts calls, in each session by itself.
async fn counting() -> McpServer {
    let mcp = McpServer::start().await;
    let counts = Mutex::new(HashMap::<String, u32>::new());
    mcp.on_call(move |request| {
        let mut counts = counts.lock().expect("no panic");
        let count = counts.entry(session_of(request).unwrap_or_default().to_owned()).or_default();
        *count += 1;
        mcp_server::text(request, &count.to_string())
    });
    mcp
}

fn results(log: &[Value]) -> Vec<String> {
    let results = of(log, "tool_call.completed").into_iter();
    results.map(|event| event["result"].as_str().expect("text").to_owned()).collect()
}

fn sessions(calls: &[Request]) -> Vec<&str> {
    calls.iter().map(|call| session_of(call).expect("a session")).collect()
}

async fn the_calls_of_a_run_find_what_they_left_in_the_session(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let (mcp, other) = (counting().await, counting().await);
    // A server that is named twice, for tools of different effects, is one server.
    let (once, read) = (mcp.tool("remote", "once"), mcp.tool("same", "read"));
    let tools = json!([once, read, other.tool("other", "once")]);
    let (same, another) = (json!({"tool": "same__act"}), json!({"tool": "other__act"}));
    let steps = [json!([act(), same, another]), json!([act()])];
    create(client, "counting", &tools, &steps).await;
    let end = client.run_to_end("counting", &json!({"input": "Go"})).await;
    assert_eq!(end["status"], "completed", "{end}");
    let mut told = results(&log(client, &end).await);
    assert_eq!(told.pop().as_deref(), Some("3"), "the second step finds what the first one left");
    told.sort();
    assert_eq!(
        told,
        ["1", "1", "2"],
        "two calls at once share a session; the other server has its own"
    );
    // One for each list, one for the run; all are closed.
    assert_eq!(mcp.requests("initialize").len(), 3);
    mcp.wait_closed(3).await;
    // The next run finds nothing of it.
    let end = client.run_to_end("counting", &json!({"input": "Go"})).await;
    assert!(results(&log(client, &end).await).ends_with(&["3".to_owned()]));
    mcp.wait_closed(4).await;
    assert_eq!(mcp.requests("initialize").len(), 4);
    assert_eq!(sessions(&mcp.calls()), [["session-3"; 3], ["session-4"; 3]].concat());
}

async fn a_run_that_parks_closes_its_session(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let mcp = counting().await;
    let ask = json!({"type": "client", "name": "ask", "parameters": {"type": "object"}});
    let tools = json!([mcp.tool("remote", "once"), ask]);
    create(client, "asking", &tools, &[json!([act()]), json!([{"tool": "ask"}]), json!([act()])])
        .await;
    let run_id = start(client, "asking").await;
    let parked = client.wait(&run_id).await;
    assert_eq!(parked["status"], "requires_action", "{parked}");
    mcp.wait_closed(2).await;
    let call_id = &parked["required_actions"][0]["call_id"];
    let answer = json!({"call_id": call_id, "success": true, "result": "yes"});
    let path = format!("/v1/runs/{run_id}/tool-results");
    client.post(&path, &answer).await.expect(202);
    let mut end = client.wait(&run_id).await;
    while end["status"] != "completed" {
        assert!(end["completed_at"].is_null(), "{end}");
        end = client.wait(&run_id).await;
    }
    mcp.wait_closed(3).await;
    assert_eq!(sessions(&mcp.calls()), ["session-2", "session-3"]);
}

async fn a_cancelled_run_closes_its_session_behind_its_calls(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let mcp = McpServer::start().await;
    mcp.on_call(|_| Reply::Hang);
    let tools = json!([mcp.tool("remote", "once")]);
    create(client, "slow", &tools, &[json!([act(), act()])]).await;
    let run_id = start(client, "slow").await;
    mcp.wait_for("tools/call", 2).await;
    client.post(&format!("/v1/runs/{run_id}/cancel"), &json!({})).await;
    assert_eq!(client.wait(&run_id).await["status"], "cancelled");
    mcp.wait_closed(2).await;
    let requests = mcp.http.requests();
    let last: Vec<_> = requests.iter().rev().take(3).collect();
    assert_eq!(last[0].method, "DELETE", "the session goes last");
    assert_eq!(session_of(last[0]), Some("session-2"));
    for told in &last[1..] {
        assert_eq!(told.body["method"], "notifications/cancelled");
    }
}

async fn a_run_that_is_handed_over_closes_its_session(url: String) {
    let model = ModelServer::start().await;
    let provider =
        format!("providers:\n  p: {{ kind: openai, base_url: \"{}\" }}\n", model.base_url());
    let setup = Setup::new(url, format!("{YAML}{provider}"));
    let server = setup.start().await;
    let mcp = counting().await;
    // The second turn is being written while the server is told to stop.
    let told = Gate::new();
    let gate = told.clone();
    model.answer_with(move |request| {
        let messages = request.body["messages"].as_array().expect("messages");
        let act = || openai::tool_calls(&[("remote__act", "{}")]);
        match messages.iter().filter(|message| message["role"] == "tool").count() {
            0 | 2 => act(),
            1 => act().with(0, Piece::Gate(gate.clone())),
            _ => openai::text("Done."),
        }
    });
    let agent = json!({
        "agent_id": "moving", "model": "p/m", "tools": [mcp.tool("remote", "once")],
    });
    server.client.post("/v1/agents", &agent).await.expect(201);
    let run_id = start(&server.client, "moving").await;
    model.wait_requests(2).await;
    server.signal("TERM");
    while !server.log().contains("stopping: no new connections") {
        tokio::task::yield_now().await;
    }
    told.open();
    assert!(server.gone().await.success());
    assert_eq!(mcp.closed(), ["session-1", "session-2"], "before the process is gone");
    let server = setup.start().await;
    let end = server.client.wait(&run_id).await;
    assert_eq!(end["status"], "completed", "{end}");
    let told = results(&log(&server.client, &end).await);
    assert_eq!(told, ["1", "1", "2"], "the next driver begins a new session");
}

async fn a_session_that_its_server_forgot_is_opened_anew(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    // By the protocol it says 404; servers after its examples say 400 and the rest in words.
    for status in [404, 400] {
        for effect in ["read", "once"] {
            let mcp = McpServer::start().await;
            let (forget, calls) = (mcp.forgetting(), AtomicUsize::new(0));
            mcp.on_call(move |request| match calls.fetch_add(1, Ordering::SeqCst) {
                0 => {
                    if status == 404 {
                        forget();
                    }
                    mcp_server::text(request, "1")
                }
                1 if status == 400 => {
                    mcp_server::error_status(request, 400, -32000, "No valid session ID provided")
                }
                _ => mcp_server::text(request, "again"),
            });
            let agent_id = format!("{effect}-{status}");
            let tools = json!([mcp.tool("remote", effect)]);
            create(client, &agent_id, &tools, &[json!([act()]), json!([act()]), json!([act()])])
                .await;
            let end = client.run_to_end(&agent_id, &json!({"input": "Go"})).await;
            assert_eq!(end["status"], "completed", "{agent_id}: {end}");
            let log = log(client, &end).await;
            let told = results(&log);
            let failed = of(&log, "tool_call.failed");
            let calls = mcp.calls();
            if effect == "read" {
                assert_eq!(told, ["1", "again", "again"], "{agent_id}");
                assert_eq!(calls.len(), 4, "the second call was made again: {agent_id}");
            } else {
                // It left: it is not made again behind anybody's back.
                assert_eq!(told, ["1", "again"], "{agent_id}");
                let why = failed[0]["error"].as_str().expect("words");
                assert!(why.contains("has forgotten the session and what it kept in it"), "{why}");
                assert_eq!(calls.len(), 3, "{agent_id}");
            }
            let sessions = sessions(&calls);
            assert_eq!(sessions[..2], ["session-2", "session-2"], "{agent_id}");
            assert!(sessions[2..].iter().all(|session| *session == "session-3"), "{sessions:?}");
        }
    }
}

async fn a_call_that_times_out_leaves_the_session_to_its_siblings(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let mcp = McpServer::start().await;
    mcp.on_call(|request| match request.body["params"]["arguments"]["slow"] == true {
        // The head of an answer is there, and the rest never comes.
        true => mcp_server::events(&[": wait\n\n".to_owned()], End::Hang),
        false => mcp_server::text(request, "quick"),
    });
    // Long enough for each attempt to leave; its siblings may take as long as they like.
    let mut short = mcp.tool("short", "read");
    short["timeout_seconds"] = json!(3);
    let slow = json!({"tool": "short__act", "arguments": {"slow": true}});
    let steps = [json!([slow, act()]), json!([act()])];
    create(client, "patient", &json!([mcp.tool("remote", "read"), short]), &steps).await;
    let end = client.run_to_end("patient", &json!({"input": "Go"})).await;
    assert_eq!(end["status"], "completed", "{end}");
    let log = log(client, &end).await;
    assert_eq!(results(&log), ["quick", "quick"]);
    assert_eq!(of(&log, "tool_call.failed")[0]["error"], "The tool did not answer within 3 s.");
    mcp.http.wait_closed_early(3).await;
    mcp.wait_closed(3).await;
    assert_eq!(mcp.requests("notifications/cancelled").len(), 3, "one for each attempt");
    // One for each list, one for the run.
    assert_eq!(sessions(&mcp.calls()), ["session-3"; 5], "all in one session");
}

async fn a_server_that_gives_no_session_is_called_all_the_same(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let mcp = McpServer::start().await;
    mcp.on_open(|request| {
        // As a stream, since a scripted success as JSON is given a session.
        let Reply::Whole { body, .. } = mcp_server::initialized(request) else { unreachable!() };
        let body = String::from_utf8(body).expect("JSON");
        mcp_server::events(&[format!("data: {body}\n\n")], End::Clean)
    });
    create(
        client,
        "plain",
        &json!([mcp.tool("remote", "once")]),
        &[json!([act()]), json!([act()])],
    )
    .await;
    let end = client.run_to_end("plain", &json!({"input": "Go"})).await;
    assert_eq!(end["status"], "completed", "{end}");
    assert_eq!(results(&log(client, &end).await), ["done", "done"]);
    assert!(mcp.calls().iter().all(|call| session_of(call).is_none()));
    assert_eq!(mcp.requests("initialize").len(), 2, "the greetings are not repeated for each call");
    assert!(mcp.closed().is_empty());
}

async fn a_server_that_does_not_let_go_is_left(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    // No run waits for a good-bye, for which a server is given two seconds. A run may take as long on a
    // busy machine, too; not all of these do.
    let mut patient = 0;
    loop {
        let mcp = McpServer::start().await;
        mcp.on_close(|_| Reply::Hang);
        let (agent_id, tools) = (format!("leaving-{patient}"), json!([mcp.tool("remote", "once")]));
        create(client, &agent_id, &tools, &[json!([act()])]).await;
        let began = Instant::now();
        let end = client.run_to_end(&agent_id, &json!({"input": "Go"})).await;
        assert_eq!(end["status"], "completed", "{end}");
        let took = began.elapsed();
        let left = tokio::time::timeout(Duration::from_secs(60), mcp.http.wait_closed_early(2));
        left.await.expect("it is given up");
        if took < Duration::from_secs(2) {
            return;
        }
        patient += 1;
        assert!(patient < 5, "the run waited for {took:?}");
    }
}

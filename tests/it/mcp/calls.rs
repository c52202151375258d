//! What becomes of calls: their answers, their failures, and the three effects.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Handler, log, of, run, serve};
use crate::support::mcp_server::{self, McpServer, event, events};
use crate::support::model_server::{End, Gate, Piece, Reply, Request};
use crate::support::on_both_databases;

on_both_databases! {
    every_answer_becomes_what_the_model_can_read;
    a_call_that_breaks_off_is_repeated_if_its_effect_allows_it_and_asked_for_otherwise;
    a_status_that_is_no_success_is_a_known_failure_of_a_once_call;
    an_answer_that_breaks_off_is_taken_up_where_it_was;
    a_cancelled_run_tells_the_server_and_closes_the_connection;
    a_crash_in_the_middle_of_a_call_repeats_it_or_asks;
    a_secret_goes_to_its_server_and_comes_back_from_nowhere;
}

fn result(value: Value) -> Handler {
    Box::new(move |request| mcp_server::result(request, &value))
}

async fn every_answer_becomes_what_the_model_can_read(url: String) {
    let (_setup, server) = serve(url).await;
    let mcp = McpServer::start().await;
    let completed = |value: Value| ("tool_call.completed", "result", value);
    let failed = |why: &str| ("tool_call.failed", "error", json!(why));
    let structured =
        json!({"content": [{"type": "text", "text": "7"}], "structuredContent": {"n": 7}});
    let is_error = json!({"content": [{"type": "text", "text": "no such file"}], "isError": true});
    let as_stream = |request: &Request| {
        let note = json!({"jsonrpc": "2.0", "method": "notifications/message",
            "params": {"level": "info", "data": "working"}});
        let result = json!({"content": [{"type": "text", "text": "streamed"}]});
        let all = [format!("data: {note}\n\n"), event(&request.body["id"], &result)];
        events(&all, End::Hang)
    };
    // A server may ask its client for things: ours has nothing to give, and says so, whereupon the server
    // goes on.
    let declined = Gate::new();
    let goes_on = declined.clone();
    let asking = move |request: &Request| {
        let ask = |id: i32, method: &str, params: Value| {
            let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
            format!("data: {request}\n\n")
        };
        let sample = json!({"messages": [], "maxTokens": 5});
        let elicit =
            json!({"message": "Name?", "requestedSchema": {"type": "object", "properties": {}}});
        let all = [
            ask(1, "sampling/createMessage", sample),
            ask(2, "elicitation/create", elicit),
            event(&request.body["id"], &json!({"content": [{"type": "text", "text": "asked"}]})),
        ];
        events(&all, End::Clean).with(2, Piece::Gate(goes_on.clone()))
    };
    let refused = |request: &Request| mcp_server::error(request, -32602, "Bad arguments, sorry");
    let cases: Vec<(Handler, (&str, &str, Value))> = vec![
        (result(json!({"content": [{"type": "text", "text": "done"}]})), completed(json!("done"))),
        (result(structured), completed(json!({"n": 7}))),
        (result(is_error), failed("no such file")),
        (Box::new(as_stream), completed(json!("streamed"))),
        (Box::new(asking), completed(json!("asked"))),
        (Box::new(refused), failed("The MCP server refused the call: Bad arguments, sorry")),
        (
            result(json!({"unheard": "of"})),
            failed("The MCP server answered with something that is no result of a tool."),
        ),
        (
            Box::new(|_| Reply::Whole {
                status: 307,
                headers: vec![("location".to_owned(), "/elsewhere".to_owned())],
                body: Vec::new(),
            }),
            failed(
                "The MCP server answered with HTTP status 307 (it redirects to another path of its \
                 host, and that is not followed: change the tool's url).",
            ),
        ),
    ];
    for (n, (answer, (event, field, value))) in cases.into_iter().enumerate() {
        mcp.on_call(answer);
        let (agent_id, tool) = (format!("agent-{n}"), mcp.tool("remote", "once"));
        let mut running = Box::pin(run(&server.client, &agent_id, tool));
        let (end, log) = tokio::select! {
            done = &mut running => done,
            () = mcp.wait_until(|request| request.body["result"]["action"] == "decline") => {
                declined.open();
                running.await
            }
        };
        assert_eq!(end["status"], "completed", "{n}: {end}");
        let answers = of(&log, event);
        assert_eq!(answers.len(), 1, "{n}: {log:?}");
        assert_eq!(answers[0][field], value, "{n}");
        assert_eq!(mcp.calls().len(), n + 1, "no call was made twice");
    }
    // Each call carries its key, and the headers of the protocol are ours.
    let call = mcp.calls().pop().expect("a call");
    let key = call.body["params"]["_meta"]["stepwell/idempotency-key"].as_str().expect("a key");
    assert!(key.starts_with("run_") && key.contains(":call_"), "{key}");
    assert_eq!(call.headers["mcp-protocol-version"], "2025-06-18");
    assert!(call.headers["mcp-session-id"].starts_with("session-"));
    assert_eq!(call.headers["accept"], "application/json, text/event-stream");
}

async fn a_call_that_breaks_off_is_repeated_if_its_effect_allows_it_and_asked_for_otherwise(
    url: String,
) {
    let (_setup, server) = serve(url).await;
    // Before the head of an answer, in the middle of a JSON answer, and of a stream; and answers that
    // say nothing of what the server did.
    let half = b"{\"jsonrpc\":".to_vec();
    let breaks = [
        Reply::Reset,
        Reply::Stream {
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            pieces: vec![Piece::Bytes(half)],
            end: End::Reset,
        },
        events(&["data: {}\n\n".to_owned()], End::Close),
        events(&["data: {}\n\n".to_owned()], End::Clean),
        Reply::json(&json!({"jsonrpc": "2.0", "id": 9, "result": {"content": []}})),
        Reply::json(&json!("no JSON-RPC")),
        Reply::Whole {
            status: 200,
            headers: vec![("content-type".to_owned(), "text/html".to_owned())],
            body: b"<html>".to_vec(),
        },
        Reply::Whole { status: 202, headers: Vec::new(), body: Vec::new() },
    ];
    for (n, broken) in breaks.into_iter().enumerate() {
        for effect in ["read", "idempotent", "once"] {
            let mcp = McpServer::start().await;
            let (count, broken) = (Arc::new(AtomicUsize::new(0)), broken.clone());
            let counted = count.clone();
            mcp.on_call(move |request| match counted.fetch_add(1, Ordering::SeqCst) {
                0 | 1 => broken.clone(),
                _ => mcp_server::text(request, "at last"),
            });
            let agent_id = format!("{effect}-{n}");
            let (end, log) = run(&server.client, &agent_id, mcp.tool("remote", effect)).await;
            let calls = mcp.calls();
            if effect == "once" {
                assert_eq!(end["status"], "requires_action", "{agent_id}: {end}");
                assert_eq!(end["required_actions"][0]["type"], "tool_outcome");
                assert_eq!(of(&log, "tool_call.outcome_unknown").len(), 1);
                assert_eq!(calls.len(), 1, "{agent_id}: it was made once");
            } else {
                assert_eq!(end["status"], "completed", "{agent_id}: {end}");
                assert_eq!(of(&log, "tool_call.completed")[0]["result"], "at last");
                assert_eq!(calls.len(), 3, "{agent_id}");
                let keys = calls.iter().map(|call| &call.body["params"]["_meta"]);
                let keys: Vec<&Value> =
                    keys.map(|meta| &meta["stepwell/idempotency-key"]).collect();
                assert!(keys.iter().all(|key| *key == keys[0]), "one key: {keys:?}");
            }
        }
    }
}

async fn a_status_that_is_no_success_is_a_known_failure_of_a_once_call(url: String) {
    let (_setup, server) = serve(url).await;
    for (effect, status, attempts) in
        [("once", 503, 1), ("once", 429, 1), ("once", 400, 1), ("read", 503, 3), ("read", 400, 1)]
    {
        let mcp = McpServer::start().await;
        mcp.on_call(move |_| Reply::status(status));
        let agent_id = format!("{effect}-{status}");
        let (end, log) = run(&server.client, &agent_id, mcp.tool("remote", effect)).await;
        assert_eq!(end["status"], "completed", "{agent_id}: {end}");
        let failed = of(&log, "tool_call.failed");
        let told = format!("The MCP server answered with HTTP status {status}.");
        assert_eq!(failed[0]["error"], told);
        assert_eq!(mcp.calls().len(), attempts, "{agent_id}");
    }
    // A server that asks to be left alone for longer than a run waits is not asked again.
    let mcp = McpServer::start().await;
    mcp.on_call(|_| Reply::error(429, json!({}), &[("retry-after", "60")]));
    let (end, _) = run(&server.client, "left-alone", mcp.tool("remote", "read")).await;
    assert_eq!(end["status"], "completed", "{end}");
    assert_eq!(mcp.calls().len(), 1);
}

async fn an_answer_that_breaks_off_is_taken_up_where_it_was(url: String) {
    let (_setup, server) = serve(url).await;
    let mcp = McpServer::start().await;
    mcp.on_call(|_| events(&["id: 5\nretry: 0\ndata: {}\n\n".to_owned()], End::Close));
    mcp.on_resume(|request| {
        assert_eq!(request.headers["last-event-id"], "5");
        let result = json!({"content": [{"type": "text", "text": "and so on"}]});
        // The session's first request was the greeting, its second the call.
        events(&[event(&json!(1), &result)], End::Clean)
    });
    let (end, log) = run(&server.client, "resumed", mcp.tool("remote", "once")).await;
    assert_eq!(end["status"], "completed", "{end}");
    assert_eq!(of(&log, "tool_call.completed")[0]["result"], "and so on");
    assert_eq!(mcp.calls().len(), 1);
}

async fn a_cancelled_run_tells_the_server_and_closes_the_connection(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let mcp = McpServer::start().await;
    mcp.on_call(|_| Reply::Hang);
    // Nothing but the cancel ends the call in time.
    let mut tool = mcp.tool("remote", "once");
    tool["timeout_seconds"] = json!(600);
    let agent = super::agent("slow", &json!([tool]), &json!([{"tool": "remote__act"}]));
    client.post("/v1/agents", &agent).await.expect(201);
    let run = client.post("/v1/agents/slow/runs", &json!({"input": "Go"})).await.expect(202);
    mcp.wait_for("tools/call", 1).await;
    let cancel = format!("/v1/runs/{}/cancel", run["run_id"].as_str().expect("run_id"));
    client.post(&cancel, &json!({})).await;
    let told = async {
        let end = client.wait(run["run_id"].as_str().expect("run_id")).await;
        mcp.wait_for("notifications/cancelled", 1).await;
        mcp.http.wait_closed_early(1).await;
        end
    };
    let end = tokio::time::timeout(Duration::from_secs(60), told).await.expect("in time");
    assert_eq!(end["status"], "cancelled");
    let told = mcp.requests("notifications/cancelled").remove(0);
    assert_eq!(told.body["params"]["requestId"], mcp.calls()[0].body["id"]);
    assert_eq!(of(&log(client, &end).await, "tool_call.failed")[0]["synthetic"], true);
}

async fn a_crash_in_the_middle_of_a_call_repeats_it_or_asks(url: String) {
    let (setup, server) = serve(url).await;
    let (read, once) = (McpServer::start().await, McpServer::start().await);
    let tools = json!([read.tool("r", "read"), once.tool("o", "once")]);
    let calls = json!([{"tool": "r__act"}, {"tool": "o__act"}]);
    let agent = super::agent("crashing", &tools, &calls);
    server.client.post("/v1/agents", &agent).await.expect(201);
    read.on_call(|_| Reply::Hang);
    once.on_call(|_| Reply::Hang);
    let path = "/v1/agents/crashing/runs";
    let run = server.client.post(path, &json!({"input": "Go"})).await.expect(202);
    read.wait_for("tools/call", 1).await;
    once.wait_for("tools/call", 1).await;
    server.kill();
    read.on_call(|request| mcp_server::text(request, "again"));
    let server = setup.start().await;
    let parked = server.client.wait(run["run_id"].as_str().expect("run_id")).await;
    assert_eq!(parked["status"], "requires_action", "{parked}");
    assert_eq!(parked["required_actions"][0]["type"], "tool_outcome");
    assert_eq!(parked["required_actions"][0]["tool"], "o__act");
    let log = log(&server.client, &parked).await;
    assert_eq!(of(&log, "tool_call.completed")[0]["result"], "again");
    let keys: Vec<Value> = read.calls().iter().map(|c| c.body["params"]["_meta"].clone()).collect();
    assert_eq!((read.calls().len(), once.calls().len()), (2, 1));
    let key = |meta: &Value| meta["stepwell/idempotency-key"].clone();
    assert_eq!(key(&keys[0]), key(&keys[1]), "the same key on both attempts");
    let sessions: Vec<_> =
        read.calls().iter().map(|c| c.headers["mcp-session-id"].clone()).collect();
    assert_ne!(sessions[0], sessions[1], "the session ended with the process");
    // The new process did not know what the servers have, and asked.
    assert_eq!(read.requests("tools/list").len(), 2);
}

async fn a_secret_goes_to_its_server_and_comes_back_from_nowhere(url: String) {
    // A variable that the server inherits from cargo.
    let value = env!("CARGO_PKG_DESCRIPTION");
    let secret = "{ env: CARGO_PKG_DESCRIPTION, hosts: [127.0.0.1] }";
    let yaml = format!("{}secrets: {{ T: {secret} }}\n", super::YAML);
    let server = crate::support::server::Setup::new(url, yaml).start().await;
    let mcp = McpServer::start().await;
    let echo = |request: &Request| request.headers["authorization"].clone();
    mcp.on_list(move |request| {
        let mut tool = mcp_server::tool("act");
        tool["description"] = json!(echo(request));
        let named = mcp_server::tool(&echo(request));
        mcp_server::tools(request, &json!([tool, named]))
    });
    let mut tool = mcp.tool("remote", "once");
    tool["headers"] = json!({"authorization": "Bearer ${secret.T}"});
    let answers: [(Handler, Value); 3] = [
        (Box::new(move |r| mcp_server::text(r, &echo(r))), json!("Bearer [secret T]")),
        (
            Box::new(move |r| mcp_server::error(r, -32000, &echo(r))),
            json!("The MCP server refused the call: Bearer [secret T]"),
        ),
        (
            Box::new(move |r| {
                let error =
                    json!({"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": echo(r)}});
                let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
                Reply::Whole { status: 403, headers, body: error.to_string().into_bytes() }
            }),
            json!("The MCP server answered with HTTP status 403: Bearer [secret T]."),
        ),
    ];
    for (n, (answer, told)) in answers.into_iter().enumerate() {
        mcp.on_call(answer);
        let (end, log) = run(&server.client, &format!("agent-{n}"), tool.clone()).await;
        let answered = [of(&log, "tool_call.completed"), of(&log, "tool_call.failed")].concat();
        let is = answered[0].get("result").unwrap_or(&answered[0]["error"]);
        assert_eq!(*is, told, "{n}");
        let calls = mcp.calls();
        assert_eq!(calls[n].headers["authorization"], format!("Bearer {value}"));
        let agent = server.client.get(&format!("/v1/agents/agent-{n}")).await.expect(200);
        for shown in [end.to_string(), json!(log).to_string(), agent.to_string(), server.log()] {
            assert!(!shown.contains(value), "{n}: {shown}");
        }
    }
    tool["headers"] = json!({"authorization": "Bearer ${secret.NONE}"});
    let agent = super::agent("unknown", &json!([tool]), &json!([]));
    assert_eq!(server.client.post("/v1/agents", &agent).await.status, 422);
}

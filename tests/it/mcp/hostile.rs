//! What a hostile server can do: fail its own calls, and no more.

use serde_json::{Value, json};

use super::{Handler, agent, log, of, run, serve};
use crate::support::mcp_server::{self, McpServer, events, tool, tools};
use crate::support::model_server::{End, Piece, Reply, Request};
use crate::support::on_both_databases;

on_both_databases! {
    a_list_without_end_is_cut_or_refused;
    an_answer_without_end_is_broken_off;
    hostile_bytes_fail_a_call_and_not_the_run;
}

async fn a_list_without_end_is_cut_or_refused(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    // Ten thousand tools, in small pages without end: the model gets 128.
    let endless = McpServer::start().await;
    endless.on_list(|request| {
        let from = request.body["params"]["cursor"].as_str().map_or(0, |c| c.parse().unwrap());
        let page: Vec<Value> = (from..from + 10).map(|n| tool(&format!("t{n}"))).collect();
        let next = (from + 10).to_string();
        mcp_server::result(request, &json!({"tools": page, "nextCursor": next}))
    });
    let (end, log) = run(client, "endless", endless.tool("remote", "read")).await;
    assert_eq!(end["status"], "completed", "{end}");
    let told = of(&log, "tool_call.failed")[0]["error"].as_str().expect("words").to_owned();
    assert_eq!(told.matches("remote__t").count(), 128, "{told}");
    assert!(endless.requests("tools/list").len() <= 100);
    // What cannot be a list ends the run at once, and says why.
    let big = |request: &Request| {
        let mut tool = tool("act");
        tool["description"] = json!("x".repeat(5 * 1024 * 1024));
        tools(request, &json!([tool]))
    };
    let cases: [(&str, Handler, &str); 4] = [
        ("big", Box::new(big), "sent too much"),
        (
            "garbage",
            Box::new(|_| Reply::json(&json!([1, 2]))),
            "answered with something that is no answer to the request",
        ),
        (
            "refusing",
            Box::new(|request| mcp_server::error(request, -32601, "Method not found")),
            "refused to list its tools: Method not found",
        ),
        (
            "other",
            Box::new(|request| mcp_server::result(request, &json!({"tools": 7}))),
            "did not answer in the way of the protocol",
        ),
    ];
    for (name, answer, what) in cases {
        let mcp = McpServer::start().await;
        mcp.on_list(answer);
        let (end, _) = run(client, name, mcp.tool("remote", "read")).await;
        let message = format!("The MCP server of the tool \"remote\" {what}.");
        assert_eq!((&end["status"], &end["error"]["message"]), (&json!("failed"), &json!(message)));
        assert_eq!(mcp.requests("tools/list").len(), 1, "{name}: it is not asked again");
    }
}

async fn an_answer_without_end_is_broken_off(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let note = json!({"jsonrpc": "2.0", "method": "notifications/message",
        "params": {"level": "info", "data": "x".repeat(1000)}});
    let note = format!("data: {note}\n\n").into_bytes();
    let flood = |bytes: Vec<u8>, times| Reply::Stream {
        headers: Vec::new(),
        pieces: vec![Piece::Repeat(bytes, times)],
        end: End::Hang,
    };
    let before = server.memory();
    // So many events, one line without end, and comments without end.
    for (name, piece, times) in [
        ("notes", note, 20_000),
        ("line", b"data: x".repeat(1000), 4_000),
        ("comments", b": x\n".repeat(1000), 6_000),
    ] {
        let mcp = McpServer::start().await;
        let reply = flood(piece, times);
        mcp.on_call(move |_| reply.clone());
        let (end, log) = run(client, name, mcp.tool("remote", "read")).await;
        assert_eq!(end["status"], "completed", "{name}: {end}");
        assert_eq!(of(&log, "tool_call.failed")[0]["error"], "The MCP server sent too much.");
        assert_eq!(mcp.calls().len(), 3);
    }
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 200 * 1024 * 1024, "{grown} bytes");
    // A stream that has an event for us to go on from, again and again.
    let mcp = McpServer::start().await;
    let again = || events(&["id: 1\nretry: 0\ndata: {}\n\n".to_owned()], End::Clean);
    mcp.on_call(move |_| again());
    mcp.on_resume(move |_| events(&["id: 1\nretry: 0\ndata: {}\n\n".to_owned()], End::Clean));
    let (end, _) = run(client, "again", mcp.tool("remote", "once")).await;
    assert_eq!(end["required_actions"][0]["type"], "tool_outcome", "{end}");
    let resumed = mcp.http.requests();
    let resumed = resumed.iter().filter(|r| r.headers.contains_key("last-event-id")).count();
    assert!((1..=5).contains(&resumed), "{resumed}");
    // A stream that says nothing: the time-out of the call ends it.
    let mcp = McpServer::start().await;
    mcp.on_call(|_| events(&[], End::Hang));
    let mut silent = mcp.tool("remote", "read");
    // Long enough for each attempt to leave.
    silent["timeout_seconds"] = json!(3);
    let (_, log) = run(client, "silent", silent).await;
    let told = "The tool did not answer within 3 s.";
    assert_eq!(of(&log, "tool_call.failed")[0]["error"], told);
    assert_eq!(mcp.calls().len(), 3);
}

async fn hostile_bytes_fail_a_call_and_not_the_run(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let mcp = McpServer::start().await;
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let texts: [String; 4] = [
        r#"{"content":[{"type":"text","text":"a\u0000b"}]}"#.to_owned(),
        r#"{"content":[{"type":"text","text":"\ud800"}]}"#.to_owned(),
        format!(r#"{{"structuredContent":{deep}}}"#),
        format!(r#"{{"content":[{{"type":"text","text":"{}"}}]}}"#, "é".repeat(500_000)),
    ];
    let calls = json!([{"tool": "remote__act"}]);
    let tools = json!([mcp.tool("remote", "read")]);
    client.post("/v1/agents", &agent("bytes", &tools, &calls)).await.expect(201);
    for (n, text) in texts.into_iter().enumerate() {
        mcp.on_call(move |request| {
            let id = &request.body["id"];
            let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{text}}}"#).into_bytes();
            let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
            Reply::Whole { status: 200, headers, body }
        });
        let end = client.run_to_end("bytes", &json!({"input": "Go"})).await;
        assert_eq!(end["status"], "completed", "{n}: {end}");
        let log = log(client, &end).await;
        let answered = of(&log, "tool_call.completed").len() + of(&log, "tool_call.failed").len();
        assert_eq!(answered, 1, "{n}");
    }
}

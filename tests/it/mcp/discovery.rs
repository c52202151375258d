//! What servers have: asked for before the first step, chosen, named, and waited for.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{agent, log, of, run, serve};
use crate::support::mcp_server::{self, McpServer, tool, tools};
use crate::support::model_server::Reply;
use crate::support::on_both_databases;

on_both_databases! {
    the_model_is_offered_what_is_allowed_under_names_that_fit;
    a_list_is_asked_for_once_and_again_when_a_tool_is_unknown;
    a_run_waits_for_a_server_that_is_down_and_fails_when_it_stays_down;
    a_run_that_has_a_wrong_url_says_what_is_wrong;
    a_server_that_knows_no_greetings_is_spoken_to_without;
    an_agent_with_a_tool_that_cannot_be_is_refused;
}

async fn the_model_is_offered_what_is_allowed_under_names_that_fit(url: String) {
    let (_setup, server) = serve(url).await;
    let mcp = McpServer::start().await;
    let schema = json!({"type": "object", "required": ["city"],
        "properties": {"city": {"type": "string"}}});
    mcp.on_list(move |request| {
        let strict = json!({"name": "strict", "inputSchema": schema});
        let loose = json!({"name": "loose", "inputSchema": {"properties": {"a": {"type": "odd"}}}});
        let all = json!([tool("act"), tool("with.dot"), strict, loose, tool("secret")]);
        tools(request, &all)
    });
    let mut remote = mcp.tool("remote", "read");
    remote["allowed_tools"] = json!(["act", "with.dot", "strict", "loose", "absent"]);
    let calls = json!([
        {"tool": "remote__nothing"}, {"tool": "remote__secret"}, {"tool": "remote"},
        {"tool": "remote__strict", "arguments": {"city": 7}},
        {"tool": "remote__strict", "arguments": {"city": "Paris"}},
        {"tool": "remote__loose", "arguments": {"a": 7}},
    ]);
    let agent = agent("choosy", &json!([remote]), &calls);
    server.client.post("/v1/agents", &agent).await.expect(201);
    let end = server.client.run_to_end("choosy", &json!({"input": "Go"})).await;
    assert_eq!(end["status"], "completed", "{end}");
    let log = log(&server.client, &end).await;
    let errors = of(&log, "tool_call.failed");
    let errors: Vec<&str> = errors.iter().map(|e| e["error"].as_str().expect("words")).collect();
    assert_eq!(errors.len(), 4, "{errors:?}");
    for (error, name) in errors.iter().zip(["remote__nothing", "remote__secret", "remote"]) {
        let told = format!("There is no tool {name:?}. Tools: remote__act, remote__with_dot_");
        assert!(error.starts_with(&told), "{error}");
        assert!(error.ends_with(", remote__strict, remote__loose."), "{error}");
    }
    assert!(errors[3].contains("/city"), "{errors:?}");
    let called: Vec<_> = mcp.calls().iter().map(|c| c.body["params"]["name"].clone()).collect();
    assert_eq!(called.len(), 2, "{called:?}");
    assert!(called.contains(&json!("strict")) && called.contains(&json!("loose")), "{called:?}");
    assert!(server.log().contains("allowed_tools names a tool that the MCP server lacks"));
    // A changed name is told, not guessed: with it, the tool is called by its own.
    let name = errors[0].split(", ").nth(1).expect("a second name").to_owned();
    let calls = json!([{"tool": name}]);
    let tools = json!([mcp.tool("remote", "read")]);
    server.client.post("/v1/agents", &super::agent("dots", &tools, &calls)).await.expect(201);
    server.client.run_to_end("dots", &json!({"input": "Go"})).await;
    assert_eq!(mcp.calls().last().expect("a call").body["params"]["name"], "with.dot");
}

async fn a_list_is_asked_for_once_and_again_when_a_tool_is_unknown(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let mcp = McpServer::start().await;
    run(client, "many", mcp.tool("remote", "read")).await;
    for _ in 0..5 {
        client.run_to_end("many", &json!({"input": "Go"})).await;
    }
    assert_eq!(mcp.requests("tools/list").len(), 1);
    assert_eq!(mcp.calls().len(), 6);
    mcp.on_call(|request| mcp_server::error(request, -32602, "Unknown tool: act"));
    mcp.on_list(|request| tools(request, &json!([tool("other")])));
    let end = client.run_to_end("many", &json!({"input": "Go"})).await;
    let told = log(client, &end).await;
    let failed = of(&told, "tool_call.failed");
    assert_eq!(failed[0]["error"], "The MCP server refused the call: Unknown tool: act");
    assert_eq!(mcp.requests("tools/list").len(), 2, "before the next step");
    let end = client.run_to_end("many", &json!({"input": "Go"})).await;
    let told = log(client, &end).await;
    let failed = of(&told, "tool_call.failed");
    assert_eq!(failed[0]["error"], "There is no tool \"remote__act\". Tools: remote__other.");
}

async fn a_run_waits_for_a_server_that_is_down_and_fails_when_it_stays_down(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let late = McpServer::start().await;
    late.http.refuse().await;
    let gone = McpServer::start().await;
    gone.http.refuse().await;
    let closed = McpServer::start().await;
    closed.on_list(|_| Reply::status(401));
    let began = Instant::now();
    let comes = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        late.http.listen_again();
    };
    let closed_lists = || closed.requests("tools/list").len();
    let ((), late, gone, refused) = tokio::join!(
        comes,
        run(client, "late", late.tool("remote", "read")),
        run(client, "gone", gone.tool("remote", "read")),
        run(client, "closed", closed.tool("remote", "read")),
    );
    assert_eq!(closed_lists(), 1, "it is not asked again");
    assert_eq!(late.0["status"], "completed", "{}", late.0);
    for (end, retryable, what) in [
        (&gone.0, true, "could not be reached"),
        (
            &refused.0,
            false,
            "answered with HTTP status 401 (it wants credentials: give the tool a header, such as \
             authorization: Bearer ${secret.NAME})",
        ),
    ] {
        assert_eq!(end["status"], "failed", "{end}");
        assert_eq!(end["error"]["code"], "tool_error");
        assert_eq!(end["error"]["retryable"], retryable);
        let message = format!("The MCP server of the tool \"remote\" {what}.");
        assert_eq!(end["error"]["message"], message);
    }
    assert!(began.elapsed() > Duration::from_secs(20), "it was waited for");
}

async fn a_run_that_has_a_wrong_url_says_what_is_wrong(url: String) {
    let (_setup, server) = serve(url).await;
    let answered = |status: u16, headers: &[(&str, String)], body: &str| Reply::Whole {
        status,
        headers: headers.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
        body: body.as_bytes().to_vec(),
    };
    let html = [("content-type", "text/html; charset=utf-8".to_owned())];
    let slash = [("location", "/v1/".to_owned())];
    for (name, reply, told) in [
        ("html", answered(200, &html, "<html>"), "answered with text/html instead of JSON"),
        (
            "none",
            answered(404, &html, "<html>"),
            "status 404 (is there an MCP endpoint at the tool's",
        ),
        ("sse", answered(405, &[], ""), "the older HTTP+SSE transport is not supported"),
        ("slash", answered(307, &slash, ""), "redirects to the same path with a slash behind it"),
    ] {
        let mcp = McpServer::start().await;
        mcp.on_open(move |_| reply.clone());
        let (end, _) = run(&server.client, name, mcp.tool("remote", "read")).await;
        assert_eq!(end["error"]["code"], "tool_error", "{end}");
        assert_eq!(end["error"]["retryable"], false, "{end}");
        let message = end["error"]["message"].as_str().expect("words");
        assert!(message.contains(told), "{message}");
        assert_eq!(mcp.http.requests().len(), 1, "it is not asked again: {name}");
    }
}

/// Since 2026-07-28, requests speak for themselves: no greetings, no sessions.
async fn a_server_that_knows_no_greetings_is_spoken_to_without(url: String) {
    let (_setup, server) = serve(url).await;
    let mcp = McpServer::start().await;
    mcp.on_open(|request| match request.body["method"].as_str() {
        Some("server/discover") => mcp_server::result(
            request,
            &json!({
                "resultType": "complete", "supportedVersions": ["2026-07-28"],
                "capabilities": {"tools": {}}, "ttlMs": 0, "cacheScope": "private",
            }),
        ),
        _ => mcp_server::error_status(request, 400, -32022, "Unsupported protocol version"),
    });
    mcp.on_list(|request| {
        mcp_server::result(
            request,
            &json!({"resultType": "complete", "tools": [tool("act")], "ttlMs": 0, "cacheScope": "private"}),
        )
    });
    mcp.on_call(|request| {
        let content = json!([{"type": "text", "text": "done"}]);
        mcp_server::result(request, &json!({"resultType": "complete", "content": content}))
    });
    let (end, log) = run(&server.client, "modern", mcp.tool("remote", "once")).await;
    assert_eq!(end["status"], "completed", "{end}");
    assert_eq!(of(&log, "tool_call.completed")[0]["result"], "done", "{log:?}");
    let call = mcp.calls().remove(0);
    assert_eq!(call.headers["mcp-protocol-version"], "2026-07-28");
    assert_eq!(call.headers["mcp-method"], "tools/call");
    assert_eq!(call.headers["mcp-name"], "act");
    assert!(!call.headers.contains_key("mcp-session-id"));
    assert_eq!(mcp.closed(), Vec::<String>::new(), "there is no session to close");
    // One that refuses both says why it refused the first.
    let mcp = McpServer::start().await;
    mcp.on_open(|request| match request.body["method"].as_str() {
        Some("initialize") => mcp_server::error(request, -32000, "We are closed"),
        _ => mcp_server::error(request, -32601, "Method not found"),
    });
    let (end, _) = run(&server.client, "refusing", mcp.tool("remote", "once")).await;
    let told = "The MCP server of the tool \"remote\" refused the session: We are closed.";
    assert_eq!(end["error"]["message"], told, "{end}");
}

async fn an_agent_with_a_tool_that_cannot_be_is_refused(url: String) {
    let (_setup, server) = serve(url).await;
    let names: Vec<String> = (0..129).map(|n| format!("t{n}")).collect();
    for (field, value, pointer) in [
        ("url", json!("ftp://example.com/mcp"), "/tools/0/url"),
        ("url", json!("no URL"), "/tools/0/url"),
        ("allowed_tools", json!(names), "/tools/0/allowed_tools"),
        ("timeout_seconds", json!(601), "/tools/0/timeout_seconds"),
        ("headers", json!({"a b": "c"}), "/tools/0/headers"),
        ("headers", json!({"mcp-session-id": "mine"}), "/tools/0/headers"),
    ] {
        let mut tool = json!({"type": "mcp", "name": "m", "url": "https://mcp.example.com/mcp"});
        tool[field] = value;
        let agent = agent("wrong", &json!([tool]), &json!([]));
        let refused = server.client.post("/v1/agents", &agent).await;
        assert_eq!(refused.status, 422, "{field}: {}", refused.body);
        let at = refused.body["details"]["errors"][0]["pointer"].as_str().unwrap_or_default();
        assert!(at.starts_with(pointer), "{field}: {}", refused.body);
    }
}

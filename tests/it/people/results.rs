//! Tools that the caller runs.

use serde_json::{Value, json};

use super::{
    add_agent, approve, at, call, count, events, id, one, parked, result, serve, serve_with_a_wait,
    start,
};
use crate::support::on_both_databases;

on_both_databases! {
    the_caller_runs_its_own_tools_and_the_model_reads_what_it_posts;
    results_for_two_calls_at_once_never_leave_a_run_parked;
    a_result_is_taken_while_other_calls_still_run;
    a_run_may_bring_tools_of_its_own;
    a_call_that_needs_leave_first_is_approved_and_then_waited_for;
    the_same_result_again_is_fine_and_another_is_not;
    a_result_that_is_too_large_is_cut_with_a_note;
    what_is_no_result_is_refused_with_its_place;
}

fn mine(name: &str) -> Value {
    json!({"type": "client", "name": name, "description": "Mine.", "parameters": {
        "type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}})
}

fn asks(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"tool": name, "arguments": {"q": "x"}})).collect()
}

async fn the_caller_runs_its_own_tools_and_the_model_reads_what_it_posts(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let mut calls = asks(&["find", "find"]);
    // This one does not fit: the model is told, and nobody is asked.
    calls.as_array_mut().expect("calls").push(json!({"tool": "find", "arguments": {}}));
    add_agent(client, "a", json!([mine("find")]), calls).await;
    let run = parked(client, "a").await;
    let actions = run["required_actions"].as_array().expect("actions").clone();
    assert_eq!(actions.len(), 2, "{run}");
    assert_eq!((&actions[0]["type"], &actions[0]["tool"]), (&json!("tool_result"), &json!("find")));
    assert!(actions[0]["expires_at"].is_string() && actions[0]["run_id"] == run["run_id"]);
    let results = at(&run, "tool-results");
    let call_id = |i: usize| actions[i]["call_id"].as_str().expect("an id").to_owned();
    client.post(&results, &result(&call_id(0), json!({"rows": [1, 2]}))).await.expect(202);
    let failed = json!({"call_id": call_id(1), "success": false, "error": "No such table."});
    client.post(&results, &failed).await.expect(202);
    let run = client.wait(&id(&run)).await;
    assert_eq!(run["status"], "completed", "{run}");
    let log = events(client, &id(&run)).await;
    assert_eq!(one(&log, "tool_call.completed")["result"], json!({"rows": [1, 2]}));
    let errors: Vec<_> = log.iter().filter(|event| event["type"] == "tool_call.failed").collect();
    assert!(
        errors[0]["error"].as_str().is_some_and(|error| error.contains("schema")),
        "{errors:?}"
    );
    assert_eq!(errors[1]["error"], "No such table.");
    let created = log.iter().find(|event| event["type"] == "tool_call.created").expect("a call");
    assert_eq!(
        (&created["awaits"], &created["expires_at"]),
        (&json!("client"), &actions[0]["expires_at"])
    );
    assert_eq!(count(&log, "tool_call.started"), 0, "the server made none of them");
}

async fn results_for_two_calls_at_once_never_leave_a_run_parked(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_agent(client, "a", json!([mine("one"), mine("two")]), asks(&["one", "two"])).await;
    for _ in 0..20 {
        let run = parked(client, "a").await;
        let results = at(&run, "tool-results");
        let bodies = ["one", "two"].map(|tool| result(&call(&run, tool), json!(tool)));
        let posts = bodies.iter().map(|body| client.post(&results, body));
        for answer in futures_util::future::join_all(posts).await {
            answer.expect(202);
        }
        let run = client.wait(&id(&run)).await;
        assert_eq!(run["status"], "completed", "{run}");
        let log = events(client, &id(&run)).await;
        assert_eq!(count(&log, "tool_call.completed"), 2);
        one(&log, "run.resumed");
    }
}

async fn a_result_is_taken_while_other_calls_still_run(url: String) {
    let (server, _tools, wait, gate) = serve_with_a_wait(url).await;
    let client = &server.client;
    let mut calls = asks(&["find"]);
    calls.as_array_mut().expect("calls").push(json!({"tool": "wait", "arguments": {}}));
    add_agent(client, "a", json!([mine("find"), wait]), calls).await;
    let run_id = start(client, "a").await;
    let mut stream = client.events(&run_id, 0).await;
    stream.until("tool_call.started").await;
    let run = client.get(&format!("/v1/runs/{run_id}")).await.expect(200);
    assert_eq!(run["status"], "running", "{run}");
    let told = run["instructions"].as_str().expect("words");
    assert!(told.contains("Poll") && told.contains("/tool-results"), "{told}");
    let body = result(&call(&run, "find"), json!("here"));
    let run = client.post(&at(&run, "tool-results"), &body).await.expect(202);
    assert_eq!((&run["status"], &run["required_actions"]), (&json!("running"), &json!([])));
    gate.open();
    let run = client.wait(&run_id).await;
    assert_eq!(run["status"], "completed", "{run}");
    let log = events(client, &run_id).await;
    // It never waited, and the call that was under way was made once.
    assert_eq!((count(&log, "run.requires_action"), count(&log, "tool_call.started")), (0, 1));
    assert_eq!(count(&log, "tool_call.completed"), 2);
}

async fn a_run_may_bring_tools_of_its_own(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_agent(client, "a", json!([{"type": "builtin", "name": "echo"}]), asks(&["find"])).await;
    let mut untyped = mine("find");
    untyped.as_object_mut().expect("a tool").remove("type");
    for tool in [mine("find"), untyped.clone()] {
        let body = json!({"input": "Go", "config": {"client_tools": [tool], "tools": []}});
        let run = client.post("/v1/agents/a/runs?wait=30", &body).await.expect(200);
        assert_eq!(run["status"], "requires_action", "{run}");
        let body = result(&call(&run, "find"), Value::Null);
        client.post(&at(&run, "tool-results"), &body).await.expect(202);
        assert_eq!(client.wait(&id(&run)).await["status"], "completed");
    }
    let mut coloured = untyped.clone();
    coloured["colour"] = json!("red");
    for (tools, pointer) in [
        (json!([mine("echo")]), "/config/client_tools/0/name"),
        (json!([mine("x"), mine("x")]), "/config/client_tools/1/name"),
        (json!([{"type": "builtin", "name": "sleep"}]), "/config/client_tools/0/type"),
        (json!([{"name": "a b"}]), "/config/client_tools/0/name"),
        (json!([{"name": "x", "timeout_seconds": 0}]), "/config/client_tools/0/timeout_seconds"),
        (json!([{"name": "x", "parameters": {"type": 7}}]), "/config/client_tools/0/parameters"),
        (json!([{}]), "/config/client_tools/0/name"),
    ] {
        let body = json!({"input": "Go", "config": {"client_tools": tools}});
        let refused = client.post("/v1/agents/a/runs", &body).await.expect(422);
        assert_eq!(refused["details"]["errors"][0]["pointer"], pointer, "{refused}");
    }
    let body = json!({"input": "Go", "config": {"client_tools": [coloured]}});
    let refused = client.post("/v1/agents/a/runs", &body).await.expect(422);
    assert_eq!(refused["details"]["pointer"], "/config/client_tools/0/colour", "{refused}");
}

async fn a_call_that_needs_leave_first_is_approved_and_then_waited_for(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let mut tool = mine("find");
    tool["requires_approval"] = json!(true);
    add_agent(client, "a", json!([tool]), asks(&["find"])).await;
    let run = parked(client, "a").await;
    let call_id = call(&run, "find");
    assert_eq!(run["required_actions"][0]["type"], "approval");
    let edit = json!({"call_id": call_id, "decision": "approve", "arguments": {"q": "y"}});
    let run = client.post(&at(&run, "approvals"), &edit).await.expect(202);
    let action = &run["required_actions"][0];
    assert_eq!(
        (&run["status"], &action["type"]),
        (&json!("requires_action"), &json!("tool_result"))
    );
    assert_eq!(action["arguments"], json!({"q": "y"}), "with what was approved");
    assert_eq!(client.get("/v1/approvals").await.expect(200)["data"], json!([]));
    // The same decision again is fine; there is no other.
    client.post(&at(&run, "approvals"), &edit).await.expect(202);
    client.post(&at(&run, "approvals"), &approve(&call_id)).await.expect(409);
    client.post(&at(&run, "tool-results"), &result(&call_id, json!(1))).await.expect(202);
    assert_eq!(client.wait(&id(&run)).await["status"], "completed");
    // Who waits to be asked is asked twice: for leave, then for the result.
    let log = events(client, &id(&run)).await;
    let asked = log.iter().filter(|event| event["type"] == "run.requires_action");
    let asked: Vec<_> = asked.map(|event| event["required_actions"][0]["type"].clone()).collect();
    assert_eq!(asked, ["approval", "tool_result"]);
}

async fn the_same_result_again_is_fine_and_another_is_not(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_agent(client, "a", json!([mine("find")]), asks(&["find"])).await;
    let run = parked(client, "a").await;
    let (results, call_id) = (at(&run, "tool-results"), call(&run, "find"));
    let posted = result(&call_id, json!({"n": 1.5}));
    client.post(&results, &posted).await.expect(202);
    for ended in [false, true] {
        if ended {
            assert_eq!(client.wait(&id(&run)).await["status"], "completed");
        }
        client.post(&results, &posted).await.expect(202);
        let other = client.post(&results, &result(&call_id, json!({"n": 2}))).await.expect(409);
        assert_eq!(other["error"], "already_decided");
        let failed = json!({"call_id": call_id, "success": false});
        client.post(&results, &failed).await.expect(409);
        let again = json!({"call_id": call_id, "retry": true});
        client.post(&results, &again).await.expect(409);
    }
    one(&events(client, &id(&run)).await, "tool_call.completed");
}

async fn a_result_that_is_too_large_is_cut_with_a_note(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_agent(client, "a", json!([mine("one"), mine("two")]), asks(&["one", "two"])).await;
    let run = parked(client, "a").await;
    let results = at(&run, "tool-results");
    let large = "ä".repeat(300_000);
    let failed = json!({"call_id": call(&run, "two"), "success": false, "error": large});
    for body in [result(&call(&run, "one"), json!(large)), failed] {
        client.post(&results, &body).await.expect(202);
        client.post(&results, &body).await.expect(202);
    }
    let run = client.wait(&id(&run)).await;
    let log = events(client, &id(&run)).await;
    for (event, field) in [("tool_call.completed", "result"), ("tool_call.failed", "error")] {
        let kept = one(&log, event)[field].as_str().expect("a text");
        assert!(kept.len() < 263_000 && kept.ends_with("[cut: 262144 of 600000 bytes]"), "{event}");
    }
}

async fn what_is_no_result_is_refused_with_its_place(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_agent(client, "a", json!([mine("find")]), asks(&["find"])).await;
    let run = parked(client, "a").await;
    let (results, call_id) = (at(&run, "tool-results"), call(&run, "find"));
    for (more, pointer) in [
        (json!({}), "/success"),
        (json!({"success": "yes"}), "/success"),
        (json!({"success": true, "error": "x"}), "/error"),
        (json!({"success": false, "result": 1}), "/result"),
        (json!({"success": true, "retry": true}), "/retry"),
        (json!({"retry": true, "result": 1}), "/retry"),
        // Nobody made it yet.
        (json!({"retry": true}), "/retry"),
    ] {
        let mut body = more;
        body["call_id"] = json!(call_id);
        let refused = client.post(&results, &body).await.expect(422);
        assert_eq!(refused["details"]["errors"][0]["pointer"], pointer, "{refused}");
    }
    let refused = client.post(&results, &json!({"success": true})).await.expect(422);
    assert_eq!(refused["details"]["errors"][0]["pointer"], "/call_id", "{refused}");
    // An approval is another thing.
    client.post(&at(&run, "approvals"), &approve(&call_id)).await.expect(422);
    let nowhere = "/v1/runs/run_019a0c5e7d2a7c3f8b1e2d3c4b5a6978/tool-results";
    client.post(nowhere, &json!({"nonsense": 1})).await.expect(404);
}

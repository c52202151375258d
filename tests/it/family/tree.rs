//! What a family does when nothing goes wrong, and what a parent is told when something does.

use serde_json::{Value, json};

use super::{TREE, YAML, add, add_tree, assert_ended_well, call, caller, children, count, family};
use super::{id, log, start, words};
use crate::support::client::Client;
use crate::support::on_both_databases;
use crate::support::server::{Server, Setup};

on_both_databases! {
    a_tree_of_agents_answers_from_below_and_says_what_it_cost;
    parents_do_not_starve_their_children_of_slots;
    a_child_that_does_not_complete_is_a_failed_result_in_words;
    children_work_beside_tools_and_each_other;
    an_agent_that_is_not_there_is_a_failed_result;
    a_parent_cannot_be_deleted_while_it_waits;
    a_family_is_deleted_with_its_parent;
}

async fn serve(url: String) -> (Setup, Server) {
    let setup = Setup::new(url, YAML);
    let server = setup.start().await;
    (setup, server)
}

/// The answer that the first call of a run got.
async fn told(client: &Client, run_id: &str) -> (String, Value) {
    let steps = client.get(&format!("/v1/runs/{run_id}/steps")).await.expect(200);
    let call = &steps["data"][0]["tool_calls"][0];
    let answer = if call["error"].is_null() { &call["result"] } else { &call["error"] };
    (call["status"].as_str().expect("status").to_owned(), answer.clone())
}

async fn a_tree_of_agents_answers_from_below_and_says_what_it_cost(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_tree(client, json!({"text": "leaf is done"})).await;
    let run_id = start(client, "top").await;
    let run = client.wait(&run_id).await;
    assert_eq!(
        (&run["status"], &run["result"]["content"]),
        (&json!("completed"), &json!("top is done"))
    );
    assert_eq!(run["input"], "Go");
    assert_eq!(told(client, &run_id).await, ("completed".to_owned(), json!("mid is done")));
    let family = family(client, &run_id).await;
    assert_eq!(family.len(), TREE);
    assert_ended_well(client, &family).await;
    let dollars = |run: &Value, field: &str| (run[field].as_f64().expect(field) * 1e6).round();
    for run in &family {
        assert_eq!(run["status"], "completed");
        let below: f64 =
            children(client, &id(run)).await.iter().map(|c| dollars(c, "tree_cost_usd")).sum();
        assert_eq!(dollars(run, "tree_cost_usd"), dollars(run, "cost_usd") + below, "{run}");
        assert!(dollars(run, "cost_usd") > 0.0);
    }
    let first = log(client, &id(&family[1])).await[0].json();
    assert_eq!(first["parent_run_id"], json!(run_id));
    assert_eq!(first["input"], "Do it, mid.");
    let steps = client.get(&format!("/v1/runs/{run_id}/steps")).await.expect(200);
    let called = &steps["data"][0]["tool_calls"][0]["child_run_id"];
    assert!(family.iter().any(|child| &child["run_id"] == called), "{called}");
}

async fn parents_do_not_starve_their_children_of_slots(url: String) {
    let setup = Setup::new(url, format!("{YAML}\nengine: {{ max_concurrent_runs: 2 }}\n"));
    let server = setup.start().await;
    let client = &server.client;
    add_tree(client, json!({"text": "leaf is done"})).await;
    let mut parents = Vec::new();
    for _ in 0..64 {
        parents.push(start(client, "top").await);
    }
    for run_id in &parents {
        assert_eq!(client.wait(run_id).await["status"], "completed");
    }
    let last = family(client, parents.last().expect("a run")).await;
    assert_eq!(last.len(), TREE);
    assert_ended_well(client, &last).await;
}

async fn a_child_that_does_not_complete_is_a_failed_result_in_words(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let fails = json!([{"fail": {"kind": "status", "status": 400}}]);
    let endless = json!([{"text": "thinking", "tool_calls": [
        {"tool": "sleep", "arguments": {"seconds": 0}}]}, {"text": "more", "tool_calls": [
        {"tool": "sleep", "arguments": {"seconds": 0}}]}]);
    let mut limited = caller("limited", &[], endless);
    limited["max_steps"] = json!(1);
    let mut slow = caller("slow", &[], json!([words(1_000, 20)]));
    slow["timeout_seconds"] = json!(1);
    let mut shaped = caller("shaped", &[], json!([{"text": "{\"n\": 7}"}]));
    shaped["output_schema"] = json!({"type": "object", "required": ["n"]});
    let children = [caller("fails", &[], fails), limited, slow, shaped];
    add(client, &children).await;
    let cases = [
        ("fails", "failed", "The agent failed: "),
        (
            "limited",
            "failed",
            "The agent stopped at max_steps before it was done. The last that it said: thinking",
        ),
        ("slow", "failed", "The agent ran out of time."),
    ];
    for (child, status, words) in cases {
        let parent = format!("asks-{child}");
        let script = json!([{"tool_calls": [call(child)]}, {"text": "I see."}]);
        add(client, &[caller(&parent, &[child], script)]).await;
        let run_id = start(client, &parent).await;
        assert_eq!(client.wait(&run_id).await["status"], "completed", "the parent goes on");
        let (told_status, told) = told(client, &run_id).await;
        assert_eq!(told_status, status, "{child}");
        assert!(told.as_str().expect("words").starts_with(words), "{child}: {told}");
    }
    let script = json!([{"tool_calls": [call("shaped")]}, {"text": "I see."}]);
    add(client, &[caller("asks-shaped", &["shaped"], script)]).await;
    let run_id = start(client, "asks-shaped").await;
    client.wait(&run_id).await;
    assert_eq!(told(client, &run_id).await, ("completed".to_owned(), json!({"n": 7})));
}

async fn children_work_beside_tools_and_each_other(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let sleep = |seconds: f64| json!({"tool": "sleep", "arguments": {"seconds": seconds}});
    let script = json!([{"tool_calls": [
        call("quick"), sleep(0.3), call("slow"), sleep(0.0),
        {"tool": "quick", "arguments": {"text": "no input"}}, {"tool": "quick", "arguments": {"input": ""}},
    ]}, {"text": "all there"}]);
    let agents = [
        caller("quick", &[], json!([{"text": "quick"}])),
        caller("slow", &[], json!([words(20, 40)])),
        caller("busy", &["quick", "slow"], script),
    ];
    add(client, &agents).await;
    let run_id = start(client, "busy").await;
    let run = client.wait(&run_id).await;
    assert_eq!(run["status"], "completed");
    let family = family(client, &run_id).await;
    assert_eq!(family.len(), 3, "one child for each call that could be made");
    let log = log(client, &run_id).await;
    let answers = (count(&log, "tool_call.completed"), count(&log, "tool_call.failed"));
    assert_eq!(answers, (4, 2));
    let started: Vec<Value> = log
        .iter()
        .filter(|frame| frame.event == "tool_call.started")
        .map(|frame| frame.json()["attempt"].clone())
        .collect();
    assert!(started.iter().all(|attempt| attempt == 1), "no call is made twice: {started:?}");
}

async fn an_agent_that_is_not_there_is_a_failed_result(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let script = json!([{"tool_calls": [call("nobody"), call("archived")]}, {"text": "I see."}]);
    add(client, &[caller("archived", &[], json!([{"text": "?"}]))]).await;
    add(client, &[caller("asks", &["nobody", "archived"], script)]).await;
    client.delete("/v1/agents/archived").await;
    let run_id = start(client, "asks").await;
    let run = client.wait(&run_id).await;
    assert_eq!((&run["status"], &run["tree_cost_usd"]), (&json!("completed"), &run["cost_usd"]));
    let steps = client.get(&format!("/v1/runs/{run_id}/steps")).await.expect(200);
    let calls = &steps["data"][0]["tool_calls"];
    assert_eq!(calls[0]["error"], "There is no agent nobody.");
    assert_eq!(calls[1]["error"], "The agent archived is archived.");
    assert!(children(client, &run_id).await.is_empty());
}

async fn a_parent_cannot_be_deleted_while_it_waits(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let script = json!([{"tool_calls": [call("slow")]}, {"text": "done"}]);
    let agents =
        [caller("slow", &[], json!([words(3_000, 20)])), caller("asks", &["slow"], script)];
    add(client, &agents).await;
    let run_id = start(client, "asks").await;
    client.events(&run_id, 0).await.until("tool_call.started").await;
    let refused = client.delete(&format!("/v1/runs/{run_id}")).await;
    assert_eq!((refused.status, &refused.body["error"]), (409, &json!("run_active")));
    assert_eq!(refused.body["details"]["run_id"], json!(run_id));
}

async fn a_family_is_deleted_with_its_parent(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_tree(client, json!({"text": "leaf is done"})).await;
    let (gone, stays) = (start(client, "top").await, start(client, "top").await);
    for run_id in [&gone, &stays] {
        assert_eq!(client.wait(run_id).await["status"], "completed");
    }
    let (below, others) = (family(client, &gone).await, family(client, &stays).await);
    assert_eq!((below.len(), others.len()), (TREE, TREE));
    // One of them on its own takes what it called along, and nothing else.
    let mid = id(&below[1]);
    client.delete(&format!("/v1/runs/{mid}")).await.expect(204);
    assert_eq!(family(client, &gone).await.len(), TREE - 3);
    client.delete(&format!("/v1/runs/{gone}")).await.expect(204);
    for run in &below {
        for what in ["", "/log", "/steps", "/events"] {
            let answer = client.get(&format!("/v1/runs/{}{what}", id(run))).await;
            assert_eq!((answer.status, &answer.body["error"]), (404, &json!("not_found")));
        }
    }
    assert_eq!(client.delete(&format!("/v1/runs/{gone}")).await.status, 404);
    let list = client.get("/v1/runs?limit=100").await.expect(200);
    assert_eq!(list["data"].as_array().map(Vec::len), Some(TREE), "the others are as they were");
    assert_eq!(family(client, &stays).await, others);
}

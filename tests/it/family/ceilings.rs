//! Money, time and depth: what a run has left is the ceiling of those below it.

use serde_json::{Value, json};

use super::{YAML, add, assert_ended_well, call, caller, children, family, get, id, start, words};
use crate::support::on_both_databases;
use crate::support::server::Setup;

on_both_databases! {
    agents_that_call_themselves_come_to_an_end;
    a_tree_does_not_cost_more_than_its_root_may;
    children_have_no_more_time_than_their_parent;
    a_tools_time_out_ends_its_child;
}

async fn agents_that_call_themselves_come_to_an_end(url: String) {
    let setup = Setup::new(url, YAML);
    let server = setup.start().await;
    let client = &server.client;
    let script = json!([{"tool_calls": [call("self")]}, {"text": "done"}]);
    add(client, &[caller("self", &["self"], script)]).await;
    let run_id = start(client, "self").await;
    assert_eq!(client.wait(&run_id).await["status"], "completed");
    let family = family(client, &run_id).await;
    assert_eq!(family.len(), 6, "a root and five below it");
    assert_ended_well(client, &family).await;
    let last = id(family.last().expect("a run"));
    let steps = client.get(&format!("/v1/runs/{last}/steps")).await.expect(200);
    let told = steps["data"][0]["tool_calls"][0]["error"].as_str().expect("words").to_owned();
    assert!(told.contains("5 levels deep"), "{told}");
}

async fn a_tree_does_not_cost_more_than_its_root_may(url: String) {
    let setup = Setup::new(url, YAML);
    let server = setup.start().await;
    let client = &server.client;
    // A step of a child costs some 300 micro-dollars: 20 tokens out, told by the script.
    let turn = json!({"text": "thinking", "usage": {"input_tokens": 50, "output_tokens": 20},
        "tool_calls": [{"tool": "sleep", "arguments": {"seconds": 0}}]});
    let mut greedy = caller("greedy", &[], json!(vec![turn; 100]));
    greedy["max_steps"] = json!(100);
    greedy["max_output_tokens"] = json!(20);
    let script =
        json!([{"tool_calls": [call("greedy"), call("greedy"), call("greedy")]}, {"text": "done"}]);
    let mut parent = caller("asks", &["greedy"], script);
    parent["max_output_tokens"] = json!(20);
    add(client, &[greedy, parent]).await;
    let mut incomplete = 0;
    for cap in [0.02, 0.04, 0.08] {
        let body = json!({"input": "Go", "config": {"max_cost_usd": cap}});
        let run_id = id(&client.post("/v1/agents/asks/runs", &body).await.expect(202));
        let run = client.wait(&run_id).await;
        assert!(run["tree_cost_usd"].as_f64().expect("a cost") <= cap, "{run}");
        let children = children(client, &run_id).await;
        assert_eq!(children.len(), 3);
        let spent: Vec<f64> =
            children.iter().map(|child| child["cost_usd"].as_f64().expect("a cost")).collect();
        assert!(spent.iter().all(|spent| *spent > 0.0), "each has its share: {spent:?}");
        incomplete += children.iter().filter(|c| c["incomplete_reason"] == "budget").count();
    }
    assert!(incomplete >= 6, "the ceiling is really met: {incomplete}");
}

async fn children_have_no_more_time_than_their_parent(url: String) {
    let setup = Setup::new(url, YAML);
    let server = setup.start().await;
    let client = &server.client;
    let script = json!([{"tool_calls": [call("slow")]}, {"text": "done"}]);
    let mut parent = caller("asks", &["slow"], script);
    // Long enough for its child to be there and to run.
    parent["timeout_seconds"] = json!(5);
    add(client, &[caller("slow", &[], json!([words(1_000, 50)])), parent]).await;
    let run_id = start(client, "asks").await;
    let run = client.wait(&run_id).await;
    // The child runs out a moment before its parent, which may then still say its last word.
    let ends = [json!("expired"), json!("completed")];
    assert!(ends.contains(&run["status"]), "{run}");
    let family = family(client, &run_id).await;
    assert_eq!(family[1]["status"], "expired");
    // Its words alone would have taken 50 s.
    assert!(family[1]["duration_ms"].as_u64().expect("an end") < 40_000);
    assert_ended_well(client, &family).await;
}

async fn a_tools_time_out_ends_its_child(url: String) {
    let setup = Setup::new(url, YAML);
    let server = setup.start().await;
    let client = &server.client;
    let script = json!([{"tool_calls": [call("slow")]}, {"text": "done without"}]);
    let mut parent = caller("asks", &["slow"], script);
    // Long enough for its child to be there and to run.
    parent["tools"][0]["timeout_seconds"] = json!(4);
    add(client, &[caller("slow", &[], json!([words(1_000, 50)])), parent]).await;
    let run_id = start(client, "asks").await;
    let run: Value = client.wait(&run_id).await;
    assert_eq!(run["result"]["content"], "done without");
    let child = id(&children(client, &run_id).await[0]);
    assert_eq!(get(client, &child).await["status"], "expired");
}

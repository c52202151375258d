//! What all runs of a conversation may cost together.

use serde_json::{Value, json};

use super::{assert_refused, at, conversation, get, messages, serve, turn};
use crate::support::client::Client;
use crate::support::on_both_databases;

on_both_databases! {
    the_runs_of_a_conversation_together_never_pass_its_cap;
    a_run_that_waits_gets_what_is_left_when_its_turn_comes;
    a_model_without_a_price_is_refused_under_a_cap;
}

/// 200 tokens in at 2 and 60 out at 10 micro-dollars: a thousand. The worst case of a call is 1,000 for
/// its output and what its prompt is estimated at.
fn costs_a_thousand() -> Value {
    let usage = json!({"input_tokens": 200, "output_tokens": 60});
    json!({"script": [{"text": "Yes.", "usage": usage}], "max_output_tokens": 100, "tools": []})
}

async fn spent(client: &Client, talk: &str) -> f64 {
    let list = client.get(&format!("/v1/runs?conversation_id={talk}&limit=100")).await.expect(200);
    let costs = list["data"].as_array().expect("data").iter();
    costs.map(|run| run["cost_usd"].as_f64().expect("a cost")).sum()
}

async fn the_runs_of_a_conversation_together_never_pass_its_cap(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let cap = 0.005;
    let talk = conversation(client, json!({"parameters": {"max_cost_usd": cap}})).await;
    let body = json!({"input": "Go", "config": costs_a_thousand()});
    let mut ends = Vec::new();
    let refused = loop {
        let answer = client.post(&at(&talk, "runs"), &body).await;
        if answer.status != 202 {
            break answer;
        }
        let run = client.wait(answer.body["run_id"].as_str().expect("run_id")).await;
        ends.push((run["status"].clone(), run["incomplete_reason"].clone()));
        if ends.len() > 6 {
            break client.post(&at(&talk, "runs"), &body).await;
        }
    };
    let completed = ends.iter().filter(|(status, _)| status == "completed").count();
    assert!((3..=4).contains(&completed), "{ends:?}");
    assert!(spent(client, &talk).await <= cap);
    // What is left is too little for a call, but it is something: each run tries, and spends nothing.
    assert_eq!(ends[completed], (json!("incomplete"), json!("budget")), "{ends:?}");
    assert_eq!(refused.status, 202, "{}", refused.body);
    client.wait(refused.body["run_id"].as_str().expect("run_id")).await;
    assert!(spent(client, &talk).await <= cap);
    // A higher limit of the run's own lifts no cap.
    let mut config = costs_a_thousand();
    config["max_cost_usd"] = json!(1);
    let run = turn(client, &talk, &json!({"input": "Go", "config": config})).await;
    assert_eq!(run["incomplete_reason"], "budget", "{run}");

    // Used up to the last micro-dollar: nothing begins.
    let usage = json!({"input_tokens": 0, "output_tokens": 500});
    let mut config = costs_a_thousand();
    config["script"][0]["usage"] = usage;
    config["max_output_tokens"] = json!(400);
    let talk = conversation(client, json!({"parameters": {"max_cost_usd": 0.005}})).await;
    let run = turn(client, &talk, &json!({"input": "Go", "config": config})).await;
    assert_eq!((&run["status"], &run["cost_usd"]), (&json!("completed"), &json!(0.005)), "{run}");
    let said = messages(client, &talk).await.len();
    for (what, body) in [
        ("runs", json!({"input": "x"})),
        ("complete", json!({"content": "x", "on_busy": "enqueue"})),
    ] {
        let answer = client.post(&at(&talk, what), &body).await;
        assert_refused(&answer, 402, "budget_exhausted");
        assert_eq!(answer.body["details"]["max_cost_usd"], 0.005, "{}", answer.body);
        assert_eq!(answer.body["retry"], false);
    }
    assert_eq!(messages(client, &talk).await.len(), said);
    assert_eq!(get(client, &talk).await["status"], "open", "it can still be read and written to");
    let posted = json!({"role": "user", "content": "x"});
    client.post(&at(&talk, "messages"), &posted).await.expect(201);
}

async fn a_run_that_waits_gets_what_is_left_when_its_turn_comes(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let cap = 0.005;
    let talk = conversation(client, json!({"parameters": {"max_cost_usd": cap}})).await;
    let mut config = costs_a_thousand();
    config["script"][0]["delay_ms"] = json!(200);
    let body = json!({"input": "Go", "on_busy": "enqueue", "config": config});
    let mut runs = Vec::new();
    for _ in 0..8 {
        runs.push(super::start(client, &talk, &body).await);
    }
    let mut completed = 0;
    for run_id in &runs {
        let run = client.wait(run_id).await;
        if run["status"] == "completed" {
            completed += 1;
        } else {
            assert_eq!(run["incomplete_reason"], "budget", "{run}");
        }
    }
    assert!((3..=4).contains(&completed), "{completed}");
    assert!(spent(client, &talk).await <= cap);
}

async fn a_model_without_a_price_is_refused_under_a_cap(url: String) {
    let (server, _models) = super::serve_with_model(url, "openai").await;
    let client = &server.client;
    let capped = json!({"agent_id": "a", "parameters": {"max_cost_usd": 1}});
    let answer = client.post("/v1/conversations", &capped).await;
    assert_refused(&answer, 422, "validation_failed");
    let pointer = answer.body["details"]["errors"][0]["pointer"].as_str().expect("a pointer");
    assert_eq!(pointer, "/parameters/max_cost_usd", "{}", answer.body);
}

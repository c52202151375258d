//! A child that waits for people has its parents wait too, and each of them can take the answer.

use serde_json::{Value, json};

use super::{
    YAML, add, assert_ended_well, call, caller, count, family, get, id, log, start, words,
};
use crate::support::client::Client;
use crate::support::on_both_databases;
use crate::support::server::{Server, Setup};

/// Longer than anything here takes.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

on_both_databases! {
    a_child_that_waits_parks_those_above_it_and_is_answered_at_the_top;
    an_answer_at_the_child_wakes_those_above_it;
    a_parent_runs_while_one_of_its_children_does;
    each_answer_changes_what_the_top_asks_for;
    a_parked_tree_survives_a_kill_and_is_cancelled_as_one;
    an_approval_of_a_child_that_expires_lets_all_go_on;
    a_parent_that_works_lists_what_its_children_ask;
    what_is_answered_is_open_nowhere_from_then_on;
}

/// `top` calls `mid`, which calls `asker`, which asks `questions` times at once for leave to echo.
async fn add_asker(client: &Client, questions: usize, patience_seconds: u64) {
    let echo = |n: usize| json!({"tool": "echo", "arguments": {"text": format!("said {n}")}});
    let script =
        json!([{"tool_calls": (0..questions).map(echo).collect::<Vec<_>>()}, {"text": "asked"}]);
    let asker = json!({"agent_id": "asker", "model": "builtin/script", "script": script, "tools": [
        {"type": "builtin", "name": "echo", "requires_approval": true,
         "approval_timeout_seconds": patience_seconds}]});
    let mid = json!([{"tool_calls": [call("asker")]}, {"text": "mid is done"}]);
    let top = json!([{"tool_calls": [call("mid")]}, {"text": "top is done"}]);
    add(client, &[asker, caller("mid", &["asker"], mid), caller("top", &["mid"], top)]).await;
}

async fn serve(url: String) -> (Setup, Server) {
    let setup = Setup::new(url, YAML);
    let server = setup.start().await;
    (setup, server)
}

fn actions(run: &Value) -> Vec<Value> {
    run["required_actions"].as_array().expect("actions").clone()
}

async fn approve(client: &Client, run_id: &str, action: &Value) -> Value {
    let path = format!("/v1/runs/{run_id}/approvals");
    let body = json!({"call_id": action["call_id"], "decision": "approve"});
    client.post(&path, &body).await.expect(202)
}

/// Waits until a run asks for so many answers.
async fn asks(client: &Client, run_id: &str, count: usize) -> Value {
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        let run = get(client, run_id).await;
        if run["status"] == "requires_action" && actions(&run).len() == count {
            return run;
        }
        assert!(std::time::Instant::now() < until, "it does not ask for {count}: {run}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

async fn a_child_that_waits_parks_those_above_it_and_is_answered_at_the_top(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_asker(client, 1, 600).await;
    let run_id = start(client, "top").await;
    let run = asks(client, &run_id, 1).await;
    let all = family(client, &run_id).await;
    let asker = id(&all[2]);
    assert_eq!(all.iter().filter(|run| run["status"] == "requires_action").count(), 3);
    let action = actions(&run)[0].clone();
    assert_eq!((&action["run_id"], &action["type"]), (&json!(asker), &json!("approval")));
    let listed = client.get("/v1/approvals").await.expect(200);
    assert_eq!(listed["data"].as_array().expect("data").len(), 1, "listed once: {listed}");
    let answered = approve(client, &run_id, &action).await;
    assert_eq!(answered["run_id"], json!(run_id), "the run that was asked for");
    // The same again is the same; an unknown call is unknown.
    approve(client, &run_id, &action).await;
    let nobody = json!({"call_id": "call_00000000000000000000000000000000", "decision": "approve"});
    assert_eq!(client.post(&format!("/v1/runs/{run_id}/approvals"), &nobody).await.status, 404);
    let end = end_of(client, &run_id).await;
    assert_eq!(
        (&end["status"], &end["result"]["content"]),
        (&json!("completed"), &json!("top is done"))
    );
    let all = family(client, &run_id).await;
    assert_ended_well(client, &all).await;
    let log = log(client, &run_id).await;
    let pauses = (count(&log, "run.requires_action"), count(&log, "run.resumed"));
    assert_eq!(pauses, (1, 1), "one pause");
}

/// A run once it has ended, through its pauses.
async fn end_of(client: &Client, run_id: &str) -> Value {
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        let run = get(client, run_id).await;
        if !run["completed_at"].is_null() {
            return run;
        }
        assert!(std::time::Instant::now() < until, "it does not end: {run}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

async fn an_answer_at_the_child_wakes_those_above_it(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_asker(client, 1, 600).await;
    let run_id = start(client, "top").await;
    let run = asks(client, &run_id, 1).await;
    let action = actions(&run)[0].clone();
    approve(client, action["run_id"].as_str().expect("run_id"), &action).await;
    assert_eq!(end_of(client, &run_id).await["status"], "completed");
    assert_ended_well(client, &family(client, &run_id).await).await;
}

async fn a_parent_runs_while_one_of_its_children_does(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_asker(client, 1, 600).await;
    let script = json!([{"tool_calls": [call("asker"), call("slow")]}, {"text": "both"}]);
    let agents =
        [caller("slow", &[], json!([words(60, 20)])), caller("both", &["asker", "slow"], script)];
    add(client, &agents).await;
    let run_id = start(client, "both").await;
    let run = asks(client, &run_id, 1).await;
    let children = super::children(client, &run_id).await;
    let statuses: Vec<&str> =
        children.iter().map(|child| child["status"].as_str().expect("status")).collect();
    assert_eq!(statuses, ["requires_action", "completed"], "it parked when nothing else was left");
    approve(client, &run_id, &actions(&run)[0]).await;
    assert_eq!(end_of(client, &run_id).await["result"]["content"], "both");
    assert_ended_well(client, &family(client, &run_id).await).await;
}

async fn each_answer_changes_what_the_top_asks_for(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_asker(client, 3, 600).await;
    let run_id = start(client, "top").await;
    for left in [3, 2, 1] {
        let run = asks(client, &run_id, left).await;
        approve(client, &run_id, &actions(&run)[0]).await;
        let now = actions(&get(client, &run_id).await);
        assert_eq!(now, actions(&run)[1..], "at once");
    }
    assert_eq!(end_of(client, &run_id).await["status"], "completed");
    assert_ended_well(client, &family(client, &run_id).await).await;
    let log = log(client, &run_id).await;
    let pauses = (count(&log, "run.requires_action"), count(&log, "run.resumed"));
    assert_eq!(pauses, (1, 1), "it waited once, for three answers");
}

async fn a_parked_tree_survives_a_kill_and_is_cancelled_as_one(url: String) {
    let setup = Setup::new(url, YAML);
    let server = setup.start().await;
    add_asker(&server.client, 1, 600).await;
    let run_id = start(&server.client, "top").await;
    let other = start(&server.client, "top").await;
    asks(&server.client, &run_id, 1).await;
    asks(&server.client, &other, 1).await;
    server.kill();
    let server = setup.start().await;
    let client = &server.client;
    let run = asks(client, &other, 1).await;
    let stopping = client.post(&format!("/v1/runs/{run_id}/cancel"), &json!({})).await.body;
    let told = stopping["instructions"].as_str().unwrap_or_default();
    assert!(!told.contains("Answer"), "there is nothing to be answered any more: {stopping}");
    assert_eq!(end_of(client, &run_id).await["status"], "cancelled");
    let all = family(client, &run_id).await;
    assert!(all.iter().all(|run| run["status"] == "cancelled"), "{all:?}");
    assert_ended_well(client, &all).await;
    approve(client, &other, &actions(&run)[0]).await;
    assert_eq!(end_of(client, &other).await["status"], "completed");
    let listed = client.get("/v1/approvals").await.expect(200);
    assert_eq!(listed["data"], json!([]), "nothing is left to decide");
}

async fn an_approval_of_a_child_that_expires_lets_all_go_on(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_asker(client, 1, 1).await;
    let run_id = start(client, "top").await;
    let end = end_of(client, &run_id).await;
    assert_eq!(end["status"], "completed");
    let all = family(client, &run_id).await;
    let log = log(client, &id(&all[2])).await;
    assert_eq!(count(&log, "approval.expired"), 1);
    assert_ended_well(client, &all).await;
}

async fn a_parent_that_works_lists_what_its_children_ask(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_asker(client, 1, 600).await;
    let sleep = json!({"tool": "sleep", "arguments": {"seconds": 300}});
    let script = json!([{"tool_calls": [call("mid"), sleep]}, {"text": "never"}]);
    add(client, &[caller("busy", &["mid"], script)]).await;
    let run_id = start(client, "busy").await;
    let until = std::time::Instant::now() + PATIENCE;
    let run = loop {
        let run = get(client, &run_id).await;
        if !actions(&run).is_empty() {
            break run;
        }
        assert!(std::time::Instant::now() < until, "it asks for nothing: {run}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert_eq!((&run["status"], actions(&run).len()), (&json!("running"), 1), "it sleeps itself");
    let listed = client.get("/v1/approvals").await.expect(200);
    assert_eq!(listed["data"].as_array().expect("data").len(), 1, "listed once: {listed}");
    let answered = approve(client, &run_id, &actions(&run)[0]).await;
    assert_eq!(actions(&answered), [] as [Value; 0]);
    let mid = id(&super::children(client, &run_id).await[0]);
    assert_eq!(end_of(client, &mid).await["status"], "completed");
    client.post(&format!("/v1/runs/{run_id}/cancel"), &json!({})).await;
    assert_eq!(end_of(client, &run_id).await["status"], "cancelled");
    assert_ended_well(client, &family(client, &run_id).await).await;
}

async fn what_is_answered_is_open_nowhere_from_then_on(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_asker(client, 1, 600).await;
    for place in [0, 1, 2] {
        let run_id = start(client, "top").await;
        let action = actions(&asks(client, &run_id, 1).await)[0].clone();
        let line: Vec<String> = family(client, &run_id).await.iter().map(id).collect();
        approve(client, &line[place], &action).await;
        for run_id in &line {
            let run = get(client, run_id).await;
            assert_eq!(actions(&run), [] as [Value; 0], "answered at {place}: {run}");
            assert_ne!(run["status"], "requires_action", "answered at {place}: {run}");
        }
        // Whoever waits then waits for the end, and not for what is over.
        let end = client.get(&format!("/v1/runs/{run_id}?wait=60")).await.expect(200);
        assert_eq!(end["status"], "completed", "answered at {place}: {end}");
    }
}

//! Cancelling goes down a tree and ends from below.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    TREE, YAML, add, add_tree, add_tree_of, assert_ended_well, call, caller, family, id, start,
    words,
};
use crate::support::client::Client;
use crate::support::on_both_databases;
use crate::support::profile::pick;
use crate::support::random::Random;
use crate::support::server::Setup;

on_both_databases! {
    a_tree_that_is_cancelled_at_any_moment_ends_whole_and_from_below;
    a_tree_whose_children_wait_in_the_queue_is_cancelled;
    a_child_that_is_cancelled_is_a_failed_result;
    a_parent_that_runs_out_of_time_ends_its_children_first;
}

async fn cancel(client: &Client, run_id: &str) -> Value {
    let answer = client.post(&format!("/v1/runs/{run_id}/cancel"), &json!({})).await;
    assert!(matches!(answer.status, 200 | 202), "{}", answer.body);
    answer.body
}

async fn a_tree_that_is_cancelled_at_any_moment_ends_whole_and_from_below(url: String) {
    let setup = Setup::new(url, YAML);
    let server = setup.start().await;
    let client = &server.client;
    add_tree(client, words(6, 8)).await;
    let mut random = Random::new();
    let mut outcomes: BTreeMap<(String, usize), usize> = BTreeMap::new();
    let sweeps = pick(40, 500);
    let mut slowest = Duration::ZERO;
    for _ in 0..sweeps {
        let run_id = start(client, "top").await;
        // A tree takes about 150 ms: from before its first child to after its end.
        tokio::time::sleep(Duration::from_millis(random.below(200))).await;
        let (status, size, took) = cancelled_tree(client, &run_id).await;
        slowest = slowest.max(took);
        *outcomes.entry((status, size)).or_default() += 1;
    }
    // Which moments that hit is a matter of the machine. So, of trees that do not end by themselves, those
    // that have so many runs.
    add_tree_of(client, "endless", words(3_000, 20)).await;
    for n in 0..sweeps {
        let run_id = start(client, "endless-top").await;
        let size = 1 + n % TREE;
        while family(client, &run_id).await.len() < size {}
        let (status, hit, took) = cancelled_tree(client, &run_id).await;
        slowest = slowest.max(took);
        assert_eq!(status, "cancelled");
        assert!(hit >= size, "{hit} runs of {size}");
        *outcomes.entry((status, hit)).or_default() += 1;
    }
    println!("outcomes by status and size of the tree: {outcomes:?}; slowest {slowest:?}");
}

/// Cancels a tree: how it ended, of how many runs it was, and how long that took.
async fn cancelled_tree(client: &Client, run_id: &str) -> (String, usize, Duration) {
    let asked = Instant::now();
    cancel(client, run_id).await;
    let end = client.wait(run_id).await;
    let took = asked.elapsed();
    let family = family(client, run_id).await;
    for run in &family {
        assert!(!run["completed_at"].is_null(), "an end for all: {run}");
    }
    assert_ended_well(client, &family).await;
    (end["status"].as_str().expect("status").to_owned(), family.len(), took)
}

async fn a_tree_whose_children_wait_in_the_queue_is_cancelled(url: String) {
    let setup = Setup::new(url, format!("{YAML}\nengine: {{ max_concurrent_runs: 1 }}\n"));
    let server = setup.start().await;
    let client = &server.client;
    // A parent goes on when a slot is free, also to be cancelled: its children are not at it for ever.
    add_tree(client, words(100, 20)).await;
    add(client, &[caller("blocker", &[], json!([words(100, 20)]))]).await;
    let run_id = start(client, "top").await;
    client.events(&run_id, 0).await.until("tool_call.started").await;
    // The one slot is taken by somebody else before or behind the children.
    let blocker = start(client, "blocker").await;
    cancel(client, &run_id).await;
    assert_eq!(client.wait(&run_id).await["status"], "cancelled");
    assert_ended_well(client, &family(client, &run_id).await).await;
    cancel(client, &blocker).await;
}

async fn a_child_that_is_cancelled_is_a_failed_result(url: String) {
    let setup = Setup::new(url, YAML);
    let server = setup.start().await;
    let client = &server.client;
    let script = json!([{"tool_calls": [call("slow")]}, {"text": "then without"}]);
    add(
        client,
        &[caller("slow", &[], json!([words(1_000, 20)])), caller("asks", &["slow"], script)],
    )
    .await;
    let run_id = start(client, "asks").await;
    let started = client.events(&run_id, 0).await.until("tool_call.started").await.json();
    let child = started["child_run_id"].as_str().expect("a child");
    // The child is there a moment after its call began.
    while client.get(&format!("/v1/runs/{child}")).await.status != 200 {}
    cancel(client, child).await;
    let run = client.wait(&run_id).await;
    assert_eq!(
        (&run["status"], &run["result"]["content"]),
        (&json!("completed"), &json!("then without"))
    );
    let steps = client.get(&format!("/v1/runs/{run_id}/steps")).await.expect(200);
    let told = steps["data"][0]["tool_calls"][0]["error"].as_str().expect("words").to_owned();
    assert!(told.starts_with("The agent's run was cancelled."), "{told}");
}

async fn a_parent_that_runs_out_of_time_ends_its_children_first(url: String) {
    // One slot and somebody in it: the child waits in the queue, where its own time does not run.
    let setup = Setup::new(url, format!("{YAML}\nengine: {{ max_concurrent_runs: 1 }}\n"));
    let server = setup.start().await;
    let client = &server.client;
    let script = json!([{"tool_calls": [
        call("slow"), {"tool": "sleep", "arguments": {"seconds": 60}}]}, {"text": "done"}]);
    let mut parent = caller("asks", &["slow"], script);
    // Long enough for its child to be there.
    parent["timeout_seconds"] = json!(4);
    add(client, &[caller("slow", &[], json!([words(1_000, 20)])), parent]).await;
    let run_id = start(client, "asks").await;
    let run = client.wait(&run_id).await;
    assert_eq!(run["status"], "expired");
    let family = family(client, &run_id).await;
    assert_eq!((family.len(), &family[1]["status"]), (2, &json!("cancelled")));
    assert_eq!(id(&family[0]), run_id);
    assert_ended_well(client, &family).await;
}

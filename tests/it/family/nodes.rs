//! Families whose runs are driven by two nodes.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{TREE, YAML, add_tree, assert_ended_well, family, start, words};
use crate::support::postgres;
use crate::support::server::Setup;

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_over_two_nodes_answers_and_is_cancelled_as_one() {
    let url = postgres::empty_database().await;
    // Few slots each: children go where there is one.
    let yaml = format!("{YAML}\nengine: {{ max_concurrent_runs: 2 }}\n");
    let setups = [Setup::new(&url, &yaml), Setup::new(&url, &yaml)];
    let nodes = [setups[0].start().await, setups[1].start().await];
    let [a, b] = [&nodes[0].client, &nodes[1].client];
    add_tree(a, words(6, 8)).await;
    let mut runs = Vec::new();
    for n in 0..12 {
        runs.push(start(if n % 2 == 0 { a } else { b }, "top").await);
    }
    for run_id in &runs {
        assert_eq!(b.wait(run_id).await["status"], "completed");
        let family = family(a, run_id).await;
        assert_eq!(family.len(), TREE);
        assert_ended_well(a, &family).await;
    }
    let mut slowest = Duration::ZERO;
    for n in 0..20 {
        let run_id = start(a, "top").await;
        tokio::time::sleep(Duration::from_millis(n * 10)).await;
        let asked = Instant::now();
        b.post(&format!("/v1/runs/{run_id}/cancel"), &json!({})).await;
        let run = b.wait(&run_id).await;
        slowest = slowest.max(asked.elapsed());
        let family = family(b, &run_id).await;
        assert!(family.iter().all(|run| !run["completed_at"].is_null()), "{run}");
        assert_ended_well(b, &family).await;
    }
    println!("the slowest cancel of a tree took {slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_goes_on_when_one_of_its_nodes_dies() {
    let url = postgres::empty_database().await;
    let setups = [Setup::new(&url, YAML), Setup::new(&url, YAML)];
    let [a, b] = [setups[0].start().await, setups[1].start().await];
    add_tree(&a.client, words(20, 20)).await;
    let mut runs = Vec::new();
    for _ in 0..6 {
        runs.push(start(&a.client, "top").await);
        runs.push(start(&b.client, "top").await);
    }
    a.client.events(&runs[0], 0).await.until("tool_call.started").await;
    a.kill();
    for run_id in &runs {
        assert_eq!(b.client.wait(run_id).await["status"], "completed");
        let family = family(&b.client, run_id).await;
        assert_eq!(family.len(), TREE);
        assert_ended_well(&b.client, &family).await;
    }
}

//! Kill the server in the middle of a tree: each call has one child, and each answer comes once.

use std::time::Duration;

use super::{TREE, YAML, add_tree, assert_ended_well, family, start, words};
use crate::support::on_both_databases;
use crate::support::profile::pick;
use crate::support::random::Random;
use crate::support::server::Setup;

on_both_databases! {
    a_tree_goes_on_after_every_kill_with_one_child_a_call;
    a_tree_is_handed_over_by_a_server_that_stops;
}

async fn a_tree_goes_on_after_every_kill_with_one_child_a_call(url: String) {
    let setup = Setup::new(url, YAML).on_a_port_that_stays();
    let mut random = Random::new();
    let mut server = setup.start().await;
    add_tree(&server.client, words(8, 10)).await;
    let kills = pick(20, 200);
    let (mut hit, mut runs) = (0, Vec::new());
    // More of them where few hit, on a machine that is faster or slower than most.
    while runs.len() < kills || (hit * 4 < kills && runs.len() < 5 * kills) {
        let run_id = start(&server.client, "top").await;
        tokio::time::sleep(Duration::from_millis(random.below(220))).await;
        let status = super::get(&server.client, &run_id).await["status"].clone();
        server.kill();
        hit += usize::from(status == "running");
        runs.push(run_id);
        server = setup.start().await;
    }
    let client = &server.client;
    for run_id in &runs {
        let run = client.wait(run_id).await;
        assert_eq!(run["status"], "completed", "{run}");
        let family = family(client, run_id).await;
        assert_eq!(family.len(), TREE);
        assert_ended_well(client, &family).await;
    }
    println!("{hit} of {} kills hit a running tree", runs.len());
    assert!(hit * 4 >= kills, "{hit} of {} kills hit a running tree", runs.len());
}

async fn a_tree_is_handed_over_by_a_server_that_stops(url: String) {
    let setup = Setup::new(url, YAML);
    let mut server = setup.start().await;
    add_tree(&server.client, words(20, 10)).await;
    let run_id = start(&server.client, "top").await;
    server.client.events(&run_id, 0).await.until("tool_call.started").await;
    assert!(server.terminate().await.success());
    server = setup.start().await;
    let client = &server.client;
    assert_eq!(client.wait(&run_id).await["status"], "completed");
    let family = family(client, &run_id).await;
    assert_eq!(family.len(), TREE);
    assert_ended_well(client, &family).await;
}

//! Runs that take their process down (P12). The model server is the poison: it kills whichever process
//! asks it for a word about a poisoned run, and there is no door for it in the product.

mod stage;

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::{Client, Frame, log_of};
use crate::support::model_server::openai;
use crate::support::on_both_databases;

use stage::{Deed, Stage};

on_both_databases! {
    poison_runs_fail_alone_among_innocents;
    a_machine_that_goes_down_with_parent_and_child_convicts_nobody;
    a_server_that_stops_takes_its_children_along_and_hands_their_runs_over;
    a_child_whose_server_was_killed_gives_its_run_back;
    a_child_that_cannot_finish_loses_its_run_to_the_next_server;
    a_child_that_stands_still_is_killed_and_convicts_nobody;
    a_suspect_that_commits_a_step_is_a_run_like_any_other;
    a_suspect_that_is_cancelled_ends_cancelled;
}

/// Poison runs, submitted afresh one after the other.
const POISONS: usize = 2;
/// Runs that are under way whenever one of them strikes.
const INNOCENTS: usize = 50;
/// Processes that a poison run takes down: two with neighbours, and its own.
const DEATHS: usize = 3;
/// Innocents of each poison that were suspects for a while: at least so many, or the test has shown nothing.
/// (In fact it is nearly all of them; those that the second server had not taken up yet are none.)
const SUSPECTS: usize = INNOCENTS / 2;

async fn create(client: &Client, input: &str) -> String {
    let run = client.post("/v1/agents/a/runs", &json!({"input": input})).await.expect(202);
    run["run_id"].as_str().expect("run_id").to_owned()
}

/// The whole log of a run that has ended: gap-free, with one final event, the last.
async fn whole_log(client: &Client, run_id: &str) -> Vec<Frame> {
    let log = log_of(&client.events(run_id, 0).await.rest().await);
    let seqs: Vec<i64> = log.iter().map(Frame::seq).collect();
    assert_eq!(seqs, (1..=log.len() as i64).collect::<Vec<_>>(), "gap-free");
    let finals: Vec<bool> = log.iter().map(Frame::is_final).collect();
    assert_eq!(finals.iter().filter(|is| **is).count(), 1);
    assert!(finals.last().is_some_and(|is| *is));
    log
}

async fn assert_poisoned(client: &Client, run_id: &str) {
    let run = client.wait(run_id).await;
    assert_eq!(run["status"], "failed", "{run}");
    assert_eq!(
        (&run["error"]["code"], &run["error"]["retryable"]),
        (&json!("poisoned"), &json!(false))
    );
    let log = whole_log(client, run_id).await;
    let failed = log.last().expect("an event").json();
    assert_eq!((&failed["type"], &failed["error"]), (&json!("run.failed"), &run["error"]));
    assert!(log.iter().any(|frame| frame.event == "step.failed"), "no step is left open");
}

async fn assert_completed(client: &Client, run_id: &str) -> (Value, Vec<Frame>) {
    let run = client.wait(run_id).await;
    assert_eq!(run["status"], "completed", "{run}");
    (run, whole_log(client, run_id).await)
}

async fn poison_runs_fail_alone_among_innocents(url: String) {
    let mut stage = Stage::set(url).await;
    let (mut deaths, mut completed) = (0, 0);
    for _ in 0..POISONS {
        stage.interrupt_innocents();
        let mut neighbours = Vec::new();
        for n in 0..INNOCENTS {
            neighbours.push(create(stage.client(), &format!("Say hello {n}")).await);
        }
        for run_id in &neighbours {
            stage.client().events(run_id, 0).await.until("message.delta").await;
        }
        stage.poison().await;
        for death in 1..=DEATHS {
            let victim = stage.next_victim().await;
            deaths += 1;
            if death + 1 == DEATHS {
                // Each in its process may finish now, or there would be no place for the poison's.
                stage.let_innocents_finish();
            }
            if death < DEATHS {
                assert!(victim.is_server(), "death {death} is the server's");
                stage.replace(victim.pid).await;
            } else {
                let poison = stage.newest_run().await;
                assert_child(&victim, &stage, &poison);
            }
        }
        let poison = stage.newest_run().await;
        assert_poisoned(stage.client(), &poison).await;
        let mut hit = 0;
        for run_id in &neighbours {
            let (_, log) = assert_completed(stage.client(), run_id).await;
            hit += usize::from(log.iter().any(|frame| frame.event == "step.restarted"));
        }
        // This server is the third: it has the poison and all suspects.
        let says = "goes on in a process of its own";
        let children = stage.server().logged(says, SUSPECTS + 1).await;
        assert_eq!(hit, INNOCENTS, "all of them were hit");
        assert!(children > SUSPECTS, "{children} had a process");
        completed += neighbours.len();
    }
    assert_eq!((deaths, completed), (POISONS * DEATHS, POISONS * INNOCENTS));
    stage.assert_no_more_victims();
    assert!(stage.terminate().await.success());
}

/// It is a child of the server for this run, with less memory, and shows no secret.
fn assert_child(victim: &stage::Victim, stage: &Stage, run_id: &str) {
    assert_eq!(victim.parent, stage.server().pid());
    assert_eq!(victim.arguments[..4], ["stepwell", "drive-one", "--run", run_id]);
    assert!(!victim.arguments.iter().any(|argument| argument.contains("://")));
    assert_eq!(victim.data_limit, Some(1024 * 1024 * 1024));
}

async fn a_machine_that_goes_down_with_parent_and_child_convicts_nobody(url: String) {
    let mut stage = Stage::set(url).await;
    stage.deeds([Deed::Kill, Deed::Kill, Deed::KillAfterParent, Deed::KillBeforeParent]);
    stage.poison().await;
    for child in [false, false, true, true] {
        let victim = stage.next_victim().await;
        assert_eq!(victim.is_server(), !child);
        if victim.was_late {
            // The machine stood still, and the parent may have convicted the run before it died: nobody would
            // ask for it any more.
            return;
        }
        stage.replace(if child { victim.parent } else { victim.pid }).await;
    }
    // It lives, and still has a process of its own; only what happens there counts.
    let victim = stage.next_victim().await;
    let run_id = stage.newest_run().await;
    assert_child(&victim, &stage, &run_id);
    assert_poisoned(stage.client(), &run_id).await;
    stage.assert_no_more_victims();
}

/// Makes a suspect of a run: two servers died with it. Then its child asks for the third time, and
/// gets an answer with a call in it, of which the last word is still to come.
async fn suspect(stage: &mut Stage) -> (String, stage::Victim) {
    let calls = openai::tool_calls(&[("echo", r#"{"text":"x"}"#)]);
    stage.deeds([Deed::Kill, Deed::Kill, Deed::Answer(stage.held_back(calls))]);
    stage.poison().await;
    for _ in 0..2 {
        let victim = stage.next_victim().await;
        stage.replace(victim.pid).await;
    }
    let child = stage.next_asker().await;
    let run_id = stage.newest_run().await;
    assert_child(&child, stage, &run_id);
    (run_id, child)
}

/// The run goes on behind what its child wrote: with the call, and then with the last answer.
async fn assert_goes_on(stage: &mut Stage, run_id: &str) {
    let (run, log) = assert_completed(stage.client(), run_id).await;
    assert_eq!((&run["steps_completed"], &run["result"]["content"]), (&json!(2), &json!("done")));
    let count = |event: &str| log.iter().filter(|frame| frame.event == event).count();
    assert_eq!((count("step.started"), count("tool_call.completed")), (2, 1));
    stage.assert_no_more_victims();
}

async fn a_suspect_that_commits_a_step_is_a_run_like_any_other(url: String) {
    let mut stage = Stage::set(url).await;
    let (run_id, child) = suspect(&mut stage).await;
    stage.deeds([Deed::Answer(openai::text("done"))]);
    stage.open();
    let next = stage.next_asker().await;
    assert_eq!(next.pid, stage.server().pid(), "the server itself goes on with it");
    child.gone().await;
    assert_goes_on(&mut stage, &run_id).await;
}

async fn a_server_that_stops_takes_its_children_along_and_hands_their_runs_over(url: String) {
    let mut stage = Stage::set(url).await;
    let (run_id, child) = suspect(&mut stage).await;
    stage.deeds([Deed::Answer(openai::text("done"))]);
    let opener = stage.open_in(Duration::from_millis(300));
    assert!(stage.terminate().await.success(), "exit code 0");
    opener.await.expect("opened");
    assert!(!child.process().is_alive(), "no child is left behind");
    stage.start_again().await;
    assert_goes_on(&mut stage, &run_id).await;
}

async fn a_child_whose_server_was_killed_gives_its_run_back(url: String) {
    let mut stage = Stage::set(url).await;
    let (run_id, child) = suspect(&mut stage).await;
    stage.deeds([Deed::Answer(openai::text("done"))]);
    stage.kill();
    assert!(child.process().is_alive(), "it goes on to the end of its answer");
    stage.open();
    child.gone().await;
    stage.start_again().await;
    assert_goes_on(&mut stage, &run_id).await;
}

/// On SQLite the next server knows at once that nobody else can live; on Postgres the child breaks its
/// step off, since nobody waits for it any more.
async fn a_child_that_cannot_finish_loses_its_run_to_the_next_server(url: String) {
    let mut stage = Stage::set(url).await;
    let (run_id, child) = suspect(&mut stage).await;
    let calls = openai::tool_calls(&[("echo", r#"{"text":"x"}"#)]);
    stage.deeds([Deed::Answer(calls), Deed::Answer(openai::text("done"))]);
    stage.kill();
    assert!(child.process().is_alive());
    stage.start_again().await;
    assert_goes_on(&mut stage, &run_id).await;
    child.gone().await;
}

async fn a_child_that_stands_still_is_killed_and_convicts_nobody(url: String) {
    let mut stage = Stage::set(url).await;
    let (run_id, child) = suspect(&mut stage).await;
    let calls = openai::tool_calls(&[("echo", r#"{"text":"x"}"#)]);
    stage.deeds([Deed::Answer(calls), Deed::Answer(openai::text("done"))]);
    child.process().stop();
    // Its beat stands still for 15 s; its node is buried, and it does not go by itself.
    child.gone().await;
    let next = stage.next_asker().await;
    assert_child(&next, &stage, &run_id);
    assert_goes_on(&mut stage, &run_id).await;
}

async fn a_suspect_that_is_cancelled_ends_cancelled(url: String) {
    let mut stage = Stage::set(url).await;
    let (run_id, child) = suspect(&mut stage).await;
    let client = stage.client();
    let asked = client.post(&format!("/v1/runs/{run_id}/cancel"), &json!({})).await;
    assert!(matches!(asked.status, 200 | 202), "{}", asked.body);
    let run = client.wait(&run_id).await;
    assert_eq!(run["status"], "cancelled", "{run}");
    whole_log(client, &run_id).await;
    child.gone().await;
    assert!(stage.terminate().await.success());
}

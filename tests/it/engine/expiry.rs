//! Runs that wait for people, and time that passes: a real engine on a real database, with a clock that
//! is moved by hand.

use std::time::Duration;

use serde_json::json;
use stepwell::clock::Clock;
use stepwell::domain::run::RunStatus;
use stepwell::store::SharedStore;

use super::stage::{PATIENCE, Stage};
use crate::store::fixtures::at;
use crate::support::databases::conformance;

conformance!(
    a_call_that_nobody_approves_in_time_is_denied_and_the_run_goes_on,
    a_result_that_nobody_posts_in_time_is_a_failed_call,
    a_run_that_waited_for_days_goes_on_when_it_is_approved_after_a_restart,
    an_approved_call_of_the_caller_s_expires_by_its_own_time,
    a_decision_that_comes_too_late_does_not_count,
);

const DAY: Duration = Duration::from_secs(86_400);

fn types(log: &[(String, serde_json::Value)], after: &str) -> Vec<String> {
    let from = log.iter().position(|(event, _)| event == after).expect("the event");
    log[from..].iter().map(|(event, _)| event.clone()).collect()
}

const GOES_ON: [&str; 6] = [
    "run.running",
    "step.completed",
    "step.started",
    "message.completed",
    "step.completed",
    "run.completed",
];

async fn a_call_that_nobody_approves_in_time_is_denied_and_the_run_goes_on(store: SharedStore) {
    let stage = Stage::set(&store, &Clock::manual(at(0))).await;
    let run = stage
        .parked(&store, json!([{"type": "builtin", "name": "echo", "requires_approval": true}]))
        .await;
    let run_id = run.row.run_id;
    assert_eq!(run.actions[0].expires_at, Some(at(0).plus(DAY)));
    assert_eq!(run.row.due_at, Some(at(0).plus(DAY)));
    let run = stage.pass(DAY, run_id, RunStatus::Completed).await;
    assert_eq!(run.actions, []);
    let log = stage.log_of(&store, run_id).await;
    let mut expected = vec!["approval.expired", "tool_call.failed", "run.resumed"];
    expected.extend(GOES_ON);
    assert_eq!(types(&log, "approval.expired"), expected);
    let failed = log.iter().find(|(event, _)| event == "tool_call.failed").expect("a failed call");
    assert_eq!(failed.1["error"], "This call was denied: nobody approved it in time.");
    stage.stop().await;
}

async fn a_result_that_nobody_posts_in_time_is_a_failed_call(store: SharedStore) {
    let stage = Stage::set(&store, &Clock::manual(at(0))).await;
    let tools = json!([
        {"type": "client", "name": "quick", "timeout_seconds": 60},
        {"type": "client", "name": "slow", "timeout_seconds": 3_600},
    ]);
    let run_id = stage.parked(&store, tools).await.row.run_id;
    // The first is over, the other is still waited for.
    stage.clock.advance(Duration::from_secs(60));
    stage.log.queued();
    let looked = async {
        while stage.settled(run_id).await.actions.len() != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looked).await.expect("the engine looks at what is due");
    let run = stage.pass(Duration::from_secs(3_540), run_id, RunStatus::Completed).await;
    assert_eq!(run.row.steps_completed, 2);
    let log = stage.log_of(&store, run_id).await;
    let failed = log.iter().filter(|(event, _)| event == "tool_call.failed");
    let errors: Vec<_> = failed.map(|(_, event)| event["error"].clone()).collect();
    assert_eq!(errors, ["No result was posted in time."; 2]);
    stage.stop().await;
}

async fn a_run_that_waited_for_days_goes_on_when_it_is_approved_after_a_restart(
    store: SharedStore,
) {
    let clock = Clock::manual(at(0));
    let stage = Stage::set(&store, &clock).await;
    let run = stage
        .parked(
            &store,
            json!([{"type": "builtin", "name": "echo", "requires_approval": true,
                "approval_timeout_seconds": 2_592_000}]),
        )
        .await;
    stage.stop().await;
    clock.advance(DAY * 12);
    let stage = Stage::set(&store, &clock).await;
    let run_id = run.row.run_id;
    assert_eq!(stage.settled(run_id).await.row.status, RunStatus::RequiresAction);
    stage.decide(run_id, run.actions[0].call_id).await.expect("it counts");
    let run = stage.pass(Duration::ZERO, run_id, RunStatus::Completed).await;
    // The time of waiting is not the run's: it has 600 s.
    assert_eq!(run.row.steps_completed, 2);
    let log = stage.log_of(&store, run_id).await;
    let mut expected = vec!["approval.decided", "run.resumed", "run.running"];
    expected.extend(["tool_call.started", "tool_call.completed"]);
    expected.extend(&GOES_ON[1..]);
    assert_eq!(types(&log, "approval.decided"), expected);
    stage.stop().await;
}

async fn an_approved_call_of_the_caller_s_expires_by_its_own_time(store: SharedStore) {
    let stage = Stage::set(&store, &Clock::manual(at(0))).await;
    let tools = json!([{"type": "client", "name": "mine", "requires_approval": true,
        "timeout_seconds": 60}]);
    let run = stage.parked(&store, tools).await;
    let run_id = run.row.run_id;
    let run = stage.decide(run_id, run.actions[0].call_id).await.expect("it counts");
    // Long before the approval would have expired.
    assert_eq!(run.actions[0].expires_at, Some(at(60_000)));
    assert_eq!((run.row.status, run.row.due_at), (RunStatus::RequiresAction, Some(at(60_000))));
    stage.pass(Duration::from_secs(60), run_id, RunStatus::Completed).await;
    stage.stop().await;
}

async fn a_decision_that_comes_too_late_does_not_count(store: SharedStore) {
    let clock = Clock::manual(at(0));
    let stage = Stage::set(&store, &clock).await;
    let tools = json!([{"type": "builtin", "name": "echo", "requires_approval": true}]);
    let run = stage.parked(&store, tools).await;
    let (run_id, call_id) = (run.row.run_id, run.actions[0].call_id);
    stage.engine.drain().await;
    // No engine has looked at it yet; the log will say that it expired, so it has.
    clock.advance(DAY);
    let late = stage.decide(run_id, call_id).await;
    assert!(late.is_err_and(|error| error.contains("too late")));
    stage.stop().await;
    let stage = Stage::set(&store, &clock).await;
    stage.pass(Duration::ZERO, run_id, RunStatus::Completed).await;
    let late = stage.decide(run_id, call_id).await;
    assert!(late.is_err_and(|error| error.contains("too late")));
    stage.stop().await;
}

//! A tool that answered for a driver which had lost its run: what was done is handed in.

use serde_json::{Value, json};
use stepwell::clock::Clock;
use stepwell::domain::answer::{Refusal, Report, Said};
use stepwell::domain::event::{
    Event, MessageCompleted, RunRequiresAction, StatusChanged, StepStarted, ToolCallCreated,
    ToolCallOutcomeUnknown, ToolCallStarted,
};
use stepwell::domain::fold::CallState;
use stepwell::domain::fold::Folded;
use stepwell::domain::ids::{CallId, MessageId};
use stepwell::domain::message::Role;
use stepwell::domain::model::FinishReason;
use stepwell::domain::run::RunStatus;
use stepwell::domain::tool::Effect;
use stepwell::domain::usage::Usage;
use stepwell::log::{CallAnswer, Log, guest};
use stepwell::store::{AppendOutcome, GuestOutcome, GuestWrite, Owner, RunUpdate, SharedStore};
use uuid::Uuid;

use crate::store::fixtures::*;
use crate::support::databases::conformance;

conformance!(
    an_answer_is_taken_while_another_node_drives_the_run,
    an_answer_resumes_a_run_that_waits_for_nothing_else,
    an_answer_to_what_is_answered_changes_nothing,
    somebody_says_what_became_of_a_call_whose_outcome_is_unknown,
    a_call_is_made_again_when_somebody_wants_it_to_be,
);

fn call(n: u128) -> CallId {
    CallId::from_uuid(Uuid::from_u128(n))
}

/// A log in which these calls were made.
fn made(calls: &[CallId]) -> Vec<Event> {
    let mut events = vec![
        Event::RunRunning(StatusChanged { status: RunStatus::Running }),
        Event::StepStarted(StepStarted {
            step: 1,
            attempt: 1,
            model: "builtin/echo".to_owned(),
            dropped_messages: 0,
            progress_percent: 0,
            status_message: "Calling builtin/echo".to_owned(),
        }),
        Event::MessageCompleted(MessageCompleted {
            step: 1,
            message_id: MessageId::from_uuid(Uuid::from_u128(1)),
            role: Role::Assistant,
            content: "I will pay.".to_owned(),
            reasoning: None,
            finish_reason: FinishReason::ToolCalls,
            model_usage: Usage::default(),
            model_cost_usd: None,
            provider_state: None,
        }),
    ];
    for call_id in calls {
        events.push(Event::ToolCallCreated(ToolCallCreated {
            step: 1,
            call_id: *call_id,
            tool: "pay".to_owned(),
            arguments: json!({}),
            effect: Effect::Once,
            awaits: None,
            expires_at: None,
        }));
    }
    for call_id in calls {
        events.push(Event::ToolCallStarted(ToolCallStarted {
            child_run_id: None,
            child_max_cost_usd: None,
            step: 1,
            call_id: *call_id,
            tool: "pay".to_owned(),
            attempt: 1,
        }));
    }
    events
}

/// Nobody knows what became of them, and the run waits for somebody who does.
fn parked(calls: &[CallId]) -> Vec<Event> {
    let mut events = made(calls);
    for call_id in calls {
        events.push(Event::ToolCallOutcomeUnknown(ToolCallOutcomeUnknown {
            step: 1,
            call_id: *call_id,
            tool: "pay".to_owned(),
            error: None,
        }));
    }
    events.push(Event::RunRequiresAction(RunRequiresAction {
        status: RunStatus::RequiresAction,
        required_actions: vec![],
    }));
    events
}

/// Run 1, driven by node 1, with these events; and a log over it for another node.
async fn stage(store: &SharedStore, events: &[Event], owner: Owner) -> Log {
    add_agent(store, "a").await;
    create(store, vec![driven_run(1)]).await;
    let run = run_id(1);
    let entries: Vec<_> = (2..).zip(events).map(|(seq, event)| entry(run, seq, event)).collect();
    let facts: Vec<_> = std::iter::once(queued(run)).chain(entries.iter().cloned()).collect();
    let change = RunUpdate::of(&Folded::read(&facts).unwrap(), owner);
    assert_eq!(append_to(store, 1, 1, entries, Some(change)).await, AppendOutcome::Written);
    Log::new(store.clone(), Clock::system(), node(2), 0).0
}

async fn answer(log: &Log, call_id: CallId, answer: Result<Value, String>) {
    log.answer_call((HOME, run_id(1)), CallAnswer { call_id, answer }).await.unwrap();
}

async fn types(store: &SharedStore, after: usize) -> Vec<&'static str> {
    log(store, 1).await[after..].iter().map(|entry| entry.event_type.as_str()).collect()
}

async fn an_answer_is_taken_while_another_node_drives_the_run(store: SharedStore) {
    let events = made(&[call(1)]);
    let log = stage(&store, &events, Owner::Keep).await;
    answer(&log, call(1), Ok(json!({"paid": true}))).await;
    assert_eq!(types(&store, events.len() + 1).await, ["tool_call.completed"]);
    let row = row(&store, 1).await;
    assert_eq!((row.status, row.node_id, row.rev), (RunStatus::Running, Some(node(1)), 2));
    assert_eq!(row.due_at, None);
}

async fn an_answer_resumes_a_run_that_waits_for_nothing_else(store: SharedStore) {
    let events = parked(&[call(1), call(2)]);
    let log = stage(&store, &events, Owner::Nobody { due_at: None }).await;
    let before = events.len() + 1;
    answer(&log, call(1), Err("The card was refused.".to_owned())).await;
    assert_eq!(types(&store, before).await, ["tool_call.failed"]);
    let waiting = row(&store, 1).await;
    assert_eq!((waiting.status, waiting.due_at), (RunStatus::RequiresAction, None));
    answer(&log, call(2), Ok(json!({"paid": true}))).await;
    let expected = ["tool_call.failed", "tool_call.completed", "run.resumed"];
    assert_eq!(types(&store, before).await, expected);
    let resumed = row(&store, 1).await;
    assert_eq!(resumed.status, RunStatus::Queued);
    assert!(resumed.due_at.is_some() && resumed.node_id.is_none());
    let claims = store.claim_due(node(3), at(i64::from(i32::MAX)), 10).await.unwrap();
    assert_eq!(claims.len(), 1, "somebody goes on with it");
}

async fn an_answer_to_what_is_answered_changes_nothing(store: SharedStore) {
    let events = made(&[call(1)]);
    let log = stage(&store, &events, Owner::Keep).await;
    answer(&log, call(1), Ok(json!(1))).await;
    let (rev, length) = (row(&store, 1).await.rev, types(&store, 0).await.len());
    answer(&log, call(1), Ok(json!(2))).await;
    answer(&log, call(9), Ok(json!(3))).await;
    assert_eq!((row(&store, 1).await.rev, types(&store, 0).await.len()), (rev, length));
    let change = ends(length as i32 + 1);
    let last = vec![completed(run_id(1), length as i32 + 1)];
    assert_eq!(append_to(&store, 1, rev, last, Some(change)).await, AppendOutcome::Written);
    answer(&log, call(1), Ok(json!(4))).await;
    assert_eq!(types(&store, length).await, ["run.completed"], "nothing follows the end");
}

/// What somebody says; the types of what that left behind.
async fn say(log: &Log, call_id: CallId, said: Said) -> Result<Vec<&'static str>, Refusal> {
    let report = Report { call_id, said, said_by: Some("key_1".to_owned()) };
    let decide = guest::report(&log.clock, report);
    let write = GuestWrite { workspace_id: HOME, run_id: run_id(1), key: None, decide };
    match log.visit(write).await.unwrap() {
        GuestOutcome::Done { appended, .. } => {
            Ok(appended.iter().map(|entry| entry.event_type.as_str()).collect())
        }
        GuestOutcome::Refused(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

async fn somebody_says_what_became_of_a_call_whose_outcome_is_unknown(store: SharedStore) {
    let log = stage(&store, &parked(&[call(1), call(2)]), Owner::Nobody { due_at: None }).await;
    let paid = Said::Result(json!({"paid": true}));
    assert_eq!(say(&log, call(1), paid.clone()).await, Ok(vec!["tool_call.completed"]));
    assert_eq!(say(&log, call(1), paid).await, Ok(vec![]), "the same again is fine");
    let other = say(&log, call(1), Said::Failed("No.".to_owned())).await;
    assert_eq!(other, Err(Refusal::AlreadyDecided(call(1))));
    assert_eq!(say(&log, call(9), Said::Again).await, Err(Refusal::NoSuchCall));
    assert_eq!(row(&store, 1).await.status, RunStatus::RequiresAction);
    let failed = say(&log, call(2), Said::Failed("No.".to_owned())).await;
    assert_eq!(failed, Ok(vec!["tool_call.failed", "run.resumed"]));
    let resumed = row(&store, 1).await;
    assert!(resumed.status == RunStatus::Queued && resumed.due_at.is_some());
}

async fn a_call_is_made_again_when_somebody_wants_it_to_be(store: SharedStore) {
    let log = stage(&store, &parked(&[call(1)]), Owner::Nobody { due_at: None }).await;
    let again = say(&log, call(1), Said::Again).await;
    assert_eq!(again, Ok(vec!["approval.decided", "run.resumed"]));
    assert_eq!(say(&log, call(1), Said::Again).await, Ok(vec![]), "the same again is fine");
    let late = say(&log, call(1), Said::Result(json!(1))).await;
    assert_eq!(late, Err(Refusal::AlreadyDecided(call(1))));
    let facts = store.read_facts(HOME, run_id(1), 0).await.unwrap();
    let folded = Folded::read(&facts).unwrap();
    let (_, made) = folded.call(call(1)).unwrap();
    // It is to be made, as the second attempt; what it was made with before is not what is asked.
    assert_eq!((&made.state, made.attempt, made.retried), (&CallState::Ready, 1, true));
}

//! What a run with children does next, and what a driver that was overtaken keeps: pure.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::json;
use stepwell::domain::decide::{Decision, Ending, Now, decide};
use stepwell::domain::event::{
    Event, MessageCompleted, RunQueued, RunRequiresAction, StatusChanged, StepStarted,
    ToolCallCreated, ToolCallFailed, ToolCallStarted,
};
use stepwell::domain::family::{self, ChildState};
use stepwell::domain::fold::Folded;
use stepwell::domain::ids::{CallId, MessageId, RunId};
use stepwell::domain::message::{Input, Role};
use stepwell::domain::model::{Catalogue, FinishReason};
use stepwell::domain::money::Usd;
use stepwell::domain::overtaken;
use stepwell::domain::plan::Plan;
use stepwell::domain::run::{ActionType, RequiredAction, RunStatus};
use stepwell::domain::time::Timestamp;
use stepwell::domain::tool::Effect;
use stepwell::domain::usage::Usage;
use uuid::Uuid;

const NOW: Timestamp = Timestamp::from_millis(1_795_340_613_000);

fn call(n: u128) -> CallId {
    CallId::from_uuid(Uuid::from_u128(n))
}

fn plan(max_cost_usd: Option<f64>) -> Plan {
    let settings = json!({
        "model": "builtin/script", "timeout_seconds": 100, "max_cost_usd": max_cost_usd,
        "tools": [{"type": "agent", "name": "ask", "agent_id": "other", "timeout_seconds": 60}],
    });
    Plan::new(serde_json::from_value(settings).expect("settings"), &Catalogue::default())
}

struct Log {
    folded: Folded,
    seq: i32,
}

impl Log {
    /// A running run of this depth whose model asked for the tool so many times.
    fn new(depth: u32, calls: u128) -> Self {
        let queued = Event::RunQueued(RunQueued {
            status: RunStatus::Queued,
            agent_id: "a".parse().expect("an id"),
            agent_version: 1,
            model: "builtin/script".to_owned(),
            input: Input::Text("Go".to_owned()),
            conversation_id: None,
            parent_run_id: None,
            forked_from_run_id: None,
            depth,
        });
        let run_id = RunId::from_uuid(Uuid::from_u128(99));
        let first = queued.entry(run_id, 1, NOW).expect("an entry");
        let mut log = Self { folded: Folded::read([&first]).expect("a fold"), seq: 1 };
        log.push(Event::RunRunning(StatusChanged { status: RunStatus::Running }));
        log.push(Event::StepStarted(StepStarted {
            step: 1,
            attempt: 1,
            model: "builtin/script".to_owned(),
            dropped_messages: 0,
            progress_percent: 0,
            status_message: String::new(),
        }));
        log.push(Event::MessageCompleted(MessageCompleted {
            step: 1,
            message_id: MessageId::from_uuid(Uuid::from_u128(1)),
            role: Role::Assistant,
            content: String::new(),
            reasoning: None,
            finish_reason: FinishReason::ToolCalls,
            model_usage: Usage::default(),
            model_cost_usd: Some(Usd::from_micros(400_000)),
            provider_state: None,
        }));
        for n in 1..=calls {
            log.push(Event::ToolCallCreated(ToolCallCreated {
                step: 1,
                call_id: call(n),
                tool: "ask".to_owned(),
                arguments: json!({"input": "Please."}),
                effect: Effect::Idempotent,
                awaits: None,
                expires_at: None,
            }));
        }
        log
    }

    fn push(&mut self, event: Event) {
        self.seq += 1;
        self.folded.apply(self.seq, NOW, event).expect("it fits");
    }

    fn start(&mut self, n: u128, plan: &Plan) -> Event {
        let mut events = [Event::ToolCallStarted(ToolCallStarted {
            step: 1,
            call_id: call(n),
            tool: "ask".to_owned(),
            attempt: 1,
            child_run_id: None,
            child_max_cost_usd: None,
        })];
        family::grant(&self.folded, plan, &mut events);
        let [event] = events;
        self.push(event.clone());
        event
    }

    fn decide(&self, children: &HashMap<CallId, ChildState>, at: Timestamp) -> Decision {
        let none = HashSet::new();
        let now = Now { at, in_flight: &none, children, log_events: 9, log_bytes: 0 };
        decide(&self.folded, &plan(None), &now)
    }
}

fn action() -> RequiredAction {
    RequiredAction {
        action_type: ActionType::Approval,
        run_id: family::child_of(call(1)),
        call_id: call(50),
        tool: "pay".to_owned(),
        arguments: json!({}),
        expires_at: None,
    }
}

#[test]
fn children_are_met_then_awaited_and_the_run_parks_when_all_of_them_have() {
    let mut log = Log::new(0, 2);
    log.start(1, &plan(None));
    log.start(2, &plan(None));
    let mut children = HashMap::new();
    let both = vec![call(1), call(2)];
    assert_eq!(log.decide(&children, NOW), Decision::MeetChildren(both));
    children.insert(call(1), ChildState::Parked(vec![action()]));
    children.insert(call(2), ChildState::Active);
    let deadline = NOW.plus(Duration::from_secs(100));
    assert_eq!(log.decide(&children, NOW), Decision::AwaitChildren(deadline));
    children.insert(call(2), ChildState::Parked(Vec::new()));
    assert_eq!(log.decide(&children, NOW), Decision::Park(None));
    log.push(Event::RunRequiresAction(RunRequiresAction {
        status: RunStatus::RequiresAction,
        required_actions: vec![action()],
    }));
    assert_eq!(log.decide(&children, NOW), Decision::Park(None), "it waits as before");
    assert_eq!(log.folded.children_actions, [action()], "what it said that it waits for");
    let own = log.folded.required_actions(RunId::from_uuid(Uuid::from_u128(99)));
    assert_eq!(own, [], "which its children keep");
    children.insert(call(2), ChildState::Active);
    assert!(matches!(log.decide(&children, NOW), Decision::AwaitChildren(_)));
}

#[test]
fn no_run_ends_before_its_children() {
    let late = NOW.plus(Duration::from_secs(100));
    for cancelled in [false, true] {
        let mut log = Log::new(0, 1);
        log.start(1, &plan(None));
        if cancelled {
            log.push(Event::RunCancelling(StatusChanged { status: RunStatus::Cancelling }));
        }
        let mut children = HashMap::new();
        assert_eq!(log.decide(&children, late), Decision::MeetChildren(vec![call(1)]));
        children.insert(call(1), ChildState::Active);
        assert_eq!(log.decide(&children, late), Decision::CancelChildren(vec![call(1)]));
        children.insert(call(1), ChildState::Stopping);
        let decided = log.decide(&children, late);
        assert!(matches!(decided, Decision::AwaitChildren(at) if at > late), "{decided:?}");
        log.push(Event::ToolCallFailed(ToolCallFailed {
            step: 1,
            call_id: call(1),
            tool: "ask".to_owned(),
            error: "cancelled".to_owned(),
            duration_ms: 0,
            synthetic: false,
            child_cost_usd: Some(Usd::from_micros(7)),
        }));
        let ending = if cancelled { Ending::Cancelled } else { Ending::Expired };
        assert_eq!(log.decide(&children, late), Decision::End(ending));
        assert_eq!(log.folded.children_cost, Some(Usd::from_micros(7)));
    }
}

#[test]
fn what_is_left_of_a_cap_is_granted_once() {
    let plan = plan(Some(1.0));
    let mut log = Log::new(4, 4);
    let started = |n| ToolCallStarted {
        step: 1,
        call_id: call(n),
        tool: "ask".to_owned(),
        attempt: 1,
        child_run_id: None,
        child_max_cost_usd: None,
    };
    let mut events = [1, 2, 3].map(|n| Event::ToolCallStarted(started(n)));
    family::grant(&log.folded, &plan, &mut events);
    for (n, event) in (1..).zip(events) {
        let Event::ToolCallStarted(started) = &event else { panic!("{event:?}") };
        assert_eq!(started.child_run_id, Some(family::child_of(call(n))));
        assert_eq!(started.child_max_cost_usd, Some(Usd::from_micros(200_000)));
        log.push(event);
    }
    // All of it is granted to children that have not answered.
    let Event::ToolCallFailed(refused) = log.start(4, &plan) else { panic!("a grant") };
    assert!(refused.error.contains("No money is left"), "{}", refused.error);
}

#[test]
fn the_sixth_level_is_refused_in_words() {
    let mut log = Log::new(5, 1);
    let Event::ToolCallFailed(refused) = log.start(1, &plan(None)) else { panic!("a child") };
    assert!(refused.error.contains("5 levels deep"), "{}", refused.error);
    assert_eq!(log.folded.live_children().count(), 0);
}

#[test]
fn a_resume_that_was_overtaken_stays_unless_somebody_must_answer() {
    let parked = Event::RunRequiresAction(RunRequiresAction {
        status: RunStatus::RequiresAction,
        required_actions: vec![action()],
    });
    let resumed = Event::RunResumed(StatusChanged { status: RunStatus::Queued });
    let mut log = Log::new(0, 1);
    log.start(1, &plan(None));
    log.push(parked.clone());
    assert!(overtaken::still_holds(&log.folded, log.seq + 1, NOW, &resumed));
    let mut log = Log::new(0, 1);
    log.push(Event::ToolCallOutcomeUnknown(stepwell::domain::event::ToolCallOutcomeUnknown {
        step: 1,
        call_id: call(1),
        tool: "ask".to_owned(),
        error: None,
    }));
    log.push(parked);
    assert!(!overtaken::still_holds(&log.folded, log.seq + 1, NOW, &resumed));
}

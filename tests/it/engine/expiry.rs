//! Runs that wait for people, and time that passes: a real engine on a real database, with a clock that
//! is moved by hand.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use stepwell::app::runs::RunRequest;
use stepwell::app::{App, Caller, Links};
use stepwell::clock::Clock;
use stepwell::domain::answer::Verdict;
use stepwell::domain::egress::{Destinations, Outbound};
use stepwell::domain::event::ApprovalDecision;
use stepwell::domain::ids::{CallId, NodeId, RunId};
use stepwell::domain::message::Input;
use stepwell::domain::model::Catalogue;
use stepwell::domain::retention::Retention;
use stepwell::domain::run::{RunConfig, RunStatus};
use stepwell::egress::{Gate, Secrets};
use stepwell::engine::{Engine, Parts};
use stepwell::log::Log;
use stepwell::models::Models;
use stepwell::shutdown::Tasks;
use stepwell::store::{RunRecord, SharedStore};
use stepwell::tools::Tools;

use crate::store::fixtures::{HOME, agent, at};
use crate::support::databases::conformance;

conformance!(
    a_call_that_nobody_approves_in_time_is_denied_and_the_run_goes_on,
    a_result_that_nobody_posts_in_time_is_a_failed_call,
    a_run_that_waited_for_days_goes_on_when_it_is_approved_after_a_restart,
    an_approved_call_of_the_caller_s_expires_by_its_own_time,
    a_decision_that_comes_too_late_does_not_count,
);

const DAY: Duration = Duration::from_secs(86_400);
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct Stage {
    clock: Clock,
    log: Log,
    app: App,
    engine: Arc<Engine>,
    work: Tasks,
    journal: Tasks,
}

impl Stage {
    async fn set(store: &SharedStore, clock: &Clock) -> Self {
        let node_id = NodeId::from_uuid(clock.uuid());
        let (log, handovers) = Log::new(store.clone(), clock.clone(), node_id, 8);
        let (work, journal) = (Tasks::new(), Tasks::new());
        log.start(&work, &journal);
        let catalogue = Arc::new(Catalogue::default());
        let engine = Engine::new(Parts {
            log: log.clone(),
            models: Arc::new(Models::new(vec![]).expect("the built-in models")),
            catalogue: catalogue.clone(),
            tools: Tools::new(
                clock.clone(),
                Gate::new(Destinations::default()),
                Secrets::default(),
                work.clone(),
            ),
            slots: 8,
            // Nothing here goes down, so it is never started.
            child: Some(Arc::new(|_| tokio::process::Command::new("false"))),
            retention: Retention { run_days: 3_650, delta_days: 3_650 },
        });
        engine.start(handovers, &work).await.expect("an engine");
        let app = App::new(log.clone(), catalogue, Outbound::default(), Links::new(None));
        Self { clock: clock.clone(), log, app, engine, work, journal }
    }

    async fn stop(self) {
        self.engine.drain().await;
        self.work.stop();
        self.work.finish().await;
        self.journal.stop();
        self.journal.finish().await;
    }

    /// A run of an agent that calls these tools and then says so.
    async fn parked(&self, store: &SharedStore, tools: serde_json::Value) -> RunRecord {
        let names: Vec<_> = tools.as_array().expect("tools").iter().map(|t| &t["name"]).collect();
        let calls: Vec<_> =
            names.iter().map(|name| json!({"tool": name, "arguments": {"text": "x"}})).collect();
        let mut agent = agent("waiter");
        agent.settings = serde_json::from_value(json!({
            "model": "builtin/script", "tools": tools,
            "script": [{"tool_calls": calls}, {"text": "Done."}],
        }))
        .expect("settings");
        store.insert_agent(HOME, &agent, None).await.expect("an agent");
        let caller = Caller::open();
        let agent = self.app.current_agent(&caller, &agent.agent_id).await.expect("an agent");
        let request = RunRequest {
            input: Some(Input::Text("Go".to_owned())),
            config: RunConfig::default(),
            turn: None,
            end_user_id: None,
            metadata: std::collections::BTreeMap::new(),
        };
        let run = self.app.create_run(&caller, agent, request, None).await.expect("a run");
        let run = self.settled(run.value.row.run_id).await;
        assert_eq!(run.row.status, RunStatus::RequiresAction);
        assert_eq!(run.row.node_id, None, "nobody holds it");
        run
    }

    async fn settled(&self, run_id: RunId) -> RunRecord {
        self.log.settled(HOME, run_id, PATIENCE).await.expect("an answer").expect("a run")
    }

    async fn decide(&self, run_id: RunId, call_id: CallId) -> Result<RunRecord, String> {
        let verdict = Verdict {
            call_id,
            decision: ApprovalDecision::Approve,
            arguments: None,
            reason: None,
            decided_by: None,
        };
        let answer = self.app.decide_approval(&Caller::open(), run_id, verdict, None).await;
        answer.map(|answer| answer.value).map_err(|error| error.to_string())
    }

    /// Time passes, and the engine looks at what is due.
    async fn pass(&self, time: Duration, run_id: RunId, status: RunStatus) -> RunRecord {
        self.clock.advance(time);
        self.log.queued();
        let changed = async {
            loop {
                let run = self.settled(run_id).await;
                if run.row.status == status {
                    return run;
                }
                // It is still parked as before: nothing tells when an engine has looked.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, changed).await.expect("the engine looks at what is due")
    }

    async fn log_of(&self, store: &SharedStore, run_id: RunId) -> Vec<(String, serde_json::Value)> {
        let facts = store.read_facts(HOME, run_id, 0).await.expect("an answer");
        let read = |text: &str| serde_json::from_str(text).expect("JSON");
        facts.iter().map(|f| (f.event_type.as_str().to_owned(), read(f.text()))).collect()
    }
}

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

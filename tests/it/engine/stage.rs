//! A real engine on a real database, with a clock that is moved by hand.

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

use crate::store::fixtures::{HOME, agent};

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An engine, and what it works for.
pub struct Stage {
    pub clock: Clock,
    pub log: Log,
    pub app: App,
    pub engine: Arc<Engine>,
    work: Tasks,
    journal: Tasks,
}

impl Stage {
    /// Sets it upon this database.
    pub async fn set(store: &SharedStore, clock: &Clock) -> Self {
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

    pub async fn stop(self) {
        self.engine.drain().await;
        self.work.stop();
        self.work.finish().await;
        self.journal.stop();
        self.journal.finish().await;
    }

    /// A run of an agent that calls these tools and then says so.
    pub async fn parked(&self, store: &SharedStore, tools: serde_json::Value) -> RunRecord {
        let calls: Vec<_> = tools
            .as_array()
            .expect("tools")
            .iter()
            .map(|tool| {
                let takes = if tool["type"] == "agent" { "input" } else { "text" };
                json!({"tool": tool["name"], "arguments": {takes: "x"}})
            })
            .collect();
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

    pub async fn settled(&self, run_id: RunId) -> RunRecord {
        self.log.settled(HOME, run_id, PATIENCE).await.expect("an answer").expect("a run")
    }

    pub async fn decide(&self, run_id: RunId, call_id: CallId) -> Result<RunRecord, String> {
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
    pub async fn pass(&self, time: Duration, run_id: RunId, status: RunStatus) -> RunRecord {
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

    pub async fn log_of(
        &self,
        store: &SharedStore,
        run_id: RunId,
    ) -> Vec<(String, serde_json::Value)> {
        let facts = store.read_facts(HOME, run_id, 0).await.expect("an answer");
        let read = |text: &str| serde_json::from_str(text).expect("JSON");
        facts.iter().map(|f| (f.event_type.as_str().to_owned(), read(f.text()))).collect()
    }
}

//! A server, and a model that does to its askers what a test wants.

use std::collections::VecDeque;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use crate::support::client::Client;
use crate::support::model_server::{Gate, ModelServer, Piece, Reply, Request, openai};
use crate::support::peers::Process;
use crate::support::server::{Server, Setup};

/// Longer than a lone node on Postgres waits until it takes over (15 s), twice, and than fifty suspects take on
/// a slow machine, four at a time.
const PATIENCE: Duration = Duration::from_secs(240);

/// Long enough for a parent to see its child's end and to write something; much shorter than the grace
/// that it gives.
const MOMENT: Duration = Duration::from_millis(20);
/// Less than that grace. Who takes longer over two kills, has come too late with the second.
const LATE: Duration = Duration::from_millis(400);
/// More deaths than that before the server listened are not what a test asked for.
const MOST_YOUNG: usize = 8;

/// What the model does to a process that asks it about a poisoned run.
pub enum Deed {
    /// Kills it.
    Kill,
    /// Kills the one that started it, and then it.
    KillAfterParent,
    /// Kills it, and a moment later the one that started it, who has seen it by then.
    KillBeforeParent,
    /// Answers it.
    Answer(Reply),
}

/// A process that asked, as it was then.
#[derive(Debug, Clone)]
pub struct Victim {
    pub pid: u32,
    pub parent: u32,
    pub arguments: Vec<String>,
    pub data_limit: Option<u64>,
    /// Whether its parent may have had time to judge it before it died too.
    pub was_late: bool,
}

impl Victim {
    fn of(process: &Process) -> Self {
        Self {
            pid: process.pid,
            parent: process.parent().pid,
            arguments: process.arguments.clone(),
            data_limit: process.data_limit(),
            was_late: false,
        }
    }

    /// Whether it is a server, and no child of one.
    pub fn is_server(&self) -> bool {
        self.arguments.iter().any(|argument| argument == "serve")
    }

    pub fn process(&self) -> Process {
        Process { pid: self.pid, arguments: self.arguments.clone() }
    }

    /// Resolves when it is not there any more.
    pub async fn gone(&self) {
        gone(&self.process()).await;
    }
}

async fn gone(process: &Process) {
    let gone = async {
        while process.is_alive() {
            // Nothing tells of the end of a process that is not ours.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the process goes");
}

/// A server with a model, on a database.
pub struct Stage {
    setup: Setup,
    server: Option<Server>,
    /// Servers that were killed before they listened.
    died_young: Vec<u32>,
    /// It ends with its last handle.
    _models: ModelServer,
    deeds: Arc<Mutex<VecDeque<Deed>>>,
    killed: UnboundedReceiver<Victim>,
    answered: UnboundedReceiver<Victim>,
    gate: Gate,
    /// Where answers to innocent runs wait behind their first word.
    innocents: Arc<Mutex<Gate>>,
}

impl Stage {
    pub async fn set(database_url: String) -> Self {
        let models = ModelServer::start().await;
        let yaml =
            format!("providers:\n  p:\n    kind: openai\n    base_url: {}\n", models.base_url());
        let deeds: Arc<Mutex<VecDeque<Deed>>> = Arc::default();
        let ((kills, killed), (answers, answered)) = (unbounded_channel(), unbounded_channel());
        let innocents = Arc::new(Mutex::new(Gate::new()));
        let (todo, wait) = (deeds.clone(), innocents.clone());
        models.answer_with(move |request| {
            if request.body.to_string().contains("POISON") {
                act(request, &todo, &kills, &answers)
            } else {
                greet(wait.lock().unwrap().clone())
            }
        });
        let setup = Setup::new(database_url, yaml);
        let server = setup.start().await;
        let agent = json!({"agent_id": "a", "model": "p/m",
            "tools": [{"type": "builtin", "name": "echo"}]});
        server.client.post("/v1/agents", &agent).await.expect(201);
        let server = Some(server);
        let died_young = Vec::new();
        let gate = Gate::new();
        Self {
            setup,
            server,
            died_young,
            _models: models,
            deeds,
            killed,
            answered,
            gate,
            innocents,
        }
    }

    /// The server that runs.
    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("a server")
    }

    pub fn client(&self) -> &Client {
        &self.server().client
    }

    /// What is done next to those who ask about a poisoned run; then they are killed.
    pub fn deeds(&self, deeds: impl IntoIterator<Item = Deed>) {
        self.deeds.lock().unwrap().extend(deeds);
    }

    /// Starts a run that kills whoever asks the model for it: maybe before it has told its id.
    pub async fn poison(&self) {
        let body = json!({"input": "POISON"});
        let _ = self.client().request(Method::POST, "/v1/agents/a/runs").json(&body).send().await;
    }

    /// The run that was created last.
    pub async fn newest_run(&self) -> String {
        let newest = self.client().get("/v1/runs?limit=1").await.expect(200);
        newest["first_id"].as_str().expect("a run").to_owned()
    }

    /// The next process that was killed.
    pub async fn next_victim(&mut self) -> Victim {
        let next = tokio::time::timeout(PATIENCE, self.killed.recv()).await;
        let log = || self.server().log();
        next.unwrap_or_else(|_| panic!("nobody asked:\n{}", log())).expect("a victim")
    }

    /// The next process that was answered.
    pub async fn next_asker(&mut self) -> Victim {
        let next = tokio::time::timeout(PATIENCE, self.answered.recv()).await;
        let log = || self.server().log();
        next.unwrap_or_else(|_| panic!("nobody asked:\n{}", log())).expect("an asker")
    }

    pub fn assert_no_more_victims(&mut self) {
        assert!(self.killed.try_recv().is_err(), "somebody else was killed");
    }

    /// The reply, without its last pieces until the gate is opened.
    pub fn held_back(&self, reply: Reply) -> Reply {
        reply.with(2, Piece::Gate(self.gate.clone()))
    }

    pub fn open(&self) {
        self.gate.open();
    }

    /// From now on no innocent run comes further than its first word.
    pub fn interrupt_innocents(&self) {
        *self.innocents.lock().unwrap() = Gate::new();
    }

    pub fn let_innocents_finish(&self) {
        self.innocents.lock().unwrap().open();
    }

    pub fn open_in(&self, wait: Duration) -> JoinHandle<()> {
        let gate = self.gate.clone();
        stepwell::shutdown::Tasks::new().spawn(async move {
            tokio::time::sleep(wait).await;
            gate.open();
        })
    }

    /// Another server in place of the one that died with this number, if there is none yet.
    pub async fn replace(&mut self, pid: u32) {
        if self.died_young.contains(&pid) {
            return;
        }
        assert_eq!(pid, self.server().pid(), "it was the server that died");
        gone(&Process::of(pid)).await;
        self.server = None;
        self.start_again().await;
    }

    /// A server where none is.
    pub async fn start_again(&mut self) {
        assert!(self.server.is_none());
        while self.server.is_none() {
            match self.setup.try_start().await {
                Ok(server) => self.server = Some(server),
                Err(young) => self.died_young.push(young.pid),
            }
            assert!(self.died_young.len() <= MOST_YOUNG, "no server lives");
        }
    }

    pub fn kill(&mut self) {
        self.server.take().expect("a server").kill();
    }

    pub async fn terminate(&mut self) -> ExitStatus {
        self.server.take().expect("a server").terminate().await
    }
}

/// What an innocent run is told.
fn greet(gate: Gate) -> Reply {
    let reply = openai::text("Hello, how do you do?");
    // Behind the role and the first word.
    reply.with(2, Piece::Gate(gate))
}

fn act(
    request: &Request,
    deeds: &Mutex<VecDeque<Deed>>,
    kills: &UnboundedSender<Victim>,
    answers: &UnboundedSender<Victim>,
) -> Reply {
    let asker = Process::behind(request.ends);
    let mut victim = Victim::of(&asker);
    let deed = deeds.lock().unwrap().pop_front().unwrap_or(Deed::Kill);
    match deed {
        // Its parent is this test, which is to fail, not to die.
        Deed::KillAfterParent | Deed::KillBeforeParent if victim.is_server() => asker.kill(),
        Deed::Answer(reply) => {
            let _ = answers.send(victim);
            return reply;
        }
        Deed::KillAfterParent => {
            asker.parent().kill();
            asker.kill();
        }
        Deed::KillBeforeParent => {
            let (parent, began) = (asker.parent(), Instant::now());
            asker.kill();
            std::thread::sleep(MOMENT);
            parent.kill();
            victim.was_late = began.elapsed() > LATE;
        }
        Deed::Kill => asker.kill(),
    }
    let _ = kills.send(victim);
    Reply::Hang
}

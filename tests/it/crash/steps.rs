//! P15: done work is not repeated. A run of ten steps is killed at every boundary: a crash costs at
//! most one model call, no step is asked for again whose answer is in the log, and no answered call is
//! made again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::readers::{self, Board};
use super::{create, judge};
use crate::support::client::{Frame, Stream};
use crate::support::model_server::{ModelServer, Request, openai};
use crate::support::on_both_databases;
use crate::support::profile::{Report, pick};
use crate::support::server::{Server, Setup};

/// Steps of the run; all but the last call a tool.
const STEPS: usize = 10;
/// What a kill waits for, once in each step: more kills without a committed step between them are
/// another promise (P12).
const BOUNDARIES: [&str; 5] = [
    "step.started",
    "tool_call.created",
    "tool_call.started",
    "tool_call.completed",
    "step.completed",
];

on_both_databases! {
    a_step_that_is_done_is_not_done_again_wherever_the_server_is_killed;
}

async fn a_step_that_is_done_is_not_done_again_wherever_the_server_is_killed(url: String) {
    let database = if url.starts_with("sqlite") { "SQLite" } else { "Postgres" };
    let report = Report::new("P15", "kill -9 at every boundary of ten steps", database);
    let models = ModelServer::start().await;
    // Each request: for which step, and when.
    let asked = Arc::new(Mutex::new(Vec::<(usize, String)>::new()));
    let asking = asked.clone();
    models.answer_with(move |request| {
        let step = step_of(request);
        asking.lock().expect("no panic").push((step, readers::now()));
        if step < STEPS {
            let arguments = format!("{{\"text\": \"answer {step}\"}}");
            openai::tool_calls(&[("echo", &arguments)]).slowly(Duration::from_millis(2))
        } else {
            openai::text("That is all.")
        }
    });
    let base_url = models.base_url();
    let yaml = format!("providers:\n  p: {{ kind: openai, base_url: \"{base_url}\" }}\n");
    let setup = Setup::new(url, yaml).on_a_port_that_stays();
    let mut server = setup.start().await;
    let tools = json!([{"type": "builtin", "name": "echo"}]);
    let agent = json!({"agent_id": "ten", "model": "p/m", "tools": tools});
    server.client.post("/v1/agents", &agent).await.expect(201);
    // Each boundary of each step once; in CI on Postgres, where a restart takes longer, each step once.
    let runs = if database == "SQLite" { BOUNDARIES.len() } else { pick(1, BOUNDARIES.len()) };
    let mut again = 0;
    for run in 0..runs {
        let board = Board::default();
        let run_id = create(&server.client, "ten").await;
        let (mut kills, mut last) = (0, 0);
        for step in 1..=STEPS {
            let boundary = BOUNDARIES[(run + step) % BOUNDARIES.len()];
            // The last step calls no tool, and when it is completed the run is.
            if step == STEPS && boundary != "step.started" {
                continue;
            }
            let stream = server.client.events(&run_id, last).await;
            let bit = until(stream, &board, &run_id, (boundary, step)).await;
            server.kill();
            // What it asked for it asked for before the next server does.
            models.wait_nobody().await;
            report.fault(bit);
            kills += 1;
            last = *board.seen(&run_id).events.keys().next_back().expect("an event");
            server = setup.start().await;
        }
        server = finish(server, &run_id, &board).await;
        let judged = judge::one(&server.client, &run_id, &board.seen(&run_id), &report).await;
        report.check(judged.run["status"] == "completed", || format!("{}", judged.run));
        report.check(judged.run["steps_completed"] == STEPS, || format!("{}", judged.run));
        let asked = std::mem::take(&mut *asked.lock().expect("no panic"));
        for answer in judged.log.iter().filter(|frame| frame.event == "message.completed") {
            let (answer, said) = (answer.json(), answer.data.clone());
            for (step, at) in &asked {
                let answered_at = answer["created_at"].as_str().expect("a time");
                let late = answer["step"] == json!(step) && answered_at < at.as_str();
                report.check(!late, || format!("step {step} was asked for at {at}, after {said}"));
            }
        }
        let calls = asked.len();
        report.check((STEPS..=STEPS + kills).contains(&calls), || {
            format!("{calls} model calls for {STEPS} steps and {kills} kills")
        });
        again += calls - STEPS;
    }
    report.note(format!("{again} model calls repeated"));
    report.finish(runs as u64 * (STEPS as u64 - 1));
}

/// Which step a request is for: one more than it has tool answers in it.
fn step_of(request: &Request) -> usize {
    let messages = request.body["messages"].as_array().expect("messages");
    messages.iter().filter(|message| message["role"] == "tool").count() + 1
}

/// Reads until this event of this step. Whether it came before the end.
async fn until(
    mut stream: Stream,
    board: &Board,
    run_id: &str,
    (event, step): (&str, usize),
) -> bool {
    while let Some(frame) = stream.next().await {
        if frame.id.is_none() {
            return false;
        }
        board.saw(run_id, &frame);
        if frame.event == event && step_in(&frame) == json!(step) {
            return true;
        }
    }
    false
}

fn step_in(frame: &Frame) -> Value {
    frame.json()["step"].clone()
}

/// Waits for the end of the run.
async fn finish(server: Server, run_id: &str, board: &Board) -> Server {
    let stream = server.client.events(run_id, 0).await;
    for frame in stream.rest().await.iter().filter(|frame| frame.id.is_some()) {
        board.saw(run_id, frame);
    }
    server
}

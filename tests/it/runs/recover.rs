//! Kill it in the middle: what was seen stays, and the run goes on.

use std::time::Duration;

use serde_json::{Value, json};

use super::{YAML, id, scripted, slow_words};
use crate::support::client::{Client, Frame, log_of};
use crate::support::model_server::{End, Gate, ModelServer, Piece, Reply};
use crate::support::on_both_databases;
use crate::support::server::Setup;

on_both_databases! {
    a_killed_server_goes_on_where_its_log_ends_and_loses_nothing_that_was_seen;
    a_stopped_server_hands_its_runs_to_the_next;
}

/// What a reader has seen of a run when the server dies.
async fn seen(client: &Client, run_id: &str, events: usize) -> Vec<Frame> {
    let mut stream = client.events(run_id, 0).await;
    let mut seen = Vec::new();
    while seen.len() < events {
        seen.push(stream.next().await.expect("an event"));
    }
    seen
}

async fn assert_continued(client: &Client, run_id: &str, seen: &[Frame]) -> (Value, Vec<Frame>) {
    let run = client.wait(run_id).await;
    assert_eq!(run["status"], "completed", "{run}");
    let log = log_of(&client.events(run_id, 0).await.rest().await);
    assert_eq!(log[..seen.len()], *seen, "nothing that was seen is lost or changed");
    let seqs: Vec<i64> = log.iter().map(Frame::seq).collect();
    assert_eq!(seqs, (1..=log.len() as i64).collect::<Vec<_>>(), "gap-free");
    assert_eq!(log.iter().filter(|frame| frame.is_final()).count(), 1);
    (run, log)
}

async fn a_killed_server_goes_on_where_its_log_ends_and_loses_nothing_that_was_seen(url: String) {
    let setup = Setup::new(url, YAML);
    let script = json!([
        {"text": "first", "tool_calls": [{"tool": "echo", "arguments": {"text": "once"}}]},
        // So many that on no machine their deltas are merged into fewer than are waited for.
        slow_words(200, 10),
    ]);
    let mut kills = 0;
    for events in [1, 6, 25] {
        let server = setup.start().await;
        if events == 1 {
            server.client.post("/v1/agents", &scripted("talker", &script)).await.expect(201);
        }
        let run = server.client.post("/v1/agents/talker/runs", &json!({"input": "Go"})).await;
        let run_id = id(&run.expect(202));
        let seen = seen(&server.client, &run_id, events).await;
        assert!(!seen.iter().any(Frame::is_final), "the kill hits a running run");
        server.kill();
        kills += 1;
        let server = setup.start().await;
        let (run, log) = assert_continued(&server.client, &run_id, &seen).await;
        // Done work is not repeated: each step completed once, each call made once at most twice.
        let completed = log.iter().filter(|frame| frame.event == "step.completed").count();
        assert_eq!((completed, &run["steps_completed"]), (2, &json!(2)));
        let answered = log.iter().filter(|frame| frame.event == "tool_call.completed").count();
        assert_eq!(answered, 1, "a completed call is not made again");
        assert!(server.terminate().await.success());
    }
    assert_eq!(kills, 3);
}

async fn a_stopped_server_hands_its_runs_to_the_next(url: String) {
    let (tools, gate) = (ModelServer::start().await, Gate::new());
    let pieces = vec![Piece::Gate(gate.clone()), Piece::Bytes(b"1".to_vec())];
    let reply = Reply::Stream { headers: Vec::new(), pieces, end: End::Clean };
    tools.answer_with(move |_| reply.clone());
    let setup = Setup::new(url, format!("{YAML}egress: {{ allow: [127.0.0.1] }}\n"));
    let server = setup.start().await;
    let script = json!([{"text": "first", "tool_calls": [{"tool": "wait"}]}, {"text": "second"}]);
    let mut agent = scripted("talker", &script);
    agent["tools"] =
        json!([{"type": "http", "name": "wait", "url": tools.origin(), "timeout_seconds": 600}]);
    server.client.post("/v1/agents", &agent).await.expect(201);
    let run = server.client.post("/v1/agents/talker/runs", &json!({"input": "Go"})).await;
    let run_id = id(&run.expect(202));
    let mut stream = server.client.events(&run_id, 0).await;
    let mut seen = vec![];
    loop {
        let frame = stream.next().await.expect("an event");
        let started = frame.event == "tool_call.started";
        seen.push(frame);
        if started {
            break;
        }
    }
    tools.wait_requests(1).await;
    let stopping = std::time::Instant::now();
    let tasks = stepwell::shutdown::Tasks::new();
    let ended = tasks.spawn(async move { stream.rest().await });
    server.signal("TERM");
    while !server.log().contains("stopping: no new connections") {
        tokio::task::yield_now().await;
    }
    gate.open();
    assert!(server.gone().await.success(), "exit code 0");
    // At the end of the step; a step that goes on is broken off after 20 s.
    assert!(stopping.elapsed() < Duration::from_secs(19), "{:?}", stopping.elapsed());
    let frames = ended.await.expect("a stream");
    let end = frames.last().expect("a last word");
    assert_eq!(end.event, "stream.end");
    assert_eq!(end.json()["reason"], "draining");
    let server = setup.start().await;
    let handed = std::time::Instant::now();
    let (_, log) = assert_continued(&server.client, &run_id, &seen).await;
    // Handed over: nobody had to be found dead first, which takes 15 s.
    assert!(handed.elapsed() < Duration::from_secs(14), "{:?}", handed.elapsed());
    assert!(!log.iter().any(|frame| frame.event == "step.restarted"), "no step was broken off");
    assert_eq!(tools.requests().len(), 1, "the call that was made is not made again");
}

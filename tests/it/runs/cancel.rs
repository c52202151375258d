//! Cancelling (P19, one node).

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::{id, scripted, serve};
use crate::support::client::log_of;
use crate::support::on_both_databases;

on_both_databases! {
    a_cancel_around_completion_leaves_exactly_one_end_and_nothing_after_it;
    a_cancel_in_the_middle_answers_open_calls_and_keeps_what_was_said;
    a_queued_run_is_cancelled_at_once;
}

async fn a_cancel_around_completion_leaves_exactly_one_end_and_nothing_after_it(url: String) {
    let (_setup, server) = serve(url).await;
    let client = server.client.clone();
    let script = json!([{"text": "a b c d", "chunk_delay_ms": 15}]);
    client.post("/v1/agents", &scripted("quick", &script)).await.expect(201);
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let cases = 60;
    // The run takes about 50 ms, and some other time on another machine: the cancel comes sooner if the run
    // had ended, and later if it had not, and so stays around its end.
    let mut moment = Duration::from_millis(50);
    for _ in 0..cases {
        let client = client.clone();
        let run = client.post("/v1/agents/quick/runs", &json!({"input": "Go"})).await.expect(202);
        let run_id = id(&run);
        tokio::time::sleep(moment).await;
        let cancel = format!("/v1/runs/{run_id}/cancel");
        let nothing = json!({});
        let four = [(); 4].map(|()| client.post(&cancel, &nothing));
        for answer in futures_util::future::join_all(four).await {
            let status = answer.body["status"].as_str().expect("a run").to_owned();
            let expected = if status == "cancelling" { 202 } else { 200 };
            assert_eq!(answer.status, expected, "{}", answer.body);
        }
        let end = client.wait(&run_id).await;
        let log = log_of(&client.events(&run_id, 0).await.rest().await);
        let finals = log.iter().filter(|frame| frame.is_final()).count();
        assert_eq!(finals, 1, "one end");
        let last = log.last().expect("an end");
        assert!(last.is_final(), "nothing after it");
        assert_eq!(last.json()["status"], end["status"], "the run and its log agree");
        assert_eq!(end["last_seq"].as_i64(), Some(last.seq()));
        let status = end["status"].as_str().expect("status").to_owned();
        moment = moment.mul_f64(if status == "completed" { 0.8 } else { 1.25 });
        *outcomes.entry(status).or_default() += 1;
    }
    for outcome in ["completed", "cancelled"] {
        assert!(outcomes.get(outcome).is_some_and(|n| *n >= 3), "both really happen: {outcomes:?}");
    }
    assert_eq!(outcomes.values().sum::<usize>(), cases, "{outcomes:?}");
}

async fn a_cancel_in_the_middle_answers_open_calls_and_keeps_what_was_said(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let script = json!([{"text": "I will sleep.", "tool_calls": [
        {"tool": "sleep", "arguments": {"seconds": 60}}, {"tool": "current_time"},
    ]}]);
    client.post("/v1/agents", &scripted("sleeper", &script)).await.expect(201);
    let run = client.post("/v1/agents/sleeper/runs", &json!({"input": "Go"})).await.expect(202);
    let run_id = id(&run);
    client.events(&run_id, 0).await.until("tool_call.completed").await;
    let asked = std::time::Instant::now();
    client.post(&format!("/v1/runs/{run_id}/cancel"), &json!({})).await;
    let end = client.wait(&run_id).await;
    // Long before its tool has slept enough.
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    assert_eq!(end["status"], "cancelled");
    assert_eq!(end["error"], Value::Null);
    assert_eq!(end["result"]["content"], "I will sleep.");
    let log = log_of(&client.events(&run_id, 0).await.rest().await);
    let failed = log.iter().find(|frame| frame.event == "tool_call.failed").expect("an answer");
    assert_eq!(failed.json()["synthetic"], true);
    let again = client.post(&format!("/v1/runs/{run_id}/cancel"), &json!({})).await;
    assert_eq!((again.status, &again.body["status"]), (200, &json!("cancelled")));
    let nobody = "/v1/runs/run_00000000000000000000000000000000/cancel";
    assert_eq!(client.post(nobody, &json!({})).await.status, 404);
}

async fn a_queued_run_is_cancelled_at_once(url: String) {
    let yaml = format!("{}\nengine: {{ max_concurrent_runs: 0 }}\n", super::YAML);
    let setup = crate::support::server::Setup::new(url, yaml);
    let server = setup.start().await;
    let client = &server.client;
    let run = client.post("/v1/agents/demo/runs", &json!({"input": "Go"})).await.expect(202);
    let answer = client.post(&format!("/v1/runs/{}/cancel", id(&run)), &json!({})).await;
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("cancelled")));
    let log = log_of(&client.events(&id(&run), 0).await.rest().await);
    let types: Vec<&str> = log.iter().map(|frame| frame.event.as_str()).collect();
    assert_eq!(types, ["run.queued", "run.cancelled"]);
}

//! Idempotency (P17, one node): one key, one run.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use super::{id, scripted, serve, slow_words};
use crate::support::client::{Client, log_of};
use crate::support::on_both_databases;

on_both_databases! {
    sixty_four_equal_requests_at_once_make_one_run_in_whatever_mode;
    a_key_outlives_a_restart_and_answers_with_todays_state;
    a_key_with_another_request_is_refused_and_a_failed_request_binds_nothing;
    every_write_takes_a_key;
}

/// Creates a run in one of three modes; returns its id and whether it was a replay.
async fn create(client: Client, key: String, mode: usize) -> (String, bool) {
    let body = json!({"input": "Go", "stream": mode == 2});
    let mut request = client
        .request(Method::POST, "/v1/agents/talker/runs")
        .header("idempotency-key", key)
        .json(&body);
    if mode == 1 {
        request = request.header("prefer", "wait=30");
    }
    if mode == 2 {
        let stream = client.stream(request).await;
        let replayed = stream.response.headers().contains_key("idempotent-replayed");
        let frames = stream.rest().await;
        assert!(log_of(&frames).last().expect("an end").is_final());
        (id(&frames[0].json()), replayed)
    } else {
        let answer = client.send(request).await;
        let expected = if mode == 1 { 200 } else { 202 };
        let replayed = answer.header("idempotent-replayed") == Some("true");
        if answer.status == 200 && mode == 0 {
            // A replay of a run that has ended in the meantime.
            assert!(replayed, "{}", answer.body);
        } else {
            assert_eq!(answer.status, expected, "{}", answer.body);
        }
        (id(&answer.body), replayed)
    }
}

async fn sixty_four_equal_requests_at_once_make_one_run_in_whatever_mode(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let agent = scripted("talker", &json!([slow_words(20, 5)]));
    client.post("/v1/agents", &agent).await.expect(201);
    for round in 0..5 {
        let mut requests = tokio::task::JoinSet::new();
        for n in 0..64 {
            requests.spawn(create(client.clone(), format!("key-{round}"), n % 3));
        }
        let answers = requests.join_all().await;
        let ids: BTreeSet<&String> = answers.iter().map(|(run_id, _)| run_id).collect();
        assert_eq!(ids.len(), 1, "one key, one run");
        let first = answers.iter().filter(|(_, replayed)| !replayed).count();
        assert_eq!(first, 1, "all but one are replays");
    }
    let runs = client.get("/v1/runs?agent_id=talker&limit=100").await.expect(200);
    assert_eq!(runs["data"].as_array().expect("data").len(), 5);
}

async fn a_key_outlives_a_restart_and_answers_with_todays_state(url: String) {
    let (setup, server) = serve(url).await;
    let agent = scripted("talker", &json!([{"text": "done"}]));
    server.client.post("/v1/agents", &agent).await.expect(201);
    let (run_id, replayed) = create(server.client.clone(), "k".into(), 1).await;
    assert!(!replayed);
    assert!(server.terminate().await.success());
    let server = setup.start().await;
    let client = &server.client;
    let (again, replayed) = create(client.clone(), "k".into(), 1).await;
    assert_eq!((again, replayed), (run_id.clone(), true));
    let body = json!({"input": "Go", "idempotency_key": "k"});
    let in_body = client.post("/v1/agents/talker/runs", &body).await;
    assert_eq!(id(&in_body.body), run_id, "the body's key is the same key");
    assert_eq!(in_body.body["status"], "completed", "today's state");
    // Deleted since: gone, and never a second one.
    client.delete(&format!("/v1/runs/{run_id}")).await.expect(204);
    let gone = client.post("/v1/agents/talker/runs", &body).await;
    assert_eq!((gone.status, &gone.body["error"]), (404, &json!("not_found")));
}

async fn a_key_with_another_request_is_refused_and_a_failed_request_binds_nothing(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let post = |key: &str, path: &str, body: &Value| {
        let request = client.request(Method::POST, path).header("idempotency-key", key.to_owned());
        let request = request.json(body);
        async move { client.send(request).await }
    };
    let runs = "/v1/agents/talker/runs";
    assert_eq!(post("k", runs, &json!({"input": "Go"})).await.status, 404, "no agent yet");
    let agent = scripted("talker", &json!([{"text": "done"}]));
    client.post("/v1/agents", &agent).await.expect(201);
    assert_eq!(post("k", runs, &json!({"input": 7})).await.status, 422);
    let made = post("k", runs, &json!({"input": "Go", "metadata": {"a": "1", "b": "2"}})).await;
    assert_eq!((made.status, made.header("idempotent-replayed")), (202, None));
    // The order of keys is no difference; another input is.
    let same = post("k", runs, &json!({"metadata": {"b": "2", "a": "1"}, "input": "Go"})).await;
    assert_eq!(same.header("idempotent-replayed"), Some("true"));
    assert_eq!(id(&same.body), id(&made.body));
    let other = post("k", runs, &json!({"input": "Stop"})).await;
    assert_eq!((other.status, &other.body["error"]), (422, &json!("idempotency_key_reused")));
    for wrong in ["", "ä", &"k".repeat(256), "a b\tc"] {
        let request = client.request(Method::POST, runs).json(&json!({"input": "Go"}));
        let value = reqwest::header::HeaderValue::from_bytes(wrong.as_bytes()).expect("a value");
        let answer = client.send(request.header("idempotency-key", value)).await;
        assert_eq!(
            (answer.status, &answer.body["error"]),
            (400, &json!("invalid_header")),
            "{wrong:?}"
        );
    }
}

async fn every_write_takes_a_key(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let agent = scripted("talker", &json!([{"text": "done"}]));
    let mut run_id = String::new();
    let sleeper = json!({"input": "Go", "config": {"script": [{"delay_ms": 60_000}]}});
    let writes: [(Method, &str, Value, [u16; 2]); 6] = [
        (Method::POST, "/v1/agents", agent, [201, 201]),
        (Method::PATCH, "/v1/agents/talker", json!({"name": "Talker"}), [200, 200]),
        (Method::POST, "/v1/agents/talker/runs", sleeper, [202, 202]),
        (Method::POST, "/v1/runs/RUN/cancel", json!({}), [0, 200]),
        (Method::DELETE, "/v1/runs/RUN", Value::Null, [204, 204]),
        (Method::DELETE, "/v1/agents/talker", Value::Null, [204, 204]),
    ];
    for (method, path, body, statuses) in writes {
        let path = path.replace("RUN", &run_id);
        for (n, status) in statuses.into_iter().enumerate() {
            let mut request = client.request(method.clone(), &path).header("idempotency-key", "k");
            if !body.is_null() {
                request = request.json(&body);
            }
            let answer = client.send(request).await;
            // A cancel answers with the run as it is, and its driver may have been quick.
            let on_its_way = if answer.body["status"] == "cancelling" { 202 } else { 200 };
            let status = if status == 0 { on_its_way } else { status };
            assert_eq!(answer.status, status, "{method} {path} {n}: {}", answer.body);
            let replayed = answer.header("idempotent-replayed") == Some("true");
            assert_eq!(replayed, n == 1, "{method} {path} {n}");
            if path.ends_with("/talker/runs") {
                run_id = id(&answer.body);
                client.events(&run_id, 0).await.until("step.started").await;
            }
            if path.ends_with("/cancel") {
                client.wait(&run_id).await;
            }
        }
    }
    // PATCH twice under one key is one version.
    let versions = client.get("/v1/agents/talker/versions").await.expect(200);
    assert_eq!(versions["data"].as_array().expect("data").len(), 2);
}

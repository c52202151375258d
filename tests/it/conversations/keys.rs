//! Idempotency: the same request under one key happens once.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use super::{assert_refused, at, call, conversation, get, id, messages, parked, serve, turn};
use crate::support::client::{Answer, Client};
use crate::support::on_both_databases;

on_both_databases! {
    every_write_of_a_conversation_takes_a_key;
    equal_turns_at_once_under_one_key_are_one_turn;
    a_key_answers_after_the_conversation_has_moved_on;
    what_was_deleted_since_is_not_made_again;
}

async fn keyed(client: &Client, method: Method, path: &str, key: &str, body: &Value) -> Answer {
    let request = client.request(method, path).header("idempotency-key", key);
    client.send(if body.is_null() { request } else { request.json(body) }).await
}

fn is_replay(answer: &Answer) -> bool {
    answer.header("idempotent-replayed") == Some("true")
}

async fn every_write_of_a_conversation_takes_a_key(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let made = json!({"agent_id": "a", "metadata": {"x": "1", "y": "2"}});
    let first = keyed(client, Method::POST, "/v1/conversations", "k", &made).await;
    let same = json!({"metadata": {"y": "2", "x": "1"}, "agent_id": "a"});
    let again = keyed(client, Method::POST, "/v1/conversations", "k", &same).await;
    assert_eq!((is_replay(&first), is_replay(&again)), (false, true));
    assert_eq!(first.header("location"), again.header("location"));
    assert_eq!(first.body, again.clone().expect(201));
    let other =
        keyed(client, Method::POST, "/v1/conversations", "k", &json!({"agent_id": "b"})).await;
    assert_refused(&other, 422, "idempotency_key_reused");
    let talk = first.body["conversation_id"].as_str().expect("an id").to_owned();

    let say = json!({"role": "user", "content": "Hello?"});
    let run = parked(client, &talk, &["ask"]).await;
    let result = json!({"call_id": call(&run, "ask"), "success": true, "result": 1});
    let writes: [(Method, &str, Value, Value, u16); 8] = [
        (Method::POST, "tool-results", result, json!({"call_id": "x", "success": true}), 202),
        (Method::POST, "messages", say, json!({"role": "user", "content": "No."}), 201),
        (Method::POST, "runs?wait=30", json!({"input": "Yes?"}), json!({"input": "No?"}), 200),
        (Method::POST, "complete", json!({"content": "Yes?"}), json!({"content": "No?"}), 200),
        (Method::PATCH, "", json!({"metadata": {"x": "9"}}), json!({"metadata": {"x": "8"}}), 200),
        (Method::POST, "heartbeat", Value::Null, json!({"x": 1}), 200),
        (Method::POST, "close", Value::Null, json!({"x": 1}), 200),
        (Method::DELETE, "", Value::Null, json!({"x": 1}), 204),
    ];
    for (method, what, body, other, status) in writes {
        let path = at(&talk, what);
        let first = keyed(client, method.clone(), &path, "k", &body).await;
        assert_eq!((first.status, is_replay(&first)), (status, false), "{what}: {}", first.body);
        if what == "tool-results" {
            client.wait(&id(&run)).await;
        }
        let count = messages_if_any(client, &talk).await;
        let again = keyed(client, method.clone(), &path, "k", &body).await;
        assert_eq!((again.status, is_replay(&again)), (status, true), "{what}: {}", again.body);
        if what != "tool-results" && what != "heartbeat" {
            assert_eq!(first.body, again.body, "{what}");
        }
        assert_eq!(first.header("location"), again.header("location"), "{what}");
        let other = keyed(client, method, &path, "k", &other).await;
        assert_refused(&other, 422, "idempotency_key_reused");
        assert_eq!(messages_if_any(client, &talk).await, count, "{what}");
    }
}

async fn messages_if_any(client: &Client, talk: &str) -> usize {
    if client.get(&at(talk, "")).await.status == 404 {
        0
    } else {
        messages(client, talk).await.len()
    }
}

async fn equal_turns_at_once_under_one_key_are_one_turn(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    for round in 0..5 {
        let key = format!("k{round}");
        let (run, complete) = (json!({"input": "Go"}), json!({"content": "Go"}));
        let (runs, completes) = (at(&talk, "runs?wait=30"), at(&talk, "complete"));
        // The same key for another operation is another key.
        let turns = (0..20).map(|_| keyed(client, Method::POST, &runs, &key, &run));
        let turns = futures_util::future::join_all(turns).await;
        let asked = (0..20).map(|_| keyed(client, Method::POST, &completes, &key, &complete));
        let asked = futures_util::future::join_all(asked).await;
        for answers in [turns, asked] {
            assert_eq!(answers.iter().filter(|answer| !is_replay(answer)).count(), 1);
            let ids: BTreeSet<String> = answers.into_iter().map(|a| id(&a.expect(200))).collect();
            assert_eq!(ids.len(), 1);
        }
    }
    assert_eq!(messages(client, &talk).await.len(), 20, "ten turns were taken");
}

async fn a_key_answers_after_the_conversation_has_moved_on(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let asked = json!({"content": "Once?"});
    let first = keyed(client, Method::POST, &at(&talk, "complete"), "k", &asked).await.expect(200);
    let in_body = json!({"content": "Once?", "idempotency_key": "k"});
    let again = client.post(&at(&talk, "complete"), &in_body).await;
    assert!(is_replay(&again), "the key in the body is the same key");
    assert_eq!(again.expect(200), first);
    let run = parked(client, &talk, &["ask"]).await;
    let again = keyed(client, Method::POST, &at(&talk, "complete"), "k", &asked).await.expect(200);
    assert_eq!(again, first, "that another run is under way is no matter");
    client.post(&at(&talk, "close"), &Value::Null).await.expect(200);
    super::release(client, &run).await;
    let again = keyed(client, Method::POST, &at(&talk, "complete"), "k", &asked).await.expect(200);
    assert_eq!(again, first);
    // What is refused binds nothing.
    let talk = conversation(client, json!({})).await;
    let run = parked(client, &talk, &["ask"]).await;
    let busy = keyed(client, Method::POST, &at(&talk, "runs"), "k2", &json!({"input": "x"})).await;
    assert_refused(&busy, 409, "conversation_busy");
    super::release(client, &run).await;
    let taken = keyed(client, Method::POST, &at(&talk, "runs"), "k2", &json!({"input": "x"})).await;
    assert!(!is_replay(&taken) && taken.status == 202, "{}", taken.body);
    client.wait(&id(&taken.body)).await;
    assert_eq!(get(client, &talk).await["message_count"], 6);
}

async fn what_was_deleted_since_is_not_made_again(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let made = json!({"agent_id": "a"});
    let first = keyed(client, Method::POST, "/v1/conversations", "k", &made).await.expect(201);
    let talk = first["conversation_id"].as_str().expect("an id").to_owned();
    let say = json!({"role": "user", "content": "Hello?"});
    keyed(client, Method::POST, &at(&talk, "messages"), "m", &say).await.expect(201);
    let run = turn(client, &talk, &json!({"input": "x", "idempotency_key": "r"})).await;
    client.delete(&format!("/v1/runs/{}", id(&run))).await.expect(204);
    let body = json!({"input": "x", "idempotency_key": "r"});
    assert_refused(&client.post(&at(&talk, "runs"), &body).await, 404, "not_found");
    client.delete(&at(&talk, "")).await.expect(204);
    let again = keyed(client, Method::POST, "/v1/conversations", "k", &made).await;
    assert_refused(&again, 404, "not_found");
    let again = keyed(client, Method::POST, &at(&talk, "messages"), "m", &say).await;
    assert_refused(&again, 404, "not_found");
}

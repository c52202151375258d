//! One run at a time: who is refused, who waits, and who comes next.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use stepwell::clock::Clock;

use super::{
    assert_refused, at, conversation, get, id, messages, pairs, parked, release, said, serve, start,
};
use crate::support::client::{Answer, Client};
use crate::support::on_both_databases;

on_both_databases! {
    a_second_run_is_refused_unless_it_says_otherwise;
    those_that_wait_come_in_their_order;
    whoever_interrupts_comes_next_and_a_later_one_takes_its_place;
    a_run_that_works_is_interrupted_between_its_words;
    a_hundred_wait_and_no_more;
    a_run_that_is_cancelled_while_it_waits_leaves_no_message;
    of_many_at_once_one_is_active_and_all_have_their_turn;
}

fn asked(input: &str, on_busy: &str) -> Value {
    json!({"input": input, "on_busy": on_busy})
}

async fn status(client: &Client, run_id: &str) -> Value {
    client.get(&format!("/v1/runs/{run_id}")).await.expect(200)["status"].clone()
}

async fn users(client: &Client, talk: &str) -> Vec<String> {
    let said = said(&messages(client, talk).await);
    said.into_iter().filter(|(role, _)| role == "user").map(|(_, text)| text).collect()
}

async fn a_second_run_is_refused_unless_it_says_otherwise(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let run = parked(client, &talk, &["ask"]).await;
    for (path, body) in [
        (at(&talk, "runs"), json!({"input": "x"})),
        (at(&talk, "runs"), asked("x", "reject")),
        (at(&talk, "runs"), json!({})),
        (at(&talk, "complete"), json!({"content": "x"})),
        ("/v1/agents/a/runs".to_owned(), json!({"input": "x", "conversation_id": talk})),
    ] {
        let answer = client.post(&path, &body).await;
        assert_refused(&answer, 409, "conversation_busy");
        let error = &answer.body;
        assert_eq!(error["details"]["active_run_id"], run["run_id"], "{error}");
        assert_eq!((&error["retry"], &error["retry_after_seconds"]), (&json!(true), &json!(1)));
        assert!(error["message"].as_str().is_some_and(|text| text.contains(&id(&run))), "{error}");
        assert!(
            error["suggested_action"].as_str().is_some_and(|t| t.contains("on_busy")),
            "{error}"
        );
    }
    let now = get(client, &talk).await;
    assert_eq!((&now["active_run_id"], &now["queued_runs"]), (&run["run_id"], &json!(0)));
    assert_eq!(now["expires_at"], Value::Null, "it does not expire while a run is under way");
    release(client, &run).await;
    let now = get(client, &talk).await;
    assert_eq!((&now["active_run_id"], now["expires_at"].is_null()), (&Value::Null, false));
}

async fn those_that_wait_come_in_their_order(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let run = parked(client, &talk, &["ask"]).await;
    let mut waiting = Vec::new();
    for n in 0..5 {
        let body = json!({"input": format!("{n}"), "conversation_id": talk, "on_busy": "enqueue"});
        let path = if n % 2 == 0 { at(&talk, "runs") } else { "/v1/agents/a/runs".to_owned() };
        let body = if n % 2 == 0 { asked(&n.to_string(), "enqueue") } else { body };
        let run = client.post(&path, &body).await.expect(202);
        assert_eq!((&run["status"], &run["started_at"]), (&json!("queued"), &Value::Null));
        waiting.push(id(&run));
    }
    assert_eq!(get(client, &talk).await["queued_runs"], 5);
    assert_eq!(messages(client, &talk).await.len(), 1, "an input enters as its turn begins");
    release(client, &run).await;
    for run_id in &waiting {
        assert_eq!(client.wait(run_id).await["status"], "completed");
    }
    assert_eq!(users(client, &talk).await, ["Ask.", "0", "1", "2", "3", "4"]);
    let now = get(client, &talk).await;
    assert_eq!((&now["queued_runs"], &now["message_count"]), (&json!(0), &json!(14)));
    let roles: Vec<String> =
        said(&messages(client, &talk).await).into_iter().map(|m| m.0).collect();
    assert_eq!(roles[4..], ["user", "assistant"].repeat(5), "one after another");
}

async fn whoever_interrupts_comes_next_and_a_later_one_takes_its_place(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let run = parked(client, &talk, &["ask"]).await;
    let patient = start(client, &talk, &asked("patient", "enqueue")).await;
    let first = start(client, &talk, &asked("first", "interrupt")).await;
    assert_eq!(client.wait(&id(&run)).await["status"], "cancelled");
    assert_eq!(client.wait(&first).await["status"], "completed");
    assert_eq!(client.wait(&patient).await["status"], "completed");
    assert_eq!(users(client, &talk).await, ["Ask.", "first", "patient"]);
    // What is under way takes a moment to stop: its tool does not listen, and others come meanwhile.
    let tools = json!([{"tool": "sleep", "arguments": {"seconds": 60}}]);
    for round in 0..5 {
        let config = json!({"script": [{"text": "Zzz.", "tool_calls": tools}]});
        let slow = start(client, &talk, &json!({"input": "Sleep.", "config": config})).await;
        client.events(&slow, 0).await.until("tool_call.started").await;
        let body = |n: usize| asked(&format!("{round}.{n}"), "interrupt");
        let path = at(&talk, "runs");
        let (one, two, three) = (body(1), body(2), body(3));
        let runs: Vec<String> = all_at_once(client, &path, &[one, two, three])
            .await
            .into_iter()
            .map(|a| id(&a.expect(202)))
            .collect();
        let mut ends = Vec::new();
        for run_id in &runs {
            ends.push(client.wait(run_id).await["status"].clone());
        }
        assert_eq!(client.wait(&slow).await["status"], "cancelled");
        // Whoever came last has its turn; those before it had theirs, or have lost their place.
        assert!(ends.iter().any(|end| end == "completed"), "{ends:?}");
        assert!(ends.iter().all(|end| end == "completed" || end == "cancelled"), "{ends:?}");
        let now = get(client, &talk).await;
        assert_eq!((&now["active_run_id"], &now["queued_runs"]), (&Value::Null, &json!(0)));
    }
}

async fn a_run_that_works_is_interrupted_between_its_words(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let words = vec!["word"; 2_000].join(" ");
    let config = json!({"script": [{"text": words, "chunk_delay_ms": 20}]});
    let slow = start(client, &talk, &json!({"input": "Talk.", "config": config})).await;
    client.events(&slow, 0).await.until("message.delta").await;
    let next = start(client, &talk, &asked("Stop.", "interrupt")).await;
    assert_eq!(client.wait(&next).await["status"], "completed");
    assert_eq!(client.wait(&slow).await["status"], "cancelled");
    assert_eq!(users(client, &talk).await, ["Talk.", "Stop."]);
    // With nothing under way there is nothing to interrupt, and nobody to wait for.
    for on_busy in ["interrupt", "enqueue", "reject"] {
        let run = start(client, &talk, &asked(on_busy, on_busy)).await;
        assert_eq!(client.wait(&run).await["status"], "completed");
    }
    assert_eq!(users(client, &talk).await.len(), 5);
}

async fn a_hundred_wait_and_no_more(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let run = parked(client, &talk, &["ask"]).await;
    let path = at(&talk, "runs");
    let bodies: Vec<Value> = (0..120).map(|n| asked(&n.to_string(), "enqueue")).collect();
    let all = all_at_once(client, &path, &bodies).await;
    let (mut waiting, mut refused) = (BTreeSet::new(), 0);
    for answer in all {
        if answer.status == 202 {
            waiting.insert(id(&answer.body));
        } else {
            assert_refused(&answer, 409, "conversation_busy");
            assert_eq!(answer.body["details"]["active_run_id"], run["run_id"]);
            assert_eq!(answer.body["details"]["max_queued_runs"], 100);
            refused += 1;
        }
    }
    assert_eq!((waiting.len(), refused), (100, 20));
    assert_eq!(get(client, &talk).await["queued_runs"], 100);
    client.post(&at(&talk, "close"), &Value::Null).await.expect(200);
    release(client, &run).await;
    let list =
        client.get(&format!("/v1/runs?conversation_id={talk}&status=cancelled&limit=100")).await;
    assert_eq!(list.expect(200)["data"].as_array().map(Vec::len), Some(100));
    assert_eq!(get(client, &talk).await["queued_runs"], 0);
    client.delete(&at(&talk, "")).await.expect(204);
}

async fn a_run_that_is_cancelled_while_it_waits_leaves_no_message(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let run = parked(client, &talk, &["ask"]).await;
    let one = start(client, &talk, &asked("one", "enqueue")).await;
    let two = start(client, &talk, &asked("two", "enqueue")).await;
    assert_eq!(status(client, &one).await, "queued");
    let cancelled = client.post(&format!("/v1/runs/{one}/cancel"), &Value::Null).await.expect(200);
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(get(client, &talk).await["queued_runs"], 1);
    release(client, &run).await;
    assert_eq!(client.wait(&two).await["status"], "completed");
    assert_eq!(users(client, &talk).await, ["Ask.", "two"]);
    let log = client.get(&format!("/v1/runs/{one}/log")).await.expect(200);
    let types: Vec<&str> =
        log["data"].as_array().expect("data").iter().filter_map(|e| e["type"].as_str()).collect();
    assert_eq!(types, ["run.queued", "run.cancelled"]);
    // What it is told while it waits it reads when its turn comes.
    let run = parked(client, &talk, &["ask"]).await;
    let three = start(client, &talk, &asked("three", "enqueue")).await;
    let path = format!("/v1/runs/{three}/messages");
    client.post(&path, &json!({"content": "Hurry."})).await.expect(202);
    release(client, &run).await;
    client.wait(&three).await;
    let list = said(&messages(client, &talk).await);
    let expected = [("user", "three"), ("user", "Hurry."), ("assistant", "Yes.")];
    assert_eq!(list[list.len() - 3..], pairs(&expected));
}

async fn of_many_at_once_one_is_active_and_all_have_their_turn(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let path = at(&talk, "runs");
    for round in 0..5 {
        // The one that is taken stays until somebody answers it.
        let all = all_at_once(client, &path, &vec![super::asking(&["ask"]); 20]).await;
        let taken: Vec<String> =
            all.iter().filter(|a| a.status == 202).map(|a| id(&a.body)).collect();
        assert_eq!(taken.len(), 1, "one of many, in round {round}");
        for answer in all.iter().filter(|a| a.status != 202) {
            assert_refused(answer, 409, "conversation_busy");
            assert_eq!(answer.body["details"]["active_run_id"], taken[0]);
        }
        let run = client.wait(&taken[0]).await;
        assert_eq!(release(client, &run).await["status"], "completed");
    }
    let bodies: Vec<Value> = (0..50).map(|n| asked(&n.to_string(), "enqueue")).collect();
    let all = all_at_once(client, &path, &bodies).await;
    for answer in all {
        let run = client.wait(&id(&answer.expect(202))).await;
        assert_eq!(run["status"], "completed", "{run}");
    }
    let list = said(&messages_of_all(client, &talk).await);
    let roles: Vec<&str> = list.iter().map(|(role, _)| role.as_str()).collect();
    let taken = ["user", "assistant", "tool", "assistant"].repeat(5);
    assert_eq!(roles, [taken, ["user", "assistant"].repeat(50)].concat(), "one after another");
}

/// Posts all of these at once, each under a key of its own.
async fn all_at_once(client: &Client, path: &str, bodies: &[Value]) -> Vec<Answer> {
    let post = |body| async move {
        let key = Clock::system().uuid().to_string();
        client.insist(path, &key, body).await
    };
    futures_util::future::join_all(bodies.iter().map(post)).await
}

/// More than one page of them.
async fn messages_of_all(client: &Client, talk: &str) -> Vec<Value> {
    let mut list = messages(client, talk).await;
    let last = list.last().expect("a message")["message_id"].as_str().expect("an id").to_owned();
    let page = client.get(&at(talk, &format!("messages?limit=100&after={last}"))).await.expect(200);
    list.extend(page["data"].as_array().expect("data").clone());
    list
}

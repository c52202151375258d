//! One question, one answer: `complete`, and all the ways in which a turn may end.

use serde_json::{Value, json};

use super::{
    assert_refused, at, call, conversation, get, id, messages, serve, serve_with_model, start,
};
use crate::support::client::Client;
use crate::support::model_server::{Reply, openai};
use crate::support::on_both_databases;

on_both_databases! {
    a_question_gets_its_answer;
    every_end_of_a_turn_has_its_reason;
    a_provider_s_limits_have_their_reasons;
    a_turn_that_needs_somebody_or_takes_long_is_a_run_to_follow;
    a_question_is_asked_while_another_is_under_way;
}

async fn complete(client: &Client, talk: &str, body: &Value) -> Value {
    client.post(&at(talk, "complete"), body).await.expect(200)
}

async fn a_question_gets_its_answer(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let answer = client.post(&at(&talk, "complete"), &json!({"content": "Is it?"})).await;
    let location = answer.header("location").map(str::to_owned);
    let answer = answer.expect(200);
    let run = client.wait(&id(&answer)).await;
    assert_eq!(location, Some(format!("/v1/runs/{}", id(&run))));
    let list = messages(client, &talk).await;
    let expected = json!({
        "response": "Yes.", "run_id": run["run_id"], "message_id": list[1]["message_id"],
        "usage": run["usage"], "cost_usd": run["cost_usd"], "model": "builtin/script",
        "finish_reason": "stop", "error": null,
    });
    assert_eq!(answer, expected);
    assert!(answer["usage"]["total_tokens"].as_i64().expect("tokens") > 0, "{answer}");
    assert!(answer["cost_usd"].as_f64().expect("a cost") > 0.0, "{answer}");
    // Parts; and what a turn says on its way is not its answer.
    let steps = json!([
        {"text": "Let me see.", "tool_calls": [{"tool": "echo", "arguments": {"text": "x"}}]},
        {"text": "It is."},
    ]);
    let parts = json!([{"type": "text", "text": "Is"}, {"type": "data", "data": {"it": 1}}]);
    let body = json!({"content": parts, "config": {"script": steps}, "metadata": {"k": "v"}});
    let answer = complete(client, &talk, &body).await;
    assert_eq!(answer["response"], "It is.");
    let list = messages(client, &talk).await;
    assert_eq!(list.last().expect("a message")["message_id"], answer["message_id"]);
    assert_eq!((&list[2]["role"], &list[2]["content"]), (&json!("user"), &parts));
    assert_eq!(client.wait(&id(&answer)).await["metadata"], json!({"k": "v"}));
    // Nothing but a question that was posted before.
    let posted = json!({"role": "user", "content": "Well?"});
    client.post(&at(&talk, "messages"), &posted).await.expect(201);
    assert_eq!(complete(client, &talk, &json!({})).await["response"], "Yes.");
}

async fn every_end_of_a_turn_has_its_reason(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let tool = json!([{"tool": "echo", "arguments": {"text": "x"}}]);
    let usage = json!({"input_tokens": 60, "output_tokens": 40});
    let endless =
        json!(vec![json!({"text": "On and on.", "tool_calls": tool, "usage": usage}); 20]);
    for (config, reason, response) in [
        (json!({"script": endless, "max_steps": 2}), "max_steps", json!("On and on.")),
        (
            json!({"script": endless, "max_total_tokens": 150}),
            "max_total_tokens",
            json!("On and on."),
        ),
        (json!({"script": endless, "max_cost_usd": 0.000_001}), "budget", Value::Null),
        (json!({"script": [{"delay_ms": 60_000}], "timeout_seconds": 1}), "expired", Value::Null),
        (json!({"script": [{"text": ""}]}), "stop", Value::Null),
    ] {
        let answer = complete(client, &talk, &json!({"content": "Go", "config": config})).await;
        assert_eq!(answer["finish_reason"], reason, "{answer}");
        let said = answer["response"].clone();
        let is_nothing = said.is_null() || said == "";
        assert!(said == response || (response.is_null() && is_nothing), "{reason}: {answer}");
        assert_eq!(answer["message_id"].is_null(), response.is_null(), "{reason}: {answer}");
        assert_eq!(answer["error"], Value::Null);
    }
    // Cancelled while somebody waits for the answer.
    let body = json!({"content": "Go", "config": {"script": [{"delay_ms": 60_000}]}});
    let path = at(&talk, "complete");
    let (answer, ()) = tokio::join!(client.post(&path, &body), async {
        let run_id = loop {
            let now = get(client, &talk).await;
            match now["active_run_id"].as_str() {
                Some(run_id) => break run_id.to_owned(),
                None => tokio::task::yield_now().await,
            }
        };
        client.events(&run_id, 0).await.until("step.started").await;
        client.post(&format!("/v1/runs/{run_id}/cancel"), &Value::Null).await;
    });
    let answer = answer.expect(200);
    assert_eq!(
        (&answer["finish_reason"], &answer["response"]),
        (&json!("cancelled"), &Value::Null)
    );
    // The conversation is none the worse for it.
    let answer = complete(client, &talk, &json!({"content": "Still there?"})).await;
    assert_eq!((&answer["finish_reason"], &answer["response"]), (&json!("stop"), &json!("Yes.")));
}

async fn a_provider_s_limits_have_their_reasons(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    models.script(vec![
        openai::reply(vec![json!({"content": "Half a"})], "length"),
        openai::reply(vec![json!({"content": "I"})], "content_filter"),
        Reply::status(400),
        openai::text("Whole."),
    ]);
    for (reason, response) in [
        ("length", json!("Half a")),
        ("content_filter", json!("I")),
        ("error", Value::Null),
        ("stop", json!("Whole.")),
    ] {
        let answer = complete(client, &talk, &json!({"content": "Go"})).await;
        assert_eq!((&answer["finish_reason"], &answer["response"]), (&json!(reason), &response));
        // The model has no price; a call that was refused costs nothing.
        let cost = if reason == "error" { json!(0.0) } else { Value::Null };
        assert_eq!(answer["cost_usd"], cost);
        assert_eq!(answer["model"], "p/m");
        if reason == "error" {
            let error = &answer["error"];
            assert_eq!(error["code"], "model_error", "{answer}");
            assert!(error["message"].is_string() && error["retryable"].is_boolean(), "{answer}");
            assert_eq!(answer["message_id"], Value::Null);
        } else {
            assert_eq!(answer["error"], Value::Null);
        }
    }
}

async fn a_turn_that_needs_somebody_or_takes_long_is_a_run_to_follow(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let config = super::asking(&["ask"])["config"].clone();
    let body = json!({"content": "Ask.", "config": config, "idempotency_key": "k"});
    let answer = client.post(&at(&talk, "complete"), &body).await;
    let location = answer.header("location").map(str::to_owned);
    let run = answer.expect(202);
    assert_eq!(location, Some(format!("/v1/runs/{}", id(&run))));
    assert_eq!(run["status"], "requires_action");
    assert!(run["instructions"].as_str().is_some_and(|text| text.contains("required_actions")));
    let result = json!({"call_id": call(&run, "ask"), "success": true, "result": "Fine."});
    client.post(&at(&talk, "tool-results"), &result).await.expect(202);
    client.wait(&id(&run)).await;
    let again = client.post(&at(&talk, "complete"), &body).await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.expect(200)["response"], "Done.", "the same turn, as it is today");

    let slow =
        json!({"content": "Go", "config": {"script": [{"delay_ms": 6_000, "text": "Late."}]}});
    let request = client.request(reqwest::Method::POST, &at(&talk, "complete")).json(&slow);
    let run = client.send(request.header("prefer", "wait=1")).await.expect(202);
    assert!(["queued", "running"].contains(&run["status"].as_str().expect("a status")), "{run}");
    assert_eq!(run["retry_after_seconds"], 1);
    assert_eq!(client.wait(&id(&run)).await["result"]["content"], "Late.");
    for wait in ["x", "-1"] {
        let answer = client.post(&at(&talk, &format!("complete?wait={wait}")), &slow).await;
        assert_refused(&answer, 422, "validation_failed");
    }
}

async fn a_question_is_asked_while_another_is_under_way(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let config = json!({"script": [{"delay_ms": 60_000}]});
    let slow = start(client, &talk, &json!({"input": "Go", "config": config})).await;
    let busy = client.post(&at(&talk, "complete"), &json!({"content": "Now!"})).await;
    assert_refused(&busy, 409, "conversation_busy");
    let body = json!({"content": "Now!", "on_busy": "interrupt"});
    assert_eq!(complete(client, &talk, &body).await["response"], "Yes.");
    assert_eq!(client.wait(&slow).await["status"], "cancelled");
    let config = json!({"script": [{"delay_ms": 500, "text": "First."}]});
    let slow = start(client, &talk, &json!({"input": "Go", "config": config})).await;
    let body = json!({"content": "Then?", "on_busy": "enqueue"});
    assert_eq!(complete(client, &talk, &body).await["response"], "Yes.");
    assert_eq!(client.wait(&slow).await["result"]["content"], "First.");
}

//! Hostile bytes, in every place that takes text.

use serde_json::{Value, json};

use super::{at, conversation, get, messages, say, serve, turn};
use crate::support::client::Answer;
use crate::support::on_both_databases;

on_both_databases! {
    no_text_is_a_fault_of_the_server;
    long_and_strange_texts_come_back_as_they_were_said;
}

fn assert_told(answer: &Answer) {
    assert!(answer.status < 500, "{}: {}", answer.status, answer.body);
}

async fn no_text_is_a_fault_of_the_server(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let texts = [
        "a\u{0}b",
        "\u{0}",
        "\u{feff}",
        "\u{202e}",
        "\u{1F468}\u{200D}\u{1F469}",
        "'; drop table runs; --",
    ];
    for text in texts {
        for body in [
            json!({"agent_id": "a", "system_prompt": text}),
            json!({"agent_id": "a", "metadata": {"k": text}}),
            json!({"agent_id": "a", "metadata": {text: "v"}}),
            json!({"agent_id": "a", "parameters": {"system_prompt": text}}),
            json!({"agent_id": "a", "parameters": {"script": [{"text": text}]}}),
            json!({"agent_id": text}),
        ] {
            let made = client.post("/v1/conversations", &body).await;
            assert_told(&made);
            if made.status == 201 {
                let talk = made.body["conversation_id"].as_str().expect("an id");
                assert_eq!(get(client, talk).await, made.body);
                let run = turn(client, talk, &json!({"input": text})).await;
                assert_eq!(run["status"], "completed", "{run}");
            }
        }
        for (what, body) in [
            ("messages", json!({"role": "user", "content": text, "metadata": {"k": text}})),
            ("messages", json!({"role": "user", "content": text})),
            ("messages", json!({"role": "tool", "content": text, "call_id": text})),
            ("messages", json!({"role": text, "content": "x"})),
            ("tool-results", json!({"call_id": text, "success": true, "result": text})),
            ("complete", json!({"content": text, "metadata": {"k": text}})),
            ("complete", json!({"content": [{"type": "data", "data": {text: [text]}}]})),
            ("complete", json!({"content": text, "idempotency_key": text})),
            ("runs?wait=30", json!({"input": text, "end_user_id": text})),
        ] {
            assert_told(&client.post(&at(&talk, what), &body).await);
        }
        assert_told(
            &client.patch(&at(&talk, ""), &json!({"metadata": {"k": text, text: null}})).await,
        );
    }
    for path in ["?after=%00", "?agent_id=%00", "?limit=%F0%9F%98%80", "/%00", "/conv_%00/messages"]
    {
        assert_told(&client.get(&format!("/v1/conversations{path}")).await);
    }
    assert_told(&client.get(&at(&talk, "messages?after=%00")).await);
    assert_told(&client.get(&at(&talk, "events?after=%00:1")).await);
    say(client, &talk, "Still there?").await;
}

async fn long_and_strange_texts_come_back_as_they_were_said(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let long = "\u{1F600}\u{0}\u{e4}\n\"\\".repeat(50_000);
    let body = json!({"role": "user", "content": long});
    let kept = client.post(&at(&talk, "messages"), &body).await.expect(201);
    assert!(kept["content"] == long, "it is echoed as it was sent");
    let run = say(client, &talk, &long).await;
    assert!(run["input"] == long, "it is the run's input as it was sent");
    let list = messages(client, &talk).await;
    assert!(list[0]["content"] == long && list[1]["content"] == long);
    let wide: Vec<Value> =
        (0..1_000).map(|n| json!({"type": "text", "text": n.to_string()})).collect();
    let body = json!({"role": "user", "content": wide});
    assert_eq!(
        client.post(&at(&talk, "messages"), &body).await.expect(201)["content"],
        json!(wide)
    );
}

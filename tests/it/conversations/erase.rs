//! What is deleted is gone: runs, logs, messages, to the last row.

use serde_json::{Value, json};

use super::{
    assert_refused, at, conversation, id, messages, parked, release, rows, say, serve, turn,
};
use crate::support::on_both_databases;

on_both_databases! {
    a_deleted_conversation_leaves_nothing_behind;
    a_busy_conversation_is_not_deleted;
    a_deleted_run_s_messages_stay;
}

async fn a_deleted_conversation_leaves_nothing_behind(url: String) {
    let (_setup, server) = serve(url.clone()).await;
    let client = &server.client;
    let talk =
        conversation(client, json!({"system_prompt": "Secret.", "metadata": {"s": "x"}})).await;
    let mut runs = Vec::new();
    for n in 0..25 {
        let body =
            json!({"input": format!("{n}"), "metadata": {"n": n.to_string()}, "end_user_id": "u"});
        runs.push(id(&turn(client, &talk, &body).await));
    }
    client.delete(&format!("/v1/runs/{}", runs[3])).await.expect(204);
    let kept = client.run_to_end("a", &json!({"input": "Apart", "metadata": {"n": "0"}})).await;
    let other = conversation(client, json!({})).await;
    say(client, &other, "Hello?").await;

    let answer = client.delete(&at(&talk, "")).await;
    assert_eq!((answer.status, &answer.body), (204, &Value::Null));
    for what in ["", "messages", "events"] {
        assert_refused(&client.get(&at(&talk, what)).await, 404, "not_found");
    }
    assert_refused(&client.delete(&at(&talk, "")).await, 404, "not_found");
    for run_id in &runs {
        for what in ["", "/log", "/steps", "/events"] {
            let answer = client.get(&format!("/v1/runs/{run_id}{what}")).await;
            assert_refused(&answer, 404, "not_found");
        }
    }
    for query in [format!("conversation_id={talk}"), "metadata=n:7".into(), "end_user_id=u".into()]
    {
        let list = client.get(&format!("/v1/runs?{query}")).await.expect(200);
        assert_eq!(list["data"], json!([]), "{query}");
    }
    let list = client.get("/v1/conversations").await.expect(200);
    assert_eq!(list["data"].as_array().map(Vec::len), Some(1));
    // The neighbours are as they were.
    assert_eq!(
        client.get(&format!("/v1/runs/{}", id(&kept))).await.expect(200)["status"],
        "completed"
    );
    assert_eq!(messages(client, &other).await.len(), 2);

    // What its runs called is a part of it.
    let asks = json!({"agent_id": "asks", "model": "builtin/script",
        "tools": [{"type": "agent", "name": "a", "agent_id": "a"}],
        "script": [{"tool_calls": [{"tool": "a", "arguments": {"input": "Do you?"}}]}, {"text": "Yes."}]});
    client.post("/v1/agents", &asks).await.expect(201);
    let third = conversation(client, json!({"agent_id": "asks"})).await;
    let parent = id(&say(client, &third, "Hello?").await);
    let list = client.get(&format!("/v1/runs?parent_run_id={parent}")).await.expect(200);
    let child = id(&list["data"][0]);
    client.delete(&at(&third, "")).await.expect(204);
    assert_refused(&client.get(&format!("/v1/runs/{child}")).await, 404, "not_found");

    client.delete(&at(&other, "")).await.expect(204);
    client.delete(&format!("/v1/runs/{}", id(&kept))).await.expect(204);
    for table in [
        "run_facts",
        "run_deltas",
        "run_bodies",
        "run_labels",
        "conversations",
        "conversation_messages",
    ] {
        assert_eq!(rows(&url, table).await, 0, "{table}");
    }
}

async fn a_busy_conversation_is_not_deleted(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let run = parked(client, &talk, &["ask"]).await;
    let answer = client.delete(&at(&talk, "")).await;
    assert_refused(&answer, 409, "conversation_busy");
    assert_eq!(answer.body["details"]["active_run_id"], run["run_id"]);
    client.post(&at(&talk, "close"), &json!({})).await.expect(200);
    assert_refused(&client.delete(&at(&talk, "")).await, 409, "conversation_busy");
    release(client, &run).await;
    client.delete(&at(&talk, "")).await.expect(204);
}

async fn a_deleted_run_s_messages_stay(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let first = say(client, &talk, "Hello?").await;
    say(client, &talk, "Sure?").await;
    let before = messages(client, &talk).await;
    client.delete(&format!("/v1/runs/{}", id(&first))).await.expect(204);
    assert_eq!(messages(client, &talk).await, before);
    let list = client.get(&format!("/v1/runs?conversation_id={talk}")).await.expect(200);
    assert_eq!(list["data"].as_array().map(Vec::len), Some(1));
    say(client, &talk, "And now?").await;
    assert_eq!(messages(client, &talk).await.len(), 6);
}

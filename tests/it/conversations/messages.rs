//! Messages: posted by whoever has something to say, and read by pages.

use serde_json::{Value, json};

use super::{
    assert_refused, at, call, conversation, get, id, messages, parked, release, said, say, serve,
    turn,
};
use crate::support::on_both_databases;

on_both_databases! {
    everybody_s_messages_are_stored_and_start_nothing;
    what_is_wrong_with_a_message_is_told_with_its_place;
    a_tool_s_message_is_the_result_that_a_parked_run_waits_for;
    a_tool_s_message_may_be_data_and_reads_as_it_was_answered;
    while_a_run_is_under_way_only_its_tools_may_speak;
    pages_go_both_ways_by_message_id;
}

async fn everybody_s_messages_are_stored_and_start_nothing(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let parts = json!([
        {"type": "text", "text": "Look:"},
        {"type": "image", "media_type": "image/png", "url": "https://example.com/x.png"},
        {"type": "file", "media_type": "application/pdf", "data": "AAAA", "filename": "x.pdf"},
        {"type": "data", "data": {"order": 7, "deep": [{"a": null}]}},
    ]);
    for (index, (role, kept, content)) in [
        ("system", "system", json!("Be kind. \u{1F600}")),
        ("user", "user", json!("Hello?")),
        ("agent", "assistant", json!("Yes?")),
        ("assistant", "assistant", json!([{"type": "text", "text": "Go on."}])),
        ("user", "user", parts),
    ]
    .into_iter()
    .enumerate()
    {
        let body = json!({"role": role, "content": content, "metadata": {"n": index.to_string()}});
        let answer = client.post(&at(&talk, "messages"), &body).await;
        assert_eq!(answer.header("location"), Some(at(&talk, "messages").as_str()));
        let message = answer.expect(201);
        assert!(message["message_id"].as_str().is_some_and(|id| id.starts_with("msg_")));
        let expected = json!({
            "message_id": message["message_id"], "message_index": index, "role": kept,
            "content": content, "metadata": {"n": index.to_string()},
            "created_at": message["created_at"],
        });
        assert_eq!(message, expected);
        assert_eq!(messages(client, &talk).await[index], message);
    }
    let now = get(client, &talk).await;
    assert_eq!((&now["message_count"], &now["active_run_id"]), (&json!(5), &Value::Null));
    let runs = client.get(&format!("/v1/runs?conversation_id={talk}")).await.expect(200);
    assert_eq!(runs["data"], json!([]));
}

async fn what_is_wrong_with_a_message_is_told_with_its_place(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let nobody_s = "call_019a0c5e7d2a7c3f8b1e2d3c4b5a6978";
    for (body, pointer) in [
        (json!({"role": "user"}), "/content"),
        (json!({"content": "x"}), "/role"),
        (json!({"role": "bot", "content": "x"}), "/role"),
        (json!({"role": "user", "content": ""}), "/content"),
        (json!({"role": "user", "content": []}), "/content"),
        (json!({"role": "user", "content": 7}), "/content"),
        (json!({"role": "user", "content": [{"type": "image", "media_type": "x"}]}), "/content/0"),
        (json!({"role": "user", "content": "x", "metadata": {"k": 1}}), "/metadata/k"),
        (json!({"role": "user", "content": "x", "metadata": {"k": "v".repeat(513)}}), "/metadata"),
        (json!({"role": "user", "content": "x", "call_id": nobody_s}), "/call_id"),
        (json!({"role": "tool", "content": "x"}), "/call_id"),
        (json!({"role": "tool", "content": "x", "call_id": "x"}), "/call_id"),
        (json!({"role": "tool", "content": "x", "call_id": nobody_s}), "/call_id"),
        (json!({"role": "tool", "content": "x", "tool_call_id": nobody_s}), "/call_id"),
    ] {
        let answer = client.post(&at(&talk, "messages"), &body).await;
        assert_refused(&answer, 422, "validation_failed");
        let told = &answer.body["details"]["errors"][0]["pointer"];
        assert!(told.as_str().expect("a pointer").starts_with(pointer), "{body}: {}", answer.body);
    }
    let body = json!({"role": "user", "content": "x", "colour": "red"});
    assert_refused(&client.post(&at(&talk, "messages"), &body).await, 422, "unknown_field");
    // The call of a run that is over is open no more.
    let run = parked(client, &talk, &["ask"]).await;
    release(client, &run).await;
    let body = json!({"role": "tool", "content": "x", "call_id": call(&run, "ask")});
    assert_refused(&client.post(&at(&talk, "messages"), &body).await, 422, "validation_failed");
    assert_eq!(messages(client, &talk).await.len(), 4);
}

async fn a_tool_s_message_is_the_result_that_a_parked_run_waits_for(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    say(client, &talk, "Hello?").await;
    let run = parked(client, &talk, &["ask", "tell"]).await;
    // The second call first: its place is behind that of the first.
    let tell = json!({"role": "tool", "content": "Told.", "tool_call_id": call(&run, "tell")});
    let tell = client.post(&at(&talk, "messages"), &tell).await.expect(201);
    assert_eq!((&tell["message_index"], &tell["role"]), (&json!(5), &json!("tool")));
    let still = client.get(&format!("/v1/runs/{}", id(&run))).await.expect(200);
    assert_eq!(still["status"], "requires_action");
    let ask = json!({"role": "tool", "content": "Asked.", "call_id": call(&run, "ask")});
    let ask = client.post(&at(&talk, "messages"), &ask).await.expect(201);
    assert_eq!((&ask["message_index"], &ask["run_id"]), (&json!(4), &run["run_id"]));
    let run = client.wait(&id(&run)).await;
    assert_eq!((&run["status"], &run["result"]["content"]), (&json!("completed"), &json!("Done.")));
    let list = messages(client, &talk).await;
    let expected = super::pairs(&[
        ("user", "Hello?"),
        ("assistant", "Yes."),
        ("user", "Ask."),
        ("assistant", "Wait."),
        ("tool", "Asked."),
        ("tool", "Told."),
        ("assistant", "Done."),
    ]);
    assert_eq!(said(&list), expected);
    for (named, index) in [(ask, 4), (tell, 5)] {
        for field in ["message_id", "message_index", "content", "call_id", "tool", "run_id"] {
            assert_eq!(named[field], list[index][field], "{field}");
        }
    }
    let calls = list[3]["tool_calls"].as_array().expect("calls");
    assert_eq!(calls[0]["call_id"], list[4]["call_id"]);
    assert_eq!(
        (&calls[1]["tool"], &calls[1]["arguments"]),
        (&json!("tell"), &json!({"q": "tell"}))
    );
}

async fn a_tool_s_message_may_be_data_and_reads_as_it_was_answered(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    for content in [
        json!([{"type": "data", "data": {"rows": [1, 2]}}]),
        json!([{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]),
        json!("plain"),
    ] {
        let run = parked(client, &talk, &["ask"]).await;
        let body = json!({"role": "tool", "content": content, "call_id": call(&run, "ask")});
        let named = client.post(&at(&talk, "messages"), &body).await.expect(201);
        client.wait(&id(&run)).await;
        let list = messages(client, &talk).await;
        let index = named["message_index"].as_u64().expect("an index") as usize;
        assert_eq!(list[index]["content"], named["content"]);
        assert_eq!(list[index]["message_id"], named["message_id"]);
    }
}

async fn while_a_run_is_under_way_only_its_tools_may_speak(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let run = parked(client, &talk, &["ask"]).await;
    for role in ["user", "assistant", "system"] {
        let body = json!({"role": role, "content": "But"});
        let answer = client.post(&at(&talk, "messages"), &body).await;
        assert_refused(&answer, 409, "conversation_busy");
        assert_eq!(answer.body["details"]["active_run_id"], run["run_id"]);
        assert_eq!(answer.body["retry"], true);
    }
    assert_eq!(messages(client, &talk).await.len(), 1, "the run's input, and nothing else");
    release(client, &run).await;
    let body = json!({"role": "user", "content": "Now"});
    let message = client.post(&at(&talk, "messages"), &body).await.expect(201);
    assert_eq!(message["message_index"], 4);
    let run = turn(client, &talk, &json!({})).await;
    assert_eq!(run["status"], "completed");
}

async fn pages_go_both_ways_by_message_id(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let (talk, other) =
        (conversation(client, json!({})).await, conversation(client, json!({})).await);
    for n in 0..3 {
        say(client, &talk, &format!("{n}")).await;
    }
    say(client, &other, "x").await;
    let all = messages(client, &talk).await;
    let ids: Vec<&str> = all.iter().map(|m| m["message_id"].as_str().expect("an id")).collect();
    let list = |query: String| {
        let path = at(&talk, &format!("messages{query}"));
        async move {
            let page = client.get(&path).await.expect(200);
            let data = page["data"].as_array().expect("data").clone();
            let (first, last) = (data.first().cloned(), data.last().cloned());
            let id = |m: Option<Value>| m.map_or(Value::Null, |m| m["message_id"].clone());
            assert_eq!((&page["first_id"], &page["last_id"]), (&id(first), &id(last)));
            (data, page["has_more"] == true)
        }
    };
    assert_eq!(list("?limit=4".into()).await, (all[..4].to_vec(), true));
    assert_eq!(list(format!("?limit=4&after={}", ids[3])).await, (all[4..].to_vec(), false));
    assert_eq!(list(format!("?limit=2&before={}", ids[3])).await, (all[1..3].to_vec(), true));
    assert_eq!(list(format!("?after={}", ids[5])).await, (Vec::new(), false));
    assert_eq!(list(format!("?before={}", ids[0])).await, (Vec::new(), false));
    let newest = list("?order=desc&limit=2".into()).await;
    assert_eq!(newest, (vec![all[5].clone(), all[4].clone()], true));
    let older = list(format!("?order=desc&limit=2&after={}", ids[4])).await;
    assert_eq!(older, (vec![all[3].clone(), all[2].clone()], true));
    let foreign = messages(client, &other).await[0]["message_id"].clone();
    let foreign = foreign.as_str().expect("an id");
    for (query, status, error) in [
        ("?after=x", 400, "invalid_cursor"),
        ("?after=msg_019a0c5e7d2a7c3f8b1e2d3c4b5a6978", 400, "invalid_cursor"),
        (&format!("?after={foreign}"), 400, "invalid_cursor"),
        (&format!("?after={0}&before={0}", ids[0]), 422, "validation_failed"),
        ("?limit=101", 422, "validation_failed"),
        ("?colour=red", 422, "unknown_field"),
    ] {
        let answer = client.get(&at(&talk, &format!("messages{query}"))).await;
        assert_refused(&answer, status, error);
    }
}

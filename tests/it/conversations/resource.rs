//! Conversations as things: made, read, listed, changed, closed.

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    agent, asking, assert_refused, at, conversation, get, id, messages, parked, release, say, serve,
};
use crate::support::on_both_databases;

on_both_databases! {
    a_conversation_has_defaults_and_every_field_that_it_is_given;
    what_is_wrong_with_a_new_conversation_is_told_with_its_place;
    an_agent_that_is_archived_talks_no_more;
    lists_page_both_ways_and_by_agent;
    metadata_is_patched_key_by_key_in_any_status;
    closing_lets_the_active_run_finish_and_cancels_those_that_wait;
    ids_that_name_nothing_are_not_found_whatever_else_is_wrong;
}

fn millis(time: &Value) -> i64 {
    let time = time.as_str().expect("a time");
    chrono::DateTime::parse_from_rfc3339(time).expect("RFC 3339").timestamp_millis()
}

async fn a_conversation_has_defaults_and_every_field_that_it_is_given(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let answer = client.post("/v1/conversations", &json!({"agent_id": "a"})).await;
    let location = answer.header("location").map(str::to_owned);
    let made = answer.expect(201);
    let path = at(made["conversation_id"].as_str().expect("an id"), "");
    assert_eq!(location.as_deref(), Some(path.as_str()));
    let defaults = json!({
        "conversation_id": made["conversation_id"], "agent_id": "a", "system_prompt": null,
        "parameters": {}, "status": "open", "message_count": 0, "active_run_id": null,
        "queued_runs": 0, "timeout_seconds": 1800, "expires_at": made["expires_at"],
        "created_at": made["created_at"], "last_active_at": made["created_at"], "metadata": {},
    });
    assert_eq!(made, defaults);
    assert_eq!(millis(&made["expires_at"]) - millis(&made["created_at"]), 1_800_000);
    assert_eq!(client.get(&path).await.expect(200), made);
    let head = client.send(client.request(Method::HEAD, &path)).await;
    assert_eq!((head.status, &head.body), (200, &Value::Null));
    assert_eq!(head.header("content-type"), Some("application/json"));

    let given = json!({
        "agent_id": "a", "system_prompt": "Be brief.", "metadata": {"customer": "c_7"},
        "parameters": {"max_steps": 3, "temperature": 0.5, "tools": ["echo"], "max_cost_usd": 0.25},
        "timeout_seconds": 60,
    });
    let made = client.post("/v1/conversations", &given).await.expect(201);
    for (field, value) in given.as_object().expect("fields") {
        assert_eq!(&made[field], value, "{field}");
    }
    assert_eq!(get(client, made["conversation_id"].as_str().expect("an id")).await, made);

    let nulls = json!({
        "agent_id": "a", "system_prompt": null, "metadata": null, "parameters": null,
        "timeout_seconds": null,
    });
    let made = client.post("/v1/conversations", &nulls).await.expect(201);
    assert_eq!((&made["timeout_seconds"], &made["expires_at"]), (&Value::Null, &Value::Null));
    assert_eq!((&made["parameters"], &made["metadata"]), (&json!({}), &json!({})));
}

async fn what_is_wrong_with_a_new_conversation_is_told_with_its_place(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let many: serde_json::Map<String, Value> =
        (0..17).map(|n| (format!("k{n}"), json!("v"))).collect();
    let (long_key, long_value) = ("k".repeat(65), "v".repeat(513));
    for (field, value, pointer) in [
        ("agent_id", json!("nobody"), "/agent_id"),
        ("agent_id", json!("Not An Id"), "/agent_id"),
        ("agent_id", Value::Null, "/agent_id"),
        ("system_prompt", json!(7), "/system_prompt"),
        ("system_prompt", json!("p".repeat(100_001)), "/system_prompt"),
        ("system_prompt", json!("a\u{0}b"), "/system_prompt"),
        ("parameters", json!([]), "/parameters"),
        ("parameters", json!({"max_steps": 0}), "/parameters/max_steps"),
        ("parameters", json!({"temperature": 9}), "/parameters/temperature"),
        ("parameters", json!({"model": "nobody/m"}), "/parameters/model"),
        ("parameters", json!({"tools": ["echo", "saw"]}), "/parameters/tools/1"),
        ("metadata", json!({"k": 7}), "/metadata/k"),
        ("metadata", json!(many), "/metadata"),
        ("metadata", json!({ long_key: "v" }), "/metadata"),
        ("metadata", json!({"k": long_value}), "/metadata"),
        ("timeout_seconds", json!(0), "/timeout_seconds"),
        ("timeout_seconds", json!(-1), "/timeout_seconds"),
        ("timeout_seconds", json!(1.5), "/timeout_seconds"),
        ("timeout_seconds", json!("60"), "/timeout_seconds"),
        ("timeout_seconds", json!(31_536_001), "/timeout_seconds"),
    ] {
        let mut body = json!({"agent_id": "a"});
        body[field] = value.clone();
        let answer = client.post("/v1/conversations", &body).await;
        assert_refused(&answer, 422, "validation_failed");
        let told = answer.body["details"]["errors"][0]["pointer"].as_str().expect("a pointer");
        assert!(told.starts_with(pointer), "{field}: {value}: {}", answer.body);
    }
    for (body, pointer) in [
        (json!({"agent_id": "a", "colour": "red"}), "/colour"),
        (json!({"agent_id": "a", "parameters": {"colour": "red"}}), "/parameters/colour"),
    ] {
        let answer = client.post("/v1/conversations", &body).await;
        assert_refused(&answer, 422, "unknown_field");
        assert_eq!(answer.body["details"]["pointer"], pointer, "{}", answer.body);
    }
    assert_refused(&client.post("/v1/conversations", &json!({})).await, 422, "validation_failed");
    assert_refused(&client.post("/v1/conversations", &json!([])).await, 422, "validation_failed");
    let broken = client.request(Method::POST, "/v1/conversations").body("{");
    let broken = client.send(broken.header("content-type", "application/json")).await;
    assert_refused(&broken, 400, "invalid_json");
    let longest = json!({"agent_id": "a", "timeout_seconds": 31_536_000});
    client.post("/v1/conversations", &longest).await.expect(201);
    let list = client.get("/v1/conversations").await.expect(200);
    assert_eq!(list["data"].as_array().expect("data").len(), 1, "what is refused makes nothing");
}

async fn an_agent_that_is_archived_talks_no_more(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    say(client, &talk, "Hello?").await;
    client.delete("/v1/agents/a").await.expect(204);
    let answer = client.post("/v1/conversations", &json!({"agent_id": "a"})).await;
    assert_refused(&answer, 409, "agent_archived");
    for (what, body) in
        [("runs", json!({"input": "Still there?"})), ("complete", json!({"content": "Hm?"}))]
    {
        let answer = client.post(&at(&talk, what), &body).await;
        assert_refused(&answer, 409, "agent_archived");
    }
    assert_eq!(messages(client, &talk).await.len(), 2, "what was said stays");
    assert_eq!(get(client, &talk).await["active_run_id"], Value::Null);
}

async fn lists_page_both_ways_and_by_agent(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    client.post("/v1/agents", &agent("b")).await.expect(201);
    let mut ids = Vec::new();
    for n in 0..7 {
        let who = if n % 2 == 0 { "a" } else { "b" };
        ids.push(conversation(client, json!({"agent_id": who})).await);
    }
    client.post(&at(&ids[0], "close"), &json!({})).await.expect(200);
    ids.reverse();
    let list = |query: String| async move {
        let page = client.get(&format!("/v1/conversations{query}")).await.expect(200);
        let found = page["data"].as_array().expect("data").iter();
        let found: Vec<String> =
            found.map(|c| c["conversation_id"].as_str().expect("an id").to_owned()).collect();
        let (first, last) = (found.first(), found.last());
        assert_eq!((&page["first_id"], &page["last_id"]), (&json!(first), &json!(last)));
        (found.clone(), page["has_more"] == true)
    };
    assert_eq!(list(String::new()).await, (ids.clone(), false), "newest first, closed ones too");
    assert_eq!(list("?limit=3".into()).await, (ids[..3].to_vec(), true));
    let next = format!("?limit=3&after={}", ids[2]);
    assert_eq!(list(next).await, (ids[3..6].to_vec(), true));
    let rest = format!("?limit=3&after={}", ids[5]);
    assert_eq!(list(rest).await, (ids[6..].to_vec(), false));
    let back = format!("?limit=2&before={}", ids[3]);
    assert_eq!(list(back).await, (ids[1..3].to_vec(), true));
    assert_eq!(list("?order=asc&limit=1".into()).await, (ids[6..].to_vec(), true));
    let of_b: Vec<String> = ids.iter().skip(1).step_by(2).cloned().collect();
    assert_eq!(list("?agent_id=b".into()).await, (of_b.clone(), false));
    let page = format!("?agent_id=b&limit=1&after={}", of_b[0]);
    assert_eq!(list(page).await, (of_b[1..2].to_vec(), true));
    let page = format!("?agent_id=b&limit=2&before={}", of_b[2]);
    assert_eq!(list(page).await, (of_b[..2].to_vec(), false));
    assert_eq!(list("?agent_id=nobody".into()).await, (Vec::new(), false));
    // A cursor is a place: its conversation need not be there any more.
    client.delete(&at(&ids[2], "")).await.expect(204);
    assert_eq!(list(format!("?limit=3&after={}", ids[2])).await, (ids[3..6].to_vec(), true));
    for (query, status, error) in [
        ("?after=run_019a0c5e7d2a7c3f8b1e2d3c4b5a6978", 400, "invalid_cursor"),
        ("?after=x", 400, "invalid_cursor"),
        (&format!("?after={0}&before={0}", ids[0]), 422, "validation_failed"),
        ("?limit=0", 422, "validation_failed"),
        ("?agent_id=NO", 422, "validation_failed"),
        ("?colour=red", 422, "unknown_field"),
    ] {
        let answer = client.get(&format!("/v1/conversations{query}")).await;
        assert_refused(&answer, status, error);
    }
}

async fn metadata_is_patched_key_by_key_in_any_status(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({"metadata": {"a": "1", "b": "2"}})).await;
    let path = at(&talk, "");
    let before = get(client, &talk).await;
    let mut patched =
        client.patch(&path, &json!({"metadata": {"a": null, "c": "3"}})).await.expect(200);
    assert_eq!(patched["metadata"], json!({"b": "2", "c": "3"}));
    assert_eq!(get(client, &talk).await, patched);
    patched["metadata"] = before["metadata"].clone();
    assert_eq!(patched, before, "nothing else has changed");
    for nothing in [json!({}), json!({"metadata": {}}), json!({"metadata": {"x": null}})] {
        let same = client.patch(&path, &nothing).await.expect(200);
        assert_eq!(same["metadata"], json!({"b": "2", "c": "3"}));
    }
    let many: serde_json::Map<String, Value> =
        (0..15).map(|n| (format!("k{n}"), json!("v"))).collect();
    let answer = client.patch(&path, &json!({"metadata": many})).await;
    assert_refused(&answer, 422, "validation_failed");
    let answer = client.patch(&path, &json!({"metadata": {"k": 1}})).await;
    assert_refused(&answer, 422, "validation_failed");
    for field in ["agent_id", "system_prompt", "timeout_seconds", "status"] {
        assert_refused(&client.patch(&path, &json!({ field: null })).await, 422, "unknown_field");
    }
    client.post(&at(&talk, "close"), &json!({})).await.expect(200);
    let patched = client.patch(&path, &json!({"metadata": {"b": "4"}})).await.expect(200);
    assert_eq!(patched["metadata"], json!({"b": "4", "c": "3"}));
    assert_eq!(patched["status"], "closed");
    // The whole of it is taken back as anything else is in a merge patch.
    let patched = client.patch(&path, &json!({"metadata": null})).await.expect(200);
    assert_eq!(patched["metadata"], json!({}));
}

async fn closing_lets_the_active_run_finish_and_cancels_those_that_wait(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let run = parked(client, &talk, &["ask"]).await;
    let mut waiting = Vec::new();
    for n in 0..3 {
        let body = json!({"input": format!("{n}"), "on_busy": "enqueue"});
        waiting.push(super::start(client, &talk, &body).await);
    }
    let closed = client.post(&at(&talk, "close"), &json!({})).await.expect(200);
    assert_eq!((&closed["status"], &closed["expires_at"]), (&json!("closed"), &Value::Null));
    assert_eq!((&closed["active_run_id"], &closed["queued_runs"]), (&run["run_id"], &json!(0)));
    for run_id in &waiting {
        let run = client.wait(run_id).await;
        assert_eq!((&run["status"], &run["started_at"]), (&json!("cancelled"), &Value::Null));
    }
    for (what, body) in [
        ("runs", json!({"input": "One more"})),
        ("runs", json!({"input": "One more", "on_busy": "enqueue"})),
        ("runs", json!({"input": "One more", "on_busy": "interrupt"})),
        ("runs", json!({})),
        ("complete", json!({"content": "One more"})),
        ("messages", json!({"role": "user", "content": "One more"})),
        ("heartbeat", json!({})),
    ] {
        let answer = client.post(&at(&talk, what), &body).await;
        assert_refused(&answer, 409, "conversation_closed");
        assert_eq!(answer.body["details"]["conversation_id"], talk);
        assert_eq!(answer.body["retry"], false);
    }
    let run = release(client, &run).await;
    assert_eq!(run["status"], "completed", "{run}");
    let said = super::said(&messages(client, &talk).await);
    let expected = super::pairs(&[
        ("user", "Ask."),
        ("assistant", "Wait."),
        ("tool", "Fine."),
        ("assistant", "Done."),
    ]);
    assert_eq!(said, expected, "those that never had their turn said nothing");
    let again = client.post(&at(&talk, "close"), &Value::Null).await.expect(200);
    assert_eq!(again["status"], "closed");
    assert_eq!(again["active_run_id"], Value::Null);
    let unread = client.post(&at(&talk, "close"), &json!({"colour": "red"})).await;
    assert_refused(&unread, 422, "unknown_field");
}

async fn ids_that_name_nothing_are_not_found_whatever_else_is_wrong(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let run = client.run_to_end("a", &json!({"input": "x"})).await;
    let foreign = id(&run);
    for name in ["conv_019a0c5e7d2a7c3f8b1e2d3c4b5a6978", "conv_x", "x", &foreign] {
        for what in ["", "messages", "events"] {
            assert_refused(&client.get(&at(name, what)).await, 404, "not_found");
        }
        for what in ["runs", "complete", "messages", "tool-results", "close", "heartbeat"] {
            for body in [json!({}), json!({"colour": "red"}), asking(&["ask"])] {
                assert_refused(&client.post(&at(name, what), &body).await, 404, "not_found");
            }
        }
        assert_refused(&client.patch(&at(name, ""), &json!({"x": 1})).await, 404, "not_found");
        assert_refused(&client.delete(&at(name, "")).await, 404, "not_found");
    }
    let talk = conversation(client, json!({})).await;
    let answer = client.send(client.request(Method::PUT, &at(&talk, ""))).await;
    assert_refused(&answer, 405, "method_not_allowed");
    assert!(answer.header("allow").is_some_and(|allow| allow.contains("PATCH")));
}

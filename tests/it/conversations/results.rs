//! Results of tools, handed to the conversation: it knows which run waits for them.

use serde_json::json;

use super::{assert_refused, at, call, conversation, id, parked, say, serve};
use crate::support::on_both_databases;

on_both_databases! {
    a_result_finds_the_run_that_waits_for_it;
    a_result_that_is_posted_again_is_fine_however_far_the_conversation_is;
    a_result_for_a_child_of_the_turn_s_run_finds_the_child;
}

async fn a_result_finds_the_run_that_waits_for_it(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let path = at(&talk, "tool-results");
    let nobody_s = "call_019a0c5e7d2a7c3f8b1e2d3c4b5a6978";
    let result = |call_id: &str| json!({"call_id": call_id, "success": true, "result": {"n": 1}});
    assert_refused(&client.post(&path, &result(nobody_s)).await, 404, "not_found");
    say(client, &talk, "Hello?").await;
    assert_refused(&client.post(&path, &result(nobody_s)).await, 404, "not_found");
    let run = parked(client, &talk, &["ask", "tell"]).await;
    assert_refused(&client.post(&path, &result(nobody_s)).await, 404, "not_found");
    assert_refused(&client.post(&path, &result("x")).await, 404, "not_found");
    let answer = client.post(&path, &json!({"call_id": call(&run, "ask")})).await;
    assert_refused(&answer, 422, "validation_failed");
    let taken = client.post(&path, &result(&call(&run, "tell"))).await.expect(202);
    assert_eq!((&taken["run_id"], &taken["status"]), (&run["run_id"], &json!("requires_action")));
    let failed = json!({"call_id": call(&run, "ask"), "success": false, "error": "Nobody in."});
    client.post(&path, &failed).await.expect(202);
    let run = client.wait(&id(&run)).await;
    assert_eq!(run["status"], "completed");
    let list = super::messages(client, &talk).await;
    assert_eq!((&list[4]["content"], &list[4]["is_error"]), (&json!("Nobody in."), &json!(true)));
    assert_eq!(list[5]["content"], "{\"n\":1}");
}

async fn a_result_that_is_posted_again_is_fine_however_far_the_conversation_is(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let (talk, other) =
        (conversation(client, json!({})).await, conversation(client, json!({})).await);
    let run = parked(client, &talk, &["ask", "tell"]).await;
    let path = at(&talk, "tool-results");
    let result = |tool: &str, said: &str| json!({"call_id": call(&run, tool), "success": true, "result": said});
    client.post(&path, &result("ask", "Fine.")).await.expect(202);
    for stage in ["parked", "ended", "in the next turn", "two turns later", "closed"] {
        match stage {
            "ended" => {
                client.post(&path, &result("tell", "Told.")).await.expect(202);
                client.wait(&id(&run)).await;
            }
            "in the next turn" => drop(parked(client, &talk, &["ask"]).await),
            "two turns later" => {
                let body = json!({"input": "Next", "on_busy": "interrupt"});
                super::turn(client, &talk, &body).await;
                say(client, &talk, "And next").await;
            }
            "closed" => drop(client.post(&at(&talk, "close"), &json!({})).await.expect(200)),
            _ => {}
        }
        let again = client.post(&path, &result("ask", "Fine.")).await;
        assert_eq!(again.status, 202, "{stage}: {}", again.body);
        assert_eq!(again.body["run_id"], run["run_id"], "{stage}");
        let another = client.post(&path, &result("ask", "Bad.")).await;
        assert_refused(&another, 409, "already_decided");
        let foreign = client.post(&at(&other, "tool-results"), &result("ask", "Fine.")).await;
        assert_refused(&foreign, 404, "not_found");
    }
}

async fn a_result_for_a_child_of_the_turn_s_run_finds_the_child(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let mine = json!([{"type": "client", "name": "ask", "description": "Mine.", "parameters": {}}]);
    let asks = json!([{"tool_calls": [{"tool": "ask", "arguments": {}}]}, {"text": "Asked."}]);
    let below =
        json!({"agent_id": "below", "model": "builtin/script", "tools": mine, "script": asks});
    client.post("/v1/agents", &below).await.expect(201);
    let tools = json!([{"type": "agent", "name": "help", "agent_id": "below"}]);
    let calls = json!([{"tool": "help", "arguments": {"input": "Ask."}}]);
    let script = json!([{"tool_calls": calls}, {"text": "Helped."}]);
    let above =
        json!({"agent_id": "above", "model": "builtin/script", "tools": tools, "script": script});
    client.post("/v1/agents", &above).await.expect(201);
    let talk = conversation(client, json!({"agent_id": "above"})).await;
    let run = super::turn(client, &talk, &json!({"input": "Go"})).await;
    assert_eq!(run["status"], "requires_action", "{run}");
    let child = run["required_actions"][0]["run_id"].clone();
    assert_ne!(child, run["run_id"]);
    let body = json!({"call_id": call(&run, "ask"), "success": true, "result": "Fine."});
    let path = at(&talk, "tool-results");
    client.post(&path, &body).await.expect(202);
    let end = client.events(&id(&run), 0).await.until("run.completed").await.json();
    assert_eq!(end["result"]["content"], "Helped.");
    let said = super::said(&super::messages(client, &talk).await);
    let expected =
        [("user", "Go"), ("assistant", ""), ("tool", "Asked."), ("assistant", "Helped.")];
    assert_eq!(said, super::pairs(&expected), "what a child says it says to its parent");
    // Only the turn's own run is in the conversation.
    let list = client.get(&format!("/v1/runs?conversation_id={talk}")).await.expect(200);
    assert_eq!(list["data"].as_array().map(Vec::len), Some(1));
    client.post(&path, &body).await.expect(202);
}

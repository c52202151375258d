//! Telling a run something while it goes on.

use serde_json::{Value, json};

use super::{
    add_agent, at, call, count, events, id, one, parked, result, serve, serve_with_a_wait,
};
use crate::support::model_server::{Gate, ModelServer, Piece, openai};
use crate::support::on_both_databases;
use crate::support::server::Setup;

on_both_databases! {
    a_message_is_read_before_the_next_model_call;
    a_run_that_would_complete_makes_one_more_step_for_a_message;
    a_parked_run_takes_messages_and_stays_parked;
    an_ended_run_takes_no_message;
    a_run_takes_a_hundred_messages_ahead_and_no_more;
    a_repeated_message_under_one_key_is_one_message;
}

async fn a_message_is_read_before_the_next_model_call(url: String) {
    let (server, _tools, wait, gate) = serve_with_a_wait(url).await;
    let client = &server.client;
    add_agent(client, "a", json!([wait]), json!([{"tool": "wait", "arguments": {}}])).await;
    let run_id = super::start(client, "a").await;
    let mut stream = client.events(&run_id, 0).await;
    stream.until("tool_call.started").await;
    let path = format!("/v1/runs/{run_id}/messages");
    let parts = json!({"content": [{"type": "text", "text": "Be brief."}]});
    let answer = client.post(&path, &parts).await;
    assert_eq!(answer.header("location"), Some(&*format!("/v1/runs/{run_id}")));
    let taken = answer.expect(202);
    let received = stream.until("input.received").await.json();
    assert_eq!((&received["message_id"], &received["step"]), (&taken["message_id"], &json!(1)));
    gate.open();
    client.wait(&run_id).await;
    let log = events(client, &run_id).await;
    let applied = one(&log, "input.applied");
    assert_eq!((&applied["message_id"], &applied["step"]), (&taken["message_id"], &json!(2)));
    assert_eq!(applied["content"], parts["content"]);
    // The call that was under way was not disturbed.
    assert_eq!((count(&log, "tool_call.started"), count(&log, "step.restarted")), (1, 0));
}

async fn a_run_that_would_complete_makes_one_more_step_for_a_message(url: String) {
    let models = ModelServer::start().await;
    let base_url = models.base_url();
    let yaml = format!("providers:\n  p: {{ kind: openai, base_url: \"{base_url}\" }}\n");
    let server = Setup::new(url, yaml).start().await;
    let client = &server.client;
    client.post("/v1/agents", &json!({"agent_id": "a", "model": "p/m"})).await.expect(201);
    let words: Vec<String> = (0..40).map(|n| format!("w{n}")).collect();
    // Before its first word, amid them, and behind the last.
    for (said, last) in [(1, "step.started"), (20, "message.delta"), (41, "message.delta")] {
        let gate = Gate::new();
        let first = openai::text(&words.join(" ")).with(said, Piece::Gate(gate.clone()));
        models.script(vec![first, openai::text("And more.")]);
        let run_id = super::start(client, "a").await;
        client.events(&run_id, 0).await.until(last).await;
        let path = format!("/v1/runs/{run_id}/messages");
        client.post(&path, &json!({"content": "Go on."})).await.expect(202);
        gate.open();
        let run = client.wait(&run_id).await;
        assert_eq!((&run["status"], &run["steps_completed"]), (&json!("completed"), &json!(2)));
        assert_eq!(run["result"]["content"], "And more.");
        let log = events(client, &run_id).await;
        // What was being said when the message came was said to its end.
        let said: String = log
            .iter()
            .filter(|event| event["type"] == "message.delta" && event["step"] == 1)
            .map(|event| event["content"].as_str().expect("a text"))
            .collect();
        assert_eq!((said, count(&log, "step.restarted")), (words.join(" "), 0));
    }
}

async fn a_parked_run_takes_messages_and_stays_parked(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let tools = json!([{"type": "client", "name": "find"}]);
    add_agent(client, "a", tools, json!([{"tool": "find", "arguments": {}}])).await;
    let run = parked(client, "a").await;
    client.post(&at(&run, "messages"), &json!({"content": "Hurry."})).await.expect(202);
    let still = client.get(&format!("/v1/runs/{}", id(&run))).await.expect(200);
    assert_eq!(still["status"], "requires_action");
    assert_eq!(still["required_actions"], run["required_actions"]);
    let body = result(&call(&run, "find"), json!(1));
    client.post(&at(&run, "tool-results"), &body).await.expect(202);
    let run = client.wait(&id(&run)).await;
    assert_eq!(run["status"], "completed", "{run}");
    assert_eq!(one(&events(client, &id(&run)).await, "input.applied")["step"], 2);
}

async fn an_ended_run_takes_no_message(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_agent(client, "a", json!([]), json!([])).await;
    let run = client.run_to_end("a", &json!({"input": "Go"})).await;
    let refused = client.post(&at(&run, "messages"), &json!({"content": "More."})).await;
    let refused = refused.expect(409);
    assert_eq!(
        (&refused["error"], &refused["details"]["status"]),
        (&json!("run_ended"), &run["status"])
    );
    for wrong in [json!({}), json!({"content": ""}), json!({"content": []}), json!({"content": 7})]
    {
        let refused = client.post(&at(&run, "messages"), &wrong).await.expect(422);
        assert_eq!(refused["details"]["errors"][0]["pointer"], "/content", "{refused}");
    }
    let nowhere = "/v1/runs/run_019a0c5e7d2a7c3f8b1e2d3c4b5a6978/messages";
    client.post(nowhere, &json!({"content": "x"})).await.expect(404);
    client.post(nowhere, &json!({"content": ""})).await.expect(404);
}

async fn a_run_takes_a_hundred_messages_ahead_and_no_more(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let tools = json!([{"type": "client", "name": "find"}]);
    add_agent(client, "a", tools, json!([{"tool": "find", "arguments": {}}])).await;
    let run = parked(client, "a").await;
    for n in 0..100 {
        let body = json!({"content": format!("message {n}")});
        client.post(&at(&run, "messages"), &body).await.expect(202);
    }
    let refused = client.post(&at(&run, "messages"), &json!({"content": "x"})).await.expect(422);
    assert_eq!(refused["details"]["errors"][0]["pointer"], "/content", "{refused}");
    let body = result(&call(&run, "find"), Value::Null);
    client.post(&at(&run, "tool-results"), &body).await.expect(202);
    let run = client.wait(&id(&run)).await;
    assert_eq!(run["status"], "completed", "{run}");
    let log = events(client, &id(&run)).await;
    let said = |event_type: &str| -> Vec<Value> {
        let of = log.iter().filter(|event| event["type"] == event_type);
        of.map(|event| event["content"].clone()).collect()
    };
    assert_eq!(said("input.applied"), said("input.received"), "all, and in order");
}

async fn a_repeated_message_under_one_key_is_one_message(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let tools = json!([{"type": "client", "name": "find"}]);
    add_agent(client, "a", tools, json!([{"tool": "find", "arguments": {}}])).await;
    let run = parked(client, "a").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let request = client.request(reqwest::Method::POST, &at(&run, "messages"));
        let request = request.header("Idempotency-Key", "once").json(&json!({"content": "x"}));
        ids.push(client.send(request).await.expect(202)["message_id"].clone());
    }
    assert!(ids.iter().all(|id| *id == ids[0]));
    client.post(&at(&run, "cancel"), &json!({})).await.expect(200);
    one(&events(client, &id(&run)).await, "input.received");
}

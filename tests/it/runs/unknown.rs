//! What no operation knows is refused, by every one of them: taken from the spec, so that none is forgotten.

use reqwest::Method;
use serde_json::json;

use super::{id, scripted, serve};
use crate::support::client::Client;
use crate::support::on_both_databases;

/// Things to name in paths: an agent, a run that has ended, a conversation.
async fn known(client: &Client) -> [(&'static str, String); 3] {
    let agent = scripted("known", &json!([{"text": "Hello."}]));
    client.post("/v1/agents", &agent).await.expect(201);
    let run = client.run_to_end("known", &json!({"input": "Hi"})).await;
    let conversation = client.post("/v1/conversations", &json!({"agent_id": "known"})).await;
    let conversation = conversation.expect(201)["conversation_id"].as_str().unwrap().to_owned();
    [
        ("{agent_id}", "known".to_owned()),
        ("{run_id}", id(&run)),
        ("{conversation_id}", conversation),
    ]
}

on_both_databases! {
    every_operation_refuses_a_query_parameter_that_it_does_not_know;
}

async fn every_operation_refuses_a_query_parameter_that_it_does_not_know(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let ids = known(client).await;
    let spec = client.get("/openapi.json").await.expect(200);
    let mut seen = 0;
    for (path, operations) in spec["paths"].as_object().unwrap() {
        if !path.starts_with("/v1/") {
            continue;
        }
        let path = ids.iter().fold(path.clone(), |path, (name, id)| path.replace(name, id));
        for method in operations.as_object().unwrap().keys() {
            let Ok(method) = Method::from_bytes(method.to_uppercase().as_bytes()) else { continue };
            let request = client.request(method.clone(), &format!("{path}?no_such=1"));
            let has_body = operations[method.as_str().to_lowercase()].get("requestBody").is_some();
            let request = if has_body { request.json(&json!({})) } else { request };
            let error = client.send(request).await.expect(422);
            assert_eq!(error["error"], "unknown_field", "{method} {path}: {error}");
            assert_eq!(error["details"]["field"], "no_such", "{method} {path}: {error}");
            seen += 1;
        }
    }
    assert!(seen >= 25, "only {seen} operations were tried");
}

//! Bounds (P16): an endless model against each limit; the overrun is one step at most.

use serde_json::{Value, json};

use super::{scripted, serve};
use crate::support::client::Client;
use crate::support::on_both_databases;

on_both_databases! {
    each_limit_ends_an_endless_run_with_its_reason_and_keeps_the_output;
    a_limit_of_a_run_only_goes_down;
    an_output_that_does_not_fit_is_told_once_and_then_fails;
}

/// A model that never stops calling tools.
fn endless() -> Value {
    let turn = json!({
        "text": "still at it", "usage": {"input_tokens": 60, "output_tokens": 40},
        "tool_calls": [{"tool": "echo", "arguments": {"text": "x"}}],
    });
    Value::Array(vec![turn; 200])
}

async fn end(client: &Client, config: &Value) -> Value {
    client.run_to_end("endless", &json!({"input": "Go", "config": config})).await
}

async fn each_limit_ends_an_endless_run_with_its_reason_and_keeps_the_output(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let mut agent = scripted("endless", &endless());
    agent["max_steps"] = json!(100);
    client.post("/v1/agents", &agent).await.expect(201);

    let run = end(client, &json!({"max_steps": 3})).await;
    assert_eq!(
        (&run["status"], &run["incomplete_reason"]),
        (&json!("incomplete"), &json!("max_steps"))
    );
    assert_eq!(run["steps_completed"], 3);
    assert_eq!(run["result"]["content"], "still at it", "what there was is kept");
    assert_eq!(run["error"], Value::Null);

    // 100 tokens a step: after the third the limit is passed, and the fourth is not begun.
    let run = end(client, &json!({"max_total_tokens": 250})).await;
    assert_eq!(run["incomplete_reason"], "max_total_tokens");
    assert_eq!(run["usage"]["total_tokens"], 300);

    // 60 × 2 + 40 × 10 micro-dollars a step, and a worst case of much more.
    let run = end(client, &json!({"max_cost_usd": 0.05, "max_output_tokens": 100})).await;
    assert_eq!(run["incomplete_reason"], "budget");
    assert!(run["steps_completed"].as_i64().expect("steps") > 10, "{run}");
    assert!(run["cost_usd"].as_f64().expect("cost") <= 0.05, "{run}");

    let slow = json!([{"text": "too late", "delay_ms": 60_000}]);
    let run = end(client, &json!({"timeout_seconds": 1, "script": slow})).await;
    assert_eq!(run["status"], "expired");
    let took = run["duration_ms"].as_i64().expect("duration");
    assert!((1_000..30_000).contains(&took), "{took} ms");

    let sleeper = json!([{"tool_calls": [{"tool": "sleep", "arguments": {"seconds": 60}}]}]);
    // Long enough for the call to be made.
    let run = end(client, &json!({"timeout_seconds": 4, "script": sleeper})).await;
    assert_eq!(run["status"], "expired");
    let steps = client.get(&format!("/v1/runs/{}/steps", super::id(&run))).await.expect(200);
    let call = &steps["data"][0]["tool_calls"][0];
    assert_eq!(call["status"], "failed", "no call stays without an answer: {steps}");
}

async fn a_limit_of_a_run_only_goes_down(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let mut agent = scripted("endless", &endless());
    agent["max_steps"] = json!(2);
    client.post("/v1/agents", &agent).await.expect(201);
    let run = end(client, &json!({"max_steps": 50})).await;
    assert_eq!((&run["max_steps"], &run["steps_completed"]), (&json!(2), &json!(2)));
}

async fn an_output_that_does_not_fit_is_told_once_and_then_fails(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let mut agent = scripted("endless", &json!([]));
    agent["output_schema"] = json!({"type": "object", "required": ["n"]});
    client.post("/v1/agents", &agent).await.expect(201);
    let run =
        end(client, &json!({"script": [{"text": "no"}, {"text": "```json\n{\"n\": 7}\n```"}]}))
            .await;
    assert_eq!(run["status"], "completed", "{run}");
    assert_eq!(run["result"]["output"], json!({"n": 7}));
    assert_eq!(run["steps_completed"], 2);
    let run =
        end(client, &json!({"script": [{"text": "no"}, {"text": "{}"}, {"text": "{\"n\": 1}"}]}))
            .await;
    assert_eq!(
        (&run["status"], &run["error"]["code"]),
        (&json!("failed"), &json!("output_invalid"))
    );
    assert_eq!(run["steps_completed"], 2, "told once");
}

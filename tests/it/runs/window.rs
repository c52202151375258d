//! The context window, as users see it: what does not fit fails with what to do about it, and the next
//! run works.

use serde_json::{Value, json};

use super::{id, scripted, serve};
use crate::support::client::{Client, log_of};
use crate::support::model_server::{ModelServer, Reply, openai};
use crate::support::on_both_databases;
use crate::support::server::Setup;

on_both_databases! {
    an_agent_s_limit_is_checked_kept_and_taken_back;
    a_turn_that_does_not_fit_fails_and_the_next_works;
    a_run_that_grows_beyond_its_limit_fails_and_keeps_what_it_has;
    without_a_limit_of_its_own_an_agent_has_what_its_model_takes_less_the_answer;
    a_prompt_that_the_provider_finds_too_long_fails_without_another_try;
}

/// A run that ended by its prompt, and no model was called for it.
fn assert_overflow(run: &Value) {
    assert_eq!(
        (&run["status"], &run["error"]["code"]),
        (&json!("failed"), &json!("context_overflow"))
    );
    assert_eq!(run["error"]["retryable"], false, "the same input will not fit either: {run}");
    assert_eq!(run["incomplete_reason"], Value::Null);
}

fn message(run: &Value) -> &str {
    run["error"]["message"].as_str().expect("a message")
}

async fn an_agent_s_limit_is_checked_kept_and_taken_back(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let agent = |limit: Value| {
        let mut agent = scripted("narrow", &json!([{"text": "Yes."}]));
        agent["max_context_tokens"] = limit;
        agent
    };
    for wrong in [json!(0), json!(100_000_001), json!(-1), json!(1.5), json!("8000")] {
        let refused = client.post("/v1/agents", &agent(wrong.clone())).await.expect(422);
        let problem = &refused["details"]["errors"][0];
        assert_eq!(problem["pointer"], "/max_context_tokens", "{wrong}: {refused}");
    }
    let made = client.post("/v1/agents", &agent(json!(100_000_000))).await.expect(201);
    assert_eq!(made["max_context_tokens"], 100_000_000);
    let path = "/v1/agents/narrow";
    let patched = client.patch(path, &json!({"max_context_tokens": 1})).await.expect(200);
    assert_eq!((&patched["max_context_tokens"], &patched["version"]), (&json!(1), &json!(2)));
    assert_overflow(&client.run_to_end("narrow", &json!({"input": "Hello?"})).await);
    let patched = client.patch(path, &json!({"max_context_tokens": null})).await.expect(200);
    assert_eq!(patched["max_context_tokens"], Value::Null);
    let run = client.run_to_end("narrow", &json!({"input": "Hello?"})).await;
    assert_eq!(run["status"], "completed", "{run}");
    let refused = json!({"input": "x", "config": {"max_context_tokens": 0}});
    let refused = client.post("/v1/agents/narrow/runs", &refused).await.expect(422);
    assert_eq!(refused["details"]["errors"][0]["pointer"], "/config/max_context_tokens");
}

async fn a_turn_that_does_not_fit_fails_and_the_next_works(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let mut agent = scripted("narrow", &json!([{"text": "Yes."}]));
    agent["max_context_tokens"] = json!(2_000);
    client.post("/v1/agents", &agent).await.expect(201);

    let long = "many words ".repeat(1_000);
    let run = client.run_to_end("narrow", &json!({"input": long})).await;
    assert_overflow(&run);
    assert!(message(&run).contains("2000 (max_context_tokens: send less, or raise it)"), "{run}");
    assert_eq!((&run["steps_completed"], &run["usage"]["total_tokens"]), (&json!(0), &json!(0)));
    let log = log_of(&client.events(&id(&run), 0).await.rest().await);
    let types: Vec<&str> = log.iter().map(|frame| frame.event.as_str()).collect();
    assert_eq!(types, ["run.queued", "run.running", "run.failed"], "no model was called");

    let run = client.run_to_end("narrow", &json!({"input": "Short."})).await;
    assert_eq!(run["result"]["content"], "Yes.");
    let log = log_of(&client.events(&id(&run), 0).await.rest().await);
    let started = log.iter().find(|frame| frame.event == "step.started").expect("a step").json();
    assert_eq!(started["dropped_messages"], 0, "there is no history");

    // A run's own limit only goes down.
    let with = |limit: u64| json!({"input": "Short.", "config": {"max_context_tokens": limit}});
    assert_overflow(&client.run_to_end("narrow", &with(20)).await);
    let run = json!({"input": long, "config": {"max_context_tokens": 50_000}});
    assert_overflow(&client.run_to_end("narrow", &run).await);
}

async fn a_run_that_grows_beyond_its_limit_fails_and_keeps_what_it_has(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let echo = json!({"tool": "echo", "arguments": {"text": "long ".repeat(500)}});
    let turn = json!({"text": "Still at it.", "tool_calls": [echo]});
    let mut agent = scripted("grows", &json!(vec![turn; 20]));
    agent["max_context_tokens"] = json!(5_000);
    client.post("/v1/agents", &agent).await.expect(201);
    let run = client.run_to_end("grows", &json!({"input": "Go"})).await;
    assert_overflow(&run);
    // A call and its result are some 1,300 tokens together.
    assert_eq!(run["steps_completed"], 4, "{run}");
    assert_eq!(run["result"]["content"], "Still at it.");
}

async fn without_a_limit_of_its_own_an_agent_has_what_its_model_takes_less_the_answer(url: String) {
    let yaml = "providers: {builtin: {context_tokens: 1000}}";
    let setup = Setup::new(url, yaml);
    let server = setup.start().await;
    let client = &server.client;
    let mut agent = scripted("small", &json!([{"text": "Yes."}]));
    agent["tools"] = json!([]);
    agent["max_output_tokens"] = json!(600);
    client.post("/v1/agents", &agent).await.expect(201);
    let with = |output: u64| {
        let input = "four ".repeat(450);
        json!({"input": input, "config": {"max_output_tokens": output}})
    };
    let run = client.run_to_end("small", &with(600)).await;
    assert_overflow(&run);
    assert!(message(&run).contains("may have 400 (what the model reads less"), "{run}");
    assert!(message(&run).contains("lower max_output_tokens"), "{run}");
    let run = client.run_to_end("small", &with(300)).await;
    assert_eq!(run["status"], "completed", "{run}");
}

async fn a_prompt_that_the_provider_finds_too_long_fails_without_another_try(url: String) {
    let models = ModelServer::start().await;
    let yaml = format!("providers: {{p: {{kind: openai, base_url: \"{}\"}}}}", models.base_url());
    let setup = Setup::new(url, yaml);
    let server = setup.start().await;
    let client: &Client = &server.client;
    let mut agent = scripted("a", &json!([]));
    agent["model"] = json!("p/m");
    client.post("/v1/agents", &agent).await.expect(201);
    let secret = "provider text with a secret";
    let too_long = json!({"code": "context_length_exceeded", "message": secret});
    models.script(vec![Reply::error(400, too_long, &[]), openai::text("Short enough.")]);

    let run = client.run_to_end("a", &json!({"input": "Much too long"})).await;
    assert_overflow(&run);
    assert!(message(&run).contains("send less") && !message(&run).contains("secret"), "{run}");
    assert_eq!(models.requests().len(), 1, "there is nothing to leave out");
    let log = log_of(&client.events(&id(&run), 0).await.rest().await);
    let types: Vec<&str> = log.iter().map(|frame| frame.event.as_str()).collect();
    assert_eq!(types, ["run.queued", "run.running", "step.started", "step.failed", "run.failed"]);

    let run = client.run_to_end("a", &json!({"input": "Short"})).await;
    assert_eq!(run["result"]["content"], "Short enough.");
}

//! Going on from a step of another run.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{add_agent, approve, at, call, count, events, id, one, parked, serve};
use crate::support::client::Client;
use crate::support::model_server::{ModelServer, openai};
use crate::support::on_both_databases;
use crate::support::server::Setup;
use crate::support::transcripts::assert_valid_openai;

on_both_databases! {
    a_fork_copies_the_steps_before_and_calls_nothing_for_them;
    a_fork_is_of_the_version_of_its_run_and_of_no_archived_agent;
    a_fork_takes_over_who_approved_what_and_what_was_said;
    a_fork_may_differ_in_its_config;
    what_cannot_be_forked_is_refused;
    a_repeated_fork_under_one_key_is_one_run;
    a_fork_behind_the_last_step_of_a_completed_run_has_nothing_left_to_do;
}

/// An agent on a model server, which calls `echo` in its first two steps.
async fn walker(url: String) -> (ModelServer, Setup) {
    let models = ModelServer::start().await;
    models.answer_with(|request| {
        assert_valid_openai(&request.body);
        let messages = request.body["messages"].as_array().expect("messages");
        let said = messages.iter().filter(|message| message["role"] == "assistant").count();
        match said {
            0 | 1 => openai::tool_calls(&[("echo", &format!("{{\"text\":\"s{said}\"}}"))]),
            _ => openai::text("That is all."),
        }
    });
    let base_url = models.base_url();
    let prices = "prices: { m: { input_usd_per_million: 2.0, output_usd_per_million: 10.0 } }";
    let yaml = format!("providers:\n  p: {{ kind: openai, base_url: \"{base_url}\", {prices} }}\n");
    (models, Setup::new(url, yaml))
}

async fn walked(client: &Client) -> Value {
    let tools = json!([{"type": "builtin", "name": "echo"}]);
    let agent = json!({"agent_id": "walker", "model": "p/m", "tools": tools});
    client.post("/v1/agents", &agent).await.expect(201);
    let body = json!({"input": "Go", "end_user_id": "u1", "metadata": {"k": "v"}});
    let run = client.run_to_end("walker", &body).await;
    assert_eq!((&run["status"], &run["steps_completed"]), (&json!("completed"), &json!(3)));
    run
}

fn ids(events: &[Value], field: &str) -> BTreeSet<String> {
    events.iter().filter_map(|event| event[field].as_str()).map(str::to_owned).collect()
}

async fn a_fork_copies_the_steps_before_and_calls_nothing_for_them(url: String) {
    let (models, setup) = walker(url).await;
    let server = setup.start().await;
    let client = &server.client;
    let run = walked(client).await;
    let original = events(client, &id(&run)).await;
    for from_step in 1..=4_i64 {
        let asked = models.requests().len();
        let mut body = json!({"from_step": from_step});
        if from_step == 4 {
            body["input"] = json!("And now?");
        }
        let answer = client.post(&at(&run, "fork"), &body).await;
        let location = answer.header("location").map(str::to_owned);
        let fork = answer.expect(202);
        assert_eq!(location, Some(format!("/v1/runs/{}", id(&fork))));
        assert_eq!(fork["forked_from_run_id"], run["run_id"]);
        assert_eq!((&fork["end_user_id"], &fork["metadata"]), (&json!("u1"), &json!({"k": "v"})));
        let fork = client.wait(&id(&fork)).await;
        assert_eq!(fork["status"], "completed", "{fork}");
        // One call of the model for each step from there on, and for each the whole transcript.
        let steps = if from_step == 4 { 4 } else { 3 };
        let requests = models.requests();
        assert_eq!(requests.len() - asked, (steps + 1 - from_step) as usize);
        let log = events(client, &id(&fork)).await;
        let seqs: Vec<i64> = log.iter().map(|event| event["seq"].as_i64().expect("seq")).collect();
        assert_eq!(seqs, (1..=log.len() as i64).collect::<Vec<_>>());
        assert_eq!(log[0]["forked_from_run_id"], run["run_id"]);
        for field in ["call_id", "message_id"] {
            let own = ids(&log, field);
            assert!(own.is_disjoint(&ids(&original, field)), "{field}s are its own");
        }
        let calls = log.iter().filter(|event| event["type"] == "tool_call.completed");
        assert!(calls.map(|event| event["result"].clone()).eq([json!("s0"), json!("s1")]));
        // What is copied cost nothing here.
        let usage = |event: &Value| event["usage"]["total_tokens"].as_i64().expect("tokens");
        let of_steps: Vec<i64> =
            log.iter().filter(|event| event["type"] == "step.completed").map(usage).collect();
        let free = of_steps.iter().take_while(|tokens| **tokens == 0).count();
        assert_eq!((free as i64, of_steps.len() as i64), (from_step - 1, steps));
        assert_eq!(usage(&fork), of_steps.iter().sum::<i64>());
        assert_eq!(fork["steps_completed"], steps);
        if from_step == 4 {
            let last =
                requests[requests.len() - 1].body["messages"].as_array().expect("messages").clone();
            assert_eq!(last[last.len() - 1], json!({"role": "user", "content": "And now?"}));
            assert!(fork["cost_usd"].as_f64() < run["cost_usd"].as_f64(), "{fork}");
        }
    }
    assert_eq!(events(client, &id(&run)).await, original, "the run itself is not changed");
}

async fn a_fork_is_of_the_version_of_its_run_and_of_no_archived_agent(url: String) {
    let (_models, setup) = walker(url).await;
    let server = setup.start().await;
    let client = &server.client;
    let run = walked(client).await;
    client.patch("/v1/agents/walker", &json!({"tools": []})).await.expect(200);
    let fork = client.post(&at(&run, "fork"), &json!({"from_step": 2})).await.expect(202);
    assert_eq!(fork["agent_version"], 1);
    let fork = client.wait(&id(&fork)).await;
    assert_eq!((&fork["status"], &fork["result"]), (&json!("completed"), &run["result"]));
    // A fork can be forked.
    let again = client.post(&at(&fork, "fork"), &json!({"from_step": 3})).await.expect(202);
    let again = client.wait(&id(&again)).await;
    assert_eq!(
        (&again["status"], &again["forked_from_run_id"]),
        (&json!("completed"), &fork["run_id"])
    );
    client.delete("/v1/agents/walker").await.expect(204);
    let refused = client.post(&at(&run, "fork"), &json!({"from_step": 2})).await.expect(409);
    assert_eq!(refused["error"], "agent_archived");
}

async fn a_fork_takes_over_who_approved_what_and_what_was_said(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let tools = json!([{"type": "builtin", "name": "echo", "requires_approval": true}]);
    let calls = json!([{"tool": "echo", "arguments": {"text": "x"}}]);
    add_agent(client, "a", tools, calls).await;
    let run = parked(client, "a").await;
    client.post(&at(&run, "messages"), &json!({"content": "Please."})).await.expect(202);
    // Its first step is not over: it can be made anew only.
    let refused = client.post(&at(&run, "fork"), &json!({"from_step": 2})).await.expect(422);
    assert_eq!(refused["details"]["errors"][0]["message"], "must be 1 to 1");
    client.post(&at(&run, "approvals"), &approve(&call(&run, "echo"))).await.expect(202);
    let run = client.wait(&id(&run)).await;
    // The message was read in step 2: before it, it was not said.
    for (from_step, heard) in [(2, 0), (3, 1)] {
        let body = json!({"from_step": from_step, "input": [{"role": "user", "content": "More."}]});
        let fork = client.post(&at(&run, "fork"), &body).await.expect(202);
        assert_eq!(fork["required_actions"], json!([]));
        let fork = client.wait(&id(&fork)).await;
        assert_eq!(fork["status"], "completed", "{fork}");
        let log = events(client, &id(&fork)).await;
        one(&log, "approval.decided");
        assert_eq!(one(&log, "tool_call.completed")["result"], "x");
        assert_eq!(count(&log, "input.applied"), heard + 1);
    }
    let fork = client.post(&at(&run, "fork"), &json!({"from_step": 1})).await.expect(202);
    let fork = client.wait(&id(&fork)).await;
    assert_eq!(fork["status"], "requires_action", "it asks anew: {fork}");
    assert_ne!(
        call(&fork, "echo"),
        one(&events(client, &id(&run)).await, "approval.decided")["call_id"]
    );
}

async fn a_fork_may_differ_in_its_config(url: String) {
    let (_models, setup) = walker(url).await;
    let server = setup.start().await;
    let client = &server.client;
    let run = walked(client).await;
    let body = json!({"from_step": 3, "config": {"system_prompt": "Be kind.", "max_steps": 3}});
    let fork = client.post(&at(&run, "fork"), &body).await.expect(202);
    assert_eq!(fork["max_steps"], 3);
    let fork = client.wait(&id(&fork)).await;
    assert_eq!(fork["status"], "completed", "{fork}");
    // What was changed once stays changed in its own forks, and the copied steps count.
    let body = json!({"from_step": 4, "input": "More."});
    let next = client.post(&at(&fork, "fork"), &body).await.expect(202);
    let next = client.wait(&id(&next)).await;
    assert_eq!((&next["max_steps"], &next["incomplete_reason"]), (&json!(3), &json!("max_steps")));
}

async fn what_cannot_be_forked_is_refused(url: String) {
    let (_models, setup) = walker(url).await;
    let server = setup.start().await;
    let client = &server.client;
    let run = walked(client).await;
    for (body, pointer) in [
        (json!({"from_step": 0}), "/from_step"),
        (json!({"from_step": 5}), "/from_step"),
        (json!({"from_step": "2"}), "/from_step"),
        (json!({}), "/from_step"),
        (json!({"from_step": 1, "input": ""}), "/input"),
        (
            json!({"from_step": 1, "input": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]}),
            "/input",
        ),
        (json!({"from_step": 1, "config": {"tools": ["nowhere"]}}), "/config/tools/0"),
        (json!({"from_step": 1, "config": []}), "/config"),
    ] {
        let refused = client.post(&at(&run, "fork"), &body).await.expect(422);
        assert_eq!(refused["details"]["errors"][0]["pointer"], pointer, "{refused}");
    }
    let nowhere = "/v1/runs/run_019a0c5e7d2a7c3f8b1e2d3c4b5a6978/fork";
    client.post(nowhere, &json!({"from_step": 1})).await.expect(404);
    client.post(nowhere, &json!({"nonsense": 1})).await.expect(404);
}

async fn a_repeated_fork_under_one_key_is_one_run(url: String) {
    let (_models, setup) = walker(url).await;
    let server = setup.start().await;
    let client = &server.client;
    let run = walked(client).await;
    let forks = (0..8).map(|_| {
        let request = client.request(reqwest::Method::POST, &at(&run, "fork"));
        client.send(request.header("Idempotency-Key", "once").json(&json!({"from_step": 2})))
    });
    let answers = futures_util::future::join_all(forks).await;
    let ids: BTreeSet<String> = answers.into_iter().map(|answer| id(&answer.expect(202))).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
}

async fn a_fork_behind_the_last_step_of_a_completed_run_has_nothing_left_to_do(url: String) {
    let (models, setup) = walker(url).await;
    let server = setup.start().await;
    let client = &server.client;
    let run = walked(client).await;
    let asked = models.requests().len();
    let fork = client.post(&at(&run, "fork"), &json!({"from_step": 4})).await.expect(202);
    let end = client.wait(&id(&fork)).await;
    assert_eq!((&end["status"], &end["error"]), (&json!("completed"), &Value::Null), "{end}");
    assert_eq!((&end["result"], &end["steps_completed"]), (&run["result"], &json!(3)));
    assert_eq!(end["usage"]["total_tokens"], 0, "{end}");
    assert_eq!(models.requests().len(), asked, "nobody was asked again");
    let log = events(client, &id(&fork)).await;
    one(&log, "run.running");
}

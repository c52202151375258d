//! Approvals: who may make a call, with what, and until when.

use serde_json::{Value, json};

use super::{add_agent, approve, at, call, count, events, id, one, parked, serve};
use crate::support::client::Client;
use crate::support::model_server::{ModelServer, openai};
use crate::support::on_both_databases;
use crate::support::server::{Server, Setup};

on_both_databases! {
    an_approved_call_is_made_and_a_denied_one_is_told_to_the_model;
    the_arguments_that_a_person_edits_are_those_that_are_executed_and_the_model_is_told;
    arguments_that_do_not_fit_the_tool_are_refused_and_nothing_is_decided;
    the_first_decision_counts_and_the_same_again_is_fine_even_after_the_end;
    of_decisions_at_the_same_time_one_wins;
    nobody_is_asked_about_a_call_that_cannot_be_made;
    open_approvals_of_all_runs_are_an_inbox;
    a_repeated_request_under_one_key_is_the_same_decision;
    a_parked_run_survives_restarts_and_is_cancelled_with_its_question;
    an_approved_call_is_made_while_another_call_of_its_step_still_runs;
    an_approval_expires_in_time_while_another_call_of_its_step_still_runs;
}

fn echo() -> Value {
    json!([{"type": "builtin", "name": "echo", "requires_approval": true}])
}

fn says(text: &str) -> Value {
    json!([{"tool": "echo", "arguments": {"text": text}}])
}

async fn an_approved_call_is_made_and_a_denied_one_is_told_to_the_model(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let calls = json!([{"tool": "echo", "arguments": {"text": "yes"}}, {"tool": "echo", "arguments": {"text": "no"}}]);
    add_agent(client, "a", echo(), calls).await;
    let run = parked(client, "a").await;
    assert!(run["instructions"].as_str().expect("words").contains("/approvals"), "{run}");
    let [yes, no] = [0, 1].map(|i| run["required_actions"][i].clone());
    assert_eq!(
        (yes["type"].as_str(), yes["arguments"]["text"].as_str()),
        (Some("approval"), Some("yes"))
    );
    let approvals = at(&run, "approvals");
    let approved = client.post(&approvals, &approve(yes["call_id"].as_str().expect("id"))).await;
    let run = approved.expect(202);
    // The other one is still to be decided, and nothing runs before.
    assert_eq!(
        (run["status"].as_str(), run["required_actions"].as_array().map(Vec::len)),
        (Some("requires_action"), Some(1))
    );
    let deny = json!({"call_id": no["call_id"], "decision": "deny", "reason": "Too dear."});
    client.post(&approvals, &deny).await.expect(202);
    let run = client.wait(&id(&run)).await;
    assert_eq!(
        (run["status"].as_str(), run["result"]["content"].as_str()),
        (Some("completed"), Some("Done."))
    );
    let log = events(client, &id(&run)).await;
    assert_eq!(one(&log, "tool_call.completed")["result"], "yes");
    let failed = one(&log, "tool_call.failed");
    assert_eq!(failed["error"], "This call was denied: Too dear.");
    assert_eq!((count(&log, "tool_call.started"), count(&log, "approval.decided")), (1, 2));
    let place = |t: &str| log.iter().position(|event| event["type"] == t).expect("the event");
    assert!(place("approval.decided") < place("tool_call.started"), "decided before anything runs");
    let steps = client.get(&at(&run, "steps")).await.expect(200);
    let statuses = [0, 1].map(|i| steps["data"][0]["tool_calls"][i]["status"].clone());
    assert_eq!(statuses, ["completed", "failed"]);
}

async fn the_arguments_that_a_person_edits_are_those_that_are_executed_and_the_model_is_told(
    url: String,
) {
    let models = ModelServer::start().await;
    models.answer_with(|request| match request.body["messages"].as_array().map(Vec::len) {
        Some(1) => openai::tool_calls(&[("echo", "{\"text\":\"mine\"}")]),
        _ => openai::text("I see."),
    });
    let base_url = models.base_url();
    let yaml = format!("providers:\n  p: {{ kind: openai, base_url: \"{base_url}\" }}\n");
    let setup = Setup::new(url, yaml);
    let server = setup.start().await;
    let client = &server.client;
    let agent = json!({"agent_id": "a", "model": "p/m", "tools": echo()});
    client.post("/v1/agents", &agent).await.expect(201);
    let run = parked(client, "a").await;
    let decision = json!({"call_id": call(&run, "echo"), "decision": "approve", "arguments": {"text": "yours"}});
    client.post(&at(&run, "approvals"), &decision).await.expect(202);
    let run = client.wait(&id(&run)).await;
    assert_eq!(run["status"], "completed", "{run}");
    let log = events(client, &id(&run)).await;
    assert_eq!(one(&log, "approval.decided")["arguments"], json!({"text": "yours"}));
    assert_eq!(one(&log, "tool_call.completed")["result"], "yours");
    let requests = models.requests();
    let told = &requests[1].body["messages"];
    // What the model said stays as it said it; the result tells what became of it.
    assert_eq!(told[1]["tool_calls"][0]["function"]["arguments"], "{\"text\":\"mine\"}");
    let result = told[2]["content"].as_str().expect("a result");
    let changed = "[A person changed the arguments of this call to:] {\"text\":\"yours\"}\nyours";
    assert!(result.ends_with(changed), "{result}");
}

async fn arguments_that_do_not_fit_the_tool_are_refused_and_nothing_is_decided(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_agent(client, "a", echo(), says("x")).await;
    let run = parked(client, "a").await;
    let approvals = at(&run, "approvals");
    let call_id = call(&run, "echo");
    for (wrong, pointer) in [
        (
            json!({"call_id": call_id, "decision": "approve", "arguments": {"text": 7}}),
            "/arguments/text",
        ),
        (json!({"call_id": call_id, "decision": "approve", "arguments": "x"}), "/arguments"),
        (json!({"call_id": call_id, "decision": "deny", "arguments": {"text": "y"}}), "/arguments"),
        (json!({"call_id": call_id, "decision": "deny", "reason": "x".repeat(4_097)}), "/reason"),
        (json!({"call_id": call_id, "decision": "maybe"}), "/decision"),
        (json!({"call_id": call_id}), "/decision"),
    ] {
        let refused = client.post(&approvals, &wrong).await.expect(422);
        assert_eq!(refused["details"]["errors"][0]["pointer"], pointer, "{refused}");
    }
    let results = at(&run, "tool-results");
    client.post(&results, &super::result(&call_id, json!(1))).await.expect(422);
    for unknown in
        ["call_019a0c5e7d2a7c3f8b1e2d3c4b5a6978", "x", "run_019a0c5e7d2a7c3f8b1e2d3c4b5a6978"]
    {
        client.post(&approvals, &approve(unknown)).await.expect(404);
        client.post(&results, &super::result(unknown, json!(1))).await.expect(404);
    }
    let run = client.get(&format!("/v1/runs/{}", id(&run))).await.expect(200);
    assert_eq!(call(&run, "echo"), call_id, "it is still to be decided");
    client.post(&approvals, &approve(&call_id)).await.expect(202);
    assert_eq!(client.wait(&id(&run)).await["status"], "completed");
}

async fn the_first_decision_counts_and_the_same_again_is_fine_even_after_the_end(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_agent(client, "a", echo(), says("x")).await;
    let run = parked(client, "a").await;
    let approvals = at(&run, "approvals");
    let call_id = call(&run, "echo");
    let deny = json!({"call_id": call_id, "decision": "deny"});
    let edited = json!({"call_id": call_id, "decision": "approve", "arguments": {"text": "y"}});
    let spelt_out = json!({"call_id": call_id, "decision": "approve", "arguments": {"text": "x"}});
    client.post(&approvals, &approve(&call_id)).await.expect(202);
    for ended in [false, true] {
        if ended {
            assert_eq!(client.wait(&id(&run)).await["status"], "completed");
        }
        for same in [&approve(&call_id), &spelt_out] {
            client.post(&approvals, same).await.expect(202);
        }
        for other in [&deny, &edited] {
            let refused = client.post(&approvals, other).await.expect(409);
            assert_eq!(refused["error"], "already_decided", "{refused}");
            assert_eq!(refused["details"]["call_id"], call_id.as_str());
        }
    }
    let log = events(client, &id(&run)).await;
    one(&log, "approval.decided");
}

async fn of_decisions_at_the_same_time_one_wins(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_agent(client, "a", echo(), says("x")).await;
    let (mut approved, mut denied) = (0, 0);
    for _ in 0..15 {
        let run = parked(client, "a").await;
        let (approvals, call_id) = (at(&run, "approvals"), call(&run, "echo"));
        let deny = json!({"call_id": call_id, "decision": "deny"});
        let approve = approve(&call_id);
        let bodies = [&approve, &deny, &approve, &deny];
        let answers = bodies.map(|body| client.post(&approvals, body));
        let answers = futures_util::future::join_all(answers).await;
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        let run = client.wait(&id(&run)).await;
        assert_eq!(run["status"], "completed", "{run}");
        let log = events(client, &id(&run)).await;
        let decision = one(&log, "approval.decided")["decision"].clone();
        if decision == "approve" {
            approved += 1;
            assert_eq!(statuses, [202, 409, 202, 409]);
            assert_eq!(one(&log, "tool_call.completed")["result"], "x");
        } else {
            denied += 1;
            assert_eq!(statuses, [409, 202, 409, 202]);
            assert_eq!(count(&log, "tool_call.started"), 0);
        }
    }
    println!("{approved} approved, {denied} denied");
}

async fn nobody_is_asked_about_a_call_that_cannot_be_made(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let calls =
        json!([{"tool": "echo", "arguments": {"text": 7}}, {"tool": "nowhere", "arguments": {}}]);
    add_agent(client, "a", echo(), calls).await;
    let run = client.run_to_end("a", &json!({"input": "Go"})).await;
    assert_eq!(run["status"], "completed", "{run}");
    let log = events(client, &id(&run)).await;
    assert_eq!((count(&log, "tool_call.failed"), count(&log, "approval.requested")), (2, 0));
}

async fn open_approvals_of_all_runs_are_an_inbox(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_agent(client, "a", echo(), says("x")).await;
    let mut runs = Vec::new();
    for _ in 0..3 {
        runs.push(parked(client, "a").await);
    }
    let inbox = client.get("/v1/approvals?limit=2").await.expect(200);
    assert_eq!(
        (inbox["data"].as_array().map(Vec::len), &inbox["has_more"]),
        (Some(2), &json!(true))
    );
    let newest = &inbox["data"][0];
    assert_eq!(newest["run_id"], runs[2]["run_id"]);
    assert_eq!((&newest["type"], &newest["agent_id"]), (&json!("approval"), &json!("a")));
    assert_eq!(newest["arguments"], json!({"text": "x"}));
    assert!(newest["created_at"].is_string() && newest["expires_at"].is_string());
    let after = inbox["last_id"].as_str().expect("an id");
    let rest = client.get(&format!("/v1/approvals?after={after}")).await.expect(200);
    assert_eq!(rest["data"][0]["run_id"], runs[0]["run_id"]);
    assert_eq!(client.get("/v1/approvals?after=x").await.expect(400)["error"], "invalid_cursor");
    // Decided, denied, cancelled: gone.
    client.post(&at(&runs[0], "approvals"), &approve(&call(&runs[0], "echo"))).await.expect(202);
    let deny = json!({"call_id": call(&runs[1], "echo"), "decision": "deny"});
    client.post(&at(&runs[1], "approvals"), &deny).await.expect(202);
    client.post(&at(&runs[2], "cancel"), &json!({})).await.expect(200);
    let inbox = client.get("/v1/approvals").await.expect(200);
    assert_eq!((&inbox["data"], &inbox["first_id"]), (&json!([]), &Value::Null));
}

async fn a_repeated_request_under_one_key_is_the_same_decision(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    add_agent(client, "a", echo(), says("x")).await;
    let run = parked(client, "a").await;
    let approvals = at(&run, "approvals");
    let send = async |body: &Value| {
        let request = client.request(reqwest::Method::POST, &approvals).json(body);
        client.send(request.header("Idempotency-Key", "once")).await
    };
    // What is refused binds no key.
    send(&approve("call_019a0c5e7d2a7c3f8b1e2d3c4b5a6978")).await.expect(404);
    let decision = approve(&call(&run, "echo"));
    let first = send(&decision).await;
    assert_eq!((first.status, first.header("Idempotent-Replayed")), (202, None));
    client.wait(&id(&run)).await;
    let again = send(&decision).await;
    assert_eq!((again.status, again.header("Idempotent-Replayed")), (202, Some("true")));
    assert_eq!(again.body["status"], "completed", "the run as it is today");
    let other = json!({"call_id": call(&run, "echo"), "decision": "deny"});
    assert_eq!(send(&other).await.expect(422)["error"], "idempotency_key_reused");
}

async fn a_parked_run_survives_restarts_and_is_cancelled_with_its_question(url: String) {
    let (setup, server) = serve(url).await;
    add_agent(&server.client, "a", echo(), says("x")).await;
    let run = parked(&server.client, "a").await;
    server.kill();
    let server = setup.start().await;
    let again = server.client.get(&format!("/v1/runs/{}", id(&run))).await.expect(200);
    assert_eq!(again["required_actions"], run["required_actions"]);
    assert!(server.terminate().await.success());
    let server = setup.start().await;
    let client = &server.client;
    let ended = client.post(&at(&run, "cancel"), &json!({})).await.expect(200);
    assert_eq!((&ended["status"], &ended["required_actions"]), (&json!("cancelled"), &json!([])));
    let late = client.post(&at(&run, "approvals"), &approve(&call(&run, "echo"))).await;
    assert_eq!(late.expect(409)["error"], "run_ended");
    let log = events(client, &id(&run)).await;
    let failed = one(&log, "tool_call.failed");
    assert_eq!(
        (&failed["synthetic"], &log[log.len() - 1]["type"]),
        (&json!(true), &json!("run.cancelled"))
    );
}

/// Echoes with somebody's leave, which may be given for so long, and sleeps for longer than anything here
/// takes.
async fn beside_a_long_call(url: String, leave_seconds: u64) -> (Setup, Server, String) {
    let (setup, server) = serve(url).await;
    let tools = json!([
        {"type": "builtin", "name": "echo", "requires_approval": true,
            "approval_timeout_seconds": leave_seconds},
        {"type": "builtin", "name": "sleep", "timeout_seconds": 300}]);
    let calls = json!([{"tool": "sleep", "arguments": {"seconds": 120}},
        {"tool": "echo", "arguments": {"text": "x"}}]);
    add_agent(&server.client, "a", tools, calls).await;
    let run_id = super::start(&server.client, "a").await;
    (setup, server, run_id)
}

/// The run works on: its long call has no answer yet.
async fn assert_still_sleeps(client: &Client, run_id: &str) {
    let run = client.get(&format!("/v1/runs/{run_id}")).await.expect(200);
    assert_eq!((&run["status"], &run["required_actions"]), (&json!("running"), &json!([])));
    let steps = client.get(&format!("/v1/runs/{run_id}/steps")).await.expect(200);
    assert_eq!(steps["data"][0]["tool_calls"][0]["status"], "running", "{steps}");
    let ended = client.post(&format!("/v1/runs/{run_id}/cancel"), &json!({})).await;
    assert!([200, 202].contains(&ended.status), "{}", ended.status);
}

async fn an_approved_call_is_made_while_another_call_of_its_step_still_runs(url: String) {
    let (_setup, server, run_id) = beside_a_long_call(url, 600).await;
    let client = &server.client;
    let mut stream = client.events(&run_id, 0).await;
    let asked = stream.until("approval.requested").await.json();
    let approvals = format!("/v1/runs/{run_id}/approvals");
    let call_id = asked["call_id"].as_str().expect("call_id");
    client.post(&approvals, &approve(call_id)).await.expect(202);
    let done = stream.until("tool_call.completed").await.json();
    assert_eq!((&done["tool"], &done["result"]), (&json!("echo"), &json!("x")));
    assert_still_sleeps(client, &run_id).await;
}

async fn an_approval_expires_in_time_while_another_call_of_its_step_still_runs(url: String) {
    let (_setup, server, run_id) = beside_a_long_call(url, 1).await;
    let client = &server.client;
    let mut stream = client.events(&run_id, 0).await;
    let expired = stream.until("approval.expired").await.json();
    assert!(expired["expires_at"].as_str() <= expired["created_at"].as_str(), "{expired}");
    let failed = stream.until("tool_call.failed").await.json();
    assert_eq!((&failed["tool"], &failed["call_id"]), (&json!("echo"), &expired["call_id"]));
    assert_still_sleeps(client, &run_id).await;
}

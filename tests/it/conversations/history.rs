//! A conversation can never be bricked: whatever becomes of a run, the next turn's model reads a valid
//! history, with every call answered.

use serde_json::{Value, json};

use super::{
    call, conversation, get, id, messages, pairs, parked, prompt, said, say, serve,
    serve_with_model, start, turn,
};
use crate::support::model_server::{Reply, anthropic, openai};
use crate::support::on_both_databases;
use crate::support::transcripts::{assert_valid_anthropic, assert_valid_openai};

on_both_databases! {
    a_run_that_is_cancelled_amid_its_calls_leaves_an_answer_for_each;
    a_parked_run_that_is_cancelled_leaves_an_answer_for_its_call;
    a_run_that_expires_amid_its_calls_leaves_an_answer_for_each;
    a_run_that_fails_leaves_its_question_and_the_next_works;
    what_a_run_is_told_on_its_way_enters_the_history;
    a_fork_of_a_turn_reads_what_its_turn_read_and_is_in_no_conversation;
    a_restart_in_the_middle_of_a_turn_loses_and_doubles_no_message;
    on_the_anthropic_wire_every_history_is_valid_too;
}

const SLEEPS: &[(&str, &str)] = &[
    ("echo", "{\"text\": \"blue\"}"),
    ("sleep", "{\"seconds\": 60}"),
    ("sleep", "{\"seconds\": 59}"),
];

/// The next turn is answered, and its model read a valid history.
async fn assert_goes_on(
    client: &crate::support::client::Client,
    models: &crate::support::model_server::ModelServer,
    talk: &str,
) {
    let asked = models.requests().len();
    models.script(vec![openai::text("Here I am.")]);
    let run = say(client, talk, "Still there?").await;
    assert_eq!(run["result"]["content"], "Here I am.");
    let request = &models.requests()[asked];
    assert_valid_openai(&request.body);
    assert_eq!(prompt(request).last().expect("a message").1, "Still there?");
    assert_eq!(get(client, talk).await["active_run_id"], Value::Null);
}

async fn a_run_that_is_cancelled_amid_its_calls_leaves_an_answer_for_each(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    models.script(vec![openai::tool_calls(SLEEPS)]);
    let run_id = start(client, &talk, &json!({"input": "Sleep."})).await;
    client.events(&run_id, 0).await.until("tool_call.completed").await;
    client.post(&format!("/v1/runs/{run_id}/cancel"), &Value::Null).await;
    assert_eq!(client.wait(&run_id).await["status"], "cancelled");
    let list = messages(client, &talk).await;
    let roles: Vec<&str> = list.iter().filter_map(|m| m["role"].as_str()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "tool", "tool"]);
    assert_eq!((&list[2]["content"], &list[2]["is_error"]), (&json!("blue"), &Value::Null));
    for (asked, answer) in list[1]["tool_calls"].as_array().expect("calls").iter().zip(&list[2..]) {
        assert_eq!((&asked["call_id"], &asked["tool"]), (&answer["call_id"], &answer["tool"]));
    }
    assert_eq!(list[3]["is_error"], true);
    assert_goes_on(client, &models, &talk).await;
}

async fn a_parked_run_that_is_cancelled_leaves_an_answer_for_its_call(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    models.script(vec![openai::tool_calls(&[("ask", "{}"), ("echo", "{\"text\": \"x\"}")])]);
    let mine = json!([{"name": "ask", "description": "Mine.", "parameters": {}}]);
    let body = json!({"input": "Ask.", "config": {"client_tools": mine}});
    let run = turn(client, &talk, &body).await;
    assert_eq!(run["status"], "requires_action");
    assert_eq!(messages(client, &talk).await.len(), 1, "a step's messages come when it is over");
    let path = format!("/v1/runs/{}/cancel", id(&run));
    assert_eq!(client.post(&path, &Value::Null).await.expect(200)["status"], "cancelled");
    let list = messages(client, &talk).await;
    assert_eq!(list.len(), 4);
    assert_eq!(
        (&list[2]["call_id"], &list[2]["is_error"]),
        (&json!(call(&run, "ask")), &json!(true))
    );
    assert_eq!(list[3]["content"], "x");
    assert_goes_on(client, &models, &talk).await;
}

async fn a_run_that_expires_amid_its_calls_leaves_an_answer_for_each(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    // Long enough for the calls to be made.
    let talk = conversation(client, json!({"parameters": {"timeout_seconds": 4}})).await;
    models.script(vec![openai::tool_calls(SLEEPS)]);
    let run = turn(client, &talk, &json!({"input": "Sleep."})).await;
    assert_eq!(run["status"], "expired");
    assert_eq!(messages(client, &talk).await.len(), 5);
    assert_goes_on(client, &models, &talk).await;
}

async fn a_run_that_fails_leaves_its_question_and_the_next_works(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    models.script(vec![
        Reply::status(400),
        openai::tool_calls(&[("echo", "{\"text\": \"x\"}")]),
        Reply::status(400),
    ]);
    for (input, left) in [("One", 1), ("Two", 4)] {
        let run = turn(client, &talk, &json!({"input": input})).await;
        assert_eq!(
            (&run["status"], &run["error"]["code"]),
            (&json!("failed"), &json!("model_error"))
        );
        assert_eq!(messages(client, &talk).await.len(), left);
    }
    assert_goes_on(client, &models, &talk).await;
    let expected = [
        ("user", "One"),
        ("user", "Two"),
        ("tool", "x"),
        ("user", "Still there?"),
        ("assistant", "Here I am."),
    ];
    let list = said(&messages(client, &talk).await);
    let list: Vec<_> = list.into_iter().filter(|(_, text)| !text.is_empty()).collect();
    assert_eq!(list, pairs(&expected));
}

async fn what_a_run_is_told_on_its_way_enters_the_history(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    models.script(vec![openai::tool_calls(&[("ask", "{}")]), openai::text("Done.")]);
    let mine = json!([{"name": "ask", "description": "Mine.", "parameters": {}}]);
    let config = json!({"client_tools": mine});
    let run = turn(client, &talk, &json!({"input": "Ask.", "config": config})).await;
    let steer = format!("/v1/runs/{}/messages", id(&run));
    let told = client.post(&steer, &json!({"content": "Be brief."})).await.expect(202);
    let body = json!({"role": "tool", "content": "Fine.", "call_id": call(&run, "ask")});
    let named = client.post(&super::at(&talk, "messages"), &body).await.expect(201);
    client.wait(&id(&run)).await;
    let list = messages(client, &talk).await;
    let expected = [
        ("user", "Ask."),
        ("assistant", ""),
        ("tool", "Fine."),
        ("user", "Be brief."),
        ("assistant", "Done."),
    ];
    assert_eq!(said(&list), pairs(&expected));
    assert_eq!(list[2]["message_index"], named["message_index"]);
    assert_eq!(list[3]["message_id"], told["message_id"]);
    // Told, and cancelled before its model could read it: the next turn's does.
    models.script(vec![openai::tool_calls(&[("ask", "{}")])]);
    let run = turn(client, &talk, &json!({"input": "Again.", "config": config})).await;
    let steer = format!("/v1/runs/{}/messages", id(&run));
    client.post(&steer, &json!({"content": "Never mind."})).await.expect(202);
    client.post(&format!("/v1/runs/{}/cancel", id(&run)), &Value::Null).await.expect(200);
    let list = messages(client, &talk).await;
    assert_eq!(list.last().expect("a message")["content"], "Never mind.");
    assert_goes_on(client, &models, &talk).await;
}

async fn a_fork_of_a_turn_reads_what_its_turn_read_and_is_in_no_conversation(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    models.script(vec![openai::text("Blue."), openai::text("Green."), openai::text("Red.")]);
    say(client, &talk, "One colour.").await;
    let second = say(client, &talk, "Another.").await;
    say(client, &talk, "A third.").await;
    models.script(vec![openai::text("Yellow.")]);
    let path = format!("/v1/runs/{}/fork", id(&second));
    let fork = client.post(&path, &json!({"from_step": 1})).await.expect(202);
    assert_eq!(fork["conversation_id"], Value::Null);
    assert_eq!(client.wait(&id(&fork)).await["result"]["content"], "Yellow.");
    let expected = [("user", "One colour."), ("assistant", "Blue."), ("user", "Another.")];
    assert_eq!(prompt(&models.requests()[3]), pairs(&expected));
    assert_eq!(messages(client, &talk).await.len(), 6, "a fork says nothing in it");
    let list = client.get(&format!("/v1/runs?conversation_id={talk}")).await.expect(200);
    assert_eq!(list["data"].as_array().map(Vec::len), Some(3));
}

async fn a_restart_in_the_middle_of_a_turn_loses_and_doubles_no_message(url: String) {
    let (setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    say(client, &talk, "Hello?").await;
    let run = parked(client, &talk, &["ask"]).await;
    let waits = start(client, &talk, &json!({"input": "Next.", "on_busy": "enqueue"})).await;
    server.kill();
    let server = setup.start().await;
    let client = &server.client;
    let now = get(client, &talk).await;
    assert_eq!((&now["active_run_id"], &now["queued_runs"]), (&run["run_id"], &json!(1)));
    super::release(client, &run).await;
    client.wait(&waits).await;
    let expected = [
        ("user", "Hello?"),
        ("assistant", "Yes."),
        ("user", "Ask."),
        ("assistant", "Wait."),
        ("tool", "Fine."),
        ("assistant", "Done."),
        ("user", "Next."),
        ("assistant", "Yes."),
    ];
    assert_eq!(said(&messages(client, &talk).await), pairs(&expected));
}

async fn on_the_anthropic_wire_every_history_is_valid_too(url: String) {
    let (server, models) = serve_with_model(url, "anthropic").await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let post = async |role: &str, content: &str| {
        let body = json!({"role": role, "content": content});
        client.post(&super::at(&talk, "messages"), &body).await.expect(201);
    };
    // Begun by the agent, and with instructions between.
    post("assistant", "Hello! How can I help?").await;
    models.script(vec![
        anthropic::text("Of course."),
        Reply::status(400),
        anthropic::tool_calls(SLEEPS),
        anthropic::tool_calls(&[("echo", "{\"text\": \"x\"}")]),
        anthropic::text("Done."),
        anthropic::text("Yes."),
    ]);
    say(client, &talk, "Help me.").await;
    post("system", "Be kind.").await;
    post("assistant", "By the way:").await;
    post("assistant", "it rains.").await;
    assert_eq!(turn(client, &talk, &json!({"input": "Fail."})).await["status"], "failed");
    let run_id = start(client, &talk, &json!({"input": "Sleep."})).await;
    client.events(&run_id, 0).await.until("tool_call.completed").await;
    client.post(&format!("/v1/runs/{run_id}/cancel"), &Value::Null).await;
    assert_eq!(client.wait(&run_id).await["status"], "cancelled");
    say(client, &talk, "Echo.").await;
    post("user", "One.").await;
    post("user", "Two.").await;
    assert_eq!(turn(client, &talk, &json!({})).await["status"], "completed");
    let requests = models.requests();
    assert_eq!(requests.len(), 6);
    for request in requests {
        assert_valid_anthropic(&request.body);
    }
}

//! Turns: what a model reads of those before, and what becomes of what it is told.

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    agent, assert_refused, at, conversation, get, id, messages, pairs, prompt, said, say, serve,
    serve_with_model, start, turn,
};
use crate::support::model_server::openai;
use crate::support::on_both_databases;

on_both_databases! {
    the_second_turn_s_model_reads_the_first;
    a_turn_without_an_input_answers_what_is_there;
    a_turn_without_an_input_needs_something_to_answer;
    a_run_of_the_agent_may_name_its_conversation;
    instructions_are_appended_and_parameters_are_defaults_below_the_limits;
    a_turn_may_be_streamed_and_waited_for;
    what_is_wrong_with_a_turn_is_told_with_its_place;
    the_agent_s_version_is_that_of_each_turn;
}

async fn the_second_turn_s_model_reads_the_first(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    models.script(vec![
        openai::tool_calls(&[("echo", "{\"text\": \"blue\"}")]),
        openai::text("It is blue."),
        openai::text("You are welcome."),
    ]);
    say(client, &talk, "Which colour?").await;
    let input = json!([
        {"role": "system", "content": "Be polite."},
        {"role": "user", "content": "Thank"},
        {"role": "agent", "content": "Hm?"},
        {"role": "user", "content": [{"type": "text", "text": "you."}]},
    ]);
    let run = turn(client, &talk, &json!({"input": input})).await;
    assert_eq!(run["result"]["content"], "You are welcome.");
    assert_eq!(run["conversation_id"], talk);
    let sent = prompt(&models.requests()[2]);
    let (roles, texts): (Vec<&str>, Vec<&str>) =
        sent.iter().map(|(role, text)| (role.as_str(), text.as_str())).unzip();
    assert_eq!(
        roles,
        ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "user"]
    );
    assert_eq!((texts[1], texts[3], texts[4]), ("Which colour?", "blue", "It is blue."));
    let list = messages(client, &talk).await;
    let roles: Vec<&str> = list.iter().filter_map(|m| m["role"].as_str()).collect();
    assert_eq!(
        roles,
        [
            "user",
            "assistant",
            "tool",
            "assistant",
            "system",
            "user",
            "assistant",
            "user",
            "assistant"
        ]
    );
    assert_eq!(list[7]["content"], json!([{"type": "text", "text": "you."}]));
    assert!(list[4..].iter().all(|message| message["run_id"] == run["run_id"]));
    let now = get(client, &talk).await;
    assert_eq!((&now["message_count"], &now["active_run_id"]), (&json!(9), &Value::Null));
    // Another conversation knows nothing of it.
    let other = conversation(client, json!({})).await;
    models.script(vec![openai::text("Yes?")]);
    say(client, &other, "Hello?").await;
    assert_eq!(prompt(&models.requests()[3]), pairs(&[("user", "Hello?")]));
}

async fn a_turn_without_an_input_answers_what_is_there(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let post = |role: &str, content: &str| {
        let body = json!({"role": role, "content": content});
        let path = at(&talk, "messages");
        async move { client.post(&path, &body).await.expect(201) }
    };
    post("user", "My number is 4711.").await;
    post("user", "What is it?").await;
    models.script(vec![openai::text("4711."), openai::text("Yes."), openai::text("Sure.")]);
    let run = turn(client, &talk, &json!({})).await;
    assert_eq!(run["status"], "completed", "{run}");
    let expected = pairs(&[("user", "My number is 4711."), ("user", "What is it?")]);
    assert_eq!(prompt(&models.requests()[0]), expected);
    assert_eq!(messages(client, &talk).await.len(), 3, "nothing was added but the answer");
    // Without a body, too; and instructions behind the question do not make it none.
    post("user", "Sure?").await;
    post("system", "Be brief.").await;
    let request = client.request(Method::POST, &at(&talk, "runs?wait=30"));
    let run = client.send(request).await.expect(200);
    assert_eq!(run["result"]["content"], "Yes.");
    let sent = prompt(&models.requests()[1]);
    assert_eq!(sent.last().expect("a message").1, "Sure?");
    assert!(sent.iter().any(|(role, text)| role == "system" && text == "Be brief."));
    post("user", "Really?").await;
    let answer = client.post(&at(&talk, "complete"), &Value::Null).await.expect(200);
    assert_eq!(answer["response"], "Sure.");
    assert_eq!(prompt(&models.requests()[2]).len(), 7);
}

async fn a_turn_without_an_input_needs_something_to_answer(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    for said in [None, Some(("system", "Be kind.")), Some(("assistant", "Hello!"))] {
        if let Some((role, content)) = said {
            let body = json!({"role": role, "content": content});
            client.post(&at(&talk, "messages"), &body).await.expect(201);
        }
        for what in ["runs", "complete"] {
            let answer = client.post(&at(&talk, what), &json!({})).await;
            assert_refused(&answer, 422, "validation_failed");
            let action = answer.body["suggested_action"].as_str().expect("an action");
            assert!(action.contains("input") || action.contains("message"), "{}", answer.body);
        }
    }
    say(client, &talk, "Hello?").await;
    assert_refused(&client.post(&at(&talk, "runs"), &json!({})).await, 422, "validation_failed");
    // Nothing is not the same as nothing said.
    for (what, body) in [
        ("runs", json!({"input": ""})),
        ("runs", json!({"input": []})),
        ("complete", json!({"content": ""})),
        ("complete", json!({"content": []})),
    ] {
        client
            .post(&at(&talk, "messages"), &json!({"role": "user", "content": "?"}))
            .await
            .expect(201);
        let answer = client.post(&at(&talk, what), &body).await;
        assert_refused(&answer, 422, "validation_failed");
        let pointer = &answer.body["details"]["errors"][0]["pointer"];
        assert_eq!(pointer, if what == "runs" { "/input" } else { "/content" }, "{}", answer.body);
    }
    assert_eq!(get(client, &talk).await["active_run_id"], Value::Null);
}

async fn a_run_of_the_agent_may_name_its_conversation(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    client.post("/v1/agents", &agent("b")).await.expect(201);
    let talk = conversation(client, json!({})).await;
    let body = json!({"input": "Hello?", "conversation_id": talk});
    let run = client.run_to_end("a", &body).await;
    assert_eq!((&run["status"], &run["conversation_id"]), (&json!("completed"), &json!(talk)));
    assert_eq!(
        said(&messages(client, &talk).await),
        pairs(&[("user", "Hello?"), ("assistant", "Yes.")])
    );
    let unknown = "conv_019a0c5e7d2a7c3f8b1e2d3c4b5a6978";
    for (agent, conversation_id) in [("b", talk.as_str()), ("a", unknown), ("a", "x")] {
        let body = json!({"input": "Hello?", "conversation_id": conversation_id});
        let answer = client.post(&format!("/v1/agents/{agent}/runs"), &body).await;
        assert_refused(&answer, 422, "validation_failed");
        assert_eq!(answer.body["details"]["errors"][0]["pointer"], "/conversation_id");
    }
    let without = json!({"conversation_id": talk});
    let answer = client.post("/v1/agents/a/runs", &without).await;
    assert_refused(&answer, 422, "validation_failed");
    let alone = client.run_to_end("a", &json!({"input": "Alone", "conversation_id": null})).await;
    assert_eq!(alone["conversation_id"], Value::Null);
    let list = client.get(&format!("/v1/runs?conversation_id={talk}")).await.expect(200);
    assert_eq!(list["data"].as_array().map(Vec::len), Some(1));
    assert_eq!(list["data"][0]["run_id"], run["run_id"]);
    let answer = client.get("/v1/runs?conversation_id=x").await;
    assert_refused(&answer, 422, "validation_failed");
}

async fn instructions_are_appended_and_parameters_are_defaults_below_the_limits(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    models.answer_with(|_| openai::text("Yes."));
    let system =
        json!({"system_prompt": "You are an oracle.", "max_steps": 10, "temperature": 0.1});
    client.patch("/v1/agents/a", &system).await.expect(200);
    let parameters = json!({"max_steps": 5, "temperature": 0.7, "top_p": 0.5, "tools": ["echo"]});
    let more = json!({"system_prompt": "The user is Ada.", "parameters": parameters});
    let talk = conversation(client, more).await;
    let sent = |n: usize| models.requests()[n].body.clone();
    let run = say(client, &talk, "Hello?").await;
    assert_eq!(run["max_steps"], 5);
    let body = sent(0);
    assert_eq!(body["messages"][0]["role"], "system");
    assert_eq!(body["messages"][0]["content"], "You are an oracle.\n\nThe user is Ada.");
    assert_eq!((&body["temperature"], &body["top_p"]), (&json!(0.7), &json!(0.5)));
    assert_eq!(body["tools"].as_array().map(Vec::len), Some(1));
    // The run's own config over the parameters; limits only go down.
    let config = json!({"temperature": 0.9, "max_steps": 3, "system_prompt": "You are a clerk."});
    let run = turn(client, &talk, &json!({"input": "x", "config": config})).await;
    assert_eq!(run["max_steps"], 3);
    let body = sent(1);
    assert_eq!(body["messages"][0]["content"], "You are a clerk.\n\nThe user is Ada.");
    assert_eq!((&body["temperature"], &body["top_p"]), (&json!(0.9), &json!(0.5)));
    let run = turn(client, &talk, &json!({"input": "x", "config": {"max_steps": 8}})).await;
    assert_eq!(run["max_steps"], 5, "the smaller one");
    // The instructions are of the conversation, not of its history.
    assert!(messages(client, &talk).await.iter().all(|message| message["role"] != "system"));
    assert_eq!(get(client, &talk).await["parameters"], parameters);
}

async fn a_turn_may_be_streamed_and_waited_for(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let request = client.request(Method::POST, &at(&talk, "runs"));
    let stream = client.stream(request.json(&json!({"input": "1", "stream": true}))).await;
    let location = stream.response.headers()["location"].to_str().expect("a path").to_owned();
    let frames = stream.rest().await;
    assert_eq!(frames[0].event, "run.queued");
    assert_eq!(frames[0].json()["conversation_id"], talk);
    assert_eq!(location, format!("/v1/runs/{}", id(&frames[0].json())));
    assert_eq!(frames.last().expect("an end").json()["reason"], "run_ended");
    let request = client.request(Method::POST, &at(&talk, "runs")).header("prefer", "wait=30");
    let waited = client.send(request.json(&json!({"input": "2"}))).await;
    assert!(waited.header("preference-applied").is_some());
    assert_eq!(waited.expect(200)["status"], "completed");
    let answer = client.post(&at(&talk, "runs"), &json!({"input": "3"})).await;
    assert_eq!(answer.header("location"), Some(format!("/v1/runs/{}", id(&answer.body)).as_str()));
    assert_eq!(answer.header("retry-after"), Some("1"));
    client.wait(&id(&answer.expect(202))).await;
    assert_eq!(messages(client, &talk).await.len(), 6);
}

async fn what_is_wrong_with_a_turn_is_told_with_its_place(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    for (what, body, pointer) in [
        ("runs", json!({"input": 7}), "/input"),
        ("runs", json!({"input": [{"role": "tool", "content": "x"}]}), "/input"),
        ("runs", json!({"input": [{"role": "assistant", "content": "x"}]}), "/input"),
        ("runs", json!({"input": "x", "config": []}), "/config"),
        ("runs", json!({"input": "x", "config": {"max_steps": 0}}), "/config/max_steps"),
        ("runs", json!({"input": "x", "on_busy": "wait"}), "/on_busy"),
        ("runs", json!({"input": "x", "metadata": {"k": 1}}), "/metadata/k"),
        ("runs", json!({"input": "x", "end_user_id": ""}), "/end_user_id"),
        ("complete", json!({"content": 7}), "/content"),
        ("complete", json!({"content": [{"type": "image", "media_type": "x"}]}), "/content/0"),
        ("complete", json!({"content": "x", "config": {"tools": ["saw"]}}), "/config/tools/0"),
        ("complete", json!({"content": "x", "on_busy": 1}), "/on_busy"),
    ] {
        let answer = client.post(&at(&talk, what), &body).await;
        assert_refused(&answer, 422, "validation_failed");
        let told = answer.body["details"]["errors"][0]["pointer"].as_str().expect("a pointer");
        assert!(told.starts_with(pointer), "{what} {body}: {}", answer.body);
    }
    for (what, body) in [
        ("runs", json!({"input": "x", "colour": 1})),
        ("runs", json!({"input": "x", "conversation_id": talk})),
        ("complete", json!({"input": "x"})),
        ("complete", json!({"content": "x", "stream": true})),
        ("runs?colour=red", json!({"input": "x"})),
        ("complete?colour=red", json!({"content": "x"})),
    ] {
        assert_refused(&client.post(&at(&talk, what), &body).await, 422, "unknown_field");
    }
    assert_eq!(get(client, &talk).await["message_count"], 0);
}

async fn the_agent_s_version_is_that_of_each_turn(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({"parameters": {"tools": ["echo"]}})).await;
    assert_eq!(say(client, &talk, "1").await["agent_version"], 1);
    client.patch("/v1/agents/a", &json!({"script": [{"text": "No."}]})).await.expect(200);
    let run = say(client, &talk, "2").await;
    assert_eq!((&run["agent_version"], &run["result"]["content"]), (&json!(2), &json!("No.")));
    // A tool that the parameters name and the agent has lost: every turn says so, and none begins.
    client.patch("/v1/agents/a", &json!({"tools": []})).await.expect(200);
    let answer = client.post(&at(&talk, "runs"), &json!({"input": "3"})).await;
    assert_refused(&answer, 422, "validation_failed");
    // It is in no field of the request, and one there would overrule it.
    let wrong = &answer.body["details"]["errors"][0];
    assert_eq!(wrong["pointer"], "/config/tools", "{}", answer.body);
    let told = wrong["message"].as_str().expect("a message");
    assert!(told.contains("is left out, and in the conversation's parameters"), "{told}");
    let body = json!({"input": "3", "config": {"tools": []}});
    let run_id = start(client, &talk, &body).await;
    assert_eq!(client.wait(&run_id).await["status"], "completed");
}

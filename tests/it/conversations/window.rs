//! What of a long conversation its model still sees.

use serde_json::{Value, json};

use super::{agent, at, conversation, id, messages, prompt, say, serve_with_model, start, turn};
use crate::runs::retention::execute;
use crate::support::client::{Client, log_of};
use crate::support::model_server::{Gate, ModelServer, Piece, Reply, Request, openai};
use crate::support::on_both_databases;
use crate::support::server::Setup;
use crate::support::transcripts::assert_valid_openai;

on_both_databases! {
    the_oldest_whole_turns_are_left_out_until_the_prompt_fits;
    a_call_and_its_result_leave_the_window_together;
    a_turn_that_does_not_fit_fails_and_the_next_works;
    a_provider_that_finds_a_prompt_too_long_is_asked_with_less;
    a_step_that_is_begun_again_reads_what_it_read_before;
    instructions_between_two_turns_go_with_the_turn_that_they_stand_before;
    the_question_that_is_answered_stays_whatever_stands_behind_it;
    of_a_long_history_no_more_is_read_than_a_prompt_can_hold;
}

/// The events of a run of one type.
async fn events(client: &Client, run: &Value, event_type: &str) -> Vec<Value> {
    let log = log_of(&client.events(&id(run), 0).await.rest().await);
    log.iter().filter(|frame| frame.event == event_type).map(|frame| frame.json()).collect()
}

async fn dropped(client: &Client, run: &Value) -> i64 {
    let started = events(client, run, "step.started").await;
    started.last().expect("a step")["dropped_messages"].as_i64().expect("a number")
}

/// Some 100 tokens that begin with this.
fn words(begin: &str) -> String {
    format!("{begin} {}", "many words ".repeat(36))
}

fn spoken(request: &Request) -> Vec<(String, String)> {
    prompt(request).into_iter().filter(|(role, _)| role != "system").collect()
}

async fn the_oldest_whole_turns_are_left_out_until_the_prompt_fits(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    models.answer_with(|_| openai::text("Yes."));
    let parameters = json!({"max_context_tokens": 700, "tools": []});
    let talk = conversation(client, json!({"parameters": parameters})).await;
    let mut before = 0;
    for n in 0..10_usize {
        let run = say(client, &talk, &words(&format!("Turn {n}"))).await;
        let request = models.requests()[n].clone();
        assert_valid_openai(&request.body);
        let spoken = spoken(&request);
        let dropped = dropped(client, &run).await;
        assert_eq!(dropped % 2, 0, "whole turns");
        assert!(dropped >= before && dropped - before <= 2, "{before} then {dropped}");
        before = dropped;
        // Everything else is there, and begins with what a user says.
        assert_eq!(spoken.len() as i64, 2 * n as i64 + 1 - dropped);
        assert!(spoken[0].0 == "user" && spoken[0].1.starts_with(&format!("Turn {}", dropped / 2)));
    }
    assert!((8..=14).contains(&before), "{before} of 20 were left out");
    assert_eq!(messages(client, &talk).await.len(), 20, "the history is untouched");
}

async fn a_call_and_its_result_leave_the_window_together(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    let parameters = json!({"max_context_tokens": 700, "tools": ["echo"]});
    let talk = conversation(client, json!({"parameters": parameters})).await;
    let echoed = json!({"text": words("Echo")}).to_string();
    models.script(vec![openai::tool_calls(&[("echo", &echoed)]), openai::text("Done.")]);
    say(client, &talk, "Echo it.").await;
    let mut all = Vec::new();
    for n in 0..6 {
        models.script(vec![openai::text("Yes.")]);
        let run = say(client, &talk, &words(&format!("Turn {n}"))).await;
        all.push(dropped(client, &run).await);
        assert_valid_openai(&models.requests().last().expect("a request").body);
    }
    // The first turn's four messages, then two by two.
    assert!(all.iter().all(|n| *n == 0 || *n >= 4) && all.contains(&4), "{all:?}");
    assert!(all.last().expect("a turn") > &4, "{all:?}");
}

async fn a_turn_that_does_not_fit_fails_and_the_next_works(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    models.answer_with(|_| openai::text("Yes."));
    let parameters = json!({"max_context_tokens": 700, "tools": []});
    let talk = conversation(client, json!({"parameters": parameters})).await;
    say(client, &talk, "Hello?").await;
    let huge = "many words ".repeat(1_000);
    let run = turn(client, &talk, &json!({"input": huge})).await;
    assert_eq!(
        (&run["status"], &run["error"]["code"]),
        (&json!("failed"), &json!("context_overflow"))
    );
    assert_eq!(models.requests().len(), 1, "no model was asked");
    let run = say(client, &talk, "Short.").await;
    assert_eq!(dropped(client, &run).await, 3, "everything up to the huge one");
    assert_eq!(prompt(&models.requests()[1]).len(), 1);
    assert_eq!(messages(client, &talk).await.len(), 5);
    let answer = client.post(&at(&talk, "complete"), &json!({"content": huge})).await.expect(200);
    assert_eq!((&answer["finish_reason"], &answer["response"]), (&json!("error"), &Value::Null));
    assert_eq!(answer["error"]["code"], "context_overflow");
}

async fn a_provider_that_finds_a_prompt_too_long_is_asked_with_less(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    models.answer_with(|request| {
        let messages = request.body["messages"].as_array().expect("messages");
        if messages.len() > 9 {
            let error = json!({"code": "context_length_exceeded", "message": "too long"});
            return Reply::error(400, error, &[]);
        }
        match messages.last().expect("a message")["content"].as_str() {
            Some("Echo.") => openai::tool_calls(&[("echo", "{\"text\": \"x\"}")]),
            _ => openai::text("Yes."),
        }
    });
    let talk = conversation(client, json!({})).await;
    for n in 0..20 {
        for role in ["user", "assistant"] {
            let body = json!({"role": role, "content": format!("{role} {n}")});
            client.post(&at(&talk, "messages"), &body).await.expect(201);
        }
    }
    let run = say(client, &talk, "Echo.").await;
    let restarted = events(client, &run, "step.restarted").await;
    let tries: Vec<i64> = restarted
        .iter()
        .map(|event| event["dropped_messages"].as_i64().expect("a number"))
        .collect();
    assert_eq!(tries, [20, 30, 36], "half of what is left, and half of the rest");
    let started = events(client, &run, "step.started").await;
    assert_eq!(started.len(), 2);
    assert_eq!(started[1]["dropped_messages"], 36, "what it did not take, it does not take now");
    assert_eq!(restarted.iter().filter(|event| event["step"] == 2).count(), 0);
    assert_eq!(models.requests().len(), 5);
    for request in models.requests() {
        assert_valid_openai(&request.body);
    }
    // The next turn begins anew, and ends well again.
    say(client, &talk, "And?").await;
    assert_eq!(messages(client, &talk).await.len(), 46);
}

/// A server that can be killed and started again with another idea of how much its model reads.
fn setup(url: String, models: &ModelServer, context_tokens: u32) -> Setup {
    let provider = format!("base_url: \"{}\", context_tokens: {context_tokens}", models.base_url());
    Setup::new(url, format!("providers:\n  p: {{ kind: openai, {provider} }}\n"))
}

async fn a_step_that_is_begun_again_reads_what_it_read_before(url: String) {
    let models = ModelServer::start().await;
    let first = setup(url.clone(), &models, 1_000);
    let server = first.start().await;
    let mut agent = agent("a");
    agent["model"] = json!("p/m");
    agent["max_output_tokens"] = json!(300);
    agent["tools"] = json!([]);
    server.client.post("/v1/agents", &agent).await.expect(201);
    let talk = conversation(&server.client, json!({})).await;
    for n in 0..10 {
        for role in ["user", "assistant"] {
            let body = json!({"role": role, "content": words(&format!("{role} {n}"))});
            server.client.post(&at(&talk, "messages"), &body).await.expect(201);
        }
    }
    server.terminate().await;
    let hangs = || {
        let gate = Gate::new();
        let pieces = vec![
            Piece::Bytes(openai::choice(json!({"content": "Ye"}), Value::Null)),
            Piece::Gate(gate),
        ];
        Reply::Stream { headers: Vec::new(), pieces, end: crate::support::model_server::End::Clean }
    };
    let too_long = json!({"code": "context_length_exceeded", "message": "too long"});
    // Cut off in its first attempt; and in one with less, because the provider wanted less.
    for (n, replies) in [vec![hangs()], vec![Reply::error(400, too_long.clone(), &[]), hangs()]]
        .into_iter()
        .enumerate()
    {
        let context_tokens = [1_000, 100_000][n];
        let again = [100_000, 1_000][n];
        let server = setup(url.clone(), &models, context_tokens).start().await;
        let asked = models.requests().len();
        let tries = replies.len();
        models.script(replies);
        let run_id = start(&server.client, &talk, &json!({"input": format!("Go {n}")})).await;
        server.client.events(&run_id, 0).await.until("message.delta").await;
        server.kill();
        models.script(vec![openai::text("Yes.")]);
        let server = setup(url.clone(), &models, again).start().await;
        let run = server.client.wait(&run_id).await;
        assert_eq!(run["result"]["content"], "Yes.", "{run}");
        let requests = models.requests();
        assert_eq!(requests.len(), asked + tries + 1);
        let (before, after) =
            (prompt(&requests[asked + tries - 1]), prompt(&requests[asked + tries]));
        assert_eq!(before, after);
        let all = 2 * n + 21;
        assert!(before.len() < all, "something was left out: {} of {all}", before.len());
        server.terminate().await;
    }
}

async fn instructions_between_two_turns_go_with_the_turn_that_they_stand_before(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    models.answer_with(|_| openai::text("Yes."));
    let parameters = json!({"max_context_tokens": 500, "tools": []});
    let talk = conversation(client, json!({"parameters": parameters})).await;
    say(client, &talk, "First.").await;
    let body = json!({"role": "system", "content": "Speak French."});
    client.post(&at(&talk, "messages"), &body).await.expect(201);
    let mut seen = Vec::new();
    for n in 0..6 {
        let run = say(client, &talk, &words(&format!("Turn {n}"))).await;
        let request = models.requests().last().expect("a request").clone();
        let told =
            prompt(&request).iter().any(|(role, text)| role == "system" && text == "Speak French.");
        assert!(!told || prompt(&request)[0].0 == "system", "instructions come first");
        let dropped = dropped(client, &run).await;
        assert_eq!(told, dropped <= 2, "they are the third message: {dropped} are left out");
        seen.push(told);
    }
    assert!(seen[0] && seen[1] && !seen[5], "{seen:?}");
}

async fn the_question_that_is_answered_stays_whatever_stands_behind_it(url: String) {
    let (server, models) = serve_with_model(url, "openai").await;
    let client = &server.client;
    models.answer_with(|_| openai::text("Yes."));
    let parameters = json!({"max_context_tokens": 300, "tools": []});
    let talk = conversation(client, json!({"parameters": parameters})).await;
    let posts = [
        ("user", words("Old.")),
        ("assistant", words("Old.")),
        ("user", words("Question.")),
        ("system", words("Be kind.")),
    ];
    for (role, content) in posts {
        let body = json!({"role": role, "content": content});
        client.post(&at(&talk, "messages"), &body).await.expect(201);
    }
    let run = turn(client, &talk, &json!({})).await;
    assert_eq!(run["status"], "completed", "{run}");
    assert_eq!(dropped(client, &run).await, 2);
    let sent = prompt(&models.requests()[0]);
    assert!(sent[0].1.starts_with("Be kind.") && sent[1].1.starts_with("Question."), "{sent:?}");
    // Too much for one prompt: it fails, and does not lose its question.
    let small = json!({"config": {"max_context_tokens": 150}});
    let posted = json!({"role": "user", "content": words("Another.")});
    client.post(&at(&talk, "messages"), &posted).await.expect(201);
    let posted = json!({"role": "system", "content": words("Be brief.")});
    client.post(&at(&talk, "messages"), &posted).await.expect(201);
    let run = turn(client, &talk, &small).await;
    assert_eq!(run["error"]["code"], "context_overflow", "{run}");
}

async fn of_a_long_history_no_more_is_read_than_a_prompt_can_hold(url: String) {
    let (server, models) = serve_with_model(url.clone(), "openai").await;
    let client = &server.client;
    models.answer_with(|_| openai::text("Yes."));
    let parameters = json!({"max_context_tokens": 2_000, "tools": []});
    let talk = conversation(client, json!({"parameters": parameters})).await;
    for _ in 0..400 {
        let body = json!({"role": "user", "content": words("More")});
        client.post(&at(&talk, "messages"), &body).await.expect(201);
    }
    // Whoever reads one of these fails.
    let spoil = "update conversation_messages set data = '?' where message_index < 280";
    assert_eq!(execute(&url, spoil).await, 280);
    assert_eq!(client.get(&at(&talk, "messages")).await.status, 500);
    let run = say(client, &talk, "Go.").await;
    assert!(dropped(client, &run).await > 300);
    assert_eq!(prompt(&models.requests()[0]).last().expect("a message").1, "Go.");
}

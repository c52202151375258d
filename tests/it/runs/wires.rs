//! Runs on real model wires: a scripted server on real sockets, with real faults.

use std::time::Duration;

use serde_json::{Value, json};

use super::{id, scripted};
use crate::support::client::{Client, Frame, log_of};
use crate::support::model_server::{End, Gate, ModelServer, Piece, Reply, anthropic, openai};
use crate::support::on_both_databases;
use crate::support::server::{Server, Setup};

on_both_databases! {
    three_steps_with_parallel_tools_are_the_same_run_however_it_is_read_on_the_openai_wire;
    three_steps_with_parallel_tools_are_the_same_run_however_it_is_read_on_the_anthropic_wire;
    a_stream_that_breaks_is_begun_again_and_says_what_is_void;
    a_failure_before_the_first_word_is_invisible_and_one_that_stays_fails_the_run;
    a_long_wait_frees_the_slot_and_the_run_comes_back;
    a_cancel_closes_the_providers_socket_within_a_second;
    an_answer_that_was_cut_by_its_limit_is_incomplete;
    an_endless_text_ends_at_the_size_of_the_log;
    hostile_bytes_fail_no_run;
}

/// A server whose provider `p` is the model server, with prices.
async fn serve(url: String, kind: &str, extra: &str) -> (Server, ModelServer) {
    let models = ModelServer::start().await;
    let base_url = models.base_url();
    let yaml = format!(
        r#"
providers:
  p:
    kind: {kind}
    base_url: {base_url}
    prices:
      m: {{ input_usd_per_million: 2.5, cached_input_usd_per_million: 1.25, output_usd_per_million: 10 }}
{extra}"#
    );
    let server = Setup::new(url, yaml).start().await;
    let mut agent = scripted("a", &json!([]));
    agent["model"] = json!("p/m");
    agent["system_prompt"] = json!("Be brief.");
    server.client.post("/v1/agents", &agent).await.expect(201);
    (server, models)
}

async fn run(client: &Client) -> Value {
    client.run_to_end("a", &json!({"input": "What time is it?"})).await
}

async fn log(client: &Client, run: &Value) -> Vec<Frame> {
    log_of(&client.events(&id(run), 0).await.rest().await)
}

fn types(log: &[Frame]) -> Vec<&str> {
    log.iter().map(|frame| frame.event.as_str()).filter(|t| !t.ends_with(".delta")).collect()
}

async fn three_steps_with_parallel_tools_are_the_same_run_however_it_is_read_on_the_openai_wire(
    url: String,
) {
    let calls: &[(&str, &str)] = &[("current_time", "{}"), ("echo", "{\"text\": \"grüße 😀\"}")];
    let replies = || {
        vec![
            openai::tool_calls(calls),
            openai::tool_calls(&[("echo", "{\"text\": \"again\"}")]),
            openai::text("It is late."),
        ]
    };
    let (server, models) = serve(url, "openai", "").await;
    three_steps(&server.client, &models, replies).await;
    // What the provider was sent last: every call answered, in order.
    let last = models.requests().last().expect("a request").body.clone();
    let roles: Vec<&str> = last["messages"]
        .as_array()
        .expect("list")
        .iter()
        .filter_map(|m| m["role"].as_str())
        .collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool", "tool", "assistant", "tool"]);
    assert_eq!(last["messages"][4]["content"], "grüße 😀");
}

async fn three_steps_with_parallel_tools_are_the_same_run_however_it_is_read_on_the_anthropic_wire(
    url: String,
) {
    let calls: &[(&str, &str)] = &[("current_time", "{}"), ("echo", "{\"text\": \"grüße 😀\"}")];
    let replies = || {
        vec![
            anthropic::tool_calls(calls),
            anthropic::tool_calls(&[("echo", "{\"text\": \"again\"}")]),
            anthropic::text("It is late."),
        ]
    };
    let (server, models) = serve(url, "anthropic", "").await;
    three_steps(&server.client, &models, replies).await;
    let last = models.requests().last().expect("a request").body.clone();
    let messages = last["messages"].as_array().expect("list");
    let roles: Vec<&str> = messages.iter().filter_map(|m| m["role"].as_str()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant", "user"]);
    let results = messages[2]["content"].as_array().expect("blocks");
    assert!(results.iter().all(|block| block["type"] == "tool_result"), "{results:?}");
    assert_eq!(results.len(), 2);
}

/// Three steps, read in the three ways; each must tell the same story.
async fn three_steps(client: &Client, models: &ModelServer, replies: impl Fn() -> Vec<Reply>) {
    let body = json!({"input": "What time is it?"});
    models.script(replies());
    let polled = client.post("/v1/agents/a/runs", &body).await.expect(202);
    let polled = client.wait(&id(&polled)).await;
    models.script(replies());
    let waited = client.request(reqwest::Method::POST, "/v1/agents/a/runs").json(&body);
    let waited = client.send(waited.header("prefer", "wait=30")).await;
    assert!(waited.header("preference-applied").is_some_and(|p| p.contains("wait")));
    let waited = waited.expect(200);
    models.script(replies());
    let streamed = client.request(reqwest::Method::POST, "/v1/agents/a/runs");
    let streamed = streamed.json(&body).header("accept", "text/event-stream");
    let frames = client.stream(streamed).await.rest().await;
    let streamed = client.wait(&id(&frames[0].json())).await;

    for run in [&polled, &waited, &streamed] {
        assert_eq!(run["status"], "completed", "{run}");
        assert_eq!(run["result"]["content"], "It is late.");
        assert_eq!(run["steps_completed"], 3);
        let usage = json!({"input_tokens": 36, "cached_input_tokens": 15, "output_tokens": 21,
            "reasoning_tokens": run["usage"]["reasoning_tokens"], "total_tokens": 57});
        assert_eq!(run["usage"], usage);
        // 7 × 2.5 + 5 × 1.25 + 7 × 10 = 93.75 micro-dollars a call, rounded once for each.
        assert_eq!(run["cost_usd"], json!(0.000_282));
    }
    let story = |log: &[Frame]| types(log).join(" ");
    let expected = story(&log_of(&frames));
    for run in [&polled, &waited] {
        let log = log(client, run).await;
        assert_eq!(story(&log), expected);
        let end = log.last().expect("an end").json();
        for field in ["status", "result", "usage", "cost_usd", "steps_completed"] {
            assert_eq!(end[field], run[field], "{field}");
        }
    }
    let steps = client.get(&format!("/v1/runs/{}?include=steps", id(&polled))).await.expect(200);
    let steps = steps["steps"].as_array().expect("steps").clone();
    assert_eq!(steps.len(), 3);
    let calls = steps[0]["tool_calls"].as_array().expect("calls");
    assert_eq!(calls.len(), 2);
    assert!(calls[0]["result"]["utc"].is_string(), "{calls:?}");
    assert_eq!(calls[1]["result"], "grüße 😀");
    let sum: f64 = steps.iter().map(|step| step["cost_usd"].as_f64().expect("cost")).sum();
    assert!((sum - 0.000_282).abs() < 1e-12, "{sum}");
    let list = client.get("/v1/runs?agent_id=a").await.expect(200);
    assert_eq!(list["data"].as_array().expect("data").len(), 3);
    assert!(list["data"][0].get("input").is_none() && list["data"][0].get("result").is_none());
}

async fn a_stream_that_breaks_is_begun_again_and_says_what_is_void(url: String) {
    let (server, models) = serve(url, "openai", "").await;
    // Three words shown, then a reset; then a stream that ends without its marker; then all of it.
    let whole = || openai::text("one two three four five");
    models.script(vec![whole().first(4).ending(End::Reset), whole().first(3), whole()]);
    let run = run(&server.client).await;
    assert_eq!(
        (&run["status"], &run["result"]["content"]),
        (&json!("completed"), &json!("one two three four five"))
    );
    let log = log(&server.client, &run).await;
    let restarts: Vec<Value> =
        log.iter().filter(|f| f.event == "step.restarted").map(Frame::json).collect();
    assert!(!restarts.is_empty(), "{:?}", types(&log));
    // Readers who obey `discard_from_seq` hold exactly the answer.
    let mut text: Vec<(i64, String)> = Vec::new();
    for frame in &log {
        let event = frame.json();
        match frame.event.as_str() {
            "message.delta" => {
                text.push((frame.seq(), event["content"].as_str().expect("text").to_owned()));
            }
            "step.restarted" => {
                let from = event["discard_from_seq"].as_i64().expect("a seq");
                text.retain(|(seq, _)| *seq < from);
            }
            _ => {}
        }
    }
    let text: String = text.into_iter().map(|(_, piece)| piece).collect();
    assert_eq!(text, "one two three four five");
    assert_eq!(models.requests().len(), 3);
    let steps = server.client.get(&format!("/v1/runs/{}/steps", id(&run))).await.expect(200);
    assert_eq!(steps["data"][0]["attempt"], 3, "{steps}");
}

async fn a_failure_before_the_first_word_is_invisible_and_one_that_stays_fails_the_run(
    url: String,
) {
    let (server, models) = serve(url, "openai", "").await;
    models.script(vec![Reply::status(503), Reply::Reset, openai::text("at last")]);
    let fine = run(&server.client).await;
    assert_eq!(fine["result"]["content"], "at last");
    assert!(!types(&log(&server.client, &fine).await).contains(&"step.restarted"));

    models.script(vec![Reply::status(401)]);
    let failed = run(&server.client).await;
    assert_eq!(
        (&failed["status"], &failed["error"]["code"]),
        (&json!("failed"), &json!("model_error"))
    );
    assert_eq!(failed["error"]["retryable"], false);
    let log = log(&server.client, &failed).await;
    assert_eq!(
        types(&log),
        ["run.queued", "run.running", "step.started", "step.failed", "run.failed"]
    );
    assert_eq!(models.requests().len(), 4, "a refusal is not tried again");
}

async fn a_long_wait_frees_the_slot_and_the_run_comes_back(url: String) {
    // One slot: if the waiting run held it, the second could not run.
    let (server, models) = serve(url, "openai", "engine: { max_concurrent_runs: 1 }\n").await;
    let client = &server.client;
    let busy = Reply::error(429, json!({"type": "rate_limit"}), &[("retry-after", "61")]);
    models.script(vec![busy, openai::text("hello")]);
    let waiting = client.post("/v1/agents/a/runs", &json!({"input": "Go"})).await.expect(202);
    models.wait_requests(1).await;
    let second = run(client).await;
    assert_eq!(second["status"], "completed");
    let waiting = client.get(&format!("/v1/runs/{}", id(&waiting))).await.expect(200);
    assert_eq!(waiting["status"], "running", "it keeps its status");
    let message = waiting["status_message"].as_str().expect("a message");
    assert!(message.starts_with("Waiting for p until"), "{message}");
    let gone = client.post(&format!("/v1/runs/{}/cancel", id(&waiting)), &json!({})).await;
    assert_eq!((gone.status, &gone.body["status"]), (200, &json!("cancelled")), "nobody drives it");
}

async fn a_cancel_closes_the_providers_socket_within_a_second(url: String) {
    let (server, models) = serve(url, "openai", "").await;
    let client = &server.client;
    // A machine that stands still now and then takes longer for one of them, but not for each.
    let second = Duration::from_secs(1);
    for closed in 1..=5 {
        let gate = Gate::new();
        models.script(vec![openai::text("one two three").with(3, Piece::Gate(gate.clone()))]);
        let run = client.post("/v1/agents/a/runs", &json!({"input": "Go"})).await.expect(202);
        client.events(&id(&run), 0).await.until("message.delta").await;
        let asked = std::time::Instant::now();
        client.post(&format!("/v1/runs/{}/cancel", id(&run)), &json!({})).await;
        let patience = Duration::from_secs(60);
        let in_time = tokio::time::timeout(patience, models.wait_closed_early(closed)).await;
        let took = asked.elapsed();
        in_time.expect("the socket is closed");
        assert_eq!(client.wait(&id(&run)).await["status"], "cancelled");
        if took < second {
            return;
        }
        println!("the socket was open for {took:?}");
    }
    panic!("the socket was open for more than a second each time");
}

async fn an_answer_that_was_cut_by_its_limit_is_incomplete(url: String) {
    let (server, models) = serve(url, "openai", "").await;
    let word = || vec![json!({"content": "half a sen"})];
    for (finish, reason) in [("length", "max_output_tokens"), ("content_filter", "content_filter")]
    {
        models.script(vec![openai::reply(word(), finish)]);
        let run = run(&server.client).await;
        assert_eq!(
            (&run["status"], &run["incomplete_reason"]),
            (&json!("incomplete"), &json!(reason))
        );
        assert_eq!(run["result"]["content"], "half a sen", "what there was is kept");
        assert_eq!(run["steps_completed"], 1);
    }
}

async fn an_endless_text_ends_at_the_size_of_the_log(url: String) {
    let (server, models) = serve(url, "openai", "").await;
    // 7 MB a turn, and a tool call to go on: eight turns pass 50 MB.
    let word = json!({"content": "x".repeat(500_000)});
    let call = json!({"tool_calls": [{"index": 0, "id": "c", "type": "function",
        "function": {"name": "echo", "arguments": "{\"text\": \"x\"}"}}]});
    models.answer_with(move |_| {
        let mut deltas = vec![word.clone(); 7];
        deltas.push(call.clone());
        openai::reply(deltas, "tool_calls")
    });
    let run = run(&server.client).await;
    assert_eq!(
        (&run["status"], &run["incomplete_reason"]),
        (&json!("incomplete"), &json!("log_size"))
    );
    let requests = models.requests().len();
    assert!((7..=9).contains(&requests), "the overrun is one step at most: {requests}");
}

async fn hostile_bytes_fail_no_run(url: String) {
    let (server, models) = serve(url, "openai", "").await;
    let client = &server.client;
    let texts = [
        "\u{0}",
        "a\u{0}b",
        "\u{FFFF}\u{1F600}",
        "\u{2028}\u{2029}\r\n\r\n",
        "data: x\n\nid: 7\n\n",
    ];
    for text in texts {
        models.script(vec![openai::reply(vec![json!({"content": text})], "stop").in_chunks_of(1)]);
        let body = json!({"input": text, "end_user_id": "u", "metadata": {"k": "v"}});
        let run = client.run_to_end("a", &body).await;
        assert_eq!(
            (&run["status"], &run["result"]["content"]),
            (&json!("completed"), &json!(text))
        );
        assert_eq!(run["input"], json!(text));
    }
    let calls =
        openai::tool_calls(&[("echo", "{\"text\": \"\\u0000\\ud800\"}"), ("echo", "\u{0}")]);
    models.script(vec![calls, openai::text("done")]);
    let run = run(client).await;
    assert_eq!(run["status"], "completed", "{run}");
}

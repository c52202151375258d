//! P8: hostile bytes. NUL, lone surrogates, characters cut in the middle and lines of a megabyte, from
//! callers, models and tools, fail no run and are nobody's 5xx.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::readers::Seen;
use super::{create, judge};
use crate::support::client::Client;
use crate::support::model_server::{ModelServer, Piece, Reply, openai};
use crate::support::on_both_databases;
use crate::support::profile::Report;
use crate::support::server::Setup;

on_both_databases! {
    hostile_bytes_from_anywhere_fail_no_run;
}

/// Enough for a text that is longer than every buffer.
const MEGABYTE: usize = 1_000_000;

async fn hostile_bytes_from_anywhere_fail_no_run(url: String) {
    let database = if url.starts_with("sqlite") { "SQLite" } else { "Postgres" };
    let report = Report::new("P8", "NUL, surrogates, cut characters, 1 MB lines", database);
    let models = ModelServer::start().await;
    models.answer_with(|_| openai::text("Done."));
    let base_url = models.base_url();
    let yaml = format!("providers:\n  p: {{ kind: openai, base_url: \"{base_url}\" }}\n");
    let server = Setup::new(url, yaml).start().await;
    let client = &server.client;
    let tools = json!([{"type": "builtin", "name": "echo"}]);
    let agent = json!({"agent_id": "a", "model": "p/m", "tools": tools});
    client.post("/v1/agents", &agent).await.expect(201);

    for body in bodies() {
        let told = String::from_utf8_lossy(&body).chars().take(80).collect::<String>();
        let request = client
            .request(Method::POST, "/v1/agents/a/runs")
            .header("content-type", "application/json")
            .body(body);
        let answer = client.send(request).await;
        report.fault(true);
        report.check(answer.status < 500, || format!("{} for {told}", answer.status));
        if answer.status == 202 {
            completes(client, answer.body["run_id"].as_str().expect("run_id"), &report).await;
        }
    }
    for reply in replies() {
        models.script(vec![reply]);
        let run_id = create(client, "a").await;
        report.fault(true);
        completes(client, &run_id, &report).await;
    }
    report.finish((bodies().len() + replies().len()) as u64);
}

async fn completes(client: &Client, run_id: &str, report: &Report) {
    let run = client.wait(run_id).await;
    report.check(run["status"] == "completed", || {
        format!("{run_id} is {} {}", run["status"], run["error"])
    });
    judge::one(client, run_id, &Seen::default(), report).await;
}

/// What callers send.
fn bodies() -> Vec<Vec<u8>> {
    let emoji = "😀".as_bytes();
    let mut bodies = vec![
        br#"{"input": "\u0000"}"#.to_vec(),
        br#"{"input": "a\u0000b", "metadata": {"k": "\u0000"}}"#.to_vec(),
        br#"{"input": "x", "metadata": {"\u0000": "v"}}"#.to_vec(),
        br#"{"input": "x", "end_user_id": "\u0000"}"#.to_vec(),
        br#"{"input": "x", "idempotency_key": "\u0000"}"#.to_vec(),
        br#"{"input": [{"role": "user", "content": [{"type": "data", "data": {"\u0000": 1}}]}]}"#
            .to_vec(),
        br#"{"input": "\ud800"}"#.to_vec(),
        br#"{"input": "\udc00\ud800"}"#.to_vec(),
        br#"{"input": "x", "metadata": {"k": "\ud83d"}}"#.to_vec(),
        b"{\"input\": \"\xff\xfe\"}".to_vec(),
        b"{\"input\": \"\0\"}".to_vec(),
        json!({"input": "x".repeat(MEGABYTE)}).to_string().into_bytes(),
        json!({"input": "\u{1F600}\u{0}".repeat(MEGABYTE / 10)}).to_string().into_bytes(),
    ];
    for cut in 1..emoji.len() {
        bodies.push([b"{\"input\": \"", &emoji[..cut], b"\"}"].concat());
    }
    bodies
}

/// What models send, in texts and in the arguments of a call (whose tool sends them back).
fn replies() -> Vec<Reply> {
    let text = |text: &str| openai::reply(vec![json!({"content": text})], "stop");
    let echo = |arguments: &str| openai::tool_calls(&[("echo", arguments)]);
    let long = "y".repeat(MEGABYTE);
    let mut replies = vec![
        text("\u{0}"),
        text("a\u{0}b\u{FFFF}"),
        text(&long),
        echo(r#"{"text": "\u0000"}"#),
        echo(r#"{"text": "a\ud800b"}"#),
        echo(r#"{"text": "\udc00"}"#),
        echo("{\"text\": \"\u{0}\"}"),
        openai::reply(
            vec![json!({"tool_calls": [{"index": 0, "id": "c", "type": "function",
                "function": {"name": "echo", "arguments": json!({"text": long}).to_string()}}]})],
            "tool_calls",
        ),
        // As providers escape what their tokens cut in half.
        raw(r#""content":"\ud83d""#),
        raw(r#""content":"\ud83d\u0000\ude00""#),
    ];
    for size in 1..=4 {
        replies.push(text("a😀é😀\u{0}").in_chunks_of(size));
    }
    replies.push(text("slow 😀").in_chunks_of(1).slowly(Duration::from_millis(1)));
    replies
}

/// An answer with this as the text of its delta, byte for byte.
fn raw(delta: &str) -> Reply {
    let chunk = format!(
        "data: {{\"object\":\"chat.completion.chunk\",\"choices\":[{{\"index\":0,\"delta\":{{{delta}}}\
         ,\"finish_reason\":null}}]}}\n\n"
    );
    openai::text(" and more").with(1, Piece::Bytes(chunk.into_bytes()))
}

/// That the cases above are what they claim to be.
#[test]
fn the_hostile_bytes_are_hostile() {
    let refused = |body: &Vec<u8>| serde_json::from_slice::<Value>(body).is_err();
    assert_eq!(bodies().iter().filter(|body| refused(body)).count(), 8);
}

//! P31: garbage in, 4xx out. Nothing that a client sends is a 5xx, every refusal is in the documented
//! shape, and the server is as well afterwards as it was before.

mod bodies;
mod heads;

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::is_documented_error;
use super::wire::{Said, Wire};
use crate::support::on_both_databases;
use crate::support::peers;
use crate::support::profile::Report;
use crate::support::server::{Server, Setup};

on_both_databases! {
    garbage_is_refused_in_the_documented_shape;
}

/// Cases that are sent at the same time.
const AT_ONCE: usize = 16;
/// Longer than the patience of the server with a body, whatever else the machine does.
const ANSWERED: Duration = Duration::from_secs(60);
/// By then connections that are over are closed on both sides, if they ever are.
const SETTLED: Duration = Duration::from_secs(30);
/// Connections that the test's own client keeps.
const KEPT: usize = 4;
/// Files that the store may open when it has more to do: connections to its database.
const OF_THE_STORE: usize = 32;
/// What all of it may cost in memory for good.
const MEMORY: u64 = 96 * 1024 * 1024;

/// What must come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// This status, in the documented shape.
    Refused(u16),
    /// Anything of ours below 500, in the documented shape if it is an error.
    Answered,
    /// A bare 4xx, or nothing: these bytes are no HTTP that anybody could answer.
    Bare,
    /// As `Answered`, or nothing: the client has not said all that it had announced.
    Dropped,
    /// As `Answered`, and then the server closes: what follows on this connection may be anybody's.
    Last,
}

/// Something to send.
struct Case {
    name: String,
    bytes: Vec<u8>,
    then: Then,
}

fn case(name: impl Into<String>, bytes: impl Into<Vec<u8>>, then: Then) -> Case {
    Case { name: name.into(), bytes: bytes.into(), then }
}

/// A request of these lines, without a body.
fn lines(lines: &[&str]) -> Vec<u8> {
    [lines.join("\r\n").as_bytes(), b"\r\n\r\n"].concat()
}

/// A request for this, as it is usually made.
fn get(target: &str) -> Vec<u8> {
    lines(&[&format!("GET {target} HTTP/1.1"), "host: x"])
}

/// A request with a JSON body.
fn post(target: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    send("POST", target, body)
}

fn send(method: &str, target: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = lines(&[
        &format!("{method} {target} HTTP/1.1"),
        "host: x",
        "content-type: application/json",
        &format!("content-length: {}", body.len()),
    ]);
    [&head, body].concat()
}

const RUNS: &str = "/v1/agents/a/runs";

async fn garbage_is_refused_in_the_documented_shape(url: String) {
    let database = if url.starts_with("sqlite") { "SQLite" } else { "Postgres" };
    let report = Report::new("P31", "garbage by hand", database);
    let server = Setup::new(url, "").start().await;
    let agent = json!({"agent_id": "a", "model": "builtin/echo"});
    server.client.post("/v1/agents", &agent).await.expect(201);
    let run = server.client.run_to_end("a", &json!({"input": "x"})).await;
    let run_id = run["run_id"].as_str().expect("run_id");
    let (memory, files) = (server.memory(), server.open_files());

    let cases: Vec<Case> = heads::cases(run_id).into_iter().chain(bodies::cases()).collect();
    let count = cases.len() as u64;
    let all = cases.into_iter().map(|case| try_one(&server, case, &report));
    stream::iter(all).buffer_unordered(AT_ONCE).collect::<()>().await;

    is_well(&server, &report).await;
    let grown = server.memory().saturating_sub(memory);
    report.check(grown <= MEMORY, || format!("{grown} bytes of memory were kept"));
    until_closed(&server, files, &report).await;
    let log = server.log();
    let failed: Vec<&str> = log.lines().filter(|line| line.contains("\"status\":5")).collect();
    report.check(failed.is_empty(), || format!("the log says {failed:?}"));
    report.check(!log.contains("panicked"), || "it panicked".to_owned());
    report.note(format!("{count} requests, memory +{} KiB", grown / 1024));
    report.finish(count);
}

async fn try_one(server: &Server, case: Case, report: &Report) {
    let mut wire = Wire::open(server.client.address()).await;
    wire.send(&case.bytes).await;
    if matches!(case.then, Then::Dropped | Then::Bare) {
        // Nothing more comes, so that nobody has to wait for it.
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut wire.socket).await;
    }
    let Ok(said) = tokio::time::timeout(ANSWERED, wire.answer()).await else {
        report.check(false, || format!("{}: no answer", case.name));
        return;
    };
    report.fault(true);
    report.check(is_as_expected(case.then, said.as_ref()), || {
        let said = said.as_ref().map(|s| (s.status, String::from_utf8_lossy(&s.body).into_owned()));
        format!("{}: {:?} was expected, and {said:?} came", case.name, case.then)
    });
    if case.then == Then::Last {
        let second = tokio::time::timeout(ANSWERED, wire.answer()).await;
        let closed = matches!(second, Ok(None));
        report.check(closed, || format!("{}: then came {second:?}", case.name));
    }
}

fn is_as_expected(then: Then, said: Option<&Said>) -> bool {
    match (then, said) {
        (Then::Refused(status), Some(said)) => said.status == status && is_in_shape(said),
        (Then::Answered | Then::Dropped | Then::Last, Some(said)) => is_in_shape(said),
        (Then::Bare, Some(said)) => {
            matches!(said.status, 400..500) && (said.body.is_empty() || is_in_shape(said))
        }
        (Then::Bare | Then::Dropped, None) => true,
        (Then::Refused(_) | Then::Answered | Then::Last, None) => false,
    }
}

/// An answer of ours: no 5xx, and an error says so as the spec does.
fn is_in_shape(said: &Said) -> bool {
    let body = said.json().unwrap_or_default();
    match said.status {
        200..400 => true,
        400..500 => {
            is_documented_error(&body, said.status)
                && said.header("content-type") == Some("application/json")
                && said.header("x-request-id").map(str::to_ascii_lowercase)
                    == body["request_id"].as_str().map(str::to_ascii_lowercase)
        }
        _ => false,
    }
}

/// It works as before, and nothing was dropped, changed or added that nobody asked for.
async fn is_well(server: &Server, report: &Report) {
    let client = &server.client;
    client.get("/readyz").await.expect(200);
    let run = client.run_to_end("a", &json!({"input": "still there?"})).await;
    report.check(run["status"] == "completed", || run.to_string());
    let agent = client.get("/v1/agents/a").await.expect(200);
    report.check(agent["version"] == 1, || format!("the agent was changed: {agent}"));
    let runs = client.get("/v1/runs?limit=100").await.expect(200);
    let all = runs["data"].as_array().is_some_and(|runs| !runs.is_empty());
    report.check(all, || runs.to_string());
}

async fn until_closed(server: &Server, files: usize, report: &Report) {
    let connections = || peers::held_at(server.client.address()).len();
    let patience = tokio::time::Instant::now() + SETTLED;
    while connections() > KEPT && tokio::time::Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left = connections();
    report.check(left <= KEPT, || format!("{left} connections are still held"));
    let after = server.open_files();
    let most = files + OF_THE_STORE;
    report.check(after <= most, || format!("{files} open files became {after}"));
}

/// What is put where a text is expected.
fn hostile_texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "'; drop table runs; --",
        "\" or 1=1 --",
        "1; select pg_sleep(10)",
        "') union select * from runs --",
        "$1",
        "?1",
        "%s%n",
        "{}",
        "{{7*7}}",
        "${jndi:ldap://x}",
        "../../../etc/passwd",
        "..\\..\\x",
        "/dev/null",
        "file:///etc/passwd",
        "\u{0}",
        "a\u{0}b",
        "\u{7f}\u{1b}[31m",
        "\u{feff}",
        "\u{202e}txt",
        "\u{fffd}",
        "\u{10ffff}",
        "ÄÖÜ",
        "日本語",
        "😀",
        "a\u{301}",
        "-0",
        "NaN",
        "Infinity",
        "null",
        "undefined",
        "true",
        " ",
        "",
        "\r\nx-injected: yes",
        "\n\n\n",
        "\t",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.push("x".repeat(1024 * 1024));
    texts
}

/// The JSON of an object with one more field.
fn with(mut object: Value, pointer: &[&str], value: Value) -> String {
    let mut place = &mut object;
    for field in pointer {
        place = &mut place[*field];
    }
    *place = value;
    object.to_string()
}

//! P22: readers that stopped reading, or hardly read, cost nobody: others see events as they happen,
//! the server's memory stays small, the dead are let go, and whoever comes back has missed nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use stepwell::clock::Clock;
use stepwell::domain::time::Timestamp;
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::wire::{Wire, dechunked};
use super::{create, sqlite};
use crate::support::client::{Client, Frame, Stream, log_of};
use crate::support::files::allow_open_files;
use crate::support::peers;
use crate::support::postgres;
use crate::support::profile::{Report, pick};
use crate::support::server::{Folder, Server, Setup};

const RUNS: usize = 50;
/// Of all events, how late 99 % may be, but for those of a few seconds in which the machine may stand still:
/// what dead readers cost, they would cost all the time.
const LAG: Duration = Duration::from_secs(1);
const STOOD_STILL: usize = 3;
/// A reader that takes nothing is let go.
const CLOSED: Duration = Duration::from_secs(45);
/// Memory of the server for each stream. The promise is 64 KiB: 42 to 66 were seen, in debug builds. This
/// bound leaves room for what an allocator keeps, and tells growth without one.
const MEMORY: u64 = 128 * 1024;
/// What a slow reader takes in a second.
const SLOW: usize = 1024;

/// Before a run talks, everybody has connected.
const CONNECT: Duration = Duration::from_secs(6);
/// First much more than all buffers between the server and a reader can hold: so many steps of so many
/// words of so many bytes.
const STEPS: usize = 16;
const WORDS: usize = 5;
const WORD: usize = 4 * 1024;
/// Milliseconds between two words.
const PACE: u64 = 200;
/// The same when only a little is said, until the end.
const LITTLE: u64 = 500;

/// One database after the other: both at once would take each other's time.
#[tokio::test(flavor = "multi_thread")]
async fn dead_readers_cost_nobody() {
    let folder = Folder::new();
    dead_readers_cost_nobody_on(sqlite(&folder), "SQLite").await;
    dead_readers_cost_nobody_on(postgres::empty_database().await, "Postgres").await;
}

async fn dead_readers_cost_nobody_on(url: String, database: &'static str) {
    let (streams, dead, slow) = pick((600, 60, 60), (5_000, 500, 500));
    let report = Report::new("P22", "readers that never read, or 1 KB/s", database);
    allow_open_files(16_384);
    let server = Setup::new(url, "").start().await;
    let client = &server.client;
    client.post("/v1/agents", &talker()).await.expect(201);
    client.post("/v1/agents", &warm_up()).await.expect(201);
    // What so many runs cost by themselves is not the readers' affair.
    let runs = join_all((0..RUNS).map(|_| create(client, "warm-up"))).await;
    for run_id in &runs {
        client.events(run_id, 0).await.rest().await;
    }
    let runs: Vec<String> = join_all((0..RUNS).map(|_| create(client, "talker"))).await;
    let before = server.memory();
    report.note(format!("{} MiB before", before >> 20));

    let (over, is_over) = watch::channel(false);
    let mut dead_ones = Vec::new();
    let mut slow_ones = JoinSet::new();
    let mut healthy = JoinSet::new();
    for n in 0..streams {
        let run_id = runs[n % RUNS].clone();
        if n < dead {
            dead_ones.push((ask(&server, &run_id).await, run_id));
        } else if n < dead + slow {
            slow_ones.spawn(drag(ask(&server, &run_id).await, run_id, is_over.clone()));
        } else {
            healthy.spawn(follow(client.clone(), run_id));
        }
    }
    let ours = |wire: &Wire| wire.socket.local_addr().expect("an address");
    let dead_ones_at: Vec<SocketAddr> = dead_ones.iter().map(|(wire, _)| ours(wire)).collect();

    // Somebody who reads has seen the last word of the many; nobody who is dead can have.
    let mut guide = client.events(&runs[0], 0).await;
    for _ in 0..STEPS {
        guide.until("message.completed").await;
    }
    drop(guide);
    let (closed, most) = until_let_go(&server, &dead_ones_at, &report).await;
    let a_stream = most.saturating_sub(before) / streams as u64;
    report.check(a_stream <= MEMORY, || format!("{a_stream} bytes of memory for each stream"));

    for run_id in &runs {
        let path = format!("/v1/runs/{run_id}/cancel");
        let answer = client.post(&path, &json!({})).await;
        report.check(answer.status < 300, || answer.body.to_string());
    }
    let logs = logs(client, &runs).await;
    let mut late_ones = Vec::new();
    for (run_id, frames, late) in healthy.join_all().await {
        report.check(log_of(&frames) == logs[&run_id], || {
            format!("a reader of {run_id} missed something")
        });
        late_ones.extend(late);
    }
    over.send_replace(true);
    let mut cut_off = 0;
    for (run_id, mut frames, was_closed) in slow_ones.join_all().await {
        cut_off += usize::from(was_closed);
        report.fault(frames.len() < logs[&run_id].len());
        resume(client, &run_id, &mut frames).await;
        report.check(frames == logs[&run_id], || {
            format!("a slow reader of {run_id} missed something")
        });
    }
    for (wire, run_id) in dead_ones {
        drop(wire);
        let mut frames = Vec::new();
        resume(client, &run_id, &mut frames).await;
        report.check(frames == logs[&run_id], || {
            format!("a dead reader of {run_id} missed something")
        });
    }
    let mut lags = but_for_the_worst_seconds(late_ones);
    lags.sort_unstable();
    let p99 = lags.get(lags.len() * 99 / 100).copied().unwrap_or_default();
    report.check(p99 <= LAG, || format!("the p99 of the lag is {p99:?}"));
    report.note(format!("lag p50 {} ms", lags[lags.len() / 2].as_millis()));
    report.note(format!("p99 {} ms of {}", p99.as_millis(), lags.len()));
    report.note(format!("dead closed {:.1} s after the flood", closed.as_secs_f64()));
    report.note(format!("{cut_off} of {slow} slow ones cut off"));
    report.note(format!("{} KiB a stream at most", a_stream / 1024));
    report.finish((dead + slow) as u64);
}

/// Talks much, then a little until it is cancelled.
fn talker() -> Value {
    let much = |step: usize| {
        let words: Vec<String> = (0..WORDS).map(|n| format!("{n:x>WORD$}")).collect();
        let call = json!([{"tool": "echo", "arguments": {"text": "on"}}]);
        let delay = if step == 0 { CONNECT.as_millis() } else { 0 };
        json!({"text": words.join(" "), "chunk_delay_ms": PACE, "delay_ms": delay, "tool_calls": call})
    };
    let little: Vec<String> = (0..2_000).map(|n| format!("little{n}")).collect();
    let mut script: Vec<Value> = (0..STEPS).map(much).collect();
    script.push(json!({"text": little.join(" "), "chunk_delay_ms": LITTLE}));
    json!({
        "agent_id": "talker",
        "model": "builtin/script",
        "tools": [{"type": "builtin", "name": "echo"}],
        "script": script,
        "max_steps": STEPS + 1,
    })
}

/// Talks as much, to one reader, and that is all.
fn warm_up() -> Value {
    let mut agent = talker();
    agent["agent_id"] = json!("warm-up");
    let script = agent["script"].as_array_mut().expect("a script");
    script[0]["delay_ms"] = json!(0);
    script.pop();
    agent
}

/// A stream that was asked for on a socket that holds little.
async fn ask(server: &Server, run_id: &str) -> Wire {
    let mut wire = Wire::open_narrow(server.client.address()).await;
    let head = format!("GET /v1/runs/{run_id}/events HTTP/1.1\r\nhost: x\r\n\r\n");
    wire.send(head.as_bytes()).await;
    wire
}

/// When an event was made, and how late it came.
type Late = (Timestamp, Duration);

/// One who reads as fast as events come; what it saw, and how late what came was that was made since it is
/// there.
async fn follow(client: Client, run_id: String) -> (String, Vec<Frame>, Vec<Late>) {
    let mut stream: Stream = client.events(&run_id, 0).await;
    let here = Clock::system().now();
    let (mut frames, mut late) = (Vec::new(), Vec::new());
    while let Some(frame) = stream.next().await {
        if frame.event == "message.delta" {
            let made_at = frame.json()["created_at"].as_str().and_then(|at| at.parse().ok());
            let made_at: Timestamp = made_at.expect("created_at");
            if made_at >= here {
                late.push((made_at, Clock::system().now().since(made_at)));
            }
        }
        frames.push(frame);
    }
    (run_id, frames, late)
}

/// The lags of all seconds but the few whose events came the latest.
fn but_for_the_worst_seconds(late: Vec<Late>) -> Vec<Duration> {
    let mut seconds: HashMap<i64, Vec<Duration>> = HashMap::new();
    for (made_at, lag) in late {
        seconds.entry(made_at.millis() / 1_000).or_default().push(lag);
    }
    let mut seconds: Vec<Vec<Duration>> = seconds.into_values().collect();
    seconds.sort_unstable_by_key(|lags| lags.iter().max().copied());
    seconds.truncate(seconds.len().saturating_sub(STOOD_STILL).max(1));
    seconds.concat()
}

/// One who takes a kilobyte a second; what it saw, and whether it was closed on it.
async fn drag(
    mut wire: Wire,
    run_id: String,
    mut is_over: watch::Receiver<bool>,
) -> (String, Vec<Frame>, bool) {
    let mut got = Vec::new();
    let mut some = [0; SLOW];
    let was_closed = loop {
        let next = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            wire.socket.read(&mut some).await
        };
        tokio::select! {
            read = next => match read {
                Ok(count @ 1..) => got.extend_from_slice(&some[..count]),
                _ => break true,
            },
            _ = is_over.wait_for(|over| *over) => break false,
        }
    };
    let body = memchr::memmem::find(&got, b"\r\n\r\n").map_or(&[][..], |end| &got[end + 4..]);
    (run_id, log_of(&frames_in(&dechunked(body).0)), was_closed)
}

/// The events that are there in full.
fn frames_in(body: &[u8]) -> Vec<Frame> {
    let text = String::from_utf8_lossy(body);
    let Some((whole, _cut)) = text.rsplit_once("\n\n") else { return Vec::new() };
    let frame = |block: &str| {
        let field = |name: &str| {
            let line = block.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::to_owned)
        };
        Some(Frame { id: field("id: "), event: field("event: ")?, data: field("data: ")? })
    };
    whole.split("\n\n").filter_map(frame).collect()
}

/// Comes back with the cursor, and reads to the end.
async fn resume(client: &Client, run_id: &str, frames: &mut Vec<Frame>) {
    let after = frames.last().map_or(0, Frame::seq);
    frames.extend(log_of(&client.events(run_id, after).await.rest().await));
}

/// The whole log of each run, once it has ended.
async fn logs(client: &Client, runs: &[String]) -> HashMap<String, Vec<Frame>> {
    let mut logs = HashMap::new();
    for run_id in runs {
        logs.insert(run_id.clone(), log_of(&client.events(run_id, 0).await.rest().await));
    }
    logs
}

/// Waits until the server holds none of these connections any more. How long it took, and the most
/// memory that the server had meanwhile.
async fn until_let_go(server: &Server, dead: &[SocketAddr], report: &Report) -> (Duration, u64) {
    let began = Instant::now();
    let held = || {
        let held = peers::held_at(server.client.address());
        dead.iter().filter(|address| held.contains(address)).count()
    };
    // The kernel's table is not read in one moment: a connection may be missed.
    let first = (0..3).map(|_| held()).max().unwrap_or_default();
    let (mut left, mut most) = (first, server.memory());
    while left > 0 && began.elapsed() <= CLOSED {
        tokio::time::sleep(Duration::from_millis(250)).await;
        left = held();
        most = most.max(server.memory());
    }
    for n in 0..first {
        // Held on to at first, for they might have come back; then let go.
        report.fault(n >= left);
    }
    report.check(left == 0, || format!("{left} dead readers are held after {CLOSED:?}"));
    (began.elapsed(), most)
}

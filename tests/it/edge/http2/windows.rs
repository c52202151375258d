//! P22 over HTTP/2: an answer that its client stopped reading is let go, alone.
//!
//! Each answer on a connection has a window, which the client opens as it reads. The socket stays in order
//! whatever one of them does.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;

use super::frames::{
    DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame,
    get,
};
use crate::edge::wire::Wire;
use crate::edge::{create, sqlite};
use crate::support::profile::Report;
use crate::support::server::{Folder, Server, Setup};

/// The setting `edge.stall_seconds` of the server here: so long may this test stand still before it is taken
/// for somebody who does not read.
const STALL: Duration = Duration::from_secs(5);
/// How late it may be to notice, on a busy machine.
const LATE: Duration = Duration::from_secs(10);
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that each answer may send before its client has read any.
const WINDOW: u32 = 200;
/// What the slow one reads of its answer, and how often.
const SIP: u32 = 16;
const SIPS: Duration = Duration::from_millis(500);
/// Much more than the slow one reads meanwhile, in one event.
const MUCH: usize = 20 * 1024;

/// The answers, by their streams.
const DEAD: u32 = 1;
const SLOW: u32 = 3;
const HEALTHY: u32 = 5;
/// Not an event stream.
const PLAIN: u32 = 7;

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_read_is_reset_and_its_siblings_go_on() {
    let report = Report::new("P22", "HTTP/2: answers that are not read, or slowly", "SQLite");
    let folder = Folder::new();
    let yaml = format!("edge: {{ stall_seconds: {}, max_streams: 3 }}", STALL.as_secs());
    let server = Setup::new(sqlite(&folder), yaml).start().await;
    let client = &server.client;
    // Far longer than all of this takes.
    let little = "tick ".repeat(PATIENCE.as_secs() as usize * 5 * 5);
    let script = json!([{"text": format!("{} {little}", "m".repeat(MUCH)), "chunk_delay_ms": 200}]);
    let agent = json!({"agent_id": "a", "model": "builtin/script", "script": script});
    client.post("/v1/agents", &agent).await.expect(201);
    let run_id = create(client, "a").await;
    // All three get it out of the log, and then what comes.
    client.events(&run_id, 0).await.until("message.delta").await;

    let mut connection = Connection::open(&server).await;
    let events = format!("/v1/runs/{run_id}/events");
    for stream in [DEAD, SLOW, HEALTHY] {
        connection.ask(stream, &events).await;
    }
    // It has the configuration of all agents, and so the script.
    connection.ask(PLAIN, "/v1/agents/a").await;
    let all = [DEAD, SLOW, HEALTHY, PLAIN];
    connection.read_until(|of| all.iter().all(|stream| of[stream].bytes > 0)).await;
    let full = client.send(client.request(Method::GET, &events)).await;
    // None was let go before that.
    if connection.answer(DEAD).asked_at.elapsed() < STALL {
        report
            .check(full.status == 503, || format!("the streams are not counted: {}", full.status));
    }
    connection.read_until(|of| of[&DEAD].ended_at.is_some() && of[&PLAIN].ended_at.is_some()).await;
    // Long enough to see that who reads is not let go.
    let sips = connection.read_for(2 * STALL).await;

    for stream in [DEAD, PLAIN] {
        let answer = connection.answer(stream);
        report.fault(answer.bytes == WINDOW);
        // CANCEL
        report.check(answer.reset == Some(8), || format!("stream {stream}: {answer:?}"));
        let ended_at = answer.ended_at.unwrap_or(answer.asked_at);
        // The server counts from when the last byte left, which is between these two.
        let since_asked = ended_at.duration_since(answer.asked_at);
        report.check(since_asked >= STALL, || {
            format!("stream {stream}: {since_asked:?} from asking")
        });
        let since_moved = ended_at.saturating_duration_since(answer.moved_at);
        report.check(since_moved <= STALL + LATE, || {
            format!("stream {stream} was reset {since_moved:?} after its last byte")
        });
    }
    let slow = connection.answer(SLOW);
    report.fault(slow.bytes > WINDOW);
    report.check(slow.ended_at.is_none(), || format!("a slow reader was let go: {slow:?}"));
    // All but what may just be under way.
    let taken = slow.bytes.saturating_sub(WINDOW);
    report.check(taken >= sips / 2 * SIP, || format!("it got {taken} bytes in {sips} sips"));
    let healthy = connection.answer(HEALTHY);
    report.check(healthy.bytes as usize > MUCH && healthy.reset.is_none(), || {
        format!("a healthy sibling: {healthy:?}")
    });
    report.check(Some(healthy.moved_at) > connection.answer(DEAD).ended_at, || {
        format!("it stands still: {healthy:?}")
    });
    // Its place is free again.
    let free = client.stream(client.request(Method::GET, &events)).await;
    report.check(free.response.status() == 200, || "the dead one keeps its place".to_owned());
    report.finish(3);
}

/// What has come of an answer.
#[derive(Debug, Clone)]
struct Answer {
    asked_at: Instant,
    bytes: u32,
    /// When its last byte came.
    moved_at: Instant,
    ended_at: Option<Instant>,
    reset: Option<u32>,
}

/// A connection that reads its answers as their names say.
struct Connection {
    from: ReadHalf<TcpStream>,
    to: WriteHalf<TcpStream>,
    got: Vec<u8>,
    answers: HashMap<u32, Answer>,
}

impl Connection {
    async fn open(server: &Server) -> Self {
        let mut wire = Wire::open(server.client.address()).await;
        // Small windows for the answers, a large one for all of them together.
        let small = frame(SETTINGS, 0, 0, &[&[0, 4], WINDOW.to_be_bytes().as_slice()].concat());
        let large = frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 24).to_be_bytes());
        wire.send(&[PREFACE, &small, &large].concat()).await;
        let (from, to) = tokio::io::split(wire.socket);
        Self { from, to, got: Vec::new(), answers: HashMap::new() }
    }

    async fn send(&mut self, bytes: &[u8]) {
        tokio::io::AsyncWriteExt::write_all(&mut self.to, bytes).await.expect("it is taken");
    }

    async fn ask(&mut self, stream: u32, path: &str) {
        let now = Instant::now();
        let answer = Answer { asked_at: now, bytes: 0, moved_at: now, ended_at: None, reset: None };
        self.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &get(path))).await;
        self.answers.insert(stream, answer);
    }

    fn answer(&self, stream: u32) -> Answer {
        self.answers[&stream].clone()
    }

    /// Reads on until the answers are like this, or nobody believes any more that they will be.
    async fn read_until(&mut self, is_so: impl Fn(&HashMap<u32, Answer>) -> bool) {
        let until = Instant::now() + PATIENCE;
        self.read_while(|of| !is_so(of) && Instant::now() < until).await;
    }

    /// Reads on for this time; gives the sips of the slow one.
    async fn read_for(&mut self, time: Duration) -> u32 {
        let until = Instant::now() + time;
        self.read_while(|_| Instant::now() < until).await
    }

    async fn read_while(&mut self, goes_on: impl Fn(&HashMap<u32, Answer>) -> bool) -> u32 {
        let mut clock = tokio::time::interval(SIPS);
        let mut sips = 0;
        while goes_on(&self.answers) {
            tokio::select! {
                read = self.from.read_buf(&mut self.got) => {
                    assert!(read.is_ok_and(|count| count > 0), "the connection has ended");
                }
                _ = clock.tick() => {
                    self.open_window(SLOW, SIP).await;
                    sips += 1;
                }
            }
            while let Some((kind, flags, stream, payload)) = self.frame() {
                self.take(kind, flags, stream, &payload).await;
            }
        }
        sips
    }

    async fn open_window(&mut self, stream: u32, by: u32) {
        self.send(&frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())).await;
    }

    async fn take(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let Some(answer) = self.answers.get_mut(&stream) else { return };
        let is_end = kind == RST_STREAM || (kind == DATA && flags & END_STREAM != 0);
        if is_end {
            answer.ended_at = Some(Instant::now());
        }
        if kind == RST_STREAM {
            answer.reset = Some(u32::from_be_bytes(payload.try_into().expect("a code")));
        }
        if kind == DATA && !payload.is_empty() {
            let count = payload.len() as u32;
            answer.bytes += count;
            answer.moved_at = Instant::now();
            if stream == HEALTHY && !is_end {
                self.open_window(HEALTHY, count).await;
            }
        }
    }

    /// The next frame that has come in full.
    fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let head: [u8; 9] = self.got.get(..9)?.try_into().ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = self.got.get(9..9 + length)?.to_vec();
        self.got.drain(..9 + length);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream, payload))
    }
}

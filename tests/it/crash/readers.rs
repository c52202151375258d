//! A fleet of readers. Each follows one run to its end, whatever happens to the servers: it drops its
//! connection after a random number of events and comes back with a random cursor, its last event or
//! an earlier one, to a random node.
//!
//! What any of them saw is written down once, by run and `seq`; whoever sees other bytes under the
//! same number, or a gap, a repeat or a wrong order within one connection, reports a violation.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use reqwest::Method;
use stepwell::clock::Clock;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::support::client::{Client, Frame, Stream};
use crate::support::random::Random;

/// Before a reader tries again after a connection that could not be made, or a 503; an `EventSource`
/// waits longer.
const RETRY: Duration = Duration::from_millis(25);
const AWAY: Duration = Duration::from_millis(500);
/// Events after which a reader drops its connection, at most.
const PATIENCE: u64 = 120;
/// How long readers have to see the ends of their runs once the faults are over.
const FINISH: Duration = Duration::from_secs(120);

/// What was seen of one run.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The bytes of each event, by `seq`.
    pub events: BTreeMap<i64, String>,
    /// When the newest event was made, by the server's clock, which is ours.
    pub newest: String,
    /// Its final event was seen.
    pub ended: bool,
}

/// What the whole fleet saw.
#[derive(Default)]
pub struct Board {
    runs: Mutex<HashMap<String, Seen>>,
    violations: Mutex<Vec<String>>,
    resumes: Mutex<u64>,
    checks: Mutex<u64>,
    /// Streams that are open.
    streams: watch::Sender<u64>,
    /// Streams that a server ended because it stops.
    drained: Mutex<u64>,
    /// Events that were seen for the first time by anybody.
    fresh: watch::Sender<u64>,
}

impl Board {
    fn runs(&self) -> MutexGuard<'_, HashMap<String, Seen>> {
        self.runs.lock().expect("no panic")
    }

    fn violation(&self, what: String) {
        println!("violation: {what}");
        self.violations.lock().expect("no panic").push(what);
    }

    /// Writes an event down, and compares it with what others saw.
    pub fn saw(&self, run_id: &str, frame: &Frame) {
        *self.checks.lock().expect("no panic") += 1;
        let (seq, made_at) = (frame.seq(), created_at(frame));
        let mut runs = self.runs();
        let seen = runs.entry(run_id.to_owned()).or_default();
        let known = seen.events.get(&seq).map(|known| *known == frame.data);
        if known.is_none() {
            seen.events.insert(seq, frame.data.clone());
            seen.ended |= frame.is_final();
            seen.newest = std::mem::take(&mut seen.newest).max(made_at);
        }
        drop(runs);
        match known {
            Some(true) => {}
            Some(false) => self.violation(format!("{run_id}: event {seq} has changed: {frame:?}")),
            None => self.fresh.send_modify(|fresh| *fresh += 1),
        }
    }

    /// What was seen of a run.
    pub fn seen(&self, run_id: &str) -> Seen {
        self.runs().get(run_id).cloned().unwrap_or_default()
    }

    /// How many new events were seen so far.
    pub fn fresh(&self) -> u64 {
        *self.fresh.borrow()
    }

    /// When the newest event was made that anybody has seen.
    pub fn newest(&self) -> String {
        self.runs().values().map(|seen| seen.newest.clone()).max().unwrap_or_default()
    }

    /// How many events of this type were seen so far.
    pub fn count(&self, event_type: &str) -> usize {
        let of_type = of_type(event_type);
        let runs = self.runs();
        let events = runs.values().flat_map(|seen| seen.events.values());
        events.filter(|event| event.starts_with(&of_type)).count()
    }

    /// Resolves when so many new events were seen in all.
    pub async fn until_fresh(&self, count: u64) {
        let mut fresh = self.fresh.subscribe();
        fresh.wait_for(|fresh| *fresh >= count).await.expect("the board is there");
    }

    /// Resolves when somebody has seen an event of the run that was made after `since`.
    pub async fn until_moved(&self, run_id: &str, since: &str) {
        let mut fresh = self.fresh.subscribe();
        let moved = |_: &u64| {
            let runs = self.runs();
            runs.get(run_id).is_some_and(|seen| seen.ended || seen.newest.as_str() > since)
        };
        fresh.wait_for(moved).await.expect("the board is there");
    }

    /// Resolves when so many streams are open at the same time.
    pub async fn until_streams(&self, count: u64) {
        let mut streams = self.streams.subscribe();
        streams.wait_for(|streams| *streams >= count).await.expect("the board is there");
    }

    /// How many streams a server ended because it stops.
    pub fn drained(&self) -> u64 {
        *self.drained.lock().expect("no panic")
    }

    /// Resolves when somebody has seen an event of this type of the run.
    pub async fn until_seen(&self, run_id: &str, event_type: &str) {
        let of_type = of_type(event_type);
        let mut fresh = self.fresh.subscribe();
        let seen = |_: &u64| {
            let runs = self.runs();
            runs.get(run_id).is_some_and(|s| s.events.values().any(|e| e.starts_with(&of_type)))
        };
        fresh.wait_for(seen).await.expect("the board is there");
    }

    /// Resolves when somebody has seen the final event of the run.
    pub async fn until_ended(&self, run_id: &str) {
        let mut fresh = self.fresh.subscribe();
        let ended = |_: &u64| self.runs().get(run_id).is_some_and(|seen| seen.ended);
        fresh.wait_for(ended).await.expect("the board is there");
    }
}

/// How events of this type begin.
fn of_type(event_type: &str) -> String {
    format!("{{\"type\":\"{event_type}\"")
}

fn created_at(frame: &Frame) -> String {
    frame.json()["created_at"].as_str().expect("created_at").to_owned()
}

/// The time, as events write it: comparable with their `created_at`.
pub fn now() -> String {
    let now = serde_json::to_value(Clock::system().now()).expect("a time");
    now.as_str().expect("a text").to_owned()
}

/// The readers.
pub struct Fleet {
    pub board: Arc<Board>,
    nodes: Arc<Mutex<Vec<Client>>>,
    random: Random,
    readers: JoinSet<()>,
}

/// What a fleet has to tell when it is over.
pub struct Told {
    /// What was seen of each run.
    pub runs: HashMap<String, Seen>,
    /// Connections that were taken up again with a cursor and gave at least one event.
    pub resumes: u64,
    /// Events that were compared.
    pub checks: u64,
    /// What was wrong.
    pub violations: Vec<String>,
}

impl Fleet {
    /// A fleet that reads from these nodes.
    pub fn new(nodes: Vec<Client>, random: &mut Random) -> Self {
        Self {
            board: Arc::default(),
            nodes: Arc::new(Mutex::new(nodes)),
            random: random.fork(),
            readers: JoinSet::new(),
        }
    }

    /// From its next connection on, every reader reads from these nodes.
    pub fn read_from(&self, nodes: Vec<Client>) {
        *self.nodes.lock().expect("no panic") = nodes;
    }

    /// So many readers follow a run.
    pub fn follow(&mut self, run_id: &str, readers: usize) {
        self.board.runs().entry(run_id.to_owned()).or_default();
        for _ in 0..readers {
            let reader = Reader {
                board: Arc::clone(&self.board),
                nodes: Arc::clone(&self.nodes),
                random: self.random.fork(),
                run_id: run_id.to_owned(),
                last: 0,
                connections: 0,
            };
            self.readers.spawn(reader.follow());
        }
    }

    /// Waits until every reader has seen the end of its run.
    pub async fn finish(mut self) -> Told {
        let all = async {
            while let Some(reader) = self.readers.join_next().await {
                reader.expect("a reader that does not panic");
            }
        };
        if tokio::time::timeout(FINISH, all).await.is_err() {
            let left = self.readers.len();
            self.board.violation(format!("{left} readers never saw the end of their runs"));
            self.readers.shutdown().await;
        }
        let board = &self.board;
        Told {
            runs: board.runs().clone(),
            resumes: *board.resumes.lock().expect("no panic"),
            checks: *board.checks.lock().expect("no panic"),
            violations: board.violations.lock().expect("no panic").clone(),
        }
    }
}

struct Reader {
    board: Arc<Board>,
    nodes: Arc<Mutex<Vec<Client>>>,
    random: Random,
    run_id: String,
    /// The highest `seq` that this reader has had.
    last: i64,
    connections: u64,
}

impl Reader {
    async fn follow(mut self) {
        loop {
            let earlier = self.random.one_in(4);
            let cursor =
                if earlier { self.random.below(self.last as u64 + 1) as i64 } else { self.last };
            let node = self.random.pick(&self.nodes.lock().expect("no panic")).clone();
            let Some(stream) = self.open(&node, cursor).await else {
                tokio::time::sleep(RETRY).await;
                continue;
            };
            self.board.streams.send_modify(|streams| *streams += 1);
            let is_over = self.read(stream, cursor).await;
            self.board.streams.send_modify(|streams| *streams -= 1);
            if is_over {
                return;
            }
        }
    }

    /// A stream behind the cursor; `None` while the server is away.
    async fn open(&self, node: &Client, cursor: i64) -> Option<Stream> {
        let path = format!("/v1/runs/{}/events?after={cursor}", self.run_id);
        let response = node.request(Method::GET, &path).send().await.ok()?;
        match response.status().as_u16() {
            200 => Some(Stream::new(response)),
            503 => {
                tokio::time::sleep(AWAY).await;
                None
            }
            status => {
                let text = response.text().await.unwrap_or_default();
                let run_id = &self.run_id;
                self.board.violation(format!("{run_id} after {cursor}: {status} {text}"));
                None
            }
        }
    }

    /// Reads for a while. Whether it saw the end.
    async fn read(&mut self, mut stream: Stream, cursor: i64) -> bool {
        let mut at = cursor;
        for n in 0..=self.random.below(PATIENCE) {
            let Some(frame) = stream.next().await else { return false };
            if frame.event.starts_with("stream.") {
                let drained = frame.event == "stream.end" && frame.json()["reason"] == "draining";
                *self.board.drained.lock().expect("no panic") += u64::from(drained);
                return false;
            }
            if n == 0 {
                self.connections += 1;
                let mut resumes = self.board.resumes.lock().expect("no panic");
                *resumes += u64::from(self.connections > 1);
            }
            if frame.seq() != at + 1 {
                let (run_id, seq) = (&self.run_id, frame.seq());
                self.board.violation(format!("{run_id}: event {seq} came after {at}"));
            }
            at = frame.seq();
            self.last = self.last.max(at);
            self.board.saw(&self.run_id, &frame);
            if frame.is_final() {
                return true;
            }
        }
        false
    }
}

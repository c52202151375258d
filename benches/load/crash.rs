//! W5: `kill -9` in the middle of W3. What did readers see that is not there any more, and how long
//! does it take until all is well?

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Fallible;
use crate::client::{Connection, Event, Events, request};
use crate::model::Answer;
use crate::server::{Database, Server};
use crate::workloads::{run_id_in, start_and_stream};

/// When in its four seconds of talk.
const KILL_AFTER: Duration = Duration::from_secs(2);
/// How long runs may take to their ends before they are given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came of it.
pub struct Crashed {
    /// Events that a reader saw before, and that are gone or different after.
    pub lost: f64,
    /// Places in a log with no event, or with an event behind the last.
    pub gaps: f64,
    /// Seconds from ready until the last run went on: its open step had begun again.
    pub goes_on: f64,
    /// Seconds from ready until the last run had ended.
    pub ended: f64,
    /// The longest of all from there, where a run went on, to its end.
    pub rest: f64,
}

/// What a reader knows of a log: the fingerprint of each event by its seq.
#[derive(Default)]
struct Seen {
    run_id: String,
    events: BTreeMap<usize, u64>,
    is_final: bool,
    /// An event was another one before.
    changed: usize,
}

impl Seen {
    fn take(&mut self, event: Event<'_>) {
        let Some(seq) = event.seq else { return };
        let mut hasher = DefaultHasher::new();
        event.data.hash(&mut hasher);
        let fingerprint = hasher.finish();
        let before = self.events.insert(seq, fingerprint);
        self.changed += usize::from(before.is_some_and(|before| before != fingerprint));
        if self.run_id.is_empty() {
            self.run_id = run_id_in(event.data).unwrap_or_default();
        }
        self.is_final |= [&b"run.completed"[..], b"run.failed", b"run.incomplete", b"run.expired"]
            .contains(&event.name);
    }

    fn last(&self) -> usize {
        self.events.last_key_value().map_or(0, |(seq, _)| *seq)
    }

    /// Reads a stream until it ends or breaks off, and says when a step began again. What is merely new to
    /// this reader does not count: it may have been durable before the kill.
    async fn read(&mut self, address: SocketAddr, ask: &[u8]) -> std::io::Result<Option<Instant>> {
        let mut restarted = None;
        let mut connection = Connection::open(address).await?;
        let head = connection.begin(ask).await?;
        let mut events = Events::default();
        let take = |piece: &[u8]| {
            events.take(piece, &mut |event| {
                self.take(event);
                if event.name == b"step.restarted" && restarted.is_none() {
                    restarted = Some(Instant::now());
                }
            });
        };
        // Broken off by the kill, or ended by the server: what was seen counts.
        let _ = connection.body(&head, take).await;
        Ok(restarted)
    }
}

/// Kills the server in the middle of so many streams and starts it again.
pub async fn kill_and_restart(
    database: &Database,
    model: SocketAddr,
    runs: usize,
    answer: Answer,
) -> Fallible<Crashed> {
    let server = Server::start(database, model).await?;
    let (address, mut readers) = (server.address, JoinSet::new());
    for _ in 0..runs {
        readers.spawn(async move {
            let mut seen = Seen::default();
            // One that had no answer when the kill came has seen nothing.
            let _ = seen.read(address, &start_and_stream(answer)).await;
            seen
        });
    }
    tokio::time::sleep(KILL_AFTER).await;
    server.kill();
    let seen: Vec<Seen> = readers.join_all().await;
    let seen: Vec<Seen> = seen.into_iter().filter(|seen| !seen.run_id.is_empty()).collect();
    if seen.len() < runs / 2 || seen.iter().any(|seen| seen.is_final) {
        return Err(format!("the kill met {} of {runs} runs in their middle", seen.len()).into());
    }

    let server = Server::start(database, model).await?;
    let (address, ready) = (server.address, Instant::now());
    let mut readers = JoinSet::new();
    for mut seen in seen {
        readers.spawn(async move {
            let path = format!("/v1/runs/{}/events", seen.run_id);
            let resume = request("GET", &format!("{path}?after={}", seen.last()), "");
            let restarted = seen.read(address, &resume).await?;
            let ended = Instant::now();
            // Now all of it again, from the beginning, as somebody who comes late gets it.
            let mut again = Seen::default();
            again.read(address, &request("GET", &path, "")).await?;
            Ok::<_, std::io::Error>((seen, again, restarted, ended))
        });
    }
    let mut crashed = Crashed { lost: 0.0, gaps: 0.0, goes_on: 0.0, ended: 0.0, rest: 0.0 };
    let judge = async {
        while let Some(read) = readers.join_next().await {
            let (seen, again, restarted, ended) = read??;
            if !again.is_final {
                return Err(format!("run {} did not end", seen.run_id).into());
            }
            let differs = |(seq, event): &(&usize, &u64)| again.events.get(seq) != Some(event);
            crashed.lost += (seen.events.iter().filter(differs).count() + seen.changed) as f64;
            crashed.gaps += (again.last() - again.events.len()) as f64;
            let seconds = |at: Instant| at.duration_since(ready).as_secs_f64();
            let went_on = restarted.map_or(f64::INFINITY, seconds);
            crashed.goes_on = crashed.goes_on.max(went_on);
            crashed.ended = crashed.ended.max(seconds(ended));
            crashed.rest = crashed.rest.max(seconds(ended) - went_on);
        }
        Fallible::Ok(())
    };
    tokio::time::timeout(PATIENCE, judge).await.map_err(|_| "runs did not end")??;
    Ok(crashed)
}

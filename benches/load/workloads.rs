//! W1 to W4, replay and GET: what is asked of the server, and how it did.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memchr::memmem;
use tokio::task::JoinSet;

use crate::Fallible;
use crate::client::{Connection, Events, request, stamps};
use crate::machine::{Used, Watch, micros, millis, resident_kib};
use crate::model::Answer;
use crate::server::Server;

/// Callers of what is asked as often as possible.
const CALLERS: usize = 64;
/// How long a workload may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was asked as often as possible.
pub struct Asked {
    /// Times a second.
    pub per_second: f64,
    /// Times.
    pub count: f64,
    /// Milliseconds that each took.
    pub took: Vec<f64>,
    /// Who used the processors.
    pub used: Used,
}

/// W1: runs of one step and 20 tokens, so many at a time; each caller waits for the end of its run.
pub async fn wait_for_runs(server: &Server, callers: usize, each: Duration) -> Fallible<Asked> {
    let body = format!("{{\"input\":\"{}\"}}", Answer { tokens: 20, delay: 0 }.input());
    let ask = request("POST", "/v1/agents/bench/runs?wait=30", &body);
    let fine = |body: &[u8]| memmem::find(body, b"\"status\":\"completed\"").is_some();
    as_often_as_possible(server, callers, each, vec![ask], fine).await
}

/// `GET` of runs that have ended.
pub async fn get_runs(server: &Server, run_ids: &[String], each: Duration) -> Fallible<Asked> {
    let asks = run_ids.iter().map(|id| request("GET", &format!("/v1/runs/{id}"), "")).collect();
    as_often_as_possible(server, CALLERS, each, asks, |body| body.starts_with(b"{\"run_id\"")).await
}

async fn as_often_as_possible(
    server: &Server,
    callers: usize,
    each: Duration,
    requests: Vec<Vec<u8>>,
    fine: impl Fn(&[u8]) -> bool + Copy + Send + 'static,
) -> Fallible<Asked> {
    let (requests, address) = (Arc::new(requests), server.address);
    let watch = Watch::start(server.watched());
    let (began, mut running) = (Instant::now(), JoinSet::new());
    for n in 0..callers {
        let requests = requests.clone();
        running.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut took = Vec::new();
            for request in requests.iter().cycle().skip(n) {
                if began.elapsed() >= each {
                    break;
                }
                let asked = Instant::now();
                let (status, body) = connection.exchange(request).await?;
                if status != 200 || !fine(&body) {
                    return Err(unexpected(status, &body));
                }
                took.push(millis(asked.elapsed()));
            }
            Ok(took)
        });
    }
    let took: Vec<Vec<f64>> = all(running).await?;
    let (wall, used) = (began.elapsed().as_secs_f64(), watch.stop());
    let took = took.concat();
    let count = took.len() as f64;
    Ok(Asked { per_second: count / wall, count, took, used })
}

fn unexpected(status: u16, body: &[u8]) -> io::Error {
    let start = String::from_utf8_lossy(body.get(..300).unwrap_or(body)).into_owned();
    io::Error::other(format!("the server answered {status}: {start}"))
}

async fn all<T: Send + 'static>(mut tasks: JoinSet<io::Result<T>>) -> Fallible<Vec<T>> {
    let collect = async {
        let mut results = Vec::with_capacity(tasks.len());
        while let Some(result) = tasks.join_next().await {
            results.push(result??);
        }
        Fallible::Ok(results)
    };
    tokio::time::timeout(PATIENCE, collect).await.map_err(|_| "it took too long")?
}

/// Streams that were read to their ends.
pub struct Streamed {
    /// Seconds until the last of them had ended.
    pub seconds: f64,
    /// Tokens of all of them.
    pub tokens: f64,
    /// Milliseconds from each request to its first token.
    pub first: Vec<f64>,
    /// Milliseconds from when the model sent a token until its reader had it; W2's tokens have none.
    pub delays: Vec<f64>,
    /// The runs.
    pub run_ids: Vec<String>,
    /// Who used the processors.
    pub used: Used,
}

impl Streamed {
    /// Processors that the server and its database kept busy.
    pub fn cores(&self) -> f64 {
        (self.used.server + self.used.postgres) / self.used.wall
    }
}

/// W2, W3, W3+: so many runs at once, each with its stream. All tokens must come, in their order.
pub async fn stream_runs(server: &Server, runs: usize, answer: Answer) -> Fallible<Streamed> {
    let watch = Watch::start(server.watched());
    let (began, mut readers) = (Instant::now(), JoinSet::new());
    for _ in 0..runs {
        readers.spawn(read_run(server.address, answer));
    }
    let read = all(readers).await?;
    let (seconds, used) = (began.elapsed().as_secs_f64(), watch.stop());
    let mut streamed = Streamed {
        seconds,
        tokens: (runs * answer.tokens) as f64,
        first: Vec::new(),
        delays: Vec::new(),
        run_ids: Vec::new(),
        used,
    };
    for mut run in read {
        streamed.first.push(run.first);
        streamed.delays.append(&mut run.delays);
        streamed.run_ids.push(run.run_id);
    }
    Ok(streamed)
}

struct ReadRun {
    run_id: String,
    first: f64,
    delays: Vec<f64>,
}

/// The request that starts a run and answers with its stream.
pub fn start_and_stream(answer: Answer) -> Vec<u8> {
    let body = format!("{{\"input\":\"{}\",\"stream\":true}}", answer.input());
    request("POST", "/v1/agents/bench/runs", &body)
}

/// The id in an event's text.
pub fn run_id_in(data: &[u8]) -> Option<String> {
    let at = memmem::find(data, b"\"run_id\":\"")? + 10;
    let id = data.get(at..)?.split(|byte| *byte == b'"').next()?;
    String::from_utf8(id.to_vec()).ok()
}

async fn read_run(address: SocketAddr, answer: Answer) -> io::Result<ReadRun> {
    let began = Instant::now();
    let mut connection = Connection::open(address).await?;
    let head = connection.begin(&start_and_stream(answer)).await?;
    if head.status != 200 {
        return Err(unexpected(head.status, b""));
    }
    let (mut events, mut tokens, mut ended) = (Events::default(), 0, false);
    let mut run = ReadRun { run_id: String::new(), first: f64::NAN, delays: Vec::new() };
    connection
        .body(&head, |piece| {
            // All that one piece brings came at the same time.
            let now = micros();
            events.take(piece, &mut |event| match event.name {
                b"message.delta" => {
                    if tokens == 0 {
                        run.first = millis(began.elapsed());
                    }
                    for stamp in stamps(event.data) {
                        tokens += 1;
                        if stamp > 0 {
                            run.delays.push(now.saturating_sub(stamp) as f64 / 1e3);
                        }
                    }
                }
                b"run.queued" => run.run_id = run_id_in(event.data).unwrap_or_default(),
                b"run.completed" => ended = true,
                _ => {}
            });
        })
        .await?;
    if tokens != answer.tokens || !ended {
        let asked = answer.tokens;
        return Err(io::Error::other(format!("{tokens} of {asked} tokens came; ended: {ended}")));
    }
    Ok(run)
}

/// The logs of runs that have ended, read over 64 connections. `took` is empty, `count` is events.
pub async fn replay(server: &Server, run_ids: &[String], each: Duration) -> Fallible<Asked> {
    let address = server.address;
    let events_of = |id: &String| request("GET", &format!("/v1/runs/{id}/events"), "");
    let requests: Arc<Vec<_>> = Arc::new(run_ids.iter().map(events_of).collect());
    let watch = Watch::start(server.watched());
    let (began, mut readers) = (Instant::now(), JoinSet::new());
    for n in 0..CALLERS {
        let requests = requests.clone();
        readers.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut count = 0_u32;
            for request in requests.iter().cycle().skip(n) {
                if began.elapsed() >= each {
                    break;
                }
                let head = connection.begin(request).await?;
                let mut events = Events::default();
                connection.body(&head, |piece| events.take(piece, &mut |_| count += 1)).await?;
            }
            Ok(count)
        });
    }
    let count: u32 = all(readers).await?.into_iter().sum();
    let (wall, count) = (began.elapsed().as_secs_f64(), f64::from(count));
    Ok(Asked { per_second: count / wall, count, took: Vec::new(), used: watch.stop() })
}

/// Runs that were held open.
pub struct Held {
    /// KiB of the server's memory for each of them.
    pub kib_a_run: f64,
    /// Who used the processors while they were held.
    pub used: Used,
}

/// W4: so many runs on a model that says a word a second, each with an open stream, held for so long.
pub async fn hold_runs(server: &Server, runs: usize, hold: Duration) -> Fallible<Held> {
    let answer = Answer { tokens: 100_000, delay: 1_000 };
    let before = resident_kib(server.pid());
    let (told, mut tellings) = tokio::sync::mpsc::channel(runs);
    let (address, mut readers) = (server.address, JoinSet::new());
    for _ in 0..runs {
        let told = told.clone();
        readers.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let head = connection.begin(&start_and_stream(answer)).await?;
            let (mut events, mut spoken) = (Events::default(), false);
            let take = |piece: &[u8]| {
                events.take(piece, &mut |event| {
                    if event.name == b"message.delta" && !spoken {
                        spoken = true;
                        // The channel holds one word of everybody.
                        let _ = told.try_send(());
                    }
                });
            };
            connection.body(&head, take).await
        });
    }
    let everybody = async {
        for _ in 0..runs {
            tellings.recv().await;
        }
    };
    // A reader that broke off would never tell.
    tokio::time::timeout(PATIENCE, everybody).await.map_err(|_| "not every stream has begun")?;
    let watch = Watch::start(server.watched());
    tokio::time::sleep(hold).await;
    let used = watch.stop();
    if let Some(ended) = readers.try_join_next() {
        return Err(format!("a stream that was to be held has ended: {ended:?}").into());
    }
    let kib_a_run = (resident_kib(server.pid()) - before) / runs as f64;
    Ok(Held { kib_a_run, used })
}

//! P40: a server that is told to stop lets go of everything politely: streams are told to come back,
//! runs go on elsewhere from the end of their step, and it is gone within 30 s. Told twice, at once.

use std::time::{Duration, Instant};

use serde_json::json;

use super::readers::{self, Fleet};
use super::talker::Talker;
use super::{create, judge, moved_within, talking};
use crate::support::files::allow_open_files;
use crate::support::postgres;
use crate::support::profile::Report;
use crate::support::random::Random;
use crate::support::server::{Folder, Setup};

const RUNS: usize = 200;
/// Readers of each run.
const READERS: usize = 5;
const STOPPED: Duration = Duration::from_secs(30);
const HANDED_OVER: Duration = Duration::from_secs(3);
/// With a second signal, nothing is waited for; with one alone, the tool is.
const AT_ONCE: Duration = Duration::from_secs(5);
const TOOL_SECONDS: u64 = 12;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_told_to_stop_hands_everything_over() {
    let report = Report::new("P40", "SIGTERM with 200 runs, 1,000 streams", "Postgres");
    // A thousand streams are a thousand sockets, here and in the servers.
    allow_open_files(8_192);
    // A step takes two seconds.
    let talker = Talker::start(4, 4, Duration::from_millis(300)).await;
    let url = postgres::empty_database().await;
    let stops = Setup::new(&url, talker.yaml()).start().await;
    let stays = Setup::new(&url, talker.yaml()).start().await;
    let mut fleet = Fleet::new(vec![stops.client.clone()], &mut Random::new());
    let board = fleet.board.clone();
    let runs = talking(&stops.client, &mut fleet, RUNS).await;
    for run_id in &runs {
        fleet.follow(run_id, READERS - 1);
    }
    // Some readers are between two connections at any time.
    board.until_streams((RUNS * READERS * 98 / 100) as u64).await;
    let asked = Instant::now();
    stops.signal("TERM");
    fleet.read_from(vec![stays.client.clone()]);
    let status = stops.gone().await;
    let (took, gone_at) = (asked.elapsed(), readers::now());
    report.check(status.success(), || format!("it ended with {status}"));
    report.check(took <= STOPPED, || format!("it took {took:?} to stop"));
    let slowest = moved_within(HANDED_OVER, &board, &runs, &gone_at, &report).await;
    let drained = board.drained();

    (0..drained).for_each(|_| report.fault(true));
    talker.enough();
    let told = fleet.finish().await;
    for (run_id, seen) in &told.runs {
        let judged = judge::one(&stays.client, run_id, seen, &report).await;
        let run = &judged.run;
        report.check(run["status"] == "completed", || format!("{run_id} is {run}"));
        let broken_off = judged.log.iter().any(|frame| frame.event == "step.restarted");
        report.check(!broken_off, || format!("{run_id} was broken off in the middle of a step"));
    }
    report.add(told.checks, told.violations);
    report.note(format!("stopped in {} ms", took.as_millis()));
    report.note(format!("handed over {} ms later", slowest.as_millis()));
    report.finish((RUNS * READERS * 9 / 10) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_stops_a_server_at_once() {
    let report = Report::new("P40", "a second SIGTERM", "SQLite");
    let folder = Folder::new();
    let url = format!("sqlite://{}", folder.path().join("stepwell.db").display());
    let setup = Setup::new(url, "");
    let server = setup.start().await;
    let call = json!([{"tool": "sleep", "arguments": {"seconds": TOOL_SECONDS}}]);
    let agent = json!({
        "agent_id": "sleeper",
        "model": "builtin/script",
        "tools": [{"type": "builtin", "name": "sleep"}],
        "script": [{"tool_calls": call}],
    });
    server.client.post("/v1/agents", &agent).await.expect(201);
    let run_id = create(&server.client, "sleeper").await;
    let mut stream = server.client.events(&run_id, 0).await;
    stream.until("tool_call.started").await;
    server.signal("TERM");
    stream.until("stream.end").await;
    let asked = Instant::now();
    server.signal("TERM");
    server.gone().await;
    let took = asked.elapsed();
    report.fault(true);
    report.check(took <= AT_ONCE, || format!("it took {took:?} to stop at once"));
    let server = setup.start().await;
    let run = server.client.wait(&run_id).await;
    report.check(run["status"] == "completed", || format!("the run did not go on: {run}"));
    report.finish(1);
}

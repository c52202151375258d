//! The crash suite: *kill it anywhere; nothing is lost, doubled, bricked or overspent.*
//!
//! Every test here starts real server processes on real databases, fires a fault when something is
//! *seen* (the k-th event at a reader, the 202, a request at the model), and then holds what readers
//! saw against what the log says in the end:
//!
//! - [`readers`]: a fleet that follows runs through all of it, dropping and resuming at random
//!   cursors. It writes down every event that anybody ever saw.
//! - [`judge`]: compares that with the log at the end: nothing lost, doubled, reordered or changed,
//!   exactly one end, and every way to read a run tells the same.
//! - one file a promise. Each test counts its faults that really bit, and fails when they are too few.
//!
//! They run apart from all other tests, a few at a time (`tests/run.sh`), for they measure seconds.
//! Each is short by default and long with `STEPWELL_TEST_FULL=1`; see [`crate::support::profile`].

mod cancels;
mod commits;
mod conversations;
mod disks;
mod drain;
mod effects;
mod hostile;
mod interleavings;
mod judge;
mod keys;
mod kills;
mod outages;
mod people;
mod power;
mod readers;
mod recovery;
mod steps;
mod talker;
mod zombies;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use self::readers::{Board, Fleet};
use self::talker::Talker;
use crate::support::client::Client;
use crate::support::profile::Report;

/// With another node there, every run of a dead one moves within this time.
const TAKEN_OVER: Duration = Duration::from_secs(20);
/// One node that is ready again moves all of its runs within this time.
const ALONE: Duration = Duration::from_secs(3);

/// What a machine that stands still for a moment may add to a time that is promised. What goes wrong here takes
/// far longer: a node that is found dead by nothing but its beat, a step that nobody goes on with.
const LATE: Duration = Duration::from_secs(4);

/// An agent of so many steps on the built-in model: words that take `word_ms` each, and a tool call
/// between two steps.
fn walker(steps: usize, words: usize, word_ms: u64) -> Value {
    let turn = |step: usize| {
        let said: Vec<String> = (0..words).map(|word| format!("s{step}w{word}")).collect();
        let call = json!([{"tool": "echo", "arguments": {"text": format!("call {step}")}}]);
        let calls = if step < steps { call } else { json!([]) };
        json!({"text": said.join(" "), "chunk_delay_ms": word_ms, "tool_calls": calls})
    };
    json!({
        "agent_id": "walker",
        "model": "builtin/script",
        "tools": [{"type": "builtin", "name": "echo"}],
        "script": (1..=steps).map(turn).collect::<Vec<_>>(),
        "max_steps": steps + 1,
    })
}

/// Creates a run of an agent; gives its id once its 202 is there.
async fn create(client: &Client, agent_id: &str) -> String {
    let path = format!("/v1/agents/{agent_id}/runs");
    let run = client.post(&path, &json!({"input": "Go"})).await.expect(202);
    run["run_id"].as_str().expect("run_id").to_owned()
}

/// How many runs the server lists, page by page.
async fn count_runs(client: &Client) -> usize {
    let (mut count, mut after) = (0, String::new());
    loop {
        let page = client.get(&format!("/v1/runs?limit=100{after}")).await.expect(200);
        count += page["data"].as_array().expect("data").len();
        if page["has_more"] != true {
            return count;
        }
        after = format!("&after={}", page["last_id"].as_str().expect("an id"));
    }
}

/// So many runs of the talker, each followed by a reader, all of which have begun to talk.
async fn talking(client: &Client, fleet: &mut Fleet, runs: usize) -> Vec<String> {
    client.post("/v1/agents", &Talker::agent()).await.expect(201);
    let mut ids = Vec::new();
    for _ in 0..runs {
        let run_id = create(client, "talker").await;
        fleet.follow(&run_id, 1);
        ids.push(run_id);
    }
    for run_id in &ids {
        fleet.board.until_seen(run_id, "message.delta").await;
    }
    ids
}

/// Checks that each of these runs shows an event made after `since` within the time from now on, but for what
/// the machine may add. Returns how long the slowest took.
async fn moved_within(
    patience: Duration,
    board: &Board,
    runs: &[String],
    since: &str,
    report: &Report,
) -> Duration {
    let asked = Instant::now();
    let moved = runs.iter().map(|run_id| async {
        let moved = tokio::time::timeout(patience + LATE, board.until_moved(run_id, since)).await;
        (asked.elapsed(), moved.is_ok())
    });
    let mut slowest = Duration::ZERO;
    for (run_id, (took, in_time)) in runs.iter().zip(join_all(moved).await) {
        slowest = slowest.max(took);
        report.check(in_time, || {
            let last = board.seen(run_id).events.pop_last();
            format!("{run_id} did not move within {patience:?}: {last:?}")
        });
    }
    slowest
}

//! What is old goes, and readers are told what is missing.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _};
use stepwell::clock::Clock;
use stepwell::domain::retention::Retention;
use stepwell::engine::housekeeping::{Housekeeping, Pass};
use stepwell::shutdown::Tasks;
use stepwell::store::{self, OpenOptions};

use super::{YAML, id, scripted, slow_words};
use crate::support::client::{Client, Frame};
use crate::support::on_both_databases;
use crate::support::postgres;
use crate::support::server::{Server, Setup};

on_both_databases! {
    days_later_deltas_are_gone_and_streams_say_so;
    weeks_later_runs_and_keys_are_gone_and_what_has_not_ended_goes_on;
    a_hole_that_nothing_explains_ends_the_stream;
    a_pass_stops_when_it_is_told_to;
}

const DAY: Duration = Duration::from_secs(24 * 3600);
const KEEP: Retention = Retention { run_days: 30, delta_days: 7 };

/// What housekeeping does on this database, which no server uses, when so much time has passed.
pub async fn pass_after(url: &str, time: Duration, tasks: &Tasks) -> Pass {
    let store = store::open(url, OpenOptions::default()).await.expect("a store");
    let clock = Clock::manual(Clock::system().now());
    clock.advance(time);
    let pass = Housekeeping { store: store.clone(), clock, keep: KEEP }.pass(tasks).await;
    store.close().await;
    pass
}

/// One statement behind the server's back.
pub async fn execute(url: &str, sql: &str) -> u64 {
    let sql = AssertSqlSafe(sql.to_owned());
    if url.starts_with("sqlite:") {
        let mut file = sqlx::SqliteConnection::connect(url).await.expect("the file");
        let done = sqlx::query(sql).execute(&mut file).await.expect("a change").rows_affected();
        file.close().await.expect("closed");
        return done;
    }
    let mut admin = postgres::connect(url).await;
    sqlx::query(sql).execute(&mut admin).await.expect("a change").rows_affected()
}

fn talker() -> Value {
    let turn = slow_words(30, 2);
    let tools = json!([{"tool": "echo", "arguments": {"text": "once"}}]);
    let first = json!({"text": turn["text"], "chunk_delay_ms": 2, "tool_calls": tools});
    scripted("talker", &json!([first, slow_words(20, 2)]))
}

/// Everything that a stream says: entries by their seq, and gaps.
fn told(frames: &[Frame]) -> Vec<(String, i64, i64)> {
    let tell = |frame: &Frame| match frame.event.as_str() {
        "stream.gap" => {
            assert_eq!(frame.id, None);
            let gap = frame.json();
            assert_eq!((&gap["type"], &gap["reason"]), (&json!("stream.gap"), &json!("compacted")));
            let seq = |name: &str| gap[name].as_i64().expect("a seq");
            Some((frame.event.clone(), seq("from_seq"), seq("to_seq")))
        }
        "stream.end" => None,
        _ => Some((frame.event.clone(), frame.seq(), frame.seq())),
    };
    frames.iter().filter_map(tell).collect()
}

async fn stream(client: &Client, run_id: &str, query: &str) -> Vec<Frame> {
    let path = format!("/v1/runs/{run_id}/events?{query}");
    client.stream(client.request(reqwest::Method::GET, &path)).await.rest().await
}

async fn days_later_deltas_are_gone_and_streams_say_so(url: String) {
    let setup = Setup::new(url.clone(), YAML);
    let server = setup.start().await;
    server.client.post("/v1/agents", &talker()).await.expect(201);
    let run_id = id(&server.client.run_to_end("talker", &json!({"input": "Go"})).await);
    let before = stream(&server.client, &run_id, "after=0").await;
    assert!(server.terminate().await.success());

    let pass = pass_after(&url, (KEEP.delta_days - 1) * DAY, &Tasks::new()).await;
    assert_eq!((pass.runs, pass.delta_days + pass.deltas), (0, 0), "{pass:?}");
    let pass = pass_after(&url, (KEEP.delta_days + 1) * DAY, &Tasks::new()).await;
    assert!(pass.delta_days + pass.deltas > 0, "{pass:?}");

    let server = setup.start().await;
    let after = stream(&server.client, &run_id, "after=0").await;
    let facts = |frames: &[Frame]| {
        let is_fact = |f: &&Frame| !f.event.ends_with(".delta") && f.event != "stream.gap";
        frames.iter().filter(is_fact).cloned().collect::<Vec<_>>()
    };
    assert_eq!(facts(&after), facts(&before), "no fact is missing or changed");
    assert!(!after.iter().any(|frame| frame.event.ends_with(".delta")));
    // Gaps and events together are the whole log, in order.
    let told = told(&after);
    let gaps: Vec<_> = told.iter().filter(|(event, ..)| event == "stream.gap").collect();
    assert_eq!(gaps.len(), 2, "{told:?}");
    let mut next = 1;
    for (event, from, to) in &told {
        assert_eq!(*from, next, "{event} in {told:?}");
        next = to + 1;
    }

    // Who comes back with a cursor inside of what is gone hears what is missing behind it.
    let (_, from, to) = *gaps[0];
    let resumed = stream(&server.client, &run_id, &format!("after={}", from + 1)).await;
    let (event, again_from, again_to) = &self::told(&resumed)[0];
    assert_eq!((event.as_str(), *again_from, *again_to), ("stream.gap", from + 2, to));
    let resumed = stream(&server.client, &run_id, &format!("after={to}")).await;
    assert_eq!(resumed[0].seq(), to + 1, "nothing is missing behind the gap");
    // Gaps pass every filter.
    let filtered = stream(&server.client, &run_id, "after=0&types=run.*").await;
    assert_eq!(self::told(&filtered).iter().filter(|(e, ..)| e == "stream.gap").count(), 2);
    // Pages pass over them.
    let page = server.client.get(&format!("/v1/runs/{run_id}/log?limit=100")).await.expect(200);
    assert_eq!(page["data"].as_array().expect("data").len() + 1, facts(&before).len());
    assert!(!server.log().contains("events of a log are missing"));
}

async fn weeks_later_runs_and_keys_are_gone_and_what_has_not_ended_goes_on(url: String) {
    let setup = Setup::new(url.clone(), YAML);
    let server = setup.start().await;
    server.client.post("/v1/agents", &talker()).await.expect(201);
    let create = |server: &Server, key: &'static str, body: Value| {
        let path = "/v1/agents/talker/runs";
        let client = server.client.clone();
        let request = client.request(reqwest::Method::POST, path).header("idempotency-key", key);
        async move { client.send(request.json(&body)).await }
    };
    let old = id(&create(&server, "old", json!({"input": "Go"})).await.expect(202));
    server.client.wait(&old).await;
    let slow = json!({"input": "Go", "config": {"script": [slow_words(100_000, 50)]}});
    let open = id(&create(&server, "open", slow.clone()).await.expect(202));
    let mut events = server.client.events(&open, 0).await;
    for _ in 0..3 {
        events.until("message.delta").await;
    }
    let seen = events.until("message.delta").await;
    // Not handed back: its newest event stays a piece of text.
    server.kill();

    let pass = pass_after(&url, (KEEP.run_days + 1) * DAY, &Tasks::new()).await;
    assert_eq!((pass.runs, pass.keys), (1, 1), "{pass:?}");
    let server = setup.start().await;
    let (run, log) = (format!("/v1/runs/{old}"), format!("/v1/runs/{old}/log"));
    for path in [run.clone(), log, format!("/v1/runs/{old}/events")] {
        server.client.get(&path).await.expect(404);
    }
    server.client.delete(&run).await.expect(404);
    let again = id(&create(&server, "old", json!({"input": "Go"})).await.expect(202));
    assert_ne!(again, old, "the key is free");
    // The other's key still stands for it, and it goes on behind what was seen.
    assert_eq!(id(&create(&server, "open", slow).await.expect(202)), open);
    // What was written behind that before the kill may be gone with the other deltas.
    let next = server.client.events(&open, seen.seq()).await.next().await.expect("an event");
    let (_, from, _) = told(&[next])[0];
    assert_eq!(from, seen.seq() + 1);
    server.client.post(&format!("/v1/runs/{open}/cancel"), &json!({})).await;
    assert_eq!(server.client.wait(&open).await["status"], "cancelled");
}

/// What the server logs about holes, once it has said so often. (Its log comes through a pipe.)
async fn errors(server: &Server, times: usize) -> Vec<Value> {
    let look = async {
        loop {
            let log = server.log();
            let lines = log.lines().filter(|line| line.contains("events of a log are missing"));
            let said: Vec<Value> =
                lines.map(|line| serde_json::from_str(line).expect("JSON")).collect();
            if said.len() >= times {
                return said;
            }
            tokio::task::yield_now().await;
        }
    };
    let said = tokio::time::timeout(Duration::from_secs(20), look).await.expect("it is logged");
    assert_eq!(said.len(), times, "{said:?}");
    said
}

async fn a_hole_that_nothing_explains_ends_the_stream(url: String) {
    let setup = Setup::new(url.clone(), YAML);
    let server = setup.start().await;
    server.client.post("/v1/agents", &talker()).await.expect(201);
    let run_id = id(&server.client.run_to_end("talker", &json!({"input": "Go"})).await);
    let whole = stream(&server.client, &run_id, "after=0").await;
    assert!(server.terminate().await.success());
    let first = whole.iter().find(|f| f.event == "message.delta").expect("a delta").seq();
    let delete = format!("delete from run_deltas where seq = {first}");
    assert_eq!(execute(&url, &delete).await, 1);

    let server = setup.start().await;
    for after in [0, first - 1] {
        let mut frames = stream(&server.client, &run_id, &format!("after={after}")).await;
        let end = frames.pop().expect("an end");
        assert_eq!(
            (end.event.as_str(), &end.json()["reason"]),
            ("stream.end", &json!("unavailable"))
        );
        assert_eq!(end.json()["last_seq"], first - 1);
        assert_eq!(
            frames,
            whole[after as usize..first as usize - 1],
            "up to the hole, and no further"
        );
    }
    let said = errors(&server, 2).await;
    assert_eq!(said[0]["level"], "ERROR");
    let text = said[0].to_string();
    assert!(text.contains(&run_id) && text.contains(&format!("\"from_seq\":{first}")), "{text}");

    // Deltas that were deleted before the run was made explain nothing; later ones do.
    let gone = |millis: i64| format!("update meta set deltas_gone_before = {millis}");
    let now = Clock::system().now();
    execute(&url, &gone(now.minus(DAY).millis())).await;
    let frames = stream(&server.client, &run_id, "after=0").await;
    assert_eq!(frames.last().expect("an end").json()["reason"], "unavailable");
    execute(&url, &gone(now.millis())).await;
    let frames = stream(&server.client, &run_id, "after=0").await;
    assert_eq!(frames.last().expect("an end").json()["reason"], "run_ended");
    assert!(told(&frames).contains(&("stream.gap".to_owned(), first, first)));
}

async fn a_pass_stops_when_it_is_told_to(url: String) {
    let setup = Setup::new(url.clone(), YAML);
    let server = setup.start().await;
    server.client.post("/v1/agents", &talker()).await.expect(201);
    server.client.run_to_end("talker", &json!({"input": "Go"})).await;
    assert!(server.terminate().await.success());
    let stopped = Tasks::new();
    stopped.stop();
    let long = 100 * DAY;
    assert_eq!(pass_after(&url, long, &stopped).await, Pass::default());
    assert_eq!(pass_after(&url, long, &Tasks::new()).await.runs, 1);
}

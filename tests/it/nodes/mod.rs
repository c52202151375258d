//! Two and more nodes on one Postgres database: any node answers for any run.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor as _};
use stepwell::clock::Clock;
use stepwell::domain::time::Timestamp;

use crate::support::client::{Client, Frame, log_of};
use crate::support::postgres;
use crate::support::server::{Server, Setup};

/// Without being told, nodes look once a second: half of all news is later than half a second then. Single
/// ones may come late on a busy machine, so it is the median that counts, of so many.
const TOLD: Duration = Duration::from_millis(350);
const ROUNDS: usize = 15;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

async fn agent(client: &Client, agent_id: &str, script: Value) {
    let body = json!({
        "agent_id": agent_id,
        "model": "builtin/script",
        "tools": [{"type": "builtin", "name": "sleep"}],
        "script": script,
    });
    client.post("/v1/agents", &body).await.expect(201);
}

async fn run(client: &Client, agent_id: &str) -> String {
    let path = format!("/v1/agents/{agent_id}/runs");
    let run = client.post(&path, &json!({"input": "Go"})).await.expect(202);
    run["run_id"].as_str().expect("run_id").to_owned()
}

fn words(count: usize, chunk_delay_ms: u64) -> Value {
    let text: Vec<String> = (0..count).map(|n| format!("word{n}")).collect();
    json!([{"text": text.join(" "), "chunk_delay_ms": chunk_delay_ms}])
}

/// Two servers on one database that know of each other.
async fn two(url: &str, yaml: [&str; 2]) -> [Server; 2] {
    let setups = yaml.map(|yaml| Setup::new(url, yaml));
    let nodes = [setups[0].start().await, setups[1].start().await];
    knows_of_two(url).await;
    nodes
}

/// Resolves when both nodes listen and have had time to see each other.
async fn knows_of_two(url: &str) {
    let listening = "select (count(*) >= 2)::int::bigint from pg_locks l join pg_database d \
                     on d.oid = l.database where d.datname = current_database() \
                     and l.locktype = 'advisory' and l.objsubid = 1 and l.granted";
    postgres::until(url, listening).await;
    // Each looks once a second.
    postgres::until(url, "select (min(beat) >= 2)::int::bigint from nodes where not dead").await;
}

/// How old an event is that has just come.
fn age(frame: &Frame) -> Duration {
    let at = frame.json()["created_at"].clone();
    let at: Timestamp = serde_json::from_value(at).expect("a time");
    Clock::system().now().since(at)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_followed_on_another_node_as_it_happens() {
    let url = postgres::empty_database().await;
    let [a, b] = two(&url, ["", ""]).await;
    agent(&a.client, "talker", words(60, 50)).await;
    let run_id = run(&a.client, "talker").await;
    let mut stream = b.client.events(&run_id, 0).await;
    let mut ages = Vec::new();
    let mut seen = Vec::new();
    while let Some(frame) = stream.next().await {
        if frame.event == "message.delta" {
            ages.push(age(&frame));
        }
        seen.push(frame);
    }
    // What waits for the same commit comes in one piece.
    assert!(ages.len() > 10, "{} pieces", ages.len());
    let median = median(ages);
    assert!(median < TOLD, "half of the events came later than {median:?}");
    let log = log_of(&a.client.events(&run_id, 0).await.rest().await);
    assert_eq!(log_of(&seen), log, "the same bytes on both nodes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_begins_on_another_node_is_followed_at_once() {
    let url = postgres::empty_database().await;
    let [a, b] = two(&url, ["", ""]).await;
    agent(&a.client, "quick", json!([{"text": "Yes."}])).await;
    let talk = a.client.post("/v1/conversations", &json!({"agent_id": "quick"})).await.expect(201);
    let path =
        |what| format!("/v1/conversations/{}/{what}", talk["conversation_id"].as_str().unwrap());
    let events = b.client.request(Method::GET, &path("events"));
    let mut stream = b.client.stream(events).await;
    let mut ages = Vec::new();
    for _ in 0..ROUNDS {
        let (path, question) = (path("complete"), json!({"content": "Well?"}));
        let comes = async { age(&stream.until("run.queued").await) };
        let (answer, age) = tokio::join!(a.client.post(&path, &question), comes);
        answer.expect(200);
        ages.push(age);
        stream.until("run.completed").await;
    }
    let median = median(ages);
    assert!(median < TOLD, "half of the turns came later than {median:?}");
}

/// Cancels a run of one node through the other one; gives how long that took.
async fn cancel(driver: &Client, other: &Client) -> Duration {
    let run_id = run(driver, "talker").await;
    driver.events(&run_id, 0).await.until("message.delta").await;
    let asked = Instant::now();
    let answer = other.post(&format!("/v1/runs/{run_id}/cancel"), &json!({})).await;
    // 202, or 200 when the driver was quicker than the answer.
    assert!(matches!(answer.status, 200 | 202), "{}", answer.body);
    assert_eq!(driver.wait(&run_id).await["status"], "cancelled");
    asked.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_on_another_node_reaches_the_driver_within_two_seconds() {
    let url = postgres::empty_database().await;
    let [a, b] = two(&url, ["", ""]).await;
    agent(&a.client, "talker", words(2_000, 25)).await;
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        took.push(cancel(&a.client, &b.client).await);
    }
    took.sort_unstable();
    // All but one, which may meet a machine that stands still.
    assert!(took[ROUNDS - 2] < Duration::from_secs(2), "{took:?}");
    assert!(median(took.clone()) < TOLD, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_no_slot_is_free_for_starts_elsewhere_at_once_and_its_waiter_hears_of_its_end() {
    let url = postgres::empty_database().await;
    let [api, engine] = two(&url, ["engine: { max_concurrent_runs: 0 }", ""]).await;
    agent(&api.client, "quick", json!([{"text": "done"}])).await;
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let asked = Instant::now();
        let path = "/v1/agents/quick/runs?wait=30";
        let run = api.client.post(path, &json!({"input": "Go"})).await.expect(200);
        assert_eq!(run["status"], "completed");
        took.push(asked.elapsed());
    }
    assert!(median(took.clone()) < TOLD, "{took:?}");
    assert!(engine.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_lost_its_connection_hears_again() {
    let url = postgres::empty_database().await;
    let [a, b] = two(&url, ["", ""]).await;
    agent(&a.client, "talker", words(2_000, 25)).await;
    let mut admin = postgres::connect(&url).await;
    for _ in 0..3 {
        let ended: Vec<i32> = sqlx::query_scalar(
            "with listeners as materialized (select l.pid from pg_locks l join pg_database d \
             on d.oid = l.database where d.datname = current_database() \
             and l.locktype = 'advisory' and l.objsubid = 1) \
             select pid from listeners where pg_terminate_backend(pid, 60000)",
        )
        .fetch_all(&mut admin)
        .await
        .expect("their ends");
        assert_eq!(ended.len(), 2, "both listeners lose their connection");
        knows_of_two(&url).await;
        let mut took = Vec::new();
        for _ in 0..ROUNDS {
            took.push(cancel(&a.client, &b.client).await);
        }
        assert!(median(took.clone()) < TOLD, "{took:?}");
    }
    for node in [a, b] {
        assert!(!node.log().contains("declared dead"), "a lost listener is no death");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_alone_takes_the_runs_of_the_dead_back_within_three_seconds() {
    let url = postgres::empty_database().await;
    let setup = Setup::new(&url, "");
    let server = setup.start().await;
    agent(&server.client, "talker", words(300, 20)).await;
    let mut runs = Vec::new();
    for _ in 0..20 {
        runs.push(run(&server.client, "talker").await);
    }
    // What was shown of a step is what is taken back.
    for run_id in &runs {
        server.client.events(run_id, 0).await.until("message.delta").await;
    }
    server.kill();
    let server = setup.start().await;
    let ready = Instant::now();
    for run_id in &runs {
        let mut stream = server.client.events(run_id, 0).await;
        stream.until("step.restarted").await;
    }
    // What is promised, and what a busy machine may add; who waits for the beat of the dead takes 15 s.
    assert!(ready.elapsed() < Duration::from_secs(3 + 5), "{:?}", ready.elapsed());
    for run_id in &runs {
        assert_eq!(server.client.wait(run_id).await["status"], "completed");
    }
}

/// Nobody can connect to the database, and those who are connected are thrown out.
async fn lock_out(url: &str, out: bool) {
    let name = url.rsplit('/').next().expect("a name");
    let mut admin = postgres::connect(&url.replace(name, "postgres")).await;
    let allow = format!("alter database {name} with allow_connections {}", !out);
    admin.execute(AssertSqlSafe(allow)).await.expect("altered");
    let throw =
        format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'");
    if out {
        admin.execute(AssertSqlSafe(throw)).await.expect("thrown out");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_database_is_told_and_is_a_pause() {
    let url = postgres::empty_database().await;
    let setup = Setup::new(&url, "");
    let server = setup.start().await;
    let client = &server.client;
    agent(client, "talker", words(200, 20)).await;
    let run_id = run(client, "talker").await;
    let mut stream = client.events(&run_id, 0).await;
    stream.until("message.delta").await;
    client.get("/readyz").await.expect(200);

    lock_out(&url, true).await;
    let out = Instant::now();
    let refused = loop {
        let ready = client.get("/readyz").await;
        if ready.status != 200 {
            break ready;
        }
        assert!(out.elapsed() < Duration::from_secs(30), "the outage is not told");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(refused.status, 503);
    assert!(
        refused.body["details"]["reasons"].to_string().contains("no write"),
        "{}",
        refused.body
    );
    client.get("/healthz").await.expect(200);
    let asked = Instant::now();
    for answer in [
        client.post("/v1/agents/talker/runs", &json!({"input": "Go"})).await,
        client.get(&format!("/v1/runs/{run_id}")).await,
        client.get("/v1/agents").await,
        client.post(&format!("/v1/runs/{run_id}/cancel"), &json!({})).await,
    ] {
        assert_eq!((answer.status, &answer.body["error"]), (503, &json!("storage_unavailable")));
        assert!(answer.header("retry-after").is_some());
    }
    assert!(asked.elapsed() < Duration::from_secs(12 + 5), "{:?}", asked.elapsed());
    // An EventSource would give up on an error: it is asked to come back instead.
    let path = format!("/v1/runs/{run_id}/events?after=3");
    let request = client.request(reqwest::Method::GET, &path).header("accept", "text/event-stream");
    let mut turned_away = client.stream(request).await;
    let end = turned_away.next().await.expect("a last word");
    assert_eq!((end.event.as_str(), &end.json()["last_seq"]), ("stream.end", &json!(3)));
    assert_eq!(end.json()["reason"], "unavailable");
    assert!(turned_away.retry.is_some());

    lock_out(&url, false).await;
    let back = Instant::now();
    while client.get("/readyz").await.status != 200 {
        assert!(back.elapsed() < Duration::from_secs(30), "it is not ready again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let run = client.wait(&run_id).await;
    assert_eq!(run["status"], "completed");
    let log = log_of(&client.events(&run_id, 0).await.rest().await);
    let seqs: Vec<i64> = log.iter().map(Frame::seq).collect();
    assert_eq!(seqs, (1..=log.len() as i64).collect::<Vec<_>>(), "gap-free");
    assert!(!server.log().contains("declared dead"), "an outage kills nobody");
}

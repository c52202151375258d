//! `kill -9` in the middle of turns, and right behind what somebody else is to carry out.

use std::time::{Duration, Instant};

use serde_json::json;
use stepwell::shutdown::Tasks;

use super::super::{TAKEN_OVER, judge, walker};
use super::listener::Listener;
use super::{PATIENCE, ask, asker, converse, is_free, look, run_of, until, verdict};
use crate::support::client::Client;
use crate::support::on_both_databases;
use crate::support::postgres;
use crate::support::profile::{Report, pick};
use crate::support::random::Random;
use crate::support::server::{Folder, Server, Setup};

/// Turns that wait at every kill.
const WAITING: i64 = 3;
/// A kill waits for at most so many new events.
const K: u64 = 40;
/// By then what was to be cancelled is cancelled, if it ever is: what is not goes on for a quarter of an hour.
const CANCELLED: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_outlives_every_kill_on_sqlite() {
    let folder = Folder::new();
    let url = format!("sqlite://{}", folder.path().join("stepwell.db").display());
    let report = Report::new("C2", "kill -9 in the middle of turns", "SQLite");
    kill_again_and_again(&[Setup::new(url, "").on_a_port_that_stays()], report).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_outlives_every_kill_on_two_nodes() {
    let url = postgres::empty_database().await;
    let setups = [0, 1].map(|_| Setup::new(&url, "").on_a_port_that_stays());
    let report = Report::new("C2", "kill -9 in the middle of turns, 2 nodes", "Postgres");
    kill_again_and_again(&setups, report).await;
}

async fn kill_again_and_again(setups: &[Setup], report: Report) {
    let mut random = Random::new();
    let mut servers = Vec::new();
    for setup in setups {
        servers.push(setup.start().await);
    }
    let clients: Vec<Client> = setups.iter().map(Setup::client).collect();
    clients[0].post("/v1/agents", &walker(3, 6, 15)).await.expect(201);
    let id = converse(&clients[0], "walker").await;
    let listener = Listener::begin(clients.clone(), &id, &mut random).await;
    let mut asked = Vec::new();
    let kills = pick(12, 50);
    for _ in 0..kills {
        while look(&clients[0], &id).await["queued_runs"].as_i64() < Some(WAITING) {
            let input = format!("question {}", asked.len());
            let node = random.pick(&clients).clone();
            asked.push((input.clone(), run_of(ask(&node, &id, &input, "enqueue").await)));
        }
        listener.until(listener.count() + 1 + random.below(K)).await;
        report.fault(listener.in_the_middle());
        let victim = random.below(servers.len() as u64) as usize;
        servers.remove(victim).kill();
        servers.insert(victim, setups[victim].start().await);
        servers[victim].ready().await;
    }
    // It is not bricked: somebody else's turn works, and sees all that was said.
    let path = format!("/v1/conversations/{id}/complete");
    let question = json!({"content": "the last question", "on_busy": "enqueue"});
    let last = clients[0].post(&path, &question).await.expect(200);
    report.check(last["finish_reason"] == "stop", || format!("the last turn: {last}"));

    let verdict = verdict(&clients[0], &id, &report).await;
    let all = asked.len() + 1;
    report.check(verdict.count("completed") == all && verdict.runs.len() == all, || {
        format!("{} of {all} completed", verdict.count("completed"))
    });
    let said = super::all(&clients[0], &format!("/v1/conversations/{id}/messages?")).await;
    for (input, run_id) in &asked {
        let of_run = said.iter().filter(|message| message["run_id"] == *run_id);
        let roles: Vec<&str> = of_run.clone().map(|message| super::text(message, "role")).collect();
        let whole = ["user", "assistant", "tool", "assistant", "tool", "assistant"];
        report.check(roles == whole, || format!("{run_id} said {roles:?}"));
        let first = of_run.clone().next();
        report.check(first.is_some_and(|message| message["content"] == *input), || {
            format!("{run_id} was asked {input}, and not {first:?}")
        });
    }
    let nothing = json!({});
    clients[0].post(&format!("/v1/conversations/{id}/close"), &nothing).await.expect(200);
    let heard = listener.finish(&report).await;
    for run_id in verdict.runs.keys() {
        let seen = heard.runs.get(run_id).cloned().unwrap_or_default();
        report.check(seen.ended, || format!("the stream never told of the end of {run_id}"));
        judge::one(&clients[0], run_id, &seen, &report).await;
    }
    report.check(heard.order == verdict.in_turn(), || "told in another order".to_owned());
    report.note(format!("{all} turns, {} resumes of the stream", heard.resumes));
    drop(servers);
    report.finish(kills * 2 / 3);
}

on_both_databases! {
    whoever_is_to_stop_stops_though_the_server_is_killed_right_behind_the_word;
}

async fn whoever_is_to_stop_stops_though_the_server_is_killed_right_behind_the_word(url: String) {
    let database = if url.starts_with("sqlite") { "SQLite" } else { "Postgres" };
    let report = Report::new("C3", "kill -9 behind an interrupt, a close", database);
    let setup = Setup::new(url, "").on_a_port_that_stays();
    let mut random = Random::new();
    let mut server = setup.start().await;
    let client = setup.client();
    // Far longer than the test may take: whoever is not cancelled is seen.
    client.post("/v1/agents", &walker(1, 1_000, 1_000)).await.expect(201);
    client.post("/v1/agents", &asker(0)).await.expect(201);
    let mut slowest = Duration::ZERO;
    let rounds = pick(6, 40);
    for round in 0..rounds {
        // How long the server takes hangs on the machine; the last two are killed behind the answer.
        let moment = (round + 2 < rounds).then(|| random.below(12_000));
        let moment = moment.map(|micros| Duration::from_micros(500 + micros));
        server = if round % 2 == 0 {
            interrupt(server, &setup, moment, &report, &mut slowest).await
        } else {
            close(server, &setup, moment, &report, &mut slowest).await
        };
    }
    report.note(format!("slowest {} ms", slowest.as_millis()));
    drop(server);
    // About every second kill comes too early, but not the last two; and who is interrupted may have stopped
    // before anybody looks.
    report.finish(1);
}

/// Kills the server a moment after a request has been sent: before it is written, before it is carried
/// out, before it is answered, or behind that. Without a moment it is behind that.
async fn kill_behind(
    server: Server,
    request: impl Future<Output = Result<reqwest::Response, reqwest::Error>> + Send + 'static,
    moment: Option<Duration>,
) {
    let sent = Tasks::new().spawn(request);
    if let Some(moment) = moment {
        // The moment is the test.
        tokio::time::sleep(moment).await;
        server.kill();
        let _ = sent.await;
    } else {
        let answer = sent.await.expect("no panic").expect("an answer");
        assert!(answer.status().is_success(), "{}", answer.status());
        server.kill();
    }
}

/// A run that would go on for ever is interrupted.
async fn interrupt(
    server: Server,
    setup: &Setup,
    moment: Option<Duration>,
    report: &Report,
    slowest: &mut Duration,
) -> Server {
    let client = setup.client();
    let id = converse(&client, "walker").await;
    let first = run_of(ask(&client, &id, "Go on for ever", "reject").await);
    client.events(&first, 0).await.until("message.delta").await;
    let path = format!("/v1/conversations/{id}/runs");
    let script = json!([{"text": "Instead"}]);
    let body = json!({"input": "Stop", "on_busy": "interrupt", "config": {"script": script}});
    let request = client.request(reqwest::Method::POST, &path).json(&body);
    kill_behind(server, request.send(), moment).await;
    let server = setup.start().await;
    server.ready().await;
    let asked = Instant::now();
    let (found, queued) = (
        look(&client, &id).await,
        super::all(&client, &format!("/v1/runs?conversation_id={id}&")).await,
    );
    let is_in = queued.len() == 2;
    report.fault(is_in && found["active_run_id"] == *first);
    if is_in {
        let in_time = until(&client, &id, CANCELLED, is_free).await;
        report.check(in_time, || format!("{first} was interrupted and goes on"));
        *slowest = (*slowest).max(asked.elapsed());
        let verdict = verdict(&client, &id, report).await;
        let ends = (verdict.count("cancelled"), verdict.count("completed"));
        report.check(ends == (1, 1), || format!("{ends:?} were cancelled and completed"));
    } else {
        client.post(&format!("/v1/runs/{first}/cancel"), &json!({})).await;
        verdict(&client, &id, report).await;
    }
    server
}

/// A conversation is closed in which one run asks somebody, and others wait.
async fn close(
    server: Server,
    setup: &Setup,
    moment: Option<Duration>,
    report: &Report,
    slowest: &mut Duration,
) -> Server {
    let client = setup.client();
    let id = converse(&client, "asker").await;
    let first = run_of(ask(&client, &id, "One", "reject").await);
    for _ in 0..3 {
        run_of(ask(&client, &id, "More", "enqueue").await);
    }
    let path = format!("/v1/conversations/{id}/close");
    let request = client.request(reqwest::Method::POST, &path).json(&json!({}));
    kill_behind(server, request.send(), moment).await;
    let server = setup.start().await;
    server.ready().await;
    let asked = Instant::now();
    let found = look(&client, &id).await;
    let is_closed = found["status"] == "closed";
    report.fault(is_closed);
    if is_closed {
        let in_time = until(&client, &id, CANCELLED, |now| now["queued_runs"] == 0).await;
        report.check(in_time, || format!("some still wait in {id}, which is closed"));
        *slowest = (*slowest).max(asked.elapsed());
        let active = look(&client, &id).await["active_run_id"].clone();
        report.check(active == *first, || format!("{active} is active, and not {first}"));
        super::tell(&client, &id).await;
        let verdict = verdict(&client, &id, report).await;
        let ends = (verdict.count("cancelled"), verdict.count("completed"));
        report.check(ends == (3, 1), || format!("{ends:?} were cancelled and completed"));
    } else {
        report.check(found["queued_runs"] == 3, || format!("nobody closed {found}"));
        for _ in 0..4 {
            super::tell(&client, &id).await;
        }
        verdict(&client, &id, report).await;
    }
    report.check(asked.elapsed() < PATIENCE + TAKEN_OVER, || "it took too long".to_owned());
    server
}

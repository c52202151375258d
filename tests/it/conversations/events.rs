//! A conversation's events: the logs of its runs, one after another, each complete.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use stepwell::clock::Clock;
use stepwell::domain::time::Timestamp;

use super::{assert_refused, at, conversation, get, id, parked, release, say, serve, start};
use crate::support::client::{Client, Frame, Stream, log_of};
use crate::support::on_both_databases;

on_both_databases! {
    one_stream_shows_turn_after_turn;
    a_reader_resumes_behind_any_event;
    a_cursor_that_is_none_of_the_conversation_s_is_refused;
    without_a_cursor_it_begins_with_the_active_run;
    a_run_that_waits_is_shown_when_its_turn_comes;
    a_filter_lets_through_what_it_names;
    a_closed_conversation_ends_its_streams_and_opens_none;
    a_stream_ends_when_its_conversation_is_deleted;
    a_stream_hears_at_once_that_its_conversation_has_expired;
    a_run_that_was_deleted_is_passed_over;
}

async fn open(client: &Client, talk: &str, query: &str) -> Stream {
    client.stream(client.request(Method::GET, &at(talk, &format!("events{query}")))).await
}

/// The events until this run has ended.
async fn until_end(stream: &mut Stream, run_id: &str) -> Vec<Frame> {
    let mut frames = Vec::new();
    loop {
        let frame = stream.next().await.expect("an event");
        frames.push(frame.clone());
        if frame.is_final() && frame.json()["run_id"] == run_id {
            return frames;
        }
    }
}

/// What a conversation's stream must show of a run.
async fn log(client: &Client, run_id: &str) -> Vec<Frame> {
    let mut frames = log_of(&client.events(run_id, 0).await.rest().await);
    for frame in &mut frames {
        frame.id = frame.id.take().map(|seq| format!("{run_id}:{seq}"));
    }
    frames
}

async fn one_stream_shows_turn_after_turn(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let mut stream = open(client, &talk, "").await;
    assert_eq!(stream.response.headers()["content-type"], "text/event-stream");
    for n in 0..3 {
        let run = id(&say(client, &talk, &n.to_string()).await);
        let frames = until_end(&mut stream, &run).await;
        assert_eq!(frames, log(client, &run).await);
        assert_eq!(frames[0].id, Some(format!("{run}:1")));
    }
    assert!((1_000..=3_000).contains(&stream.retry.expect("a retry")));
    client.post(&at(&talk, "close"), &Value::Null).await.expect(200);
    let rest = stream.rest().await;
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert_eq!((rest[0].event.as_str(), &rest[0].id), ("stream.end", &None));
    assert_eq!(rest[0].json()["reason"], "conversation_closed");
}

async fn a_reader_resumes_behind_any_event(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let mut all = Vec::new();
    for n in 0..3 {
        let run = id(&say(client, &talk, &n.to_string()).await);
        all.extend(log(client, &run).await);
    }
    client.post(&at(&talk, "close"), &Value::Null).await.expect(200);
    for (n, frame) in all.iter().enumerate() {
        let cursor = frame.id.clone().expect("an id");
        let request = if n % 2 == 0 {
            // The header beats the query.
            let request = client.request(Method::GET, &at(&talk, "events?after=garbage"));
            request.header("last-event-id", &cursor)
        } else {
            let path = at(&talk, &format!("events?after={cursor}"));
            client.request(Method::GET, &path).header("last-event-id", "")
        };
        if n + 1 == all.len() {
            let answer = client.send(request).await;
            assert_eq!((answer.status, &answer.body), (204, &Value::Null));
        } else {
            let frames = client.stream(request).await.rest().await;
            assert_eq!(log_of(&frames), all[n + 1..], "behind {cursor}");
            let end = frames.last().expect("an end").json();
            assert_eq!(end["reason"], "conversation_closed");
        }
    }
    // The cursor in front of a run's first event.
    let first = all[0].json()["run_id"].as_str().expect("an id").to_owned();
    let frames = open(client, &talk, &format!("?after={first}:0")).await.rest().await;
    assert_eq!(log_of(&frames), all);
    // Without a cursor there is nothing to come.
    assert_eq!(client.get(&at(&talk, "events")).await.status, 204);
}

async fn a_cursor_that_is_none_of_the_conversation_s_is_refused(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let (talk, other) =
        (conversation(client, json!({})).await, conversation(client, json!({})).await);
    let run = say(client, &talk, "Hello?").await;
    let foreign = id(&say(client, &other, "Hello?").await);
    let alone = id(&client.run_to_end("a", &json!({"input": "x"})).await);
    let (run_id, last) = (id(&run), run["last_seq"].as_i64().expect("a seq"));
    for cursor in [
        "x".to_owned(),
        "17".to_owned(),
        ":".to_owned(),
        run_id.clone(),
        format!("{run_id}:"),
        format!("{run_id}:x"),
        format!("{run_id}:-1"),
        format!("{run_id}:+1"),
        format!("{run_id}:1:1"),
        format!("{run_id}:{}", last + 1),
        format!("{run_id}:2147483647"),
        format!("{run_id}:99999999999999999999"),
        format!("{foreign}:1"),
        format!("{alone}:1"),
        "run_019a0c5e7d2a7c3f8b1e2d3c4b5a6978:1".to_owned(),
        "\u{e4}:1".to_owned(),
    ] {
        let escaped = cursor.replace('+', "%2B").replace('\u{e4}', "%C3%A4");
        let answer = client.get(&at(&talk, &format!("events?after={escaped}"))).await;
        assert_refused(&answer, 400, "invalid_cursor");
        let request = client.request(Method::GET, &at(&talk, "events"));
        let value = reqwest::header::HeaderValue::from_bytes(cursor.as_bytes()).expect("a value");
        let answer = client.send(request.header("last-event-id", value)).await;
        assert_refused(&answer, 400, "invalid_cursor");
    }
    let answer = client.get(&at(&talk, "events?colour=red")).await;
    assert_refused(&answer, 422, "unknown_field");
    let answer = client.get(&at(&talk, "events?types=colour")).await;
    assert_refused(&answer, 422, "validation_failed");
    let request = client.request(Method::GET, &at(&talk, "events"));
    let answer = client.send(request.header("accept", "application/json")).await;
    assert_refused(&answer, 406, "not_acceptable");
}

async fn without_a_cursor_it_begins_with_the_active_run(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    say(client, &talk, "Before.").await;
    let run = parked(client, &talk, &["ask"]).await;
    let mut stream = open(client, &talk, "").await;
    let first = stream.next().await.expect("an event");
    assert_eq!(first.id, Some(format!("{}:1", id(&run))));
    stream.until("run.requires_action").await;
    release(client, &run).await;
    until_end(&mut stream, &id(&run)).await;
    // Between two turns: what comes is the next run's, not what was.
    let mut later = open(client, &talk, "").await;
    let run = id(&say(client, &talk, "After.").await);
    for stream in [&mut stream, &mut later] {
        assert_eq!(until_end(stream, &run).await, log(client, &run).await);
    }
}

async fn a_run_that_waits_is_shown_when_its_turn_comes(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let run = parked(client, &talk, &["ask"]).await;
    let mut stream = open(client, &talk, "").await;
    stream.until("run.requires_action").await;
    let mut waiting = Vec::new();
    for n in 0..3 {
        let body = json!({"input": n.to_string(), "on_busy": "enqueue"});
        waiting.push(start(client, &talk, &body).await);
    }
    let cancel = format!("/v1/runs/{}/cancel", waiting[1]);
    client.post(&cancel, &Value::Null).await.expect(200);
    release(client, &run).await;
    let rest = until_end(&mut stream, &id(&run)).await;
    assert!(rest.iter().all(|frame| frame.json()["run_id"] == run["run_id"]));
    for run_id in &waiting {
        assert_eq!(until_end(&mut stream, run_id).await, log(client, run_id).await);
    }
}

async fn a_filter_lets_through_what_it_names(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let mut stream = open(client, &talk, "?types=message.completed").await;
    for n in 0..2 {
        let run = id(&say(client, &talk, &n.to_string()).await);
        let types: Vec<String> =
            until_end(&mut stream, &run).await.into_iter().map(|frame| frame.event).collect();
        assert_eq!(types, ["message.completed", "run.completed"]);
    }
    let list = client.get(&format!("/v1/runs?conversation_id={talk}&order=asc")).await.expect(200);
    let first = id(&list["data"][0]);
    client.post(&at(&talk, "close"), &Value::Null).await.expect(200);
    let frames = open(client, &talk, &format!("?types=run.*&after={first}:0")).await.rest().await;
    let types: Vec<&str> = frames.iter().map(|frame| frame.event.as_str()).collect();
    let of_one = ["run.queued", "run.running", "run.completed"];
    assert_eq!(types, [&of_one[..], &of_one[..], &["stream.end"]].concat());
}

async fn a_closed_conversation_ends_its_streams_and_opens_none(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let run = parked(client, &talk, &["ask"]).await;
    let mut stream = open(client, &talk, "").await;
    stream.until("run.requires_action").await;
    let body = json!({"input": "Never", "on_busy": "enqueue"});
    let never = start(client, &talk, &body).await;
    client.post(&at(&talk, "close"), &Value::Null).await.expect(200);
    // The active run goes on, and so does its stream, whoever opens one.
    let other = open(client, &talk, "").await;
    release(client, &run).await;
    for (stream, from_the_start) in [(stream, false), (other, true)] {
        let frames = stream.rest().await;
        let shown = log_of(&frames);
        let ends = shown.iter().filter(|frame| frame.is_final());
        let ends: Vec<String> = ends.map(|frame| id(&frame.json())).collect();
        assert_eq!(ends, [id(&run), never.clone()]);
        assert_eq!(shown[0].id == Some(format!("{}:1", id(&run))), from_the_start);
        assert_eq!(frames.last().expect("an end").json()["reason"], "conversation_closed");
    }
    assert_eq!(client.get(&at(&talk, "events")).await.status, 204);
}

async fn a_run_that_was_deleted_is_passed_over(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let first = id(&say(client, &talk, "One").await);
    let second = id(&say(client, &talk, "Two").await);
    client.delete(&format!("/v1/runs/{first}")).await.expect(204);
    // A reader that was in the middle of it goes on behind it.
    let mut stream = open(client, &talk, &format!("?after={first}:3")).await;
    let frames = until_end(&mut stream, &second).await;
    assert_eq!(frames, log(client, &second).await);
}

async fn a_stream_hears_at_once_that_its_conversation_has_expired(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    // Whoever is not told looks every five seconds, the next time four seconds after it has expired. On a
    // busy machine one of them may hear of it late, but not each.
    let mut tries = Vec::new();
    for _ in 0..3 {
        let talk = conversation(client, json!({"timeout_seconds": 6})).await;
        let stream = open(client, &talk, "").await;
        let rest = stream.rest().await;
        assert_eq!(rest.len(), 1, "{rest:?}");
        assert_eq!(rest[0].json()["reason"], "conversation_closed");
        let expired_at = get(client, &talk).await["expires_at"].clone();
        let expired_at: Timestamp = serde_json::from_value(expired_at).expect("a time");
        let late = Clock::system().now().since(expired_at);
        if late < Duration::from_secs(3) {
            return;
        }
        tries.push(late);
    }
    panic!("told {tries:?} after they expired");
}

async fn a_stream_ends_when_its_conversation_is_deleted(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let talk = conversation(client, json!({})).await;
    let mut stream = open(client, &talk, "").await;
    let run = id(&say(client, &talk, "Hello?").await);
    until_end(&mut stream, &run).await;
    client.delete(&at(&talk, "")).await.expect(204);
    let rest = stream.rest().await;
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert_eq!(rest[0].event, "stream.end");
    let path = at(&talk, &format!("events?after={run}:3"));
    assert_refused(&client.get(&path).await, 404, "not_found");
}

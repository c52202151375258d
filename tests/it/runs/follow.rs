//! Streams: anyone, any time, the same bytes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use stepwell::clock::Clock;

use super::{id, scripted, serve, slow_words};
use crate::support::client::{Client, Frame, log_of};
use crate::support::on_both_databases;

on_both_databases! {
    twenty_readers_who_drop_and_resume_anywhere_get_the_same_bytes;
    a_cursor_is_answered_as_documented_wherever_it_points;
    a_stream_begins_at_once_and_ends_with_a_word;
    a_filter_lets_through_what_was_asked_for_and_the_end;
}

/// Events that a reader takes at most before it drops. However few deltas a slow machine makes of the words,
/// a log has twice as many facts and more.
const MOST_AT_ONCE: f64 = 8.0;

/// Reads a whole log in random pieces: joins late, drops anywhere, resumes behind what it has.
async fn read_in_pieces(client: Client, run_id: String, resumes: Arc<AtomicUsize>) -> Vec<Frame> {
    let clock = Clock::system();
    let mut frames: Vec<Frame> = Vec::new();
    loop {
        let after = frames.last().map_or(0, Frame::seq);
        let most = 1 + (clock.chance() * MOST_AT_ONCE) as usize;
        let mut stream = client.events(&run_id, after).await;
        let mut taken = 0;
        while let Some(frame) = stream.next().await {
            if frame.id.is_none() {
                continue;
            }
            let last = frame.is_final();
            frames.push(frame);
            taken += 1;
            if last {
                return frames;
            }
            if taken >= most {
                break;
            }
        }
        resumes.fetch_add(1, Ordering::Relaxed);
    }
}

async fn twenty_readers_who_drop_and_resume_anywhere_get_the_same_bytes(url: String) {
    let (setup, server) = serve(url).await;
    let client = server.client.clone();
    let script = json!([
        {"reasoning": "Let me see.", "text": "One moment.", "chunk_delay_ms": 5,
         "tool_calls": [{"tool": "current_time"}, {"tool": "sleep", "arguments": {"seconds": 0.2}}]},
        slow_words(150, 4),
        {"text": "the end"},
    ]);
    client.post("/v1/agents", &scripted("talker", &script)).await.expect(201);
    let run = client.post("/v1/agents/talker/runs", &json!({"input": "Go"})).await.expect(202);
    let run_id = id(&run);

    let resumes = Arc::new(AtomicUsize::new(0));
    let mut readers = tokio::task::JoinSet::new();
    for n in 0..20_u64 {
        let (client, run_id, resumes) = (client.clone(), run_id.clone(), resumes.clone());
        readers.spawn(async move {
            // Late readers: the run takes about a second.
            tokio::time::sleep(std::time::Duration::from_millis(n * 60)).await;
            read_in_pieces(client, run_id, resumes).await
        });
    }
    let mut logs = Vec::new();
    while let Some(log) = readers.join_next().await {
        logs.push(log.expect("a reader"));
    }
    let after_the_end = read_in_pieces(client.clone(), run_id.clone(), resumes.clone()).await;
    assert!(resumes.load(Ordering::Relaxed) >= 2 * 21, "readers really resumed: {resumes:?}");
    assert!(server.terminate().await.success());
    let server = setup.start().await;
    let after_restart = read_in_pieces(server.client.clone(), run_id.clone(), resumes).await;

    logs.extend([after_the_end, after_restart]);
    let whole = &logs[0];
    for (n, log) in logs.iter().enumerate() {
        assert_eq!(log, whole, "reader {n}");
    }
    let seqs: Vec<i64> = whole.iter().map(Frame::seq).collect();
    assert_eq!(seqs, (1..=whole.len() as i64).collect::<Vec<_>>(), "gap-free from 1");
    assert_eq!(whole.iter().filter(|frame| frame.is_final()).count(), 1);
    let types: BTreeSet<&str> = whole.iter().map(|frame| frame.event.as_str()).collect();
    for expected in ["reasoning.delta", "message.delta", "tool_call.completed", "step.completed"] {
        assert!(types.contains(expected), "{types:?}");
    }

    // The log as JSON is the same log.
    let mut pages = Vec::new();
    let mut after = "0".to_owned();
    loop {
        let path = format!("/v1/runs/{run_id}/log?limit=100&after={after}");
        let page = server.client.get(&path).await.expect(200);
        pages.extend(page["data"].as_array().expect("data").clone());
        if page["has_more"] == false {
            break;
        }
        after = page["last_id"].to_string().trim_matches('"').to_owned();
    }
    let streamed: Vec<_> = whole.iter().map(Frame::json).collect();
    assert_eq!(pages, streamed);
}

async fn a_cursor_is_answered_as_documented_wherever_it_points(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let script = json!([slow_words(12, 1)]);
    client.post("/v1/agents", &scripted("talker", &script)).await.expect(201);
    let run = client.run_to_end("talker", &json!({"input": "Go"})).await;
    let other = client.run_to_end("talker", &json!({"input": "Go"})).await;
    let (run_id, last) = (id(&run), run["last_seq"].as_i64().expect("last_seq"));
    let whole = log_of(&client.events(&run_id, 0).await.rest().await);
    assert_eq!(whole.len() as i64, last);

    let events = format!("/v1/runs/{run_id}/events");
    let ask = |cursor: &str| {
        client.request(reqwest::Method::GET, &events).header("last-event-id", cursor.to_owned())
    };
    for after in [0, last / 2, last - 1] {
        let rest = client.stream(ask(&after.to_string())).await.rest().await;
        assert_eq!(log_of(&rest), whole[after as usize..], "after {after}");
    }
    assert_eq!(client.send(ask(&last.to_string())).await.status, 204, "nothing after the end");
    // The header wins over the parameter; an empty one is none.
    let both = client.request(reqwest::Method::GET, &format!("{events}?after=1"));
    let both = client.stream(both.header("last-event-id", "3")).await.rest().await;
    assert_eq!(log_of(&both), whole[3..]);
    let empty = client.request(reqwest::Method::GET, &format!("{events}?after=2"));
    let empty = client.stream(empty.header("last-event-id", "")).await.rest().await;
    assert_eq!(log_of(&empty), whole[2..]);
    for wrong in [(last + 1).to_string(), "-1".into(), "x".into(), "99999999999".into(), id(&other)]
    {
        let answer = client.send(ask(&wrong)).await;
        assert_eq!(
            (answer.status, &answer.body["error"]),
            (400, &json!("invalid_cursor")),
            "{wrong}"
        );
    }
    for nobody in ["run_00000000000000000000000000000000", "run_x", "demo"] {
        let answer = client.get(&format!("/v1/runs/{nobody}/events")).await;
        assert_eq!((answer.status, &answer.body["error"]), (404, &json!("not_found")), "{nobody}");
    }

    // At the head of a live run the stream stays open and goes on.
    let script = json!({"input": "Go", "config": {"script": [{"text": "late", "delay_ms": 1500}]}});
    let live = client.post("/v1/agents/talker/runs", &script).await.expect(202);
    let mut first = client.events(&id(&live), 0).await;
    let head = first.until("step.started").await.seq();
    let rest = client.events(&id(&live), head).await.rest().await;
    assert_eq!(rest[0].seq(), head + 1);
    assert!(log_of(&rest).last().expect("an end").is_final());
}

async fn a_stream_begins_at_once_and_ends_with_a_word(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let script = json!([{"text": "late", "delay_ms": 700}]);
    client.post("/v1/agents", &scripted("talker", &script)).await.expect(201);
    let body = json!({"input": "Go", "stream": true});
    let request = client.request(reqwest::Method::POST, "/v1/agents/talker/runs").json(&body);
    let mut stream = client.stream(request).await;
    let header = |name: &str| stream.response.headers()[name].to_str().expect("text").to_owned();
    assert_eq!(header("content-type"), "text/event-stream");
    assert_eq!(header("cache-control"), "no-store");
    assert_eq!(header("x-accel-buffering"), "no");
    let location = header("location");
    let first = stream.next().await.expect("the first event");
    assert_eq!((first.seq(), first.event.as_str()), (1, "run.queued"));
    assert!(stream.retry.is_some_and(|ms| (1000..=3000).contains(&ms)), "{:?}", stream.retry);
    assert!(stream.comments >= 1, "a comment opens the stream");
    assert_eq!(location, format!("/v1/runs/{}", id(&first.json())));
    let mut frames = vec![first];
    frames.extend(stream.rest().await);
    let end = frames.pop().expect("an end");
    assert_eq!((end.event.as_str(), &end.id), ("stream.end", &None));
    assert_eq!(end.json()["reason"], "run_ended");
    assert_eq!(end.json()["last_seq"], frames.last().expect("an event").seq());
    assert!(frames.last().expect("an event").is_final());
}

async fn a_filter_lets_through_what_was_asked_for_and_the_end(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let script =
        json!([{"text": "a b c", "tool_calls": [{"tool": "current_time"}]}, {"text": "d"}]);
    client.post("/v1/agents", &scripted("talker", &script)).await.expect(201);
    let run = client.run_to_end("talker", &json!({"input": "Go"})).await;
    let types = |filter: &str| {
        let path = format!("/v1/runs/{}/events?types={filter}", id(&run));
        let request = client.request(reqwest::Method::GET, &path);
        async move {
            let frames = client.stream(request).await.rest().await;
            frames.into_iter().map(|frame| frame.event).collect::<Vec<_>>()
        }
    };
    assert_eq!(
        types("step.*").await,
        [
            "step.started",
            "step.completed",
            "step.started",
            "step.completed",
            "run.completed",
            "stream.end"
        ]
    );
    assert_eq!(types("message.completed,run.queued").await.first().expect("one"), "run.queued");
    let answer = client.get(&format!("/v1/runs/{}/events?types=nonsense", id(&run))).await;
    assert_eq!(answer.status, 422, "{}", answer.body);
}

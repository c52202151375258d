//! Model misbehaviour (promise P26): each fault has its documented outcome, on both wires, and no
//! answer that was cut short is ever taken for whole.

use std::time::Duration;

use serde_json::json;
use stepwell::domain::limits;
use stepwell::domain::model::{FinishReason, ModelAnswer};
use stepwell::domain::retry::{FailureKind, ModelFailure};
use stepwell::models::{Timeouts, Wire};

use super::{KITS, Kit, SHORT, Shown, request};
use crate::support::model_server::{End, ModelServer, Piece, Reply, anthropic, openai};

const TEXT: &str = "one two three";

/// What must come of a fault.
enum Outcome {
    /// The call fails like this.
    Fails(FailureKind),
    /// It fails like this, and says when to come back.
    FailsFor(FailureKind, Duration),
    /// The provider did something odd that does no harm.
    Works(fn(&ModelAnswer)),
}
use Outcome::{Fails, FailsFor, Works};

struct Fault {
    name: String,
    reply: Reply,
    timeouts: Timeouts,
    outcome: Outcome,
}

fn fault(name: impl Into<String>, reply: Reply, outcome: Outcome) -> Fault {
    Fault { name: name.into(), reply, timeouts: Timeouts::default(), outcome }
}

fn statuses() -> Vec<Fault> {
    use FailureKind::{Busy, ContextOverflow, Refused};
    let mut faults: Vec<Fault> = [
        (301, Refused(301)),
        (307, Refused(307)),
        (400, Refused(400)),
        (401, Refused(401)),
        (403, Refused(403)),
        (404, Refused(404)),
        (408, Busy(408)),
        (409, Busy(409)),
        (422, Refused(422)),
        (429, Busy(429)),
        (500, Busy(500)),
        (502, Busy(502)),
        (503, Busy(503)),
        (529, Busy(529)),
    ]
    .map(|(status, kind)| fault(status.to_string(), Reply::status(status), Fails(kind)))
    .into();
    let message = json!({"message": "provider text"});
    let later = |status, name: &str, value: &str| {
        Reply::error(
            status,
            message.clone(),
            &[(name, value), ("date", "Wed, 21 Oct 2026 07:28:00 GMT")],
        )
    };
    let seconds = Duration::from_secs;
    faults.extend([
        fault("429 + seconds", later(429, "retry-after", "7"), FailsFor(Busy(429), seconds(7))),
        fault(
            "429 + milliseconds",
            later(429, "retry-after-ms", "1500"),
            FailsFor(Busy(429), Duration::from_millis(1500)),
        ),
        fault(
            "503 + date",
            later(503, "retry-after", "Wed, 21 Oct 2026 07:29:00 GMT"),
            FailsFor(Busy(503), seconds(60)),
        ),
        fault("529 + seconds", later(529, "retry-after", "90"), FailsFor(Busy(529), seconds(90))),
        fault(
            "429, quota used up",
            Reply::error(429, json!({"type": "insufficient_quota"}), &[("retry-after", "7")]),
            Fails(Refused(429)),
        ),
        fault(
            "400, too long by code",
            Reply::error(400, json!({"code": "context_length_exceeded"}), &[]),
            Fails(ContextOverflow),
        ),
        fault(
            "400, too long by message",
            Reply::error(400, json!({"message": "Prompt is too long: 9 > 8"}), &[]),
            Fails(ContextOverflow),
        ),
        fault(
            "500 with an endless body",
            Reply::Whole { status: 500, headers: vec![], body: vec![b'x'; 16 * 1024 * 1024] },
            Fails(Busy(500)),
        ),
        fault(
            "204",
            Reply::Whole { status: 204, headers: vec![], body: vec![] },
            Fails(FailureKind::Cut),
        ),
        fault(
            "a web page",
            Reply::Whole {
                status: 200,
                headers: vec![("content-type".to_owned(), "text/html".to_owned())],
                body: b"<html>Please log in.</html>\n\n".to_vec(),
            },
            Fails(FailureKind::Cut),
        ),
    ]);
    faults
}

fn sockets(kit: Kit) -> Vec<Fault> {
    use FailureKind::{Broken, Cut, Timeout};
    let text = || (kit.text)(TEXT);
    let ping = Piece::Bytes(b": still here\n\n".to_vec());
    let pinging = Reply::Stream {
        headers: vec![],
        pieces: vec![[ping, Piece::Wait(SHORT.idle / 8)]; 80].concat(),
        end: End::Hang,
    };
    let hangs = |name: &str, reply| Fault { timeouts: SHORT, ..fault(name, reply, Fails(Timeout)) };
    vec![
        fault("reset before the head", Reply::Reset, Fails(Broken)),
        hangs("hang before the head", Reply::Hang),
        hangs("hang before the first token", Reply::stream(vec![]).ending(End::Hang)),
        hangs("nothing but pings", pinging),
        hangs("hang in the stream", text().first(4).ending(End::Hang)),
        fault("reset in the stream", text().first(4).ending(End::Reset), Fails(Broken)),
        fault("close in the stream", text().first(4).ending(End::Close), Fails(Broken)),
        fault("end without marker", text().first(4), Fails(Cut)),
        fault("end without a word", text().first(0), Fails(Cut)),
    ]
}

fn bytes(kit: Kit) -> Vec<Fault> {
    use FailureKind::{Broken, Busy, ContextOverflow};
    let text = || (kit.text)(TEXT);
    let with = |bytes: &[u8]| text().with(3, Piece::Bytes(bytes.to_vec()));
    let error = |error: serde_json::Value| {
        with(
            format!("event: error\ndata: {}\n\n", json!({"type": "error", "error": error}))
                .as_bytes(),
        )
    };
    let huge = |start: &[u8], piece: Vec<u8>| {
        text().with(3, Piece::Bytes(start.to_vec())).with(4, Piece::Repeat(piece, 1024))
    };
    let comment = [b": ".as_slice(), &[b'x'; 64 * 1024], b"\n"].concat();
    let bad = String::from_utf8(text().bytes()).unwrap().replace("two", "@@@").into_bytes();
    let bad = String::from_utf8_lossy(&bad).into_owned();
    let (front, back) = bad.split_once("@@@").unwrap();
    let bad_utf8 =
        Reply::stream(vec![[front.as_bytes(), b"\xF0\x9F\x98", back.as_bytes()].concat()]);
    vec![
        fault(
            "error event: overloaded",
            error(json!({"type": "overloaded_error"})),
            Fails(Busy(529)),
        ),
        fault("error event: unknown", error(json!({"message": "provider text"})), Fails(Broken)),
        fault(
            "error event: too long",
            error(json!({"type": "invalid_request_error", "message": "prompt is too long"})),
            Fails(ContextOverflow),
        ),
        fault(
            "error without an event name",
            with(b"data: {\"type\":\"error\",\"error\":{\"type\":\"server_error\"}}\n\n"),
            Fails(Busy(500)),
        ),
        fault("broken JSON", with(b"data: {\"choices\":[{\"delta\"\n\n"), Fails(Broken)),
        fault("another JSON", with(b"data: [1,2]\n\n"), Fails(Broken)),
        fault(
            "deep JSON",
            with(format!("data: {{\"a\":{}\n\n", "[".repeat(100_000)).as_bytes()),
            Fails(Broken),
        ),
        fault("64 MB in one event", huge(b"data: ", vec![b'x'; 64 * 1024]), Fails(Broken)),
        fault("64 MB in comments", huge(b"\n", comment), Fails(Broken)),
        fault(
            "1-byte chunks",
            text().in_chunks_of(1),
            Works(|answer| assert_eq!(answer.content, TEXT)),
        ),
        fault(
            "bad UTF-8",
            bad_utf8,
            Works(|answer| assert_eq!(answer.content, "one \u{fffd} three")),
        ),
        fault(
            "all in one chunk, with carriage returns",
            Reply::stream(vec![
                String::from_utf8(text().bytes()).unwrap().replace('\n', "\r\n").into_bytes(),
            ]),
            Works(|answer| assert_eq!(answer.content, TEXT)),
        ),
    ]
}

fn calls(kit: Kit) -> Vec<Fault> {
    let many = vec![("t", "{}"); limits::MAX_CALLS_PER_STEP + 1];
    vec![
        fault(
            "unknown tool",
            (kit.calls)(&[("no such tool", "{}")]),
            Works(|answer| {
                assert_eq!(answer.tool_calls[0].tool, "no such tool");
            }),
        ),
        fault(
            "arguments that are no JSON",
            (kit.calls)(&[("t", "{city: Paris")]),
            Works(|answer| {
                assert_eq!(answer.tool_calls[0].arguments, "{city: Paris");
            }),
        ),
        fault(
            "duplicate call ids",
            duplicate_ids(kit),
            Works(|answer| {
                let arguments: Vec<&str> =
                    answer.tool_calls.iter().map(|call| call.arguments.as_str()).collect();
                assert_eq!(arguments, ["{\"n\":1}", "{\"n\":2}"]);
                assert_eq!(answer.finish_reason, FinishReason::ToolCalls);
            }),
        ),
        fault("too many calls", (kit.calls)(&many), Fails(FailureKind::Broken)),
    ]
}

fn duplicate_ids(kit: Kit) -> Reply {
    let reply = (kit.calls)(&[("t", "{\"n\":1}"), ("t", "{\"n\":2}")]);
    let bytes = String::from_utf8(reply.bytes()).unwrap();
    let same = bytes.replace("prov_1", "prov_0").replace("toolu_1", "toolu_0");
    assert_ne!(same, bytes);
    Reply::stream(vec![same.into_bytes()])
}

fn usages(kit: Kit) -> Vec<Fault> {
    let absurd = ["-5", "1.5", "1e300", "18446744073709551615", "\"many\"", "null", "{}", "[]"];
    absurd
        .map(|count| {
            let value: serde_json::Value = serde_json::from_str(count).unwrap();
            let reply = if kit.wire == Wire::OpenAi {
                let usage = json!({"prompt_tokens": value, "completion_tokens": value});
                let start = openai::choice(json!({"content": TEXT}), json!("stop"));
                Reply::stream(vec![start, openai::usage(usage), openai::done()])
            } else {
                let usage = json!({"input_tokens": value, "output_tokens": value});
                let text = anthropic::block(0, json!({"type": "text", "text": TEXT}), vec![]);
                let mut chunks = vec![anthropic::start(usage.clone())];
                chunks.extend(text);
                chunks.extend([anthropic::delta("end_turn", usage), anthropic::stop()]);
                Reply::stream(chunks)
            };
            let guessed = Works(|answer: &ModelAnswer| {
                assert_eq!((answer.usage.input_tokens, answer.usage.output_tokens), (7, 4));
            });
            fault(format!("usage of {count}"), reply, guessed)
        })
        .into()
}

/// Whether an answer says all that was to be said, and nothing else.
fn is_whole(answer: &ModelAnswer) -> bool {
    answer.content == TEXT || !answer.tool_calls.is_empty()
}

fn check(name: &str, outcome: &Outcome, result: &Result<ModelAnswer, ModelFailure>) {
    match (outcome, result) {
        (Works(check), Ok(answer)) => check(answer),
        (Fails(kind), Err(failure)) => {
            assert_eq!((failure.kind, failure.retry_after), (*kind, None), "{name}");
        }
        (FailsFor(kind, wait), Err(failure)) => {
            assert_eq!((failure.kind, failure.retry_after), (*kind, Some(*wait)), "{name}");
        }
        (Works(_) | Fails(_) | FailsFor(..), _) => panic!("{name}: {result:?}"),
    }
    if let Err(failure) = result {
        let told = format!("{failure:?} {failure}");
        for secret in ["provider text", "canary", "127.0.0.1", "http"] {
            assert!(!told.contains(secret), "{name}: {told}");
        }
        assert!(failure.message.starts_with("The provider local "), "{told}");
    }
}

#[tokio::test]
async fn every_fault_of_a_provider_has_its_documented_outcome() {
    let (mut bitten, mut truncated_taken_for_success) = (0, 0);
    for kit in KITS {
        let mut table = statuses();
        for more in [sockets(kit), bytes(kit), calls(kit), usages(kit)] {
            table.extend(more);
        }
        for fault in table {
            let server = ModelServer::start().await;
            server.script(vec![fault.reply]);
            let model = kit.model(&server, fault.timeouts);
            let result = model.call(&request(), &mut Shown::default()).await;
            // A fault that met no request did not bite.
            assert_eq!(server.requests().len(), 1, "{}", fault.name);
            bitten += 1;
            if matches!(fault.outcome, Fails(_) | FailsFor(..)) && result.is_ok() {
                truncated_taken_for_success += 1;
            }
            check(&format!("{:?}, {}", kit.wire, fault.name), &fault.outcome, &result);
        }
    }
    assert_eq!((bitten, truncated_taken_for_success), (2 * 57, 0));
}

#[tokio::test]
async fn a_provider_that_refuses_connections_cannot_be_reached_until_it_is_back() {
    for kit in KITS {
        let server = ModelServer::start().await;
        server.answer_with(move |_| (kit.text)(TEXT));
        let model = kit.model(&server, Timeouts::default());
        model.call(&request(), &mut Shown::default()).await.unwrap();
        server.refuse().await;
        let result = model.call(&request(), &mut Shown::default()).await;
        check("refuse", &Fails(FailureKind::Connect), &result);
        server.listen_again();
        assert_eq!(model.call(&request(), &mut Shown::default()).await.unwrap().content, TEXT);
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_anywhere_is_never_taken_for_whole() {
    let (mut cuts, mut whole, mut truncated_taken_for_success) = (0, 0, 0);
    for kit in KITS {
        for reply in [(kit.text)(TEXT), (kit.calls)(&[("t", "{\"a\":1}"), ("u", "{}")])] {
            let bytes = reply.bytes();
            let server = ModelServer::start().await;
            let model = kit.model(&server, Timeouts::default());
            let complete = kit.call(reply).await.0.unwrap();
            // Every place near the end, where the markers are, and some of the others.
            let cut_at = (0..bytes.len()).filter(|at| at % 7 == 0 || bytes.len() - at < 120);
            for at in cut_at {
                let end = if at % 2 == 0 { End::Clean } else { End::Close };
                server.script(vec![Reply::stream(vec![bytes[..at].to_vec()]).ending(end)]);
                let result = model.call(&request(), &mut Shown::default()).await;
                cuts += 1;
                if let Ok(answer) = result {
                    whole += 1;
                    let same = (&answer.content, &answer.tool_calls, answer.finish_reason)
                        == (&complete.content, &complete.tool_calls, complete.finish_reason);
                    if !same || !is_whole(&answer) {
                        truncated_taken_for_success += 1;
                    }
                }
            }
        }
    }
    assert!(cuts > 900 && whole > 10, "{cuts} cuts, {whole} whole");
    assert_eq!(truncated_taken_for_success, 0);
}

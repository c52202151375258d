//! Answers that come as they should.

use std::time::Duration;

use serde_json::{Value, json};
use stepwell::domain::model::{FinishReason, RequestedCall};
use stepwell::domain::usage::Usage;
use stepwell::models::{Models, Timeouts, Wire};

use super::{KITS, Kit, PATIENT, SHORT, Shown, request, user};
use crate::support::model_server::{End, Gate, ModelServer, Piece, Reply, anthropic, openai};

const OPENAI: Kit = KITS[0];
const ANTHROPIC: Kit = KITS[1];

fn call(tool: &str, arguments: &str) -> RequestedCall {
    RequestedCall { tool: tool.to_owned(), arguments: arguments.to_owned() }
}

#[tokio::test]
async fn a_text_is_shown_piece_by_piece_and_returned_whole() {
    for kit in KITS {
        let (result, shown) = kit.call((kit.text)("It is sunny — 23 °C ☀")).await;
        let answer = result.unwrap();
        assert_eq!(shown.text, ["It ", "is ", "sunny ", "— ", "23 ", "°C ", "☀"]);
        assert_eq!(answer.content, shown.text.concat());
        assert_eq!(answer.finish_reason, FinishReason::Stop);
        let reasoning = if kit.wire == Wire::OpenAi { 2 } else { 0 };
        assert_eq!(answer.usage, Usage::new(12, 5, 7, reasoning));
        assert_eq!((answer.reasoning.as_str(), answer.provider_state), ("", None));
    }
}

#[tokio::test]
async fn the_key_and_the_request_go_where_the_wire_wants_them() {
    for kit in KITS {
        let server = ModelServer::start().await;
        server.script(vec![(kit.text)("hi")]);
        let model = kit.model(&server, Timeouts::default());
        model.call(&request(), &mut Shown::default()).await.unwrap();
        let sent = server.requests().remove(0);
        assert_eq!((&sent.body["model"], &sent.body["stream"]), (&json!("m"), &json!(true)));
        assert_eq!(sent.headers["content-type"], "application/json");
        if kit.wire == Wire::OpenAi {
            assert_eq!(sent.path, "/v1/chat/completions");
            assert_eq!(sent.headers["authorization"], "Bearer sk-canary-key");
            assert_eq!(sent.body["max_tokens"], 4096);
        } else {
            assert_eq!(sent.path, "/v1/messages");
            assert_eq!(sent.headers["x-api-key"], "sk-canary-key");
            assert_eq!(sent.headers["anthropic-version"], "2023-06-01");
        }
    }
}

#[tokio::test]
async fn parallel_calls_come_together_from_their_fragments() {
    let (one, two) = (r#"{"city":"Zürich 🦀"}"#, r#"{"a":[1,2,{"b":"\n"}]}"#);
    for kit in KITS {
        let (result, _) =
            kit.call((kit.calls)(&[("weather", one), ("other", two), ("bare", "")])).await;
        let answer = result.unwrap();
        let bare = if kit.wire == Wire::OpenAi { "" } else { "{}" };
        assert_eq!(
            answer.tool_calls,
            [call("weather", one), call("other", two), call("bare", bare)]
        );
        assert_eq!(answer.finish_reason, FinishReason::ToolCalls);
    }
}

#[tokio::test]
async fn reasoning_is_shown_apart_and_signed_thoughts_go_back_untouched() {
    let thinking = |text: &str| json!({"reasoning_content": text});
    let reply =
        openai::reply(vec![thinking("hm "), thinking("well"), json!({"content": "yes"})], "stop");
    let (result, shown) = OPENAI.call(reply).await;
    assert_eq!((shown.reasoning.concat(), shown.text.concat()), ("hm well".into(), "yes".into()));
    assert_eq!(result.unwrap().reasoning, "hm well");

    let thought = anthropic::block(
        0,
        json!({"type": "thinking", "thinking": "", "signature": ""}),
        vec![
            json!({"type": "thinking_delta", "thinking": "hm "}),
            json!({"type": "thinking_delta", "thinking": "well"}),
            json!({"type": "signature_delta", "signature": "c2ln"}),
        ],
    );
    let hidden = anthropic::block(1, json!({"type": "redacted_thinking", "data": "eA=="}), vec![]);
    let said = anthropic::block(
        2,
        json!({"type": "text", "text": ""}),
        vec![json!({"type": "text_delta", "text": "yes"})],
    );
    let (result, shown) =
        ANTHROPIC.call(anthropic::reply(vec![thought, hidden, said], "end_turn")).await;
    let answer = result.unwrap();
    assert_eq!((shown.reasoning.concat(), answer.content.as_str()), ("hm well".into(), "yes"));
    assert_eq!(
        answer.provider_state,
        Some(json!({"wire": "anthropic", "thinking": [
            {"type": "thinking", "thinking": "hm well", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "eA=="},
        ]}))
    );
}

#[tokio::test]
async fn finish_reasons_are_told_in_our_words() {
    let cases = [
        (OPENAI, "stop", FinishReason::Stop),
        (OPENAI, "length", FinishReason::Length),
        (OPENAI, "content_filter", FinishReason::ContentFilter),
        (ANTHROPIC, "end_turn", FinishReason::Stop),
        (ANTHROPIC, "stop_sequence", FinishReason::Stop),
        (ANTHROPIC, "pause_turn", FinishReason::Stop),
        (ANTHROPIC, "max_tokens", FinishReason::Length),
        (ANTHROPIC, "model_context_window_exceeded", FinishReason::Length),
        (ANTHROPIC, "refusal", FinishReason::ContentFilter),
    ];
    for (kit, word, reason) in cases {
        let reply = if kit.wire == Wire::OpenAi {
            openai::reply(vec![json!({"content": "x"})], word)
        } else {
            let text = anthropic::block(0, json!({"type": "text", "text": "x"}), vec![]);
            anthropic::reply(vec![text], word)
        };
        assert_eq!(kit.call(reply).await.0.unwrap().finish_reason, reason, "{word}");
    }
    let refusal =
        openai::reply(vec![json!({"refusal": "I "}), json!({"refusal": "won't"})], "stop");
    let (result, shown) = OPENAI.call(refusal).await;
    assert_eq!(result.unwrap().finish_reason, FinishReason::ContentFilter);
    assert_eq!(shown.text.concat(), "I won't");
}

#[tokio::test]
async fn a_finished_openai_answer_needs_neither_its_marker_nor_a_clean_end() {
    // Role, three words, finish reason; the usage and the marker never come.
    for end in [End::Clean, End::Close, End::Hang] {
        let server = ModelServer::start().await;
        server.script(vec![openai::text("one two three").first(5).ending(end)]);
        let model = OPENAI.model(&server, PATIENT);
        let answer = model.call(&request(), &mut Shown::default()).await.unwrap();
        assert_eq!(answer.content, "one two three", "{end:?}");
        // Nobody counted, so we did: 25 bytes of question, 13 of answer.
        assert_eq!(answer.usage, Usage::new(7, 0, 4, 0));
    }
}

#[tokio::test]
async fn a_server_that_does_not_stream_is_understood() {
    let whole = json!({"object": "chat.completion", "choices": [{"index": 0, "finish_reason": "tool_calls",
        "message": {"role": "assistant", "content": "look", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "t", "arguments": "{}"}},
            {"id": "a", "type": "function", "function": {"name": "t", "arguments": "{\"n\":2}"}}]}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4}});
    let message = json!({"type": "message", "role": "assistant", "stop_reason": "tool_use", "content": [
            {"type": "text", "text": "look"},
            {"type": "tool_use", "id": "a", "name": "t", "input": {}},
            {"type": "tool_use", "id": "a", "name": "t", "input": {"n": 2}}],
        "usage": {"input_tokens": 3, "output_tokens": 4}});
    for (kit, body) in [(OPENAI, whole), (ANTHROPIC, message)] {
        let (result, shown) = kit.call(Reply::json(&body)).await;
        let answer = result.unwrap();
        assert_eq!(shown.text, ["look"]);
        assert_eq!(answer.tool_calls, [call("t", "{}"), call("t", "{\"n\":2}")]);
        assert_eq!(answer.usage, Usage::new(3, 0, 4, 0));
    }
}

#[tokio::test]
async fn the_same_socket_serves_the_next_call() {
    for kit in KITS {
        let server = ModelServer::start().await;
        server.answer_with(move |_| (kit.text)("hi there"));
        let model = kit.model(&server, Timeouts::default());
        for _ in 0..5 {
            model.call(&request(), &mut Shown::default()).await.unwrap();
        }
        assert_eq!((server.connections(), server.closed_early()), (1, 0));
    }
}

#[tokio::test]
async fn a_call_that_waits_is_small() {
    for kit in KITS {
        let server = ModelServer::start().await;
        let model = kit.model(&server, Timeouts::default());
        let (request, mut shown) = (request(), Shown::default());
        let call = model.call(&request, &mut shown);
        // There are as many of them as runs. On the heap it has a timer and a socket besides.
        assert!(size_of_val(&*call) <= 1024, "{:?}: {} bytes", kit.wire, size_of_val(&*call));
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_closes_its_socket_within_a_second() {
    for kit in KITS {
        let server = ModelServer::start().await;
        let gate = Gate::new();
        server.script(vec![(kit.text)("one two three").with(3, Piece::Gate(gate)), Reply::Hang]);
        let model = kit.model(&server, Timeouts::default());
        for n in 1..=2 {
            let (request, mut shown) = (request(), Shown::default());
            let call = model.call(&request, &mut shown);
            tokio::select! {
                _ = call => panic!("the answer never ends"),
                () = server.wait_requests(n) => {}
            }
            // At once, and in any case within the second that is promised; the rest is for a busy machine.
            tokio::time::timeout(Duration::from_secs(5), server.wait_closed_early(n))
                .await
                .unwrap();
        }
    }
}

#[tokio::test]
async fn text_is_shown_while_the_answer_still_comes() {
    for kit in KITS {
        let server = ModelServer::start().await;
        let gate = Gate::new();
        server.script(vec![(kit.text)("one two three").with(5, Piece::Gate(gate.clone()))]);
        let model = kit.model(&server, Timeouts::default());
        // The provider goes on only when its first words have been shown.
        let mut shown = Shown { opens: Some(gate), ..Shown::default() };
        let answer = model.call(&request(), &mut shown).await.unwrap();
        assert_eq!(answer.content, "one two three");
    }
}

#[tokio::test]
async fn waiting_for_room_is_no_silence_of_the_provider() {
    for kit in KITS {
        let server = ModelServer::start().await;
        server.script(vec![(kit.text)("one two three").slowly(Duration::from_millis(10))]);
        let mut shown = Shown { busy: Some(PATIENT.idle + SHORT.idle), ..Shown::default() };
        let answer = kit.model(&server, PATIENT).call(&request(), &mut shown).await.unwrap();
        assert_eq!((answer.content.as_str(), shown.busy), ("one two three", None));
    }
}

#[tokio::test]
async fn characters_that_are_broken_are_replaced_and_fail_nothing() {
    let half = br#"data: {"choices":[{"index":0,"delta":{"content":"a\ud83d"}}]}"#;
    let bytes = b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"b\xF0\x9F\"}}]}";
    let nul = br#"data: {"choices":[{"index":0,"delta":{"content":"\u0000"}}]}"#;
    let chunks = [half.as_slice(), bytes, nul].map(|line| [line, b"\n\n"].concat());
    let end = [openai::choice(json!({}), json!("stop")), openai::done()];
    let (result, _) = OPENAI.call(Reply::stream([&chunks[..], &end[..]].concat())).await;
    assert_eq!(result.unwrap().content, "a\u{fffd}b\u{fffd}\0");
}

#[tokio::test]
async fn a_base_url_is_met_as_it_is_written() {
    for (wire, suffix, path) in [
        (Wire::OpenAi, "/v1/", "/v1/chat/completions"),
        (Wire::OpenAi, "/deep/er?api-version=7", "/deep/er/chat/completions?api-version=7"),
        (Wire::OpenAi, "", "/chat/completions"),
        (Wire::Anthropic, "", "/v1/messages"),
        (Wire::Anthropic, "/v1/", "/v1/messages"),
    ] {
        let server = ModelServer::start().await;
        server.script(vec![Reply::status(400)]);
        let mut settings = server.settings("p", wire);
        settings.base_url = server.base_url().replace("/v1", suffix);
        let models = Models::new(vec![settings]).unwrap();
        let name = stepwell::domain::model::ModelName::parse("p/m").unwrap();
        let _ = models.find(&name).unwrap().call(&request(), &mut Shown::default()).await;
        assert_eq!(server.requests()[0].path, path);
    }
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_without_showing_the_key() {
    let server = ModelServer::start().await;
    let with = |change: &dyn Fn(&mut stepwell::models::ProviderSettings)| {
        let mut settings = server.settings("p", Wire::OpenAi);
        change(&mut settings);
        format!("{:?}", Models::new(vec![settings]).unwrap_err())
    };
    assert!(with(&|s| s.name = "builtin".to_owned()).contains("NameTaken"));
    assert!(with(&|s| s.base_url = "localhost:1".to_owned()).contains("BaseUrl"));
    assert!(with(&|s| s.base_url = "ftp://x".to_owned()).contains("BaseUrl"));
    let told = with(&|s| s.api_key = Some("canary\nkey".into()));
    assert!(told.contains("ApiKey") && !told.contains("canary"), "{told}");
    assert!(!format!("{:?}", server.settings("p", Wire::OpenAi)).contains("canary"));
}

#[tokio::test]
async fn a_transcript_is_told_back_to_the_provider() {
    let server = ModelServer::start().await;
    server.answer_with(|request| {
        let said = request.body["messages"].as_array().map_or(0, Vec::len);
        openai::text(&format!("{said} messages"))
    });
    let mut request = request();
    request.turns.push(user("And tomorrow?"));
    let model = OPENAI.model(&server, Timeouts::default());
    let answer = model.call(&request, &mut Shown::default()).await.unwrap();
    assert_eq!(answer.content, "2 messages");
    assert_eq!(server.requests()[0].body.get("tools"), None::<&Value>);
}

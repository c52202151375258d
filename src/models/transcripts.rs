//! Tests: whatever was said in a run, both wires get a transcript that their providers take.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::anthropic;
use super::openai::{self, TokenLimit};
use crate::domain::message::Content;
use crate::domain::model::{CallTurn, ModelRequest, ReasoningEffort, ToolChoice, Turn};

/// A request with these turns and nothing else.
pub(super) fn request(turns: Vec<Turn>) -> ModelRequest {
    ModelRequest {
        model: "m".to_owned(),
        turns,
        tools: Vec::new(),
        tool_choice: ToolChoice::Auto,
        temperature: None,
        top_p: None,
        max_output_tokens: 4096,
        reasoning_effort: None,
        provider_options: Map::new(),
        output_schema: None,
        script_turn: 0,
        script: Vec::new(),
        attempt: 1,
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), Just(" \n".to_owned()), "[a-zü\\u{0}]{1,8}", "\\PC{0,12}"]
}

fn content() -> impl Strategy<Value = Content> {
    let part = prop_oneof![
        text().prop_map(|text| json!({"type": "text", "text": text})),
        Just(json!({"type": "image", "media_type": "image/png", "data": "AAAA"})),
        Just(json!({"type": "file", "media_type": "application/pdf", "url": "https://e.com/a"})),
        Just(json!({"type": "data", "data": {"a": 1}})),
    ];
    prop_oneof![
        text().prop_map(Content::Text),
        prop::collection::vec(part, 0..4)
            .prop_map(|parts| serde_json::from_value(Value::Array(parts)).unwrap()),
    ]
}

fn arguments() -> impl Strategy<Value = Value> {
    prop_oneof![Just(json!({})), Just(json!({"a": [1, null]})), text().prop_map(Value::String),]
}

/// A turn; an assistant turn comes with the answers to its calls.
fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let call = (text(), arguments(), text(), any::<bool>());
    let state = prop_oneof![
        Just(None),
        Just(Some(json!({"wire": "other", "thinking": [{"type": "thinking"}]}))),
        Just(Some(json!({"wire": "anthropic", "thinking":
            [{"type": "thinking", "thinking": "hm", "signature": "s"}]}))),
    ];
    prop_oneof![
        text().prop_map(|text| vec![Turn::System(text)]),
        content().prop_map(|content| vec![Turn::User(content)]),
        (content(), state, prop::collection::vec(call, 0..4)).prop_map(
            |(content, provider_state, calls)| {
                let mut tool_calls = Vec::new();
                let mut answers = Vec::new();
                for (n, (tool, arguments, content, is_error)) in calls.into_iter().enumerate() {
                    let call_id = format!("call_{n}");
                    tool_calls.push(CallTurn {
                        call_id: call_id.clone(),
                        tool: tool.clone(),
                        arguments,
                    });
                    answers.push(Turn::Tool { call_id, tool, content, is_error });
                }
                let mut turns = vec![Turn::Assistant { content, provider_state, tool_calls }];
                turns.append(&mut answers);
                turns
            }
        ),
    ]
}

fn requests() -> impl Strategy<Value = ModelRequest> {
    let effort = prop_oneof![Just(None), Just(Some(ReasoningEffort::High))];
    (prop::collection::vec(turns(), 0..8), effort, 1_u32..20_000).prop_map(
        |(turns, reasoning_effort, max_output_tokens)| ModelRequest {
            reasoning_effort,
            max_output_tokens,
            temperature: Some(0.5),
            ..request(turns.concat())
        },
    )
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn of_type<'a>(message: &'a Value, kind: &str) -> Vec<&'a Value> {
    list(&message["content"]).iter().filter(|block| block["type"] == kind).collect()
}

proptest! {
    #[test]
    fn each_call_is_answered_before_anyone_else_speaks_on_the_openai_wire(request in requests()) {
        let body = openai::body(&request, TokenLimit::MaxTokens);
        let mut open: Vec<&Value> = Vec::new();
        for (n, message) in list(&body["messages"]).iter().enumerate() {
            if message["role"] == "tool" {
                let answered = open.iter().position(|id| **id == message["tool_call_id"]);
                prop_assert!(answered.is_some(), "an answer to nothing: {body}");
                open.remove(answered.unwrap());
                continue;
            }
            prop_assert!(open.is_empty(), "{open:?} unanswered in {body}");
            prop_assert!(n == 0 || message["role"] != "system");
            open = list(&message["tool_calls"]).iter().map(|call| &call["id"]).collect();
            if message["role"] == "assistant" {
                prop_assert!(!open.is_empty() || message["content"] != "");
            }
            for call in list(&message["tool_calls"]) {
                prop_assert!(call["function"]["arguments"].is_string());
                prop_assert!(call["function"]["name"] != "");
            }
        }
        prop_assert!(open.is_empty());
    }

    #[test]
    fn roles_alternate_and_each_call_is_answered_at_once_on_the_anthropic_wire(request in requests()) {
        let body = anthropic::body(&request);
        let messages = list(&body["messages"]);
        prop_assert_eq!(&messages[0]["role"], "user");
        prop_assert!(body.get("system").is_none_or(|system| system != ""));
        let mut open: Vec<&Value> = Vec::new();
        for (n, message) in messages.iter().enumerate() {
            prop_assert_eq!(&message["role"], if n % 2 == 0 { "user" } else { "assistant" });
            let blocks = list(&message["content"]);
            prop_assert!(!blocks.is_empty());
            for block in of_type(message, "text") {
                prop_assert!(!block["text"].as_str().unwrap().trim().is_empty(), "{}", body);
            }
            let answers = of_type(message, "tool_result");
            let ids: Vec<&Value> = answers.iter().map(|block| &block["tool_use_id"]).collect();
            prop_assert_eq!(&ids, &open, "{}", body);
            // They stand first.
            prop_assert!(blocks[..ids.len()].iter().all(|block| block["type"] == "tool_result"));
            let calls = of_type(message, "tool_use");
            prop_assert!(calls.iter().all(|call| call["input"].is_object() && call["name"] != ""));
            open = calls.iter().map(|call| &call["id"]).collect();
            prop_assert!(of_type(message, "thinking").iter().all(|block| block["signature"] == "s"));
        }
        prop_assert!(open.is_empty());
        if let Some(thinking) = body.get("thinking") {
            prop_assert!(thinking["budget_tokens"].as_u64() < body["max_tokens"].as_u64());
            prop_assert!(thinking["budget_tokens"].as_u64() >= Some(1024));
            prop_assert!(body.get("temperature").is_none());
        }
    }
}

//! What a model is sent must be what its wire accepts.

use serde_json::{Value, json};
use stepwell::domain::model::{ModelRequest, Turn};
use stepwell::models::anthropic;
use stepwell::models::openai::{self, TokenLimit};

/// The request is valid by itself and on both wires.
pub fn assert_valid(request: &ModelRequest) {
    assert_turns(&request.turns);
    assert_valid_openai(&openai::body(request, TokenLimit::MaxTokens));
    assert_valid_anthropic(&anthropic::body(request));
}

/// Every call of an assistant turn is answered by the tool turns right behind it, and nothing else is.
fn assert_turns(turns: &[Turn]) {
    let mut open: Vec<&str> = Vec::new();
    for turn in turns {
        match turn {
            Turn::Tool { call_id, .. } => {
                assert_eq!(open.first(), Some(&call_id.as_str()), "an answer out of its turn");
                open.remove(0);
            }
            Turn::Assistant { tool_calls, content, .. } => {
                assert!(open.is_empty(), "a call without its answer");
                assert!(!tool_calls.is_empty() || !content.is_empty(), "an empty turn");
                open = tool_calls.iter().map(|call| call.call_id.as_str()).collect();
            }
            Turn::User(content) => {
                assert!(open.is_empty(), "a call without its answer");
                assert!(!content.is_empty(), "an empty turn");
            }
            Turn::System(_) => assert!(open.is_empty()),
        }
    }
    assert!(open.is_empty(), "a call without its answer");
    assert!(turns.iter().any(|turn| matches!(turn, Turn::User(_))), "nobody asked anything");
}

pub fn assert_valid_openai(body: &Value) {
    let mut open: Vec<String> = Vec::new();
    for message in body["messages"].as_array().expect("messages") {
        if message["role"] == "tool" {
            let id = message["tool_call_id"].as_str().expect("id").to_owned();
            assert!(open.contains(&id), "an answer without its call: {body}");
            open.retain(|other| *other != id);
            continue;
        }
        assert!(open.is_empty(), "a call without its answer: {body}");
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            assert!(call["function"]["arguments"].is_string());
            open.push(call["id"].as_str().expect("id").to_owned());
        }
    }
    assert!(open.is_empty(), "a call without its answer: {body}");
}

pub fn assert_valid_anthropic(body: &Value) {
    let messages = body["messages"].as_array().expect("messages");
    assert_eq!(messages[0]["role"], "user", "{body}");
    let mut open: Vec<String> = Vec::new();
    let mut role = "assistant";
    for message in messages {
        assert_ne!(message["role"], role, "roles alternate: {body}");
        role = message["role"].as_str().expect("role");
        let blocks = match &message["content"] {
            Value::String(text) => vec![json!({"type": "text", "text": text})],
            blocks => blocks.as_array().expect("blocks").clone(),
        };
        assert!(!blocks.is_empty(), "an empty message: {body}");
        let mut asked = Vec::new();
        for block in &blocks {
            match block["type"].as_str().expect("type") {
                "text" => assert_ne!(block["text"], "", "an empty text: {body}"),
                "tool_use" => {
                    assert!(block["input"].is_object(), "{body}");
                    asked.push(block["id"].as_str().expect("id").to_owned());
                }
                "tool_result" => {
                    let id = block["tool_use_id"].as_str().expect("id");
                    assert!(open.iter().any(|other| other == id), "{body}");
                    open.retain(|other| other != id);
                }
                _ => {}
            }
        }
        assert!(open.is_empty(), "a call without its answer in the next message: {body}");
        open = asked;
    }
    assert!(open.is_empty(), "a call without its answer: {body}");
}

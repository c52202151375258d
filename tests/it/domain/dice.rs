//! Chance, and what random runs are made of.

use std::sync::Arc;

use serde_json::{Value, json};
use stepwell::domain::agent::AgentSettings;
use stepwell::domain::conversation::history::History;
use stepwell::domain::message::{Content, Input};
use stepwell::domain::model::{CallTurn, Turn};

/// A random engine's source of decisions: bytes, and zero once they are used up.
pub struct Dice(std::vec::IntoIter<u8>);

impl Dice {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes.into_iter())
    }

    pub fn roll(&mut self, sides: u8) -> u8 {
        self.0.next().unwrap_or(0) % sides
    }

    pub fn are_used_up(&self) -> bool {
        self.0.len() == 0
    }
}

pub fn settings(dice: &mut Dice) -> AgentSettings {
    let schema = json!({"type": "object", "required": ["n"]});
    let value = json!({
        "model": "builtin/script",
        "system_prompt": if dice.roll(2) == 0 { Value::Null } else { json!("Be brief.") },
        "tools": [
            {"type": "builtin", "name": "current_time"},
            {"type": "builtin", "name": "echo", "requires_approval": dice.roll(2) == 0, "approval_timeout_seconds": 20},
            {"type": "client", "name": "mine", "timeout_seconds": 1 + dice.roll(40),
             "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}},
            {"type": "http", "name": "pay", "url": "https://example.com/pay", "effect": "once"},
            {"type": "client", "name": "both", "requires_approval": true,
             "timeout_seconds": 1 + dice.roll(40), "approval_timeout_seconds": 20},
        ],
        "max_steps": 1 + dice.roll(5),
        "timeout_seconds": 30,
        "max_context_tokens": match dice.roll(8) { 0 => json!(1_000), 1 => json!(300), 2 => json!(10), _ => Value::Null },
        "max_total_tokens": if dice.roll(4) == 0 { json!(40) } else { Value::Null },
        "output_schema": if dice.roll(4) == 0 { schema } else { Value::Null },
    });
    serde_json::from_value(value).expect("settings")
}

pub fn input(dice: &mut Dice) -> Input {
    let value = match dice.roll(3) {
        0 => json!("Hello"),
        1 => json!([
            {"role": "system", "content": "You are kind."},
            {"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "data", "data": {"a": 1}}]},
            {"role": "agent", "content": "this?"},
            {"role": "user", "content": "Well?"},
        ]),
        _ => json!([{"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "Hello"}]),
    };
    serde_json::from_value(value).expect("input")
}

/// What was said in its conversation before it.
pub fn history(dice: &mut Dice) -> Arc<History> {
    let older = i32::from(dice.roll(3));
    let said = |text: String| Content::Text(text);
    let turn = |n: u8| {
        let call_id = format!("call_{n}");
        let call = CallTurn { call_id, tool: "echo".to_owned(), arguments: json!({"text": n}) };
        [
            Turn::User(said(format!("And {n}?"))),
            Turn::Assistant {
                content: said(String::new()),
                provider_state: None,
                tool_calls: vec![call.clone()],
            },
            Turn::Tool {
                call_id: call.call_id,
                tool: call.tool,
                content: "x".repeat(usize::from(n) * 50),
                is_error: n == 2,
            },
            Turn::Assistant {
                content: said(format!("It is {n}.")),
                provider_state: None,
                tool_calls: Vec::new(),
            },
        ]
    };
    Arc::new(History::new(older, (0..dice.roll(6)).flat_map(turn)))
}

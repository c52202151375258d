//! Counting tokens where nobody else did.

use crate::domain::model::{ModelAnswer, ModelRequest, Turn};
use crate::domain::tokens;
use crate::domain::usage::Usage;

/// Words of a text: what the built-in models call tokens.
pub(super) fn words(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}

/// What a call used, counted in words.
pub(super) fn in_words(request: &ModelRequest, answer: &ModelAnswer) -> Usage {
    count(request, answer, words)
}

/// What a call used, where the provider did not say so plausibly.
pub(super) fn guessed(request: &ModelRequest, answer: &ModelAnswer) -> Usage {
    count(request, answer, tokens::of_text)
}

fn count(request: &ModelRequest, answer: &ModelAnswer, of: fn(&str) -> u64) -> Usage {
    let read: u64 = request.turns.iter().map(|turn| turn_tokens(turn, of)).sum();
    let tools: u64 = request
        .tools
        .iter()
        .map(|tool| of(&tool.description) + of(&tool.parameters.to_string()))
        .sum();
    let calls: u64 =
        answer.tool_calls.iter().map(|call| of(&call.tool) + of(&call.arguments)).sum();
    let reasoning = of(&answer.reasoning);
    Usage::new(read + tools, 0, of(&answer.content) + calls + reasoning, reasoning)
}

fn turn_tokens(turn: &Turn, of: fn(&str) -> u64) -> u64 {
    match turn {
        Turn::System(text) => of(text),
        Turn::User(content) => of(&content.text()),
        Turn::Assistant { content, tool_calls, .. } => {
            let calls: u64 = tool_calls
                .iter()
                .map(|call| of(&call.tool) + of(&call.arguments.to_string()))
                .sum();
            of(&content.text()) + calls
        }
        Turn::Tool { content, .. } => of(content),
    }
}

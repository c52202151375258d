//! How many tokens something is, where nobody has counted them. Only the tokenizer of the very model
//! knows; these are estimates, made the same way for every model, and good for limits.
//!
//! The log does not keep them, so they may become better: what was decided by them is in the log.

use super::message::{Content, Part};
use super::model::Turn;
use super::tool::ToolSpec;

/// What stands around a message: its role and its borders.
const MESSAGE: u64 = 4;
/// What stands around a tool or a call of one: its id, and the words that make it one.
const CALL: u64 = 8;
/// An image, whatever its size: about what providers take for a large one.
const IMAGE: u64 = 1_600;
/// A file that is not text, whatever its size: some pages.
const FILE: u64 = 3_000;

/// The tokens of a text: of Latin letters, digits and signs a token has about four, of other alphabets
/// two, and an ideograph is one by itself. No word has less than one.
pub fn of_text(text: &str) -> u64 {
    let (mut quarters, mut words, mut in_word) = (0_u64, 0_u64, false);
    for byte in text.bytes() {
        quarters += match byte {
            0..=0x7f => 1,
            // The rest of a character.
            0x80..=0xbf => 0,
            0xc0..=0xdf => 2,
            0xe0..=0xff => 4,
        };
        let is_space = byte.is_ascii_whitespace();
        words += u64::from(!is_space && !in_word);
        in_word = !is_space;
    }
    quarters.div_ceil(4).max(words)
}

/// The tokens of what somebody says.
pub fn of_content(content: &Content) -> u64 {
    match content {
        Content::Text(text) => of_text(text),
        Content::Parts(parts) => parts.iter().map(of_part).sum(),
    }
}

fn of_part(part: &Part) -> u64 {
    match part {
        Part::Text { .. } | Part::Data { .. } => of_text(&part.as_text()),
        Part::Image { .. } => IMAGE,
        Part::File { media_type, data: Some(base64), .. } if is_text(media_type) => {
            // Four characters of base64 are three bytes.
            (base64.len() as u64 * 3 / 4).div_ceil(4)
        }
        Part::File { .. } => FILE,
    }
}

fn is_text(media_type: &str) -> bool {
    media_type.starts_with("text/") || media_type.contains("json") || media_type.contains("xml")
}

/// The tokens of one message of a transcript.
pub fn of_turn(turn: &Turn) -> u64 {
    let said = match turn {
        Turn::System(text) => of_text(text),
        Turn::User(content) => of_content(content),
        Turn::Assistant { content, provider_state, tool_calls } => {
            let calls = tool_calls.iter();
            let calls =
                calls.map(|call| CALL + of_text(&call.tool) + of_text(&call.arguments.to_string()));
            let state = provider_state.as_ref().map_or(0, |state| of_text(&state.to_string()));
            of_content(content) + calls.sum::<u64>() + state
        }
        Turn::Tool { content, .. } => CALL + of_text(content),
    };
    MESSAGE + said
}

/// The tokens of messages of a transcript.
pub fn of_turns(turns: &[Turn]) -> u64 {
    turns.iter().map(of_turn).sum()
}

/// The tokens of a tool that a model is offered.
pub fn of_tool(tool: &ToolSpec) -> u64 {
    let words = [of_text(&tool.name), of_text(&tool.description)];
    CALL + words.iter().sum::<u64>() + of_text(&tool.parameters.to_string())
}

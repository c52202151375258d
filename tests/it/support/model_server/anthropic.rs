//! Replies of the Anthropic wire. Each claims 12 tokens read, 5 of them from the cache, and 7 written.

use serde_json::{Value, json};

use super::{Reply, fragments, words};

/// One event.
pub fn event(kind: &str, mut fields: Value) -> Vec<u8> {
    fields["type"] = json!(kind);
    format!("event: {kind}\ndata: {fields}\n\n").into_bytes()
}

/// The first event, with this usage.
pub fn start(usage: Value) -> Vec<u8> {
    event(
        "message_start",
        json!({"message": {
            "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [],
            "stop_reason": null, "stop_sequence": null, "usage": usage,
        }}),
    )
}

/// A whole block: how it starts and its deltas.
pub fn block(index: usize, start: Value, deltas: Vec<Value>) -> Vec<Vec<u8>> {
    let mut chunks =
        vec![event("content_block_start", json!({"index": index, "content_block": start}))];
    for delta in deltas {
        chunks.push(event("content_block_delta", json!({"index": index, "delta": delta})));
    }
    chunks.push(event("content_block_stop", json!({"index": index})));
    chunks
}

/// The event with the stop reason and the usage.
pub fn delta(stop_reason: &str, usage: Value) -> Vec<u8> {
    let delta = json!({"stop_reason": stop_reason, "stop_sequence": null});
    event("message_delta", json!({"delta": delta, "usage": usage}))
}

/// The end marker.
pub fn stop() -> Vec<u8> {
    event("message_stop", json!({}))
}

/// These blocks, and what belongs around them.
pub fn reply(blocks: Vec<Vec<Vec<u8>>>, stop_reason: &str) -> Reply {
    let usage = json!({"input_tokens": 4, "cache_creation_input_tokens": 3,
        "cache_read_input_tokens": 5, "output_tokens": 1});
    let mut chunks = vec![start(usage), event("ping", json!({}))];
    chunks.extend(blocks.concat());
    chunks.extend([delta(stop_reason, json!({"output_tokens": 7})), stop()]);
    Reply::stream(chunks)
}

/// This text, word by word.
pub fn text(text: &str) -> Reply {
    let deltas = words(text).map(|word| json!({"type": "text_delta", "text": word})).collect();
    reply(vec![block(0, json!({"type": "text", "text": ""}), deltas)], "end_turn")
}

/// These calls `(tool, arguments)`, their arguments in fragments.
pub fn tool_calls(calls: &[(&str, &str)]) -> Reply {
    let blocks = calls
        .iter()
        .enumerate()
        .map(|(index, (tool, arguments))| {
            let id = format!("toolu_{index}");
            let start = json!({"type": "tool_use", "id": id, "name": tool, "input": {}});
            let deltas = fragments(arguments)
                .into_iter()
                .map(|piece| json!({"type": "input_json_delta", "partial_json": piece}))
                .collect();
            block(index, start, deltas)
        })
        .collect();
    reply(blocks, "tool_use")
}

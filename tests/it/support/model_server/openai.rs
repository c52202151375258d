//! Replies of the OpenAI wire. Each claims 12 tokens read, 5 of them from the cache, and 7 written.

use serde_json::{Value, json};

use super::{Reply, data, fragments, words};

/// One chunk with this choice.
pub fn choice(delta: Value, finish_reason: Value) -> Vec<u8> {
    data(&json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_800_000_000, "model": "m",
        "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason}],
    }))
}

/// One chunk with this usage.
pub fn usage(usage: Value) -> Vec<u8> {
    data(&json!({"object": "chat.completion.chunk", "choices": [], "usage": usage}))
}

/// The usage that all replies claim.
pub fn plain_usage() -> Vec<u8> {
    usage(json!({
        "prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19,
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }))
}

/// The end marker.
pub fn done() -> Vec<u8> {
    b"data: [DONE]\n\n".to_vec()
}

/// Whatever `deltas` say, then the finish reason, the usage and the end marker.
pub fn reply(deltas: Vec<Value>, finish_reason: &str) -> Reply {
    let mut chunks = vec![choice(json!({"role": "assistant", "content": ""}), Value::Null)];
    chunks.extend(deltas.into_iter().map(|delta| choice(delta, Value::Null)));
    chunks.extend([choice(json!({}), json!(finish_reason)), plain_usage(), done()]);
    Reply::stream(chunks)
}

/// This text, word by word.
pub fn text(text: &str) -> Reply {
    reply(words(text).map(|word| json!({"content": word})).collect(), "stop")
}

/// These calls `(tool, arguments)`, in parallel, their arguments in fragments.
pub fn tool_calls(calls: &[(&str, &str)]) -> Reply {
    let mut deltas = Vec::new();
    let call = |index: usize, id: Value, name: Value, arguments: &str| {
        json!({"tool_calls": [{"index": index, "id": id, "type": "function",
            "function": {"name": name, "arguments": arguments}}]})
    };
    for (index, (tool, _)) in calls.iter().enumerate() {
        deltas.push(call(index, json!(format!("prov_{index}")), json!(tool), ""));
    }
    let pieces: Vec<Vec<String>> =
        calls.iter().map(|(_, arguments)| fragments(arguments)).collect();
    for round in 0..pieces.iter().map(Vec::len).max().unwrap_or(0) {
        for (index, pieces) in pieces.iter().enumerate() {
            if let Some(piece) = pieces.get(round) {
                deltas.push(call(index, Value::Null, Value::Null, piece));
            }
        }
    }
    reply(deltas, "tool_calls")
}

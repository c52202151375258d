//! What is asked: a messages request.
//!
//! This wire is strict: roles alternate, the user begins, no text is blank, and each call is answered
//! in the very next message, before anything else in it.

use serde_json::{Map, Value, json};

use super::super::wire::{lay_over, system, tool_name};
use super::WIRE;
use crate::domain::message::{Content, Part};
use crate::domain::model::{ModelRequest, ReasoningEffort, ToolChoice, Turn};

/// The smallest budget for thinking that is taken.
const MIN_THINKING: u32 = 1024;

/// The body of a request.
pub fn body(request: &ModelRequest) -> Value {
    let mut body = Map::new();
    let mut set = |key: &str, value: Value| drop(body.insert(key.to_owned(), value));
    let thinking = thinking(request);
    set("model", json!(request.model));
    set("messages", messages(&request.turns));
    set("stream", json!(true));
    set("max_tokens", json!(request.max_output_tokens));
    let mut system = system(request);
    if let Some(schema) = &request.output_schema {
        // Not every server of this wire has a field for it, and the engine checks the answer anyway.
        if !system.is_empty() {
            system.push_str("\n\n");
        }
        system.push_str("Your final answer must be nothing but JSON, without Markdown, that satisfies this JSON Schema: ");
        system.push_str(&schema.to_string());
    }
    if !system.is_empty() {
        set("system", json!(system));
    }
    if let Some(budget) = thinking {
        // Sampling settings are refused together with thinking.
        set("thinking", json!({"type": "enabled", "budget_tokens": budget}));
    } else {
        if let Some(temperature) = request.temperature {
            // This wire's scale ends at 1; ours, like OpenAI's, at 2.
            set("temperature", json!(temperature.min(1.0)));
        }
        if let Some(top_p) = request.top_p {
            set("top_p", json!(top_p));
        }
    }
    if !request.tools.is_empty() {
        set("tools", request.tools.iter().map(tool).collect());
        match request.tool_choice {
            ToolChoice::Auto => {}
            ToolChoice::None => set("tool_choice", json!({"type": "none"})),
            ToolChoice::Required => set("tool_choice", json!({"type": "any"})),
        }
    }
    lay_over(&mut body, &request.provider_options);
    Value::Object(body)
}

fn tool(tool: &crate::domain::tool::ToolSpec) -> Value {
    let mut schema = tool.parameters.clone();
    if let Value::Object(schema) = &mut schema {
        // The one field that this wire insists on.
        schema.entry("type").or_insert_with(|| json!("object"));
    }
    json!({"name": tool.name, "description": tool.description, "input_schema": schema})
}

/// Tokens that the model may think. None where they are too few, where a call is forced (refused
/// together with thinking), and where the tool calls that are being answered came without thinking:
/// the wire wants the thoughts of a turn back with its calls.
fn thinking(request: &ModelRequest) -> Option<u32> {
    let wanted = match request.reasoning_effort? {
        ReasoningEffort::Minimal => MIN_THINKING,
        ReasoningEffort::Low => 2_048,
        ReasoningEffort::Medium => 8_192,
        ReasoningEffort::High => 24_576,
    };
    let is_forced = !request.tools.is_empty() && request.tool_choice == ToolChoice::Required;
    let is_thoughtless =
        request.turns.iter().rev().take_while(|turn| !matches!(turn, Turn::User(_))).any(|turn| {
            matches!(turn, Turn::Assistant { tool_calls, provider_state, .. }
            if !tool_calls.is_empty() && thoughts(provider_state.as_ref()).is_empty())
        });
    if is_forced || is_thoughtless || request.max_output_tokens <= MIN_THINKING {
        return None;
    }
    // A quarter is left for the answer, where that can be.
    let most = (request.max_output_tokens / 4 * 3).max(MIN_THINKING);
    Some(wanted.min(most))
}

/// The thinking blocks that this wire gave with a turn.
fn thoughts(provider_state: Option<&Value>) -> &[Value] {
    provider_state
        .filter(|state| state.get("wire").and_then(Value::as_str) == Some(WIRE))
        .and_then(|state| state.get("thinking"))
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// Messages under construction: one for all that a role says in a row.
struct Messages(Vec<(&'static str, Vec<Value>)>);

impl Messages {
    fn say(&mut self, role: &'static str, blocks: impl IntoIterator<Item = Value>) {
        let mut blocks = blocks.into_iter().peekable();
        if blocks.peek().is_none() {
            return;
        }
        match self.0.last_mut() {
            Some((last, said)) if *last == role => said.extend(blocks),
            Some(_) | None => {
                if self.0.is_empty() && role != USER {
                    self.0.push((USER, vec![json!({"type": "text", "text": "(continued)"})]));
                }
                self.0.push((role, blocks.collect()));
            }
        }
    }
}

const USER: &str = "user";
const ASSISTANT: &str = "assistant";

fn messages(turns: &[Turn]) -> Value {
    let mut messages = Messages(Vec::new());
    for turn in turns {
        match turn {
            Turn::System(_) => {}
            Turn::User(content) => messages.say(USER, blocks(content)),
            Turn::Assistant { content, provider_state, tool_calls } => {
                let text = content.text();
                // A last text that ends in blanks is refused.
                let text = text.trim_end();
                if text.is_empty() && tool_calls.is_empty() {
                    continue;
                }
                messages.say(ASSISTANT, thoughts(provider_state.as_ref()).iter().cloned());
                messages.say(ASSISTANT, text_block(text));
                messages.say(
                    ASSISTANT,
                    tool_calls.iter().map(|call| {
                        let input = match &call.arguments {
                            object @ Value::Object(_) => object.clone(),
                            raw => json!({"_raw": raw}),
                        };
                        json!({
                            "type": "tool_use", "id": call.call_id,
                            "name": tool_name(&call.tool), "input": input,
                        })
                    }),
                );
            }
            Turn::Tool { call_id, content, is_error, .. } => {
                let mut block = json!({"type": "tool_result", "tool_use_id": call_id});
                if let Value::Object(block) = &mut block {
                    if !content.trim().is_empty() {
                        block.insert("content".to_owned(), json!(content));
                    }
                    if *is_error {
                        block.insert("is_error".to_owned(), json!(true));
                    }
                }
                messages.say(USER, [block]);
            }
        }
    }
    if messages.0.is_empty() {
        messages.say(USER, text_block("(continued)"));
    }
    messages.0.into_iter().map(|(role, blocks)| json!({"role": role, "content": blocks})).collect()
}

fn text_block(text: &str) -> Option<Value> {
    (!text.trim().is_empty()).then(|| json!({"type": "text", "text": text}))
}

fn blocks(content: &Content) -> Vec<Value> {
    match content {
        Content::Text(text) => text_block(text).into_iter().collect(),
        Content::Parts(parts) => parts.iter().filter_map(block).collect(),
    }
}

fn block(part: &Part) -> Option<Value> {
    match part {
        Part::Text { .. } | Part::Data { .. } => text_block(&part.as_text()),
        Part::Image { media_type, data, url, .. } => {
            let source = source(media_type, data.as_deref(), url.as_deref());
            Some(json!({"type": "image", "source": source}))
        }
        Part::File { media_type, data, url, filename } => {
            let source = source(media_type, data.as_deref(), url.as_deref());
            let mut block = json!({"type": "document", "source": source});
            if let (Value::Object(block), Some(filename)) = (&mut block, filename) {
                block.insert("title".to_owned(), json!(filename));
            }
            Some(block)
        }
    }
}

fn source(media_type: &str, data: Option<&str>, url: Option<&str>) -> Value {
    let base64 = |media_type: &str, data: &str| json!({"type": "base64", "media_type": media_type, "data": data});
    match (data, url.unwrap_or_default()) {
        (Some(data), _) => base64(media_type, data),
        // This wire fetches no `data:` addresses.
        (None, url) => match url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"))
        {
            Some((media_type, data)) => base64(media_type, data),
            None => json!({"type": "url", "url": url}),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::transcripts::request;
    use super::*;
    use crate::domain::model::CallTurn;
    use crate::domain::tool::ToolSpec;

    fn user(text: &str) -> Turn {
        Turn::User(Content::Text(text.to_owned()))
    }

    fn call_turns(state: Option<Value>, arguments: Value) -> Vec<Turn> {
        let (call_id, tool) = ("call_1".to_owned(), "t".to_owned());
        vec![
            user("hi"),
            Turn::Assistant {
                content: Content::Text("let me see ".to_owned()),
                provider_state: state,
                tool_calls: vec![CallTurn {
                    call_id: call_id.clone(),
                    tool: tool.clone(),
                    arguments,
                }],
            },
            Turn::Tool { call_id, tool, content: "no".to_owned(), is_error: true },
        ]
    }

    #[test]
    fn a_bare_request_holds_nothing_that_was_not_asked_for() {
        assert_eq!(
            body(&request(vec![user("hi")])),
            json!({
                "model": "m", "stream": true, "max_tokens": 4096,
                "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            })
        );
    }

    #[test]
    fn thoughts_of_this_wire_go_back_in_front_of_the_turn_that_had_them() {
        let thought = json!({"type": "thinking", "thinking": "hm", "signature": "s"});
        let state = json!({"wire": "anthropic", "thinking": [thought]});
        let mut request = request(call_turns(Some(state), json!({"a": 1})));
        request.reasoning_effort = Some(ReasoningEffort::Medium);
        request.temperature = Some(1.5);
        let told = body(&request);
        assert_eq!(
            told["messages"][1]["content"],
            json!([
                thought,
                {"type": "text", "text": "let me see"},
                {"type": "tool_use", "id": "call_1", "name": "t", "input": {"a": 1}},
            ])
        );
        assert_eq!(
            told["messages"][2]["content"],
            json!([{"type": "tool_result", "tool_use_id": "call_1", "content": "no", "is_error": true}])
        );
        assert_eq!(told["thinking"], json!({"type": "enabled", "budget_tokens": 3072}));
        assert_eq!(told.get("temperature"), None);
        // Another wire's state is nothing to this one, and calls without thoughts turn thinking off.
        let state = Some(json!({"wire": "openai", "thinking": [{"type": "thinking"}]}));
        request.turns = call_turns(state, json!("{broken"));
        let told = body(&request);
        assert_eq!(told["messages"][1]["content"][1]["input"], json!({"_raw": "{broken"}));
        assert_eq!((told.get("thinking"), &told["temperature"]), (None, &json!(1.0)));
    }

    #[test]
    fn tools_and_a_schema_are_told() {
        let mut request = request(vec![Turn::System("be kind".to_owned()), user("hi")]);
        request.tools = vec![ToolSpec {
            name: "t".to_owned(),
            description: "d".to_owned(),
            parameters: json!({"properties": {}}),
        }];
        request.tool_choice = ToolChoice::Required;
        request.reasoning_effort = Some(ReasoningEffort::Low);
        request.output_schema = Some(json!({"type": "object"}));
        request.provider_options = json!({"top_k": 5, "stream": null}).as_object().unwrap().clone();
        let told = body(&request);
        assert_eq!(
            told["tools"],
            json!([{"name": "t", "description": "d", "input_schema": {"type": "object", "properties": {}}}])
        );
        assert_eq!(told["tool_choice"], json!({"type": "any"}));
        assert_eq!(told.get("thinking"), None);
        let system = told["system"].as_str().unwrap();
        assert!(system.starts_with("be kind\n\n") && system.ends_with(r#"{"type":"object"}"#));
        assert_eq!((&told["top_k"], told.get("stream")), (&json!(5), None));
    }

    #[test]
    fn parts_become_the_blocks_of_this_wire() {
        let parts: Content = serde_json::from_value(json!([
            {"type": "text", "text": " "},
            {"type": "image", "media_type": "image/png", "data": "AAAA"},
            {"type": "image", "media_type": "image/png", "url": "data:image/gif;base64,CCCC"},
            {"type": "file", "media_type": "application/pdf", "url": "https://e.com/a", "filename": "a"},
            {"type": "data", "data": {"a": 1}}
        ]))
        .unwrap();
        assert_eq!(
            body(&request(vec![Turn::User(parts)]))["messages"][0]["content"],
            json!([
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "CCCC"}},
                {"type": "document", "source": {"type": "url", "url": "https://e.com/a"}, "title": "a"},
                {"type": "text", "text": "{\"a\":1}"},
            ])
        );
    }
}

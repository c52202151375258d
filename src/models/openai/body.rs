//! What is asked: a chat completion request.

use serde_json::{Map, Value, json};

use super::super::wire::{lay_over, system, tool_name};
use crate::domain::message::{Content, Part};
use crate::domain::model::{CallTurn, ModelRequest, ToolChoice, Turn};

/// What the bound on an answer's tokens is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenLimit {
    /// The old name, which every server knows.
    MaxTokens,
    /// The new name, which OpenAI's reasoning models insist on.
    MaxCompletionTokens,
}

impl TokenLimit {
    const fn field(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
        }
    }
}

/// The body of a request.
pub fn body(request: &ModelRequest, token_limit: TokenLimit) -> Value {
    let mut body = Map::new();
    let mut set = |key: &str, value: Value| body.insert(key.to_owned(), value);
    set("model", json!(request.model));
    set("messages", Value::Array(messages(request)));
    set("stream", json!(true));
    set("stream_options", json!({"include_usage": true}));
    set(token_limit.field(), json!(request.max_output_tokens));
    if let Some(temperature) = request.temperature {
        set("temperature", json!(temperature));
    }
    if let Some(top_p) = request.top_p {
        set("top_p", json!(top_p));
    }
    if let Some(effort) = request.reasoning_effort {
        set("reasoning_effort", json!(effort));
    }
    if let Some(schema) = &request.output_schema {
        // Not `strict`: it takes only some schemas, and the engine checks the answer anyway.
        let schema = json!({"name": "output", "schema": schema});
        set("response_format", json!({"type": "json_schema", "json_schema": schema}));
    }
    if !request.tools.is_empty() {
        set("tools", request.tools.iter().map(tool).collect());
        match request.tool_choice {
            // The default everywhere; some servers refuse the word without a start-up flag.
            ToolChoice::Auto => {}
            ToolChoice::None => drop(set("tool_choice", json!("none"))),
            ToolChoice::Required => drop(set("tool_choice", json!("required"))),
        }
    }
    lay_over(&mut body, &request.provider_options);
    Value::Object(body)
}

fn tool(tool: &crate::domain::tool::ToolSpec) -> Value {
    json!({"type": "function", "function": {
        "name": tool.name, "description": tool.description, "parameters": tool.parameters,
    }})
}

fn messages(request: &ModelRequest) -> Vec<Value> {
    let mut messages = Vec::with_capacity(request.turns.len());
    let system = system(request);
    if !system.is_empty() {
        messages.push(json!({"role": "system", "content": system}));
    }
    for turn in &request.turns {
        match turn {
            Turn::System(_) => {}
            Turn::User(said) => messages.push(json!({"role": "user", "content": content(said)})),
            Turn::Assistant { content, tool_calls, .. } => {
                messages.extend(assistant(content, tool_calls));
            }
            Turn::Tool { call_id, content, is_error, .. } => {
                // This wire has no word for a failed call, and the model must see that it failed.
                let content = if *is_error { format!("Error: {content}") } else { content.clone() };
                messages.push(json!({
                    "role": "tool", "tool_call_id": call_id, "content": content,
                }));
            }
        }
    }
    messages
}

/// What the model said before; nothing if it neither said nor called anything.
fn assistant(content: &Content, tool_calls: &[CallTurn]) -> Option<Value> {
    let text = content.text();
    if tool_calls.is_empty() {
        return (!text.is_empty()).then(|| json!({"role": "assistant", "content": text}));
    }
    let calls: Value = tool_calls.iter().map(call).collect();
    let content = if text.is_empty() { Value::Null } else { json!(text) };
    Some(json!({"role": "assistant", "content": content, "tool_calls": calls}))
}

fn call(call: &CallTurn) -> Value {
    let arguments = match &call.arguments {
        Value::String(raw) => raw.clone(),
        value => value.to_string(),
    };
    json!({"id": call.call_id, "type": "function", "function": {
        "name": tool_name(&call.tool), "arguments": arguments,
    }})
}

fn content(content: &Content) -> Value {
    match content {
        Content::Text(text) => json!(text),
        Content::Parts(parts) => parts.iter().map(part).collect(),
    }
}

fn part(part: &Part) -> Value {
    let inline = |media_type: &str, data: &str| format!("data:{media_type};base64,{data}");
    match part {
        Part::Text { .. } | Part::Data { .. } => json!({"type": "text", "text": part.as_text()}),
        Part::Image { media_type, data, url, .. } => {
            let url = data.as_ref().map(|data| inline(media_type, data)).or_else(|| url.clone());
            json!({"type": "image_url", "image_url": {"url": url.unwrap_or_default()}})
        }
        Part::File { media_type, data, url, filename } => {
            let data = data.as_ref().map(|data| inline(media_type, data)).or_else(|| url.clone());
            json!({"type": "file", "file": {
                "filename": filename.as_deref().unwrap_or("file"),
                "file_data": data.unwrap_or_default(),
            }})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::transcripts::request;
    use super::*;
    use crate::domain::model::ReasoningEffort;
    use crate::domain::tool::ToolSpec;

    fn plain(request: &ModelRequest) -> Value {
        body(request, TokenLimit::MaxTokens)
    }

    #[test]
    fn a_bare_request_holds_nothing_that_was_not_asked_for() {
        let request = request(vec![Turn::User(Content::Text("hi".to_owned()))]);
        assert_eq!(
            plain(&request),
            json!({
                "model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": true,
                "stream_options": {"include_usage": true}, "max_tokens": 4096,
            })
        );
        let body = body(&request, TokenLimit::MaxCompletionTokens);
        assert_eq!((&body["max_completion_tokens"], body.get("max_tokens")), (&json!(4096), None));
    }

    #[test]
    fn everything_that_was_asked_for_is_in_it_and_options_know_best() {
        let mut request = request(vec![Turn::User(Content::Text("hi".to_owned()))]);
        request.tools = vec![ToolSpec {
            name: "t".to_owned(),
            description: "d".to_owned(),
            parameters: json!({"type": "object"}),
        }];
        request.tool_choice = ToolChoice::Required;
        request.temperature = Some(0.5);
        request.top_p = Some(0.9);
        request.reasoning_effort = Some(ReasoningEffort::Low);
        request.output_schema = Some(json!({"type": "object"}));
        let options = json!({"top_p": null, "temperature": 1, "seed": 7});
        request.provider_options = options.as_object().unwrap().clone();
        let body = plain(&request);
        assert_eq!(
            body["tools"],
            json!([{"type": "function", "function":
                {"name": "t", "description": "d", "parameters": {"type": "object"}}}])
        );
        assert_eq!(body["tool_choice"], "required");
        assert_eq!(body["reasoning_effort"], "low");
        assert_eq!(body["response_format"]["json_schema"]["schema"], json!({"type": "object"}));
        assert_eq!((&body["temperature"], &body["seed"]), (&json!(1), &json!(7)));
        assert_eq!(body.get("top_p"), None);
    }

    #[test]
    fn tool_turns_keep_their_ids_and_raw_arguments_stay_raw() {
        let call = |arguments: Value| CallTurn {
            call_id: "call_1".to_owned(),
            tool: "no such tool".to_owned(),
            arguments,
        };
        let turns = |arguments| {
            vec![
                Turn::System("a".to_owned()),
                Turn::System("b".to_owned()),
                Turn::User(Content::Text("hi".to_owned())),
                Turn::Assistant {
                    content: Content::Text(String::new()),
                    provider_state: Some(json!({"wire": "anthropic"})),
                    tool_calls: vec![call(arguments)],
                },
                Turn::Tool {
                    call_id: "call_1".to_owned(),
                    tool: "no such tool".to_owned(),
                    content: "not found".to_owned(),
                    is_error: true,
                },
            ]
        };
        let arguments =
            |body: &Value| body["messages"][2]["tool_calls"][0]["function"]["arguments"].clone();
        let body = plain(&request(turns(json!({"a": 1}))));
        assert_eq!(arguments(&body), r#"{"a":1}"#);
        assert_eq!(body["messages"][0], json!({"role": "system", "content": "a\n\nb"}));
        assert_eq!(body["messages"][2]["tool_calls"][0]["function"]["name"], "no_such_tool");
        assert_eq!(
            body["messages"][3],
            json!({"role": "tool", "tool_call_id": "call_1", "content": "Error: not found"})
        );
        assert_eq!(arguments(&plain(&request(turns(json!("{broken"))))), "{broken");
    }

    #[test]
    fn parts_become_the_parts_of_this_wire() {
        let parts: Content = serde_json::from_value(json!([
            {"type": "text", "text": "look"},
            {"type": "image", "media_type": "image/png", "data": "AAAA"},
            {"type": "image", "media_type": "image/png", "url": "https://example.com/a.png"},
            {"type": "file", "media_type": "application/pdf", "data": "BBBB", "filename": "a.pdf"},
            {"type": "data", "data": {"a": 1}}
        ]))
        .unwrap();
        assert_eq!(
            plain(&request(vec![Turn::User(parts)]))["messages"][0]["content"],
            json!([
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,BBBB"}},
                {"type": "text", "text": "{\"a\":1}"},
            ])
        );
    }
}

//! A URL that Stepwell calls.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};
use url::Url;

use crate::domain::depth::is_too_deep;
use crate::domain::limits::MAX_RESULT_BYTES;
use crate::domain::tool::{HttpMethod, HttpTool, UrlTemplate};
use crate::egress::{Answer, Failure, Gate, HeaderMap, HeaderName, HeaderValue, Request, Secrets};

use super::{Outcome, Tool, ToolCall};

/// Attempts at a call that may be repeated, the first included.
const ATTEMPTS: u32 = 3;
/// Bytes of an error's body that the model is told: enough to mend its arguments.
const MAX_TOLD: usize = 4 * 1024;
/// Bytes kept free for the note that something was cut.
const NOTE: usize = 64;

/// A tool that is called by HTTP.
pub(super) struct Http {
    definition: HttpTool,
    gate: Arc<Gate>,
    secrets: Arc<Secrets>,
}

impl Http {
    pub fn new(definition: HttpTool, gate: Arc<Gate>, secrets: Arc<Secrets>) -> Self {
        Self { definition, gate, secrets }
    }

    /// The request for a call.
    ///
    /// # Errors
    /// Why there is none, in words for the model.
    fn request(&self, call: &ToolCall) -> Result<Request, String> {
        let template = UrlTemplate::parse(&self.definition.url)
            .map_err(|why| format!("The tool's URL {why}."))?;
        let none = Map::new();
        let (mut url, rest) = template.fill(call.arguments.as_object().unwrap_or(&none))?;
        let mut headers = self
            .secrets
            .headers(&self.definition.headers, &url, call.workspace_id)
            .map_err(|why| format!("The tool's headers cannot be made: {why}."))?;
        let body = match self.definition.method {
            HttpMethod::Get | HttpMethod::Delete => {
                into_query(&mut url, rest);
                None
            }
            HttpMethod::Post | HttpMethod::Put | HttpMethod::Patch => {
                set_default(&mut headers, "content-type", "application/json");
                Some(Value::Object(rest).to_string().into_bytes())
            }
        };
        set_default(&mut headers, "accept", "application/json, text/*;q=0.9, */*;q=0.1");
        // Both are prefixes and digits, so they are headers.
        for (name, value) in [
            ("idempotency-key", format!("{}:{}", call.run_id, call.call_id)),
            ("x-run-id", call.run_id.to_string()),
        ] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        let method = self.definition.method;
        Ok(Request { method, url, headers, body, most_bytes: MAX_RESULT_BYTES })
    }

    /// What an answer means.
    fn outcome(&self, answer: &Answer) -> Outcome {
        let status = answer.status;
        match status {
            200..=299 => Outcome::Completed(self.result(answer)),
            300..=399 => Outcome::Failed(format!(
                "The tool answered {status}: a redirect, which is not followed."
            )),
            429 | 500.. => Outcome::Busy(self.refusal(answer), answer.retry_after),
            _ => Outcome::Failed(self.refusal(answer)),
        }
    }

    /// JSON if it is, else text.
    fn result(&self, answer: &Answer) -> Value {
        if answer.is_whole
            && let Ok(value) = serde_json::from_slice::<Value>(&answer.body)
            && !is_too_deep(&value)
        {
            return self.secrets.redact_json(value);
        }
        let text = self.text(answer);
        if answer.is_whole && text.len() <= MAX_RESULT_BYTES {
            return Value::String(text);
        }
        let kept = beginning(&text, MAX_RESULT_BYTES - NOTE);
        Value::String(format!("{kept}\n[cut: the answer is longer than {} bytes]", kept.len()))
    }

    /// The body without secrets. Cut it later: a cut could leave the beginning of one.
    fn text(&self, answer: &Answer) -> String {
        let text = String::from_utf8_lossy(&answer.body);
        if answer.is_whole {
            self.secrets.redact(&text)
        } else {
            self.secrets.redact_beginning(&text)
        }
    }

    fn refusal(&self, answer: &Answer) -> String {
        let text = self.text(answer);
        let status = answer.status;
        match beginning(text.trim(), MAX_TOLD) {
            "" => format!("The tool answered {status}."),
            told => format!("The tool answered {status}: {told}"),
        }
    }
}

#[async_trait]
impl Tool for Http {
    async fn call(&self, call: ToolCall) -> Outcome {
        call.departure.announce();
        let request = match self.request(&call) {
            Ok(request) => request,
            Err(why) => return Outcome::Failed(why),
        };
        match self.gate.send(request, call.departure).await {
            Ok(answer) => self.outcome(&answer),
            Err(Failure::Withheld(_)) => Outcome::Withheld,
            Err(Failure::NoConnection) => {
                Outcome::NotSent("The tool's host could not be reached.".to_owned())
            }
            Err(Failure::NoAnswer) => Outcome::Unknown(
                "The connection to the tool broke before its answer was there.".to_owned(),
            ),
            Err(why @ (Failure::Refused(_) | Failure::NoClient)) => {
                Outcome::Failed(format!("The tool was not called: {why}."))
            }
        }
    }

    fn attempts(&self) -> u32 {
        ATTEMPTS
    }
}

/// Adds arguments to the query: lists as repeated names, objects as JSON, nothing for null.
fn into_query(url: &mut Url, arguments: Map<String, Value>) {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (name, value) in arguments {
        match value {
            Value::Null => {}
            Value::Array(values) => {
                pairs.extend(values.into_iter().map(|value| (name.clone(), plain(value))));
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                pairs.push((name, plain(value)));
            }
        }
    }
    // A query that is empty is a query too.
    if !pairs.is_empty() {
        url.query_pairs_mut().extend_pairs(pairs);
    }
}

fn plain(value: Value) -> String {
    match value {
        Value::String(text) => text,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    }
}

fn set_default(headers: &mut HeaderMap, name: &'static str, value: &'static str) {
    headers.entry(HeaderName::from_static(name)).or_insert(HeaderValue::from_static(value));
}

fn beginning(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or_default()
}

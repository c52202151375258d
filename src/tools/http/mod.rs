//! A URL that Stepwell calls.

mod reading;

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};
use url::form_urlencoded;

use crate::domain::limits::MAX_RESULT_BYTES;
use crate::domain::tool::{HttpMethod, HttpTool, MAX_URL, UrlTemplate};
use crate::egress::{Failure, Gate, HeaderMap, HeaderName, HeaderValue, Request, Secrets};

use super::{ATTEMPTS, Outcome, Tool, ToolCall};

/// A body that is asked for by naming it as the `content-type`.
const FORM: &str = "application/x-www-form-urlencoded";

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
                let pairs = pairs(rest);
                // A query that is empty is a query too.
                if !pairs.is_empty() {
                    url.query_pairs_mut().extend_pairs(pairs);
                }
                if url.as_str().len() > MAX_URL {
                    return Err(format!("The arguments make a URL of more than {MAX_URL} bytes."));
                }
                None
            }
            HttpMethod::Post | HttpMethod::Put | HttpMethod::Patch if is_form(&headers) => {
                let mut form = form_urlencoded::Serializer::new(String::new());
                Some(form.extend_pairs(pairs(rest)).finish().into_bytes())
            }
            HttpMethod::Post | HttpMethod::Put | HttpMethod::Patch => {
                set_default(&mut headers, "content-type", "application/json");
                Some(Value::Object(rest).to_string().into_bytes())
            }
        };
        set_default(&mut headers, "accept", "application/json, text/*;q=0.9, */*;q=0.1");
        // Both are prefixes and digits, so they are headers.
        for (name, value) in
            [("idempotency-key", call.idempotency_key()), ("x-run-id", call.run_id.to_string())]
        {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        let method = self.definition.method;
        Ok(Request { method, url, headers, body, most_bytes: MAX_RESULT_BYTES })
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
            Ok(answer) => reading::outcome(&answer, &self.secrets),
            Err(Failure::Withheld(_)) => Outcome::Withheld,
            Err(Failure::NoConnection(why)) if why.may_pass() => {
                Outcome::NotSent(format!("The tool was not called: {why}."))
            }
            Err(Failure::NoAnswer) => Outcome::Unknown(
                "The connection to the tool broke before its answer was there.".to_owned(),
            ),
            Err(why @ (Failure::Refused(_) | Failure::NoConnection(_) | Failure::NoClient)) => {
                Outcome::Failed(format!("The tool was not called: {why}."))
            }
        }
    }

    fn attempts(&self) -> u32 {
        ATTEMPTS
    }
}

/// Arguments for a query or a form: lists as repeated names, objects as JSON, nothing for null.
fn pairs(arguments: Map<String, Value>) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
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
    pairs
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

/// Whether the tool's own headers say that it takes a form.
fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get("content-type").and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    kind.trim().eq_ignore_ascii_case(FORM)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::domain::egress::Destinations;
    use crate::domain::ids::{CallId, RunId, WorkspaceId};
    use crate::egress::Departure;

    fn request(tool: Value, arguments: Value) -> Result<Request, String> {
        let mut definition = json!({"name": "tool"});
        definition.as_object_mut().unwrap().extend(tool.as_object().unwrap().clone());
        let tool = Http::new(
            serde_json::from_value(definition).unwrap(),
            Arc::new(Gate::new(Destinations::default())),
            Arc::new(Secrets::default()),
        );
        tool.request(&ToolCall {
            run_id: RunId::from_uuid(Uuid::nil()),
            workspace_id: WorkspaceId::DEFAULT,
            call_id: CallId::from_uuid(Uuid::nil()),
            arguments,
            departure: Departure::new(Arc::new(|| true)),
        })
    }

    #[test]
    fn arguments_go_where_the_method_and_the_type_of_the_body_say() {
        let arguments = json!({
            "id": "a b", "n": 1.5, "yes": true, "none": null, "list": ["x", 2, {"y": []}],
            "empty": [], "object": {"k": "v"},
        });
        let pairs = "n=1.5&yes=true&list=x&list=2&list=%7B%22y%22%3A%5B%5D%7D\
                     &object=%7B%22k%22%3A%22v%22%7D";
        for method in ["GET", "DELETE"] {
            let url = "https://h/{id}?only={none}&k=v";
            let sent = request(json!({"method": method, "url": url}), arguments.clone()).unwrap();
            let (url, query) = sent.url.as_str().split_once('?').unwrap();
            assert_eq!((url, sent.body), ("https://h/a%20b", None));
            let mut query: Vec<&str> = query.split('&').collect();
            let mut expected: Vec<&str> = pairs.split('&').chain(["k=v"]).collect();
            query.sort_unstable();
            expected.sort_unstable();
            assert_eq!(query, expected);
        }
        for method in ["POST", "PUT", "PATCH"] {
            let url = "https://h/{id}?only={none}";
            let sent = request(json!({"method": method, "url": url}), arguments.clone()).unwrap();
            assert_eq!(sent.url.as_str(), "https://h/a%20b");
            assert_eq!(sent.headers["content-type"], "application/json");
            let mut rest = arguments.clone();
            rest.as_object_mut().unwrap().retain(|name, _| name != "id" && name != "none");
            let body: Value = serde_json::from_slice(&sent.body.unwrap()).unwrap();
            assert_eq!(body, rest);
        }
        let form = "Application/X-WWW-form-urlencoded; charset=utf-8";
        let tool = json!({"url": "https://h/", "headers": {"Content-Type": form}});
        let sent = request(tool, json!({"a": "ü&", "list": [1, 2], "none": null})).unwrap();
        assert_eq!(sent.headers["content-type"], form);
        assert_eq!(sent.body.unwrap(), b"a=%C3%BC%26&list=1&list=2");
    }

    #[test]
    fn what_would_make_no_request_is_said_before_anything_leaves() {
        // In the place of an argument, and behind the URL.
        for url in ["https://h/?x={x}", "https://h/"] {
            let why =
                request(json!({"method": "GET", "url": url}), json!({"x": "y".repeat(9_000)}));
            assert!(why.unwrap_err().contains("8192 bytes"), "{url}");
        }
        let tool = json!({"url": "https://h/", "headers": {"X": "${secret.NOBODY}"}});
        assert!(request(tool, json!({})).unwrap_err().contains("there is no secret NOBODY"));
    }

    #[test]
    fn every_attempt_carries_the_run_and_the_key_over_whatever_a_tool_says() {
        // Nobody can store such headers; here they were stored before that was forbidden.
        let headers = json!({"idempotency-key": "mine", "X-Run-Id": "mine", "Accept": "text/csv"});
        let tool = json!({"url": "https://h/", "headers": headers});
        let sent = request(tool, json!({})).unwrap();
        let zeros = Uuid::nil().simple();
        assert_eq!(sent.headers["x-run-id"], format!("run_{zeros}"));
        assert_eq!(sent.headers["idempotency-key"], format!("run_{zeros}:call_{zeros}"));
        assert_eq!(sent.headers["accept"], "text/csv");
        assert_eq!(sent.headers.len(), 4);
    }
}

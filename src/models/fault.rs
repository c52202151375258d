//! What goes wrong at a provider, in our words. The provider's own text is read to find out what is
//! meant and then thrown away: it may repeat prompts and keys.

use std::borrow::Cow;
use std::time::Duration;

use serde_json::Value;

use super::sse::TooLong;
use crate::domain::retry::{FailureKind, ModelFailure};

/// A failure before the provider's name is put in front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// What kind of failure.
    pub kind: FailureKind,
    /// Goes on after "The provider NAME".
    said: Cow<'static, str>,
    /// How long the provider asked to be left alone.
    pub retry_after: Option<Duration>,
}

impl From<TooLong> for Fault {
    fn from(_: TooLong) -> Self {
        Self::broken("sent an event that is too long")
    }
}

impl Fault {
    /// A fault that `said` tells, after "The provider NAME".
    pub fn new(kind: FailureKind, said: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, said: said.into(), retry_after: None }
    }

    /// The stream broke or could not be read.
    pub fn broken(said: &'static str) -> Self {
        Self::new(FailureKind::Broken, said)
    }

    /// The stream ended without its end marker.
    pub fn cut() -> Self {
        Self::new(FailureKind::Cut, "ended its answer without an end marker")
    }

    /// The failure, with the name of the provider that it happened at.
    pub fn at(self, provider: &str) -> ModelFailure {
        ModelFailure {
            kind: self.kind,
            message: format!("The provider {provider} {}.", self.said),
            retry_after: self.retry_after,
        }
    }

    /// What an HTTP answer that is no success means.
    pub fn of_status(status: u16, retry_after: Option<Duration>, told: &Told) -> Self {
        let is_passing = matches!(status, 408 | 409 | 429 | 500..);
        if told.is_too_long && !is_passing {
            return Self::context_overflow();
        }
        if is_passing && !(status == 429 && told.is_out_of_credit) {
            return Self { retry_after, ..Self::new(FailureKind::Busy(status), busy(status)) };
        }
        Self::new(FailureKind::Refused(status), refused(status))
    }

    /// What an error object in the middle of a stream means.
    pub fn in_stream(told: &Told) -> Self {
        if told.is_too_long {
            return Self::context_overflow();
        }
        match told.status() {
            Some(status) => Self::of_status(status, None, told),
            None => Self::broken("reported an error in the middle of its answer"),
        }
    }

    fn context_overflow() -> Self {
        Self::new(
            FailureKind::ContextOverflow,
            "says that the prompt is longer than the model reads: send less, lower \
             max_output_tokens, or use a model that reads more",
        )
    }
}

fn busy(status: u16) -> String {
    match status {
        429 => "answered 429: too many requests".to_owned(),
        529 => "answered 529: it is overloaded".to_owned(),
        _ => format!("answered {status}: it cannot serve the request at the moment"),
    }
}

fn refused(status: u16) -> String {
    match status {
        300..=399 => format!("answered {status}: redirects are not followed, check its base_url"),
        400 | 422 => format!("answered {status}: it does not take the request as it is"),
        401 => "answered 401: check its API key".to_owned(),
        402 => "answered 402: its credit is used up".to_owned(),
        403 => "answered 403: its API key may not do this".to_owned(),
        404 => "answered 404: check the model's name and its base_url".to_owned(),
        413 => "answered 413: the request is too large".to_owned(),
        429 => "answered 429: its quota or credit is used up".to_owned(),
        _ => format!("answered {status}"),
    }
}

/// What could be understood of a provider's error body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// A number that it names as its status.
    number: Option<u16>,
    /// Its type and its code.
    words: Vec<String>,
    is_too_long: bool,
    is_out_of_credit: bool,
}

impl Told {
    /// Reads a body; understands nothing where there is nothing to understand.
    pub fn read(body: &[u8]) -> Self {
        serde_json::from_slice(body).map(|value| Self::of(&value)).unwrap_or_default()
    }

    /// Reads `{"error": {…}}`, a list of it, or the bare object.
    pub fn of(value: &Value) -> Self {
        let value = value.get(0).unwrap_or(value);
        let error = value.get("error").unwrap_or(value);
        let mut words = Vec::new();
        let mut number = None;
        for key in ["code", "type", "status"] {
            match error.get(key) {
                Some(Value::String(word)) => {
                    number = number.or_else(|| word.parse().ok());
                    words.push(word.to_ascii_lowercase());
                }
                Some(Value::Number(code)) => {
                    number = number.or(code.as_u64().and_then(|code| u16::try_from(code).ok()));
                }
                _ => {}
            }
        }
        let message = error.get("message").unwrap_or(error).as_str().unwrap_or_default();
        let message = message.to_ascii_lowercase();
        let any = |wanted: &[&str]| words.iter().any(|word| wanted.contains(&word.as_str()));
        Self {
            number: number.filter(|number| (400..=599).contains(number)),
            is_too_long: any(&["context_length_exceeded", "exceed_context_size_error"])
                || TOO_LONG.iter().any(|said| message.contains(said)),
            is_out_of_credit: any(&["insufficient_quota"])
                || words.iter().any(|word| word.contains("billing")),
            words,
        }
    }

    /// The HTTP status that this error would have had in front of a stream.
    fn status(&self) -> Option<u16> {
        self.number.or_else(|| {
            self.words.iter().find_map(|word| {
                Some(match word.as_str() {
                    "invalid_request_error" | "badrequesterror" => 400,
                    "authentication_error" | "invalid_api_key" => 401,
                    "billing_error" => 402,
                    "permission_error" => 403,
                    "not_found_error" | "model_not_found" => 404,
                    "request_too_large" => 413,
                    "rate_limit_error" | "rate_limit_exceeded" | "insufficient_quota" => 429,
                    "api_error" | "server_error" | "internal_server_error" => 500,
                    "timeout_error" => 504,
                    "overloaded_error" | "overloaded" => 529,
                    _ => return None,
                })
            })
        })
    }
}

/// How providers say that a prompt is too long: OpenAI (three ways), vLLM and many others; Anthropic (two
/// ways); llama.cpp; Gemini; xAI; Bedrock; LM Studio.
const TOO_LONG: [&str; 10] = [
    "maximum context length",
    "exceeds the context window",
    "reduce the length of the messages",
    "prompt is too long",
    "exceed context limit",
    "exceeds the available context size",
    "input token count",
    "maximum prompt length",
    "input is too long for requested model",
    "context length of only",
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(status: u16, body: Value) -> FailureKind {
        Fault::of_status(status, None, &Told::of(&body)).kind
    }

    #[test]
    fn statuses_pass_or_do_not() {
        use FailureKind::{Busy, Refused};
        for status in [408, 409, 429, 500, 502, 503, 504, 529] {
            assert_eq!(of(status, Value::Null), Busy(status));
        }
        for status in [301, 307, 400, 401, 402, 403, 404, 413, 422] {
            assert_eq!(of(status, Value::Null), Refused(status));
        }
    }

    #[test]
    fn a_used_up_quota_does_not_pass() {
        for word in ["insufficient_quota", "billing_hard_limit_reached"] {
            assert_eq!(of(429, json!({"error": {"code": word}})), FailureKind::Refused(429));
            assert_eq!(of(429, json!({"error": {"type": word}})), FailureKind::Refused(429));
        }
        assert_eq!(
            of(429, json!({"error": {"code": "rate_limit_exceeded"}})),
            FailureKind::Busy(429)
        );
    }

    #[test]
    fn a_prompt_that_is_too_long_is_told_apart() {
        for error in [
            json!({"error": {"code": "context_length_exceeded", "message": "x"}}),
            json!({"error": {"message": "This model's maximum context length is 8192 tokens."}}),
            json!({"type": "error", "error": {"type": "invalid_request_error",
                "message": "prompt is too long: 9 tokens > 8 maximum"}}),
            json!({"object": "error", "message": "… maximum context length …", "code": 400}),
            json!([{"error": {"code": 400, "message": "maximum context length"}}]),
            json!({"error": {"message": "Your input exceeds the context window of this model."}}),
            json!([{"error": {"code": 400, "status": "INVALID_ARGUMENT", "message":
                "The input token count (9) exceeds the maximum number of tokens allowed (8)."}}]),
            json!({"error": "This model's maximum prompt length is 8 but the request contains 9 tokens."}),
        ] {
            assert_eq!(of(400, error.clone()), FailureKind::ContextOverflow, "{error}");
            assert_eq!(Fault::in_stream(&Told::of(&error)).kind, FailureKind::ContextOverflow);
        }
        assert_eq!(of(400, json!({"error": "bad"})), FailureKind::Refused(400));
    }

    #[test]
    fn errors_in_a_stream_mean_what_their_status_would() {
        let kind = |error: Value| Fault::in_stream(&Told::of(&json!({"error": error}))).kind;
        assert_eq!(kind(json!({"type": "overloaded_error"})), FailureKind::Busy(529));
        assert_eq!(kind(json!({"type": "insufficient_quota"})), FailureKind::Refused(429));
        assert_eq!(kind(json!({"code": 503, "message": "x"})), FailureKind::Busy(503));
        assert_eq!(kind(json!({"type": "invalid_request_error"})), FailureKind::Refused(400));
        assert_eq!(kind(json!({"message": "?"})), FailureKind::Broken);
        assert_eq!(kind(json!("?")), FailureKind::Broken);
    }
}

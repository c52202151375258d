//! Idempotency keys: where they come from, and what a request is recognised by.

use axum::http::{HeaderMap, HeaderName};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::app::AppError;
use crate::app::idempotency::RequestKey;

use super::edge::Noted;
use super::{ApiError, ErrorCode};

/// Characters of a key at most.
const MAX_KEY_CHARS: usize = 255;
/// Fields that only choose how a run's creation is answered, and the key itself.
const WAYS_OF_ANSWERING: [&str; 2] = ["stream", "idempotency_key"];

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What a request says for idempotency, beside its body.
#[derive(Debug)]
pub struct Keyed {
    header: Option<Result<String, ()>>,
    path: String,
    noted: Noted,
}

impl Keyed {
    /// Reads the header; it is judged only where a key is asked for.
    pub fn new(headers: &HeaderMap, path: &str, noted: Noted) -> Self {
        let mut values = headers.get_all(&IDEMPOTENCY_KEY).iter();
        let header = values.next().map(|value| match (value.to_str(), values.next()) {
            (Ok(key), None) if is_key(key) => Ok(key.to_owned()),
            _ => Err(()),
        });
        Self { header, path: path.to_owned(), noted }
    }

    /// The request's key in this scope, if it has one.
    ///
    /// # Errors
    /// `invalid_header`.
    pub fn key(&self, scope: &'static str, body: &Value) -> Result<Option<RequestKey>, ApiError> {
        self.with_key(self.header_key()?, scope, body)
    }

    /// The same where the body may name the key, for models that cannot set headers.
    ///
    /// # Errors
    /// `invalid_header`; `validation_failed` when the body's key is none, or another than the header's.
    pub fn key_also_in_body(
        &self,
        scope: &'static str,
        body: &Value,
    ) -> Result<Option<RequestKey>, ApiError> {
        let refuse = |message: &str| AppError::invalid("/idempotency_key", message);
        let inside = match body.get("idempotency_key") {
            None | Some(Value::Null) => None,
            Some(Value::String(key)) if is_key(key) => Some(key.clone()),
            Some(_) => return Err(refuse("must be 1 to 255 visible ASCII characters").into()),
        };
        let key = match (self.header_key()?, inside) {
            (Some(header), Some(inside)) if header != inside => {
                return Err(refuse("differs from the Idempotency-Key header").into());
            }
            (header, inside) => header.or(inside),
        };
        self.with_key(key, scope, body)
    }

    fn header_key(&self) -> Result<Option<String>, ApiError> {
        match &self.header {
            None => Ok(None),
            Some(Ok(key)) => Ok(Some(key.clone())),
            Some(Err(())) => Err(ApiError::new(
                ErrorCode::InvalidHeader,
                "Idempotency-Key must be 1 to 255 visible ASCII characters, and given once.",
            )),
        }
    }

    fn with_key(
        &self,
        key: Option<String>,
        scope: &'static str,
        body: &Value,
    ) -> Result<Option<RequestKey>, ApiError> {
        let Some(key) = key else { return Ok(None) };
        self.noted.idempotency_key(&key);
        Ok(Some(RequestKey { scope, key, fingerprint: fingerprint(&self.path, body) }))
    }
}

fn is_key(key: &str) -> bool {
    (1..=MAX_KEY_CHARS).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic())
}

/// SHA-256 of the path and the canonical body: keys sorted, no white space, nothing that only
/// chooses the way of answering. Nothing sent and an empty object are the same.
fn fingerprint(path: &str, body: &Value) -> [u8; 32] {
    let mut text = Vec::with_capacity(path.len() + 256);
    text.extend_from_slice(path.as_bytes());
    text.push(b'\n');
    match body {
        Value::Null => text.extend_from_slice(b"{}"),
        Value::Object(fields) => {
            let asked = fields.iter().filter(|(name, _)| !WAYS_OF_ANSWERING.contains(&&***name));
            write_object(asked, &mut text);
        }
        other => write_canonical(other, &mut text),
    }
    Sha256::digest(&text).into()
}

fn write_canonical(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(fields) => write_object(fields.iter(), out),
        Value::Array(values) => {
            out.push(b'[');
            for value in values {
                write_canonical(value, out);
                out.push(b',');
            }
            out.push(b']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            // Writing to a Vec cannot fail.
            let _ = serde_json::to_writer(out, value);
        }
    }
}

/// Sorted by hand: whether serde_json's maps are depends on what any dependency asks of it.
fn write_object<'a>(fields: impl Iterator<Item = (&'a String, &'a Value)>, out: &mut Vec<u8>) {
    let mut fields: Vec<_> = fields.collect();
    fields.sort_unstable_by_key(|(name, _)| *name);
    out.push(b'{');
    for (name, value) in fields {
        let _ = serde_json::to_writer(&mut *out, name);
        out.push(b':');
        write_canonical(value, out);
        out.push(b',');
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use serde_json::json;

    fn keyed(header: Option<&'static str>) -> Keyed {
        let headers = header.map(|key| (IDEMPOTENCY_KEY.clone(), HeaderValue::from_static(key)));
        Keyed::new(&HeaderMap::from_iter(headers), "/v1/agents/a/runs", Noted::default())
    }

    #[test]
    fn the_same_request_has_one_fingerprint_however_it_is_written_or_answered() {
        let print = |text: &str| fingerprint("/p", &serde_json::from_str(text).unwrap());
        let one = print(r#"{"input":"x","config":{"max_steps":1,"model":"m"}}"#);
        for same in [
            r#"{ "config": {"model":"m", "max_steps":1}, "input": "\u0078" }"#,
            r#"{"input":"x","config":{"max_steps":1,"model":"m"},"stream":true}"#,
            r#"{"idempotency_key":"k","input":"x","config":{"max_steps":1,"model":"m"}}"#,
        ] {
            assert_eq!(print(same), one, "{same}");
        }
        for other in [
            r#"{"input":"y","config":{"max_steps":1,"model":"m"}}"#,
            r#"{"input":"x","config":{"max_steps":1,"model":"m","stream":true}}"#,
            r#"{"input":"x"}"#,
        ] {
            assert_ne!(print(other), one, "{other}");
        }
        assert_eq!(fingerprint("/p", &Value::Null), fingerprint("/p", &json!({})));
        assert_ne!(fingerprint("/p", &Value::Null), fingerprint("/q", &Value::Null));
    }

    #[test]
    fn a_key_is_visible_ascii_and_given_once() {
        assert!(is_key("a") && is_key(&"k".repeat(255)));
        for wrong in ["", " ", "a b", "ä", "\t", &"k".repeat(256)] {
            assert!(!is_key(wrong), "{wrong:?}");
        }
        let error = keyed(Some("a b")).key("POST /x", &Value::Null).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidHeader);
    }

    #[test]
    fn header_and_body_may_name_the_same_key_but_not_two() {
        let body = json!({"idempotency_key": "k"});
        for header in [None, Some("k")] {
            let key = keyed(header).key_also_in_body("POST /x", &body).unwrap();
            assert_eq!(key.map(|key| key.key).as_deref(), Some("k"));
        }
        let error = keyed(Some("other")).key_also_in_body("POST /x", &body).unwrap_err();
        assert_eq!(error.code(), ErrorCode::ValidationFailed);
        let error =
            keyed(None).key_also_in_body("POST /x", &json!({"idempotency_key": 7})).unwrap_err();
        assert_eq!(error.code(), ErrorCode::ValidationFailed);
    }
}

//! What a tool's answer means, in words for the model.

use serde_json::Value;

use crate::domain::depth::is_too_deep;
use crate::domain::limits::MAX_RESULT_BYTES;
use crate::egress::{Answer, Secrets};

use super::super::Outcome;

/// Bytes of an error's body that the model is told: enough to mend its arguments.
const MAX_TOLD: usize = 4 * 1024;
/// Bytes of the place that a redirect leads to.
const MAX_LOCATION: usize = 1024;
/// Bytes kept free for the note that something was cut.
const NOTE: usize = 64;

/// What came of an attempt that was answered.
pub(super) fn outcome(answer: &Answer, secrets: &Secrets) -> Outcome {
    let status = answer.status;
    match (status, &answer.location) {
        (200..=299, _) => Outcome::Completed(result(answer, secrets)),
        (300..=399, Some(location)) => {
            let location = secrets.redact(location);
            let location = beginning(&location, MAX_LOCATION);
            Outcome::Failed(format!(
                "The tool answered {status}: a redirect to {location}, which is not followed."
            ))
        }
        _ => match Outcome::refused(status, refusal(answer, secrets), answer.retry_after) {
            Outcome::Busy(why, Some(time)) if !time.is_zero() => {
                let seconds = time.as_secs_f64().ceil();
                let why = format!("{why}\n[it asks to be left alone for {seconds} s]");
                Outcome::Busy(why, Some(time))
            }
            refused => refused,
        },
    }
}

/// JSON if it is, else text.
fn result(answer: &Answer, secrets: &Secrets) -> Value {
    let text = match text(answer) {
        Ok(text) => text,
        Err(note) => return Value::String(note),
    };
    if answer.is_whole
        && let Ok(value) = serde_json::from_str::<Value>(&text)
        && !is_too_deep(&value)
    {
        return secrets.redact_json(value);
    }
    let text = redacted(&text, answer, secrets);
    if answer.is_whole && text.len() <= MAX_RESULT_BYTES {
        return Value::String(text);
    }
    let kept = beginning(&text, MAX_RESULT_BYTES - NOTE);
    Value::String(format!("{kept}\n[cut: the answer is longer than {} bytes]", kept.len()))
}

fn refusal(answer: &Answer, secrets: &Secrets) -> String {
    let text = text(answer).map_or_else(|note| note, |text| redacted(&text, answer, secrets));
    let status = answer.status;
    match beginning(text.trim(), MAX_TOLD) {
        "" => format!("The tool answered {status}."),
        told => format!("The tool answered {status}: {told}"),
    }
}

/// Without secrets. Cut it later: a cut could leave the beginning of one.
fn redacted(text: &str, answer: &Answer, secrets: &Secrets) -> String {
    if answer.is_whole { secrets.redact(text) } else { secrets.redact_beginning(text) }
}

/// The body as text, read as its `content-type` says: in UTF-8 if that says nothing.
///
/// # Errors
/// It is none; a note that says what it is instead.
fn text(answer: &Answer) -> Result<String, String> {
    if answer.body.is_empty() {
        return Ok(String::new());
    }
    if answer.is_packed {
        // What is in it was not looked at, secrets included.
        return Err("[the answer is compressed, which was not asked for, and was not read]".into());
    }
    let kind = answer.content_type.as_deref().unwrap_or_default().to_ascii_lowercase();
    let charset = kind.split(';').filter_map(|part| part.trim().strip_prefix("charset=")).next();
    let encoding = charset
        .and_then(|label| encoding_rs::Encoding::for_label(label.trim_matches('"').as_bytes()))
        .unwrap_or(encoding_rs::UTF_8);
    let mut decoder = encoding.new_decoder();
    let room = decoder.max_utf8_buffer_length(answer.body.len()).unwrap_or(answer.body.len());
    let mut text = String::with_capacity(room);
    // What is missing at the end of a beginning is no mistake.
    let (_, _, has_errors) = decoder.decode_to_string(&answer.body, &mut text, answer.is_whole);
    if has_errors && !is_textual(&kind) {
        let kind: String =
            kind.split(';').next().unwrap_or_default().trim().chars().take(NOTE).collect();
        let (bytes, more) = (answer.body.len(), if answer.is_whole { "" } else { " or more" });
        return Err(format!("[{bytes} bytes{more} of {kind}, which is no text]"));
    }
    Ok(text)
}

/// Whether broken characters are to be borne in such a body: it is text, or nobody says what it is.
fn is_textual(kind: &str) -> bool {
    const SIGNS: [&str; 7] = ["text/", "json", "xml", "yaml", "csv", "javascript", "urlencoded"];
    kind.is_empty() || SIGNS.iter().any(|sign| kind.contains(sign))
}

fn beginning(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn answer(status: u16, content_type: Option<&str>, body: &[u8]) -> Answer {
        Answer {
            status,
            body: body.to_vec(),
            is_whole: true,
            content_type: content_type.map(str::to_owned),
            is_packed: false,
            location: None,
            retry_after: None,
        }
    }

    fn read(answer: &Answer) -> Outcome {
        outcome(answer, &Secrets::default())
    }

    #[test]
    fn a_body_is_read_as_its_type_says() {
        let says = |text: &str| Outcome::Completed(json!(text));
        for (content_type, body, outcome) in [
            (None, &b"{\"a\": 1}"[..], Outcome::Completed(json!({"a": 1}))),
            (Some("application/problem+json"), b"[1]", Outcome::Completed(json!([1]))),
            (Some("application/json"), b"\xef\xbb\xbf{}", Outcome::Completed(json!({}))),
            (Some("text/plain; charset=iso-8859-1"), b"f\xfcnf", says("fünf")),
            (Some("text/html; Charset=\"Shift_JIS\""), b"\x83\x65", says("テ")),
            (Some("application/json;charset=latin1"), b"\"\xfc\"", says("ü")),
            (Some("text/plain; charset=nonsense"), "ü".as_bytes(), says("ü")),
            (Some("text/plain"), b"a\xff", says("a\u{fffd}")),
            (None, b"a\xff", says("a\u{fffd}")),
            (Some("image/png"), b"\x89PNG\xff", says("[5 bytes of image/png, which is no text]")),
            (Some("application/octet-stream"), b"plain after all", says("plain after all")),
            (Some("image/png"), b"", says("")),
        ] {
            assert_eq!(read(&answer(200, content_type, body)), outcome, "{content_type:?}");
        }
        // A character that the bound cut in two does not make a text something else.
        let cut = Answer { is_whole: false, ..answer(200, Some("application/x"), b"caf\xc3") };
        assert_eq!(read(&cut), says("caf\n[cut: the answer is longer than 3 bytes]"));
        let packed = Answer { is_packed: true, ..answer(200, None, b"\x1f\x8b") };
        assert_eq!(
            read(&packed),
            says("[the answer is compressed, which was not asked for, and was not read]")
        );
    }

    #[test]
    fn what_is_no_success_says_what_to_do_about_it() {
        let failed = |text: &str| Outcome::Failed(text.to_owned());
        assert_eq!(read(&answer(404, None, b" none\n")), failed("The tool answered 404: none"));
        assert_eq!(read(&answer(404, None, b"")), failed("The tool answered 404."));
        assert_eq!(read(&answer(304, None, b"")), failed("The tool answered 304."));
        let location = Some("https://h/v2?a=1".to_owned());
        assert_eq!(
            read(&Answer { location, ..answer(301, None, b"moved") }),
            failed("The tool answered 301: a redirect to https://h/v2?a=1, which is not followed.")
        );
        let asked = Some(Duration::from_millis(1_500));
        assert_eq!(
            read(&Answer { retry_after: asked, ..answer(429, None, b"slow down") }),
            Outcome::Busy(
                "The tool answered 429: slow down\n[it asks to be left alone for 2 s]".to_owned(),
                asked
            )
        );
        let long = answer(500, None, &[b'x'; 9_000]);
        let Outcome::Busy(why, None) = read(&long) else { panic!() };
        assert_eq!(why.len(), MAX_TOLD + "The tool answered 500: ".len());
    }
}

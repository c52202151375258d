//! What a client wants back: `Accept` and `Prefer`.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, header};

use super::{ApiError, ErrorCode};

/// The longest that a request waits for a run; more is cut to it.
pub const MAX_WAIT: Duration = Duration::from_secs(60);

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";
static PREFER: HeaderName = HeaderName::from_static("prefer");

/// Refuses what can be answered neither as JSON nor as a stream.
///
/// # Errors
/// `not_acceptable`.
pub fn anything_we_make(headers: &HeaderMap) -> Result<(), ApiError> {
    if accepts(headers, JSON) || accepts(headers, EVENTS) {
        return Ok(());
    }
    Err(not_acceptable("The API answers with application/json or text/event-stream."))
}

/// Refuses what cannot be answered as a stream.
///
/// # Errors
/// `not_acceptable`.
pub fn a_stream(headers: &HeaderMap) -> Result<(), ApiError> {
    if accepts(headers, EVENTS) {
        return Ok(());
    }
    Err(not_acceptable("This operation answers with text/event-stream."))
}

/// Whether the client asks for a stream by `Accept` alone: it names the type, and not JSON.
pub fn prefers_stream(headers: &HeaderMap) -> bool {
    let named = |media_type: &str| ranges(headers).any(|range| range == media_type);
    named(EVENTS) && !named(JSON)
}

/// Seconds that `Prefer: wait=N` asks to wait. What else it says is not ours, and ignored (RFC 7240).
pub fn preferred_wait(headers: &HeaderMap) -> Option<u64> {
    headers
        .get_all(&PREFER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ';']))
        .filter_map(|preference| preference.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))
        .and_then(|(_, seconds)| seconds.trim().trim_matches('"').parse().ok())
}

fn not_acceptable(message: &'static str) -> ApiError {
    ApiError::new(ErrorCode::NotAcceptable, message)
}

/// Nothing said is everything accepted.
fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    let family = media_type.split_once('/').map_or(media_type, |(family, _)| family);
    let mut said = false;
    for range in ranges(headers) {
        said = true;
        let whole_family = range.strip_suffix("/*").is_some_and(|named| named == family);
        if range == media_type || range == "*/*" || whole_family {
            return true;
        }
    }
    !said
}

/// The media ranges that `Accept` names, lower-cased, without those of quality 0.
fn ranges(headers: &HeaderMap) -> impl Iterator<Item = String> + '_ {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|range| {
            let (media_type, parameters) = range.split_once(';').unwrap_or((range, ""));
            let refused = parameters
                .split(';')
                .filter_map(|p| p.trim().strip_prefix("q="))
                .any(|quality| quality.trim().parse().is_ok_and(|q: f32| q <= 0.0));
            let media_type = media_type.trim();
            (!refused && !media_type.is_empty()).then(|| media_type.to_ascii_lowercase())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn accept(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(value))])
    }

    #[test]
    fn a_stream_is_preferred_only_by_its_name_and_without_json() {
        for (value, stream) in [
            ("text/event-stream", true),
            ("text/event-stream;q=0.9, */*;q=0.1", true),
            ("TEXT/EVENT-STREAM", true),
            ("*/*", false),
            ("text/*", false),
            ("application/json, text/event-stream", false),
            ("text/event-stream;q=0", false),
        ] {
            assert_eq!(prefers_stream(&accept(value)), stream, "{value}");
        }
        assert!(!prefers_stream(&HeaderMap::new()));
    }

    #[test]
    fn what_we_cannot_make_is_refused() {
        for (value, fine) in [
            ("text/html", false),
            ("application/xml, image/*", false),
            ("text/html, */*;q=0.1", true),
            ("application/*", true),
            ("text/event-stream", true),
        ] {
            assert_eq!(anything_we_make(&accept(value)).is_ok(), fine, "{value}");
        }
        assert!(anything_we_make(&HeaderMap::new()).is_ok());
        assert!(a_stream(&accept("application/json")).is_err());
    }

    #[test]
    fn the_wait_is_found_among_other_preferences() {
        let prefer =
            |value| HeaderMap::from_iter([(PREFER.clone(), HeaderValue::from_static(value))]);
        assert_eq!(preferred_wait(&prefer("respond-async, wait=10")), Some(10));
        assert_eq!(preferred_wait(&prefer("Wait=\"7\"")), Some(7));
        assert_eq!(preferred_wait(&prefer("wait=soon")), None);
        assert_eq!(preferred_wait(&prefer("return=minimal")), None);
    }
}

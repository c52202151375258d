//! Headers of tools: text in which `${secret.NAME}` stands for a secret.

use std::collections::BTreeMap;

use crate::domain::egress::is_secret_name;
use crate::domain::problem::Problems;

/// Headers of one tool: more than any API asks for, little enough to send with every request.
const MAX_HEADERS: usize = 32;
/// Bytes of a header's name, and of its value with the names of secrets in it.
const MAX_NAME: usize = 64;
const MAX_VALUE: usize = 4_096;

/// Headers that Stepwell sets, or that would change how the request is framed, routed or read.
const OURS: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "idempotency-key",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-run-id",
];

/// A piece of a header's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderPart<'a> {
    /// As it is.
    Text(&'a str),
    /// The value of the secret of this name.
    Secret(&'a str),
}

/// The pieces of a header's value.
///
/// # Errors
/// What is wrong with it.
pub fn header_parts(value: &str) -> Result<Vec<HeaderPart<'_>>, &'static str> {
    if value.len() > MAX_VALUE {
        return Err("must have at most 4096 bytes");
    }
    if !value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err("must be printable ASCII");
    }
    const MUST: &str = "must not hold ${…} but for ${secret.NAME}";
    let mut parts = Vec::new();
    let mut rest = value;
    while let Some((text, behind)) = rest.split_once("${") {
        let (inside, behind) = behind.split_once('}').ok_or(MUST)?;
        let name =
            inside.strip_prefix("secret.").filter(|name| is_secret_name(name)).ok_or(MUST)?;
        parts.extend([HeaderPart::Text(text), HeaderPart::Secret(name)]);
        rest = behind;
    }
    parts.push(HeaderPart::Text(rest));
    Ok(parts)
}

/// Adds what is wrong with a tool's headers.
pub(super) fn check_headers(
    headers: &BTreeMap<String, String>,
    pointer: &str,
    problems: &mut Problems,
) {
    problems.require(headers.len() <= MAX_HEADERS, pointer, "at most 32 headers");
    for (name, value) in headers {
        let place = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
        let lower = name.to_ascii_lowercase();
        problems.require(is_header_name(name), &place, "is no header name");
        problems.require(
            !OURS.contains(&lower.as_str()) && !lower.starts_with("proxy-"),
            &place,
            "is set by Stepwell, or must not be set",
        );
        let twice = headers.keys().filter(|other| other.eq_ignore_ascii_case(name)).count() > 1;
        problems.require(!twice, &place, "is there twice");
        if let Err(why) = header_parts(value) {
            problems.add(place, why);
        }
    }
}

/// A token of RFC 9110.
fn is_header_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_text_and_secrets() {
        use HeaderPart::{Secret, Text};
        assert_eq!(header_parts("plain $5 {x}"), Ok(vec![Text("plain $5 {x}")]));
        assert_eq!(
            header_parts("Bearer ${secret.CRM}:${secret.b-2}!"),
            Ok(vec![Text("Bearer "), Secret("CRM"), Text(":"), Secret("b-2"), Text("!")])
        );
        for wrong in [
            "${",
            "${}",
            "${secret}",
            "${secret.}",
            "${secret.A",
            "${env.HOME}",
            "${ secret.A}",
            "${secret.a b}",
            "${secret.${secret.A}}",
            "x\r\nHost: evil",
            "x\0",
            "ü",
            "\t",
        ] {
            assert!(header_parts(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn headers_that_are_not_the_users_are_refused() {
        let wrong = |name: &str, value: &str| {
            let headers = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            let mut problems = Problems::new();
            check_headers(&headers, "/headers", &mut problems);
            !problems.is_empty()
        };
        for name in ["Authorization", "X-Api-Key", "accept", "Content-Type", "user-agent"] {
            assert!(!wrong(name, "x"), "{name}");
        }
        for name in OURS.iter().copied().chain([
            "HOST",
            "Proxy-Authorization",
            "X-Run-ID",
            "",
            "a b",
            "a:b",
            "a\r\nb",
            "ü",
        ]) {
            assert!(wrong(name, "x"), "{name}");
        }
        assert!(wrong("X-A", "a\nb"));
        let twice = ["X-A", "x-a"].map(|name| (name.to_owned(), "1".to_owned()));
        let mut problems = Problems::new();
        check_headers(&BTreeMap::from(twice), "", &mut problems);
        assert_eq!(problems.into_vec().len(), 2);
    }
}

//! What went wrong with a server, in words that say what to do about it and hold no URL.

use std::time::Duration;

use url::Url;

use crate::egress::{Failure, HeaderMap, Unreached, retry_after};

/// Characters of a server's own words that are passed on.
const MAX_WORDS: usize = 500;

/// What to do about an answer that no MCP server gives.
const NO_ENDPOINT: &str = "is there an MCP endpoint at the tool's url? It must speak streamable HTTP; the \
                           older HTTP+SSE transport is not supported";

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// What the server did, or what befell it: words that follow "The MCP server".
    pub what: String,
    /// Whether it may be gone the next time.
    pub lasts: Lasts,
    /// How long the server asks to be left alone.
    pub asked: Option<Duration>,
    /// Whether it is the server's answer to a call, and says that it was not made.
    pub is_answer: bool,
}

/// Whether something that went wrong may be gone the next time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lasts {
    /// It will not.
    On,
    /// It may.
    NotLong,
    /// It was us: this process may not act at the moment.
    UntilWeMayAct,
}

impl Trouble {
    pub(super) fn passing(what: impl Into<String>) -> Self {
        Self { what: what.into(), lasts: Lasts::NotLong, asked: None, is_answer: false }
    }

    pub(super) fn lasting(what: impl Into<String>) -> Self {
        Self { what: what.into(), lasts: Lasts::On, asked: None, is_answer: false }
    }

    /// There is no answer.
    pub(super) fn no_answer(failure: Failure) -> Self {
        match failure {
            Failure::Refused(why) => Self::lasting(format!("was not asked: its URL {why}")),
            Failure::NoClient => Self::lasting(format!("was not asked: {failure}")),
            Failure::Withheld(_) => {
                let what = format!("was not asked: {failure}");
                Self { lasts: Lasts::UntilWeMayAct, ..Self::passing(what) }
            }
            Failure::NoConnection(Unreached::Host) => Self::passing("could not be reached"),
            Failure::NoConnection(why) if why.may_pass() => {
                Self::passing(format!("was not asked: {why}"))
            }
            Failure::NoConnection(why) => Self::lasting(format!("was not asked: {why}")),
            Failure::NoAnswer => Self::passing("closed the connection before it answered"),
        }
    }

    /// There is an answer, and it is no success.
    pub(super) fn refusal(refusal: &Refusal<'_>) -> Self {
        let Refusal { status, said, .. } = *refusal;
        let mut what = format!("answered with HTTP status {status}");
        if !said.is_empty() {
            what.push_str(": ");
            what.push_str(in_short(said));
        }
        if let Some(advice) = refusal.advice() {
            what.push_str(" (");
            what.push_str(&advice);
            what.push(')');
        }
        let passes = (500..=599).contains(&status) || matches!(status, 408 | 429);
        if passes {
            Self { asked: refusal.asked(), ..Self::passing(what) }
        } else {
            Self::lasting(what)
        }
    }

    /// There is an answer, and its body is of a kind that the protocol does not know.
    pub(super) fn strange_content(content_type: &str) -> Self {
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        let kind = if kind.is_empty() { "no content type" } else { in_short(kind) };
        Self::lasting(format!(
            "answered with {kind} instead of JSON or an event stream (is there an MCP endpoint at the \
             tool's url?)"
        ))
    }
}

/// An answer that is no success.
pub(super) struct Refusal<'a> {
    /// Its HTTP status.
    pub status: u16,
    /// The server's words, if it speaks JSON-RPC.
    pub said: &'a str,
    /// What was asked.
    pub url: &'a Url,
    /// The headers that the agent gives its tool.
    pub sent: &'a HeaderMap,
    /// The headers that came back.
    pub received: &'a HeaderMap,
    /// Whether it answers a call: its server has listed its tools before, so it is one.
    pub is_of_call: bool,
}

impl Refusal<'_> {
    /// How long the server asks to be left alone.
    fn asked(&self) -> Option<Duration> {
        retry_after(self.received)
    }

    /// What a developer can do about it.
    fn advice(&self) -> Option<String> {
        let advice = match self.status {
            300..=399 => return self.redirection(),
            401 if self.sent.contains_key("authorization") => {
                "it does not accept the authorization header of the tool"
            }
            401 => {
                "it wants credentials: give the tool a header, such as authorization: Bearer \
                 ${secret.NAME}"
            }
            404 | 405 => NO_ENDPOINT,
            // An MCP server would have said why.
            400 if self.said.is_empty() && !self.is_of_call => NO_ENDPOINT,
            _ => return None,
        };
        Some(advice.to_owned())
    }

    /// Where it redirects to, in words: a path may hold a secret, and who reads a run need not be who
    /// may read its agent.
    fn redirection(&self) -> Option<String> {
        let to = self.received.get("location")?.to_str().ok()?;
        let to = self.url.join(to).ok()?;
        let from = self.url;
        let same_host = to.host_str() == from.host_str();
        let with_slash = to.path().strip_suffix('/') == Some(from.path());
        let place = match to.host_str() {
            _ if to.origin() == from.origin() && with_slash => {
                "the same path with a slash behind it".to_owned()
            }
            _ if to.origin() == from.origin() => "another path of its host".to_owned(),
            Some(_) if same_host => format!("{} on its host", to.scheme()),
            Some(host) => format!("the host {}", in_short(host)),
            None => return None,
        };
        Some(format!("it redirects to {place}, and that is not followed: change the tool's url"))
    }
}

/// The beginning of a server's words.
pub(super) fn in_short(words: &str) -> &str {
    let end = words.char_indices().nth(MAX_WORDS).map_or(words.len(), |(at, _)| at);
    words.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::HeaderValue;

    fn told(status: u16, said: &str, sent: &[&'static str], location: Option<&str>) -> String {
        let url = Url::parse("https://mcp.example.com/s/SECRET/mcp").unwrap();
        let mut headers = HeaderMap::new();
        for name in sent {
            headers.insert(*name, HeaderValue::from_static("x"));
        }
        let mut received = HeaderMap::new();
        if let Some(location) = location {
            received.insert("location", location.parse().unwrap());
        }
        let (url, sent, received) = (&url, &headers, &received);
        let refusal = Refusal { status, said, url, sent, received, is_of_call: false };
        Trouble::refusal(&refusal).what
    }

    #[test]
    fn a_refusal_says_what_to_do_about_it() {
        for (is, part) in [
            (told(401, "", &[], None), "give the tool a header"),
            (told(401, "", &["authorization"], None), "does not accept the authorization header"),
            (told(404, "", &[], None), "an MCP endpoint at the tool's url?"),
            (told(405, "", &[], None), "must speak streamable HTTP"),
            (told(400, "", &[], None), "an MCP endpoint at the tool's url?"),
        ] {
            assert!(is.contains(part), "{is}");
        }
        let said = "answered with HTTP status 400: Bad session";
        assert_eq!(told(400, "Bad session", &[], None), said);
        assert_eq!(told(503, "", &[], None), "answered with HTTP status 503");
        assert_eq!(told(307, "", &[], None), "answered with HTTP status 307");
    }

    #[test]
    fn a_server_may_ask_to_be_left_alone() {
        let url = Url::parse("https://mcp.example.com/").unwrap();
        let (sent, mut received) = (HeaderMap::new(), HeaderMap::new());
        received.insert("retry-after", HeaderValue::from_static("3"));
        let asked = |status| {
            let (url, sent, received) = (&url, &sent, &received);
            let refusal = Refusal { status, said: "", url, sent, received, is_of_call: true };
            Trouble::refusal(&refusal).asked
        };
        assert_eq!(asked(429), Some(Duration::from_secs(3)));
        assert_eq!(asked(400), None);
    }

    #[test]
    fn a_redirect_is_told_without_a_path() {
        for (location, place) in [
            ("/s/SECRET/mcp/", "the same path with a slash behind it"),
            ("/s/SECRET/other", "another path of its host"),
            ("http://mcp.example.com/s/SECRET/mcp", "http on its host"),
            ("https://other.example.com/s/SECRET/mcp", "the host other.example.com"),
        ] {
            let told = told(308, "", &[], Some(location));
            assert!(told.contains(&format!("(it redirects to {place}, ")), "{told}");
            assert!(!told.contains("SECRET"), "{told}");
        }
    }

    #[test]
    fn words_are_cut_between_two_characters() {
        let long = "é".repeat(600);
        assert_eq!(in_short(&long).chars().count(), 500);
        assert_eq!(in_short("short"), "short");
        let html = Trouble::strange_content("text/html; charset=utf-8").what;
        assert!(html.starts_with("answered with text/html instead of JSON"), "{html}");
        assert!(Trouble::strange_content("").what.contains("no content type"));
    }
}

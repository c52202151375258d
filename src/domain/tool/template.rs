//! URLs of HTTP tools: `https://crm.example.com/customers/{customer_id}?full={full}`.
//!
//! A placeholder stands for an argument, in the path or in the query. What a model writes into it can
//! change neither where the request goes nor which path it takes: it is percent-encoded, and a
//! segment of the path that would become empty, `.` or `..` is refused. A pair of the query whose
//! argument is left out is left out.

use serde_json::{Map, Value};
use url::Url;

/// Bytes of a template. It is short, and so is what servers commonly take of URLs.
const MAX_TEMPLATE: usize = 2_048;
/// Bytes of a URL that a tool calls.
pub const MAX_URL: usize = 8_192;

/// The URL of an HTTP tool.
#[derive(Debug, Clone, PartialEq)]
pub struct UrlTemplate {
    /// Scheme, host and path.
    path: Vec<Piece>,
    /// The pairs of the query, if there is one.
    query: Option<Vec<Vec<Piece>>>,
    /// With `x` in all places.
    example: Url,
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(String),
    /// The argument of this name.
    Argument(String),
}

impl UrlTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_TEMPLATE {
            return Err("must have at most 2048 bytes".to_owned());
        }
        // Parsers of URLs drop some of these and take others for slashes; people mean none of them.
        if text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
            return Err("must not hold white space, control characters or backslashes".to_owned());
        }
        if text.contains('#') {
            return Err("must not have a fragment: it would not be sent".to_owned());
        }
        let lower = text.to_ascii_lowercase();
        let scheme = ["https://", "http://"].into_iter().find(|scheme| lower.starts_with(scheme));
        let scheme = scheme.ok_or("must begin with https://")?;
        let (_, behind) = text.split_at(scheme.len());
        let host = behind.find(['/', '?']).map_or(behind, |end| behind.split_at(end).0);
        if host.is_empty() {
            // Parsers of URLs would look for one behind the slashes.
            return Err("must name a host".to_owned());
        }
        if host.contains(['{', '}']) {
            let why = "placeholders are for the path and the query, never for the host or the port";
            return Err(why.to_owned());
        }
        let (path, query) = match text.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (text, None),
        };
        let path = pieces(path)?;
        let query: Option<Vec<_>> = query
            .map(|query| query.split('&').map(pieces).collect::<Result<_, _>>())
            .transpose()?;
        let example = path.iter().map(Piece::example).collect::<String>();
        let example = Url::parse(&example).map_err(|error| format!("is no URL: {error}"))?;
        if !example.username().is_empty() || example.password().is_some() {
            return Err("must not hold a user name or a password".to_owned());
        }
        Ok(Self { path, query, example })
    }

    /// A URL with the scheme, the host and the port of all that can be made of it, for checks of where it
    /// leads.
    pub const fn example(&self) -> &Url {
        &self.example
    }

    /// The URL for these arguments, and the arguments that it has no place for.
    ///
    /// # Errors
    /// In words for the model that wrote them.
    pub fn fill(
        &self,
        arguments: &Map<String, Value>,
    ) -> Result<(Url, Map<String, Value>), String> {
        let mut url = String::new();
        let mut rest = arguments.clone();
        let mut filled = Vec::new();
        for piece in &self.path {
            match piece {
                Piece::Text(text) => url.push_str(text),
                Piece::Argument(name) => {
                    let value = argument(arguments, name)?
                        .ok_or_else(|| format!("The argument {name:?} is missing."))?;
                    if value.is_empty() {
                        return Err(format!("The argument {name:?} must not be empty."));
                    }
                    filled.push((url.len(), name));
                    url.push_str(&encoded(&value));
                    rest.remove(name);
                }
            }
        }
        let mut separator = '?';
        for pair in self.query.iter().flatten() {
            if let Some(pair) = filled_pair(pair, arguments, &mut rest)? {
                url.push(separator);
                url.push_str(&pair);
                separator = '&';
            }
        }
        if url.len() > MAX_URL {
            return Err("The arguments make the URL longer than 8192 bytes.".to_owned());
        }
        if let Some((_, name)) = filled.into_iter().find(|(at, _)| leads_elsewhere(&url, *at)) {
            return Err(format!("The argument {name:?} must not be \".\" or \"..\" in the path."));
        }
        let url = Url::parse(&url).map_err(|_| "The arguments make no URL.".to_owned())?;
        let place =
            |url: &Url| (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.port());
        if place(&url) == place(&self.example) {
            Ok((url, rest))
        } else {
            Err("The arguments would lead to another host.".to_owned())
        }
    }
}

impl Piece {
    fn example(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Argument(_) => "x",
        }
    }
}

/// A pair of the query with its arguments, which are taken out of `rest`; `None` if one is left out.
fn filled_pair(
    pair: &[Piece],
    arguments: &Map<String, Value>,
    rest: &mut Map<String, Value>,
) -> Result<Option<String>, String> {
    let mut text = Some(String::new());
    for piece in pair {
        let more = match piece {
            Piece::Text(text) => Some(text.clone()),
            Piece::Argument(name) => {
                rest.remove(name);
                argument(arguments, name)?.map(|value| encoded(&value))
            }
        };
        text = text.zip(more).map(|(text, more)| text + &more);
    }
    Ok(text)
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    loop {
        let (before, behind) = rest.split_once('{').map_or((rest, None), |(b, a)| (b, Some(a)));
        if before.contains('}') {
            return Err("has a } without a {".to_owned());
        }
        pieces.push(Piece::Text(before.to_owned()));
        let Some(behind) = behind else { return Ok(pieces) };
        let (name, behind) = behind.split_once('}').ok_or("has a { without a }")?;
        if name.starts_with("secret.") {
            return Err("must not hold secrets: they go into headers".to_owned());
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if !(1..=64).contains(&name.len()) || !name.bytes().all(fits) {
            return Err(format!("{{{name}}} is no placeholder: names are [a-zA-Z0-9_-]{{1,64}}"));
        }
        pieces.push(Piece::Argument(name.to_owned()));
        rest = behind;
    }
}

/// Whether the segment of the path around this place is one that means another directory.
fn leads_elsewhere(url: &str, at: usize) -> bool {
    let (before, behind) = url.split_at(at);
    let begin = before.rfind('/').map_or(0, |slash| slash + 1);
    let end = behind.find(['/', '?']).unwrap_or(behind.len());
    let segment = url.get(begin..at + end).unwrap_or_default();
    let plain = segment.to_ascii_lowercase().replace("%2e", ".");
    plain == "." || plain == ".."
}

/// An argument as text; `None` if it is left out.
fn argument(arguments: &Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match arguments.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(value @ (Value::Bool(_) | Value::Number(_))) => Ok(Some(value.to_string())),
        Some(Value::Array(_) | Value::Object(_)) => {
            Err(format!("The argument {name:?} must be text, a number or a boolean."))
        }
    }
}

/// Percent-encodes everything but the characters that mean nothing in a URL (RFC 3986, unreserved).
fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Writing into a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fill(template: &str, arguments: &Value) -> Result<(String, Value), String> {
        let template = UrlTemplate::parse(template).unwrap();
        let (url, rest) = template.fill(arguments.as_object().unwrap())?;
        Ok((url.to_string(), Value::Object(rest)))
    }

    #[test]
    fn arguments_fill_path_and_query_and_the_others_are_left() {
        let template = "https://crm.example.com:8443/v1/{kind}/{id}.json?q={q}&x=1";
        let arguments = json!({"kind": "a/b ü", "id": 7, "q": "&x=2#", "more": [1]});
        assert_eq!(
            fill(template, &arguments),
            Ok((
                "https://crm.example.com:8443/v1/a%2Fb%20%C3%BC/7.json?q=%26x%3D2%23&x=1"
                    .to_owned(),
                json!({"more": [1]})
            ))
        );
        // The same argument twice, and none at all.
        let twice = fill("https://h/{a}?a={a}", &json!({"a": true}));
        assert_eq!(twice, Ok(("https://h/true?a=true".to_owned(), json!({}))));
        assert_eq!(fill("https://h", &json!({})), Ok(("https://h/".to_owned(), json!({}))));
        // What is left out of the query is left out with its name; the same for null.
        for (arguments, query) in [
            (json!({"a": 1, "b": 2}), "?a=1&k=v&r=1-2"),
            (json!({"a": 1, "b": null}), "?a=1&k=v"),
            (json!({"b": 2}), "?k=v"),
        ] {
            let filled = fill("https://h/?a={a}&k=v&r={a}-{b}", &arguments);
            assert_eq!(filled, Ok((format!("https://h/{query}"), json!({}))));
        }
        assert_eq!(fill("https://h/?a={a}", &json!({})).unwrap().0, "https://h/");
        // Empty is fine where it means nothing.
        assert_eq!(fill("https://h/?a={a}", &json!({"a": ""})).unwrap().0, "https://h/?a=");
    }

    #[test]
    fn no_argument_changes_where_the_request_goes() {
        for text in [
            "@evil.example",
            "//evil.example/",
            "\\\\evil.example",
            "?x",
            "#x",
            "\r\nHost: evil",
            "%2e%2e",
            "%2F..%2F",
            ":80",
            "\u{0}",
            "\u{feff}",
            "..;",
            "...",
        ] {
            let (url, _) = fill("https://h.example/a/{x}/b", &json!({"x": text})).unwrap();
            let url = Url::parse(&url).unwrap();
            assert_eq!((url.host_str(), url.port()), (Some("h.example"), None), "{text:?}");
            let segments: Vec<&str> = url.path_segments().unwrap().collect();
            assert!(matches!(segments[..], ["a", _, "b"]), "{text:?} makes {url}");
            assert_eq!((url.query(), url.fragment()), (None, None), "{text:?}");
        }
    }

    #[test]
    fn segments_that_mean_another_directory_are_refused() {
        for (template, arguments) in [
            ("https://h/a/{x}", json!({"x": ".."})),
            ("https://h/a/{x}/b", json!({"x": "."})),
            ("https://h/a/{x}?q=1", json!({"x": ".."})),
            ("https://h/a/.{x}/b", json!({"x": "."})),
            ("https://h/a/%2E{x}/b", json!({"x": "."})),
            ("https://h/a/{x}{y}", json!({"x": ".", "y": "."})),
            ("https://h/a/{x}", json!({"x": ""})),
            ("https://h/a/{x}", json!({})),
            ("https://h/a/{x}", json!({"x": null})),
            ("https://h/a/{x}", json!({"x": ["b"]})),
            ("https://h/?x={x}", json!({"x": ["b"]})),
            ("https://h/?y={y}&x={x}", json!({"x": {}})),
            ("https://h/a/{x}", json!({"x": "y".repeat(9_000)})),
        ] {
            let filled = fill(template, &arguments);
            assert!(filled.is_err(), "{template} {filled:?}");
        }
    }

    #[test]
    fn templates_that_leave_the_host_open_are_refused() {
        for template in [
            "https://{host}/x",
            "https://{x}.example.com/",
            "https://h:{port}/",
            "{url}",
            "{scheme}://h/",
            "https://{user}@h/",
            "https://user:pass@h/",
            "https://user@h/",
            "https://h/#{x}",
            "https://h/{}",
            "https://h/{a b}",
            "https://h/{a",
            "https://h/a}",
            "https://h/{{a}}",
            "https://h/?key=${secret.CRM}",
            "https://h/{secret.CRM}",
            "h/x",
            "/x",
            "",
            "https:/h/x",
            "https:h",
            "https:\\\\h\\x",
            "ht tps://h",
            "https://h/a b",
            "https://h\t/",
            "file:///etc/passwd",
            "ftp://h/",
            "https://",
            "https://?x",
            "https:///h/x",
            "https:///{host}/x",
            "https:////{host}/x",
        ] {
            assert!(UrlTemplate::parse(template).is_err(), "{template}");
        }
        for template in ["https://h", "HTTPS://h/{a}", "http://h:80?{a}={b}", "https://[::1]/{a}"] {
            assert!(UrlTemplate::parse(template).is_ok(), "{template}");
        }
    }
}

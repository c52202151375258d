//! The heads of requests and of answers: what is written, and what of them is read.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::super::ModelsError;
use super::body::{Body, Malformed};
use crate::domain::retry::retry_after;

/// Bytes that the heads of one answer may have, interim ones included: several times what any server
/// sends, and what proxies commonly allow.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Headers that one head may have.
const MAX_HEADERS: usize = 128;
/// Heads of interim answers (1xx) before the answer.
const MAX_INTERIM: usize = 8;

/// A header of every request to a provider. Its value may be a key, so `{:?}` leaves it out.
#[derive(Debug)]
pub(in super::super) struct Header {
    name: &'static str,
    value: SecretString,
}

impl Header {
    /// A header that holds no secret.
    pub fn plain(name: &'static str, value: &str) -> Self {
        Self { name, value: SecretString::from(value) }
    }

    /// A header with a key in it.
    ///
    /// # Errors
    /// The key holds characters that a header cannot carry.
    pub fn secret(
        name: &'static str,
        prefix: &str,
        key: &SecretString,
        provider: &str,
    ) -> Result<Self, ModelsError> {
        let key = key.expose_secret().trim();
        if !key.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
            return Err(ModelsError::ApiKey { provider: provider.to_owned() });
        }
        Ok(Self { name, value: SecretString::from(format!("{prefix}{key}")) })
    }
}

/// The head of every request to an endpoint, up to the length of its body.
#[derive(Debug)]
pub(super) struct RequestHead(SecretString);

impl RequestHead {
    /// The head of POST requests to `url`, which must have a host.
    pub fn new(url: &url::Url, headers: &[Header]) -> Self {
        let mut head = format!("POST {}", url.path());
        if let Some(query) = url.query() {
            head.push('?');
            head.push_str(query);
        }
        head.push_str(" HTTP/1.1\r\nhost: ");
        head.push_str(url.host_str().unwrap_or_default());
        if let Some(port) = url.port() {
            head.push_str(&format!(":{port}"));
        }
        head.push_str("\r\nuser-agent: ");
        head.push_str(concat!("stepwell/", env!("CARGO_PKG_VERSION")));
        head.push_str("\r\naccept: */*\r\ncontent-type: application/json\r\n");
        for header in headers {
            head.push_str(header.name);
            head.push_str(": ");
            head.push_str(header.value.expose_secret());
            head.push_str("\r\n");
        }
        head.push_str("content-length: ");
        Self(SecretString::from(head))
    }

    /// The whole head, for a body of this length.
    pub fn with_length(&self, length: usize) -> Vec<u8> {
        format!("{}{length}\r\n\r\n", self.0.expose_secret()).into_bytes()
    }
}

/// What has to be known of the head of an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Head {
    pub status: u16,
    /// Whether the body says to be one JSON text.
    pub is_json: bool,
    /// How long the provider asked to be left alone.
    pub retry_after: Option<Duration>,
    pub body: Body,
    /// Whether another request may follow on this connection.
    pub stays_open: bool,
}

/// Reads the head of an answer, as it comes.
#[derive(Debug, Default)]
pub(super) struct HeadReader {
    received: Vec<u8>,
    /// Of what was received, where the end of the head is still to be looked for.
    seen: usize,
    /// Bytes of interim heads.
    before: usize,
    interim: usize,
}

impl HeadReader {
    /// Takes what came from the socket. Returns the head when it is whole, and what came behind it.
    ///
    /// # Errors
    /// It is no head of an answer to our request, or too long.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Option<(Head, Vec<u8>)>, Malformed> {
        self.received.extend_from_slice(bytes);
        while let Some(end) = self.end() {
            let behind = self.received.split_off(end);
            let head = std::mem::replace(&mut self.received, behind);
            self.before += head.len();
            if self.before > MAX_HEAD_BYTES {
                return Err(Malformed);
            }
            if let Some(head) = parse(&head)? {
                return Ok(Some((head, std::mem::take(&mut self.received))));
            }
            self.seen = 0;
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err(Malformed);
            }
        }
        if self.before + self.received.len() > MAX_HEAD_BYTES {
            return Err(Malformed);
        }
        Ok(None)
    }

    /// Behind the blank line at the end of the head, if that has come. What was looked at is not looked at again.
    fn end(&mut self) -> Option<usize> {
        loop {
            let rest = self.received.get(self.seen..)?;
            let line_end = self.seen + memchr::memchr(b'\n', rest)?;
            match self.received.get(line_end + 1..)? {
                [b'\n', ..] => return Some(line_end + 2),
                [b'\r', b'\n', ..] => return Some(line_end + 3),
                // It may be the beginning of the blank line: this line's end is looked at again.
                [] | [b'\r'] => {
                    self.seen = line_end;
                    return None;
                }
                [_, ..] => self.seen = line_end + 1,
            }
        }
    }
}

/// Reads a whole head; `None`: it is an interim one.
fn parse(bytes: &[u8]) -> Result<Option<Head>, Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Ok(_) | Err(_) => return Err(Malformed),
    }
    let status = response.code.ok_or(Malformed)?;
    match status {
        // We asked for no other protocol.
        101 => return Err(Malformed),
        100..=199 => return Ok(None),
        200..=999 => {}
        _ => return Err(Malformed),
    }
    let values = |name: &'static str| {
        let of_name = response.headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name));
        of_name.map(|header| header.value)
    };
    let text = |name: &'static str| std::str::from_utf8(values(name).next()?).ok().map(str::trim);
    let is_one_dot_one = response.version == Some(1);
    let says = |token: &str| {
        let mut tokens = values("connection").flat_map(|value| value.split(|byte| *byte == b','));
        tokens.any(|said| said.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    };
    Ok(Some(Head {
        status,
        is_json: text("content-type")
            .is_some_and(|kind| kind.to_ascii_lowercase().starts_with("application/json")),
        retry_after: retry_after(text),
        body: framing(
            status,
            is_one_dot_one,
            values("transfer-encoding"),
            values("content-length"),
        )?,
        stays_open: !says("close") && (is_one_dot_one || says("keep-alive")),
    }))
}

/// Where the body ends (RFC 9112, 6.3). Where the head says two things about it, or what we did not
/// ask for, it is not guessed which of them is meant.
fn framing<'h>(
    status: u16,
    is_one_dot_one: bool,
    mut codings: impl Iterator<Item = &'h [u8]>,
    lengths: impl Iterator<Item = &'h [u8]>,
) -> Result<Body, Malformed> {
    let mut length = None;
    for said in lengths.flat_map(|value| value.split(|byte| *byte == b',')) {
        let said = said.trim_ascii();
        if said.is_empty() || !said.iter().all(u8::is_ascii_digit) {
            return Err(Malformed);
        }
        let said: u64 =
            std::str::from_utf8(said).ok().and_then(|s| s.parse().ok()).ok_or(Malformed)?;
        if length.replace(said).is_some_and(|before| before != said) {
            return Err(Malformed);
        }
    }
    let body = match (codings.next(), length) {
        (None, None) => Body::UntilClose,
        (None, Some(length)) => Body::Length(length),
        (Some(coding), None) => {
            let is_chunked = coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
            if !is_chunked || !is_one_dot_one || codings.next().is_some() {
                return Err(Malformed);
            }
            Body::chunked()
        }
        (Some(_), Some(_)) => return Err(Malformed),
    };
    Ok(if matches!(status, 204 | 304) { Body::Length(0) } else { body })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &str) -> Result<Head, Malformed> {
        let mut reader = HeadReader::default();
        reader.take(head.as_bytes()).map(|head| head.expect("a whole head").0)
    }

    #[test]
    fn a_head_is_read_the_same_however_it_is_cut() {
        let sent = "HTTP/1.1 103 Early\r\nlink: </x>\r\n\r\nHTTP/1.1 429 Too Many\r\nContent-Type: \
                    Application/JSON; charset=utf-8\r\nRetry-After: 7\r\ncontent-length: 12\r\n\r\nbody";
        let head = Head {
            status: 429,
            is_json: true,
            retry_after: Some(Duration::from_secs(7)),
            body: Body::Length(12),
            stays_open: true,
        };
        let end = sent.len() - 4;
        for cut in 0..=sent.len() {
            let (front, back) = sent.as_bytes().split_at(cut);
            let mut reader = HeadReader::default();
            let (read, behind) = match reader.take(front).unwrap() {
                Some((read, behind)) => (read, [behind.as_slice(), back].concat()),
                None => reader.take(back).unwrap().expect("a whole head"),
            };
            assert_eq!((read, behind.as_slice()), (head, b"body".as_slice()), "cut at {cut}");
            assert_eq!(HeadReader::default().take(front).unwrap().is_some(), cut >= end);
        }
        let mut reader = HeadReader::default();
        let (last, bytes) = sent.as_bytes()[..end].split_last().unwrap();
        for byte in bytes {
            assert!(reader.take(&[*byte]).unwrap().is_none());
        }
        assert_eq!(reader.take(&[*last]).unwrap(), Some((head, Vec::new())));
    }

    #[test]
    fn the_framing_is_what_the_head_says_or_nothing() {
        let body = |lines: &str| read(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).map(|h| h.body);
        assert_eq!(body(""), Ok(Body::UntilClose));
        assert_eq!(body("content-length: 5\r\n"), Ok(Body::Length(5)));
        assert_eq!(body("content-length: 5, 5\r\nContent-Length: 5\r\n"), Ok(Body::Length(5)));
        assert_eq!(body("Transfer-Encoding: Chunked\r\n"), Ok(Body::chunked()));
        for lie in [
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: 5, 6\r\n",
            "content-length: -5\r\n",
            "content-length: +5\r\n",
            "content-length: 0x5\r\n",
            "content-length:\r\n",
            "content-length: 5 5\r\n",
            "content-length: 18446744073709551616\r\n",
            "content-length: 5\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: gzip\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: identity\r\n",
            "transfer-encoding:\r\n",
        ] {
            assert_eq!(body(lie), Err(Malformed), "{lie:?}");
        }
        let old = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(read(old), Err(Malformed));
        for status in [204, 304] {
            let head = read(&format!("HTTP/1.1 {status} x\r\ncontent-length: 5\r\n\r\n"));
            assert_eq!(head.unwrap().body, Body::Length(0));
        }
    }

    #[test]
    fn a_connection_stays_open_as_its_version_and_its_word_say() {
        let stays = |version: &str, said: &str| {
            let head = format!("HTTP/{version} 200 OK\r\ncontent-length: 0\r\n{said}\r\n");
            read(&head).unwrap().stays_open
        };
        assert!(stays("1.1", ""));
        assert!(stays("1.1", "connection: keep-alive\r\n"));
        assert!(!stays("1.1", "Connection: Close\r\n"));
        assert!(!stays("1.1", "connection: x\r\nconnection: upgrade , close\r\n"));
        assert!(!stays("1.0", ""));
        assert!(stays("1.0", "connection: Keep-Alive\r\n"));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for wrong in [
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 099 Odd\r\n\r\n",
            "HTTP/1.1 101 Switching\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nname : x\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: \0\r\n\r\n",
            "\r\n\r\n",
        ] {
            assert_eq!(read(wrong), Err(Malformed), "{wrong:?}");
        }
    }

    #[test]
    fn heads_are_bounded_in_bytes_headers_and_number() {
        let headers = |count| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(count));
        assert!(read(&headers(MAX_HEADERS)).is_ok());
        assert_eq!(read(&headers(MAX_HEADERS + 1)), Err(Malformed));
        let interim =
            |count| "HTTP/1.1 100 Continue\r\n\r\n".repeat(count) + "HTTP/1.1 200 OK\r\n\r\n";
        assert!(read(&interim(MAX_INTERIM)).is_ok());
        assert_eq!(read(&interim(MAX_INTERIM + 1)), Err(Malformed));
        let long = |length| format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "x".repeat(length));
        assert!(read(&long(MAX_HEAD_BYTES - 24)).is_ok());
        assert_eq!(read(&long(MAX_HEAD_BYTES - 23)), Err(Malformed));
        // However it drips, it is given up at the bound.
        let mut reader = HeadReader::default();
        let endless = vec![b'x'; 1024];
        let taken = (0..).take_while(|_| reader.take(&endless).is_ok()).count();
        assert_eq!(taken, MAX_HEAD_BYTES / 1024);
    }

    #[test]
    fn a_request_head_says_where_it_goes_and_what_it_carries() {
        let head = |url: &str| {
            let key = Header::secret("x-api-key", "", &SecretString::from(" k 1 "), "p").unwrap();
            let head = RequestHead::new(&url::Url::parse(url).unwrap(), &[key]);
            assert!(!format!("{head:?}").contains("k 1"));
            String::from_utf8(head.with_length(7)).unwrap()
        };
        let said = head("https://[::1]:8443/v1/chat?api-version=1");
        assert!(said.starts_with("POST /v1/chat?api-version=1 HTTP/1.1\r\nhost: [::1]:8443\r\n"));
        assert!(said.ends_with("\r\nx-api-key: k 1\r\ncontent-length: 7\r\n\r\n"), "{said}");
        assert!(head("https://a.example:443/").contains("\r\nhost: a.example\r\n"));
        assert!(head("http://a.example:8080/").contains("\r\nhost: a.example:8080\r\n"));
        for wrong in ["a\r\nb", "ü", "a\0", "a\u{7f}b"] {
            let wrong = Header::secret("x", "", &SecretString::from(wrong), "p");
            assert!(matches!(wrong, Err(ModelsError::ApiKey { .. })));
        }
    }
}

//! Frames of HTTP/2, by hand.

/// How a client begins, with settings that change nothing.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a length").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A GET, in HPACK without its compression.
pub fn get(path: &str) -> Vec<u8> {
    // Of the static table: the method, the scheme; then a path and an authority, spelt out.
    [b"\x82\x86\x04", text(path).as_slice(), b"\x01\x01x"].concat()
}

/// `POST /v1/agents`, of JSON.
pub fn post() -> Vec<u8> {
    let head = [b"\x83\x86\x04\x0a/v1/agents".as_slice(), b"\x01\x01x"].concat();
    [head, literal("content-type", "application/json")].concat()
}

/// A header that is not to be remembered.
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    [vec![0], text(name), text(value)].concat()
}

fn text(text: &str) -> Vec<u8> {
    [length(text.len()), text.as_bytes().to_vec()].concat()
}

/// A number with a prefix of seven bits (RFC 7541, section 5.1).
fn length(mut n: usize) -> Vec<u8> {
    if n < 127 {
        return vec![n as u8];
    }
    let mut bytes = vec![127];
    n -= 127;
    while n >= 128 {
        bytes.push((n % 128) as u8 | 128);
        n /= 128;
    }
    bytes.push(n as u8);
    bytes
}

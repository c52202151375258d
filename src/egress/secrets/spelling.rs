//! A secret as servers may write it when they tell what they were sent.
//!
//! An echo is rarely literal: it is a JSON string, a JSON string in a JSON string, a page of HTML, a
//! part of a URL, or a `Basic` credential in base64. So a secret is looked for character by character, each in
//! any of its spellings, and its encodings are looked for like secrets of their own.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use secrecy::{ExposeSecret, SecretString};

/// Backslashes in front of one character: a text that was escaped three times has seven.
const MAX_BACKSLASHES: usize = 8;
/// Bytes of the longest spelling of a character: backslashes and `u002f`.
const MAX_SPELLING: usize = MAX_BACKSLASHES + 5;

/// One text to look for: a secret or an encoding of it. Printable ASCII.
#[derive(Clone)]
pub(super) struct Pattern(SecretString);

/// What a pattern comes to at one place of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It is not there.
    No,
    /// The text ends in the middle of it.
    Begun,
    /// It is there, and this long.
    Whole(usize),
}

impl Pattern {
    /// All that this secret is looked for as.
    pub fn of(secret: &str) -> Vec<Self> {
        let hex =
            |digit: fn(&u8) -> String| secret.as_bytes().iter().map(digit).collect::<String>();
        let mut texts = vec![
            secret.to_owned(),
            hex(|byte| format!("{byte:02x}")),
            hex(|byte| format!("{byte:02X}")),
        ];
        for alphabet in [&alphabet::STANDARD, &alphabet::URL_SAFE] {
            texts.extend((0..3).map(|shift| base64(secret.as_bytes(), shift, alphabet)));
        }
        texts.sort();
        texts.dedup();
        texts.into_iter().map(|text| Self(text.into())).collect()
    }

    /// Bytes of its plainest spelling.
    pub fn len(&self) -> usize {
        self.0.expose_secret().len()
    }

    /// The byte that it begins with.
    pub fn first(&self) -> Option<u8> {
        self.0.expose_secret().bytes().next()
    }

    /// Whether it is at the beginning of this text.
    pub fn find(&self, text: &[u8]) -> Found {
        // Most places are told apart here: as long as nothing is escaped, there is one way to read it.
        let secret = self.0.expose_secret().as_bytes();
        let pairs = secret.iter().zip(text);
        let plain = pairs.take_while(|(ours, theirs)| ours == theirs && !is_escape(**ours)).count();
        if plain < secret.len() && text.get(plain).is_some_and(|byte| !is_escape(*byte)) {
            return Found::No;
        }
        // A backslash in a secret may be written as one or as two: all that it may be is followed.
        let mut ends = vec![plain];
        let mut begun = false;
        for (n, expected) in secret.iter().copied().enumerate().skip(plain) {
            let mut next = Vec::with_capacity(1);
            for end in ends {
                let rest = text.get(end..).unwrap_or_default();
                begun |= n > 0 && may_go_on(rest);
                readings(rest, |character, length| {
                    if character == expected && !next.contains(&(end + length)) {
                        next.push(end + length);
                    }
                });
            }
            if next.is_empty() {
                return if begun { Found::Begun } else { Found::No };
            }
            ends = next;
        }
        ends.into_iter().max().map_or(Found::No, Found::Whole)
    }
}

/// Whether a character may begin like this: those that escape another one. All others are themselves.
const fn is_escape(byte: u8) -> bool {
    matches!(byte, b'\\' | b'%' | b'&' | b'+')
}

/// Says all ASCII characters that the first one of this text may stand for, each with the length of that
/// spelling.
pub(super) fn readings(text: &[u8], mut is: impl FnMut(u8, usize)) {
    let Some(first) = text.first() else { return };
    let mut may_be = |character: Option<u32>, length| {
        if let Some(Ok(character)) = character.map(u8::try_from) {
            is(character, length);
        }
    };
    may_be(Some(u32::from(*first)), 1);
    match first {
        // In forms.
        b'+' => may_be(Some(u32::from(b' ')), 1),
        b'%' => may_be(hex(text.get(1..3)), 3),
        b'&' => {
            if let Some(end) = text.iter().take(MAX_SPELLING).position(|byte| *byte == b';') {
                may_be(text.get(1..end).and_then(entity), end + 1);
            }
        }
        b'\\' => {
            let slashes = text.iter().take(MAX_BACKSLASHES).take_while(|b| **b == b'\\').count();
            for length in 2..=slashes {
                may_be(Some(u32::from(b'\\')), length);
            }
            let behind = text.get(slashes..).unwrap_or_default();
            may_be(behind.first().copied().map(u32::from), slashes + 1);
            match behind.first() {
                Some(b'u') => may_be(hex(behind.get(1..5)), slashes + 5),
                Some(b'x') => may_be(hex(behind.get(1..3)), slashes + 3),
                _ => {}
            }
        }
        _ => {}
    }
}

/// Whether all of this text may be the beginning of a spelling: nothing, or an escape that is cut off.
fn may_go_on(text: &[u8]) -> bool {
    match text {
        [] => true,
        [b'%', rest @ ..] => rest.len() < 2,
        [b'&', rest @ ..] => rest.len() < MAX_SPELLING && !rest.contains(&b';'),
        [b'\\', ..] => text.len() < MAX_SPELLING,
        _ => false,
    }
}

/// The character of a number in hexadecimal digits.
fn hex(digits: Option<&[u8]>) -> Option<u32> {
    number(digits?, 16)
}

fn number(digits: &[u8], radix: u32) -> Option<u32> {
    let is_number = digits.iter().all(|byte| char::from(*byte).is_digit(radix));
    let text = std::str::from_utf8(digits).ok().filter(|_| is_number)?;
    u32::from_str_radix(text, radix).ok()
}

/// The character that an HTML entity stands for, without `&` and `;`.
fn entity(name: &[u8]) -> Option<u32> {
    match name {
        b"amp" => Some(u32::from(b'&')),
        b"lt" => Some(u32::from(b'<')),
        b"gt" => Some(u32::from(b'>')),
        b"quot" => Some(u32::from(b'"')),
        b"apos" => Some(u32::from(b'\'')),
        [b'#', b'x' | b'X', digits @ ..] => number(digits, 16),
        [b'#', digits @ ..] => number(digits, 10),
        _ => None,
    }
}

/// What a secret is in base64 behind so many other bytes (modulo 3), without the digits at both ends that
/// depend on its neighbours.
fn base64(secret: &[u8], shift: usize, alphabet: &alphabet::Alphabet) -> String {
    let bytes = [vec![0; shift].as_slice(), secret].concat();
    let text = GeneralPurpose::new(alphabet, NO_PAD).encode(&bytes);
    let begin = (shift * 8).div_ceil(6);
    let end = bytes.len() * 8 / 6;
    text.get(begin..end).unwrap_or_default().to_owned()
}

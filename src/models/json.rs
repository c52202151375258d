//! Reading the JSON of providers: fast where it is right, lenient where it is wrong in ways that
//! providers are.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::fault::Fault;
use crate::domain::limits;

/// Text that borrows from the buffer unless it holds escapes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    // serde's own Cow inside an Option copies always.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
            fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text)))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

/// The first element of a list whose others are of no interest; nothing for `null` and `[]`.
#[derive(Debug)]
pub(super) struct First<T>(pub Option<T>);

impl<T> Default for First<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for First<T> {
    // A Vec would allocate for every token.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = First<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(First(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let first = list.next_element()?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }
        deserializer.deserialize_any(Reader(PhantomData))
    }
}

/// A number of tokens; nothing where the provider wrote something that cannot be one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count(pub Option<u64>);

impl Count {
    fn plausible(tokens: u64) -> Self {
        Self((tokens <= limits::MAX_PLAUSIBLE_TOKENS).then_some(tokens))
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Count;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_u64<E>(self, tokens: u64) -> Result<Count, E> {
                Ok(Count::plausible(tokens))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Count, E> {
                Ok(Count(None))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Count, E> {
                Ok(Count(None))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Count, E> {
                Ok(Count(None))
            }
            fn visit_str<E>(self, _: &str) -> Result<Count, E> {
                Ok(Count(None))
            }
            fn visit_unit<E>(self) -> Result<Count, E> {
                Ok(Count(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Count, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Count(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Count, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Count(None))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// Reads JSON. Checking all of its UTF-8 at once is faster than each text of it.
pub(super) fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    serde_json::from_str(std::str::from_utf8(json).ok()?).ok()
}

/// The stream holds something that is no JSON, or none of this wire.
pub(super) fn unreadable() -> Fault {
    Fault::broken("sent an answer that cannot be read")
}

/// The text of a JSON string, or the JSON itself where it is none; nothing for `null`.
///
/// # Errors
/// A string that cannot be read even when mended.
pub(super) fn text_of(raw: &RawValue) -> Result<Cow<'_, str>, Fault> {
    let raw = raw.get();
    if !raw.starts_with('"') {
        return Ok(Cow::Borrowed(if raw == "null" { "" } else { raw }));
    }
    if let Ok(Text(text)) = serde_json::from_str(raw) {
        return Ok(text);
    }
    let mended = mend(raw.as_bytes()).ok_or_else(unreadable)?;
    serde_json::from_slice(&mended).map(Cow::Owned).map_err(|_| unreadable())
}

/// Puts U+FFFD where bytes are no UTF-8 and where an escape is half a surrogate pair; `None` where
/// nothing was to be mended. Providers that stream byte by byte write such things, and a run must
/// not fail by them.
pub(super) fn mend(json: &[u8]) -> Option<Vec<u8>> {
    let text = String::from_utf8_lossy(json);
    let mut is_mended = matches!(text, Cow::Owned(_));
    let mut mended = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some(at) = memchr::memchr(b'\\', rest) {
        let (before, escape) = rest.split_at(at);
        mended.extend_from_slice(before);
        let taken = match surrogate(escape) {
            None => 2,
            Some(High) if escape.get(6..).and_then(surrogate) == Some(Low) => 12,
            Some(High | Low) => {
                mended.extend_from_slice(b"\\ufffd");
                is_mended = true;
                rest = escape.get(6..).unwrap_or_default();
                continue;
            }
        };
        let (whole, after) = escape.split_at(taken.min(escape.len()));
        mended.extend_from_slice(whole);
        rest = after;
    }
    mended.extend_from_slice(rest);
    is_mended.then_some(mended)
}

#[derive(PartialEq, Eq)]
enum Surrogate {
    High,
    Low,
}
use Surrogate::{High, Low};

/// Which half of a pair the escape at the front of `bytes` is, if it is one.
fn surrogate(bytes: &[u8]) -> Option<Surrogate> {
    let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
    let unit = u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    match unit {
        0xD800..=0xDBFF => Some(High),
        0xDC00..=0xDFFF => Some(Low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mended(json: &[u8]) -> Option<String> {
        mend(json).map(|json| serde_json::from_slice(&json).unwrap())
    }

    #[test]
    fn half_a_surrogate_pair_becomes_a_replacement_character() {
        assert_eq!(mended(br#""a\ud83db""#).unwrap(), "a\u{fffd}b");
        assert_eq!(mended(br#""\ude00""#).unwrap(), "\u{fffd}");
        assert_eq!(mended(br#""\ud83d\ud83d\ude00\ud83d""#).unwrap(), "\u{fffd}😀\u{fffd}");
        assert_eq!(mended(br#""\ud83d\n""#).unwrap(), "\u{fffd}\n");
    }

    #[test]
    fn bytes_that_are_no_utf8_become_replacement_characters() {
        assert_eq!(mended(b"\"a\xF0\x9F\x98b\"").unwrap(), "a\u{fffd}b");
    }

    #[test]
    fn what_is_right_is_left_alone() {
        for json in [r#""\ud83d\ude00""#, r#""\\ud83d""#, r#""\u00e9\"""#, "{", "\"\\", r#""\u12"#]
        {
            assert_eq!(mend(json.as_bytes()), None, "{json}");
        }
    }

    #[test]
    fn counts_that_are_absurd_are_none() {
        for absurd in [
            "-1",
            "1.5",
            "1e300",
            "\"7\"",
            "null",
            "true",
            "[1]",
            "{\"a\":1}",
            "100000001",
            "18446744073709551615",
            "99999999999999999999999",
        ] {
            assert_eq!(serde_json::from_str::<Count>(absurd).unwrap(), Count(None), "{absurd}");
        }
        assert_eq!(serde_json::from_str::<Count>("7").unwrap(), Count(Some(7)));
    }

    #[test]
    fn text_is_borrowed_unless_it_holds_escapes() {
        let Text(text) = serde_json::from_str("\"plain ü\"").unwrap();
        assert!(matches!(text, Cow::Borrowed("plain ü")));
        let Text(text) = serde_json::from_str(r#""a\nb""#).unwrap();
        assert_eq!(text, "a\nb");
    }
}

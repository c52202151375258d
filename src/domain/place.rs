//! Where in a document something is wrong, as a JSON pointer (RFC 6901).
//!
//! A document that says itself what it is (a tool, by its `type`) is read by way of a buffer, and a path
//! that is tracked around it ends there. What is wrong inside is told with its place in the error's text,
//! and [`split`] takes the two apart again: serde's errors have no other way out.

use serde::de::{DeserializeOwned, Error};
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

/// Reads what stands at `at` in a buffered document.
///
/// # Errors
/// What is wrong with it, for [`split`] to read where.
pub fn read_at<T: DeserializeOwned, E: Error>(at: &str, value: Value) -> Result<T, E> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let place = format!("{at}{}", pointer(error.path()));
        E::custom(format_args!("{LEAD}{place}{TAIL}{}", error.inner()))
    })
}

const LEAD: &str = "at `";
const TAIL: &str = "`: ";

/// An error's text, and where in the document it is about, as far as the text says.
pub fn split(mut text: &str) -> (String, &str) {
    let mut pointer = String::new();
    while let Some((place, rest)) = text.strip_prefix(LEAD).and_then(|t| t.split_once(TAIL)) {
        pointer.push_str(place);
        text = rest;
    }
    (pointer, text)
}

/// The pointer of a path.
pub fn pointer(path: &Path) -> String {
    use std::fmt::Write as _;
    let mut pointer = String::new();
    for segment in path {
        // Writing to a String cannot fail.
        let _ = match segment {
            Segment::Seq { index } => write!(pointer, "/{index}"),
            Segment::Map { key } => write!(pointer, "/{}", escape(key)),
            // The variant's name is no place in the document.
            Segment::Enum { .. } | Segment::Unknown => Ok(()),
        };
    }
    pointer
}

/// One step of a pointer.
pub fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

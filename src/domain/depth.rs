//! How deeply JSON may be nested that somebody else wrote.
//!
//! What is parsed becomes a part of an event, some levels further down. Parsers stop at 128 levels: an
//! event that is deeper could be written, and never be read again.

use serde_json::Value;

use super::limits::MAX_DEPTH;

/// Whether a value is nested deeper than is allowed. It was parsed, so its depth has a bound already.
pub fn is_too_deep(value: &Value) -> bool {
    is_deeper(value, MAX_DEPTH)
}

fn is_deeper(value: &Value, levels: usize) -> bool {
    match (value, levels.checked_sub(1)) {
        (Value::Array(values), Some(left)) => values.iter().any(|value| is_deeper(value, left)),
        (Value::Object(fields), Some(left)) => fields.values().any(|value| is_deeper(value, left)),
        (Value::Array(_) | Value::Object(_), None) => true,
        (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_), _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_counted_in_brackets() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        let is_too_deep = |depth| is_too_deep(&serde_json::from_str(&nested(depth)).unwrap());
        assert!(!is_too_deep(0) && !is_too_deep(MAX_DEPTH));
        assert!(is_too_deep(MAX_DEPTH + 1) && is_too_deep(127));
    }
}

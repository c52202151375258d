//! Many rows in one parameter: a JSON array of arrays, which `jsonb_each` takes apart.
//!
//! Every statement costs a trip to SQLite's thread (10 to 20 µs), so a batch is a few statements of
//! many rows, and SQL stays constant. Texts of events go beside it, in one blob out of which the
//! statement cuts them: they are JSON themselves, and escaping them a second time costs more than all
//! the rest.

use std::fmt::Write as _;

use sqlx::types::Uuid;

/// Rows that grow.
#[derive(Debug)]
pub(super) struct Table {
    json: String,
    rows: usize,
}

impl Table {
    /// No row yet.
    pub(super) fn new() -> Self {
        Self { json: String::from("["), rows: 0 }
    }

    /// Begins a row; values follow.
    pub(super) fn row(&mut self) -> &mut Self {
        self.json.push_str(if self.rows == 0 { "[" } else { "],[" });
        self.rows += 1;
        self
    }

    /// Whether there is no row.
    pub(super) const fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// A number.
    pub(super) fn int(&mut self, value: impl Into<i64>) -> &mut Self {
        self.comma();
        // Writing to a String cannot fail.
        let _ = write!(self.json, "{}", value.into());
        self
    }

    /// A number or null.
    pub(super) fn maybe_int(&mut self, value: Option<impl Into<i64>>) -> &mut Self {
        match value {
            Some(value) => self.int(value),
            None => self.null(),
        }
    }

    /// A text.
    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.comma();
        let _ = write!(self.json, "{}", serde_json::Value::String(value.to_owned()));
        self
    }

    /// A text or null.
    pub(super) fn maybe_text(&mut self, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(value),
            None => self.null(),
        }
    }

    /// Bytes, as hex digits; `unhex` in the statement makes them bytes again.
    pub(super) fn hex(&mut self, value: &[u8]) -> &mut Self {
        self.comma();
        self.json.push('"');
        for byte in value {
            let _ = write!(self.json, "{byte:02x}");
        }
        self.json.push('"');
        self
    }

    /// An id.
    pub(super) fn uuid(&mut self, value: Uuid) -> &mut Self {
        self.comma();
        let mut hex = Uuid::encode_buffer();
        let hex = value.simple().encode_lower(&mut hex);
        self.json.push('"');
        self.json.push_str(hex);
        self.json.push('"');
        self
    }

    /// An id or null.
    pub(super) fn maybe_uuid(&mut self, value: Option<Uuid>) -> &mut Self {
        match value {
            Some(value) => self.uuid(value),
            None => self.null(),
        }
    }

    /// Nothing.
    pub(super) fn null(&mut self) -> &mut Self {
        self.comma();
        self.json.push_str("null");
        self
    }

    /// The parameter.
    pub(super) fn json(mut self) -> String {
        self.json.push_str(if self.rows == 0 { "]" } else { "]]" });
        self.json
    }

    fn comma(&mut self) {
        if !self.json.ends_with('[') {
            self.json.push(',');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_an_array_of_arrays() {
        assert_eq!(Table::new().json(), "[]");
        let mut table = Table::new();
        table.row().int(1).text("a \"b\" \0 😀").null().maybe_int(None::<i64>);
        table.row().uuid(Uuid::from_u128(255)).hex(&[1, 254]).maybe_text(Some("["));
        assert_eq!(
            table.json(),
            "[[1,\"a \\\"b\\\" \\u0000 😀\",null,null],\
             [\"000000000000000000000000000000ff\",\"01fe\",\"[\"]]"
        );
    }
}

//! Money: integer micro-dollars inside, a JSON number of US dollars outside.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::usage::Usage;

/// An amount of US dollars, in millionths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Usd(i64);

impl Usd {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// From micro-dollars.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// The amount in micro-dollars.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The sum; it stops at the largest amount rather than wrap.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What is left of it; never less than nothing.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0).max(0))
    }

    /// An equal share of it, rounded down, for each of so many.
    #[must_use]
    pub fn shared_by(self, count: usize) -> Self {
        Self(self.0 / i64::try_from(count.max(1)).unwrap_or(i64::MAX))
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Exact: an f64 holds every amount below nine billion dollars to the micro-dollar, and its
        // shortest decimal form has no more than the six digits that were divided away.
        serializer.serialize_f64(self.0 as f64 / 1e6)
    }
}

impl<'de> Deserialize<'de> for Usd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let dollars = f64::deserialize(deserializer)?;
        if !(0.0..=1e9).contains(&dollars) {
            return Err(D::Error::custom("must be an amount of US dollars from 0 to 1000000000"));
        }
        Ok(Self((dollars * 1e6).round() as i64))
    }
}

impl PartialSchema for Usd {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Number)
            .description(Some("US dollars, with at most 6 decimals."))
            .minimum(Some(0))
            .examples([0.0012])
            .into()
    }
}

impl ToSchema for Usd {}

/// What a model costs, in micro-dollars for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// A million prompt tokens.
    pub input: i64,
    /// A million prompt tokens that the provider had cached; the input price where not given.
    pub cached_input: i64,
    /// A million tokens of output, reasoning included.
    pub output: i64,
}

impl Price {
    /// What one model call cost: summed exactly, rounded half up to the micro-dollar once.
    pub fn cost(&self, usage: &Usage) -> Usd {
        let cached = usage.cached_input_tokens.min(usage.input_tokens);
        let fresh = usage.input_tokens - cached;
        let parts = i128::from(fresh) * i128::from(self.input)
            + i128::from(cached) * i128::from(self.cached_input)
            + i128::from(usage.output_tokens) * i128::from(self.output);
        Usd(i64::try_from((parts + 500_000) / 1_000_000).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_dollars_outside_and_exact() {
        for (micros, json) in [(0, "0.0"), (1, "1e-6"), (1_200, "0.0012"), (2_500_000, "2.5")] {
            let text = serde_json::to_string(&Usd(micros)).unwrap_or_default();
            assert_eq!(text, json);
            assert_eq!(serde_json::from_str::<Usd>(&text).ok(), Some(Usd(micros)));
        }
        assert!(serde_json::from_str::<Usd>("-1").is_err());
    }

    #[test]
    fn a_call_is_priced_to_the_micro_dollar() {
        let price = Price { input: 2_500_000, cached_input: 1_250_000, output: 10_000_000 };
        let usage = Usage {
            input_tokens: 1_003,
            cached_input_tokens: 500,
            output_tokens: 7,
            ..Usage::default()
        };
        // 503 × 2.5 + 500 × 1.25 + 7 × 10 = 1952.5 micro-dollars.
        assert_eq!(price.cost(&usage), Usd(1_953));
    }
}

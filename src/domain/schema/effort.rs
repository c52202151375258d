//! How much work a schema makes of a value, counted before the work is begun.
//!
//! A schema that branches can visit the same place of a value again and again: each `anyOf` of a chain of
//! twenty doubles what comes after it. Schemas come from users and from MCP servers, values from models, and a
//! validator cannot be stopped once it is at work. So the visits are counted first: each pair of a part of the schema
//! and a part of the value once, however often the validator would come there.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Pairs of parts that are counted at most; a value with more counts as endless work.
const MAX_PAIRS: usize = 200_000;
/// From so many branches on the validator looks at a property that tells them apart.
const MIN_BRANCHES: usize = 3;
/// `$ref`s in a row that are followed to see what a branch pins.
const MAX_HOPS: usize = 16;

/// What of the schema is visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Everything, as for a list of all violations.
    Everywhere,
    /// What a yes or no takes: of branches that a required string tells apart, only the one that is meant.
    WhereItMatters,
}

/// Visits that checking `value` takes at most, `u64::MAX` for more than anybody counts.
pub(super) fn visits(schema: &Value, value: &Value, look: Look) -> u64 {
    let mut count = Count { look, places: Places::of(schema), known: HashMap::new() };
    count.of(schema, value)
}

/// Whether no part of a value is visited much more than once: no part of the schema stands beside
/// another one for the same place, and no list of values is long.
pub(super) fn is_plain(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => {
            let long = fields.get("enum").and_then(Value::as_array).is_some_and(|e| e.len() > 100);
            !long
                && !fields.keys().any(|key| branches(key) || refers(key))
                && fields.values().all(is_plain)
        }
        Value::Array(parts) => parts.iter().all(is_plain),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

/// What in a schema costs the validator more than a look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// References: each may lead the validator a level deeper, on its stack.
    pub(super) references: usize,
    /// Regular expressions: one may take 50 ms and 10 MB to compile.
    pub(super) patterns: usize,
}

impl Weight {
    pub(super) fn of(schema: &Value) -> Self {
        let mut weight = Self::default();
        weight.add(schema);
        weight
    }

    fn add(&mut self, schema: &Value) {
        match schema {
            Value::Object(fields) => {
                for (key, part) in fields {
                    match part {
                        Value::String(_) if refers(key) => self.references += 1,
                        Value::String(_) if key == "pattern" => self.patterns += 1,
                        Value::Object(all) if key == "patternProperties" => {
                            self.patterns += all.len()
                        }
                        _ => {}
                    }
                    self.add(part);
                }
            }
            Value::Array(parts) => parts.iter().for_each(|part| self.add(part)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

fn refers(key: &str) -> bool {
    matches!(key, "$ref" | "$dynamicRef" | "$recursiveRef")
}

/// Keywords whose schemas are held against the same place as the schema that they stand in.
fn branches(key: &str) -> bool {
    matches!(
        key,
        "allOf"
            | "anyOf"
            | "oneOf"
            | "not"
            | "if"
            | "then"
            | "else"
            | "dependentSchemas"
            | "dependencies"
    )
}

struct Count<'a> {
    look: Look,
    places: Places<'a>,
    /// By the addresses of both; 0 while it is being counted: a circle at one place is cut, as the
    /// validator cuts it.
    known: HashMap<(usize, usize), u64>,
}

impl<'a> Count<'a> {
    fn of(&mut self, schema: &'a Value, value: &Value) -> u64 {
        let Value::Object(fields) = schema else { return 1 };
        let pair = (std::ptr::from_ref(schema).addr(), std::ptr::from_ref(value).addr());
        if let Some(known) = self.known.get(&pair) {
            return *known;
        }
        if self.known.len() >= MAX_PAIRS {
            return u64::MAX;
        }
        self.known.insert(pair, 0);
        let here = fields.get("enum").and_then(Value::as_array).map_or(1, |all| all.len() as u64);
        let mut sum = here.saturating_add(self.in_place(fields, value));
        sum = sum.saturating_add(match value {
            Value::Object(properties) => self.below_object(fields, properties),
            Value::Array(items) => self.below_array(fields, items),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
        });
        self.known.insert(pair, sum);
        sum
    }

    fn in_place(&mut self, fields: &'a Map<String, Value>, value: &Value) -> u64 {
        let mut sum = 0_u64;
        for (key, part) in fields {
            let more = match (key.as_str(), part) {
                ("anyOf" | "oneOf", Value::Array(parts)) => match self.meant(parts, value) {
                    Some(meant) => self.sum(meant.into_iter(), value),
                    None => self.sum(parts.iter(), value),
                },
                ("allOf", Value::Array(parts)) => self.sum(parts.iter(), value),
                ("not" | "if" | "then" | "else", part) => self.of(part, value),
                ("dependentSchemas" | "dependencies", Value::Object(parts)) => {
                    self.sum(parts.values(), value)
                }
                (key, Value::String(reference)) if refers(key) => {
                    let targets = self.places.meant_by(reference);
                    self.sum(targets.into_iter(), value)
                }
                _ => 0,
            };
            sum = sum.saturating_add(more);
        }
        sum
    }

    fn below_object(&mut self, fields: &'a Map<String, Value>, value: &Map<String, Value>) -> u64 {
        let mut sum = 0_u64;
        for (key, part) in fields {
            let more = match (key.as_str(), part) {
                ("properties", Value::Object(properties)) => {
                    let named = properties.iter().filter_map(|(n, s)| Some((s, value.get(n)?)));
                    self.pairs(named)
                }
                // Which of them match is for the validator: all may.
                ("patternProperties", Value::Object(patterns)) => {
                    let all = patterns.values().flat_map(|s| value.values().map(move |v| (s, v)));
                    self.pairs(all)
                }
                ("additionalProperties" | "unevaluatedProperties", part) => {
                    self.pairs(value.values().map(|value| (part, value)))
                }
                ("propertyNames", _) => value.len() as u64,
                _ => 0,
            };
            sum = sum.saturating_add(more);
        }
        sum
    }

    fn below_array(&mut self, fields: &'a Map<String, Value>, value: &[Value]) -> u64 {
        let mut sum = 0_u64;
        for (key, part) in fields {
            let more = match (key.as_str(), part) {
                ("prefixItems" | "items", Value::Array(parts)) => {
                    self.pairs(parts.iter().zip(value))
                }
                ("items" | "additionalItems" | "unevaluatedItems" | "contains", part) => {
                    self.pairs(value.iter().map(|value| (part, value)))
                }
                _ => 0,
            };
            sum = sum.saturating_add(more);
        }
        sum
    }

    fn sum(&mut self, parts: impl Iterator<Item = &'a Value>, value: &Value) -> u64 {
        parts.fold(0, |sum: u64, part| sum.saturating_add(self.of(part, value)))
    }

    fn pairs<'v>(&mut self, pairs: impl Iterator<Item = (&'a Value, &'v Value)>) -> u64 {
        pairs.fold(0, |sum: u64, (part, value)| sum.saturating_add(self.of(part, value)))
    }

    /// Of these branches, the one that a required string of the value names (or none); `None` where
    /// nothing tells them apart, or all of them are looked at anyway.
    fn meant(&self, parts: &'a [Value], value: &Value) -> Option<Vec<&'a Value>> {
        let object = value.as_object()?;
        if self.look == Look::Everywhere || parts.len() < MIN_BRANCHES {
            return None;
        }
        let pins: Vec<HashMap<&str, &str>> = parts.iter().map(|part| self.pins(part)).collect();
        let is_key = |key: &&&str| {
            let mut values: Vec<&str> =
                pins.iter().filter_map(|pins| pins.get(**key).copied()).collect();
            values.sort_unstable();
            values.dedup();
            values.len() == parts.len()
        };
        // The first by its name, as the validator takes it.
        let key = pins.first()?.keys().filter(is_key).min()?;
        let wanted = object.get(*key).and_then(Value::as_str);
        let of = parts.iter().zip(&pins).filter(|(_, pins)| pins.get(key).copied() == wanted);
        Some(of.map(|(part, _)| part).collect())
    }

    /// Properties that a branch requires to be one string.
    fn pins(&self, part: &'a Value) -> HashMap<&'a str, &'a str> {
        let mut part = part;
        for _ in 0..MAX_HOPS {
            let Some(reference) = part.get("$ref").and_then(Value::as_str) else { break };
            let targets = self.places.meant_by(reference);
            let [target] = targets.as_slice() else { break };
            part = target;
        }
        let required = part.get("required").and_then(Value::as_array).into_iter().flatten();
        let pinned = required.filter_map(Value::as_str).filter_map(|name| {
            let property = part.get("properties")?.get(name)?;
            let one = property.get("enum").and_then(Value::as_array).filter(|all| all.len() == 1);
            let value = property.get("const").or_else(|| one.and_then(|all| all.first()));
            Some((name, value?.as_str()?))
        });
        pinned.collect()
    }
}

/// Where references can lead.
struct Places<'a> {
    /// The whole, and parts that have an id of their own: pointers begin there.
    resources: Vec<&'a Value>,
    anchors: HashMap<&'a str, Vec<&'a Value>>,
}

impl<'a> Places<'a> {
    fn of(schema: &'a Value) -> Self {
        let mut places = Self { resources: vec![schema], anchors: HashMap::new() };
        places.look_through(schema);
        places
    }

    fn look_through(&mut self, part: &'a Value) {
        match part {
            Value::Object(fields) => {
                if fields.get("$id").is_some_and(Value::is_string) {
                    self.resources.push(part);
                }
                let anchors = ["$anchor", "$dynamicAnchor"].into_iter();
                for name in anchors.filter_map(|key| fields.get(key).and_then(Value::as_str)) {
                    self.anchors.entry(name).or_default().push(part);
                }
                fields.values().for_each(|part| self.look_through(part));
            }
            Value::Array(parts) => parts.iter().for_each(|part| self.look_through(part)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// All that a reference may mean; more than one where that takes more knowledge of ids than is
    /// worth it here.
    fn meant_by(&self, reference: &str) -> Vec<&'a Value> {
        let fragment = reference.split_once('#').map_or("", |(_, fragment)| fragment);
        let pointer = unescaped(fragment);
        let pointed = self.resources.iter().filter_map(|resource| resource.pointer(&pointer));
        let mut found: Vec<&Value> = pointed.collect();
        found.extend(self.anchors.get(fragment).into_iter().flatten());
        found
    }
}

/// A fragment as the pointer that it stands for (RFC 6901, section 6).
fn unescaped(fragment: &str) -> String {
    let query = format!("p={}", fragment.replace('+', "%2B").replace('&', "%26"));
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.next().map(|(_, pointer)| pointer.into_owned()).unwrap_or_default()
}

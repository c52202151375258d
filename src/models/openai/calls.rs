//! Tool calls out of fragments.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::super::fault::Fault;
use super::super::json::{Text, text_of};
use crate::domain::limits;
use crate::domain::model::RequestedCall;

/// A fragment of a call.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Fragment<'a> {
    #[serde(default)]
    index: Option<i64>,
    #[serde(borrow, default)]
    id: Option<Text<'a>>,
    #[serde(borrow, default)]
    function: Option<Function<'a>>,
}

/// What a fragment says of the function.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Function<'a> {
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
    /// A piece of JSON text; some servers write the object itself.
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
}

impl<'a> From<Function<'a>> for Fragment<'a> {
    /// The only call of servers that know `function_call` and no `tool_calls`.
    fn from(function: Function<'a>) -> Self {
        Self { index: Some(0), id: None, function: Some(function) }
    }
}

/// The calls of an answer, as far as they have come.
#[derive(Debug, Default)]
pub(super) struct Calls(Vec<Call>);

#[derive(Debug, Default)]
struct Call {
    index: Option<i64>,
    id: String,
    name: String,
    arguments: String,
}

impl Calls {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a fragment; says how many bytes it had.
    ///
    /// # Errors
    /// It cannot be read, or there are too many calls.
    pub fn add(&mut self, fragment: Fragment<'_>) -> Result<usize, Fault> {
        let function = fragment.function.unwrap_or_default();
        let name = function.name.unwrap_or_default().0;
        let id = fragment.id.unwrap_or_default().0;
        let arguments = function.arguments.map(text_of).transpose()?.unwrap_or_default();
        let of_index = |call: &Call| fragment.index.is_none() || call.index == fragment.index;
        // Without an index, the id tells; without both, it is the last call that goes on.
        let of_id = |call: &Call| fragment.index.is_some() || id.is_empty() || call.id == id;
        let open = self.0.iter_mut().rev().find(|call| of_index(call) && of_id(call));
        let call = match open {
            Some(call) if call.goes_on(&id, &name, &arguments) => call,
            Some(_) | None => {
                if self.0.len() >= limits::MAX_CALLS_PER_STEP {
                    return Err(Fault::broken("asked for too many tool calls at once"));
                }
                self.0.push(Call { index: fragment.index, ..Call::default() });
                match self.0.last_mut() {
                    Some(call) => call,
                    None => return Ok(0),
                }
            }
        };
        if call.id.is_empty() {
            call.id.push_str(&id);
        }
        if call.name != name {
            call.name.push_str(&name);
        }
        call.arguments.push_str(&arguments);
        Ok(name.len() + arguments.len())
    }

    /// The calls in the order in which they were begun. Ids are thrown away: Stepwell gives its own,
    /// so that a provider that repeats one does no harm.
    pub fn into_requested(self) -> Vec<RequestedCall> {
        self.0
            .into_iter()
            .map(|call| RequestedCall { tool: call.name, arguments: call.arguments })
            .collect()
    }
}

impl Call {
    /// Whether a fragment belongs to this call, or begins another under the same index: some servers
    /// number all of their calls 0, some repeat id and name in each fragment.
    fn goes_on(&self, id: &str, name: &str, arguments: &str) -> bool {
        if name.is_empty() || self.name.is_empty() {
            return true;
        }
        if !id.is_empty() && !self.id.is_empty() && id != self.id {
            return false;
        }
        if self.arguments.is_empty() {
            return true;
        }
        let is_complete = serde_json::from_str::<IgnoredAny>(&self.arguments).is_ok();
        name == self.name && (arguments.trim().is_empty() || !is_complete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Adds the fragments and tells `name(arguments)` of each call.
    fn calls(fragments: Vec<Value>) -> Vec<String> {
        let mut calls = Calls::default();
        for fragment in fragments {
            let text = fragment.to_string();
            calls.add(serde_json::from_str(&text).unwrap()).unwrap();
        }
        calls.into_requested().iter().map(|c| format!("{}({})", c.tool, c.arguments)).collect()
    }

    fn f(name: Option<&str>, arguments: &str) -> Value {
        json!({"name": name, "arguments": arguments})
    }

    #[test]
    fn parallel_calls_are_told_apart_by_index() {
        let told = calls(vec![
            json!({"index": 0, "id": "a", "function": f(Some("x"), "")}),
            json!({"index": 1, "id": "b", "function": f(Some("y"), "")}),
            json!({"index": 0, "function": f(None, "{\"k\":")}),
            json!({"index": 1, "function": f(None, "{}")}),
            json!({"index": 0, "function": f(None, "1}")}),
        ]);
        assert_eq!(told, ["x({\"k\":1})", "y({})"]);
    }

    #[test]
    fn duplicate_ids_are_two_calls() {
        for index in [json!([0, 1]), json!([null, null]), json!([0, 0])] {
            let told = calls(vec![
                json!({"index": index[0], "id": "a", "function": f(Some("x"), "{}")}),
                json!({"index": index[1], "id": "a", "function": f(Some("x"), "{\"n\":2}")}),
            ]);
            assert_eq!(told, ["x({})", "x({\"n\":2})"], "{index}");
        }
    }

    #[test]
    fn servers_that_number_all_calls_zero_are_understood() {
        let told = calls(vec![
            json!({"index": 0, "id": "a", "function": f(Some("x"), "{}")}),
            json!({"index": 0, "id": "b", "function": f(Some("x"), "{}")}),
        ]);
        assert_eq!(told, ["x({})", "x({})"]);
    }

    #[test]
    fn servers_that_repeat_id_and_name_or_leave_them_out_are_understood() {
        for (id, name) in [
            (json!("a"), Some("x")),
            (json!("a"), None),
            (json!(""), Some("x")),
            (json!(null), None),
        ] {
            for index in [json!(0), json!(null)] {
                let told = calls(vec![
                    json!({"index": index, "id": "a", "function": f(Some("x"), "{\"k\"")}),
                    json!({"index": index, "id": id, "function": f(name, ":1}")}),
                    json!({"index": index, "id": id, "function": f(name, "")}),
                ]);
                assert_eq!(told, ["x({\"k\":1})"], "{id} {name:?} {index}");
            }
        }
    }

    #[test]
    fn arguments_may_be_an_object_and_names_may_come_in_pieces() {
        assert_eq!(
            calls(vec![json!({"function": {"name": "x", "arguments": {"k": 1}}})]),
            ["x({\"k\":1})"]
        );
        assert_eq!(
            calls(vec![
                json!({"index": 0, "id": "a", "function": {"name": "get_"}}),
                json!({"index": 0, "function": {"name": "time", "arguments": "{}"}}),
            ]),
            ["get_time({})"]
        );
    }

    #[test]
    fn too_many_calls_are_a_broken_answer() {
        let mut calls = Calls::default();
        let add = |calls: &mut Calls, n: usize| {
            let text = json!({"index": n, "function": f(Some("x"), "{}")}).to_string();
            calls.add(serde_json::from_str(&text).unwrap()).map(|_| ())
        };
        for n in 0..limits::MAX_CALLS_PER_STEP {
            add(&mut calls, n).unwrap();
        }
        assert!(add(&mut calls, limits::MAX_CALLS_PER_STEP).is_err());
    }
}

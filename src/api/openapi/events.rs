//! Events in the spec: one flat object for each type, told apart by `type`.
//!
//! Each event's `type` is an enum of one value and the union has a discriminator with a mapping:
//! that is the one form that all generators in use understand.

use std::borrow::Cow;

use serde_json::{Value, json};
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{ArrayBuilder, Discriminator, OneOfBuilder, Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::api::sse::StreamEndReason;
use crate::domain::event;
use crate::domain::ids::RunId;
use crate::domain::time::Timestamp;

/// Fields of events that are left out when there is nothing to say.
const MAY_BE_LEFT_OUT: [&str; 5] =
    ["provider_state", "depth", "child_run_id", "child_max_cost_usd", "child_cost_usd"];

/// One entry of a run's log.
pub struct RunEvent;

/// Whatever comes in a stream: entries of the log, and what the server says about the stream itself.
pub struct StreamEvent;

/// A page of a run's log.
pub struct LogPage;

type Schemas = Vec<(String, RefOr<Schema>)>;

impl PartialSchema for RunEvent {
    fn schema() -> RefOr<Schema> {
        let description = "One entry of a run's log. `seq` counts from 1 without a gap; entries \
            never change. Ignore types that you do not know: there will be more.";
        union(description, &of_the_log())
    }
}

impl ToSchema for RunEvent {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("RunEvent")
    }
    fn schemas(schemas: &mut Schemas) {
        for (variant, word, own) in event::schemas() {
            schemas.push((component(variant), event(word, own)));
        }
        schemas.extend(event::referred_schemas());
    }
}

impl PartialSchema for StreamEvent {
    fn schema() -> RefOr<Schema> {
        let description = "One event of a stream: the JSON in its `data` field. Entries of the log \
            also have their `seq` as `id`, and their type as `event`.";
        let mut all = of_the_log();
        all.push(("stream.gap", "StreamGap".to_owned()));
        all.push(("stream.end", "StreamEnd".to_owned()));
        union(description, &all)
    }
}

impl ToSchema for StreamEvent {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("StreamEvent")
    }
    fn schemas(schemas: &mut Schemas) {
        RunEvent::schemas(schemas);
        schemas.push(("RunEvent".to_owned(), RunEvent::schema()));
        schemas.push(("StreamGap".to_owned(), gap().into()));
        schemas.push(("StreamEnd".to_owned(), end().into()));
        schemas.push(("StreamEndReason".to_owned(), StreamEndReason::schema()));
    }
}

impl PartialSchema for LogPage {
    fn schema() -> RefOr<Schema> {
        let seq = |description: &str| {
            ObjectBuilder::new()
                .schema_type(SchemaType::Array(vec![Type::Integer, Type::Null]))
                .description(Some(description))
        };
        ObjectBuilder::new()
            .description(Some("A page of a run's log."))
            .property("data", ArrayBuilder::new().items(reference("RunEvent")))
            .required("data")
            .property(
                "has_more",
                ObjectBuilder::new()
                    .schema_type(Type::Boolean)
                    .description(Some("Whether the log goes on.")),
            )
            .required("has_more")
            .property("first_id", seq("The `seq` of the first event; null when there is none."))
            .required("first_id")
            .property(
                "last_id",
                seq("The `seq` of the last event: pass it as `after`; null when there is none."),
            )
            .required("last_id")
            .into()
    }
}

impl ToSchema for LogPage {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("LogPage")
    }
    fn schemas(schemas: &mut Schemas) {
        RunEvent::schemas(schemas);
        schemas.push(("RunEvent".to_owned(), RunEvent::schema()));
    }
}

fn component(variant: &str) -> String {
    format!("{variant}Event")
}

/// Each type of the log with the name of its schema.
fn of_the_log() -> Vec<(&'static str, String)> {
    event::schemas().into_iter().map(|(variant, word, _)| (word, component(variant))).collect()
}

fn union(description: &str, members: &[(&str, String)]) -> RefOr<Schema> {
    let mut union = OneOfBuilder::new().description(Some(description));
    let mut discriminator = Discriminator::new("type");
    for (word, name) in members {
        union = union.item(reference(name));
        let place = format!("#/components/schemas/{name}");
        discriminator.mapping.insert((*word).to_owned(), place);
    }
    union.discriminator(Some(discriminator)).into()
}

/// The envelope of every event, and the fields of its type, in one object.
fn event(word: &str, own: RefOr<Schema>) -> RefOr<Schema> {
    let mut object = Object::new();
    object.schema_type = SchemaType::Type(Type::Object);
    let mut put = |name: &str, field: RefOr<Schema>| {
        object.properties.insert(name.to_owned(), field);
    };
    put("type", one_word(word));
    put("seq", integer("Its place in the log, from 1."));
    put("run_id", described(RunId::schema(), "The run."));
    put("created_at", described(Timestamp::schema(), "When it was written."));
    if let RefOr::T(Schema::Object(own)) = own {
        object.description = own.description;
        object.properties.extend(own.properties);
    }
    let may_be_left_out = |name: &str| {
        // What `step.started` always says, `step.restarted` says when it changes.
        MAY_BE_LEFT_OUT.contains(&name)
            || (word, name) == ("step.restarted", "dropped_messages")
            || (word, name) == ("tool_call.outcome_unknown", "error")
    };
    let always = object.properties.keys().filter(|name| !may_be_left_out(name));
    object.required = always.cloned().collect();
    object.into()
}

fn gap() -> Object {
    let mut object = Object::new();
    object.schema_type = SchemaType::Type(Type::Object);
    object.description = Some(
        "Pieces of text between these two places are not kept any more. Nothing else is ever \
         missing: `message.completed` still has the whole text."
            .to_owned(),
    );
    for (name, field) in [
        ("type", one_word("stream.gap")),
        ("from_seq", integer("The first that is missing.")),
        ("to_seq", integer("The last that is missing.")),
        ("reason", one_word("compacted")),
    ] {
        object.properties.insert(name.to_owned(), field);
        object.required.push(name.to_owned());
    }
    object
}

fn end() -> Object {
    let mut object = Object::new();
    object.schema_type = SchemaType::Type(Type::Object);
    object.description = Some(
        "The server ends the stream. `run_ended` and `conversation_closed`: you have everything. \
         Any other reason: open the stream again with `last_seq` as your cursor."
            .to_owned(),
    );
    for (name, field) in [
        ("type", one_word("stream.end")),
        ("reason", reference("StreamEndReason")),
        ("last_seq", integer("The cursor to come back with.")),
    ] {
        object.properties.insert(name.to_owned(), field);
        object.required.push(name.to_owned());
    }
    object
}

fn one_word(word: &str) -> RefOr<Schema> {
    let words: Vec<Value> = vec![json!(word)];
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).into()
}

fn integer(description: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(
            utoipa::openapi::KnownFormat::Int32,
        )))
        .description(Some(description))
        .into()
}

fn described(schema: RefOr<Schema>, description: &str) -> RefOr<Schema> {
    match schema {
        RefOr::T(Schema::Object(mut object)) => {
            object.description = Some(description.to_owned());
            object.into()
        }
        other => other,
    }
}

fn reference(name: &str) -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(name))
}

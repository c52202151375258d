//! The spec: OpenAPI 3.1, made from the routes, the domain's types and the error table.
//!
//! What the derives cannot say is said here in code: flat agents ([`agents`]), one schema an event
//! ([`events`]), tagged types that can be told apart, the errors of every operation ([`errors`]), and what all operations share.
//!
//! `openapi.yaml` in the repository is this document. After a change: `cargo run -- openapi >
//! openapi.yaml`, or run the stale-check with `STEPWELL_WRITE_OPENAPI=1`:
//! `STEPWELL_WRITE_OPENAPI=1 cargo test --lib openapi`.

pub mod agents;
pub mod errors;
pub mod events;
mod required;
mod shared;
mod unions;

use utoipa::openapi::{Info, License, OpenApi, Server, Tag};

/// The document.
pub fn document() -> OpenApi {
    let mut document = super::documented().into_openapi();
    document.info = info();
    document.servers = Some(vec![Server::new("/")]);
    document.tags = Some(tags());
    let components = document.components.get_or_insert_default();
    agents::make_flat(components);
    unions::tell_apart(components);
    required::mark(components);
    shared::add(&mut document);
    errors::add(&mut document);
    document
}

/// The document as JSON.
pub fn json() -> String {
    // Our own types are always JSON; an empty text would show at once.
    serde_json::to_string(&document()).unwrap_or_default()
}

/// The document as YAML, as it is committed.
pub fn yaml() -> String {
    document().to_yaml().unwrap_or_default()
}

fn info() -> Info {
    let mut license = License::new("Apache-2.0");
    license.identifier = Some("Apache-2.0".to_owned());
    let mut info = Info::new("Stepwell", env!("CARGO_PKG_VERSION"));
    info.description = Some(DESCRIPTION.to_owned());
    info.license = Some(license);
    info
}

const DESCRIPTION: &str = "\
Runs AI agents behind a durable REST and server-sent-events API.

Create an **agent** once (a model, instructions, tools, limits). Start a **run** of it with an input, \
and poll it, wait for it, or stream its **events**. A run is a log: everything that happens is an \
event with a number (`seq`), stored before anybody sees it, and every reader gets the same bytes. A \
broken connection loses nothing: come back with the last number. A run that was accepted is carried \
on after a crash or a restart of the server.

Send an idempotency key with everything that changes something: repeating the request is then safe. \
Every error has the same shape: decide by `error`, do what `suggested_action` says, and repeat only \
where `retry` is true. New fields, events, enum values and error codes may appear at any time: ignore \
what you do not know.";

fn tags() -> Vec<Tag> {
    [
        (
            "agents",
            "A model, instructions, tools and limits under a name. Every change is a new version.",
        ),
        ("runs", "One execution of an agent, from its input to its end."),
        (
            "conversations",
            "What is said over several runs of one agent: each turn reads what was said before.",
        ),
        (
            "actions",
            "What people and programs say to a run: approvals, results of tools, messages.",
        ),
        ("events", "What happened in a run: as a stream, as pages, and folded into steps."),
        ("health", "Whether the server is up, and whether it can take work. No key needed."),
    ]
    .into_iter()
    .map(|(name, description)| {
        let mut tag = Tag::new(name);
        tag.description = Some(description.to_owned());
        tag
    })
    .collect()
}

#[cfg(test)]
mod tests;

//! The rooms of the house keep their doors: who may use whom is a table, and this reads the sources
//! and compares (`ARCHITECTURE.md`, "The house").
//!
//! It reads paths, not lines: `use crate::{a, b::c}`, `crate::a::f()` in the middle of an expression
//! and `super::super::a` are all seen; comments and strings are not. Modules called `tests` may set
//! their stage with whatever they need, as long as they are marked `#[cfg(test)]`.

mod paths;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use paths::{Found, found_in, unmarked_tests};

/// A room, what it may use of ours, and why no more.
struct Room {
    name: &'static str,
    may_use: &'static [&'static str],
    why: &'static str,
}

/// The table. A room may always use itself; [`LEAVES`] are added to all but `domain`.
const ROOMS: &[Room] = &[
    room("domain", &[], "it is pure: whatever it needs comes in as an argument"),
    room("store", &["domain"], "it remembers and decides nothing"),
    room("models", &["domain"], "it makes one call and does not know what a run is"),
    room("egress", &["domain"], "it is one HTTP client"),
    room("tools", &["domain", "egress"], "it acts and does not know what a run is"),
    room(
        "log",
        &["domain", "store"],
        "it carries events and knows nobody who writes or reads them",
    ),
    room(
        "engine",
        &["domain", "store", "log", "models", "tools"],
        "it and app never see each other: they meet in the log",
    ),
    room("webhooks", &["domain", "store", "log", "egress"], "it delivers what the outbox holds"),
    room(
        "app",
        &["domain", "store", "log"],
        "it and engine never see each other (they meet in the log), and it knows no protocol",
    ),
    room("api", &["domain", "app"], "if it needs more, a use case is missing in app"),
    room("adapters", &["domain", "app"], "if it needs more, a use case is missing in app"),
    room("dashboard", &["domain", "app"], "if it needs more, a use case is missing in app"),
    room(
        "config",
        &["domain", "models", "egress"],
        "it only reads settings; server hands them out",
    ),
    room("telemetry", &["config"], "it only starts the log"),
    room("clock", &["domain"], "it is a leaf"),
    room("shutdown", &[], "it is a leaf"),
    room("server", EVERYTHING, ""),
    room("cli", EVERYTHING, ""),
];

/// Small things that everybody but `domain` may use.
const LEAVES: &[&str] = &["clock", "shutdown"];
const EVERYTHING: &[&str] = &["*"];

const fn room(name: &'static str, may_use: &'static [&'static str], why: &'static str) -> Room {
    Room { name, may_use, why }
}

/// A path of somebody else's that only some rooms may name.
struct Kept {
    path: &'static [&'static str],
    rooms: &'static [&'static str],
    why: &'static str,
}

const KEPT: &[Kept] = &[
    kept(&["sqlx"], &["store"], "SQL is in store only"),
    kept(&["axum"], &HTTP_ROOMS, "HTTP ends in the api"),
    kept(&["utoipa_axum"], &HTTP_ROOMS, "HTTP ends in the api"),
    kept(
        &["reqwest"],
        &["egress"],
        "outbound requests have their gate there; models has a client of its own",
    ),
    kept(&["clap"], &["config", "cli"], "settings are read in config, commands in cli"),
    kept(&["serde_saphyr"], &["config"], "settings are read in config"),
    kept(&["tracing_subscriber"], &["telemetry"], "the log is started there"),
    kept(&["std", "env"], &["config"], "the environment is read in config"),
];

/// Rooms that may name axum.
const HTTP_ROOMS: [&str; 4] = ["api", "adapters", "dashboard", "server"];
/// Crates that `domain` must not name: it is pure.
const IMPURE: &[&str] = &["tokio", "futures_util", "tracing", "rand", "hyper", "tower"];

const fn kept(
    path: &'static [&'static str],
    rooms: &'static [&'static str],
    why: &'static str,
) -> Kept {
    Kept { path, rooms, why }
}

/// What is wrong with one path, in words for whoever wrote it.
fn breach(room: &str, found: &Found) -> Option<String> {
    let spelt = found.path.join("::");
    if let [root, to, ..] = found.path.as_slice()
        && root == "crate"
        && !room.is_empty()
        && to != room
    {
        // A type or function at the root of the crate, or a glob of it: there are none to use.
        let Some(rule) = ROOMS.iter().find(|r| r.name == room) else {
            return Some(format!("the room {room} is not in the table: add it to tests/it/house"));
        };
        let leaves: &[&str] = if room == "domain" { &[] } else { LEAVES };
        let allowed: Vec<&str> = rule.may_use.iter().chain(leaves).copied().collect();
        if !allowed.contains(&"*") && !allowed.contains(&to.as_str()) {
            let allowed =
                if allowed.is_empty() { "nothing of ours".to_owned() } else { allowed.join(", ") };
            return Some(format!(
                "{room} may not use {to} ({spelt}); it may use {allowed}: {}",
                rule.why
            ));
        }
    }
    if room == "domain"
        && let Some(first) = found.path.first()
        && IMPURE.contains(&first.as_str())
    {
        return Some(format!("domain may not use {first} ({spelt}): it is pure"));
    }
    let rule = KEPT.iter().find(|k| {
        found.path.iter().zip(k.path).all(|(a, b)| a == b) && found.path.len() >= k.path.len()
    })?;
    if rule.rooms.contains(&room) {
        return None;
    }
    let room = if room.is_empty() { "the root" } else { room };
    Some(format!(
        "{room} may not use {} ({spelt}); only {} may: {}",
        rule.path.join("::"),
        rule.rooms.join(", "),
        rule.why
    ))
}

/// The module of a file: `src/api/v1/runs.rs` is `api, v1, runs`.
fn module_of(file: &Path) -> Vec<String> {
    let mut module: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        module.pop();
    }
    module
}

fn breaches(file: &Path, text: &str) -> Vec<String> {
    let module = module_of(file);
    let room = module.first().cloned().unwrap_or_default();
    let unmarked = unmarked_tests(text)
        .into_iter()
        .map(|line| (line, "a module called tests needs #[cfg(test)] right before it".to_owned()));
    found_in(text, &module)
        .iter()
        .filter(|found| !found.in_tests)
        .filter_map(|found| Some((found.line, breach(&room, found)?)))
        .chain(unmarked)
        .map(|(line, wrong)| format!("src/{}:{line}: {wrong}", file.display()))
        .collect()
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for entry in entries {
        // Tests may build what they stand on out of any room.
        let is_test = entry.file_stem().is_some_and(|name| name == "tests");
        if is_test {
            continue;
        }
        if entry.is_dir() {
            sources(&entry, into);
        } else if entry.extension().is_some_and(|e| e == "rs") {
            into.push(entry);
        }
    }
}

#[test]
fn no_room_uses_another_that_it_must_not_know() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    let mut seen = BTreeMap::<String, usize>::new();
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        let inside = file.strip_prefix(&root).unwrap();
        wrong.extend(breaches(inside, &text));
        for found in found_in(&text, &module_of(inside)) {
            *seen.entry(found.path.first().cloned().unwrap_or_default()).or_default() += 1;
        }
    }
    assert!(
        wrong.is_empty(),
        "{} breaches of the house's doors:\n{}\n",
        wrong.len(),
        wrong.join("\n")
    );
    // A reader that reads nothing finds nothing wrong.
    assert!(seen.get("crate").copied().unwrap_or_default() > 20, "paths read: {seen:?}");
    assert!(seen.contains_key("std") && seen.contains_key("sqlx"), "paths read: {seen:?}");
}

#[test]
fn every_room_is_in_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let known: BTreeSet<&str> = ROOMS.iter().map(|room| room.name).collect();
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files {
        let module = module_of(file.strip_prefix(&root).unwrap());
        let Some(room) = module.first() else { continue };
        assert!(known.contains(room.as_str()), "{room} is a new room: add its line to ROOMS");
    }
}

#[test]
fn every_kind_of_breach_is_found() {
    let found = |file: &str, text: &str| breaches(Path::new(file), text).len();
    for (file, text) in [
        ("api/v1/runs.rs", "use crate::store::Page;"),
        ("api/mod.rs", "use crate::{domain::ids::RunId, engine, log::{Tail}};\n"),
        ("app/runs.rs", "fn f() { crate::engine::drive(1) }"),
        ("app/runs.rs", "use super::super::engine::Claim;"),
        ("app/mod.rs", "use super::engine;"),
        ("app/mod.rs", "mod probes { use super::super::engine; }"),
        ("app/mod.rs", "pub mod tests;"),
        ("app/mod.rs", "#[cfg(test)] mod tests { use crate::engine; } use crate::engine;"),
        ("app/mod.rs", "use super::{self, engine::Slots as S};"),
        ("domain/run.rs", "use crate::clock::Clock;"),
        ("domain/run.rs", "use tokio::sync::Mutex;"),
        ("engine/mod.rs", "use crate::app;"),
        ("models/mod.rs", "type X = Vec<crate::log::Tail>;"),
        ("log/mod.rs", "use sqlx::Row;"),
        ("log/mod.rs", "#[derive(::sqlx::FromRow)] struct X;"),
        ("app/mod.rs", "use axum;"),
        ("store/mod.rs", "use std::{fmt, env};"),
        ("server.rs", "let x = std::env::var(\"X\");"),
        ("main.rs", "use std::env::args;"),
        ("api/mod.rs", "use crate::config::Config;"),
        ("novelty/mod.rs", "use crate::domain::ids;"),
    ] {
        assert!(found(file, text) > 0, "not found in {file}: {text}");
    }
    assert_eq!(found("api/mod.rs", "use crate::{store, engine, app, log};"), 3);
}

#[test]
fn what_is_allowed_is_not_held_for_a_breach() {
    for (file, text) in [
        ("api/mod.rs", "use crate::{app, domain::ids, clock::Clock, shutdown, api::error};"),
        ("api/mod.rs", "pub(crate) fn f() {} pub(in crate::api) fn g() {}"),
        ("api/mod.rs", "//! See [`crate::store`].\n/* use crate::store; /* */ use crate::log; */"),
        ("api/mod.rs", "const X: &str = \"crate::store\"; const Y: &str = r#\"\" crate::log \"#;"),
        ("api/mod.rs", "fn f<'a>(x: &'a str) { let c = '\"'; let d = '\\''; } // crate::store"),
        ("api/v1/runs.rs", "use super::super::error; use super::agents; use self::body::X;"),
        ("api/mod.rs", "mod inner { use super::*; mod deeper { use super::super::sse; } }"),
        ("api/mod.rs", "fn f() { if x { y } } mod inner { use super::store; }"),
        ("api/mod.rs", "#[cfg(test)]\nmod tests { use crate::store; use std::env; }"),
        ("api/tests/down.rs", "use crate::store::Store;"),
        ("store/mod.rs", "use sqlx::{Row, query}; #[derive(sqlx::FromRow)] struct X;"),
        ("config/mod.rs", "let x = std::env::var_os(name);"),
        ("app/mod.rs", "const V: &str = env!(\"CARGO_PKG_VERSION\"); use crate::store::axum;"),
        ("server.rs", "use crate::{engine, app, api, store, config, telemetry}; use axum::Router;"),
        ("main.rs", "use stepwell::server;"),
    ] {
        let wrong = breaches(Path::new(file), text);
        assert!(wrong.is_empty(), "{file}: {text}\n{}", wrong.join("\n"));
    }
}

#[test]
fn a_breach_says_where_it_is_and_what_is_allowed() {
    let wrong = breaches(Path::new("api/sse.rs"), "\n\nuse crate::log::Tail;\n");
    assert_eq!(
        wrong,
        [
            "src/api/sse.rs:3: api may not use log (crate::log::Tail); it may use domain, app, clock, \
          shutdown: if it needs more, a use case is missing in app"
        ]
    );
}

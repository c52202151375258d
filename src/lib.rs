//! Stepwell: a server that runs AI agents behind a durable REST + SSE API.
//!
//! A run is a log. The tour, in reading order (`ARCHITECTURE.md` has the map and the invariants):
//!
//! 1. [`domain`]: the words and every rule about them, pure. Begin with `event`, `fold`, `decide`.
//! 2. [`store`]: the memory: one trait over Postgres and SQLite, the only place with SQL.
//! 3. [`log`]: the run log: group commit, lanes, guests, tails, cursors.
//! 4. [`engine`]: the heartbeat: claims runs and drives them: decide → act → append.
//! 5. [`models`] and [`tools`]: who thinks, and who acts; [`egress`]: the gate that tools go through.
//! 6. [`app`]: what one can ask for, whatever the protocol.
//! 7. [`api`]: our HTTP API and its description.
//! 8. [`config`], [`cli`], [`telemetry`], [`server`]: settings, the command line, the log on stderr, and
//!    the composition root.
//! 9. [`clock`] and [`shutdown`]: time, ids and randomness; tracked tasks.

pub mod api;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod egress;
pub mod engine;
pub mod log;
pub mod models;
pub mod server;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod tools;

//! THE WORDS. What an agent, a run, an event and a step are, and every rule about them.
//!
//! This room is pure: no async, no I/O, no clock, no randomness, no database and no HTTP. Time comes
//! in as an argument. v1's JSON *is* these types: what is serialised here is what clients read.
//!
//! Reading order: [`ids`], [`time`], [`money`] and [`usage`] are the small change; [`agent`], [`tool`],
//! [`message`], [`run`] and [`event`] are the resources; [`plan`] is what a run was told to do,
//! [`fold`] turns a log back into a state, [`decide`] says what comes next, and [`mod@write`] says which
//! events a decision leaves behind. [`answer`] does both for what people say, [`family`] is what a run
//! and those that it calls are to each other, and [`fork`] says what a new run takes over from another.
//! [`conversation`] is what is said over several runs, [`window`] how much of it a model sees, and
//! [`tokens`] how that is measured.
//! [`retention`] says how long all of it is kept, and [`egress`] where tools may reach. [`problem`] and
//! [`place`] say what is wrong with a document, and where.
//!
//! To add an event: add its struct and its line in [`event`], teach [`fold`] to read it (if it is a
//! fact), put an old sample of it in `tests/it/corpus`, and regenerate `openapi.yaml`.

pub mod agent;
pub mod answer;
pub mod conversation;
pub mod decide;
pub mod depth;
pub mod egress;
pub mod event;
pub mod family;
pub mod fold;
pub mod fork;
pub mod ids;
pub mod limits;
pub mod message;
pub mod model;
pub mod money;
pub mod overtaken;
pub mod page;
pub mod place;
pub mod plan;
pub mod problem;
pub mod retention;
pub mod retry;
pub mod run;
pub mod schema;
pub mod step;
pub mod time;
pub mod tokens;
pub mod tool;
pub mod transcript;
pub mod usage;
pub mod window;
pub mod write;

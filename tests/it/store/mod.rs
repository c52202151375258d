//! Every method of the store, on every database: the same sentences must be true of each.
//!
//! `differential` plays random operations on all of them at once and compares what they say;
//! `sqlite_only` has what only a file can do; `measure` prints figures when asked to.

mod actions;
mod agents;
mod appends;
mod conversations;
mod creations;
mod differential;
mod families;
pub mod fixtures;
mod following;
mod guests;
mod lists;
mod logs;
mod ownership;
mod retention;
mod runs;
mod sqlite_only;

//! Conversations: what is said over several runs.

pub mod history;

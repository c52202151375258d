//! The hot path in parts: `cargo bench --bench micro [-- FILTER]`.
//!
//! What a token costs on its way (decode, encode, journal, frame), and what a run costs when it is
//! read again (fold). For figures of the whole, see `benches/load`.

// Clippy takes what may panic for a test's only under these marks.
#[cfg(test)]
mod journal;
#[cfg(test)]
mod models;
#[cfg(test)]
#[expect(dead_code, reason = "tests use more of it")]
#[path = "../../tests/it/support/postgres.rs"]
mod postgres;
#[cfg(test)]
mod texts;

use criterion::{criterion_group, criterion_main};

criterion_group!(benches, texts::bench, models::bench, journal::bench);
criterion_main!(benches);

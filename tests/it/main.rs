//! One test binary for everything that needs more than one function.

// Clippy takes helpers for tests (which may unwrap) only under this mark.
#[cfg(test)]
mod cli;
#[cfg(test)]
mod house;

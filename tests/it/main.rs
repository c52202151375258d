//! One test binary for everything that needs more than one function.

// Clippy takes helpers for tests (which may unwrap) for tests only under this mark.
#[cfg(test)]
mod cli;
#[cfg(test)]
mod conversations;
#[cfg(test)]
mod corpus;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod domain;
#[cfg(test)]
mod edge;
#[cfg(test)]
mod engine;
#[cfg(test)]
mod family;
#[cfg(test)]
mod house;
#[cfg(test)]
mod mcp;
#[cfg(test)]
mod models;
#[cfg(test)]
mod nodes;
#[cfg(test)]
mod people;
#[cfg(test)]
mod poison;
#[cfg(test)]
mod runs;
#[cfg(test)]
mod store;
#[cfg(test)]
mod store_pg;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tools;

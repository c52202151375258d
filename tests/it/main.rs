//! One test binary for everything that needs more than one function.

mod domain;
mod house;
mod models;
mod runs;
mod store;
mod store_pg;
mod support;

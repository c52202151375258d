//! One test binary for everything that needs more than one function.

mod domain;
mod house;
mod store_pg;
mod support;

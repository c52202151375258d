//! One test binary for everything that needs more than one function.

mod models;
mod support;

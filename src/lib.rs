//! Stepwell: a server that runs AI agents behind a durable REST + SSE API.

pub mod api;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod engine;
pub mod log;
pub mod models;
pub mod server;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod tools;

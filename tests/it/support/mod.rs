//! What tests stand on.

pub mod client;
pub mod databases;
pub mod model_server;
pub mod postgres;
pub mod server;

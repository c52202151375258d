//! What tests stand on.

pub mod model_server;

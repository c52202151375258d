//! The binary: reads the command line and does what it says.

use std::process::ExitCode;

use stepwell::cli::{self, Commands, Failure};
use stepwell::config::Config;
use stepwell::{api, server};
use utoipa::openapi::OpenApi;

/// What the commands do, out of the rooms of the crate.
struct Stepwell;

impl Commands for Stepwell {
    async fn serve(&self, config: Config) -> Result<(), Failure> {
        Ok(server::serve(config).await?)
    }

    async fn migrate(&self, config: Config) -> Result<(), Failure> {
        Ok(server::migrate(&config).await?)
    }

    fn openapi(&self) -> OpenApi {
        api::openapi::document()
    }
}

fn main() -> ExitCode {
    cli::run(&Stepwell)
}

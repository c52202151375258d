//! Single settings as flags and as `STEPWELL_*` variables. Clap reads both; the flag wins.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use serde::Deserialize;

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

/// The settings that can be given as a flag or as a variable. The environment's values are never
/// shown in `--help`: an address of a database may hold a password.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Settings (flag, then variable, then stepwell.yaml, then default)")]
pub struct Flags {
    /// The file with providers, agents and everything else [default: ./stepwell.yaml, if it is there]
    #[arg(long, env = "STEPWELL_CONFIG", hide_env_values = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Address and port to listen on; other than loopback needs STEPWELL_ADMIN_KEY
    /// [default: 127.0.0.1:8080] [file: listen]
    #[arg(long, env = "STEPWELL_LISTEN", hide_env_values = true, value_name = "ADDRESS")]
    pub listen: Option<String>,

    /// sqlite://FILE or postgres://USER:PASSWORD@HOST/NAME
    /// [default: sqlite://stepwell.db] [file: database_url]
    #[arg(long, env = "STEPWELL_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,

    /// What links in answers begin with: the address that clients know the server by
    /// [default: none, links are paths] [file: public_url]
    #[arg(long, env = "STEPWELL_PUBLIC_URL", hide_env_values = true, value_name = "URL")]
    pub public_url: Option<String>,

    /// Runs that this process drives at once; 0 serves the API only
    /// [default: 1000] [file: engine.max_concurrent_runs]
    #[arg(long, env = "STEPWELL_MAX_CONCURRENT_RUNS", hide_env_values = true, value_name = "N")]
    pub max_concurrent_runs: Option<usize>,

    /// The provider of model names without one
    /// [default: the only one configured] [file: default_provider]
    #[arg(long, env = "STEPWELL_DEFAULT_PROVIDER", hide_env_values = true, value_name = "NAME")]
    pub default_provider: Option<String>,

    /// Origins that browsers may call from, separated by commas; * for all
    /// [default: none] [file: cors.allow_origins]
    #[arg(
        long,
        env = "STEPWELL_CORS_ALLOW_ORIGINS",
        hide_env_values = true,
        value_name = "ORIGINS",
        value_delimiter = ','
    )]
    pub cors_allow_origins: Vec<String>,

    /// Start even if the database may lose what it has confirmed (fsync or synchronous_commit off)
    /// [default: false] [file: unsafe_durability]
    #[arg(
        long,
        env = "STEPWELL_UNSAFE_DURABILITY",
        hide_env_values = true,
        value_parser = BoolishValueParser::new()
    )]
    pub unsafe_durability: bool,

    /// Level of the log (error, warn, info, debug, trace) or directives like info,stepwell::engine=debug
    /// [default: info] [file: log.level]
    #[arg(long, env = "STEPWELL_LOG", hide_env_values = true, value_name = "LEVEL")]
    pub log: Option<String>,

    /// How the log is written
    /// [default: pretty on a terminal, else json] [file: log.format]
    #[arg(long, env = "STEPWELL_LOG_FORMAT", hide_env_values = true, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

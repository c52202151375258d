//! `stepwell.yaml` as it is written. An unknown key is an error everywhere in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::domain::agent::AgentSettings;
use crate::domain::ids::AgentId;

use super::edge::EdgeSection;
use super::outbound::{EgressSection, SecretSection};
use super::{ConfigError, LogFormat};

/// The whole file. Every key may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    pub(super) listen: Option<String>,
    pub(super) database_url: Option<String>,
    pub(super) public_url: Option<String>,
    pub(super) engine: Engine,
    pub(super) default_provider: Option<String>,
    pub(super) providers: BTreeMap<String, Provider>,
    pub(super) agents: BTreeMap<AgentId, AgentSettings>,
    pub(super) cors: Cors,
    pub(super) edge: EdgeSection,
    pub(super) egress: EgressSection,
    pub(super) secrets: BTreeMap<String, SecretSection>,
    pub(super) unsafe_durability: Option<bool>,
    pub(super) log: Log,
    pub(super) retention: Retention,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Engine {
    pub max_concurrent_runs: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Cors {
    pub allow_origins: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub format: Option<LogFormat>,
    pub level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Retention {
    pub run_days: Option<u32>,
    pub delta_days: Option<u32>,
}

/// One provider. What is left out depends on its name: see `providers.rs`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Provider {
    pub kind: Option<crate::models::Wire>,
    pub base_url: Option<String>,
    pub api_key_env: Option<String>,
    pub context_tokens: Option<u64>,
    pub prices: BTreeMap<String, Prices>,
    pub timeouts: Timeouts,
}

/// What a model costs, in US dollars for a million tokens.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Prices {
    pub input_usd_per_million: f64,
    #[serde(default)]
    pub cached_input_usd_per_million: Option<f64>,
    pub output_usd_per_million: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Timeouts {
    pub connect_seconds: Option<u64>,
    pub first_token_seconds: Option<u64>,
    pub idle_seconds: Option<u64>,
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or [`File::parse`] refuses it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Reads the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// It is no YAML, or has a key that does not exist, or a value of the wrong type.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        // No excerpt of the file in the message: the line beside the mistake may hold a password.
        let options = serde_saphyr::options! { with_snippet: false };
        serde_saphyr::from_str_with_options::<Option<Self>>(text, options)
            .map(Option::unwrap_or_default)
            .map_err(|e| ConfigError::Yaml { path: PathBuf::from(path), message: e.to_string() })
    }
}

//! The one reader of the environment, of flags and of `stepwell.yaml`. What comes out is typed and
//! checked, and its secrets do not show in `{:?}`.
//!
//! A setting comes from, in this order: its flag, its `STEPWELL_*` variable, `stepwell.yaml`, its
//! default. Whole tables (providers, agents, secrets) are in the file only. Keys of providers, secrets and
//! the admin key are in the environment only, so that the file can be committed.
//!
//! What this room must never do: let an unknown or senseless setting pass, print a secret, or be read
//! anywhere but in `cli` and `server`: every other room gets what it needs as an argument.
//!
//! To add a setting: its field in [`file`](self) (`file.rs`), its flag in [`Flags`] if it is a single
//! value, its field in [`Config`] with the check in [`Config::resolve`], a line in the README's table.

mod address;
mod demo;
mod edge;
mod file;
mod flags;
mod inherited;
mod outbound;
mod providers;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::domain::agent::AgentSettings;
use crate::domain::egress::{Destinations, Outbound};
use crate::domain::ids::{AgentId, WorkspaceId};
use crate::domain::model::{BUILTIN, Catalogue, ProviderFacts};
use crate::domain::retention::Retention;
use crate::egress::Secrets;
use crate::models::ProviderSettings;

pub use address::DatabaseUrl;
pub use demo::DEMO;
pub use edge::Edge;
pub use file::File;
pub use flags::{Flags, LogFormat};
pub use inherited::{Inherited, program};

/// Where the server listens when nobody says otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8080";
/// Where it keeps everything when nobody says otherwise.
pub const DEFAULT_DATABASE_URL: &str = "sqlite://stepwell.db";
/// Runs that one node drives at once when nobody says otherwise.
pub const DEFAULT_MAX_CONCURRENT_RUNS: usize = 1_000;
/// Days that logs are kept when nobody says otherwise.
pub const DEFAULT_RETENTION_DAYS: u32 = 30;
/// The file that is read when no other is named, if it is there.
pub const DEFAULT_FILE: &str = "stepwell.yaml";
/// The variable with the admin key.
pub const ADMIN_KEY: &str = "STEPWELL_ADMIN_KEY";

/// Characters that an admin key has at least: 32 of base64 are 192 bits.
const MIN_ADMIN_KEY: usize = 32;
/// Slots beyond which the number is a mistake: each slot is memory and, while a model talks, a socket.
const MAX_CONCURRENT_RUNS: usize = 1_000_000;
/// Days beyond which a retention is a mistake (100 years).
const MAX_RETENTION_DAYS: u32 = 36_500;

/// Why the settings cannot be used. The text names the setting and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no YAML, or has a key that does not exist, or a value of the wrong type.
    #[error("{}: {message}", path.display())]
    Yaml {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with line and column.
        message: String,
    },
    /// A value makes no sense.
    #[error("{setting}: {message}")]
    Invalid {
        /// The setting, as it is called in the file or in the environment.
        setting: String,
        /// What is wrong and what would be right.
        message: String,
    },
}

fn invalid(setting: impl Into<String>, message: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { setting: setting.into(), message: message.into() }
}

/// How the log is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// JSON lines or text for people.
    pub format: LogFormat,
    /// A level, or directives of `tracing`'s `EnvFilter`.
    pub filter: String,
    /// Whether colours make sense where it goes.
    pub colours: bool,
}

/// Everything that an operator can say, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The database. Its `{:?}` and `{}` leave the password out.
    pub database_url: DatabaseUrl,
    /// What links in answers begin with, without a slash at the end.
    pub public_url: Option<String>,
    /// The key that may do everything. `None` is possible on a loopback address only: the API is open.
    pub admin_key: Option<SecretString>,
    /// Runs that this node drives at once; 0 makes a node that only serves the API.
    pub max_concurrent_runs: usize,
    /// The provider of bare model names.
    pub default_provider: Option<String>,
    /// Origins that browsers may call from; empty turns CORS off, `*` allows all.
    pub cors_allow_origins: Vec<String>,
    /// Start even on a database that may lose what it has confirmed.
    pub unsafe_durability: bool,
    /// What clients may take.
    pub edge: Edge,
    /// How the log is written.
    pub log: LogConfig,
    /// How long logs are kept.
    pub retention: Retention,
    /// What tools may reach.
    pub destinations: Destinations,
    /// What tools may send in their headers.
    pub secrets: Secrets,
    /// The agents that the file declares, checked, and `demo`, in the order of their ids.
    pub agents: Vec<(AgentId, AgentSettings)>,
    /// What is odd, but no reason not to start; to be logged.
    pub warnings: Vec<String>,
    /// What a process for a single run must be told to find the same settings.
    pub inherited: Inherited,
    providers: Vec<ProviderSettings>,
    catalogue: Catalogue,
}

/// What the process finds around it. Tests bring their own.
pub struct Surroundings<'a> {
    /// Reads one variable of the environment.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    /// Whether somebody is looking at the log.
    pub is_terminal: bool,
}

impl Surroundings<'_> {
    /// A variable as text: without white space around it, and `None` when nothing is left.
    fn text(&self, name: &str) -> Result<Option<String>, ConfigError> {
        let Some(value) = (self.env)(name) else { return Ok(None) };
        let text = value.to_str().ok_or_else(|| invalid(name, "is not valid UTF-8"))?.trim();
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }
}

impl Config {
    /// Reads the file that `flags` name (or `./stepwell.yaml` if it is there) and the environment.
    ///
    /// # Errors
    /// The first thing that is wrong, in words for the operator.
    pub fn load(flags: Flags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => File::read(path)?,
            None if Path::new(DEFAULT_FILE).exists() => File::read(Path::new(DEFAULT_FILE))?,
            None => File::default(),
        };
        let env = |name: &str| std::env::var_os(name);
        let is_terminal = std::io::stderr().is_terminal();
        Self::resolve(flags, file, &Surroundings { env: &env, is_terminal })
    }

    /// Puts flags (which hold the environment's `STEPWELL_*` already), file and defaults together.
    ///
    /// # Errors
    /// The first thing that is wrong, in words for the operator.
    pub fn resolve(
        flags: Flags,
        file: File,
        around: &Surroundings<'_>,
    ) -> Result<Self, ConfigError> {
        let inherited = Inherited::of(&flags);
        let listen = address::listen(&given(flags.listen, file.listen, DEFAULT_LISTEN))?;
        let admin_key = admin_key(around, listen)?;
        let database_url = DatabaseUrl::parse(&given(
            flags.database_url,
            file.database_url,
            DEFAULT_DATABASE_URL,
        ))?;
        let public_url = present(flags.public_url)
            .or(file.public_url)
            .map(|u| address::public_url(&u))
            .transpose()?;

        let mut warnings = Vec::new();
        let (providers, mut catalogue) = providers::read(file.providers, around, &mut warnings)?;
        catalogue.default_provider = present(flags.default_provider).or(file.default_provider);
        check_default_provider(&catalogue)?;
        let destinations = outbound::destinations(&file.egress)?;
        let secrets = outbound::secrets(file.secrets, around)?;
        let outbound =
            Outbound { destinations: destinations.clone(), secrets: secrets.rules().clone() };
        let agents = agents(file.agents, &catalogue, &outbound)?;

        let max_concurrent_runs = flags
            .max_concurrent_runs
            .or(file.engine.max_concurrent_runs)
            .unwrap_or(DEFAULT_MAX_CONCURRENT_RUNS);
        if max_concurrent_runs > MAX_CONCURRENT_RUNS {
            return Err(invalid("engine.max_concurrent_runs", "must be 0 to 1000000"));
        }
        let origins = if flags.cors_allow_origins.iter().all(|o| o.trim().is_empty()) {
            file.cors.allow_origins
        } else {
            flags.cors_allow_origins
        };
        let default_format = if around.is_terminal { LogFormat::Pretty } else { LogFormat::Json };
        let no_color = around.text("NO_COLOR")?.is_some();
        Ok(Self {
            listen,
            database_url,
            public_url,
            admin_key,
            max_concurrent_runs,
            default_provider: catalogue.default_provider.clone(),
            cors_allow_origins: address::origins(&origins)?,
            unsafe_durability: flags.unsafe_durability
                || file.unsafe_durability.unwrap_or_default(),
            edge: file.edge.resolve()?,
            log: LogConfig {
                format: flags.log_format.or(file.log.format).unwrap_or(default_format),
                filter: given(flags.log, file.log.level, "info"),
                colours: around.is_terminal && !no_color,
            },
            retention: Retention {
                run_days: days("retention.run_days", file.retention.run_days)?,
                delta_days: days("retention.delta_days", file.retention.delta_days)?,
            },
            destinations,
            secrets,
            agents,
            warnings,
            inherited,
            providers,
            catalogue,
        })
    }

    /// What the domain knows of the providers: names, prices, sizes; no keys and no addresses.
    pub fn catalogue(&self) -> Catalogue {
        self.catalogue.clone()
    }

    /// What the domain knows of where tools may reach, and of the secrets; no values.
    pub fn outbound(&self) -> Outbound {
        let (destinations, secrets) = (self.destinations.clone(), self.secrets.rules().clone());
        Outbound { destinations, secrets }
    }

    /// The providers to call, in the order of their names; without `builtin`, which is not called.
    pub fn providers(&self) -> &[ProviderSettings] {
        &self.providers
    }
}

/// A flag or variable that says something: an empty one is as good as none.
fn present(flag: Option<String>) -> Option<String> {
    flag.map(|f| f.trim().to_owned()).filter(|f| !f.is_empty())
}

fn given(flag: Option<String>, file: Option<String>, default: &str) -> String {
    present(flag).or(file).unwrap_or_else(|| default.to_owned())
}

fn days(setting: &str, value: Option<u32>) -> Result<u32, ConfigError> {
    let days = value.unwrap_or(DEFAULT_RETENTION_DAYS);
    if (1..=MAX_RETENTION_DAYS).contains(&days) {
        Ok(days)
    } else {
        Err(invalid(setting, "must be 1 to 36500 days"))
    }
}

fn admin_key(
    around: &Surroundings<'_>,
    listen: SocketAddr,
) -> Result<Option<SecretString>, ConfigError> {
    let key = around.text(ADMIN_KEY)?.map(SecretString::from);
    let Some(key) = key else {
        if listen.ip().to_canonical().is_loopback() {
            return Ok(None);
        }
        return Err(invalid(
            "listen",
            format!(
                "{listen} can be reached from other machines, so a key is needed: set {ADMIN_KEY} \
                 to at least 32 random characters (openssl rand -hex 32), or listen on \
                 {DEFAULT_LISTEN}"
            ),
        ));
    };
    let text = key.expose_secret();
    if text.chars().count() < MIN_ADMIN_KEY {
        return Err(invalid(
            ADMIN_KEY,
            "must have at least 32 characters; make one with: openssl rand -hex 32",
        ));
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(invalid(
            ADMIN_KEY,
            "must be visible ASCII without spaces, since it travels in a header",
        ));
    }
    Ok(Some(key))
}

fn check_default_provider(catalogue: &Catalogue) -> Result<(), ConfigError> {
    let Some(name) = &catalogue.default_provider else { return Ok(()) };
    if name != BUILTIN && catalogue.providers.contains_key(name) {
        return Ok(());
    }
    let known: Vec<&str> =
        catalogue.providers.keys().map(String::as_str).filter(|n| *n != BUILTIN).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Err(invalid("default_provider", format!("{name:?} is not configured; configured: {known}")))
}

fn agents(
    declared: BTreeMap<AgentId, AgentSettings>,
    catalogue: &Catalogue,
    outbound: &Outbound,
) -> Result<Vec<(AgentId, AgentSettings)>, ConfigError> {
    let mut agents = declared;
    demo::add(&mut agents);
    for (agent_id, settings) in &mut agents {
        settings
            .check(catalogue)
            .map_err(|problems| invalid(format!("agents.{agent_id}"), problems.to_string()))?;
        let mut found = settings.check_outbound(outbound, WorkspaceId::DEFAULT);
        found.destinations.extend(found.secrets);
        found
            .destinations
            .into_result()
            .map_err(|problems| invalid(format!("agents.{agent_id}"), problems.to_string()))?;
    }
    Ok(agents.into_iter().collect())
}

/// A catalogue that knows `builtin` only.
fn bare_catalogue() -> Catalogue {
    let providers = BTreeMap::from([(BUILTIN.to_owned(), ProviderFacts::default())]);
    Catalogue { default_provider: None, providers }
}

/// A number of seconds as a duration.
fn seconds(setting: &str, value: Option<u64>, default: u64) -> Result<Duration, ConfigError> {
    match value.unwrap_or(default) {
        seconds @ 1..=3_600 => Ok(Duration::from_secs(seconds)),
        _ => Err(invalid(setting, "must be 1 to 3600 seconds")),
    }
}

//! Addresses of all kinds, checked.

use std::fmt;
use std::net::SocketAddr;

use secrecy::{ExposeSecret, SecretString};

use super::{ConfigError, DEFAULT_LISTEN, invalid};

/// Where the database is. Its text may hold a password, so only [`DatabaseUrl::expose`] shows it.
#[derive(Clone)]
pub struct DatabaseUrl(SecretString);

impl DatabaseUrl {
    /// Checks the scheme; everything else is the driver's to judge.
    ///
    /// # Errors
    /// The scheme is neither SQLite's nor Postgres'.
    pub fn parse(url: &str) -> Result<Self, ConfigError> {
        let known = ["sqlite:", "postgres://", "postgresql://"];
        if known.iter().any(|scheme| url.starts_with(scheme)) {
            return Ok(Self(SecretString::from(url)));
        }
        Err(invalid(
            "database_url",
            "must begin with sqlite:// or postgres://, for example sqlite://stepwell.db",
        ))
    }

    /// The whole address, with its password: for the driver only.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.expose();
        // Parameters can hold a password too (?password=…).
        let url = url.split_once('?').map_or(url, |(address, _)| address);
        match url.split_once("://") {
            Some((scheme, rest)) => match rest.rsplit_once('@') {
                Some((_, host)) => write!(f, "{scheme}://***@{host}"),
                None => f.write_str(url),
            },
            None => f.write_str(url),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

/// An address to listen on.
pub(super) fn listen(text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| {
        invalid(
            "listen",
            format!("{text:?} is no IP address with a port, for example {DEFAULT_LISTEN}"),
        )
    })
}

/// The address that clients know the server by, without a slash at the end.
pub(super) fn public_url(text: &str) -> Result<String, ConfigError> {
    web("public_url", text)
}

/// An `http` or `https` address without query, fragment and user, without a slash at the end.
pub(super) fn web(setting: &str, text: &str) -> Result<String, ConfigError> {
    if text.contains('?') {
        return Err(invalid(setting, "must not have a query"));
    }
    provider(setting, text).map(|url| url.trim_end_matches('/').to_owned())
}

/// An `http` or `https` address without fragment and user. Gateways may want a query in it.
pub(super) fn provider(setting: &str, text: &str) -> Result<String, ConfigError> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let host = rest.and_then(|r| r.split(['/', '?']).next()).unwrap_or_default();
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '#' | '\\');
    if host.is_empty() || host.starts_with(':') || text.contains(odd) {
        return Err(invalid(setting, "must be an address like https://agents.example.com"));
    }
    if host.contains('@') {
        return Err(invalid(setting, "must not hold a user or a password"));
    }
    Ok(text.to_owned())
}

/// Origins that browsers may call from.
pub(super) fn origins(texts: &[String]) -> Result<Vec<String>, ConfigError> {
    let setting = "cors.allow_origins";
    texts
        .iter()
        .map(|text| text.trim())
        .filter(|text| !text.is_empty())
        .map(|text| {
            let origin = if text == "*" { text.to_owned() } else { web(setting, text)? };
            if origin.matches('/').count() > 2 {
                return Err(invalid(
                    setting,
                    format!("{text:?} is no origin: scheme, host and port only"),
                ));
            }
            // Browsers send origins in lower case, and compare them to the letter.
            Ok(origin.to_ascii_lowercase())
        })
        .collect()
}

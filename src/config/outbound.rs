//! Where tools may reach, and the secrets that they may send.

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde::Deserialize;
use url::Host;

use crate::domain::egress::{Destinations, SecretFacts, is_secret_name};
use crate::domain::ids::WorkspaceId;
use crate::egress::{Secret, Secrets};

use super::{ConfigError, Surroundings, invalid};

/// Characters that a secret has at least: answers are searched for it, and a shorter one would be
/// found in words that have nothing to do with it.
const MIN_SECRET: usize = 8;
/// Bytes that one has at most: it goes into a header.
const MAX_SECRET: usize = 8_192;
/// The one workspace that is there.
const DEFAULT_WORKSPACE: &str = "default";

/// The section `egress` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EgressSection {
    allow: Vec<String>,
}

/// One entry of the section `secrets`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SecretSection {
    env: String,
    hosts: Vec<String>,
    #[serde(default = "default_workspaces")]
    workspaces: Vec<String>,
}

fn default_workspaces() -> Vec<String> {
    vec![DEFAULT_WORKSPACE.to_owned()]
}

pub(super) fn destinations(section: &EgressSection) -> Result<Destinations, ConfigError> {
    Destinations::opening(&section.allow).map_err(|(entry, why)| {
        let example = "for example tools.internal, 10.1.2.3 or 10.1.0.0/16";
        invalid("egress.allow", format!("{entry:?} {why}: {example}"))
    })
}

pub(super) fn secrets(
    declared: BTreeMap<String, SecretSection>,
    around: &Surroundings<'_>,
) -> Result<Secrets, ConfigError> {
    let read = declared.into_iter().map(|(name, section)| one(name, section, around));
    Ok(Secrets::new(read.collect::<Result<_, _>>()?))
}

fn one(
    name: String,
    section: SecretSection,
    around: &Surroundings<'_>,
) -> Result<Secret, ConfigError> {
    let at = format!("secrets.{name}");
    if !is_secret_name(&name) {
        return Err(invalid(at, "a secret's name has 1 to 64 of a-z, A-Z, 0-9, _ and -"));
    }
    let SecretSection { env, hosts, workspaces } = section;
    let Some(value) = around.text(&env)? else {
        return Err(invalid(
            format!("{at}.env"),
            format!("the environment variable {env} is not set, and tools may need this secret"),
        ));
    };
    if !value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(invalid(env, "must be printable ASCII, since it travels in a header"));
    }
    if !(MIN_SECRET..=MAX_SECRET).contains(&value.len()) {
        return Err(invalid(
            env,
            "must have 8 to 8192 characters: shorter ones could not be told apart from other text",
        ));
    }
    if hosts.is_empty() {
        let message = "is missing: the hosts that it may be sent to, for example [crm.example.com]";
        return Err(invalid(format!("{at}.hosts"), message));
    }
    let hosts = hosts.iter().map(|entry| host(&at, entry)).collect::<Result<_, _>>()?;
    let workspaces =
        workspaces.iter().map(|entry| workspace(&at, entry)).collect::<Result<_, _>>()?;
    let facts = SecretFacts { hosts, workspaces };
    Ok(Secret { name, facts, value: SecretString::from(value) })
}

/// A host as URLs spell it: in lower case, international names in ASCII.
fn host(at: &str, entry: &str) -> Result<String, ConfigError> {
    match Host::parse(entry) {
        Ok(host) if !entry.contains('*') => Ok(host.to_string()),
        _ => Err(invalid(format!("{at}.hosts"), format!("{entry:?} is no host name"))),
    }
}

fn workspace(at: &str, entry: &str) -> Result<WorkspaceId, ConfigError> {
    if entry == DEFAULT_WORKSPACE {
        Ok(WorkspaceId::DEFAULT)
    } else {
        let message = format!("there is no workspace {entry:?}: this version has only default");
        Err(invalid(format!("{at}.workspaces"), message))
    }
}

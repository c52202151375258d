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

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use url::Url;

    use super::*;

    fn read(yaml: &str) -> Result<Secrets, String> {
        let declared: BTreeMap<String, SecretSection> = serde_saphyr::from_str(yaml).unwrap();
        let env = |name: &str| match name {
            "TOKEN" => Some(OsString::from(" a-long-token \n")),
            "SHORT" => Some(OsString::from("short")),
            "LINES" => Some(OsString::from("two lines\nHost: evil")),
            _ => None,
        };
        let around = Surroundings { env: &env, is_terminal: false };
        secrets(declared, &around).map_err(|error| error.to_string())
    }

    #[test]
    fn a_secret_is_read_from_the_environment_and_bound_to_its_hosts() {
        let secrets =
            read("CRM: { env: TOKEN, hosts: [CRM.example.com, \"10.0.0.1\", bücher.example] }")
                .unwrap();
        let facts = &secrets.rules().0["CRM"];
        assert_eq!(facts.hosts, ["crm.example.com", "10.0.0.1", "xn--bcher-kva.example"]);
        assert_eq!(facts.workspaces, [WorkspaceId::DEFAULT]);
        let header = BTreeMap::from([("X".to_owned(), "${secret.CRM}".to_owned())]);
        let url = Url::parse("https://crm.example.com/").unwrap();
        let headers = secrets.headers(&header, &url, WorkspaceId::DEFAULT).unwrap();
        assert_eq!(headers["x"], "a-long-token");
    }

    #[test]
    fn what_is_wrong_with_a_secret_is_said_without_its_value() {
        for (yaml, says) in [
            (
                "A: { env: NOBODY, hosts: [h] }",
                "secrets.A.env: the environment variable NOBODY is not set",
            ),
            ("A: { env: SHORT, hosts: [h] }", "SHORT: must have 8 to 8192 characters"),
            ("A: { env: LINES, hosts: [h] }", "LINES: must be printable ASCII"),
            ("A: { env: TOKEN, hosts: [] }", "secrets.A.hosts: is missing"),
            ("A: { env: TOKEN, hosts: [\"*.h\"] }", "secrets.A.hosts: \"*.h\" is no host name"),
            (
                "A: { env: TOKEN, hosts: [h], workspaces: [x] }",
                "secrets.A.workspaces: there is no workspace",
            ),
            ("a b: { env: TOKEN, hosts: [h] }", "secrets.a b: a secret's name has"),
        ] {
            let error = read(yaml).err().unwrap();
            assert!(error.starts_with(says), "{error}");
            assert!(!error.contains("evil"), "{error}");
        }
    }

    #[test]
    fn what_is_opened_is_a_host_an_address_or_a_network() {
        let allow = |entry: &str| {
            let section = EgressSection { allow: vec![entry.to_owned()] };
            destinations(&section).map_err(|error| error.to_string())
        };
        for entry in ["tools.internal", "10.1.2.3", "10.1.0.0/16", "::1", "fd00::/8"] {
            assert!(allow(entry).is_ok(), "{entry}");
        }
        let error = allow("10.1.2.3/16").unwrap_err();
        assert!(error.starts_with("egress.allow: \"10.1.2.3/16\" has bits set"), "{error}");
    }
}

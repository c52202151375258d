//! The operator's secrets with their values: put into headers here, and taken out of answers.

use std::collections::BTreeMap;
use std::fmt;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use url::Url;

use crate::domain::egress::{SecretFacts, SecretRefused, SecretRules};
use crate::domain::ids::WorkspaceId;
use crate::domain::tool::{HeaderPart, header_parts};

/// One secret.
#[derive(Clone)]
pub struct Secret {
    /// What `${secret.NAME}` calls it.
    pub name: String,
    /// Whom it is for.
    pub facts: SecretFacts,
    /// What it is.
    pub value: SecretString,
}

/// All secrets of this server. Their `{:?}` shows names only.
#[derive(Clone, Default)]
pub struct Secrets {
    rules: SecretRules,
    values: BTreeMap<String, SecretString>,
    /// All spellings that are looked for in answers, with the secret's name. A secret that is part of
    /// another comes behind it.
    spellings: Vec<(SecretString, String)>,
}

/// Why headers could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A secret may not be sent there.
    #[error(transparent)]
    Secret(#[from] SecretRefused),
    /// A name or a value is none that can be sent; which was checked when its tool was stored.
    #[error("the header {0} cannot be sent")]
    Header(String),
}

impl Secrets {
    /// These secrets.
    pub fn new(secrets: Vec<Secret>) -> Self {
        let mut all = Self::default();
        for Secret { name, facts, value } in secrets {
            for spelling in spellings(value.expose_secret()) {
                all.spellings.push((spelling.into(), name.clone()));
            }
            all.rules.0.insert(name.clone(), facts);
            all.values.insert(name, value);
        }
        all.spellings.sort_by_key(|(text, _)| std::cmp::Reverse(text.expose_secret().len()));
        all
    }

    /// Whom they are for.
    pub const fn rules(&self) -> &SecretRules {
        &self.rules
    }

    /// The headers of a tool, for a request of this workspace to this URL.
    ///
    /// # Errors
    /// A secret is not for that host or not for that workspace; or something is no header.
    pub fn headers(
        &self,
        templates: &BTreeMap<String, String>,
        url: &Url,
        workspace_id: WorkspaceId,
    ) -> Result<HeaderMap, HeaderError> {
        let mut headers = HeaderMap::with_capacity(templates.len());
        for (name, template) in templates {
            let wrong = || HeaderError::Header(name.clone());
            let mut text = String::new();
            let mut is_secret = false;
            for part in header_parts(template).map_err(|_| wrong())? {
                match part {
                    HeaderPart::Text(part) => text.push_str(part),
                    HeaderPart::Secret(secret) => {
                        let host = url.host_str().unwrap_or_default();
                        self.rules.check(secret, host, workspace_id)?;
                        let value = self.values.get(secret).ok_or_else(wrong)?;
                        text.push_str(value.expose_secret());
                        is_secret = true;
                    }
                }
            }
            let header: HeaderName = name.parse().map_err(|_| wrong())?;
            let mut value = HeaderValue::from_str(&text).map_err(|_| wrong())?;
            value.set_sensitive(is_secret);
            headers.insert(header, value);
        }
        Ok(headers)
    }

    /// The text with `[secret NAME]` in place of every secret: servers echo what they were sent. It
    /// knows a secret as it is, JSON-escaped and percent-encoded; a server that hides it better could
    /// have kept it as well.
    pub fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (spelling, name) in &self.spellings {
            if text.contains(spelling.expose_secret()) {
                text = text.replace(spelling.expose_secret(), &format!("[secret {name}]"));
            }
        }
        text
    }

    /// The same for a text that was cut off somewhere: if that was in the middle of a secret, what is there
    /// of it goes too.
    pub fn redact_beginning(&self, text: &str) -> String {
        let mut text = self.redact(text);
        let begun = |(spelling, _): &(SecretString, String)| {
            let spelling = spelling.expose_secret();
            let is_there =
                |end: &usize| spelling.get(..*end).is_some_and(|part| text.ends_with(part));
            (1..spelling.len()).rev().find(is_there)
        };
        let begun = self.spellings.iter().filter_map(begun).max().unwrap_or_default();
        text.truncate(text.len() - begun);
        text
    }

    /// [`Secrets::redact`] for every text in a JSON value, names of fields included.
    pub fn redact_json(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.redact(&text)),
            Value::Array(values) => {
                Value::Array(values.into_iter().map(|value| self.redact_json(value)).collect())
            }
            Value::Object(fields) => {
                let redacted =
                    fields.into_iter().map(|(name, v)| (self.redact(&name), self.redact_json(v)));
                Value::Object(redacted.collect::<Map<_, _>>())
            }
            // A secret may be nothing but digits.
            Value::Number(number) => match self.redact(&number.to_string()) {
                redacted if redacted == number.to_string() => Value::Number(number),
                redacted => Value::String(redacted),
            },
            Value::Null | Value::Bool(_) => value,
        }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

/// How a secret may come back.
fn spellings(value: &str) -> Vec<String> {
    let in_json = Value::from(value).to_string();
    let in_json = in_json.trim_matches('"').to_owned();
    let slashes = in_json.replace('/', "\\/");
    let in_form: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
    let in_path = in_form.replace('+', "%20");
    let mut all = vec![value.to_owned(), in_json, slashes, in_form, in_path];
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const VALUE: &str = "pa/ss \"w0rd\"+x";

    fn secrets() -> Secrets {
        let facts = SecretFacts {
            hosts: vec!["crm.example.com".to_owned()],
            workspaces: vec![WorkspaceId::DEFAULT],
        };
        let secret = |name: &str, value: &str| Secret {
            name: name.to_owned(),
            facts: facts.clone(),
            value: value.into(),
        };
        Secrets::new(vec![
            secret("PART", "12345678"),
            secret("CRM", VALUE),
            secret("A", "x12345678x"),
        ])
    }

    #[test]
    fn a_secret_goes_to_its_hosts_only_and_only_for_its_workspaces() {
        let templates =
            BTreeMap::from([("Authorization".to_owned(), "Bearer ${secret.CRM}".to_owned())]);
        let headers = |url: &str, workspace| {
            secrets().headers(&templates, &Url::parse(url).unwrap(), workspace)
        };
        let sent = headers("https://CRM.example.com:8443/x", WorkspaceId::DEFAULT).unwrap();
        assert_eq!(sent["authorization"], format!("Bearer {VALUE}"));
        assert!(sent["authorization"].is_sensitive());
        for url in [
            "https://crm.example.com.evil.example/",
            "https://evil.example/",
            "https://example.com/",
        ] {
            let refused = headers(url, WorkspaceId::DEFAULT).unwrap_err();
            assert!(matches!(refused, HeaderError::Secret(SecretRefused::Host { .. })), "{url}");
        }
        let refused = headers("https://crm.example.com/", WorkspaceId(2)).unwrap_err();
        assert_eq!(refused, HeaderError::Secret(SecretRefused::Unknown("CRM".to_owned())));
    }

    #[test]
    fn what_comes_back_is_taken_out_in_every_usual_spelling() {
        let secrets = secrets();
        assert_eq!(secrets.redact(&format!("You sent {VALUE}.")), "You sent [secret CRM].");
        let echoed = json!({"headers": {"authorization": format!("Bearer {VALUE}")}});
        for text in [echoed.to_string(), echoed.to_string().replace('/', "\\/")] {
            let redacted = secrets.redact(&text);
            assert!(redacted.contains("Bearer [secret CRM]"), "{redacted}");
        }
        assert_eq!(secrets.redact("?k=pa%2Fss+%22w0rd%22%2Bx&"), "?k=[secret CRM]&");
        assert_eq!(secrets.redact("/pa%2Fss%20%22w0rd%22%2Bx/"), "/[secret CRM]/");
        assert_eq!(secrets.redact("x12345678x"), "[secret A]");
        assert_eq!(
            secrets.redact_json(json!([{"12345678": [VALUE, 12_345_678, 5, null, true]}])),
            json!([{"[secret PART]": ["[secret CRM]", "[secret PART]", 5, null, true]}])
        );
        assert_eq!(secrets.redact("nothing"), "nothing");
        for (text, redacted) in [
            ("so far pa/ss \"w", "so far "),
            ("so far pa/ss \\\"w", "so far "),
            ("so far pa", "so far "),
            ("pa/ss \"w0rd\"+x, pa/ss", "[secret CRM], "),
            ("x1234567", ""),
            ("12345678", "[secret PART]"),
            ("nothin", "nothin"),
            ("", ""),
        ] {
            assert_eq!(secrets.redact_beginning(text), redacted, "{text}");
        }
        let shown = format!("{secrets:?}");
        assert!(shown.contains("CRM") && !shown.contains("pa/ss"), "{shown}");
    }
}

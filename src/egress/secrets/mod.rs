//! The operator's secrets with their values: put into headers here, and taken out of answers.

mod spelling;

use std::collections::BTreeMap;
use std::fmt;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use url::Url;

use crate::domain::egress::{SecretFacts, SecretRefused, SecretRules};
use crate::domain::ids::WorkspaceId;
use crate::domain::tool::{HeaderPart, header_parts};

use spelling::{Found, Pattern, readings};

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
    /// What is looked for in answers, with the secret's name. What is part of another comes behind it.
    patterns: Vec<(Pattern, String)>,
    /// Which of them begin with a byte, by that byte: few places of a text can be a beginning.
    by_first: Vec<Vec<usize>>,
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
            let patterns = Pattern::of(value.expose_secret());
            all.patterns.extend(patterns.into_iter().map(|pattern| (pattern, name.clone())));
            all.rules.0.insert(name.clone(), facts);
            all.values.insert(name, value);
        }
        all.patterns.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.len()));
        all.by_first = (0..=u8::MAX)
            .map(|byte| {
                let begins = |n: &usize| {
                    all.patterns.get(*n).is_some_and(|(pattern, _)| pattern.first() == Some(byte))
                };
                (0..all.patterns.len()).filter(begins).collect()
            })
            .collect();
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

    /// The text with `[secret NAME]` in place of every secret: servers echo what they were sent. It knows a
    /// secret as it is, in base64 and in hexadecimal digits, escaped as in JSON (also twice), in HTML, in
    /// URLs and in forms; a server that hides it better could have kept it as well.
    pub fn redact(&self, text: &str) -> String {
        self.redacted(text, false)
    }

    /// The same for a text that was cut off somewhere: if that was in the middle of a secret, what is there
    /// of it goes too.
    pub fn redact_beginning(&self, text: &str) -> String {
        self.redacted(text, true)
    }

    fn redacted(&self, text: &str, is_cut: bool) -> String {
        let mut redacted = String::with_capacity(text.len());
        let (mut copied, mut at) = (0, 0);
        while at < text.len() {
            // Patterns are ASCII, so what is found begins and ends between characters.
            match self.at(text.as_bytes().get(at..).unwrap_or_default()) {
                (Found::Whole(length), name) => {
                    redacted.push_str(text.get(copied..at).unwrap_or_default());
                    redacted.push_str(&format!("[secret {name}]"));
                    at += length;
                    copied = at;
                }
                (Found::Begun, _) if is_cut => {
                    redacted.push_str(text.get(copied..at).unwrap_or_default());
                    return redacted;
                }
                (Found::Begun | Found::No, _) => at += 1,
            }
        }
        redacted.push_str(text.get(copied..).unwrap_or_default());
        redacted
    }

    /// What this text begins with: the longest pattern that is there, else one that is begun.
    fn at(&self, text: &[u8]) -> (Found, &str) {
        let mut candidates: Vec<usize> = Vec::new();
        readings(text, |character, _| {
            candidates.extend(self.by_first.get(usize::from(character)).into_iter().flatten());
        });
        candidates.sort_unstable();
        let mut best = (Found::No, "");
        for n in candidates {
            let Some((pattern, name)) = self.patterns.get(n) else { continue };
            match pattern.find(text) {
                Found::No => {}
                Found::Begun => best = (Found::Begun, name),
                Found::Whole(length) => return (Found::Whole(length), name),
            }
        }
        best
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

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose;
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
        for text in [
            "pa%2fss%20%22w0rd%22%2bx",
            "pa/ss \\\\\\\"w0rd\\\\\\\"+x",
            "pa\\u002fss \\\\u0022w0rd\\x22\\u002Bx",
            "pa/ss &quot;w0rd&#34;&#x2B;x",
            "cGEvc3MgIncwcmQiK3",
            "EvcGEvc3MgIncwcmQiK3g=",
            "70612f7373202277307264222b78",
            "70612F7373202277307264222B78",
        ] {
            let redacted = secrets.redact(&format!("<{text}>"));
            assert!(redacted.contains("[secret CRM]"), "{text}: {redacted}");
        }
        for before in ["", "u", "us", "user:", "Bearer ", "Basic: "] {
            for engine in [&general_purpose::STANDARD, &general_purpose::URL_SAFE_NO_PAD] {
                let text = engine.encode(format!("{before}{VALUE}{before}"));
                let redacted = secrets.redact(&text);
                assert!(redacted.contains("[secret CRM]"), "{text}: {redacted}");
                // At most the digits at its ends, which hold some of its bits and some of its neighbours'.
                let left = redacted.len() - "[secret CRM]".len();
                assert!(left <= 2 * (before.len() * 4 / 3 + 3), "{text}: {redacted}");
            }
        }
        assert_eq!(secrets.redact("x12345678x"), "[secret A]");
        assert_eq!(secrets.redact("üpa/ss \"w0rd\"+xü"), "ü[secret CRM]ü");
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
            ("so far pa%2", "so far "),
            ("so far pa%2fss \\u002", "so far "),
            ("so far pa&#4", "so far "),
            ("so far MTIzNDU2N", "so far "),
            ("100%", "100%"),
            ("a \\", "a \\"),
            ("nothin", "nothin"),
            ("", ""),
        ] {
            assert_eq!(secrets.redact_beginning(text), redacted, "{text}");
        }
        let shown = format!("{secrets:?}");
        assert!(shown.contains("CRM") && !shown.contains("pa/ss"), "{shown}");
    }
}

//! Who can be asked, at which address, with which key, for which price.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::SecretString;

use crate::domain::model::{BUILTIN, Catalogue, ProviderFacts};
use crate::domain::money::Price;
use crate::models::{ProviderSettings, Timeouts, Wire};

use super::{ConfigError, Surroundings, address, bare_catalogue, file, invalid, seconds};

/// Dollars for a million tokens beyond which a price is a mistake. It also keeps every product of a
/// price and a plausible number of tokens far inside of an `i128`.
const MAX_USD_PER_MILLION: f64 = 1_000_000.0;

/// A provider that needs no lines in the file.
struct Known {
    name: &'static str,
    wire: Wire,
    base_url: &'static str,
    api_key_env: &'static str,
}

const KNOWN: [Known; 2] = [
    Known {
        name: "openai",
        wire: Wire::OpenAi,
        base_url: "https://api.openai.com/v1",
        api_key_env: "OPENAI_API_KEY",
    },
    Known {
        name: "anthropic",
        wire: Wire::Anthropic,
        base_url: "https://api.anthropic.com/v1",
        api_key_env: "ANTHROPIC_API_KEY",
    },
];

/// The providers to call, by name, and what the domain knows of all of them.
pub(super) fn read(
    mut declared: BTreeMap<String, file::Provider>,
    around: &Surroundings<'_>,
    warnings: &mut Vec<String>,
) -> Result<(Vec<ProviderSettings>, Catalogue), ConfigError> {
    for known in &KNOWN {
        if !declared.contains_key(known.name) && around.text(known.api_key_env)?.is_some() {
            declared.insert(known.name.to_owned(), file::Provider::default());
        }
    }
    let mut catalogue = bare_catalogue();
    let mut providers = Vec::new();
    for (name, provider) in declared {
        let at = format!("providers.{name}");
        let facts = ProviderFacts {
            prices: prices(&at, &provider.prices)?,
            context_tokens: context_tokens(&at, provider.context_tokens)?,
        };
        if name == BUILTIN {
            only_prices(&at, &provider)?;
        } else {
            providers.push(one(&name, provider, around, warnings)?);
        }
        catalogue.providers.insert(name, facts);
    }
    Ok((providers, catalogue))
}

fn one(
    name: &str,
    provider: file::Provider,
    around: &Surroundings<'_>,
    warnings: &mut Vec<String>,
) -> Result<ProviderSettings, ConfigError> {
    let at = format!("providers.{name}");
    check_name(&at, name)?;
    let known = KNOWN.iter().find(|k| k.name == name);
    let wire = provider
        .kind
        .or(known.map(|k| k.wire))
        .ok_or_else(|| invalid(format!("{at}.kind"), "is missing: openai or anthropic"))?;
    let base_url = provider
        .base_url
        // Another provider's key must not travel to the public address because of a missing line.
        .or_else(|| known.filter(|k| k.wire == wire).map(|k| k.base_url.to_owned()))
        .ok_or_else(|| {
            invalid(format!("{at}.base_url"), "is missing, for example http://127.0.0.1:11434/v1")
        })?;
    let base_url = address::provider(&format!("{at}.base_url"), &base_url)?;
    let api_key = match provider.api_key_env.as_deref().or(known.map(|k| k.api_key_env)) {
        None => None,
        Some(variable) => {
            let key = around.text(variable)?;
            if key.is_none() {
                warnings.push(format!(
                    "{at}: the environment variable {variable} is not set, so its requests carry no key"
                ));
            }
            key
        }
    };
    if api_key.as_ref().is_some_and(|k| !k.bytes().all(|b| b.is_ascii_graphic())) {
        return Err(invalid(at, "its key must be visible ASCII without spaces"));
    }
    let timeouts = Timeouts {
        connect: wait(&at, "connect", provider.timeouts.connect_seconds, 10)?,
        first_token: wait(&at, "first_token", provider.timeouts.first_token_seconds, 60)?,
        idle: wait(&at, "idle", provider.timeouts.idle_seconds, 45)?,
    };
    Ok(ProviderSettings {
        name: name.to_owned(),
        wire,
        base_url,
        api_key: api_key.map(SecretString::from),
        timeouts,
    })
}

fn wait(at: &str, what: &str, value: Option<u64>, default: u64) -> Result<Duration, ConfigError> {
    seconds(&format!("{at}.timeouts.{what}_seconds"), value, default)
}

fn check_name(at: &str, name: &str) -> Result<(), ConfigError> {
    let fits = (1..=64).contains(&name.len())
        && name.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'.')
        });
    if fits {
        return Ok(());
    }
    // The name stands before the slash of "provider/model".
    Err(invalid(at, "a provider's name has 1 to 64 of a-z, 0-9, _, - and ."))
}

fn only_prices(at: &str, provider: &file::Provider) -> Result<(), ConfigError> {
    let file::Provider { kind, base_url, api_key_env, context_tokens: _, prices: _, timeouts } =
        provider;
    let file::Timeouts { connect_seconds, first_token_seconds, idle_seconds } = timeouts;
    let others = kind.is_some()
        || base_url.is_some()
        || api_key_env.is_some()
        || connect_seconds.or(*first_token_seconds).or(*idle_seconds).is_some();
    if others {
        Err(invalid(at, "is built in: only its prices and context_tokens can be set"))
    } else {
        Ok(())
    }
}

fn context_tokens(at: &str, tokens: Option<u64>) -> Result<Option<u64>, ConfigError> {
    match tokens {
        Some(0) => Err(invalid(format!("{at}.context_tokens"), "must be at least 1")),
        tokens => Ok(tokens),
    }
}

fn prices(
    at: &str,
    prices: &BTreeMap<String, file::Prices>,
) -> Result<BTreeMap<String, Price>, ConfigError> {
    let mut read = BTreeMap::new();
    for (model, price) in prices {
        let micros = |field: &str, dollars: f64| {
            if (0.0..=MAX_USD_PER_MILLION).contains(&dollars) {
                // At most 10^12: exact in an f64 and far inside of an i64.
                Ok((dollars * 1e6).round() as i64)
            } else {
                Err(invalid(
                    format!("{at}.prices.{model}.{field}"),
                    format!("{dollars} is no price: must be US dollars from 0 to 1000000"),
                ))
            }
        };
        let input = micros("input_usd_per_million", price.input_usd_per_million)?;
        let cached_input = price
            .cached_input_usd_per_million
            .map_or(Ok(input), |p| micros("cached_input_usd_per_million", p))?;
        let output = micros("output_usd_per_million", price.output_usd_per_million)?;
        read.insert(model.clone(), Price { input, cached_input, output });
    }
    Ok(read)
}

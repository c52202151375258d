use std::collections::HashMap;
use std::path::Path;

use super::*;
use crate::domain::money::Price;
use crate::models::Wire;

const KEY: &str = "0123456789abcdef0123456789abcdef";

fn resolve(flags: Flags, yaml: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let env: HashMap<&str, &str> = env.iter().copied().collect();
    let env = |name: &str| env.get(name).map(OsString::from);
    let file = File::parse(Path::new("stepwell.yaml"), yaml)?;
    Config::resolve(flags, file, &Surroundings { env: &env, is_terminal: false })
}

fn from_yaml(yaml: &str) -> Result<Config, ConfigError> {
    resolve(Flags::default(), yaml, &[])
}

fn complaint(result: Result<Config, ConfigError>) -> String {
    result.expect_err("this should be refused").to_string()
}

#[test]
fn nothing_said_is_a_server_on_loopback_with_the_demo() {
    for nothing in ["", "# only a comment\n", "{}"] {
        let config = from_yaml(nothing).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(config.database_url.expose(), "sqlite://stepwell.db");
        assert_eq!(config.max_concurrent_runs, 1_000);
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.log.filter, "info");
        assert_eq!(config.retention, Retention { run_days: 30, delta_days: 30 });
        assert!(config.admin_key.is_none() && config.public_url.is_none());
        assert!(config.providers().is_empty() && config.cors_allow_origins.is_empty());
        assert!(!config.unsafe_durability && config.warnings.is_empty());
        let [(agent_id, demo)] = config.agents.as_slice() else { panic!("one agent") };
        assert_eq!(agent_id.as_str(), DEMO);
        assert_eq!(demo.model, "builtin/script");
        assert_eq!(demo.script.len(), 2);
        assert_eq!(demo.script[0].tool_calls[0].tool, demo.tools[0].name());
    }
}

#[test]
fn the_demo_takes_about_two_seconds() {
    let config = from_yaml("").unwrap();
    let pauses: u64 = config.agents[0]
        .1
        .script
        .iter()
        .map(|turn| {
            let words = |text: &Option<String>| {
                text.as_ref().map_or(0, |t| t.split_whitespace().count() as u64)
            };
            turn.delay_ms.unwrap_or_default()
                + turn.chunk_delay_ms.unwrap_or_default()
                    * (words(&turn.text) + words(&turn.reasoning))
        })
        .sum();
    assert!((1_500..=2_500).contains(&pauses), "{pauses} ms");
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let yaml = "listen: 127.0.0.1:9001\nengine: { max_concurrent_runs: 5 }\nlog: { level: warn }";
    let file = from_yaml(yaml).unwrap();
    assert_eq!((file.listen.port(), file.max_concurrent_runs), (9001, 5));
    assert_eq!(file.log.filter, "warn");
    let flags = Flags {
        listen: Some("127.0.0.1:9002".to_owned()),
        max_concurrent_runs: Some(0),
        log_format: Some(LogFormat::Pretty),
        ..Flags::default()
    };
    let both = resolve(flags, yaml, &[]).unwrap();
    assert_eq!((both.listen.port(), both.max_concurrent_runs), (9002, 0));
    assert_eq!((both.log.format, both.log.filter.as_str()), (LogFormat::Pretty, "warn"));
}

#[test]
fn an_empty_flag_or_variable_is_as_good_as_none() {
    let flags = Flags {
        listen: Some(String::new()),
        database_url: Some(" ".to_owned()),
        cors_allow_origins: vec![String::new()],
        ..Flags::default()
    };
    let config = resolve(flags, "listen: 127.0.0.1:9001", &[(ADMIN_KEY, "")]).unwrap();
    assert_eq!(config.listen.port(), 9001);
    assert_eq!(config.database_url.expose(), DEFAULT_DATABASE_URL);
    assert!(config.admin_key.is_none());
}

#[test]
fn an_unknown_key_is_named_with_its_place() {
    for (yaml, key, line) in [
        ("listen: 127.0.0.1:1\nlistn: 127.0.0.1:2", "listn", "2"),
        ("engine:\n  max_runs: 3", "max_runs", "2"),
        ("providers:\n  local:\n    kind: openai\n    url: http://x", "url", "4"),
        (
            "providers:\n  local:\n    prices:\n      m: { input_usd: 1, output_usd_per_million: 1 }",
            "input_usd",
            "4",
        ),
        ("agents:\n  a:\n    model: builtin/echo\n    sytem_prompt: Hi", "sytem_prompt", "4"),
        ("cors:\n  origins: []", "origins", "2"),
    ] {
        let message = complaint(from_yaml(yaml));
        assert!(message.starts_with("stepwell.yaml: "), "{message}");
        assert!(message.contains(&format!("`{key}`")), "{message}");
        assert!(message.contains(&format!("line {line}")), "{message}");
    }
}

#[test]
fn a_key_that_is_there_twice_is_refused() {
    assert!(complaint(from_yaml("listen: 127.0.0.1:1\nlisten: 127.0.0.1:2")).contains("listen"));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = File::read(Path::new("/nowhere/stepwell.yaml")).unwrap_err();
    assert_eq!(error.to_string(), "cannot read /nowhere/stepwell.yaml");
}

#[test]
fn an_address_for_others_needs_a_key_and_says_how_to_make_one() {
    for listen in ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:80"] {
        let yaml = format!("listen: \"{listen}\"");
        let message = complaint(from_yaml(&yaml));
        assert!(message.contains(listen) && message.contains(ADMIN_KEY), "{message}");
        let config = resolve(Flags::default(), &yaml, &[(ADMIN_KEY, KEY)]).unwrap();
        assert!(config.admin_key.is_some());
    }
    for listen in ["127.0.0.1:0", "[::1]:8080", "[::ffff:127.0.0.1]:80", "127.1.2.3:80"] {
        assert!(from_yaml(&format!("listen: \"{listen}\"")).is_ok(), "{listen}");
    }
}

#[test]
fn an_admin_key_is_long_and_fits_into_a_header() {
    let with = |key: &str| resolve(Flags::default(), "", &[(ADMIN_KEY, key)]);
    assert!(complaint(with(&KEY[1..])).contains("at least 32"));
    assert!(complaint(with("ä2345678901234567890123456789012")).contains("ASCII"));
    let config = with(&format!("{KEY}\n")).unwrap();
    assert_eq!(config.admin_key.unwrap().expose_secret(), KEY);
}

#[test]
fn no_secret_shows_in_debug() {
    let env = [(ADMIN_KEY, KEY), ("OPENAI_API_KEY", "sk-canary")];
    let yaml = "database_url: postgres://user:hunter2@db.example.com/stepwell?password=hunter3";
    let config = resolve(Flags::default(), yaml, &env).unwrap();
    let shown = format!("{config:?} {config:#?} {}", config.database_url);
    for secret in [KEY, "sk-canary", "hunter2", "hunter3"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(shown.contains("postgres://***@db.example.com/stepwell"), "{shown}");
    assert!(config.database_url.expose().contains("hunter2"));
}

#[test]
fn a_mistake_beside_a_password_does_not_show_it() {
    let message = complaint(from_yaml("database_url: postgres://u:hunter2@h/d\nlistn: 1\nlog: {}"));
    assert!(!message.contains("hunter2"), "{message}");
}

#[test]
fn prices_are_micro_dollars_and_cached_input_costs_like_input() {
    let yaml = "
providers:
  local:
    kind: openai
    base_url: http://127.0.0.1:11434/v1/?api-version=1
    context_tokens: 8192
    prices:
      llama-3: { input_usd_per_million: 0.5, cached_input_usd_per_million: 0.1, output_usd_per_million: 1.5 }
      '*': { input_usd_per_million: 1, output_usd_per_million: 0.000001 }
  builtin:
    prices:
      '*': { input_usd_per_million: 2, output_usd_per_million: 3 }
";
    let config = from_yaml(yaml).unwrap();
    let catalogue = config.catalogue();
    let price = |model: &str| catalogue.price(&catalogue.resolve(model).unwrap());
    assert_eq!(
        price("local/llama-3"),
        Some(Price { input: 500_000, cached_input: 100_000, output: 1_500_000 })
    );
    assert_eq!(
        price("other"),
        Some(Price { input: 1_000_000, cached_input: 1_000_000, output: 1 })
    );
    assert_eq!(price("builtin/echo").map(|p| p.output), Some(3_000_000));
    assert_eq!(catalogue.providers["local"].context_tokens, Some(8192));
    let [local] = config.providers() else { panic!("builtin is not called") };
    assert_eq!(local.base_url, "http://127.0.0.1:11434/v1/?api-version=1");
    assert_eq!(local.timeouts.idle, Duration::from_secs(45));
}

#[test]
fn a_bad_price_is_named() {
    for bad in ["-1", ".nan", ".inf", "1e9"] {
        let yaml = format!(
            "providers: {{ builtin: {{ prices: {{ echo: {{ input_usd_per_million: 1, \
             output_usd_per_million: {bad} }} }} }} }}"
        );
        let message = complaint(from_yaml(&yaml));
        let at = "providers.builtin.prices.echo.output_usd_per_million: ";
        assert!(message.starts_with(at), "{message}");
    }
    let words = "providers: { builtin: { prices: { echo: { input_usd_per_million: free, output_usd_per_million: 1 } } } }";
    assert!(complaint(from_yaml(words)).contains("line 1"));
}

#[test]
fn openai_and_anthropic_are_there_when_their_keys_are() {
    let env = [("OPENAI_API_KEY", "sk-1"), ("ANTHROPIC_API_KEY", " sk-2\n")];
    let config = resolve(Flags::default(), "", &env).unwrap();
    let [anthropic, openai] = config.providers() else { panic!("two providers") };
    assert_eq!(anthropic.base_url, "https://api.anthropic.com/v1");
    assert_eq!(anthropic.api_key.as_ref().unwrap().expose_secret(), "sk-2");
    assert_eq!((openai.name.as_str(), openai.wire), ("openai", Wire::OpenAi));
    assert!(config.catalogue().resolve("openai/gpt-4o").is_ok());
    assert!(from_yaml("").unwrap().catalogue().resolve("openai/gpt-4o").is_err());
}

#[test]
fn a_known_provider_needs_no_more_than_prices() {
    let yaml = "providers: { openai: { prices: { '*': { input_usd_per_million: 1, output_usd_per_million: 2 } } } }";
    let config = from_yaml(yaml).unwrap();
    assert_eq!(config.providers()[0].base_url, "https://api.openai.com/v1");
    // Its key is missing: the server starts, since other providers may do, and says so.
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].contains("OPENAI_API_KEY"));
}

#[test]
fn a_provider_that_cannot_be_called_is_refused() {
    for (yaml, at) in [
        ("providers: { local: { base_url: http://x/v1 } }", "providers.local.kind"),
        ("providers: { local: { kind: openai } }", "providers.local.base_url"),
        ("providers: { openai: { kind: anthropic } }", "providers.openai.base_url"),
        ("providers: { local: { kind: openai, base_url: x } }", "providers.local.base_url"),
        (
            "providers: { local: { kind: openai, base_url: 'http://u:p@x/v1' } }",
            "providers.local.base_url",
        ),
        ("providers: { a/b: { kind: openai, base_url: http://x } }", "providers.a/b"),
        ("providers: { builtin: { base_url: http://x } }", "providers.builtin"),
        (
            "providers: { l: { kind: openai, base_url: http://x, timeouts: { idle_seconds: 0 } } }",
            "providers.l.timeouts.idle_seconds",
        ),
        ("default_provider: local", "default_provider"),
        ("default_provider: builtin", "default_provider"),
    ] {
        let message = complaint(from_yaml(yaml));
        assert!(message.starts_with(&format!("{at}: ")), "{message}");
    }
    assert!(complaint(from_yaml("providers: { l: { kind: opanai } }")).contains("opanai"));
}

#[test]
fn agents_are_checked_against_the_providers() {
    let yaml = "
default_provider: local
providers:
  local: { kind: openai, base_url: 'http://127.0.0.1:1/v1' }
agents:
  support:
    model: llama-3
    system_prompt: |
      You are kind.
    tools: [{ type: builtin, name: echo }]
    output_schema: { type: object, properties: { n: { type: integer } } }
    provider_options: { seed: 7 }
";
    let config = from_yaml(yaml).unwrap();
    let ids: Vec<&str> = config.agents.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["demo", "support"]);
    assert_eq!(config.agents[1].1.model, "local/llama-3");
    assert_eq!(config.agents[1].1.provider_options["seed"], 7);

    let message = complaint(from_yaml("agents: { a: { model: nowhere/x, max_steps: 0 } }"));
    assert!(message.starts_with("agents.a: /model: "), "{message}");
    assert!(message.contains("/max_steps"), "{message}");
    assert!(
        complaint(from_yaml("agents: { Bad Name: { model: builtin/echo } }")).contains("match")
    );
    assert!(complaint(from_yaml("agents: { a: {} }")).contains("model"));
}

#[test]
fn an_operators_demo_takes_the_place_of_ours() {
    let config = from_yaml("agents: { demo: { model: builtin/echo } }").unwrap();
    assert_eq!(config.agents.len(), 1);
    assert_eq!(config.agents[0].1.model, "builtin/echo");
}

#[test]
fn addresses_and_origins_are_checked() {
    for (yaml, at) in [
        ("listen: localhost", "listen"),
        ("listen: 127.0.0.1:70000", "listen"),
        ("database_url: mysql://x", "database_url"),
        ("public_url: agents.example.com", "public_url"),
        ("public_url: https://a.example/?x=1", "public_url"),
        ("cors: { allow_origins: [https://a.example/path] }", "cors.allow_origins"),
        ("cors: { allow_origins: [a.example] }", "cors.allow_origins"),
        ("retention: { run_days: 0 }", "retention.run_days"),
        ("engine: { max_concurrent_runs: 2000000 }", "engine.max_concurrent_runs"),
    ] {
        let message = complaint(from_yaml(yaml));
        assert!(message.starts_with(&format!("{at}: ")), "{message}");
    }
    let yaml = "public_url: https://a.example/base/\ncors: { allow_origins: ['*', 'https://A.example:8443/'] }";
    let config = from_yaml(yaml).unwrap();
    assert_eq!(config.public_url.as_deref(), Some("https://a.example/base"));
    assert_eq!(config.cors_allow_origins, ["*", "https://a.example:8443"]);
}

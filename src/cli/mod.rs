//! The command line: `serve`, `migrate`, `openapi`, `healthcheck` for containers, and `drive-one`, which a
//! server calls itself by for a single run.
//!
//! This room reads arguments, starts the log and the runtime, and says how it ended. What a command
//! does is elsewhere: `main` hands it in as [`Commands`].
//!
//! To add a command: its line in [`Command`], its method in [`Commands`] if it needs the server's
//! rooms, its arm in [`run`].

mod health;

use std::error::Error;
use std::fmt::Write as _;
use std::future::Future;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use utoipa::openapi::OpenApi;

use crate::config::{Config, Flags};
use crate::domain::ids::{NodeId, RunId};
use crate::engine::Order;
use crate::telemetry;

/// Why a command failed, for people. Its sources are printed with it.
pub type Failure = Box<dyn Error + Send + Sync>;

/// What the commands do.
pub trait Commands {
    /// Serves until told to stop by a signal.
    fn serve(&self, config: Config) -> impl Future<Output = Result<(), Failure>>;
    /// Brings the database's schema up to date and returns.
    fn migrate(&self, config: Config) -> impl Future<Output = Result<(), Failure>>;
    /// Drives one run in this process. A server starts it, nobody else.
    fn drive_one(&self, config: Config, order: Order) -> impl Future<Output = Result<(), Failure>>;
    /// Describes the API.
    fn openapi(&self) -> OpenApi;
}

/// Runs AI agents behind a durable REST + SSE API.
#[derive(Debug, Parser)]
#[command(name = "stepwell", version, about, max_term_width = 100, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Serve the API and drive runs, until SIGTERM or Ctrl-C.
    ///
    /// Without any setting: http://127.0.0.1:8080, everything in the SQLite file stepwell.db of the
    /// working directory, and an agent `demo` that needs no model.
    #[command(after_help = AFTER_SETTINGS)]
    Serve {
        #[command(flatten)]
        flags: Flags,
    },
    /// Bring the database's schema up to date, and do nothing else. `serve` does it too.
    #[command(after_help = AFTER_SETTINGS)]
    Migrate {
        #[command(flatten)]
        flags: Flags,
    },
    /// Print the description of the API (OpenAPI 3.1) as YAML.
    Openapi {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Drive one run of the server that starts this.
    #[command(hide = true)]
    DriveOne {
        #[command(flatten)]
        flags: Flags,
        /// The run.
        #[arg(long)]
        run: RunId,
        /// The node of the server.
        #[arg(long)]
        from: NodeId,
        /// The node that this process is.
        #[arg(long = "as")]
        node_id: NodeId,
    },
    /// Ask a server on this machine whether it is alive: exit code 0 if so. Made for containers.
    #[command(hide = true)]
    Healthcheck {
        #[command(flatten)]
        flags: Flags,
    },
}

const AFTER_HELP: &str = "\
First steps:
  stepwell serve
  curl -N http://127.0.0.1:8080/v1/agents/demo/runs \\
       -H 'content-type: application/json' -d '{\"input\": \"Hello\", \"stream\": true}'

`stepwell serve --help` lists all settings.";

const AFTER_SETTINGS: &str = "\
In the environment only:
  STEPWELL_ADMIN_KEY  A key that may do everything, at least 32 characters (openssl rand -hex 32).
                      Needed on any address but loopback; without it the API is open to this machine.
  OPENAI_API_KEY      Makes the provider `openai` available without a line in the file.
  ANTHROPIC_API_KEY   The same for `anthropic`.

In the file only:
  providers.NAME      kind (openai|anthropic: the protocol), base_url, api_key_env, context_tokens,
                      prices.MODEL (or \"*\"): input_usd_per_million, cached_input_usd_per_million,
                        output_usd_per_million,
                      timeouts: connect_seconds [10], first_token_seconds [60], idle_seconds [45]
  agents.AGENT_ID     an agent as POST /v1/agents takes it
  secrets.NAME        env: the variable with its value; hosts that it may be sent to; workspaces [default]:
                      what ${secret.NAME} stands for in headers of tools
  egress.allow        host names, addresses and networks that tools may reach besides the public
                      internet by https [none]
  edge                max_connections [20000], max_connections_per_address [the same],
                      max_streams [10000], max_streams_per_workspace [the same],
                      stall_seconds [30], stream_minutes [30]
  retention           run_days [30]: days after its end that a run is kept,
                      delta_days [30]: days that its pieces of text are kept";

/// Reads the command line and does what it says.
pub fn run(commands: &impl Commands) -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Serve { flags } => start(flags).and_then(|config| {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(commands.serve(config))
        }),
        Command::Migrate { flags } => start(flags).and_then(|config| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(commands.migrate(config))
        }),
        Command::DriveOne { flags, run, from, node_id } => start(flags).and_then(|config| {
            // One run: a thread for it, and one for the beat if the run keeps the first busy.
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(2).enable_all().build()?;
            let order = Order { run_id: run, from, node_id };
            runtime.block_on(commands.drive_one(config, order))
        }),
        Command::Openapi { json } => print(&commands.openapi(), json),
        Command::Healthcheck { flags } => Config::load(flags)
            .map_err(Failure::from)
            .and_then(|config| health::check(config.listen).map_err(Failure::from)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // The log may not be there yet, or be filtered; the reason for an exit must be seen.
            let _ = writeln!(std::io::stderr(), "stepwell: {}", explain(failure.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn start(flags: Flags) -> Result<Config, Failure> {
    let config = Config::load(flags)?;
    telemetry::init(&config.log)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

fn print(api: &OpenApi, json: bool) -> Result<(), Failure> {
    let text = if json { api.to_pretty_json()? } else { api.to_yaml()? };
    let mut out = std::io::stdout().lock();
    match out.write_all(text.trim_end().as_bytes()).and_then(|()| out.write_all(b"\n")) {
        // `stepwell openapi | head` has seen enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// A failure and what caused it, in one line.
fn explain(failure: &dyn Error) -> String {
    let mut text = failure.to_string();
    let mut cause = failure.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn help_lists_every_setting_with_its_variable_and_its_default() {
        let mut command = Arguments::command();
        let serve = command.find_subcommand_mut("serve").unwrap();
        let flags: Vec<_> =
            serve.get_arguments().filter(|a| a.get_id() != "help").cloned().collect();
        assert!(flags.len() >= 9);
        let help = serve.render_long_help().to_string();
        for flag in flags {
            let variable = flag.get_env().unwrap().to_str().unwrap();
            let told = flag.get_help().unwrap().to_string();
            let told = flag.get_long_help().map_or(told, ToString::to_string);
            assert!(variable.starts_with("STEPWELL_"), "{variable}");
            assert!(help.contains(variable), "{variable}");
            assert!(told.contains("[default: "), "{variable} does not say its default");
            assert!(flag.is_hide_env_values_set(), "{variable} would show its value");
        }
        assert!(help.contains("STEPWELL_ADMIN_KEY"));
        for section in ["providers", "agents", "secrets", "egress", "edge", "retention"] {
            assert!(help.contains(&format!("\n  {section}")), "{section}");
        }
    }

    #[test]
    fn a_flag_beats_nothing_and_unknown_flags_are_refused() {
        let read = |args: &[&str]| Arguments::try_parse_from(args);
        let parsed = read(&["stepwell", "serve", "--listen", "127.0.0.1:1"]).unwrap();
        let Command::Serve { flags } = parsed.command else { panic!("serve") };
        assert_eq!(flags.listen.as_deref(), Some("127.0.0.1:1"));
        assert!(read(&["stepwell", "serve", "--listn", "x"]).is_err());
        assert!(read(&["stepwell"]).is_err());
    }

    #[test]
    fn a_failure_is_told_with_its_causes() {
        let error = crate::config::ConfigError::Read {
            path: "x.yaml".into(),
            source: std::io::Error::other("denied"),
        };
        assert_eq!(explain(&error), "cannot read x.yaml: denied");
    }
}

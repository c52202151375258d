//! The log: JSON lines for programs or text for people, on standard error.
//!
//! What it must never do: let a body, a prompt or a key through. Our own code does not log them; other
//! crates may (an HTTP/2 library traces headers), so nothing below `info` of theirs is ever written,
//! whatever the filter says; and nothing at all of rmcp, which logs what servers send at `info` and above.

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{LogConfig, LogFormat};

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter makes no sense.
    #[error(
        "log.level: {0:?} is no level (error, warn, info, debug, trace, off) and no list of \
         directives like info,stepwell::engine=debug"
    )]
    Filter(String),
    /// A log was started before.
    #[error("the log cannot be started")]
    Started(#[from] TryInitError),
}

/// Starts the log of this process.
///
/// # Errors
/// The filter makes no sense, or a log was started before.
pub fn init(config: &LogConfig) -> Result<(), TelemetryError> {
    let filter = filter(&config.filter)?;
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(config.colours);
    match config.format {
        LogFormat::Json => {
            filtered(filter).with(lines.json().flatten_event(true).with_span_list(false)).try_init()
        }
        LogFormat::Pretty => filtered(filter).with(lines.compact()).try_init(),
    }?;
    Ok(())
}

/// What passes the filters. They are layers of their own, not a filter of the layer that writes: such
/// a filter keeps its last answer in the thread, and when somebody (sqlx does) only asks whether a
/// line would be written, the thread's next line is lost.
fn filtered(filter: EnvFilter) -> impl SubscriberExt + for<'a> LookupSpan<'a> + Send + Sync {
    tracing_subscriber::registry().with(filter).with(filter_fn(is_harmless))
}

fn filter(text: &str) -> Result<EnvFilter, TelemetryError> {
    // A word alone is taken for the name of a crate, so that "inof" would silence the whole log.
    let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let is_meant = |directive: &str| directive.contains(['=', '[']) || is_level(directive);
    let directives: Vec<&str> = text.split(',').map(str::trim).collect();
    let filter = EnvFilter::builder().parse(directives.join(","));
    match filter {
        Ok(filter) if directives.into_iter().all(is_meant) => Ok(filter),
        _ => Err(TelemetryError::Filter(text.to_owned())),
    }
}

/// Whether a line is ours, or at least no trace of somebody's inner life.
fn is_harmless(line: &Metadata<'_>) -> bool {
    // `Level`s are ordered by how much they say.
    let target = line.target();
    let is_of = |name: &str| {
        target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    is_of("stepwell") || (*line.level() <= Level::INFO && !is_of("rmcp"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn others_do_not_trace_whatever_the_filter_says() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        tracing::subscriber::with_default(filtered(filter("trace").unwrap()).with(layer), || {
            tracing::trace!(target: "h2", "authorization: canary");
            tracing::info!(target: "sqlx", "slow statement");
            tracing::error!(target: "rmcp::service", "what a server sent: canary");
            tracing::trace!(target: "stepwell::log", "flushed");
            tracing::trace!(target: "stepwell_of_somebody_else", "canary");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains("canary"), "{text}");
        assert!(text.contains("slow statement") && text.contains("flushed"), "{text}");
    }

    #[test]
    fn no_line_is_lost_because_somebody_asked_about_another() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        tracing::subscriber::with_default(filtered(filter("info").unwrap()).with(layer), || {
            // As sqlx asks through the crate `log` before it logs a statement: past all that is cached.
            let statement = tracing::debug_span!(target: "sqlx::query", "a statement");
            let statement = statement.metadata().unwrap();
            for n in 0..10 {
                let _ = tracing::dispatcher::get_default(|log| log.enabled(statement));
                tracing::info!(target: "stepwell", n, "a line");
            }
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 10, "{text}");
    }

    #[test]
    fn a_misspelt_level_is_refused() {
        for good in ["info", "WARN", "off", "info,stepwell::engine=debug", "debug, sqlx=warn"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["inof", "info,stepwell", "stepwell=loud", ""] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}

//! When a failed call is tried again: for how long servers ask to be left alone, and when a model call is
//! made again. Pure: elapsed time and randomness come in.

use std::time::Duration;

use super::limits;
use super::run::{RunError, RunErrorCode};

/// Why a model call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ModelFailure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// For people; never the provider's own text, which may hold secrets.
    pub message: String,
    /// How long the provider asked to be left alone.
    pub retry_after: Option<Duration>,
}

/// What kind of failure a model call had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// No connection.
    Connect,
    /// Nothing came in time.
    Timeout,
    /// An HTTP status that passes: 408, 409, 429, 5xx.
    Busy(u16),
    /// An HTTP status that does not pass: every other 4xx, and 429 for a used-up quota.
    Refused(u16),
    /// The stream broke, or could not be read.
    Broken,
    /// The stream ended without its end marker.
    Cut,
    /// The prompt is longer than the model reads.
    ContextOverflow,
    /// Nothing of this name is configured any more.
    Unconfigured,
}

impl ModelFailure {
    /// A failure without a wish of the provider.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None }
    }

    /// Whether the same call may succeed later.
    pub const fn is_passing(&self) -> bool {
        match self.kind {
            FailureKind::Connect
            | FailureKind::Timeout
            | FailureKind::Busy(_)
            | FailureKind::Broken
            | FailureKind::Cut => true,
            FailureKind::Refused(_) | FailureKind::ContextOverflow | FailureKind::Unconfigured => {
                false
            }
        }
    }

    /// How a run that dies of it says so.
    pub fn run_error(&self) -> RunError {
        RunError {
            code: match self.kind {
                FailureKind::ContextOverflow => RunErrorCode::ContextOverflow,
                FailureKind::Connect
                | FailureKind::Timeout
                | FailureKind::Busy(_)
                | FailureKind::Refused(_)
                | FailureKind::Broken
                | FailureKind::Cut
                | FailureKind::Unconfigured => RunErrorCode::ModelError,
            },
            message: self.message.clone(),
            retryable: self.is_passing(),
        }
    }
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Try again after this time, holding the slot.
    Again(Duration),
    /// Give up the slot and come back after this time.
    Later(Duration),
    /// The step has failed.
    GiveUp,
}

/// The first wait's upper end; each later one doubles it.
const FIRST: Duration = Duration::from_millis(500);
/// The upper end that no wait passes.
const LONGEST: Duration = Duration::from_secs(30);

/// Says what to do after attempt number `attempt` failed, `elapsed` after the first one began.
/// `chance` is uniform in 0..1 (full jitter, so that a herd spreads out).
pub fn verdict(failure: &ModelFailure, attempt: i32, elapsed: Duration, chance: f64) -> Verdict {
    if !failure.is_passing() || attempt >= limits::MAX_MODEL_ATTEMPTS {
        return Verdict::GiveUp;
    }
    let doublings = u32::try_from(attempt - 1).unwrap_or(0).min(16);
    let ceiling = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    let backoff = ceiling.mul_f64(chance.clamp(0.0, 1.0));
    let wait = failure.retry_after.map_or(backoff, |asked| asked + backoff.min(FIRST));
    if wait > limits::MAX_MODEL_WAIT {
        Verdict::GiveUp
    } else if wait > limits::LONG_MODEL_WAIT {
        Verdict::Later(wait)
    } else if elapsed + wait > limits::MODEL_RETRY_WINDOW {
        Verdict::GiveUp
    } else {
        Verdict::Again(wait)
    }
}

/// How long a server asks to be left alone: `retry-after-ms`, or `retry-after` in seconds or as
/// a date. A date is compared with the answer's own `date`, so that clocks may differ. `text` knows the
/// headers, trimmed.
pub fn retry_after<'h>(text: impl Fn(&'static str) -> Option<&'h str>) -> Option<Duration> {
    let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds.max(0.0)).ok();
    if let Some(millis) = text("retry-after-ms").and_then(|ms| ms.parse::<f64>().ok()) {
        return seconds(millis / 1000.0);
    }
    let asked = text("retry-after")?;
    if let Ok(number) = asked.parse::<f64>() {
        return seconds(number);
    }
    let date = |text: &str| chrono::DateTime::parse_from_rfc2822(text).ok();
    let wait = date(asked)?.signed_duration_since(date(text("date")?)?);
    Some(wait.to_std().unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(retry_after: Option<u64>) -> ModelFailure {
        ModelFailure {
            retry_after: retry_after.map(Duration::from_secs),
            ..ModelFailure::new(FailureKind::Busy(429), "busy")
        }
    }

    #[test]
    fn waits_double_up_to_a_ceiling_and_stop_after_five_attempts() {
        let wait = |attempt| verdict(&busy(None), attempt, Duration::ZERO, 1.0);
        assert_eq!(wait(1), Verdict::Again(Duration::from_millis(500)));
        assert_eq!(wait(2), Verdict::Again(Duration::from_secs(1)));
        assert_eq!(wait(4), Verdict::Again(Duration::from_secs(4)));
        assert_eq!(wait(5), Verdict::GiveUp);
    }

    #[test]
    fn a_wish_of_the_provider_is_honoured_and_a_long_one_frees_the_slot() {
        let wait = |asked| verdict(&busy(Some(asked)), 1, Duration::ZERO, 0.0);
        assert_eq!(wait(7), Verdict::Again(Duration::from_secs(7)));
        assert_eq!(wait(61), Verdict::Later(Duration::from_secs(61)));
        assert_eq!(wait(90_000), Verdict::GiveUp);
    }

    #[test]
    fn what_does_not_pass_is_not_tried_again() {
        for kind in [FailureKind::Refused(401), FailureKind::ContextOverflow] {
            let failure = ModelFailure::new(kind, "no");
            assert_eq!(verdict(&failure, 1, Duration::ZERO, 0.5), Verdict::GiveUp);
        }
    }

    #[test]
    fn a_wish_to_be_left_alone_is_read_in_every_spelling() {
        let read = |pairs: &[(&'static str, &str)]| {
            retry_after(|name| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1))
        };
        let millis = |ms| Some(Duration::from_millis(ms));
        assert_eq!(read(&[("retry-after", "7")]), millis(7_000));
        assert_eq!(read(&[("retry-after", "0.5")]), millis(500));
        assert_eq!(read(&[("retry-after-ms", "250"), ("retry-after", "1")]), millis(250));
        assert_eq!(read(&[("retry-after", "-3")]), millis(0));
        let now = ("date", "Wed, 21 Oct 2026 07:28:00 GMT");
        assert_eq!(read(&[("retry-after", "Wed, 21 Oct 2026 07:28:30 GMT"), now]), millis(30_000));
        assert_eq!(read(&[("retry-after", "Wed, 21 Oct 2026 07:20:00 GMT"), now]), millis(0));
        for nonsense in ["soon", "NaN", "1e300", ""] {
            assert!(read(&[("retry-after", nonsense)]).is_none_or(|wait| wait.is_zero()));
        }
        assert_eq!(read(&[]), None);
    }
}

//! One call of a tool: its attempts, and what they come to.
//!
//! What may be tried again follows from what the tool declared that a call does to the world: `read` and
//! `idempotent` calls are, under the same idempotency key; a `once` call only as long as it certainly
//! was not sent. An answer is known, whatever it says; a `once` call that was sent and got none is for
//! somebody to look after.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::Value;

use crate::clock::Clock;
use crate::domain::ids::{CallId, RunId, WorkspaceId};
use crate::domain::tool::Effect;
use crate::tools::{Departure, Left, Outcome, Tool, ToolCall};

use super::drive::Made;
use super::trust::Faith;

/// The upper end of the wait after the first attempt; each later one doubles it.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// A tool that asks to be left alone for longer than this has failed: the run holds a slot meanwhile,
/// and the model may have something better to do.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A call to be made.
pub(super) struct Making {
    pub tool: Box<dyn Tool>,
    pub effect: Effect,
    /// How long one attempt may take.
    pub patience: Duration,
    pub run_id: RunId,
    pub workspace_id: WorkspaceId,
    pub call_id: CallId,
    pub arguments: Value,
    /// Asked before each attempt, and again before it is sent: the process may have been stopped since
    /// the call was decided, and others may have been told to ask what became of it.
    pub faith: Faith,
    pub clock: Clock,
}

impl Making {
    /// Makes the call, with as many attempts as it may have.
    pub async fn make(self) -> Made {
        let mut attempt = 1;
        loop {
            if !self.faith.may_act() {
                return Made::Withheld;
            }
            let faith = self.faith.clone();
            let departure = Departure::new(Arc::new(move || faith.may_act()));
            let call = ToolCall {
                run_id: self.run_id,
                workspace_id: self.workspace_id,
                call_id: self.call_id,
                arguments: self.arguments.clone(),
                departure,
            };
            let outcome = self::attempt(&*self.tool, call, self.patience).await;
            let attempts_left = self.tool.attempts().saturating_sub(attempt);
            match after(outcome, self.effect, attempts_left) {
                Next::Over(made) => return made,
                Next::Again { asked } => {
                    tokio::time::sleep(wait(attempt, asked, self.clock.chance())).await;
                }
            }
            attempt += 1;
        }
    }
}

/// What follows an attempt.
#[derive(Debug, PartialEq)]
enum Next {
    Over(Made),
    /// Another attempt, not before the time that the tool asked for.
    Again {
        asked: Option<Duration>,
    },
}

/// Says what follows an attempt. This is the whole promise about effects.
fn after(outcome: Outcome, effect: Effect, attempts_left: u32) -> Next {
    let may_repeat = match effect {
        Effect::Read | Effect::Idempotent => true,
        Effect::Once => false,
    };
    let failed = |why| Next::Over(Made::Answered(Err(why)));
    match outcome {
        Outcome::Completed(result) => Next::Over(Made::Answered(Ok(result))),
        Outcome::Failed(why) => failed(why),
        Outcome::Withheld => Next::Over(Made::Withheld),
        // Nothing happened: whatever the effect would have been, it may be tried again.
        Outcome::NotSent(_) if attempts_left > 0 => Next::Again { asked: None },
        Outcome::NotSent(why) => failed(why),
        Outcome::Busy(_, asked)
            if may_repeat && attempts_left > 0 && asked.is_none_or(|time| time <= LONGEST_WAIT) =>
        {
            Next::Again { asked }
        }
        Outcome::Busy(why, _) => failed(why),
        Outcome::Unknown(_) if may_repeat && attempts_left > 0 => Next::Again { asked: None },
        Outcome::Unknown(why) if may_repeat => failed(why),
        Outcome::Unknown(why) => Next::Over(Made::Unknown(why)),
    }
}

/// The wait behind attempt number `attempt`: full jitter, so that a herd spreads out, on top of what the
/// tool asked for.
fn wait(attempt: u32, asked: Option<Duration>, chance: f64) -> Duration {
    let doublings = attempt.saturating_sub(1).min(8);
    let jitter = FIRST_WAIT.saturating_mul(1 << doublings).mul_f64(chance.clamp(0.0, 1.0));
    asked.unwrap_or_default() + jitter
}

/// One attempt. Whatever the tool does, something is known of it.
async fn attempt(tool: &dyn Tool, call: ToolCall, patience: Duration) -> Outcome {
    let departure = call.departure.clone();
    let attempt = AssertUnwindSafe(tool.call(call)).catch_unwind();
    let why = match tokio::time::timeout(patience, attempt).await {
        Ok(Ok(outcome)) => return outcome,
        // The panic hook has logged it.
        Ok(Err(_panic)) => "The tool failed inside the server.".to_owned(),
        Err(_) => format!("The tool did not answer within {} s.", patience.as_secs()),
    };
    // Whoever makes it may be at it still, in a task of its own: it must not leave behind our back.
    match departure.call_off() {
        Left::NotYet => Outcome::NotSent(why),
        Left::Unsaid | Left::Yes => Outcome::Unknown(why),
        Left::Refused(status) => {
            Outcome::refused(status, format!("The tool answered {status}."), None)
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    /// What it does before it goes on for ever.
    enum Acts {
        Panics,
        SaysNothing,
        Announces,
        Leaves,
        IsRefused(u16),
    }

    #[async_trait]
    impl Tool for Acts {
        async fn call(&self, call: ToolCall) -> Outcome {
            match self {
                Self::Panics => panic!("on purpose"),
                Self::SaysNothing => {}
                Self::Announces => call.departure.announce(),
                Self::Leaves => {
                    call.departure.announce();
                    assert_eq!(call.departure.leave(), Ok(()));
                }
                Self::IsRefused(status) => {
                    assert_eq!(call.departure.leave(), Ok(()));
                    call.departure.refused(*status);
                }
            }
            std::future::pending().await
        }
    }

    fn call() -> ToolCall {
        ToolCall {
            run_id: RunId::from_uuid(Uuid::nil()),
            workspace_id: WorkspaceId::DEFAULT,
            call_id: CallId::from_uuid(Uuid::nil()),
            arguments: Value::Null,
            departure: Departure::new(Arc::new(|| true)),
        }
    }

    #[tokio::test]
    async fn a_tool_that_panics_or_sleeps_has_an_outcome_all_the_same() {
        let panicked = "The tool failed inside the server.".to_owned();
        let outcome = attempt(&Acts::Panics, call(), Duration::from_secs(60)).await;
        assert_eq!(outcome, Outcome::Unknown(panicked));
        let slept = "The tool did not answer within 0 s.".to_owned();
        for (acts, outcome) in [
            (Acts::SaysNothing, Outcome::Unknown(slept.clone())),
            (Acts::Announces, Outcome::NotSent(slept.clone())),
            (Acts::Leaves, Outcome::Unknown(slept)),
            (Acts::IsRefused(400), Outcome::Failed("The tool answered 400.".to_owned())),
            (Acts::IsRefused(503), Outcome::Busy("The tool answered 503.".to_owned(), None)),
        ] {
            assert_eq!(attempt(&acts, call(), Duration::ZERO).await, outcome);
        }
    }

    #[tokio::test]
    async fn a_call_that_was_given_up_before_it_left_does_not_leave_any_more() {
        for (acts, may_leave) in [(Acts::Announces, false), (Acts::Leaves, true)] {
            let call = call();
            let departure = call.departure.clone();
            attempt(&acts, call, Duration::ZERO).await;
            assert_eq!(departure.leave().is_ok(), may_leave, "another attempt may follow");
        }
    }

    #[test]
    fn what_follows_an_attempt_is_what_its_effect_allows() {
        let why = || "why".to_owned();
        let failed = || Next::Over(Made::Answered(Err(why())));
        let again = || Next::Again { asked: None };
        let unknown = || Next::Over(Made::Unknown(why()));
        // Outcome; then for read and idempotent, and for once: with attempts left, and without.
        for (outcome, repeatable, once) in [
            (Outcome::Failed(why()), [failed(), failed()], [failed(), failed()]),
            (Outcome::Busy(why(), None), [again(), failed()], [failed(), failed()]),
            (Outcome::NotSent(why()), [again(), failed()], [again(), failed()]),
            (Outcome::Unknown(why()), [again(), failed()], [unknown(), unknown()]),
        ] {
            for (attempts_left, (repeatable, once)) in
                [1, 0].into_iter().zip(repeatable.iter().zip(&once))
            {
                for (effect, next) in [
                    (Effect::Read, repeatable),
                    (Effect::Idempotent, repeatable),
                    (Effect::Once, once),
                ] {
                    let is = after(outcome.clone(), effect, attempts_left);
                    assert_eq!(is, *next, "{outcome:?} {effect:?} {attempts_left}");
                }
            }
        }
        for effect in [Effect::Read, Effect::Idempotent, Effect::Once] {
            let done = after(Outcome::Completed(json!(1)), effect, 2);
            assert_eq!(done, Next::Over(Made::Answered(Ok(json!(1)))));
            assert_eq!(after(Outcome::Withheld, effect, 2), Next::Over(Made::Withheld));
        }
    }

    #[test]
    fn a_short_wish_to_be_left_alone_is_honoured_and_a_long_one_ends_the_call() {
        let busy = |seconds| Outcome::Busy("busy".to_owned(), Some(Duration::from_secs(seconds)));
        let asked = Some(Duration::from_secs(3));
        assert_eq!(after(busy(3), Effect::Read, 2), Next::Again { asked });
        let failed = Next::Over(Made::Answered(Err("busy".to_owned())));
        assert_eq!(after(busy(11), Effect::Read, 2), failed);
        assert_eq!(wait(1, asked, 0.0), Duration::from_secs(3));
        assert_eq!(wait(1, None, 1.0), Duration::from_millis(500));
        assert_eq!(wait(2, None, 1.0), Duration::from_secs(1));
    }
}

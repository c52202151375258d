//! Calling the model for the open step: attempts, waits, and what is shown meanwhile.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::domain::decide::Ending;
use crate::domain::event::{Event, EventType};
use crate::domain::limits;
use crate::domain::model::ModelAnswer;
use crate::domain::retry::{FailureKind, ModelFailure, Verdict, verdict};
use crate::domain::run::RunStatus;
use crate::domain::transcript;
use crate::domain::write;
use crate::log::lane::Lane;
use crate::models::{Model, Show};
use crate::store::Owner;

use super::drive::{Driver, Stop};

/// How a wait for the model ended.
enum Waited {
    /// The model answered, or failed.
    Answered(Result<ModelAnswer, ModelFailure>),
    /// What the log says now has to be decided upon; the call was dropped.
    Overtaken,
}

impl Driver {
    /// Opens the open step again, unless this driver has opened it: what another one showed of it is
    /// void.
    pub(super) fn reopen_step(&mut self) -> Result<(), Stop> {
        let turn = self.folded.open_step().ok_or(Stop::Defect)?;
        if self.opened == Some(turn.step) {
            return Ok(());
        }
        let (step, event) = (turn.step, write::step_restarted(turn, turn.attempt + 1));
        self.tell(vec![event])?;
        self.opened = Some(step);
        Ok(())
    }

    /// Calls the model until it has answered or failed for good.
    pub(super) async fn call_model(&mut self) -> Result<(), Stop> {
        let turn = self.folded.open_step().ok_or(Stop::Defect)?;
        let (step, mut attempt) = (turn.step, turn.attempt);
        let provider = self.plan.model.as_ref().map(|model| model.provider.clone());
        let provider = provider.unwrap_or_default();
        let began = Instant::now();
        let mut failures = 0;
        let mut shown_from = self.lane.next_seq();
        loop {
            let waited = match self.plan.model.as_ref().and_then(|m| self.engine.models.find(m)) {
                Some(model) => self.attempt(model, step, attempt).await?,
                None => Waited::Answered(Err(unconfigured(&provider))),
            };
            let failure = match waited {
                Waited::Overtaken => return Ok(()),
                Waited::Answered(Ok(answer)) => {
                    let mut ids = self.engine.clock.clone();
                    let events = write::answered(step, &self.plan, answer, &mut ids);
                    return self.push(events, Owner::Keep).map(drop);
                }
                Waited::Answered(Err(failure)) => failure,
            };
            if let Some(shorter) = self.shortened(&failure, attempt + 1) {
                tracing::warn!(
                    run_id = %self.run_id(), step, attempt, provider,
                    "a prompt was too long for the model: older messages are left out; \
                     context_tokens of the provider would save the call"
                );
                self.tell(vec![shorter])?;
                attempt += 1;
                shown_from = self.lane.next_seq();
                continue;
            }
            failures += 1;
            tracing::warn!(
                run_id = %self.run_id(), step, attempt, provider,
                failure = failure.message.as_str(), "a model call failed"
            );
            match self.judge(&failure, failures, began.elapsed(), &provider) {
                Verdict::GiveUp => return self.end(Ending::Failed(failure.run_error())).await,
                Verdict::Later(wait) => {
                    let due_at = self.now().plus(wait);
                    let message = format!("Waiting for {provider} until {due_at}");
                    return self.let_go(due_at, Some(&message)).await.and(Err(Stop::Rest));
                }
                Verdict::Again(wait) => {
                    if !Box::pin(self.pause(wait, step)).await? {
                        return Ok(());
                    }
                }
            }
            attempt += 1;
            if self.lane.next_seq() > shown_from {
                let turn = self.folded.open_step().ok_or(Stop::Defect)?;
                let event = write::step_restarted(turn, attempt);
                self.tell(vec![event])?;
            }
            shown_from = self.lane.next_seq();
        }
    }

    /// What opens the step again with a shorter prompt, where that can help. It is no retry: no prompt is
    /// sent twice, and it ends when nothing is left that can go.
    fn shortened(&self, failure: &ModelFailure, attempt: i32) -> Option<Event> {
        let helps = failure.kind == FailureKind::ContextOverflow;
        helps.then(|| write::step_shortened(&self.folded, attempt)).flatten()
    }

    fn judge(
        &self,
        failure: &ModelFailure,
        failures: i32,
        elapsed: Duration,
        provider: &str,
    ) -> Verdict {
        let said = verdict(failure, failures, elapsed, self.engine.clock.chance());
        let worn_out = match said {
            Verdict::GiveUp => return Verdict::GiveUp,
            // Attempts before a long wait are counted in the log alone.
            Verdict::Later(_) => {
                let turn = self.folded.open_step();
                turn.is_none_or(|turn| turn.attempt >= limits::MAX_MODEL_ATTEMPTS)
            }
            Verdict::Again(_) => false,
        };
        if worn_out || !self.engine.models.retry_allowed(provider, self.now()) {
            return Verdict::GiveUp;
        }
        said
    }

    /// One attempt. Goes on through what others write to the run, as long as the step stays open.
    async fn attempt(
        &mut self,
        model: Arc<dyn Model>,
        step: i32,
        attempt: i32,
    ) -> Result<Waited, Stop> {
        if !self.faith.holds() {
            return Err(Stop::Doubt);
        }
        let request = transcript::request(&self.folded, &self.plan, step, attempt);
        let mut show = ShowInLane {
            lane: self.lane.clone(),
            step,
            clock: self.engine.clock.clone(),
            overlong: self.overlong.clone(),
        };
        if let Some(model) = &self.plan.model {
            self.engine.models.called(&model.provider, self.now());
        }
        let mut call = model.call(&request, &mut show);
        loop {
            let stop = tokio::select! {
                biased;
                // First, so that nothing is sent or read by a node that others may have replaced.
                () = self.faith.lost() => Stop::Doubt,
                answer = &mut call => return Ok(Waited::Answered(answer)),
                stop = self.interrupted(self.deadline()) => stop,
            };
            let Stop::Look(why) = stop else { return Err(stop) };
            // The call goes on meanwhile: nobody polls it, but its socket stays open. What is rare is on
            // the heap: there are as many of these futures as runs.
            Box::pin(self.look(why)).await?;
            if !self.still_open(step) {
                return Ok(Waited::Overtaken);
            }
        }
    }

    /// Waits before another attempt. `false`: the step is no longer open.
    async fn pause(&mut self, wait: Duration, step: i32) -> Result<bool, Stop> {
        let until = Instant::now() + wait;
        loop {
            let stop = tokio::select! {
                () = tokio::time::sleep_until(until) => return Ok(true),
                stop = self.interrupted(self.deadline()) => stop,
            };
            let Stop::Look(why) = stop else { return Err(stop) };
            Box::pin(self.look(why)).await?;
            if !self.still_open(step) {
                return Ok(false);
            }
        }
    }

    fn still_open(&self, step: i32) -> bool {
        self.folded.status == RunStatus::Running
            && self.folded.open_step().is_some_and(|t| t.step == step && t.message.is_none())
    }
}

fn unconfigured(provider: &str) -> ModelFailure {
    let message = format!("No provider {provider:?} is configured (any more).");
    ModelFailure::new(FailureKind::Unconfigured, message)
}

/// Shows pieces of an answer by putting them into the run's lane.
struct ShowInLane {
    lane: Arc<Lane>,
    step: i32,
    clock: Clock,
    overlong: Arc<Notify>,
}

impl ShowInLane {
    fn is_overlong(&self) -> bool {
        let (events, bytes) = self.lane.size();
        events >= limits::MAX_EVENTS || bytes >= limits::MAX_LOG_BYTES
    }
}

impl Show for ShowInLane {
    fn text(&mut self, piece: &str) {
        self.lane.push_delta(EventType::MessageDelta, self.step, piece, self.clock.now());
    }

    fn reasoning(&mut self, piece: &str) {
        self.lane.push_delta(EventType::ReasoningDelta, self.step, piece, self.clock.now());
    }

    fn is_full(&self) -> bool {
        self.lane.is_full() || self.is_overlong()
    }

    fn room(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            if self.is_overlong() {
                // The run ends here; nobody reads this socket any more.
                self.overlong.notify_one();
                return std::future::pending().await;
            }
            self.lane.room().await;
        })
    }
}

//! What people and programs say to a run: whether a call may be made, what came of one, and what the
//! model should know.

use std::sync::Arc;

use crate::domain::answer::{Refusal, Report, Verdict};
use crate::domain::ids::{CallId, MessageId, RunId};
use crate::domain::message::Content;
use crate::domain::page::{Listed, Page};
use crate::domain::plan::Plan;
use crate::domain::problem::Problems;
use crate::domain::run::OpenApproval;
use crate::domain::write::NewIds as _;
use crate::log::guest;
use crate::store::{GuestDecide, GuestOutcome, GuestWrite, NewKey, RunRecord};

use super::idempotency::{Answer, RequestKey, taken};
use super::{App, AppError, Caller, Sought};

/// What is said about a call.
enum Word {
    Verdict(Verdict),
    Report(Report),
}

impl Word {
    const fn call_id(&self) -> CallId {
        match self {
            Self::Verdict(verdict) => verdict.call_id,
            Self::Report(report) => report.call_id,
        }
    }
}

/// What became of a visit: done, or found done by an earlier request with the same key.
enum Visited {
    Done,
    Before(String),
}

impl App {
    /// Takes a decision about a call, and gives the run as it is then.
    ///
    /// # Errors
    /// [`AppError::NotFound`] for the run or the call, [`AppError::AlreadyDecided`],
    /// [`AppError::RunEnded`], [`AppError::Invalid`].
    pub async fn decide_approval(
        &self,
        caller: &Caller,
        run_id: RunId,
        mut verdict: Verdict,
        key: Option<&RequestKey>,
    ) -> Result<Answer<RunRecord>, AppError> {
        verdict.decided_by.clone_from(&caller.key_id);
        self.answer(caller, run_id, Word::Verdict(verdict), key).await
    }

    /// Takes what came of a call, and gives the run as it is then.
    ///
    /// # Errors
    /// As [`App::decide_approval`].
    pub async fn post_tool_result(
        &self,
        caller: &Caller,
        run_id: RunId,
        mut report: Report,
        key: Option<&RequestKey>,
    ) -> Result<Answer<RunRecord>, AppError> {
        report.said_by.clone_from(&caller.key_id);
        self.answer(caller, run_id, Word::Report(report), key).await
    }

    /// Takes an answer to a call of this run, or of one below it: what a child waits for may be answered
    /// at its parent.
    async fn answer(
        &self,
        caller: &Caller,
        run_id: RunId,
        word: Word,
        key: Option<&RequestKey>,
    ) -> Result<Answer<RunRecord>, AppError> {
        match self.answer_of_run(caller, run_id, run_id, &word, key).await {
            Err(AppError::NotFound(Sought::Call)) => {
                let workspace_id = caller.workspace_id;
                let found = self.log.run_of_call(workspace_id, run_id, word.call_id()).await?;
                let below = found.filter(|found| *found != run_id);
                let below = below.ok_or(AppError::NotFound(Sought::Call))?;
                self.answer_of_run(caller, run_id, below, &word, key).await
            }
            answer => answer,
        }
    }

    /// Writes an answer to `of`, and gives the run that was asked for, `run_id`, as it is then.
    async fn answer_of_run(
        &self,
        caller: &Caller,
        run_id: RunId,
        of: RunId,
        word: &Word,
        key: Option<&RequestKey>,
    ) -> Result<Answer<RunRecord>, AppError> {
        let decide = match word {
            Word::Verdict(verdict) => {
                // Edited arguments are held against the tool.
                let record = self.get_run(caller, of).await?;
                let plan = Arc::new(self.plan_of(&record).await?);
                guest::decide(self.clock(), plan, verdict.clone())
            }
            Word::Report(report) => guest::report(self.clock(), report.clone()),
        };
        let key = self.new_key(caller, key, &run_id);
        match self.visit(caller, of, decide, key).await? {
            Visited::Done => {
                let mut record = self.get_run(caller, of).await?;
                if record.row.parent_run_id.is_some() {
                    // The answer is taken, whatever becomes of this.
                    if let Err(error) = self.log.lead_on(&record.row).await {
                        tracing::warn!(run_id = %of, %error, "runs above it go on a moment later");
                    }
                    record = self.get_run(caller, run_id).await?;
                }
                Ok(Answer::new(record))
            }
            Visited::Before(run) => self.replayed_run(caller, &run).await.map(Answer::replay),
        }
    }

    /// Lets the run's model know something before its next call; gives the message's id.
    ///
    /// # Errors
    /// [`AppError::NotFound`], [`AppError::RunEnded`], [`AppError::Invalid`].
    pub async fn steer_run(
        &self,
        caller: &Caller,
        run_id: RunId,
        content: Content,
        key: Option<&RequestKey>,
    ) -> Result<Answer<MessageId>, AppError> {
        let mut problems = Problems::new();
        content.check("/content", &mut problems);
        if let Err(problems) = problems.into_result() {
            // A run that is not there is told first.
            self.get_run(caller, run_id).await?;
            return Err(AppError::Invalid(problems));
        }
        let message_id = self.clock().clone().message_id();
        let decide = guest::steer(self.clock(), message_id, content);
        let key = self.new_key(caller, key, &message_id);
        match self.visit(caller, run_id, decide, key).await? {
            Visited::Done => Ok(Answer::new(message_id)),
            Visited::Before(message) => replayed_message(&message).map(Answer::replay),
        }
    }

    async fn visit(
        &self,
        caller: &Caller,
        run_id: RunId,
        decide: GuestDecide,
        key: Option<NewKey>,
    ) -> Result<Visited, AppError> {
        let workspace_id = caller.workspace_id;
        let write = GuestWrite { workspace_id, run_id, key: key.clone(), decide };
        match self.log.visit(write).await? {
            GuestOutcome::Done { .. } => Ok(Visited::Done),
            GuestOutcome::Absent => Err(AppError::NotFound(Sought::Run)),
            GuestOutcome::KeyTaken(row) => taken(key.as_ref(), row).map(Visited::Before),
            GuestOutcome::Refused(refusal) => Err(match refusal {
                Refusal::NoSuchCall => AppError::NotFound(Sought::Call),
                Refusal::AlreadyDecided(call_id) => AppError::AlreadyDecided(call_id),
                Refusal::RunEnded(status) => AppError::RunEnded { run_id, status },
                Refusal::Invalid(problems) => AppError::Invalid(problems),
            }),
        }
    }

    /// Approvals that nobody has decided, of all runs of the workspace.
    ///
    /// # Errors
    /// Only the store's.
    pub async fn list_approvals(
        &self,
        caller: &Caller,
        page: &Page<CallId>,
    ) -> Result<Listed<OpenApproval>, AppError> {
        Ok(self.store().list_approvals(caller.workspace_id, page).await?)
    }

    /// What a run was told to do.
    async fn plan_of(&self, record: &RunRecord) -> Result<Plan, AppError> {
        let agent = self.agent_of(record).await?;
        Ok(Plan::new(record.body.config.over(&agent.settings), &self.catalogue))
    }
}

/// The message that an earlier request made.
///
/// # Errors
/// [`AppError::NotFound`] when that was no message.
pub fn replayed_message(resource: &str) -> Result<MessageId, AppError> {
    resource.parse().map_err(|_| AppError::NotFound(Sought::Run))
}

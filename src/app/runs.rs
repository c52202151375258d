//! Runs: create, read, list, wait, cancel, erase.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::agent;
use crate::domain::event::Entry;
use crate::domain::fold::Folded;
use crate::domain::ids::RunId;
use crate::domain::message::Input;
use crate::domain::page::{Listed, Page};
use crate::domain::plan::Plan;
use crate::domain::problem::{Problem, Problems};
use crate::domain::run::RunConfig;
use crate::domain::step::Step;
use crate::log::{Created, Cursor, Draft, Erased};
pub use crate::log::{FollowError, Gap, Next};
use crate::store::{GuestOutcome, LogRange, NewKey, NewRun};

pub use crate::store::{RunFilter, RunRecord};

use super::agents::check_model;
use super::current::CurrentAgent;
use super::idempotency::{Answer, RequestKey, taken};
use super::turns::Turn;
use super::{App, AppError, Caller, Sought};

/// How often a creation that met a newer version of its agent is made again.
const MAX_RACES: usize = 3;
/// Characters of `end_user_id`: longer than any id in use, short enough for a column.
const MAX_END_USER_CHARS: usize = 256;

/// A run to be created.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRequest {
    /// What it starts from; only a turn may have none, to answer what its conversation holds already.
    pub input: Option<Input>,
    /// The turn that it asks for, in a conversation as it was a moment ago.
    pub turn: Option<Turn>,
    /// What it changes about its agent.
    pub config: RunConfig,
    /// The client's own user.
    pub end_user_id: Option<String>,
    /// The client's notes.
    pub metadata: BTreeMap<String, String>,
}

/// A cursor over a run's log.
pub struct Follow(Cursor);

impl Follow {
    /// What comes next: waits until there is something. Cancel-safe. Nothing follows the final event:
    /// do not ask again.
    ///
    /// # Errors
    /// See [`Cursor::next`].
    pub async fn next(&mut self) -> Result<Next, FollowError> {
        self.0.next().await
    }
}

impl App {
    /// Creates a run of `agent`, which may be old: the run is pinned to the version that is current
    /// when it is written.
    ///
    /// # Errors
    /// [`AppError::Invalid`], [`AppError::AgentArchived`], and [`AppError::Contended`] when the agent
    /// changes faster than runs of it can be created.
    pub async fn create_run(
        &self,
        caller: &Caller,
        mut agent: Arc<CurrentAgent>,
        mut request: RunRequest,
        key: Option<&RequestKey>,
    ) -> Result<Answer<RunRecord>, AppError> {
        // What the request says itself, where its conversation says more.
        let said = request.turn.as_ref().map(|turn| {
            let merged = request.config.or(&turn.conversation.parameters);
            std::mem::replace(&mut request.config, merged)
        });
        for _ in 0..MAX_RACES {
            let checked = self.checked(caller, agent, &mut request).await;
            agent = checked.map_err(|error| match &said {
                Some(said) => tell_inherited(error, said),
                None => error,
            })?;
            let run_id = self.log.clock.run_id();
            let key = self.new_key(caller, key, &run_id);
            let new = self.new_run(caller, run_id, &agent, &mut request, key.clone())?;
            match self.log.create(new).await? {
                Created::New(record) => return Ok(Answer::new(*record)),
                Created::KeyTaken(row) => {
                    let resource = taken(key.as_ref(), row)?;
                    return self.replayed_run(caller, &resource).await.map(Answer::replay);
                }
                Created::AgentMoved => {
                    agent = self.reload_agent(caller, &agent.agent.agent_id).await?;
                }
                Created::ConversationGone => return Err(AppError::NotFound(Sought::Conversation)),
                // Nobody called it.
                Created::FamilyFull => return Err(AppError::Contended),
                Created::Refused(refusal) => {
                    let turn = request.turn.as_ref().map(|turn| turn.conversation.conversation_id);
                    let conversation_id = turn.ok_or(AppError::NotFound(Sought::Conversation))?;
                    return Err(AppError::Conversation { conversation_id, refusal });
                }
            }
        }
        Err(AppError::Contended)
    }

    /// The run that an earlier request made, as it is today.
    ///
    /// # Errors
    /// [`AppError::NotFound`] when it was deleted since: a key never makes a second one.
    pub async fn replayed_run(
        &self,
        caller: &Caller,
        resource: &str,
    ) -> Result<RunRecord, AppError> {
        let run_id = resource.parse().map_err(|_| AppError::NotFound(Sought::Run))?;
        self.get_run(caller, run_id).await
    }

    /// A run as it is.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn get_run(&self, caller: &Caller, run_id: RunId) -> Result<RunRecord, AppError> {
        let record = self.log.load_run(caller.workspace_id, run_id).await?;
        record.ok_or(AppError::NotFound(Sought::Run))
    }

    /// A run once it has ended or waits for somebody, or as it is after `patience`.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn settled_run(
        &self,
        caller: &Caller,
        run_id: RunId,
        patience: Duration,
    ) -> Result<RunRecord, AppError> {
        let record = self.log.settled(caller.workspace_id, run_id, patience).await?;
        record.ok_or(AppError::NotFound(Sought::Run))
    }

    /// Runs that the filter lets through, by `run_id`.
    ///
    /// # Errors
    /// Only the store's.
    pub async fn list_runs(
        &self,
        caller: &Caller,
        filter: &RunFilter,
        page: &Page<RunId>,
    ) -> Result<Listed<RunRecord>, AppError> {
        Ok(self.store().list_runs(caller.workspace_id, filter, page).await?)
    }

    /// A page of a run's log.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn read_log(
        &self,
        caller: &Caller,
        run_id: RunId,
        page: &Page<i32>,
    ) -> Result<Listed<Entry>, AppError> {
        let scan = page.scan();
        let range = LogRange {
            above: scan.above.unwrap_or(0),
            below: scan.below.unwrap_or(i32::MAX),
            limit: scan.limit,
            descending: scan.order == crate::domain::page::Order::Desc,
        };
        let entries = self.store().read_log(caller.workspace_id, run_id, range).await?;
        entries.map(|entries| page.finish(entries)).ok_or(AppError::NotFound(Sought::Run))
    }

    /// All steps of a run.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn steps(&self, caller: &Caller, run_id: RunId) -> Result<Vec<Step>, AppError> {
        let facts = self.store().read_facts(caller.workspace_id, run_id, 0).await?;
        if facts.is_empty() {
            // Every run has its first event: no fact, no run.
            return Err(AppError::NotFound(Sought::Run));
        }
        Ok(Folded::read(&facts)?.steps())
    }

    /// A cursor over a run's log: what comes after `after`. The run must have been seen by the caller.
    pub fn follow(&self, caller: &Caller, run_id: RunId, after: i32) -> Follow {
        Follow(self.log.follow(caller.workspace_id, run_id, after))
    }

    /// Asks a run to stop, and gives it back as it is then. Nothing happens to one that has ended.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn cancel_run(
        &self,
        caller: &Caller,
        run_id: RunId,
        key: Option<&RequestKey>,
    ) -> Result<Answer<RunRecord>, AppError> {
        let key = self.new_key(caller, key, &run_id);
        match self.log.cancel_tree(caller.workspace_id, run_id, key.clone()).await? {
            GuestOutcome::Absent => Err(AppError::NotFound(Sought::Run)),
            GuestOutcome::Done { .. } | GuestOutcome::Refused(_) => {
                self.get_run(caller, run_id).await.map(Answer::new)
            }
            GuestOutcome::KeyTaken(row) => {
                let resource = taken(key.as_ref(), row)?;
                self.replayed_run(caller, &resource).await.map(Answer::replay)
            }
        }
    }

    /// Erases an ended run with its log, and all below it.
    ///
    /// # Errors
    /// [`AppError::NotFound`], and [`AppError::RunActive`] when it has not ended, or one below it.
    pub async fn erase_run(
        &self,
        caller: &Caller,
        run_id: RunId,
        key: Option<&RequestKey>,
    ) -> Result<Answer<()>, AppError> {
        let key = self.new_key(caller, key, &run_id);
        match self.log.erase(caller.workspace_id, run_id, key.clone()).await? {
            Erased::Done => Ok(Answer::new(())),
            Erased::Absent => Err(AppError::NotFound(Sought::Run)),
            Erased::Active(run_id) => {
                let status = self.get_run(caller, run_id).await?.row.status;
                Err(AppError::RunActive { run_id, status })
            }
            Erased::KeyTaken(row) => taken(key.as_ref(), row).map(|_| Answer::replay(())),
        }
    }

    /// Checks a request against its agent. What is refused is refused by the agent as it is now: an
    /// old version may lack a tool that the request names.
    async fn checked(
        &self,
        caller: &Caller,
        agent: Arc<CurrentAgent>,
        request: &mut RunRequest,
    ) -> Result<Arc<CurrentAgent>, AppError> {
        let agent = match self.check_request(request, &agent.agent) {
            Ok(()) => agent,
            Err(_) => {
                let fresh = self.reload_agent(caller, &agent.agent.agent_id).await?;
                self.check_request(request, &fresh.agent).map_err(AppError::Invalid)?;
                fresh
            }
        };
        if agent.agent.archived_at.is_some() {
            return Err(AppError::AgentArchived);
        }
        Ok(agent)
    }

    fn check_request(
        &self,
        request: &mut RunRequest,
        agent: &agent::Agent,
    ) -> Result<(), Problems> {
        let mut problems = Problems::new();
        match &request.input {
            Some(input) => input.check("/input", &mut problems),
            None => problems.require(request.turn.is_some(), "/input", "is required"),
        }
        if request.config != RunConfig::default()
            && let Err(found) = request.config.check(&agent.settings, &self.catalogue)
        {
            problems.extend(found.under("/config"));
        }
        if let Some(model) = &request.config.model {
            problems.extend(check_model(model, "/config/model"));
        }
        agent::check_metadata(&request.metadata, "/metadata", &mut problems);
        let fits = |id: &String| {
            (1..=MAX_END_USER_CHARS).contains(&id.chars().count()) && !id.contains('\0')
        };
        problems.require(
            request.end_user_id.as_ref().is_none_or(fits),
            "/end_user_id",
            "must have 1 to 256 characters and no U+0000",
        );
        problems.into_result()
    }

    /// The run as it is written; the request keeps its input, which may be written again.
    fn new_run(
        &self,
        caller: &Caller,
        run_id: RunId,
        agent: &CurrentAgent,
        request: &mut RunRequest,
        key: Option<NewKey>,
    ) -> Result<NewRun, AppError> {
        let mut config = request.config.clone();
        if let Some(turn) = &request.turn {
            config.append_prompt(&agent.agent.settings, turn.conversation.system_prompt.as_deref());
        }
        let own = (config != RunConfig::default())
            .then(|| Plan::new(config.over(&agent.agent.settings), &self.catalogue));
        let input = request.input.take();
        let has_input = input.is_some();
        let draft = Draft {
            run_id,
            workspace_id: caller.workspace_id,
            agent: &agent.agent,
            plan: own.as_ref().unwrap_or(&agent.plan),
            input: input.unwrap_or(Input::Messages(Vec::new())),
            config,
            end_user_id: request.end_user_id.clone(),
            metadata: request.metadata.clone(),
            turn: request.turn.as_ref().map(Turn::new_turn),
            parent_run_id: None,
            root_run_id: None,
            depth: 0,
            key,
            at: self.now(),
        };
        let (new, input) = draft.write()?;
        request.input = has_input.then_some(input);
        Ok(new)
    }
}

/// Of what is wrong with a config, what the request did not say comes from its conversation: to whoever
/// reads the error, it is in a field that is not there, and can be overruled by one that is.
fn tell_inherited(error: AppError, said: &RunConfig) -> AppError {
    let AppError::Invalid(problems) = error else { return error };
    let said = serde_json::to_value(said).unwrap_or_default();
    let mut told = Problems::new();
    for Problem { pointer, message } in problems.into_vec() {
        let rest = pointer.strip_prefix("/config/");
        match rest.and_then(|rest| rest.split('/').next()).filter(|f| said.get(f).is_none()) {
            Some(field) => told.add(
                format!("/config/{field}"),
                format!(
                    "is left out, and in the conversation's parameters {message}: send another"
                ),
            ),
            None => told.add(pointer, message),
        }
    }
    AppError::Invalid(told)
}

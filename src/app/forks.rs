//! Forks: a new run that takes over what another one has done up to a step, and goes on from there.

use serde_json::Value;

use crate::domain::agent::{Agent, AgentSettings};
use crate::domain::event::{Entry, Event, RunQueued, SteeringInput};
use crate::domain::fold::Folded;
use crate::domain::ids::RunId;
use crate::domain::message::{Input, Role};
use crate::domain::plan::Plan;
use crate::domain::problem::Problems;
use crate::domain::run::{RunConfig, RunStatus};
use crate::domain::write::NewIds as _;
use crate::domain::{fork, limits, transcript};
use crate::log::Created;
use crate::store::{NewKey, NewRun, Owner, RunBody, RunRecord, RunUpdate};

use super::agents::check_model;
use super::idempotency::{Answer, RequestKey, taken};
use super::{App, AppError, Caller, Sought};

/// A fork to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct ForkRequest {
    /// The first step that is not taken over.
    pub from_step: i32,
    /// What it changes about the run that it is forked from.
    pub config: RunConfig,
    /// What the user says before it goes on.
    pub input: Option<Input>,
}

/// What a fork is made of.
struct Source {
    record: RunRecord,
    facts: Vec<Entry>,
    folded: Folded,
    config: RunConfig,
    plan: Plan,
}

impl App {
    /// Forks a run: the new one has copies of the steps before `from_step`, and goes on from there.
    /// Nothing is called for it, and it is of the same version of the agent.
    ///
    /// # Errors
    /// [`AppError::NotFound`], [`AppError::Invalid`], and [`AppError::AgentArchived`].
    pub async fn fork_run(
        &self,
        caller: &Caller,
        run_id: RunId,
        request: ForkRequest,
        key: Option<&RequestKey>,
    ) -> Result<Answer<RunRecord>, AppError> {
        let source = self.source(caller, run_id, &request).await?;
        let new_id = self.clock().run_id();
        let key = self.new_key(caller, key, &new_id);
        let new = self.forked(new_id, source, request, key.clone())?;
        match self.log.create(new).await? {
            Created::New(record) => Ok(Answer::new(*record)),
            Created::KeyTaken(row) => {
                let resource = taken(key.as_ref(), row)?;
                self.replayed_run(caller, &resource).await.map(Answer::replay)
            }
            // Any version will do, so it can only have been archived.
            Created::AgentMoved => Err(AppError::AgentArchived),
            // A fork is no turn of a conversation, and nobody called it.
            Created::Refused(_) | Created::ConversationGone | Created::FamilyFull => {
                Err(AppError::Contended)
            }
        }
    }

    async fn source(
        &self,
        caller: &Caller,
        run_id: RunId,
        request: &ForkRequest,
    ) -> Result<Source, AppError> {
        let record = self.get_run(caller, run_id).await?;
        let agent = self.agent_of(&record).await?;
        let config = merged(&record.body.config, &request.config)?;
        let config = self.checked_config(config, request, &agent.settings)?;
        if agent.archived_at.is_some() {
            return Err(AppError::AgentArchived);
        }
        let facts = self.store().read_facts(caller.workspace_id, run_id, 0).await?;
        if facts.is_empty() {
            // Erased since.
            return Err(AppError::NotFound(Sought::Run));
        }
        let folded = Folded::read(&facts)?;
        let last = folded.steps_completed + 1;
        if !(1..=last).contains(&request.from_step) {
            return Err(AppError::invalid("/from_step", format!("must be 1 to {last}")));
        }
        let plan = Plan::new(config.over(&agent.settings), &self.catalogue);
        Ok(Source { record, facts, folded, config, plan })
    }

    fn checked_config(
        &self,
        mut config: RunConfig,
        request: &ForkRequest,
        settings: &AgentSettings,
    ) -> Result<RunConfig, AppError> {
        let mut problems = Problems::new();
        if let Some(input) = &request.input {
            input.check("/input", &mut problems);
            let users = input.messages().iter().all(|message| message.role == Role::User);
            problems.require(users, "/input", "only messages of role user can be appended");
        }
        if let Err(found) = config.check(settings, &self.catalogue) {
            problems.extend(found.under("/config"));
        }
        if let Some(model) = &config.model {
            problems.extend(check_model(model, "/config/model"));
        }
        problems.into_result().map(|()| config).map_err(AppError::Invalid)
    }

    fn forked(
        &self,
        run_id: RunId,
        source: Source,
        request: ForkRequest,
        key: Option<NewKey>,
    ) -> Result<NewRun, AppError> {
        let Source { record, facts, folded, config, plan } = source;
        let now = self.now();
        let first = Event::RunQueued(RunQueued {
            status: RunStatus::Queued,
            agent_id: record.row.agent_id.clone(),
            agent_version: record.row.agent_version,
            model: plan.settings.model.clone(),
            input: folded.input,
            conversation_id: None,
            parent_run_id: None,
            forked_from_run_id: Some(record.row.run_id),
            depth: 0,
        });
        let mut ids = self.clock().clone();
        let mut events = fork::copied(&facts, request.from_step, &mut ids)?;
        for message in request.input.iter().flat_map(Input::messages) {
            events.push(Event::InputReceived(SteeringInput {
                message_id: ids.message_id(),
                content: message.content,
                step: request.from_step,
            }));
        }
        let first = first.entry(run_id, 1, now)?;
        let copied = (2..)
            .zip(&events)
            .map(|(seq, event)| event.entry(run_id, seq, now))
            .collect::<Result<Vec<Entry>, _>>()?;
        let bytes: usize = copied.iter().map(|entry| entry.data.len()).sum();
        if bytes as u64 >= limits::MAX_LOG_BYTES {
            return Err(AppError::invalid("/from_step", "the log up to there is full"));
        }
        let folded = Folded::read(std::iter::once(&first).chain(&copied))?;
        let turns = transcript::turns(&folded, &plan, request.from_step);
        let body = RunBody {
            model: plan.settings.model.clone(),
            config,
            max_steps: plan.settings.max_steps,
            estimated_cost: plan.worst_case(transcript::bytes(&turns, &plan)),
            metadata: record.body.metadata,
        };
        let mut row = record.row;
        row.forked_from_run_id = Some(row.run_id);
        row.run_id = run_id;
        row.node_id = None;
        (row.rev, row.epoch, row.crashes) = (1, 0, 0);
        // What the copies make of it: their steps are over, and cost nothing.
        row.steps_completed = 0;
        row.created_at = now;
        // It reads what was said before, and is no turn of that conversation itself.
        (row.conversation_id, row.cost_ceiling) = (None, None);
        // Nobody calls it, whoever called the other one.
        (row.parent_run_id, row.root_run_id) = (None, None);
        let owner = Owner::Nobody { due_at: Some(now) };
        RunUpdate::of(&folded, owner).apply(&mut row);
        Ok(NewRun { row, body, first, copied, turn: None, key })
    }

    /// The agent of a run, at the run's version.
    pub(super) async fn agent_of(&self, record: &RunRecord) -> Result<Agent, AppError> {
        let row = &record.row;
        let version = Some(row.agent_version);
        let agent = self.store().load_agent(row.workspace_id, &row.agent_id, version).await?;
        agent.ok_or_else(|| {
            let what = format!("version {} of {} is not there", row.agent_version, row.agent_id);
            AppError::Store(crate::store::StoreError::Corrupt(what))
        })
    }
}

/// The config of a run with what a fork changes about it: a field that is given replaces the run's.
fn merged(of_run: &RunConfig, of_fork: &RunConfig) -> Result<RunConfig, AppError> {
    let mut merged = serde_json::to_value(of_run)?;
    if let (Value::Object(fields), Value::Object(more)) =
        (&mut merged, serde_json::to_value(of_fork)?)
    {
        fields.extend(more);
    }
    Ok(serde_json::from_value(merged)?)
}

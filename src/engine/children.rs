//! Child runs: calls of `agent` tools, each answered by a run of its own.
//!
//! A driver sees to it that the children of its calls exist, looks how they are, and lets go of the run
//! when there is nothing to do but wait for them: a parent that waits holds no slot, or parents would
//! starve their children. A child that comes to rest has the parent roused (`log/family.rs`), and
//! whoever drives it then looks again. Nothing is kept between two looks, so a driver that takes over
//! from a dead one does the same.

use futures_util::future::join_all;
use serde_json::Value;

use crate::domain::event::Event;
use crate::domain::family::{self, ChildState};
use crate::domain::fold::Folded;
use crate::domain::ids::{AgentId, CallId, RunId};
use crate::domain::message::Input;
use crate::domain::money::Usd;
use crate::domain::plan::Plan;
use crate::domain::problem::Problems;
use crate::domain::run::{RequiredAction, RunConfig, RunStatus};
use crate::domain::time::Timestamp;
use crate::domain::write;
use crate::log::{Created, Draft};
use crate::store::{GuestOutcome, Owner, RunRecord, RunRow, StoreError};

use super::Engine;
use super::drive::{Driver, LOOK_AGAIN, Stop};

/// How often a child that met a newer version of its agent is written again before it waits a little.
const MAX_RACES: usize = 3;

/// A child as it is to be, if it is not there yet.
struct ToBe {
    call_id: CallId,
    run_id: RunId,
    agent_id: AgentId,
    input: Input,
    config: RunConfig,
}

/// How a call's child was found.
enum Met {
    /// It lives.
    Alive(ChildState),
    /// It has ended, or cannot be: the call is answered.
    Over { answer: Result<Value, String>, cost: Option<Usd> },
}

impl Driver {
    /// Sees to it that these calls have their children, writes the answers of those that have ended, and
    /// remembers how the others are.
    pub(super) async fn meet_children(&mut self, calls: &[CallId]) -> Result<(), Stop> {
        let all: Vec<Result<ToBe, (CallId, String)>> = self.to_be(calls);
        let parent = &self.record.row;
        let depth = self.folded.depth.saturating_add(1);
        let met = join_all(all.into_iter().map(|to_be| async {
            match to_be {
                Ok(to_be) => (to_be.call_id, self.engine.meet(parent, depth, to_be).await),
                Err((call_id, why)) => (call_id, Ok(refused(why))),
            }
        }));
        let (mut events, mut again) = (Vec::new(), false);
        let now = self.now();
        for (call_id, met) in met.await {
            match met {
                Ok(Met::Alive(state)) => drop(self.children.insert(call_id, state)),
                Ok(Met::Over { answer, cost }) => {
                    let Some((step, call)) = self.call(call_id) else { continue };
                    let event = write::call_answered(step, call, answer, now);
                    events.push(family::at_cost(event, cost));
                }
                Err(error) => {
                    tracing::warn!(run_id = %self.run_id(), %call_id, %error, "a child run is not met");
                    again = true;
                }
            }
        }
        if !events.is_empty() {
            self.push(events, Owner::Keep)?;
        }
        if again {
            tokio::select! {
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                // What time brings is due already, or waits for half a second.
                stop = self.interrupted(None) => return Err(stop),
            }
        }
        Ok(())
    }

    /// The children of these calls as they would be made now, or why one cannot be.
    fn to_be(&self, calls: &[CallId]) -> Vec<Result<ToBe, (CallId, String)>> {
        let now = self.now();
        let live = self.folded.live_children().filter(|(call, _)| calls.contains(&call.call_id));
        live.map(|(call, child)| {
            let refuse = |why: &str| (call.call_id, why.to_owned());
            let tool = family::agent_tool(&self.plan, &call.tool)
                .ok_or_else(|| refuse("There is no such agent tool any more."))?;
            let text = call.arguments.get("input").and_then(Value::as_str).unwrap_or_default();
            let input = Input::Text(text.to_owned());
            let mut problems = Problems::new();
            input.check("/input", &mut problems);
            problems.into_result().map_err(|_| refuse("The input must not be empty."))?;
            Ok(ToBe {
                call_id: call.call_id,
                run_id: child.run_id,
                agent_id: tool.agent_id.clone(),
                input,
                config: family::ceilings(&self.folded, &self.plan, tool, child, now),
            })
        })
        .collect()
    }

    /// Asks the children of these calls to stop.
    pub(super) async fn cancel_children(&mut self, calls: &[CallId]) -> Result<(), Stop> {
        let live = self.folded.live_children().filter(|(call, _)| calls.contains(&call.call_id));
        let children: Vec<_> = live.map(|(call, child)| (call.call_id, child.run_id)).collect();
        let workspace_id = self.record.row.workspace_id;
        let log = &self.engine.log;
        let asked = children.into_iter().map(|(call_id, run_id)| async move {
            (call_id, log.cancel(workspace_id, run_id, None).await)
        });
        let mut away = false;
        for (call_id, asked) in join_all(asked).await {
            match asked {
                Ok(GuestOutcome::Done { node_id, appended, .. })
                    if node_id.is_some()
                        || appended.last().is_none_or(|e| !e.event_type.is_final()) =>
                {
                    self.children.insert(call_id, ChildState::Stopping);
                }
                // It has ended, with this or before: look at it again.
                Ok(_) => drop(self.children.remove(&call_id)),
                Err(error) => {
                    tracing::warn!(run_id = %self.run_id(), %error, "a child run is not cancelled yet");
                    away = true;
                }
            }
        }
        if away {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Lets go of the run until a child has something to say, or until then.
    pub(super) async fn await_children(&mut self, until: Timestamp) -> Result<(), Stop> {
        let mut tools: Vec<&str> =
            self.folded.live_children().map(|(call, _)| call.tool.as_str()).collect();
        tools.dedup();
        let message = format!("Waiting for {}", tools.join(", "));
        self.let_go(until, Some(&message)).await.and(Err(Stop::Rest))
    }

    /// What the children that were met wait for.
    pub(super) fn children_actions(&self) -> Vec<RequiredAction> {
        let live = self.folded.live_children();
        let actions = live.filter_map(|(call, _)| match self.children.get(&call.call_id)? {
            ChildState::Parked(actions) => Some(actions.clone()),
            ChildState::Active | ChildState::Stopping => None,
        });
        actions.flatten().collect()
    }
}

impl Engine {
    /// Finds a child, or makes it. Made twice, by whoever has lost the run and does not know it yet, it
    /// is there once: its id is the call's.
    async fn meet(&self, parent: &RunRow, depth: u32, to_be: ToBe) -> Result<Met, StoreError> {
        let (workspace_id, run_id) = (parent.workspace_id, to_be.run_id);
        let mut input = to_be.input;
        for _ in 0..MAX_RACES {
            if let Some(record) = self.log.load_run(workspace_id, run_id).await? {
                return met(&record);
            }
            let store = &self.log.store;
            let agent = store.load_agent(workspace_id, &to_be.agent_id, None).await?;
            let agent = match agent {
                None => return Ok(refused(format!("There is no agent {}.", to_be.agent_id))),
                Some(agent) if agent.archived_at.is_some() => {
                    return Ok(refused(format!("The agent {} is archived.", to_be.agent_id)));
                }
                Some(agent) => agent,
            };
            let plan = Plan::new(to_be.config.over(&agent.settings), self.plans.catalogue());
            let draft = Draft {
                turn: None,
                run_id,
                workspace_id,
                agent: &agent,
                plan: &plan,
                input,
                config: to_be.config.clone(),
                end_user_id: parent.end_user_id.clone(),
                metadata: std::collections::BTreeMap::new(),
                parent_run_id: Some(parent.run_id),
                root_run_id: Some(parent.root_run_id.unwrap_or(parent.run_id)),
                depth,
                key: None,
                at: self.clock.now(),
            };
            let unwritable = |error: serde_json::Error| StoreError::Corrupt(error.to_string());
            let (new, again) = draft.write().map_err(unwritable)?;
            input = again;
            match self.log.create(new).await {
                Ok(Created::New(_)) => return Ok(Met::Alive(ChildState::Active)),
                Ok(Created::FamilyFull) => return Ok(refused(family::full())),
                Ok(
                    Created::AgentMoved
                    | Created::KeyTaken(_)
                    // A child is no turn of a conversation.
                    | Created::Refused(_)
                    | Created::ConversationGone,
                ) => {}
                // Its id is taken: somebody was quicker, or it was erased.
                Err(StoreError::Rejected(_)) => {
                    return match self.log.load_run(workspace_id, run_id).await? {
                        Some(record) => met(&record),
                        None => Ok(refused("The agent's run was deleted.".to_owned())),
                    };
                }
                Err(error) => return Err(error),
            }
        }
        // Its agent changes faster than a run of it can be written: later.
        Err(StoreError::Overloaded)
    }

    /// Asks the children of a run that cannot be driven to stop. Nobody will wait for their ends.
    pub(super) async fn abandon_children(&self, run: &RunRow, folded: &Folded) {
        for (_, child) in folded.live_children() {
            while let Err(error) = self.log.cancel(run.workspace_id, child.run_id, None).await {
                tracing::warn!(run_id = %child.run_id, %error, "a child run is not cancelled yet");
                if !error.is_passing() {
                    break;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }
}

/// A call without a child, which cost nothing.
const fn refused(why: String) -> Met {
    Met::Over { answer: Err(why), cost: Some(Usd::ZERO) }
}

/// How a child is: by its row, its open actions and its newest fact.
fn met(record: &RunRecord) -> Result<Met, StoreError> {
    let status = record.row.status;
    let end = match &record.newest_fact {
        Some(fact) => Event::read(fact.event_type, &fact.data)
            .map_err(|error| StoreError::Corrupt(format!("{}: {error}", record.row.run_id)))?
            .into_end(),
        None => None,
    };
    if let Some(end) = end {
        return Ok(Met::Over { answer: family::answer(end), cost: record.row.tree_cost() });
    }
    Ok(Met::Alive(if status == RunStatus::RequiresAction && !record.actions.is_empty() {
        ChildState::Parked(record.actions.clone())
    } else {
        // It works; or it is parked with nothing open: what it waited for was answered below it, and it
        // will go on.
        ChildState::Active
    }))
}

//! Agents: create, read, change, archive.

use serde_json::{Map, Value};

use crate::domain::agent::{Agent, AgentSettings, ManagedBy};
use crate::domain::ids::AgentId;
use crate::domain::page::{Listed, Page};
use crate::domain::problem::Problems;
use crate::store::{NewKey, Written};

use super::idempotency::{Answer, RequestKey, taken};
use super::{App, AppError, Caller, Sought, reading};

/// How often a change that lost a race is made again before the caller is told to come back.
const MAX_RACES: usize = 8;
/// Characters of a model's name: longer than any provider's, short enough for a column and a log line.
const MAX_MODEL_CHARS: usize = 256;

/// An agent to be created.
#[derive(Debug, Clone, PartialEq)]
pub struct NewAgent {
    /// Its name in paths.
    pub agent_id: AgentId,
    /// What it is.
    pub settings: AgentSettings,
}

/// A change to an agent.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentPatch {
    /// A JSON Merge Patch (RFC 7386) of its settings.
    pub patch: Value,
    /// The version that it was written for; `None` means whichever is current.
    pub if_match: Option<i32>,
}

impl App {
    /// Creates an agent at version 1.
    ///
    /// # Errors
    /// [`AppError::Invalid`], [`AppError::DestinationNotAllowed`] and [`AppError::AlreadyExists`].
    pub async fn create_agent(
        &self,
        caller: &Caller,
        new: NewAgent,
        key: Option<&RequestKey>,
    ) -> Result<Answer<Agent>, AppError> {
        let NewAgent { agent_id, mut settings } = new;
        self.check_settings(caller, &mut settings)?;
        let now = self.now();
        let agent = Agent {
            agent_id,
            settings,
            version: 1,
            managed_by: ManagedBy::Api,
            archived_at: None,
            created_at: now,
            updated_at: now,
        };
        let key = self.new_key(caller, key, &agent.agent_id);
        match self.store().insert_agent(caller.workspace_id, &agent, key.as_ref()).await? {
            Written::Done(true) => Ok(Answer::new(agent)),
            Written::Done(false) => Err(AppError::AlreadyExists(agent.agent_id)),
            Written::KeyTaken(row) => {
                self.replayed_agent(caller, &taken(key.as_ref(), row)?).await.map(Answer::replay)
            }
        }
    }

    /// The agent that an earlier request made or changed, as it is today.
    ///
    /// # Errors
    /// [`AppError::NotFound`] when it is gone.
    pub async fn replayed_agent(&self, caller: &Caller, resource: &str) -> Result<Agent, AppError> {
        let agent_id = resource.parse().map_err(|_| AppError::NotFound(Sought::Agent))?;
        self.get_agent(caller, &agent_id, None).await
    }

    /// An agent at its current version, or at `version`.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn get_agent(
        &self,
        caller: &Caller,
        agent_id: &AgentId,
        version: Option<i32>,
    ) -> Result<Agent, AppError> {
        let agent = self.store().load_agent(caller.workspace_id, agent_id, version).await?;
        agent.ok_or(AppError::NotFound(Sought::Agent))
    }

    /// Agents that take runs, by `agent_id`.
    ///
    /// # Errors
    /// Only the store's.
    pub async fn list_agents(
        &self,
        caller: &Caller,
        page: &Page<AgentId>,
    ) -> Result<Listed<Agent>, AppError> {
        Ok(self.store().list_agents(caller.workspace_id, page).await?)
    }

    /// All versions of one agent.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn list_agent_versions(
        &self,
        caller: &Caller,
        agent_id: &AgentId,
        page: &Page<i32>,
    ) -> Result<Listed<Agent>, AppError> {
        let listed = self.store().list_agent_versions(caller.workspace_id, agent_id, page).await?;
        if listed.rows.is_empty() {
            // An empty page of an agent that exists is a page; of one that does not, nothing.
            self.get_agent(caller, agent_id, None).await?;
        }
        Ok(listed)
    }

    /// Changes an agent: the next version, unless nothing is different.
    ///
    /// # Errors
    /// [`AppError::NotFound`], [`AppError::Invalid`], [`AppError::DestinationNotAllowed`], [`AppError::UnknownField`],
    /// [`AppError::ReadOnly`], [`AppError::AgentArchived`], [`AppError::VersionConflict`], and
    /// [`AppError::Contended`] when others keep winning.
    pub async fn patch_agent(
        &self,
        caller: &Caller,
        agent_id: &AgentId,
        patch: &AgentPatch,
        key: Option<&RequestKey>,
    ) -> Result<Answer<Agent>, AppError> {
        let key = self.new_key(caller, key, agent_id);
        for _ in 0..MAX_RACES {
            let current = self.get_agent(caller, agent_id, None).await?;
            let mut settings = patched(&current.settings, &patch.patch)?;
            self.check_settings(caller, &mut settings)?;
            changeable(&current)?;
            let conflict = AppError::VersionConflict { current: current.version };
            if patch.if_match.is_some_and(|version| version != current.version) {
                return Err(conflict);
            }
            if settings == current.settings {
                return Ok(Answer::new(current));
            }
            let next = Agent { settings, ..self.next_version(current) };
            match self.write_version(caller, &next, key.as_ref()).await? {
                Written::Done(true) => return Ok(Answer::new(next)),
                // With If-Match the next round finds the new version and says so.
                Written::Done(false) => {}
                Written::KeyTaken(row) => {
                    let resource = taken(key.as_ref(), row)?;
                    return self.replayed_agent(caller, &resource).await.map(Answer::replay);
                }
            }
        }
        Err(AppError::Contended)
    }

    /// Archives an agent: it stays readable, is not listed and takes no new runs. Again changes nothing.
    ///
    /// # Errors
    /// [`AppError::NotFound`] and [`AppError::ReadOnly`].
    pub async fn archive_agent(
        &self,
        caller: &Caller,
        agent_id: &AgentId,
        key: Option<&RequestKey>,
    ) -> Result<Answer<()>, AppError> {
        let current = self.get_agent(caller, agent_id, None).await?;
        if current.managed_by == ManagedBy::Config {
            return Err(AppError::ReadOnly);
        }
        let (workspace_id, at) = (caller.workspace_id, self.now());
        let key = self.new_key(caller, key, agent_id);
        match self.store().archive_agent(workspace_id, agent_id, at, key.as_ref()).await? {
            Written::Done(true) => {
                self.current.forget(workspace_id, agent_id);
                Ok(Answer::new(()))
            }
            Written::Done(false) => Err(AppError::NotFound(Sought::Agent)),
            Written::KeyTaken(row) => taken(key.as_ref(), row).map(|_| Answer::replay(())),
        }
    }

    /// Checks settings and makes `model` a full name.
    pub(super) fn check_settings(
        &self,
        caller: &Caller,
        settings: &mut AgentSettings,
    ) -> Result<(), AppError> {
        settings.check(&self.catalogue).map_err(AppError::Invalid)?;
        check_model(&settings.model, "/model").into_result().map_err(AppError::Invalid)?;
        let found = settings.check_outbound(&self.outbound, caller.workspace_id);
        found.destinations.into_result().map_err(AppError::DestinationNotAllowed)?;
        found.secrets.into_result().map_err(AppError::Invalid)
    }

    /// The current version's successor, with the same settings.
    pub(super) fn next_version(&self, current: Agent) -> Agent {
        Agent {
            version: current.version.saturating_add(1),
            updated_at: self.now(),
            archived_at: None,
            ..current
        }
    }

    /// Stores a version, after which runs are created with it.
    pub(super) async fn write_version(
        &self,
        caller: &Caller,
        next: &Agent,
        key: Option<&NewKey>,
    ) -> Result<Written<bool>, AppError> {
        let written = self.store().insert_agent_version(caller.workspace_id, next, key).await?;
        self.current.forget(caller.workspace_id, &next.agent_id);
        Ok(written)
    }
}

/// A model's name becomes a column and a header of outgoing requests: no control characters.
pub(super) fn check_model(model: &str, pointer: &str) -> Problems {
    let mut problems = Problems::new();
    let fits = model.chars().count() <= MAX_MODEL_CHARS && !model.chars().any(char::is_control);
    problems.require(
        fits,
        pointer,
        "must have at most 256 characters, none of them control characters",
    );
    problems
}

fn changeable(agent: &Agent) -> Result<(), AppError> {
    if agent.managed_by == ManagedBy::Config {
        return Err(AppError::ReadOnly);
    }
    if agent.archived_at.is_some() { Err(AppError::AgentArchived) } else { Ok(()) }
}

/// The settings with a merge patch over them. `null` takes a field back to its default.
fn patched(settings: &AgentSettings, patch: &Value) -> Result<AgentSettings, AppError> {
    let Value::Object(changes) = patch else {
        return Err(AppError::invalid("", "must be an object with the fields to change"));
    };
    let mut target = serde_json::to_value(settings)?;
    // Left out when empty, and a field all the same.
    if let Value::Object(fields) = &mut target {
        fields.entry("script").or_insert_with(|| Value::Array(Vec::new()));
        known(fields, changes)?;
    }
    merge(&mut target, patch);
    reading::read(target)
}

/// Removing a field that does not exist would pass unseen: it is refused like setting one.
fn known(fields: &Map<String, Value>, changes: &Map<String, Value>) -> Result<(), AppError> {
    match changes.keys().find(|name| !fields.contains_key(*name)) {
        Some(name) => Err(AppError::UnknownField {
            pointer: format!("/{}", name.replace('~', "~0").replace('/', "~1")),
            field: name.clone(),
        }),
        None => Ok(()),
    }
}

/// RFC 7386. The depth of both is bounded where they are parsed.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (name, change) in changes {
        if change.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.clone()).or_insert(Value::Null), change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings() -> AgentSettings {
        reading::read(json!({
            "model": "builtin/echo", "max_steps": 7, "metadata": {"a": "1", "b": "2"},
            "tools": [{"type": "builtin", "name": "echo"}, {"type": "builtin", "name": "sleep"}]
        }))
        .unwrap()
    }

    #[test]
    fn a_patch_merges_objects_replaces_lists_and_takes_null_for_the_default() {
        let patch = json!({"max_steps": null, "metadata": {"a": null, "c": "3"},
            "tools": [{"type": "builtin", "name": "echo"}], "name": "N"});
        let next = patched(&settings(), &patch).unwrap();
        assert_eq!(next.max_steps, 20);
        assert_eq!(next.name.as_deref(), Some("N"));
        assert_eq!(
            next.metadata.into_iter().collect::<Vec<_>>(),
            [("b".to_owned(), "2".to_owned()), ("c".to_owned(), "3".to_owned())]
        );
        assert_eq!(next.tools.len(), 1);
    }

    #[test]
    fn an_empty_patch_changes_nothing() {
        assert_eq!(patched(&settings(), &json!({})).unwrap(), settings());
        assert_eq!(patched(&settings(), &json!({"script": null})).unwrap(), settings());
    }

    #[test]
    fn a_patch_of_an_unknown_field_is_refused_even_when_it_is_null() {
        for patch in [json!({"colour": null}), json!({"colour": 1}), json!({"version": 4})] {
            let error = patched(&settings(), &patch).unwrap_err();
            assert!(matches!(error, AppError::UnknownField { .. }), "{error}");
        }
    }

    #[test]
    fn the_model_is_the_one_field_that_has_no_default() {
        let error = patched(&settings(), &json!({"model": null})).unwrap_err();
        let AppError::Invalid(problems) = error else { panic!("{error}") };
        assert_eq!(problems.into_vec()[0].pointer, "/model");
    }
}

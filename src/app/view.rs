//! A run as clients read it: its row, what its log says about how it ended, and where to go next.

use std::time::Duration;

use serde::Deserialize;

use crate::domain::event::{Entry, Event, RunEnded};
use crate::domain::ids::{AgentId, ConversationId, RunId};
use crate::domain::message::Input;
use crate::domain::run::{ActionType, RequiredAction, ResultView, Run, RunResult, RunStatus};
use crate::domain::time::Timestamp;
use crate::domain::write;
use crate::store::RunRecord;

use super::{App, AppError, Caller};

/// Where things are, seen from a client.
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// In front of every path; without it links are paths.
    prefix: String,
}

impl Links {
    /// Links below the address that clients know this server by, or bare paths.
    pub fn new(public_url: Option<&str>) -> Self {
        Self { prefix: public_url.unwrap_or_default().trim_end_matches('/').to_owned() }
    }

    /// A run.
    pub fn run(&self, run_id: RunId) -> String {
        format!("{}/v1/runs/{run_id}", self.prefix)
    }

    /// A conversation.
    pub fn conversation(&self, conversation_id: ConversationId) -> String {
        format!("{}/v1/conversations/{conversation_id}", self.prefix)
    }

    /// An agent.
    pub fn agent(&self, agent_id: &AgentId) -> String {
        format!("{}/v1/agents/{agent_id}", self.prefix)
    }
}

/// When to look again at an active run of this age: soon at first, seldom for those that take long.
pub fn retry_after_seconds(age: Duration) -> u32 {
    match age.as_secs() {
        0..10 => 1,
        10..60 => 2,
        60..300 => 5,
        300..1_800 => 10,
        _ => 30,
    }
}

impl App {
    /// The whole run.
    ///
    /// # Errors
    /// When its log cannot be read, which is a defect.
    pub async fn view(&self, caller: &Caller, record: RunRecord) -> Result<Run, AppError> {
        let now = self.now();
        let median = match record.row.status {
            RunStatus::Queued | RunStatus::Running => {
                self.median_duration(caller, &record.row.agent_id, now).await
            }
            RunStatus::RequiresAction
            | RunStatus::Cancelling
            | RunStatus::Completed
            | RunStatus::Incomplete
            | RunStatus::Failed
            | RunStatus::Cancelled
            | RunStatus::Expired => None,
        };
        let input = record.first.as_ref().map(input).transpose()?;
        let (mut run, result) = self.read(record, now)?;
        run.input = input;
        run.result = ResultView::Shown(result);
        run.estimated_completion_seconds = median.map(|millis| {
            let age = u64::try_from(now.since(run.created_at).as_millis()).unwrap_or(u64::MAX);
            millis.saturating_sub(age).div_ceil(1_000)
        });
        Ok(run)
    }

    /// The run as a list shows it: without its input and its result.
    ///
    /// # Errors
    /// When its log cannot be read, which is a defect.
    pub fn view_in_list(&self, record: RunRecord) -> Result<Run, AppError> {
        self.read(record, self.now()).map(|(run, _)| run)
    }

    fn read(
        &self,
        record: RunRecord,
        now: Timestamp,
    ) -> Result<(Run, Option<RunResult>), AppError> {
        let RunRecord { row, body, last_seq, newest_fact, actions, .. } = record;
        let ended = ended(row.status, newest_fact.as_ref())?;
        let required_actions = actions;
        let status_url = self.links.run(row.run_id);
        let events_url = format!("{status_url}/events");
        let next = next(row.status, now.since(row.created_at), &status_url, &events_url);
        let retry_after_seconds = next.retry_after_seconds;
        let answer = match row.status {
            // What is still open below it is being cancelled too.
            RunStatus::Cancelling => None,
            _ => answer_at(&required_actions, &status_url),
        };
        let instructions = match (answer, next.instructions) {
            (Some(answer), Some(meanwhile)) if row.status != RunStatus::RequiresAction => {
                Some(format!("{meanwhile} {answer}"))
            }
            (answer, instructions) => answer.or(instructions),
        };
        let status_message = match row.status {
            RunStatus::RequiresAction => waiting_for(&required_actions),
            _ => row.status_message.clone(),
        };
        let (result, error, incomplete_reason) = match ended {
            Some(ended) => (ended.result, ended.error, ended.incomplete_reason),
            None => (None, None, None),
        };
        let tree_cost_usd = row.tree_cost();
        let run = Run {
            run_id: row.run_id,
            agent_id: row.agent_id,
            agent_version: row.agent_version,
            conversation_id: row.conversation_id,
            parent_run_id: row.parent_run_id,
            forked_from_run_id: row.forked_from_run_id,
            end_user_id: row.end_user_id,
            status: row.status,
            status_message,
            input: None,
            model: body.model,
            result: ResultView::LeftOut,
            error,
            incomplete_reason,
            required_actions,
            steps_completed: row.steps_completed,
            max_steps: body.max_steps,
            progress_percent: match row.status {
                RunStatus::Completed => 100,
                _ => write::progress(row.steps_completed, body.max_steps),
            },
            estimated_completion_seconds: None,
            usage: row.usage,
            cost_usd: row.cost,
            tree_cost_usd,
            estimated_cost_usd: body.estimated_cost,
            last_seq,
            metadata: body.metadata,
            created_at: row.created_at,
            started_at: row.started_at,
            completed_at: row.completed_at,
            duration_ms: row.completed_at.map(|end| {
                u64::try_from(end.since(row.created_at).as_millis()).unwrap_or(u64::MAX)
            }),
            cancel_url: format!("{status_url}/cancel"),
            status_url,
            events_url,
            retry_after_seconds,
            instructions,
            steps: None,
        };
        Ok((run, result))
    }
}

/// What the newest fact says about how a run ended.
fn ended(status: RunStatus, newest: Option<&Entry>) -> Result<Option<RunEnded>, AppError> {
    let Some(newest) = newest.filter(|_| status.is_final()) else { return Ok(None) };
    Ok(Event::read(newest.event_type, &newest.data)?.into_end())
}

fn input(first: &Entry) -> Result<Input, AppError> {
    #[derive(Deserialize)]
    struct First {
        input: Input,
    }
    Ok(serde_json::from_slice::<First>(&first.data)?.input)
}

struct Next {
    retry_after_seconds: Option<u32>,
    instructions: Option<String>,
}

fn next(status: RunStatus, age: Duration, status_url: &str, events_url: &str) -> Next {
    match status {
        RunStatus::Queued | RunStatus::Running | RunStatus::Cancelling => {
            let seconds = retry_after_seconds(age);
            let instructions = format!("Poll {status_url} in {seconds} s, or open {events_url}.");
            Next { retry_after_seconds: Some(seconds), instructions: Some(instructions) }
        }
        RunStatus::RequiresAction => {
            let instructions = format!("Answer required_actions; {status_url} says which.");
            Next { retry_after_seconds: None, instructions: Some(instructions) }
        }
        RunStatus::Completed
        | RunStatus::Incomplete
        | RunStatus::Failed
        | RunStatus::Cancelled
        | RunStatus::Expired => Next { retry_after_seconds: None, instructions: None },
    }
}

/// Where open actions are answered: each kind has its place.
fn answer_at(actions: &[RequiredAction], status_url: &str) -> Option<String> {
    let wait = |is_approval: bool| {
        actions.iter().any(|a| (a.action_type == ActionType::Approval) == is_approval)
    };
    match (wait(true), wait(false)) {
        (false, false) => None,
        (true, false) => Some(format!("Answer required_actions at {status_url}/approvals.")),
        (false, true) => Some(format!("Answer required_actions at {status_url}/tool-results.")),
        (true, true) => Some(format!(
            "Answer required_actions: those of type approval at {status_url}/approvals, the others at \
             {status_url}/tool-results."
        )),
    }
}

/// What a parked run waits for, in a few words.
fn waiting_for(actions: &[RequiredAction]) -> Option<String> {
    let [action] = actions else {
        return (!actions.is_empty()).then(|| format!("Waiting for {} answers", actions.len()));
    };
    let tool = &action.tool;
    Some(match action.action_type {
        ActionType::Approval => format!("Waiting for approval of {tool}"),
        ActionType::ToolResult => format!("Waiting for the result of {tool}"),
        ActionType::ToolOutcome => format!("Waiting for somebody to say what became of {tool}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_runs_are_polled_less_often() {
        let seconds = [0, 9, 10, 59, 60, 299, 300, 1_799, 1_800, 90_000];
        let waits = seconds.map(|s| retry_after_seconds(Duration::from_secs(s)));
        assert_eq!(waits, [1, 1, 2, 2, 5, 5, 10, 10, 30, 30]);
    }

    #[test]
    fn a_run_says_where_each_of_its_actions_is_answered_and_what_it_waits_for() {
        let action = |action_type| RequiredAction {
            action_type,
            run_id: RunId::from_uuid(uuid::Uuid::nil()),
            call_id: crate::domain::ids::CallId::from_uuid(uuid::Uuid::nil()),
            tool: "send".to_owned(),
            arguments: serde_json::json!({}),
            expires_at: None,
        };
        let (approval, result) = (action(ActionType::Approval), action(ActionType::ToolResult));
        let at = |actions: &[RequiredAction]| answer_at(actions, "/r").unwrap_or_default();
        assert_eq!(answer_at(&[], "/r"), None);
        assert_eq!(at(std::slice::from_ref(&approval)), "Answer required_actions at /r/approvals.");
        assert_eq!(
            at(std::slice::from_ref(&result)),
            "Answer required_actions at /r/tool-results."
        );
        let both = at(&[result.clone(), approval.clone()]);
        assert!(both.contains("/r/approvals") && both.contains("/r/tool-results"), "{both}");
        assert_eq!(waiting_for(&[]), None);
        assert_eq!(
            waiting_for(std::slice::from_ref(&approval)).as_deref(),
            Some("Waiting for approval of send")
        );
        assert_eq!(waiting_for(&[approval, result]).as_deref(), Some("Waiting for 2 answers"));
    }

    #[test]
    fn links_are_paths_until_the_public_address_is_known() {
        let agent_id: AgentId = "a".parse().unwrap();
        assert_eq!(Links::default().agent(&agent_id), "/v1/agents/a");
        let links = Links::new(Some("https://agents.example.com/"));
        assert_eq!(links.agent(&agent_id), "https://agents.example.com/v1/agents/a");
    }
}

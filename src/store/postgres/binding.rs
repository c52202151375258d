//! Batches as the arrays that the statements of `statements.rs` unnest, in the order of their
//! parameters.

use sqlx::types::Uuid;

use crate::domain::event::Entry;
use crate::domain::ids::{ConversationId, NodeId, RunId};
use crate::domain::money::Usd;
use crate::domain::time::Timestamp;
use crate::store::batch::family_rooms;
use crate::store::{Append, Batch, NewKey, NewRun, Owner, Result, RunUpdate, rows};

use super::connections::Statement;

/// $1–$4: whose flush, its lane, its number, its time.
pub(super) fn flush<'q>(statement: Statement<'q>, batch: &Batch) -> Statement<'q> {
    statement.bind(batch.node_id.uuid()).bind(batch.lane).bind(batch.number).bind(batch.at.millis())
}

/// $5 and $6: the fences.
fn fences<'q>(statement: Statement<'q>, appends: &[&Append]) -> Statement<'q> {
    statement.bind(column(appends, |a| a.run_id.uuid())).bind(column(appends, |a| a.rev))
}

/// $5–$9: fences and deltas.
pub(super) fn deltas<'q>(statement: Statement<'q>, appends: &[&Append]) -> Statement<'q> {
    entries(fences(statement, appends), &split(appends).1)
}

fn entries<'q>(statement: Statement<'q>, all: &[(Uuid, &Entry)]) -> Statement<'q> {
    statement
        .bind(column(all, |(run_id, _)| *run_id))
        .bind(column(all, |(_, entry)| entry.seq))
        .bind(column(all, |(_, entry)| entry.text()))
}

/// Facts: whose, where, of what kind, and their texts.
pub(super) fn facts<'q>(statement: Statement<'q>, all: &[(Uuid, &Entry)]) -> Statement<'q> {
    statement
        .bind(column(all, |(run_id, _)| *run_id))
        .bind(column(all, |(_, entry)| entry.seq))
        .bind(column(all, |(_, entry)| entry.event_type.code()))
        .bind(column(all, |(_, entry)| entry.text()))
}

/// An event and whose it is.
type Placed<'a> = (Uuid, &'a Entry);

/// Facts and deltas of all appends.
fn split<'a>(appends: &[&'a Append]) -> (Vec<Placed<'a>>, Vec<Placed<'a>>) {
    appends
        .iter()
        .flat_map(|append| append.entries.iter().map(|entry| (append.run_id.uuid(), entry)))
        .partition(|(_, entry)| !entry.event_type.is_delta())
}

/// $5–$28: fences, facts, deltas and rows.
pub(super) fn appends<'q>(statement: Statement<'q>, appends: &[&Append]) -> Statement<'q> {
    let (facts, deltas) = split(appends);
    let updates: Vec<(Uuid, &RunUpdate)> = appends
        .iter()
        .filter_map(|a| a.update.as_ref().map(|update| (a.run_id.uuid(), update)))
        .collect();
    let statement = self::facts(fences(statement, appends), &facts);
    let statement = entries(statement, &deltas);
    statement
        .bind(column(&updates, |(run_id, _)| *run_id))
        .bind(column(&updates, |(_, u)| u.status.code()))
        .bind(column(&updates, |(_, u)| u.fact_seq))
        .bind(column(&updates, |(_, u)| u.steps_completed))
        .bind(column(&updates, |(_, u)| rows::stored_count(u.usage.input_tokens)))
        .bind(column(&updates, |(_, u)| rows::stored_count(u.usage.cached_input_tokens)))
        .bind(column(&updates, |(_, u)| rows::stored_count(u.usage.output_tokens)))
        .bind(column(&updates, |(_, u)| rows::stored_count(u.usage.reasoning_tokens)))
        .bind(column(&updates, |(_, u)| u.cost.map(Usd::micros)))
        .bind(column(&updates, |(_, u)| u.status_message.as_deref()))
        .bind(column(&updates, |(_, u)| u.started_at.map(Timestamp::millis)))
        .bind(column(&updates, |(_, u)| u.completed_at.map(Timestamp::millis)))
        .bind(column(&updates, |(_, u)| owner(u.owner).0))
        .bind(column(&updates, |(_, u)| owner(u.owner).1))
        .bind(column(&updates, |(_, u)| u.children_cost.map(Usd::micros)))
}

/// The number that the statements know an [`Owner`] by, and its `due_at`.
pub(super) fn owner(owner: Owner) -> (i16, Option<i64>) {
    match owner {
        Owner::Keep => (0, None),
        Owner::Nobody { due_at } => (1, due_at.map(Timestamp::millis)),
        Owner::DueIfUnowned(at) => (2, Some(at.millis())),
    }
}

/// $29–$65: rows, bodies, first events, labels.
///
/// # Errors
/// [`crate::store::StoreError::Corrupt`] when a config cannot be JSON, which none of our types allows.
pub(super) fn creates<'q>(statement: Statement<'q>, creates: &[&NewRun]) -> Result<Statement<'q>> {
    let json = |e: serde_json::Error| rows::corrupt("a new run's body", e);
    let configs: Vec<String> = creates
        .iter()
        .map(|c| serde_json::to_string(&c.body.config).map_err(json))
        .collect::<Result<_>>()?;
    let metadata: Vec<String> = creates
        .iter()
        .map(|c| serde_json::to_string(&c.body.metadata).map_err(json))
        .collect::<Result<_>>()?;
    let labels: Vec<(&NewRun, &str, &str)> = creates
        .iter()
        .flat_map(|c| c.body.metadata.iter().map(|(key, value)| (*c, key.as_str(), value.as_str())))
        .collect();
    let count = rows::stored_count;
    Ok(statement
        .bind(column(creates, |c| c.row.workspace_id.0))
        .bind(column(creates, |c| c.row.run_id.uuid()))
        .bind(column(creates, |c| c.row.agent_id.as_str()))
        .bind(column(creates, |c| c.row.agent_version))
        .bind(column(creates, |c| c.row.status.code()))
        .bind(column(creates, |c| c.row.node_id.map(NodeId::uuid)))
        .bind(column(creates, |c| c.row.rev))
        .bind(column(creates, |c| c.row.epoch))
        .bind(column(creates, |c| c.row.due_at.map(Timestamp::millis)))
        .bind(column(creates, |c| c.row.crashes))
        .bind(column(creates, |c| c.row.fact_seq))
        .bind(column(creates, |c| c.row.steps_completed))
        .bind(column(creates, |c| count(c.row.usage.input_tokens)))
        .bind(column(creates, |c| count(c.row.usage.cached_input_tokens)))
        .bind(column(creates, |c| count(c.row.usage.output_tokens)))
        .bind(column(creates, |c| count(c.row.usage.reasoning_tokens)))
        .bind(column(creates, |c| c.row.cost.map(Usd::micros)))
        .bind(column(creates, |c| c.row.status_message.as_deref()))
        .bind(column(creates, |c| c.row.conversation_id.map(ConversationId::uuid)))
        .bind(column(creates, |c| c.row.parent_run_id.map(RunId::uuid)))
        .bind(column(creates, |c| c.row.forked_from_run_id.map(RunId::uuid)))
        .bind(column(creates, |c| c.row.end_user_id.as_deref()))
        .bind(column(creates, |c| c.row.created_at.millis()))
        .bind(column(creates, |c| c.row.started_at.map(Timestamp::millis)))
        .bind(column(creates, |c| c.row.completed_at.map(Timestamp::millis)))
        .bind(column(creates, |c| c.body.model.as_str()))
        .bind(configs)
        .bind(column(creates, |c| i32::try_from(c.body.max_steps).unwrap_or(i32::MAX)))
        .bind(column(creates, |c| c.body.estimated_cost.map(Usd::micros)))
        .bind(metadata)
        .bind(column(creates, |c| c.first.seq))
        .bind(column(creates, |c| c.first.event_type.code()))
        .bind(column(creates, |c| c.first.text()))
        .bind(column(&labels, |(c, _, _)| c.row.workspace_id.0))
        .bind(column(&labels, |(_, key, _)| *key))
        .bind(column(&labels, |(_, _, value)| *value))
        .bind(column(&labels, |(c, _, _)| c.row.run_id.uuid())))
}

/// The last two: the families of the creations, and how many runs those may have already.
pub(super) fn families<'q>(statement: Statement<'q>, creates: &[&NewRun]) -> Statement<'q> {
    statement
        .bind(column(creates, |c| c.row.root_run_id.map(RunId::uuid)))
        .bind(family_rooms(creates.iter().copied()))
}

/// $66–$71: keys, null where a creation has none, and the creations' order.
pub(super) fn keys<'q>(statement: Statement<'q>, creates: &[&NewRun]) -> Statement<'q> {
    let keys: Vec<Option<&NewKey>> = column(creates, |c| c.key.as_ref());
    statement
        .bind(column(&keys, |k| k.map(|k| k.key.scope)))
        .bind(column(&keys, |k| k.map(|k| k.key.key.as_str())))
        .bind(column(&keys, |k| k.map(|k| k.key.fingerprint.to_vec())))
        .bind(column(&keys, |k| k.map(|k| k.resource.as_str())))
        .bind(column(&keys, |k| k.map(|k| k.created_at.millis())))
        .bind((0_i32..).take(creates.len()).collect::<Vec<_>>())
}

fn column<'a, T, C>(rows: &'a [T], value: impl FnMut(&'a T) -> C) -> Vec<C> {
    rows.iter().map(value).collect()
}

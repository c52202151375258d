//! The rows of new runs.

use sqlx::SqliteConnection;

use crate::domain::money::Usd;
use crate::domain::time::Timestamp;
use crate::store::{NewRun, Result, rows};

use super::failure;
use super::table::Table;

const INSERT_RUNS: &str = "\
insert into runs (run_no, run_id, workspace_id, agent_id, agent_version, status, node_id, rev,
    epoch, due_at, crashes, fact_seq, steps_completed, input_tokens, cached_input_tokens,
    output_tokens, reasoning_tokens, cost_micros, status_message, conversation_id, parent_run_id,
    forked_from_run_id, end_user_id, created_at, started_at, completed_at, root_run_id)
select value ->> 0, unhex(value ->> 1), value ->> 2, value ->> 3, value ->> 4, value ->> 5,
    unhex(value ->> 6), value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11,
    value ->> 12, value ->> 13, value ->> 14, value ->> 15, value ->> 16, value ->> 17,
    value ->> 18, unhex(value ->> 19), unhex(value ->> 20), unhex(value ->> 21), value ->> 22,
    value ->> 23, value ->> 24, value ->> 25, unhex(value ->> 26)
from jsonb_each(?1)";

const INSERT_BODIES: &str = "\
insert into run_bodies (run_id, model, config, max_steps, estimated_cost_micros, metadata)
select unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5
from jsonb_each(?1)";

const INSERT_LABELS: &str = "\
insert into run_labels (workspace_id, key, value, run_id)
select v.value ->> 0, v.value ->> 1, v.value ->> 2, unhex(v.value ->> 3)
from jsonb_each(?1) v";

const INSERT_KEYS: &str = "\
insert into idempotency (workspace_id, scope, key, fingerprint, resource, created_at)
select v.value ->> 0, v.value ->> 1, v.value ->> 2, unhex(v.value ->> 3), v.value ->> 4,
    v.value ->> 5
from jsonb_each(?1) v";

/// Runs that go in together.
#[derive(Debug)]
pub(super) struct Creates {
    runs: Table,
    bodies: Table,
    labels: Table,
    keys: Table,
}

impl Creates {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { runs: Table::new(), bodies: Table::new(), labels: Table::new(), keys: Table::new() }
    }

    /// A run under this number, with its body, labels and key; not its first event.
    pub(super) fn add(&mut self, run_no: i64, new: &NewRun) -> Result<()> {
        let (row, body) = (&new.row, &new.body);
        self.runs
            .row()
            .int(run_no)
            .uuid(row.run_id.uuid())
            .int(row.workspace_id.0)
            .text(row.agent_id.as_str())
            .int(row.agent_version)
            .int(row.status.code())
            .maybe_uuid(row.node_id.map(|id| id.uuid()))
            .int(row.rev)
            .int(row.epoch)
            .maybe_int(row.due_at.map(Timestamp::millis))
            .int(row.crashes)
            .int(row.fact_seq)
            .int(row.steps_completed)
            .int(rows::stored_count(row.usage.input_tokens))
            .int(rows::stored_count(row.usage.cached_input_tokens))
            .int(rows::stored_count(row.usage.output_tokens))
            .int(rows::stored_count(row.usage.reasoning_tokens))
            .maybe_int(row.cost.map(Usd::micros))
            .maybe_text(row.status_message.as_deref())
            .maybe_uuid(row.conversation_id.map(|id| id.uuid()))
            .maybe_uuid(row.parent_run_id.map(|id| id.uuid()))
            .maybe_uuid(row.forked_from_run_id.map(|id| id.uuid()))
            .maybe_text(row.end_user_id.as_deref())
            .int(row.created_at.millis())
            .maybe_int(row.started_at.map(Timestamp::millis))
            .maybe_int(row.completed_at.map(Timestamp::millis))
            .maybe_uuid(row.root_run_id.map(|id| id.uuid()));
        self.bodies
            .row()
            .uuid(row.run_id.uuid())
            .text(&body.model)
            .text(&json(&body.config)?)
            .int(body.max_steps)
            .maybe_int(body.estimated_cost.map(Usd::micros))
            .text(&json(&body.metadata)?);
        for (key, value) in &body.metadata {
            self.labels.row().int(row.workspace_id.0).text(key).text(value).uuid(row.run_id.uuid());
        }
        if let Some(new) = &new.key {
            self.keys
                .row()
                .int(new.key.workspace_id.0)
                .text(new.key.scope)
                .text(&new.key.key)
                .hex(&new.key.fingerprint)
                .text(&new.resource)
                .int(new.created_at.millis());
        }
        Ok(())
    }

    /// Writes everything, inside the transaction that is open.
    pub(super) async fn write(self, connection: &mut SqliteConnection) -> Result<()> {
        let tables = [
            (INSERT_KEYS, self.keys),
            (INSERT_RUNS, self.runs),
            (INSERT_BODIES, self.bodies),
            (INSERT_LABELS, self.labels),
        ];
        for (sql, table) in tables {
            if !table.is_empty() {
                let query = sqlx::query(sql).bind(table.json());
                query.execute(&mut *connection).await.map_err(failure::of)?;
            }
        }
        Ok(())
    }
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| failure::of(sqlx::Error::Encode(Box::new(e))))
}

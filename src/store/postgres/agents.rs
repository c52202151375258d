//! Agents and their versions.

use sqlx::FromRow as _;
use sqlx::postgres::PgRow;

use crate::domain::agent::Agent;
use crate::domain::ids::{AgentId, WorkspaceId};
use crate::domain::page::{Listed, Order, Page};
use crate::domain::time::Timestamp;
use crate::store::rows::{self, AgentFields};
use crate::store::{NewKey, Result, Written};

use super::connections::{Lease, Statement};
use super::{PostgresStore, failure, keys};

/// `agents` by its primary key, its version by that of `agent_versions`.
const LOAD: &str = "\
select a.agent_id, v.version, v.settings, a.managed_by, a.archived_at, a.created_at,
    v.created_at as updated_at
from agents a
join agent_versions v
on v.workspace_id = a.workspace_id
and v.agent_id = a.agent_id
and v.version = coalesce($3, a.current_version)
where a.workspace_id = $1
and a.agent_id = $2";

/// Agents that are not archived, each with its current version, by the primary keys of both.
macro_rules! current {
    ($rest:expr) => {
        concat!(
            "\
select a.agent_id, v.version, v.settings, a.managed_by, a.archived_at, a.created_at,
    v.created_at as updated_at
from agents a
cross join lateral (
    select v.version, v.settings, v.created_at
    from agent_versions v
    where v.workspace_id = a.workspace_id
    and v.agent_id = a.agent_id
    and v.version = a.current_version
    limit 1
) v
where a.workspace_id = $1
and a.archived_at is null
",
            $rest
        )
    };
}

/// In the order of the key, or against it.
macro_rules! list {
    ($order:literal) => {
        current!(concat!(
            "\
and a.agent_id > $2
and ($3 is null or a.agent_id < $3)
order by a.agent_id ",
            $order,
            "
limit $4"
        ))
    };
}

const LIST_ASC: &str = list!("asc");
const LIST_DESC: &str = list!("desc");

/// The workspace's agents are few, and it is asked once a start.
const LIST_CONFIG: &str = current!(
    "\
and a.managed_by = $2
order by a.agent_id"
);

/// By the primary key of `agent_versions`, in its order or against it.
macro_rules! versions {
    ($order:literal) => {
        concat!(
            "\
select a.agent_id, v.version, v.settings, a.managed_by, a.archived_at, a.created_at,
    v.created_at as updated_at
from agents a
join agent_versions v
on v.workspace_id = a.workspace_id
and v.agent_id = a.agent_id
where a.workspace_id = $1
and a.agent_id = $2
and v.version > $3
and v.version < $4
order by v.version ",
            $order,
            "
limit $5"
        )
    };
}

const VERSIONS_ASC: &str = versions!("asc");
const VERSIONS_DESC: &str = versions!("desc");

const INSERT: &str = "\
insert into agents (workspace_id, agent_id, current_version, managed_by, archived_at, created_at)
values ($1, $2, $3, $4, $5, $6)
on conflict do nothing";

const INSERT_VERSION: &str = "\
insert into agent_versions (workspace_id, agent_id, version, settings, created_at)
values ($1, $2, $3, $4, $5)";

/// By the primary key of `agents`.
const MOVE: &str = "\
update agents
set current_version = $3,
    managed_by = $4,
    archived_at = $5
where workspace_id = $1
and agent_id = $2
and current_version = $3 - 1";

/// By the primary key of `agents`.
const ARCHIVE: &str = "\
update agents
set archived_at = coalesce(archived_at, $3)
where workspace_id = $1
and agent_id = $2";

impl PostgresStore {
    pub(super) async fn insert_agent_row(
        &self,
        workspace_id: WorkspaceId,
        agent: &Agent,
        key: Option<&NewKey>,
    ) -> Result<Written<bool>> {
        let insert = sqlx::query(INSERT)
            .bind(workspace_id.0)
            .bind(agent.agent_id.as_str())
            .bind(agent.version)
            .bind(rows::managed_by_code(agent.managed_by))
            .bind(agent.archived_at.map(Timestamp::millis))
            .bind(agent.created_at.millis());
        self.write_agent(key, insert, Some((workspace_id, agent))).await
    }

    pub(super) async fn insert_agent_version_row(
        &self,
        workspace_id: WorkspaceId,
        agent: &Agent,
        key: Option<&NewKey>,
    ) -> Result<Written<bool>> {
        let update = sqlx::query(MOVE)
            .bind(workspace_id.0)
            .bind(agent.agent_id.as_str())
            .bind(agent.version)
            .bind(rows::managed_by_code(agent.managed_by))
            .bind(agent.archived_at.map(Timestamp::millis));
        self.write_agent(key, update, Some((workspace_id, agent))).await
    }

    pub(super) async fn archive_agent_row(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
        at: Timestamp,
        key: Option<&NewKey>,
    ) -> Result<Written<bool>> {
        let update =
            sqlx::query(ARCHIVE).bind(workspace_id.0).bind(agent_id.as_str()).bind(at.millis());
        self.write_agent(key, update, None).await
    }

    /// Key, then agent, then its version; all or nothing.
    async fn write_agent(
        &self,
        key: Option<&NewKey>,
        change: Statement<'_>,
        version: Option<(WorkspaceId, &Agent)>,
    ) -> Result<Written<bool>> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        lease.begin().await.map_err(failure::of_read)?;
        let done = write_agent_in(&mut lease, key, change, version).await;
        if matches!(done, Ok(Written::Done(true))) {
            lease.commit().await.map_err(failure::of_write)?;
        } else {
            // A key stands for what a write made; where nothing was made nothing is bound.
            lease.rollback().await;
        }
        done
    }

    pub(super) async fn load_agent_row(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
        version: Option<i32>,
    ) -> Result<Option<Agent>> {
        let query = sqlx::query(LOAD).bind(workspace_id.0).bind(agent_id.as_str()).bind(version);
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let row = lease.row(query).await.map_err(failure::of_read)?;
        row.as_ref().map(agent).transpose()
    }

    pub(super) async fn list_agent_rows(
        &self,
        workspace_id: WorkspaceId,
        page: &Page<AgentId>,
    ) -> Result<Listed<Agent>> {
        let scan = page.scan();
        let sql = match scan.order {
            Order::Asc => LIST_ASC,
            Order::Desc => LIST_DESC,
        };
        let query = sqlx::query(sql)
            .bind(workspace_id.0)
            // Every id is above the empty text.
            .bind(scan.above.as_ref().map_or("", AgentId::as_str))
            .bind(scan.below.as_ref().map(AgentId::as_str))
            .bind(scan.limit);
        Ok(page.finish(self.agents(query).await?))
    }

    pub(super) async fn list_agent_version_rows(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
        page: &Page<i32>,
    ) -> Result<Listed<Agent>> {
        let scan = page.scan();
        let sql = match scan.order {
            Order::Asc => VERSIONS_ASC,
            Order::Desc => VERSIONS_DESC,
        };
        let query = sqlx::query(sql)
            .bind(workspace_id.0)
            .bind(agent_id.as_str())
            .bind(scan.above.unwrap_or(i32::MIN))
            .bind(scan.below.unwrap_or(i32::MAX))
            .bind(scan.limit);
        Ok(page.finish(self.agents(query).await?))
    }

    pub(super) async fn list_config_agent_rows(
        &self,
        workspace_id: WorkspaceId,
    ) -> Result<Vec<Agent>> {
        let config = rows::managed_by_code(crate::domain::agent::ManagedBy::Config);
        self.agents(sqlx::query(LIST_CONFIG).bind(workspace_id.0).bind(config)).await
    }

    async fn agents(&self, query: Statement<'_>) -> Result<Vec<Agent>> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let rows = lease.rows(query).await.map_err(failure::of_read)?;
        rows.iter().map(agent).collect()
    }
}

async fn write_agent_in(
    lease: &mut Lease<'_>,
    key: Option<&NewKey>,
    change: Statement<'_>,
    version: Option<(WorkspaceId, &Agent)>,
) -> Result<Written<bool>> {
    if let keys::Bound::Before(row) = keys::bind(lease, key).await? {
        return Ok(Written::KeyTaken(row));
    }
    if lease.change(change).await.map_err(failure::of_read)? == 0 {
        return Ok(Written::Done(false));
    }
    if let Some((workspace_id, agent)) = version {
        let settings = serde_json::to_string(&agent.settings)
            .map_err(|e| rows::corrupt("an agent's settings", e))?;
        let insert = sqlx::query(INSERT_VERSION)
            .bind(workspace_id.0)
            .bind(agent.agent_id.as_str())
            .bind(agent.version)
            .bind(settings)
            .bind(agent.updated_at.millis());
        lease.change(insert).await.map_err(failure::of_read)?;
    }
    Ok(Written::Done(true))
}

fn agent(row: &PgRow) -> Result<Agent> {
    AgentFields::from_row(row).map_err(failure::of_value)?.agent()
}

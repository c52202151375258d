//! Agents and their versions.

use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow as _, SqliteConnection};

use crate::domain::agent::Agent;
use crate::domain::ids::{AgentId, WorkspaceId};
use crate::domain::page::{Listed, Order, Page};
use crate::domain::time::Timestamp;
use crate::store::rows::{self, AgentFields};
use crate::store::{NewKey, Result, Written};

use super::readers::Readers;
use super::writer::Writer;
use super::{failure, keys};

macro_rules! select {
    ($rest:expr) => {
        concat!(
            "\
select a.agent_id, v.version, v.settings, a.managed_by, a.archived_at, a.created_at,
    v.created_at as updated_at
from agents a
join agent_versions v
on v.workspace_id = a.workspace_id
and v.agent_id = a.agent_id
",
            $rest
        )
    };
}

/// By the primary keys of `agents` and `agent_versions`.
const LOAD: &str = select!(
    "\
where a.workspace_id = ?1
and a.agent_id = ?2
and v.version = coalesce(?3, a.current_version)"
);

/// By the primary key of `agents`, in its order or against it.
macro_rules! list {
    ($order:literal) => {
        select!(concat!(
            "\
and v.version = a.current_version
where a.workspace_id = ?1
and a.agent_id > ?2
and (?3 is null or a.agent_id < ?3)
and a.archived_at is null
order by a.agent_id ",
            $order,
            "
limit ?4"
        ))
    };
}

const LIST_ASC: &str = list!("asc");
const LIST_DESC: &str = list!("desc");

/// By the primary key of `agents`.
const LIST_CONFIG: &str = select!(
    "\
and v.version = a.current_version
where a.workspace_id = ?1
and a.managed_by = ?2
and a.archived_at is null
order by a.agent_id"
);

/// By the primary key of `agent_versions`, in its order or against it.
macro_rules! versions {
    ($order:literal) => {
        select!(concat!(
            "\
where a.workspace_id = ?1
and a.agent_id = ?2
and v.version > ?3
and v.version < ?4
order by v.version ",
            $order,
            "
limit ?5"
        ))
    };
}

const VERSIONS_ASC: &str = versions!("asc");
const VERSIONS_DESC: &str = versions!("desc");

const INSERT: &str = "\
insert into agents (workspace_id, agent_id, current_version, managed_by, archived_at, created_at)
values (?, ?, ?, ?, ?, ?)
on conflict do nothing";

const INSERT_VERSION: &str = "\
insert into agent_versions (workspace_id, agent_id, version, settings, created_at)
values (?, ?, ?, ?, ?)";

/// By the primary key of `agents`, as the next one.
const MOVE: &str = "\
update agents
set current_version = ?3,
    managed_by = ?4,
    archived_at = ?5
where workspace_id = ?1
and agent_id = ?2
and current_version = ?3 - 1";

const ARCHIVE: &str = "\
update agents
set archived_at = coalesce(archived_at, ?3)
where workspace_id = ?1
and agent_id = ?2";

pub(super) async fn load(
    readers: &Readers,
    workspace_id: WorkspaceId,
    agent_id: &AgentId,
    version: Option<i32>,
) -> Result<Option<Agent>> {
    let query = sqlx::query(LOAD).bind(workspace_id.0).bind(agent_id.as_str()).bind(version);
    readers.first(query).await?.as_ref().map(read).transpose()
}

pub(super) async fn list(
    readers: &Readers,
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
        // No agent has an empty id.
        .bind(scan.above.as_ref().map_or("", AgentId::as_str))
        .bind(scan.below.as_ref().map(AgentId::as_str))
        .bind(scan.limit);
    Ok(page.finish(read_all(&readers.all(query).await?)?))
}

pub(super) async fn list_versions(
    readers: &Readers,
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
        .bind(scan.above.map_or(i64::MIN, i64::from))
        .bind(scan.below.map_or(i64::MAX, i64::from))
        .bind(scan.limit);
    Ok(page.finish(read_all(&readers.all(query).await?)?))
}

pub(super) async fn list_config(
    readers: &Readers,
    workspace_id: WorkspaceId,
) -> Result<Vec<Agent>> {
    let config = rows::managed_by_code(crate::domain::agent::ManagedBy::Config);
    let query = sqlx::query(LIST_CONFIG).bind(workspace_id.0).bind(config);
    read_all(&readers.all(query).await?)
}

/// What a write does to an agent.
#[derive(Debug)]
pub(super) enum Change {
    /// Version 1 of a new one.
    Insert(Box<Agent>),
    /// The next version.
    Move(Box<Agent>),
    /// Its archive date.
    Archive(AgentId, Timestamp),
}

/// Makes the change and binds the key, or neither.
pub(super) async fn change(
    writer: &Writer,
    workspace_id: WorkspaceId,
    change: Change,
    key: Option<&NewKey>,
) -> Result<Written<bool>> {
    let key = key.cloned();
    writer
        .write(move |connection| {
            Box::pin(async move {
                if let Some(row) = keys::taken(connection, key.as_ref()).await? {
                    return Ok(Written::KeyTaken(row));
                }
                let done = match &change {
                    Change::Insert(agent) => insert(connection, workspace_id, agent).await?,
                    Change::Move(agent) => move_on(connection, workspace_id, agent).await?,
                    Change::Archive(agent_id, at) => {
                        let query = sqlx::query(ARCHIVE)
                            .bind(workspace_id.0)
                            .bind(agent_id.as_str())
                            .bind(at.millis());
                        let answer = query.execute(&mut *connection).await;
                        answer.map_err(failure::of)?.rows_affected() == 1
                    }
                };
                // Only what succeeds binds a key.
                if done {
                    keys::bind(connection, key.as_ref()).await?;
                }
                Ok(Written::Done(done))
            })
        })
        .await
}

async fn insert(
    connection: &mut SqliteConnection,
    workspace_id: WorkspaceId,
    agent: &Agent,
) -> Result<bool> {
    let query = sqlx::query(INSERT)
        .bind(workspace_id.0)
        .bind(agent.agent_id.as_str())
        .bind(agent.version)
        .bind(rows::managed_by_code(agent.managed_by))
        .bind(agent.archived_at.map(Timestamp::millis))
        .bind(agent.created_at.millis());
    let inserted = query.execute(&mut *connection).await.map_err(failure::of)?.rows_affected() == 1;
    if inserted {
        insert_version(connection, workspace_id, agent).await?;
    }
    Ok(inserted)
}

async fn move_on(
    connection: &mut SqliteConnection,
    workspace_id: WorkspaceId,
    agent: &Agent,
) -> Result<bool> {
    let query = sqlx::query(MOVE)
        .bind(workspace_id.0)
        .bind(agent.agent_id.as_str())
        .bind(agent.version)
        .bind(rows::managed_by_code(agent.managed_by))
        .bind(agent.archived_at.map(Timestamp::millis));
    let moved = query.execute(&mut *connection).await.map_err(failure::of)?.rows_affected() == 1;
    if moved {
        insert_version(connection, workspace_id, agent).await?;
    }
    Ok(moved)
}

async fn insert_version(
    connection: &mut SqliteConnection,
    workspace_id: WorkspaceId,
    agent: &Agent,
) -> Result<()> {
    let settings = serde_json::to_string(&agent.settings)
        .map_err(|error| failure::of(sqlx::Error::Encode(Box::new(error))))?;
    sqlx::query(INSERT_VERSION)
        .bind(workspace_id.0)
        .bind(agent.agent_id.as_str())
        .bind(agent.version)
        .bind(settings)
        .bind(agent.updated_at.millis())
        .execute(connection)
        .await
        .map_err(failure::of)?;
    Ok(())
}

fn read_all(found: &[SqliteRow]) -> Result<Vec<Agent>> {
    found.iter().map(read).collect()
}

fn read(row: &SqliteRow) -> Result<Agent> {
    AgentFields::from_row(row).map_err(failure::of)?.agent()
}

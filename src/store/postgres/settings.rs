//! What is set on every connection, and what a server must have set to be used at all.

use sqlx::Row as _;

use crate::store::{Result, StoreError};

use super::connections::Lease;
use super::failure;

/// For every connection.
///
/// A node that stops between a statement and its commit would freeze its neighbours: hence the
/// time-outs. Every statement here has an index to go by, in its order where it has one, and none is
/// worth a scan, a sort or a hash of a table, or a compiler. (What is off is still done where nothing
/// else can: a handful of rows is sorted and hashed all the same.) Plans are made once a connection (for a flush, planning costs as much as half of the
/// work), often while the tables are still empty: with pages that cost next to nothing a look-up a row
/// wins against a walk through an index even then. `tests/it/store_pg/plans.rs` checks it.
pub(super) const SESSION: &str = "\
set idle_in_transaction_session_timeout = '3s';
set lock_timeout = '2s';
set statement_timeout = '5s';
set tcp_user_timeout = '10s';
set plan_cache_mode = force_generic_plan;
set enable_seqscan = off;
set enable_hashjoin = off;
set enable_mergejoin = off;
set enable_sort = off;
set enable_incremental_sort = off;
set seq_page_cost = 0.01;
set random_page_cost = 0.01;
set jit = off;
set max_parallel_workers_per_gather = 0;
";

/// For migrations, which take as long as they take, and wait for each other.
pub(super) const MIGRATION: &str = "set tcp_user_timeout = '10s';";

/// Since when Postgres has everything that the schema names.
const OLDEST_SERVER: i32 = 130_000;

const DURABILITY: &str = "\
select current_setting('server_version_num')::int as version,
    current_setting('fsync') as fsync,
    current_setting('full_page_writes') as full_page_writes,
    current_setting('synchronous_commit') as synchronous_commit";

/// Refuses a server that is too old, or whose commits may be lost.
///
/// # Errors
/// [`StoreError::Unusable`] says what to change.
pub(super) async fn check(lease: &mut Lease<'_>, unsafe_durability: bool) -> Result<()> {
    let row = lease.row(sqlx::query(DURABILITY)).await.map_err(failure::of_read)?;
    let row = row.ok_or_else(|| StoreError::Corrupt("no settings".to_owned()))?;
    let version: i32 = row.try_get("version").map_err(failure::of_value)?;
    if version < OLDEST_SERVER {
        return Err(StoreError::Unusable(
            "This PostgreSQL server is too old: version 13 or newer is needed.".to_owned(),
        ));
    }
    for name in ["fsync", "full_page_writes", "synchronous_commit"] {
        let value: String = row.try_get(name).map_err(failure::of_value)?;
        if value == "off" && !unsafe_durability {
            return Err(StoreError::Unusable(format!(
                "The PostgreSQL server has {name}=off: what was answered could be lost. \
                 Set {name}=on, or start with --unsafe-durability."
            )));
        }
    }
    Ok(())
}

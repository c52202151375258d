//! Statements go along the index that their comment names. A scan of a table that grows would be
//! noticed by nobody until there are a million runs, so it is noticed here.

use sqlx::{Connection as _, Row as _, SqliteConnection};

use super::{
    actions, conversations, events, families, flush, guest, list, log, nodes, retention, runs,
    turns,
};

const SCHEMA: [&str; 6] = [
    include_str!("../../../migrations/sqlite/0001_initial.sql"),
    include_str!("../../../migrations/sqlite/0002_retention.sql"),
    include_str!("../../../migrations/sqlite/0003_actions.sql"),
    include_str!("../../../migrations/sqlite/0004_families.sql"),
    include_str!("../../../migrations/sqlite/0005_conversations.sql"),
    include_str!("../../../migrations/sqlite/0006_roots.sql"),
];

/// What may be scanned: parameters and what was found for them, a run with those above it, the nodes,
/// of whom there are few, signals, which are taken as soon as they are there, and families (b).
const SHORT: [&str; 14] = [
    "jsonb_each",
    "json_each",
    "o",
    "v",
    "g",
    "s",
    "n",
    "nodes",
    "run",
    "e",
    "CONSTANT",
    "b",
    "3",
    "child_signals",
];

/// What may be sorted: runs that are driven or have not ended, families, and parts of so few rows.
const SORTED: [&str; 3] = [
    "runs_owned",
    "with recursive below",
    "in (select s.value from json_each(?6) s)\nand r.run_id > ?2",
];

#[tokio::test]
async fn no_statement_scans_or_sorts_what_grows() {
    // Plans need a schema and no rows, so this is the one place for a database in memory.
    let mut connection = SqliteConnection::connect(":memory:").await.unwrap();
    for migration in SCHEMA {
        sqlx::raw_sql(migration).execute(&mut connection).await.unwrap();
    }
    let all = [
        actions::STATEMENTS,
        conversations::STATEMENTS,
        conversations::erase::STATEMENTS,
        events::STATEMENTS,
        families::STATEMENTS,
        flush::STATEMENTS,
        guest::STATEMENTS,
        list::STATEMENTS,
        log::STATEMENTS,
        nodes::STATEMENTS,
        retention::STATEMENTS,
        runs::STATEMENTS,
        turns::STATEMENTS,
    ];
    for sql in all.concat() {
        // The statement is one of the constants above.
        let explain = sqlx::AssertSqlSafe(["explain query plan ", sql].concat());
        let rows = sqlx::raw_sql(explain).fetch_all(&mut connection).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
        for line in &plan {
            let mut words = line.split(' ');
            let scans = words.next() == Some("SCAN")
                && !words.next().is_some_and(|table| SHORT.contains(&table))
                && !line.starts_with("SCAN r USING INDEX runs_owned")
                // The newest row only.
                && !sql.contains("max(run_no)");
            let sorts = line.contains("TEMP B-TREE FOR ORDER BY")
                && !SORTED.iter().any(|part| sql.contains(part));
            assert!(!scans && !sorts, "{line}\nin {plan:#?}\nof {sql}");
        }
    }
}

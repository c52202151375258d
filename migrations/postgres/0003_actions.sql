-- What somebody must answer before a run goes on: approvals, results, outcomes. The rows of a run are
-- the fold of its log, written in the transaction of the events that change them; a run that has ended
-- has none. They are here because the list of open approvals goes over all runs, and because reading a
-- run must not read its log. The SQLite migration of the same number makes the same table.

-- `kind`: 1 a tool's result, 2 an approval, 3 what became of a call. `data` is the JSON that clients get.
create table actions (
    run_id uuid not null,
    call_id uuid not null,
    workspace_id int not null,
    kind smallint not null,
    created_at bigint not null,
    data text not null,
    primary key (run_id, call_id)
) with (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 1000
);
-- The list pages by call_id, which is a time.
create index actions_by_kind on actions (workspace_id, kind, call_id);

update meta set schema_version = 3;

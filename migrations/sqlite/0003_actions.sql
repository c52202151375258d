-- What somebody must answer before a run goes on: approvals, results, outcomes. The rows of a run are
-- the fold of its log, written in the transaction of the events that change them; a run that has ended
-- has none. They are here because the list of open approvals goes over all runs, and because reading a
-- run must not read its log. The Postgres migration of the same number makes the same table.

-- `kind`: 1 a tool's result, 2 an approval, 3 what became of a call. `data` is the JSON that clients get.
create table actions (
    run_id blob not null,
    call_id blob not null,
    workspace_id integer not null,
    kind integer not null,
    created_at integer not null,
    data text not null,
    primary key (run_id, call_id)
) strict;
-- The list pages by call_id, which is a time.
create index actions_by_kind on actions (workspace_id, kind, call_id);

update meta set schema_version = 3;

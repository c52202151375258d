-- Conversations: runs of one agent that come one after another and remember each other. The SQLite
-- migration of the same number makes the same tables, columns and indexes.

-- Locked by whoever begins a turn in it, ends one or posts to it: active_run_id, queued_runs and
-- message_count change only under that lock. system_prompt is JSON: Postgres has no U+0000 in a text.
create table conversations (
    conversation_id uuid not null primary key,
    workspace_id int not null,
    agent_id text collate "C" not null,
    system_prompt text,
    parameters text not null,
    metadata text not null,
    timeout_seconds int,
    closed_at bigint,
    expires_at bigint,
    active_run_id uuid,
    queued_runs int not null,
    turns int not null,
    message_count int not null,
    cost_micros bigint,
    created_at bigint not null,
    last_active_at bigint not null,
    deleted_at bigint
) with (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0
);
-- Lists page by conversation_id, which is a time.
create index conversations_by_workspace on conversations (workspace_id, conversation_id)
    where deleted_at is null;
create index conversations_by_agent on conversations (workspace_id, agent_id, conversation_id)
    where deleted_at is null;
-- What retention looks at: what was erased and has runs left, and what is over.
create index conversations_deleted on conversations (deleted_at) where deleted_at is not null;
create index conversations_by_age on conversations (last_active_at) where deleted_at is null;

-- `data` is the JSON that clients get, without the index.
create table conversation_messages (
    conversation_id uuid not null,
    message_index int not null,
    message_id uuid not null,
    data text not null,
    primary key (conversation_id, message_index)
) with (
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 200000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 200000
);

-- Pages are asked for by id. That no message is doubled is seen to elsewhere; this would show it.
create unique index conversation_messages_by_id on conversation_messages (conversation_id, message_id);

-- turn: where a run is in its conversation's queue (1 active, 2 waiting, 3 waiting to interrupt, 4 to be
-- cancelled: another one interrupts, or the conversation was closed); null when it is over, or in none.
-- turn_no: its place among all that ever asked for a turn in its conversation, from 0.
-- history_of, history_length: the conversation whose first messages its model reads before its own.
-- cost_ceiling_micros: what is left of its conversation's money as its turn begins.
alter table runs
    add column turn smallint,
    add column turn_no int,
    add column history_of uuid,
    add column history_length int,
    add column cost_ceiling_micros bigint;

-- Whatever else may go wrong: never two at once.
create unique index runs_active_turn on runs (conversation_id) where turn = 1;
-- Who comes next.
create index runs_waiting_turn on runs (conversation_id, turn, turn_no) where turn > 1;
-- Who interrupts, and who is to be cancelled: few, and not for long.
create index runs_overtaken on runs (turn, run_id) where turn > 2;
-- The runs of a conversation in the order in which they came into it: ids are made before that, and on
-- other nodes by other clocks.
create unique index runs_in_turn on runs (conversation_id, turn_no) where turn_no is not null;
-- The same for lists, which page by id. Runs without a conversation are not in it.
create index runs_by_conversation on runs (workspace_id, conversation_id, run_id)
    where conversation_id is not null;

-- A server of the last version would end a turn and let nobody begin the next.
update meta set schema_version = 5, min_reader_version = 5;

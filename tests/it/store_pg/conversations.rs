//! Turns of conversations that several nodes write at once, and those of a batch in doubt.

use std::sync::Arc;

use serde_json::json;
use sqlx::Executor as _;
use stepwell::domain::conversation::message::{Ended, NewMessage, Spoken};
use stepwell::domain::conversation::{Conversation, OnBusy, Turn};
use stepwell::domain::ids::{ConversationId, MessageId, NodeId, RunId};
use stepwell::domain::message::{Content, Role};
use stepwell::domain::money::Usd;
use stepwell::domain::run::{RunConfig, RunStatus};
use stepwell::shutdown::Tasks;
use stepwell::store::{
    Append, AppendOutcome, ConversationDecision, ConversationWrite, CreateOutcome, GuestDecide,
    GuestDecision, GuestWrite, MessageRange, NewRun, NewTurn, Owner, RunUpdate, Store, StoreError,
};

use super::sample::*;
use crate::store::fixtures::{completed, ends, queued};
use crate::support::postgres;
use crate::support::proxy::{Loss, Proxy};
use crate::support::server::Setup;

/// What settles a transaction.
const COMMIT: &str = "commit";

async fn conversation(store: &dyn Store) -> ConversationId {
    let conversation = Conversation {
        conversation_id: stepwell::clock::Clock::system().conversation_id(),
        workspace_id: WS,
        agent_id: "a".parse().expect("an agent id"),
        system_prompt: None,
        parameters: RunConfig::default(),
        metadata: std::collections::BTreeMap::new(),
        timeout_seconds: None,
        closed_at: None,
        expires_at: None,
        active_run_id: None,
        queued_runs: 0,
        turns: 0,
        message_count: 0,
        cost: Some(Usd::ZERO),
        created_at: NOW,
        last_active_at: NOW,
    };
    store.insert_conversation(&conversation, None).await.expect("a conversation");
    conversation.conversation_id
}

fn turn(owner: NodeId, conversation_id: ConversationId, on_busy: OnBusy) -> NewRun {
    let mut new = run(Some(owner));
    new.first = queued(new.row.run_id);
    new.row.conversation_id = Some(conversation_id);
    new.turn = Some(NewTurn { conversation_id, on_busy });
    new
}

fn last_words(run_id: RunId, conversation_id: ConversationId) -> RunUpdate {
    let id = MessageId::from_uuid(stepwell::clock::Clock::system().uuid());
    let answer = NewMessage {
        run_id: Some(run_id),
        ..NewMessage::new(id, Role::Assistant, Content::Text("So be it".to_owned()), NOW)
    };
    let spoken = Spoken {
        conversation_id,
        at: NOW,
        messages: vec![answer],
        ended: Some(Ended { cost: Some(Usd::from_micros(1)) }),
    };
    RunUpdate { spoken: Some(Box::new(spoken)), ..ends(2) }
}

fn over(run_id: RunId, rev: i32, conversation_id: ConversationId) -> Append {
    let update = Some(last_words(run_id, conversation_id));
    Append { run_id, rev, entries: vec![completed(run_id, 2)], update }
}

async fn get(store: &dyn Store, id: ConversationId) -> Conversation {
    store.load_conversation(WS, id).await.expect("an answer").expect("a conversation")
}

/// What one node does for so many rounds: asks for a turn in each conversation, in an order of its own,
/// and ends what it drives. Gives how many turns it was given.
async fn live(store: Arc<dyn Store>, ids: Vec<ConversationId>, rounds: usize, n: usize) -> usize {
    let me = node();
    let mut mine: Vec<(RunId, i32, ConversationId)> = Vec::new();
    let mut given = 0;
    for round in 0..rounds {
        let mut order = ids.clone();
        order.rotate_left((n + round) % ids.len());
        if n.is_multiple_of(2) {
            order.reverse();
        }
        let busy = [OnBusy::Reject, OnBusy::Enqueue, OnBusy::Interrupt];
        let creates = order.iter().map(|id| turn(me, *id, busy[(n + round) % 3])).collect();
        let appends = mine.drain(..).map(|(run_id, rev, id)| over(run_id, rev, id)).collect();
        let batch = batch(me, creates, appends);
        let outcome = at_last(|| store.flush(&batch)).await;
        // A run that was cancelled by somebody is missed, and over.
        for (new, outcome) in batch.creates.iter().zip(outcome.creates) {
            let CreateOutcome::Entered(entrance) = outcome else { continue };
            given += 1;
            if entrance.turn == Turn::Active {
                let id = new.row.conversation_id.expect("a conversation");
                mine.push((new.row.run_id, new.row.rev, id));
            }
        }
        for claim in at_last(|| store.claim_due(me, NOW, 100)).await {
            let record = store.load_run(WS, claim.run_id).await.expect("an answer").expect("a run");
            mine.push((claim.run_id, claim.rev, record.row.conversation_id.expect("one")));
        }
    }
    let appends: Vec<_> = mine.drain(..).map(|(run_id, rev, id)| over(run_id, rev, id)).collect();
    let batch = batch(me, vec![], appends);
    at_last(|| store.flush(&batch)).await;
    given
}

/// Cancels whoever is to be cancelled, and says something in between.
async fn meddle(store: &dyn Store, ids: &[ConversationId]) {
    for (_, run_id) in at_last(|| store.to_be_cancelled(100)).await {
        let decide: GuestDecide = Arc::new(move |locked: &stepwell::store::Locked| {
            let row = &locked.record.row;
            if row.status.is_final() {
                return Ok(GuestDecision::Nothing);
            }
            let id = row.conversation_id.expect("a conversation");
            let update = RunUpdate {
                status: RunStatus::Cancelled,
                owner: Owner::Nobody { due_at: None },
                ..last_words(run_id, id)
            };
            Ok(GuestDecision::Append {
                facts: vec![completed(run_id, 2)],
                update: Box::new(update),
            })
        });
        let write = || GuestWrite { workspace_id: WS, run_id, key: None, decide: decide.clone() };
        at_last(|| store.guest(write())).await;
    }
    for id in ids {
        let decide = Arc::new(|before: &Conversation| {
            let mut after = before.clone();
            after.take_indexes(1);
            let id = MessageId::from_uuid(stepwell::clock::Clock::system().uuid());
            let text = Content::Text("By the way".to_owned());
            let messages = vec![NewMessage::new(id, Role::User, text, NOW)];
            ConversationDecision::Change { conversation: Box::new(after), messages }
        });
        let write = || ConversationWrite {
            workspace_id: WS,
            conversation_id: *id,
            key: None,
            decide: decide.clone(),
        };
        at_last(|| store.converse(write())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_talk_in_the_same_conversations_neither_deadlock_nor_lose_a_turn() {
    let url = postgres::database().await;
    let store = postgres::open(&url).await;
    with_agent(&store).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(conversation(&store).await);
    }
    let tasks = Tasks::new();
    let mut nodes = Vec::new();
    for n in 0..4 {
        let store: Arc<dyn Store> = Arc::new(postgres::open(&url).await);
        let ids = ids.clone();
        nodes.push(tasks.spawn(live(store, ids, 15, n)));
    }
    let mut rounds = 0;
    while nodes.iter().any(|node| !node.is_finished()) {
        meddle(&store, &ids).await;
        rounds += 1;
    }
    let mut given = 0;
    for node in nodes {
        given += node.await.expect("no panic");
    }
    // What still waits gets its turn.
    for _ in 0..given {
        meddle(&store, &ids).await;
        let me = node();
        let claims = store.claim_due(me, NOW, 100).await.expect("claims");
        let mut appends = Vec::new();
        for claim in claims {
            let record = store.load_run(WS, claim.run_id).await.expect("an answer").expect("a run");
            let id = record.row.conversation_id.expect("a conversation");
            appends.push(over(claim.run_id, claim.rev, id));
        }
        if appends.is_empty() {
            break;
        }
        let outcome = store.flush(&batch(me, vec![], appends)).await.expect("a flush");
        assert!(outcome.appends.iter().all(|append| *append == AppendOutcome::Written));
    }
    let all = MessageRange { above: -1, below: i32::MAX, limit: 100_000, descending: false };
    let mut turns = 0;
    for id in &ids {
        let after = get(&store, *id).await;
        assert_eq!((after.active_run_id, after.queued_runs), (None, 0), "{after:?}");
        let said = store.read_messages(WS, *id, all).await.expect("messages");
        let indexes: Vec<i32> = said.iter().map(|message| message.message_index).collect();
        assert_eq!(indexes, (0..after.message_count).collect::<Vec<_>>());
        let posted = said.iter().filter(|message| message.run_id.is_none()).count();
        assert!(posted >= rounds, "{posted} of {rounds} were kept");
        turns += after.turns;
    }
    assert_eq!(usize::try_from(turns).expect("a count"), given);
    let mut admin = postgres::connect(&url).await;
    let open = "select count(*) from runs where turn is not null or status < 10";
    let open: i64 = sqlx::query_scalar(open).fetch_one(&mut admin).await.expect("a count");
    assert_eq!(open, 0, "every run is over");
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    let deadlocks: i64 = sqlx::query_scalar(deadlocks).fetch_one(&mut admin).await.expect("one");
    assert_eq!(deadlocks, 0);
}

#[tokio::test]
async fn two_active_runs_in_one_conversation_are_refused_by_the_database_itself() {
    let url = postgres::database().await;
    let store = postgres::open(&url).await;
    with_agent(&store).await;
    let (me, id) = (node(), conversation(&store).await);
    let creates = [(); 2].map(|()| turn(me, id, OnBusy::Enqueue));
    for create in creates {
        store.flush(&batch(me, vec![create], vec![])).await.expect("a flush");
    }
    let mut admin = postgres::connect(&url).await;
    let refused = admin.execute("update runs set turn = 1 where turn = 2").await;
    let refused = refused.expect_err("an index");
    let constraint = refused.as_database_error().and_then(|error| error.constraint());
    assert_eq!(constraint, Some("runs_active_turn"));
}

/// Rows of messages that were read since the database was made.
async fn messages_read(url: &str) -> i64 {
    // Backends tell what they have read when they end, at the latest.
    let all_have_left = "select (count(*) = 0)::int::bigint from pg_stat_activity \
                         where datname = current_database() and pid <> pg_backend_pid()";
    postgres::until(url, all_have_left).await;
    let mut admin = postgres::connect(url).await;
    let read = "select coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)
        from pg_stat_user_tables where relname = 'conversation_messages'";
    sqlx::query_scalar(read).fetch_one(&mut admin).await.expect("a count")
}

/// So many posted messages, and then one turn of an agent that reads 1,000 tokens: what the server reads of
/// them.
async fn read_by_a_turn_behind(messages: i32) -> i64 {
    let url = postgres::empty_database().await;
    let server = Setup::new(&url, "").start().await;
    let client = &server.client;
    let agent = json!({"agent_id": "a", "model": "builtin/echo", "max_context_tokens": 1_000});
    client.post("/v1/agents", &agent).await.expect(201);
    let made = client.post("/v1/conversations", &json!({"agent_id": "a"})).await.expect(201);
    let id: ConversationId = made["conversation_id"].as_str().expect("an id").parse().expect("one");
    let decide = Arc::new(move |before: &Conversation| {
        let mut after = before.clone();
        after.take_indexes(usize::try_from(messages).expect("a count"));
        let said = (0..messages).map(|n| {
            let id = MessageId::from_uuid(stepwell::clock::Clock::system().uuid());
            let text = format!("What was said in the beginning, and then {n} times.");
            NewMessage::new(id, Role::User, Content::Text(text), NOW)
        });
        let messages = said.collect();
        ConversationDecision::Change { conversation: Box::new(after), messages }
    });
    let write = ConversationWrite { workspace_id: WS, conversation_id: id, key: None, decide };
    postgres::open(&url).await.converse(write).await.expect("messages");
    let path = format!("/v1/conversations/{id}/complete");
    let turn = client.post(&path, &json!({"content": "And now?"})).await.expect(200);
    assert_eq!(turn["finish_reason"], "stop", "{turn}");
    assert!(server.terminate().await.success());
    messages_read(&url).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_more_turn_of_a_long_conversation_reads_no_more_than_its_model_may() {
    // 1,000 tokens are some 60 of them, and a page is 100.
    let (short, long) = (read_by_a_turn_behind(200).await, read_by_a_turn_behind(5_000).await);
    assert!(short >= 60, "{short} rows were read: they are counted");
    assert!(long <= short + 10, "{long} rows behind 5,000 messages, {short} behind 200");
}

#[tokio::test]
async fn turns_of_a_batch_whose_answer_was_lost_are_taken_once() {
    let url = postgres::database().await;
    let proxy = Proxy::before(&url).await;
    let store = postgres::open(&proxy.url).await;
    with_agent(&store).await;
    let me = node();
    let (one, other) = (conversation(&store).await, conversation(&store).await);
    let first = turn(me, one, OnBusy::Reject);
    let first_id = first.row.run_id;
    let second = turn(me, one, OnBusy::Enqueue);
    let second_id = second.row.run_id;
    store.flush(&batch(me, vec![first], vec![])).await.expect("a flush");
    store.flush(&batch(me, vec![second], vec![])).await.expect("a flush");
    for (loss, is_in) in [(Loss::Statement, false), (Loss::Answer, true)] {
        let before = (get(&store, one).await, get(&store, other).await);
        let creates = vec![turn(me, other, OnBusy::Reject), turn(me, one, OnBusy::Reject)];
        let lost = batch(me, creates, vec![over(first_id, 1, one)]);
        proxy.lose(COMMIT, loss);
        let answer = store.flush(&lost).await;
        assert!(matches!(answer, Err(StoreError::InDoubt(_))), "{answer:?}");
        let outcome = store.resolve(&lost).await.expect("settled");
        let after = (get(&store, one).await, get(&store, other).await);
        if !is_in {
            assert_eq!((outcome, after), (None, before));
            continue;
        }
        let outcome = outcome.expect("it is in");
        assert_eq!(outcome.appends, [AppendOutcome::Written]);
        assert!(outcome.promoted, "whoever waits must be looked for");
        let CreateOutcome::Entered(entrance) = &outcome.creates[0] else { panic!("{outcome:?}") };
        assert_eq!(entrance.turn, Turn::Active);
        assert_eq!(outcome.creates[1], CreateOutcome::AgentMoved, "it was refused");
        assert_eq!((after.0.active_run_id, after.0.queued_runs), (Some(second_id), 0));
        assert_eq!((after.0.message_count, after.1.message_count), (3, 1));
        // Late, and for nothing.
        let again = store.flush(&lost).await;
        assert!(again.is_err(), "{again:?}");
        assert_eq!((get(&store, one).await, get(&store, other).await), after);
    }
}

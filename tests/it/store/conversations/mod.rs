//! Conversations: their rows and messages, the turns that begin and end with creations and appends, and
//! random operations on both databases at once.

mod random;
mod rows;
mod turns;

use std::sync::Arc;

use stepwell::domain::conversation::message::{Ended, NewMessage, Spoken};
use stepwell::domain::conversation::{Conversation, OnBusy, Turn};
use stepwell::domain::ids::{ConversationId, MessageId};
use stepwell::domain::message::{Content, Role};
use stepwell::domain::money::Usd;
use stepwell::domain::run::RunConfig;
use stepwell::store::{
    AppendOutcome, ConversationDecision, ConversationOutcome, ConversationSweep, ConversationWrite,
    CreateOutcome, Entrance, FindTurn, MessageRange, NewRun, NewTurn, Past, RunUpdate, SharedStore,
    Written,
};
use uuid::Uuid;

use super::fixtures::*;

fn conv(n: u32) -> ConversationId {
    ConversationId::from_uuid(Uuid::from_u128(
        0x019a_0c5e_0000_7000_8000_0000_0000_0000 + u128::from(n),
    ))
}

fn conversation(n: u32) -> Conversation {
    Conversation {
        conversation_id: conv(n),
        workspace_id: HOME,
        agent_id: agent_id("a"),
        system_prompt: Some("Be \u{0} kind 😀".to_owned()),
        parameters: RunConfig { max_steps: Some(2), ..RunConfig::default() },
        metadata: [("k".to_owned(), "v\u{0}".to_owned())].into(),
        timeout_seconds: Some(60),
        closed_at: None,
        expires_at: Some(at(60_000)),
        active_run_id: None,
        queued_runs: 0,
        turns: 0,
        message_count: 0,
        cost: Some(Usd::ZERO),
        created_at: at(0),
        last_active_at: at(0),
    }
}

async fn begin(store: &SharedStore, conversations: u32) {
    add_agent(store, "a").await;
    for n in 1..=conversations {
        let done = store.insert_conversation(&conversation(n), None).await.unwrap();
        assert_eq!(done, Written::Done(()));
    }
}

async fn get(store: &SharedStore, n: u32) -> Conversation {
    store.load_conversation(HOME, conv(n)).await.unwrap().unwrap()
}

/// Run `n`, which asks for a turn.
fn turn(n: u32, conversation: u32, on_busy: OnBusy) -> NewRun {
    let mut new = driven_run(n);
    new.row.conversation_id = Some(conv(conversation));
    new.turn = Some(NewTurn { conversation_id: conv(conversation), on_busy });
    new
}

async fn ask(store: &SharedStore, n: u32, conversation: u32, on_busy: OnBusy) -> CreateOutcome {
    let outcome = store.flush(&batch(vec![turn(n, conversation, on_busy)], vec![])).await.unwrap();
    outcome.creates[0].clone()
}

fn message(n: u32, text: &str) -> NewMessage {
    let id = MessageId::from_uuid(Uuid::from_u128(0xfeed_0000 + u128::from(n)));
    NewMessage::new(id, Role::Assistant, Content::Text(text.to_owned()), at(5))
}

fn entered(turn: Turn) -> CreateOutcome {
    CreateOutcome::Entered(Entrance { turn, past: None, cost_ceiling: None })
}

fn active(conversation: u32, messages: i32) -> CreateOutcome {
    let past = Past { conversation_id: conv(conversation), messages };
    CreateOutcome::Entered(Entrance { turn: Turn::Active, past: Some(past), cost_ceiling: None })
}

/// The last words of run `n`, with which its turn is over.
fn over(n: u32, conversation: u32, cost: Option<i64>) -> RunUpdate {
    let spoken = Spoken {
        conversation_id: conv(conversation),
        at: at(100),
        messages: vec![message(n, &format!("answer {n} \u{0}"))],
        ended: Some(Ended { cost: cost.map(Usd::from_micros) }),
    };
    RunUpdate { spoken: Some(Box::new(spoken)), ..ends(2) }
}

async fn end(store: &SharedStore, n: u32, rev: i32, conversation: u32) -> bool {
    let update = over(n, conversation, Some(10));
    let append = append(n, rev, vec![completed(run_id(n), 2)], Some(update));
    let outcome = store.flush(&batch(vec![], vec![append])).await.unwrap();
    assert_eq!(outcome.appends, [AppendOutcome::Written], "run {n}");
    outcome.promoted
}

/// Claims what is due, which is this.
async fn claim(store: &SharedStore, n: u32) -> i32 {
    let claims = store.claim_due(node(1), at(1_000), 10).await.unwrap();
    assert_eq!(claims.iter().map(|claim| claim.run_id).collect::<Vec<_>>(), [run_id(n)]);
    claims[0].rev
}

async fn said(store: &SharedStore, n: u32) -> Vec<(i32, String)> {
    let all = MessageRange { above: -1, below: i32::MAX, limit: 1_000, descending: false };
    let messages = store.read_messages(HOME, conv(n), all).await.unwrap();
    messages.into_iter().map(|m| (m.message_index, m.content.text().into_owned())).collect()
}

async fn decide(
    store: &SharedStore,
    n: u32,
    decide: impl Fn(&Conversation) -> ConversationDecision + Send + Sync + 'static,
) -> ConversationOutcome {
    let decide = Arc::new(decide);
    let write =
        ConversationWrite { workspace_id: HOME, conversation_id: conv(n), key: None, decide };
    store.converse(write).await.unwrap()
}

async fn close(store: &SharedStore, n: u32) {
    let closed = decide(store, n, |before| {
        let conversation = Box::new(Conversation { closed_at: Some(at(9)), ..before.clone() });
        ConversationDecision::Change { conversation, messages: vec![] }
    });
    assert!(matches!(closed.await, ConversationOutcome::Done(_)));
}

async fn erase(store: &SharedStore, n: u32) {
    let erased = decide(store, n, |_| ConversationDecision::Erase { at: at(10) }).await;
    assert!(matches!(erased, ConversationOutcome::Done(_)));
}

/// Runs that are to be cancelled, by their numbers.
async fn to_be_cancelled(store: &SharedStore) -> Vec<u32> {
    let mut found: Vec<_> = store.to_be_cancelled(100).await.unwrap();
    found.sort_unstable_by_key(|(_, run_id)| *run_id);
    let number = |id| (0..100).find(|n| run_id(*n) == id).unwrap();
    found.into_iter().map(|(_, run_id)| number(run_id)).collect()
}

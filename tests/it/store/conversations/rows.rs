//! Conversations and their messages: made, read, listed, changed, erased.

use std::sync::Arc;

use stepwell::domain::conversation::{Conversation, OnBusy, Refusal};
use stepwell::domain::page::{From, Order, Page};
use stepwell::domain::run::RunStatus;
use stepwell::store::{
    ConversationDecision, ConversationOutcome, ConversationSweep, ConversationWrite, CreateOutcome,
    FindTurn, MessageRange, SharedStore, Written,
};

use super::super::fixtures::*;
use super::*;
use crate::support::databases::conformance;

conformance!(
    a_conversation_is_kept_as_it_was_made,
    a_conversation_whose_key_is_taken_is_not_made,
    conversations_are_listed_by_id_of_one_agent_or_of_all,
    what_is_decided_about_a_conversation_is_what_is_there,
    messages_are_read_from_both_ends,
    an_erased_conversation_is_gone_and_its_runs_go_in_slices,
    an_erased_conversation_takes_along_what_its_runs_called,
    what_is_over_goes_when_it_is_old,
);

async fn a_conversation_is_kept_as_it_was_made(store: SharedStore) {
    begin(&store, 1).await;
    assert_eq!(get(&store, 1).await, conversation(1));
    let bare = Conversation {
        system_prompt: None,
        timeout_seconds: None,
        expires_at: None,
        cost: None,
        ..conversation(2)
    };
    store.insert_conversation(&bare, None).await.unwrap();
    assert_eq!(get(&store, 2).await, bare);
    assert_eq!(store.load_conversation(ELSEWHERE, conv(1)).await.unwrap(), None);
    assert_eq!(store.load_conversation(HOME, conv(3)).await.unwrap(), None);
}

async fn a_conversation_whose_key_is_taken_is_not_made(store: SharedStore) {
    begin(&store, 0).await;
    let key = key("k", "first");
    let first = store.insert_conversation(&conversation(1), Some(&key)).await.unwrap();
    assert_eq!(first, Written::Done(()));
    let second = store.insert_conversation(&conversation(2), Some(&key)).await.unwrap();
    assert!(matches!(second, Written::KeyTaken(row) if row.resource == "first"));
    assert_eq!(store.load_conversation(HOME, conv(2)).await.unwrap(), None);
}

async fn conversations_are_listed_by_id_of_one_agent_or_of_all(store: SharedStore) {
    begin(&store, 3).await;
    let other = Conversation { agent_id: agent_id("b"), ..conversation(4) };
    store.insert_conversation(&other, None).await.unwrap();
    let foreign = Conversation { workspace_id: ELSEWHERE, ..conversation(5) };
    store.insert_conversation(&foreign, None).await.unwrap();
    erase(&store, 2).await;
    let list = async |agent: Option<&str>, from, order, limit| {
        let agent = agent.map(agent_id);
        let page = Page { limit, from, order };
        let listed = store.list_conversations(HOME, agent.as_ref(), &page).await.unwrap();
        let ids: Vec<_> = listed.rows.iter().map(|row| row.conversation_id).collect();
        (ids, listed.has_more)
    };
    let all = list(None, From::Start, Order::Asc, 10).await;
    assert_eq!(all, (vec![conv(1), conv(3), conv(4)], false));
    let newest = list(None, From::Start, Order::Desc, 2).await;
    assert_eq!(newest, (vec![conv(4), conv(3)], true));
    let rest = list(None, From::After(conv(3)), Order::Desc, 2).await;
    assert_eq!(rest, (vec![conv(1)], false));
    let before = list(None, From::Before(conv(4)), Order::Asc, 1).await;
    assert_eq!(before, (vec![conv(3)], true));
    assert_eq!(list(Some("b"), From::Start, Order::Desc, 10).await, (vec![conv(4)], false));
    let of_a = list(Some("a"), From::After(conv(1)), Order::Asc, 10).await;
    assert_eq!(of_a, (vec![conv(3)], false));
}

async fn what_is_decided_about_a_conversation_is_what_is_there(store: SharedStore) {
    begin(&store, 1).await;
    let post = |text: &'static str| {
        move |before: &Conversation| {
            let mut after = before.clone();
            after.touch(at(500));
            after.metadata.clear();
            after.take_indexes(2);
            let messages = vec![
                message(before.message_count as u32, text),
                message(90 + before.message_count as u32, "and"),
            ];
            ConversationDecision::Change { conversation: Box::new(after), messages }
        }
    };
    let done = decide(&store, 1, post("one")).await;
    let after = get(&store, 1).await;
    assert_eq!(done, ConversationOutcome::Done(Box::new(after.clone())));
    assert_eq!((after.message_count, after.last_active_at), (2, at(500)));
    assert!(after.metadata.is_empty());
    decide(&store, 1, post("two")).await;
    let texts = [(0, "one"), (1, "and"), (2, "two"), (3, "and")];
    assert_eq!(said(&store, 1).await, texts.map(|(n, text)| (n, text.to_owned())));

    let key = key("k", "msg");
    let write = |conversation_id, decision: ConversationDecision| ConversationWrite {
        workspace_id: HOME,
        conversation_id,
        key: Some(key.clone()),
        decide: Arc::new(move |_| decision.clone()),
    };
    let refuse = ConversationDecision::Refuse(Refusal::Closed);
    let refused = store.converse(write(conv(1), refuse.clone())).await.unwrap();
    assert_eq!(refused, ConversationOutcome::Refused(Refusal::Closed));
    let absent = store.converse(write(conv(7), ConversationDecision::Nothing)).await.unwrap();
    assert_eq!(absent, ConversationOutcome::Absent);
    assert_eq!(store.find_key(&key.key).await.unwrap(), None);
    let before = get(&store, 1).await;
    let nothing = store.converse(write(conv(1), ConversationDecision::Nothing)).await.unwrap();
    assert_eq!(nothing, ConversationOutcome::Done(Box::new(before)));
    let taken = store.converse(write(conv(1), refuse)).await.unwrap();
    assert!(matches!(taken, ConversationOutcome::KeyTaken(row) if row.resource == "msg"));
}

async fn messages_are_read_from_both_ends(store: SharedStore) {
    begin(&store, 2).await;
    decide(&store, 1, |before| {
        let mut after = before.clone();
        after.take_indexes(5);
        let messages = (0..5).map(|n| message(n, &n.to_string())).collect();
        ConversationDecision::Change { conversation: Box::new(after), messages }
    })
    .await;
    let read = async |above, below, limit, descending| -> Vec<i32> {
        let range = MessageRange { above, below, limit, descending };
        let found = store.read_messages(HOME, conv(1), range).await.unwrap();
        found.iter().map(|message| message.message_index).collect()
    };
    assert_eq!(read(-1, i32::MAX, 3, false).await, [0, 1, 2]);
    assert_eq!(read(2, i32::MAX, 10, false).await, [3, 4]);
    assert_eq!(read(-1, i32::MAX, 2, true).await, [4, 3]);
    assert_eq!(read(-1, 3, 2, true).await, [2, 1]);
    assert_eq!(read(1, 3, 10, true).await, [2]);
    let id = message(3, "").message_id;
    assert_eq!(store.message_index(HOME, conv(1), id).await.unwrap(), Some(3));
    assert_eq!(store.message_index(HOME, conv(2), id).await.unwrap(), None);
    assert_eq!(store.message_index(ELSEWHERE, conv(1), id).await.unwrap(), None);
    let all = MessageRange { above: -1, below: i32::MAX, limit: 9, descending: false };
    assert!(store.read_messages(ELSEWHERE, conv(1), all).await.unwrap().is_empty());
}

async fn an_erased_conversation_is_gone_and_its_runs_go_in_slices(store: SharedStore) {
    begin(&store, 2).await;
    for n in 1..=25 {
        ask(&store, n, 1, OnBusy::Reject).await;
        end(&store, n, 1, 1).await;
    }
    ask(&store, 50, 2, OnBusy::Reject).await;
    erase(&store, 1).await;
    assert_eq!(store.load_conversation(HOME, conv(1)).await.unwrap(), None);
    assert!(said(&store, 1).await.is_empty());
    // Nobody finds its runs from that moment on.
    assert_eq!(store.load_run(HOME, run_id(1)).await.unwrap(), None);
    assert_eq!(store.find_turn(HOME, conv(1), FindTurn::Last).await.unwrap(), None);
    assert_eq!(ask(&store, 40, 1, OnBusy::Enqueue).await, CreateOutcome::ConversationGone);
    let absent = decide(&store, 1, |_| ConversationDecision::Nothing).await;
    assert_eq!(absent, ConversationOutcome::Absent);
    let sweep = ConversationSweep { only: Some(conv(1)), quiet_since: None, now: at(20) };
    let first = store.sweep_conversations(sweep).await.unwrap();
    assert!(first.gone < 25 && first.more, "{first:?}");
    let second = store.sweep_conversations(sweep).await.unwrap();
    // The runs, and the conversation.
    assert_eq!((first.gone + second.gone, second.more), (26, false));
    assert_eq!(store.sweep_conversations(sweep).await.unwrap().gone, 0);
    assert!(store.read_facts(HOME, run_id(7), 0).await.unwrap().is_empty());
    assert_eq!(row(&store, 50).await.status, RunStatus::Queued);
    assert_eq!(get(&store, 2).await.active_run_id, Some(run_id(50)));
}

async fn an_erased_conversation_takes_along_what_its_runs_called(store: SharedStore) {
    begin(&store, 1).await;
    for n in 1..=2 {
        ask(&store, n, 1, OnBusy::Reject).await;
        end(&store, n, 1, 1).await;
    }
    let called = |n, parent| {
        let mut new = driven_run(n);
        new.row.parent_run_id = Some(run_id(parent));
        new
    };
    create(&store, vec![called(30, 1), called(31, 30), called(32, 2)]).await;
    let over =
        async |n| append_to(&store, n, 1, vec![completed(run_id(n), 2)], Some(ends(2))).await;
    over(30).await;
    over(32).await;
    erase(&store, 1).await;
    let sweep = ConversationSweep { only: Some(conv(1)), quiet_since: None, now: at(20) };
    let swept = store.sweep_conversations(sweep).await.unwrap();
    assert_eq!((swept.runs, swept.more), (vec![run_id(32), run_id(2)], false), "31 has not ended");
    assert!(store.load_run(HOME, run_id(30)).await.unwrap().is_some());
    over(31).await;
    let mut swept = store.sweep_conversations(sweep).await.unwrap();
    swept.runs.sort_unstable();
    assert_eq!(swept.runs, [run_id(1), run_id(30), run_id(31)]);
    // And the conversation.
    assert_eq!((swept.gone, swept.more), (4, false));
    for n in 30..=32 {
        assert_eq!(store.load_run(HOME, run_id(n)).await.unwrap(), None);
    }
}

async fn what_is_over_goes_when_it_is_old(store: SharedStore) {
    begin(&store, 5).await;
    close(&store, 1).await;
    // 2 is busy and closed, 3 has expired, 4 is open, 5 is closed and not old.
    ask(&store, 1, 2, OnBusy::Reject).await;
    close(&store, 2).await;
    for (n, millis, expires) in [(4, 0, None), (5, 90_000, Some(at(91_000)))] {
        decide(&store, n, move |before| {
            let conversation = Box::new(Conversation {
                expires_at: expires,
                last_active_at: at(millis),
                closed_at: expires,
                ..before.clone()
            });
            ConversationDecision::Change { conversation, messages: vec![] }
        })
        .await;
    }
    let sweep = |quiet| ConversationSweep { only: None, quiet_since: quiet, now: at(100_000) };
    assert_eq!(store.sweep_conversations(sweep(None)).await.unwrap().gone, 0);
    let swept = store.sweep_conversations(sweep(Some(at(80_000)))).await.unwrap();
    assert_eq!((swept.gone, swept.more), (2, false));
    for (n, there) in [(1, false), (2, true), (3, false), (4, true), (5, true)] {
        let found = store.load_conversation(HOME, conv(n)).await.unwrap();
        assert_eq!(found.is_some(), there, "conversation {n}");
    }
}

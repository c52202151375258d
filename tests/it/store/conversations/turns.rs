//! Turns: who begins, who waits, who comes next, and what is said meanwhile.

use stepwell::domain::conversation::message::NewMessage;
use stepwell::domain::conversation::{Conversation, OnBusy, Refusal, Turn};
use stepwell::domain::money::Usd;
use stepwell::domain::run::{RunConfig, RunStatus};
use stepwell::store::{
    AppendOutcome, ConversationDecision, CreateOutcome, FindTurn, GuestDecision, GuestOutcome,
    Owner, Past, RunUpdate, SharedStore, TurnPlace,
};

use super::super::fixtures::*;
use super::*;
use crate::support::databases::conformance;

conformance!(
    the_first_turn_begins_at_once_and_says_what_it_was_asked,
    a_turn_is_refused_and_nothing_changes,
    a_turn_that_comes_to_nothing_leaves_the_conversation_as_it_was,
    turns_that_wait_begin_in_the_order_in_which_they_came,
    whoever_interrupts_comes_first_and_takes_the_place_of_another,
    a_turn_knows_what_was_said_and_spent_before_it,
    an_append_that_misses_says_nothing,
    a_guest_that_ends_a_run_ends_its_turn,
    nobody_begins_in_a_conversation_that_is_closed,
    a_batch_begins_and_ends_turns_of_many_conversations,
    a_batch_that_is_in_says_how_its_turns_entered,
    runs_are_found_in_the_order_in_which_they_entered,
);

async fn the_first_turn_begins_at_once_and_says_what_it_was_asked(store: SharedStore) {
    begin(&store, 1).await;
    assert_eq!(ask(&store, 1, 1, OnBusy::Reject).await, active(1, 0));
    let after = get(&store, 1).await;
    assert_eq!((after.active_run_id, after.queued_runs, after.turns), (Some(run_id(1)), 0, 1));
    assert_eq!((after.message_count, after.last_active_at), (1, at(9)));
    assert_eq!(after.expires_at, Some(at(60_009)));
    assert_eq!(said(&store, 1).await, [(0, "hello \u{0} 😀 \"quoted\" \\ \n".to_owned())]);
    let new = row(&store, 1).await;
    assert_eq!((new.node_id, new.due_at, new.epoch), (Some(node(1)), None, 1));
    assert_eq!(new.past, Some(Past { conversation_id: conv(1), messages: 0 }));
    assert!(!end(&store, 1, 1, 1).await);
    let after = get(&store, 1).await;
    assert_eq!((after.active_run_id, after.message_count), (None, 2));
    assert_eq!((after.cost, after.last_active_at), (Some(Usd::from_micros(10)), at(100)));
    assert_eq!(said(&store, 1).await[1], (1, "answer 1 \u{0}".to_owned()));
}

async fn a_turn_is_refused_and_nothing_changes(store: SharedStore) {
    begin(&store, 4).await;
    ask(&store, 1, 1, OnBusy::Enqueue).await;
    close(&store, 2).await;
    let cap = Usd::from_micros(5);
    let parameters = RunConfig { max_cost_usd: Some(cap), ..RunConfig::default() };
    let spent = Conversation { cost: Some(cap), parameters, ..conversation(9) };
    store.insert_conversation(&spent, None).await.unwrap();
    decide(&store, 3, |before| {
        let conversation = Box::new(Conversation { expires_at: Some(at(8)), ..before.clone() });
        ConversationDecision::Change { conversation, messages: vec![] }
    })
    .await;
    let active_run_id = run_id(1);
    for (n, why) in [
        (1, Refusal::Busy { active_run_id }),
        (2, Refusal::Closed),
        (3, Refusal::Expired),
        (9, Refusal::Spent { cap }),
    ] {
        let before = get(&store, n).await;
        let mut new = turn(20 + n, n, OnBusy::Reject);
        new.key = Some(key(&format!("k{n}"), "x"));
        let outcome = store.flush(&batch(vec![new], vec![])).await.unwrap();
        assert_eq!(outcome.creates, [CreateOutcome::Refused(why)]);
        assert_eq!(get(&store, n).await, before);
        assert_eq!(store.load_run(HOME, run_id(20 + n)).await.unwrap(), None);
        assert_eq!(store.find_key(&key(&format!("k{n}"), "").key).await.unwrap(), None);
    }
    // Of another workspace, and of nobody.
    let mut foreign = turn(30, 4, OnBusy::Reject);
    foreign.row.workspace_id = ELSEWHERE;
    store.insert_agent(ELSEWHERE, &agent("a"), None).await.unwrap();
    let outcome = store.flush(&batch(vec![foreign], vec![])).await.unwrap();
    assert_eq!(outcome.creates, [CreateOutcome::ConversationGone]);
    assert_eq!(ask(&store, 31, 77, OnBusy::Reject).await, CreateOutcome::ConversationGone);
}

async fn a_turn_that_comes_to_nothing_leaves_the_conversation_as_it_was(store: SharedStore) {
    begin(&store, 2).await;
    let mut first = turn(1, 1, OnBusy::Reject);
    first.key = Some(key("k", &run_id(1).to_string()));
    store.flush(&batch(vec![first], vec![])).await.unwrap();
    let before = (get(&store, 1).await, get(&store, 2).await);
    // The key is taken: said beside a refusal too, for it is the same request again.
    for (n, conversation) in [(2, 1), (3, 2)] {
        let mut again = turn(n, conversation, OnBusy::Reject);
        again.key = Some(key("k", &run_id(n).to_string()));
        let outcome = store.flush(&batch(vec![again], vec![])).await.unwrap();
        let CreateOutcome::KeyTaken(row) = &outcome.creates[0] else { panic!("{outcome:?}") };
        assert_eq!(row.resource, run_id(1).to_string());
    }
    let mut moved = turn(4, 2, OnBusy::Reject);
    moved.row.agent_version = 7;
    let outcome = store.flush(&batch(vec![moved], vec![])).await.unwrap();
    assert_eq!(outcome.creates, [CreateOutcome::AgentMoved]);
    assert_eq!((get(&store, 1).await, get(&store, 2).await), before);
    assert!(said(&store, 2).await.is_empty());
}

async fn turns_that_wait_begin_in_the_order_in_which_they_came(store: SharedStore) {
    begin(&store, 1).await;
    assert_eq!(ask(&store, 5, 1, OnBusy::Enqueue).await, active(1, 0));
    // Their ids were made elsewhere, by another clock.
    for n in [9, 2, 7] {
        assert_eq!(ask(&store, n, 1, OnBusy::Enqueue).await, entered(Turn::Waiting));
        let row = row(&store, n).await;
        assert_eq!((row.node_id, row.due_at, row.epoch), (None, None, 0));
    }
    assert_eq!(get(&store, 1).await.queued_runs, 3);
    assert!(store.claim_due(node(1), at(1_000_000), 10).await.unwrap().is_empty());
    let (mut now, mut rev) = (5, 1);
    for (next, left) in [(9, 2), (2, 1), (7, 0)] {
        assert!(end(&store, now, rev, 1).await);
        let after = get(&store, 1).await;
        assert_eq!((after.active_run_id, after.queued_runs), (Some(run_id(next)), left));
        let promoted = row(&store, next).await;
        assert_eq!((promoted.due_at, promoted.node_id), (Some(at(9)), None));
        let messages = after.message_count - 1;
        assert_eq!(promoted.past, Some(Past { conversation_id: conv(1), messages }));
        (now, rev) = (next, claim(&store, next).await);
    }
    assert!(!end(&store, now, rev, 1).await);
    let after = get(&store, 1).await;
    assert_eq!((after.active_run_id, after.queued_runs, after.message_count), (None, 0, 8));
    let indexes: Vec<i32> = said(&store, 1).await.iter().map(|(index, _)| *index).collect();
    assert_eq!(indexes, (0..8).collect::<Vec<_>>());
    assert!(to_be_cancelled(&store).await.is_empty());
}

async fn whoever_interrupts_comes_first_and_takes_the_place_of_another(store: SharedStore) {
    begin(&store, 1).await;
    assert_eq!(ask(&store, 1, 1, OnBusy::Interrupt).await, active(1, 0));
    assert_eq!(ask(&store, 2, 1, OnBusy::Enqueue).await, entered(Turn::Waiting));
    assert!(to_be_cancelled(&store).await.is_empty());
    assert_eq!(ask(&store, 3, 1, OnBusy::Interrupt).await, entered(Turn::Interrupting));
    assert_eq!(to_be_cancelled(&store).await, [1]);
    assert_eq!(ask(&store, 4, 1, OnBusy::Interrupt).await, entered(Turn::Interrupting));
    assert_eq!(to_be_cancelled(&store).await, [1, 3]);
    assert_eq!(store.to_be_cancelled(1).await.unwrap().len(), 1);
    // What has been asked is not asked again.
    append_to(&store, 1, 1, vec![cancelling(run_id(1), 2)], Some(update(RunStatus::Cancelling, 2)))
        .await;
    assert_eq!(to_be_cancelled(&store).await, [3]);
    let last = append(
        1,
        1,
        vec![completed(run_id(1), 3)],
        Some(RunUpdate { fact_seq: 3, ..over(1, 1, Some(1)) }),
    );
    assert!(store.flush(&batch(vec![], vec![last])).await.unwrap().promoted);
    let after = get(&store, 1).await;
    assert_eq!((after.active_run_id, after.queued_runs), (Some(run_id(4)), 2));
    assert_eq!(to_be_cancelled(&store).await, [3]);
    // The one that lost its place ends, and it is nobody's turn for that.
    let gone = GuestDecision::Append {
        facts: vec![completed(run_id(3), 2)],
        update: Box::new(over(3, 1, Some(0))),
    };
    let ended = visit(&store, 3, None, gone).await.unwrap();
    assert!(matches!(ended, GuestOutcome::Done { promoted: false, .. }), "{ended:?}");
    assert!(to_be_cancelled(&store).await.is_empty());
    let after = get(&store, 1).await;
    assert_eq!((after.active_run_id, after.queued_runs), (Some(run_id(4)), 1));
    let rev = claim(&store, 4).await;
    assert!(end(&store, 4, rev, 1).await);
    assert_eq!(get(&store, 1).await.active_run_id, Some(run_id(2)));
}

async fn a_turn_knows_what_was_said_and_spent_before_it(store: SharedStore) {
    begin(&store, 0).await;
    let parameters = RunConfig { max_cost_usd: Some(Usd::from_micros(25)), ..RunConfig::default() };
    let capped = Conversation { parameters, ..conversation(1) };
    store.insert_conversation(&capped, None).await.unwrap();
    let outcome = ask(&store, 1, 1, OnBusy::Reject).await;
    let left = |micros| Some(Usd::from_micros(micros));
    assert!(matches!(outcome, CreateOutcome::Entered(e) if e.cost_ceiling == left(25)));
    assert_eq!(row(&store, 1).await.cost_ceiling, left(25));
    for n in [2, 3, 4] {
        ask(&store, n, 1, OnBusy::Enqueue).await;
    }
    end(&store, 1, 1, 1).await;
    assert_eq!(row(&store, 2).await.cost_ceiling, left(15));
    // What is not known counts as all of it.
    let rev = claim(&store, 2).await;
    let unknown = append(2, rev, vec![completed(run_id(2), 2)], Some(over(2, 1, None)));
    store.flush(&batch(vec![], vec![unknown])).await.unwrap();
    assert_eq!(get(&store, 1).await.cost, None);
    assert_eq!(row(&store, 3).await.cost_ceiling, left(0));
    assert_eq!(row(&store, 3).await.past.map(|past| past.messages), Some(4));
    let claimed = claim(&store, 3).await;
    let driveable = store.load_driveable(node(1), run_id(3)).await.unwrap().unwrap();
    assert_eq!(driveable.record.row.past, Some(Past { conversation_id: conv(1), messages: 4 }));
    assert_eq!((driveable.record.row.rev, driveable.record.row.cost_ceiling), (claimed, left(0)));
}

async fn an_append_that_misses_says_nothing(store: SharedStore) {
    begin(&store, 1).await;
    ask(&store, 1, 1, OnBusy::Reject).await;
    ask(&store, 2, 1, OnBusy::Enqueue).await;
    let before = get(&store, 1).await;
    let late = append(1, 7, vec![completed(run_id(1), 2)], Some(over(1, 1, Some(1))));
    let outcome = store.flush(&batch(vec![], vec![late])).await.unwrap();
    assert_eq!((outcome.appends[0], outcome.promoted), (AppendOutcome::Missed, false));
    assert_eq!(get(&store, 1).await, before);
    assert_eq!(said(&store, 1).await.len(), 1);
    assert_eq!(row(&store, 2).await.due_at, None);
}

async fn a_guest_that_ends_a_run_ends_its_turn(store: SharedStore) {
    begin(&store, 1).await;
    ask(&store, 1, 1, OnBusy::Reject).await;
    ask(&store, 2, 1, OnBusy::Enqueue).await;
    ask(&store, 3, 1, OnBusy::Enqueue).await;
    let parks =
        RunUpdate { owner: Owner::Nobody { due_at: None }, ..update(RunStatus::RequiresAction, 2) };
    append_to(&store, 1, 1, vec![running(run_id(1), 2)], Some(parks)).await;
    // One that waits goes, then the one that is parked.
    let ends = |n, seq, messages: Vec<NewMessage>| {
        let mut update = over(n, 1, Some(3));
        update.fact_seq = seq;
        update.status = RunStatus::Cancelled;
        if let Some(spoken) = &mut update.spoken {
            spoken.messages = messages;
        }
        GuestDecision::Append { facts: vec![completed(run_id(n), seq)], update: Box::new(update) }
    };
    let gone = visit(&store, 2, None, ends(2, 2, vec![])).await.unwrap();
    assert!(matches!(gone, GuestOutcome::Done { promoted: false, .. }), "{gone:?}");
    assert_eq!((get(&store, 1).await.queued_runs, said(&store, 1).await.len()), (1, 1));
    let key = key("guest", "run");
    let over =
        visit(&store, 1, Some(key.clone()), ends(1, 3, vec![message(1, "bye")])).await.unwrap();
    assert!(matches!(over, GuestOutcome::Done { promoted: true, .. }), "{over:?}");
    assert!(store.find_key(&key.key).await.unwrap().is_some());
    let after = get(&store, 1).await;
    assert_eq!((after.active_run_id, after.queued_runs), (Some(run_id(3)), 0));
    assert_eq!(after.cost, Some(Usd::from_micros(6)));
    assert_eq!((said(&store, 1).await.len(), after.message_count), (3, 3));
    claim(&store, 3).await;
}

async fn nobody_begins_in_a_conversation_that_is_closed(store: SharedStore) {
    begin(&store, 1).await;
    for n in [1, 2] {
        ask(&store, n, 1, OnBusy::Enqueue).await;
    }
    ask(&store, 3, 1, OnBusy::Interrupt).await;
    close(&store, 1).await;
    // The active one finishes, though somebody waited to interrupt it.
    assert_eq!(to_be_cancelled(&store).await, [2, 3]);
    let refused = CreateOutcome::Refused(Refusal::Closed);
    assert_eq!(ask(&store, 4, 1, OnBusy::Enqueue).await, refused);
    assert!(!end(&store, 1, 1, 1).await);
    let after = get(&store, 1).await;
    assert_eq!((after.active_run_id, after.queued_runs), (None, 2));
    for n in [2, 3] {
        let gone = GuestDecision::Append {
            facts: vec![completed(run_id(n), 2)],
            update: Box::new(over(n, 1, Some(0))),
        };
        let gone = visit(&store, n, None, gone).await.unwrap();
        assert!(matches!(gone, GuestOutcome::Done { promoted: false, .. }), "{gone:?}");
    }
    assert_eq!(get(&store, 1).await.queued_runs, 0);
    assert!(to_be_cancelled(&store).await.is_empty());
}

async fn a_batch_begins_and_ends_turns_of_many_conversations(store: SharedStore) {
    begin(&store, 3).await;
    for n in 1..=3 {
        ask(&store, n, n, OnBusy::Reject).await;
    }
    create(&store, vec![driven_run(20)]).await;
    let ended = |n| append(n, 1, vec![completed(run_id(n), 2)], Some(over(n, n, Some(1))));
    let plain = append(20, 1, vec![running(run_id(20), 2)], Some(update(RunStatus::Running, 2)));
    let creates = vec![
        turn(13, 3, OnBusy::Enqueue),
        turn(11, 1, OnBusy::Reject),
        turn(12, 2, OnBusy::Interrupt),
    ];
    let outcome = store.flush(&batch(creates, vec![ended(3), plain, ended(2)])).await.unwrap();
    let busy = CreateOutcome::Refused(Refusal::Busy { active_run_id: run_id(1) });
    assert_eq!(outcome.creates, [entered(Turn::Waiting), busy, entered(Turn::Interrupting)]);
    assert_eq!(outcome.appends, [AppendOutcome::Written; 3]);
    assert!(outcome.promoted);
    for (n, active) in [(1, 1), (2, 12), (3, 13)] {
        let after = get(&store, n).await;
        assert_eq!((after.active_run_id, after.queued_runs), (Some(run_id(active)), 0));
        assert_eq!(said(&store, n).await.len() as i32, after.message_count);
    }
    assert!(to_be_cancelled(&store).await.is_empty());
}

async fn a_batch_that_is_in_says_how_its_turns_entered(store: SharedStore) {
    begin(&store, 3).await;
    ask(&store, 1, 2, OnBusy::Reject).await;
    ask(&store, 4, 3, OnBusy::Reject).await;
    let creates =
        vec![turn(2, 1, OnBusy::Reject), turn(3, 2, OnBusy::Enqueue), turn(5, 3, OnBusy::Reject)];
    let batch = batch(creates, vec![]);
    store.flush(&batch).await.unwrap();
    let before = (get(&store, 1).await, get(&store, 2).await);
    let outcome = store.resolve(&batch).await.unwrap().unwrap();
    assert_eq!(outcome.creates[..2], [active(1, 0), entered(Turn::Waiting)]);
    // Why the third was refused is not known any more: whoever tries again is told.
    assert_eq!(outcome.creates[2], CreateOutcome::AgentMoved);
    assert!(outcome.promoted);
    assert_eq!((get(&store, 1).await, get(&store, 2).await), before);
}

async fn runs_are_found_in_the_order_in_which_they_entered(store: SharedStore) {
    begin(&store, 2).await;
    for n in [5, 9, 2] {
        ask(&store, n, 1, OnBusy::Enqueue).await;
    }
    assert_eq!(
        ask(&store, 6, 1, OnBusy::Reject).await,
        CreateOutcome::Refused(Refusal::Busy { active_run_id: run_id(5) })
    );
    ask(&store, 7, 1, OnBusy::Interrupt).await;
    let find = async |find| {
        let found = store.find_turn(HOME, conv(1), find).await.unwrap();
        found.map(|TurnPlace { run_id, turn_no }| (turn_no, run_id))
    };
    for (turn_no, n) in [(0, 5), (1, 9), (2, 2), (3, 7)] {
        assert_eq!(find(FindTurn::Behind(turn_no - 1)).await, Some((turn_no, run_id(n))));
        assert_eq!(find(FindTurn::Of(run_id(n))).await, Some((turn_no, run_id(n))));
    }
    assert_eq!(find(FindTurn::Behind(3)).await, None);
    assert_eq!(find(FindTurn::Last).await, Some((3, run_id(7))));
    assert_eq!(find(FindTurn::Of(run_id(6))).await, None);
    assert_eq!(store.find_turn(ELSEWHERE, conv(1), FindTurn::Last).await.unwrap(), None);
    assert_eq!(store.find_turn(HOME, conv(2), FindTurn::Of(run_id(5))).await.unwrap(), None);
    // Its turn is over and its row is kept.
    end(&store, 5, 1, 1).await;
    assert_eq!(find(FindTurn::Behind(-1)).await, Some((0, run_id(5))));
    visit(&store, 5, None, GuestDecision::Erase { at: at(9) }).await.unwrap();
    assert_eq!(find(FindTurn::Behind(-1)).await, Some((1, run_id(9))));
}

use uuid::Uuid;

use super::*;

const START: i64 = 1_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(START + seconds * 1_000)
}

fn run(n: u128) -> RunId {
    RunId::from_uuid(Uuid::from_u128(n))
}

fn conversation() -> Conversation {
    let mut conversation = Conversation {
        conversation_id: ConversationId::from_uuid(Uuid::from_u128(1)),
        workspace_id: WorkspaceId::DEFAULT,
        agent_id: "a".parse().unwrap(),
        system_prompt: None,
        parameters: RunConfig::default(),
        metadata: BTreeMap::new(),
        timeout_seconds: Some(60),
        closed_at: None,
        expires_at: None,
        active_run_id: None,
        queued_runs: 0,
        turns: 0,
        message_count: 0,
        cost: Some(Usd::ZERO),
        created_at: at(0),
        last_active_at: at(0),
    };
    conversation.touch(at(0));
    conversation
}

#[test]
fn one_run_is_active_and_the_others_are_refused_or_wait() {
    let mut c = conversation();
    assert_eq!(c.enter(run(1), OnBusy::Reject, at(1)), Ok(Turn::Active));
    let busy = Refusal::Busy { active_run_id: run(1) };
    assert_eq!(c.enter(run(2), OnBusy::Reject, at(1)), Err(busy));
    assert_eq!(c.enter(run(3), OnBusy::Enqueue, at(1)), Ok(Turn::Waiting));
    assert_eq!(c.enter(run(4), OnBusy::Interrupt, at(1)), Ok(Turn::Interrupting));
    assert_eq!((c.active_run_id, c.queued_runs), (Some(run(1)), 2));
    assert!(c.leave(run(1), Some(Usd::ZERO), at(2)), "the next may begin");
    c.promote(run(4));
    assert_eq!((c.active_run_id, c.queued_runs), (Some(run(4)), 1));
    assert!(!c.leave(run(3), Some(Usd::ZERO), at(2)), "it was cancelled while it waited");
    assert_eq!((c.active_run_id, c.queued_runs), (Some(run(4)), 0));
}

#[test]
fn a_hundred_wait_and_no_more() {
    let mut c = conversation();
    c.enter(run(1), OnBusy::Enqueue, at(1)).unwrap();
    for n in 0..100 {
        assert_eq!(c.enter(run(2 + n), OnBusy::Enqueue, at(1)), Ok(Turn::Waiting));
    }
    let full = Refusal::Full { active_run_id: run(1) };
    assert_eq!(c.enter(run(500), OnBusy::Enqueue, at(1)), Err(full));
    assert_eq!(c.enter(run(500), OnBusy::Interrupt, at(1)), Err(full));
    assert_eq!(c.queued_runs, 100);
}

#[test]
fn it_expires_when_nothing_happened_for_so_long_and_not_while_a_run_is_under_way() {
    let mut c = conversation();
    assert_eq!(c.status(at(59)), ConversationStatus::Open);
    assert_eq!(c.status(at(60)), ConversationStatus::Expired);
    assert_eq!(c.enter(run(1), OnBusy::Reject, at(60)), Err(Refusal::Expired));
    c.touch(at(30));
    assert_eq!(c.status(at(89)), ConversationStatus::Open);
    c.enter(run(1), OnBusy::Reject, at(80)).unwrap();
    assert_eq!(c.status(at(9_000)), ConversationStatus::Open);
    assert_eq!(c.clone().view(at(9_000)).expires_at, None);
    c.leave(run(1), Some(Usd::ZERO), at(9_000));
    assert_eq!(c.status(at(9_059)), ConversationStatus::Open);
    assert_eq!(c.clone().view(at(9_000)).expires_at, Some(at(9_060)));
    assert_eq!(c.status(at(9_060)), ConversationStatus::Expired);
    c.timeout_seconds = None;
    c.touch(at(9_060));
    assert_eq!(c.status(at(1_000_000)), ConversationStatus::Open);
}

#[test]
fn closed_is_closed_whatever_runs() {
    let mut c = conversation();
    c.enter(run(1), OnBusy::Reject, at(1)).unwrap();
    c.closed_at = Some(at(2));
    assert_eq!(c.status(at(3)), ConversationStatus::Closed);
    assert_eq!(c.enter(run(2), OnBusy::Enqueue, at(3)), Err(Refusal::Closed));
    assert_eq!(c.must_be_open(at(3)), Err(Refusal::Closed));
}

#[test]
fn runs_share_the_money_and_what_is_not_known_counts_as_all_of_it() {
    let mut c = conversation();
    assert_eq!(c.money_left(), None);
    let cap = Usd::from_micros(100);
    c.parameters.max_cost_usd = Some(cap);
    c.enter(run(1), OnBusy::Reject, at(1)).unwrap();
    c.leave(run(1), Some(Usd::from_micros(60)), at(2));
    assert_eq!(c.money_left(), Some(Usd::from_micros(40)));
    c.enter(run(2), OnBusy::Reject, at(3)).unwrap();
    c.leave(run(2), Some(Usd::from_micros(70)), at(4));
    assert_eq!(c.enter(run(3), OnBusy::Reject, at(5)), Err(Refusal::Spent { cap }));
    let mut c = conversation();
    c.parameters.max_cost_usd = Some(cap);
    c.enter(run(1), OnBusy::Reject, at(1)).unwrap();
    c.leave(run(1), None, at(2));
    assert_eq!(c.money_left(), Some(Usd::ZERO));
}

#[test]
fn indexes_follow_each_other_and_end() {
    let mut c = conversation();
    assert_eq!((c.take_indexes(3), c.take_indexes(1), c.message_count), (0, 3, 4));
    assert_eq!(c.must_have_room(100), Ok(()));
    c.message_count = MAX_MESSAGES;
    assert_eq!(c.must_have_room(1), Err(Refusal::TooLong));
}

#[test]
fn turns_read_back() {
    for turn in [Turn::Active, Turn::Waiting, Turn::Interrupting, Turn::Superseded] {
        assert_eq!(Turn::from_code(turn.code()), Some(turn));
    }
    assert_eq!(Turn::from_code(0), None);
}

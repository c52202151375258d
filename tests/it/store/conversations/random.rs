//! Random turns, played on both databases: both must say the same at every step and have the same in the
//! end, and in each whoever is active, waits and has spoken must add up.

use std::collections::BTreeMap;

use proptest::prelude::*;
use stepwell::domain::conversation::OnBusy;
use stepwell::store::{Append, GuestDecision, SharedStore};

use super::super::fixtures::*;
use super::*;
use crate::support::databases;

const RUNS: u32 = 30;
const CONVERSATIONS: u32 = 3;

#[derive(Debug, Clone)]
enum Op {
    /// Runs ask for turns, and others end theirs, in one batch. `off` is added to the fence.
    Batch {
        asks: Vec<Ask>,
        ends: Vec<(u32, i32)>,
    },
    /// A guest ends a run, whoever drives it.
    Guest {
        run: u32,
    },
    Claim {
        limit: i64,
    },
    Post {
        conversation: u32,
        messages: u32,
    },
    Close {
        conversation: u32,
    },
    Erase {
        conversation: u32,
    },
    Sweep,
}

#[derive(Debug, Clone)]
struct Ask {
    run: u32,
    conversation: u32,
    on_busy: OnBusy,
    key: Option<u32>,
    stale: bool,
}

fn op() -> impl Strategy<Value = Op> {
    let run = || 1..=RUNS;
    let conversation = || 1..=CONVERSATIONS;
    let busy = prop_oneof![Just(OnBusy::Reject), Just(OnBusy::Enqueue), Just(OnBusy::Interrupt)];
    let key = proptest::option::weighted(0.3, 0..4_u32);
    let ask = (run(), conversation(), busy, key, proptest::bool::weighted(0.1)).prop_map(
        |(run, conversation, on_busy, key, stale)| Ask { run, conversation, on_busy, key, stale },
    );
    let off = prop_oneof![8 => Just(0), 1 => Just(1)];
    let batch =
        (proptest::collection::vec(ask, 0..3), proptest::collection::vec((run(), off), 0..4));
    prop_oneof![
        12 => batch.prop_map(|(asks, ends)| Op::Batch { asks, ends }),
        4 => run().prop_map(|run| Op::Guest { run }),
        4 => (0..4_i64).prop_map(|limit| Op::Claim { limit }),
        3 => (conversation(), 0..3_u32)
            .prop_map(|(conversation, messages)| Op::Post { conversation, messages }),
        1 => conversation().prop_map(|conversation| Op::Close { conversation }),
        1 => conversation().prop_map(|conversation| Op::Erase { conversation }),
        1 => Just(Op::Sweep),
    ]
}

/// What was asked of which run, the same on every database.
#[derive(Default)]
struct Asked {
    /// Runs that were asked for, by number, with their conversations.
    runs: BTreeMap<u32, u32>,
    posts: u32,
}

impl Asked {
    /// What the operation comes to on one database, in words.
    async fn step(&self, store: &SharedStore, op: &Op) -> String {
        match op {
            Op::Batch { asks, ends } => {
                let creates = asks.iter().map(|ask| {
                    let mut new = turn(ask.run, ask.conversation, ask.on_busy);
                    let name = |key: u32| {
                        super::super::fixtures::key(&key.to_string(), &ask.run.to_string())
                    };
                    new.key = ask.key.map(name);
                    new.row.agent_version += i32::from(ask.stale);
                    new
                });
                let mut appends: Vec<Append> = Vec::new();
                for (run, off) in ends {
                    let Some(conversation) = self.runs.get(run) else { continue };
                    let Some(record) = store.load_run(HOME, run_id(*run)).await.unwrap() else {
                        continue;
                    };
                    if record.row.status.is_final()
                        || appends.iter().any(|a| a.run_id == run_id(*run))
                    {
                        continue;
                    }
                    let update = Some(over(*run, *conversation, Some(i64::from(*run))));
                    let last = vec![completed(run_id(*run), 2)];
                    appends.push(append(*run, record.row.rev + off, last, update));
                }
                let outcome = store.flush(&batch(creates.collect(), appends)).await.unwrap();
                format!("{outcome:?}\n")
            }
            Op::Guest { run } => {
                let Some(conversation) = self.runs.get(run) else { return String::new() };
                let found = store.load_run(HOME, run_id(*run)).await.unwrap();
                if found.is_none_or(|record| record.row.status.is_final()) {
                    return "over".to_owned();
                }
                let update = over(*run, *conversation, None);
                let gone = GuestDecision::Append {
                    facts: vec![completed(run_id(*run), 2)],
                    update: Box::new(update),
                };
                format!("{:?}", visit(store, *run, None, gone).await.unwrap())
            }
            Op::Claim { limit } => {
                let mut claims = store.claim_due(node(1), at(1_000_000), *limit).await.unwrap();
                claims.sort_unstable_by_key(|claim| claim.run_id);
                format!("{claims:?}")
            }
            Op::Post { conversation, messages } => {
                let (posts, messages) = (self.posts, *messages);
                let done = decide(store, *conversation, move |before| {
                    let mut after = before.clone();
                    after.take_indexes(messages as usize);
                    let said = (0..messages).map(|n| message(1_000 + posts * 10 + n, "by the way"));
                    let messages = said.collect();
                    ConversationDecision::Change { conversation: Box::new(after), messages }
                });
                format!("{:?}", done.await)
            }
            Op::Close { conversation } => {
                let closed = decide(store, *conversation, |before| {
                    let conversation = Conversation { closed_at: Some(at(9)), ..before.clone() };
                    let conversation = Box::new(conversation);
                    ConversationDecision::Change { conversation, messages: vec![] }
                });
                format!("{:?}", closed.await)
            }
            Op::Erase { conversation } => {
                let erased = decide(store, *conversation, |before| {
                    if before.is_busy() {
                        return ConversationDecision::Nothing;
                    }
                    ConversationDecision::Erase { at: at(10) }
                });
                format!("{:?}", erased.await)
            }
            Op::Sweep => {
                let sweep = ConversationSweep { only: None, quiet_since: None, now: at(20) };
                format!("{:?}", store.sweep_conversations(sweep).await.unwrap())
            }
        }
    }

    fn note(&mut self, op: &Op) {
        self.posts += u32::from(matches!(op, Op::Post { .. }));
        if let Op::Batch { asks, .. } = op {
            self.runs.extend(asks.iter().map(|ask| (ask.run, ask.conversation)));
        }
    }

    /// Everything that is there, in words; what must add up is checked.
    async fn all(&self, store: &SharedStore) -> String {
        let mut all = String::new();
        let mut rows = BTreeMap::new();
        for run in self.runs.keys() {
            if let Some(record) = store.load_run(HOME, run_id(*run)).await.unwrap() {
                rows.insert(run_id(*run), record.row);
            }
        }
        for n in 1..=CONVERSATIONS {
            let Some(there) = store.load_conversation(HOME, conv(n)).await.unwrap() else {
                continue;
            };
            let said = said(store, n).await;
            let indexes: Vec<i32> = said.iter().map(|(index, _)| *index).collect();
            assert_eq!(indexes, (0..there.message_count).collect::<Vec<_>>(), "conversation {n}");
            let open: Vec<_> = rows
                .values()
                .filter(|row| row.conversation_id == Some(conv(n)) && !row.status.is_final())
                .map(|row| row.run_id)
                .collect();
            let counted = there.queued_runs as usize + usize::from(there.active_run_id.is_some());
            assert_eq!(counted, open.len(), "{there:?} and {open:?}");
            assert!(there.active_run_id.is_none_or(|active| open.contains(&active)), "{there:?}");
            let last = store.find_turn(HOME, conv(n), FindTurn::Last).await.unwrap();
            all.push_str(&format!("{there:?}\n{said:?}\n{last:?}\n"));
        }
        let told = to_be_cancelled(store).await;
        all + &format!("{told:?}\n{rows:#?}")
    }
}

async fn play(ops: Vec<Op>) {
    let databases = databases::all().await;
    for database in &databases {
        begin(&database.store, CONVERSATIONS).await;
    }
    let mut asked = Asked::default();
    for mut op in ops {
        if let Op::Batch { asks, .. } = &mut op {
            // A batch has one creation for a conversation at most, and a run is created once.
            // Of two that share a key and come together, who has it may depend on the database.
            let (mut taken, mut keys) = (Vec::new(), Vec::new());
            for ask in asks.iter_mut() {
                ask.key = ask.key.filter(|key| !keys.contains(key));
                keys.extend(ask.key);
            }
            asks.retain(|ask| {
                let is_new = !asked.runs.contains_key(&ask.run)
                    && !taken.iter().any(|(run, conversation)| {
                        *run == ask.run || *conversation == ask.conversation
                    });
                taken.push((ask.run, ask.conversation));
                is_new
            });
        }
        let mut outcomes = Vec::new();
        for database in &databases {
            let outcome = asked.step(&database.store, &op).await;
            outcomes.push((database.name, outcome));
        }
        asked.note(&op);
        for (database, (_, outcome)) in databases.iter().zip(&mut outcomes) {
            outcome.push_str(&asked.all(&database.store).await);
        }
        let (first, second) = (&outcomes[0], &outcomes[1]);
        // All of it would be pages: the first lines that differ will do.
        let differs = first.1.lines().zip(second.1.lines()).find(|(one, other)| one != other);
        assert_eq!(differs, None, "{} and {} differ after {op:?}", first.0, second.0);
        assert_eq!(first.1.len(), second.1.len(), "{} and {} differ", first.0, second.0);
    }
    for database in databases {
        database.store.close().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 16,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_turns_have_the_same_outcome_everywhere(
        ops in proptest::collection::vec(op(), 1..80)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(ops));
    }
}

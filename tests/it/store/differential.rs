//! Random operations, played on every database and on a model that fits on a page: all must say the
//! same at every step, and have the same in the end.

mod ops;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use stepwell::domain::event::Entry;
use stepwell::domain::ids::{CallId, NodeId};
use stepwell::domain::page::{From, Order, Page};
use stepwell::domain::run::{ActionType, OpenAction, RequiredAction, RunStatus};
use stepwell::domain::time::Timestamp;
use stepwell::store::{
    AppendOutcome, Batch, CreateOutcome, GuestDecision, GuestOutcome, GuestWrite, Locked, NewRun,
    Owner, RunFilter, RunUpdate, SharedStore, Transfer,
};

use self::ops::{NODES, Op, op};
use super::fixtures::*;
use crate::support::databases;

/// What the model knows of a run.
#[derive(Debug, Clone)]
struct Known {
    node: Option<NodeId>,
    rev: i32,
    due: Option<Timestamp>,
    status: RunStatus,
    steps: i32,
    log: Vec<Entry>,
    erased: bool,
}

impl Known {
    fn next_seq(&self) -> i32 {
        i32::try_from(self.log.len()).unwrap() + 1
    }
    fn newest_fact(&self) -> i32 {
        self.log.iter().rev().find(|e| !e.event_type.is_delta()).map_or(0, |e| e.seq)
    }
}

#[derive(Default)]
struct Model {
    runs: BTreeMap<u32, Known>,
    keys: BTreeMap<u32, String>,
    /// Nodes that were declared dead: they claim nothing.
    dead: BTreeSet<u32>,
}

struct Play {
    stores: Vec<(&'static str, SharedStore)>,
    model: Model,
}

/// Asks every database, and all answers must be the same; the first one is returned.
macro_rules! ask {
    ($play:expr, |$store:ident| $question:expr) => {{
        let mut answers = Vec::new();
        for (name, $store) in &$play.stores {
            let $store = $store.clone();
            answers.push((*name, $question.await));
        }
        let (first, rest) = answers.split_first().unwrap();
        for other in rest {
            assert_eq!(first.1, other.1, "{} and {} differ", first.0, other.0);
        }
        answers.remove(0).1
    }};
}

impl Play {
    async fn step(&mut self, op: Op) {
        match op {
            Op::Create { run, driver, key: name, stale } => {
                self.create(run, driver, name, stale).await;
            }
            Op::Append { run, node: n, off, deltas, fact, park } => {
                self.append(run, (n, off), deltas, fact, park).await;
            }
            Op::Guest { run, key: name, owner, nothing } => {
                self.guest(run, name, owner, nothing).await;
            }
            Op::Finish { run } => self.finish(run).await,
            Op::Claim { node: n, now, limit } => self.claim(n, now, limit).await,
            Op::Orphans { node: n, limit } => {
                let claims =
                    ask!(self, |s| async move { s.claim_orphans(node(n), limit).await.unwrap() });
                assert!(claims.is_empty() || !self.model.dead.contains(&n), "{claims:?}");
                for claim in claims {
                    let known = self.known(claim.run_id);
                    assert_ne!(known.node, Some(node(n)));
                    *known = Known { node: Some(node(n)), rev: known.rev + 1, ..known.clone() };
                    assert_eq!(known.rev, claim.rev);
                }
            }
            Op::Bury { node: n } => {
                let seen = stepwell::store::NodeBeat { node_id: node(n), beat: 0 };
                let buried = ask!(self, |s| async move { s.bury(seen).await.unwrap() });
                assert_eq!(buried, self.model.dead.insert(n));
            }
            Op::Release { run, node: n, off, due } => {
                let rev = self.model.runs.get(&run).map_or(0, |known| known.rev) + off;
                let done = ask!(self, |s| async move {
                    s.release(node(n), run_id(run), rev, at(due), Some("let go")).await.unwrap()
                });
                let held = self
                    .model
                    .runs
                    .get_mut(&run)
                    .filter(|known| known.node == Some(node(n)) && known.rev == rev);
                assert_eq!(done, held.is_some());
                if let Some(known) = held {
                    known.node = None;
                    known.due = Some(at(due));
                }
            }
            Op::Transfer { run, from, to, crashes } => {
                let given =
                    Transfer { run_id: run_id(run), from: node(from), to: node(to), crashes };
                let claim = ask!(self, |s| async move { s.transfer(given).await.unwrap() });
                let held = self.model.runs.get_mut(&run);
                let held = held.filter(|known| known.node == Some(node(from)));
                assert_eq!(claim.map(|claim| claim.rev), held.as_ref().map(|known| known.rev + 1));
                if let Some(known) = held {
                    *known = Known { node: Some(node(to)), rev: known.rev + 1, ..known.clone() };
                }
            }
            Op::Read { run, above, below, limit, descending } => {
                let range = stepwell::store::LogRange { above, below, limit, descending };
                let page =
                    ask!(
                        self,
                        |s| async move { s.read_log(HOME, run_id(run), range).await.unwrap() }
                    );
                let known = self.model.runs.get(&run).filter(|known| !known.erased);
                let expected = known.map(|known| {
                    let mut log = known.log.clone();
                    log.retain(|e| e.seq > above && e.seq < below);
                    if descending {
                        log.reverse();
                    }
                    log.truncate(usize::try_from(limit).unwrap());
                    log
                });
                assert_eq!(page, expected);
            }
        }
    }

    fn known(&mut self, id: stepwell::domain::ids::RunId) -> &mut Known {
        self.model.runs.iter_mut().find(|(n, _)| run_id(**n) == id).unwrap().1
    }

    async fn create(&mut self, run: u32, driver: Option<u32>, name: Option<u32>, stale: bool) {
        // A second run of the same id is refused as a whole; the conformance tests have that.
        if self.model.runs.contains_key(&run) {
            return;
        }
        let mut new: NewRun = new_run(run);
        if let Some(driver) = driver {
            new = NewRun { row: driven_run(run).row, ..new };
            new.row.node_id = Some(node(driver));
        }
        new.row.agent_version = if stale { 7 } else { 1 };
        new.body.metadata.insert("run".to_owned(), (run % 2).to_string());
        new.key = name.map(|k| key(&k.to_string(), &run_id(run).to_string()));
        let write = Batch { node_id: node(0), ..batch(vec![new.clone()], vec![]) };
        let outcome = ask!(self, |s| async { s.flush(&write).await.unwrap() });
        match (name.and_then(|k| self.model.keys.get(&k)), stale) {
            (Some(resource), _) => assert!(
                matches!(&outcome.creates[0], CreateOutcome::KeyTaken(row) if row.resource == *resource)
            ),
            (None, true) => assert_eq!(outcome.creates, [CreateOutcome::AgentMoved]),
            (None, false) => {
                assert_eq!(outcome.creates, [CreateOutcome::Created]);
                if let Some(k) = name {
                    self.model.keys.insert(k, run_id(run).to_string());
                }
                let row = new.row;
                let known = Known {
                    node: row.node_id,
                    rev: row.rev,
                    due: row.due_at,
                    status: row.status,
                    steps: 0,
                    log: vec![new.first],
                    erased: false,
                };
                self.model.runs.insert(run, known);
            }
        }
    }

    async fn append(
        &mut self,
        run: u32,
        (n, off): (u32, i32),
        deltas: u32,
        fact: Option<bool>,
        park: Option<i64>,
    ) {
        let known = self.model.runs.get(&run);
        let (rev, next, steps) = known.map_or((0, 2, 0), |k| (k.rev + off, k.next_seq(), k.steps));
        let mut entries: Vec<_> = (next..)
            .take(usize::try_from(deltas).unwrap())
            .map(|seq| delta(run_id(run), seq, "\u{0}😀"))
            .collect();
        let mut change = None;
        if let Some(step_over) = fact {
            let seq = next + i32::try_from(deltas).unwrap();
            entries.push(running(run_id(run), seq));
            let owner = match park {
                Some(due) if due % 2 == 0 => Owner::Nobody { due_at: Some(at(due)) },
                Some(due) if due % 3 == 0 => Owner::DueIfUnowned(at(due)),
                Some(_) => Owner::Nobody { due_at: None },
                None => Owner::Keep,
            };
            change = Some(RunUpdate {
                steps_completed: steps + i32::from(step_over),
                actions: asked(run, seq),
                owner,
                ..update(RunStatus::Running, seq)
            });
        }
        if entries.is_empty() {
            return;
        }
        let appends = vec![append(run, rev, entries.clone(), change.clone())];
        let write = Batch { node_id: node(n), ..batch(vec![], appends) };
        let outcome = ask!(self, |s| async { s.flush(&write).await.unwrap() });
        let held = self
            .model
            .runs
            .get_mut(&run)
            .filter(|known| known.node == Some(node(n)) && known.rev == rev);
        let Some(known) = held else {
            assert_eq!(outcome.appends, [AppendOutcome::Missed]);
            return;
        };
        assert_eq!(outcome.appends, [AppendOutcome::Written]);
        let resolved = ask!(self, |s| async { s.resolve(&write).await.unwrap() });
        assert_eq!(resolved, Some(outcome));
        known.log.extend(entries);
        if let Some(change) = change {
            known.status = change.status;
            known.steps = change.steps_completed;
            if let Owner::Nobody { due_at } = change.owner {
                known.node = None;
                known.due = due_at;
            }
        }
    }

    async fn guest(&mut self, run: u32, name: Option<u32>, owner: Option<i64>, nothing: bool) {
        let owner = owner.map_or(Owner::Keep, |due| Owner::DueIfUnowned(at(due)));
        let decide = Arc::new(move |locked: &Locked| {
            if nothing {
                return Ok(GuestDecision::Nothing);
            }
            let seq = locked.record.last_seq + 1;
            let update = RunUpdate {
                steps_completed: locked.record.row.steps_completed,
                actions: asked(run, seq),
                owner,
                ..update(locked.record.row.status, seq)
            };
            Ok(GuestDecision::Append {
                facts: vec![cancelling(run_id(run), seq)],
                update: Box::new(update),
            })
        });
        let bound = name.map(|k| key(&k.to_string(), "a guest"));
        let write = || GuestWrite {
            workspace_id: HOME,
            run_id: run_id(run),
            key: bound.clone(),
            decide: decide.clone(),
        };
        let outcome = ask!(self, |s| async { s.guest(write()).await.unwrap() });
        if let Some(resource) = name.and_then(|k| self.model.keys.get(&k)) {
            assert!(
                matches!(&outcome, GuestOutcome::KeyTaken(row) if row.resource == *resource),
                "{outcome:?}"
            );
            return;
        }
        let Some(known) = self.model.runs.get_mut(&run).filter(|known| !known.erased) else {
            assert_eq!(outcome, GuestOutcome::Absent);
            return;
        };
        if let Some(k) = name {
            self.model.keys.insert(k, "a guest".to_owned());
        }
        let mut appended = Vec::new();
        if !nothing {
            appended.push(cancelling(run_id(run), known.next_seq()));
            known.rev += 1;
            known.log.extend(appended.clone());
            if let (Owner::DueIfUnowned(due), None) = (owner, known.node) {
                known.due = Some(due);
            }
        }
        assert_eq!(outcome, GuestOutcome::Done { node_id: known.node, appended, promoted: false });
    }

    async fn finish(&mut self, run: u32) {
        let Some(known) = self.model.runs.get_mut(&run) else { return };
        if known.erased || known.node.is_some() {
            return;
        }
        let decision = if known.status == RunStatus::Completed {
            known.erased = true;
            known.due = None;
            GuestDecision::Erase { at: at(1) }
        } else {
            let end = completed(run_id(run), known.next_seq());
            let actions = Some(vec![]);
            let update = RunUpdate { steps_completed: known.steps, actions, ..ends(end.seq) };
            known.status = RunStatus::Completed;
            known.due = None;
            known.log.push(end.clone());
            GuestDecision::Append { facts: vec![end], update: Box::new(update) }
        };
        known.rev += 1;
        ask!(self, |s| {
            let decision = decision.clone();
            async move { visit(&s, run, None, decision).await.unwrap() }
        });
    }

    async fn claim(&mut self, n: u32, now: i64, limit: i64) {
        let claims =
            ask!(self, |s| async move { s.claim_due(node(n), at(now), limit).await.unwrap() });
        let mut due: Vec<_> = self
            .model
            .runs
            .iter_mut()
            .filter(|(_, known)| {
                known.node.is_none() && known.due.is_some_and(|due| due <= at(now))
            })
            .collect();
        due.sort_by_key(|(run, known)| (known.due, **run));
        let is_dead = self.model.dead.contains(&n);
        due.truncate(if is_dead { 0 } else { usize::try_from(limit).unwrap() });
        for (_, known) in &mut due {
            known.node = Some(node(n));
            known.rev += 1;
            known.due = None;
        }
        let expected: Vec<_> = due.iter().map(|(run, known)| (run_id(**run), known.rev)).collect();
        assert_eq!(claims.iter().map(|c| (c.run_id, c.rev)).collect::<Vec<_>>(), expected);
    }

    /// Every read of every run.
    async fn compare(&self) {
        for (run, known) in &self.model.runs {
            let id = run_id(*run);
            let record = ask!(self, |s| async move { s.load_run(HOME, id).await.unwrap() });
            let log = ask!(self, |s| async move { s.read_log(HOME, id, ALL).await.unwrap() });
            let facts = ask!(self, |s| async move { s.read_facts(HOME, id, 1).await.unwrap() });
            ask!(self, |s| async move { s.heads(&[id]).await.unwrap() });
            if known.erased {
                assert_eq!((record, log, facts.len()), (None, None, 0));
                continue;
            }
            let record = record.unwrap();
            assert_eq!(log.as_ref(), Some(&known.log));
            assert_eq!(record.last_seq, known.next_seq() - 1);
            assert_eq!(record.row.fact_seq, known.newest_fact());
            assert_eq!(
                (record.row.node_id, record.row.rev, record.row.due_at, record.row.status),
                (known.node, known.rev, known.due, known.status)
            );
        }
        let red = vec![("run".to_owned(), "1".to_owned())];
        let ended = vec![RunStatus::Completed];
        let alive = vec![RunStatus::Queued, RunStatus::Running];
        let filters = [
            RunFilter::default(),
            RunFilter { metadata: red, ..RunFilter::default() },
            RunFilter { statuses: ended, ..RunFilter::default() },
            RunFilter { statuses: alive, ..RunFilter::default() },
            RunFilter { agent_id: Some(agent_id("a")), ..RunFilter::default() },
        ];
        for filter in &filters {
            for order in [Order::Asc, Order::Desc] {
                let page = Page { limit: 4, from: From::After(run_id(2)), order };
                let page = &page;
                ask!(self, |s| async move { s.list_runs(HOME, filter, page).await.unwrap() });
            }
        }
        for order in [Order::Asc, Order::Desc] {
            let page = &Page { limit: 4, from: From::Start, order };
            ask!(self, |s| async move { s.list_approvals(HOME, page).await.unwrap() });
        }
        ask!(self, |s| async move { s.recent_durations(HOME, &agent_id("a")).await.unwrap() });
        for n in 0..NODES {
            ask!(self, |s| async move { s.owned(node(n)).await.unwrap() });
        }
        for run in self.model.runs.keys() {
            for n in 0..NODES {
                ask!(self, |s| async move {
                    let mine = s.load_driveable(node(n), run_id(*run)).await.unwrap();
                    mine.map(|mine| (mine.record, mine.facts, mine.log_bytes))
                });
            }
        }
    }
}

async fn play(ops: Vec<Op>) {
    let databases = databases::all().await;
    let stores = databases.iter().map(|d| (d.name, d.store.clone())).collect();
    let mut play = Play { stores, model: Model::default() };
    for (_, store) in &play.stores {
        add_agent(store, "a").await;
        for n in 0..NODES {
            store.register_node(node(n), at(0)).await.unwrap();
        }
    }
    for op in ops {
        play.step(op).await;
    }
    play.compare().await;
    for (_, store) in &play.stores {
        store.close().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_operations_have_the_same_outcome_everywhere(
        ops in proptest::collection::vec(op(), 1..120)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(ops));
    }
}

/// The actions that a run asks for behind the event `seq`: now none, now one or two, or as before.
fn asked(run: u32, seq: i32) -> Option<Vec<OpenAction>> {
    let kinds: &[ActionType] = match seq % 4 {
        0 => &[],
        1 => &[ActionType::Approval],
        2 => &[ActionType::ToolResult, ActionType::Approval],
        _ => return None,
    };
    let open = |(n, kind): (u128, &ActionType)| {
        let id = 0x019a_0c5e_7d2a_7000_9000_0000_0000_0000 + u128::from(run) * 1_000 + n;
        let action = RequiredAction {
            action_type: *kind,
            run_id: run_id(run),
            call_id: CallId::from_uuid(uuid::Uuid::from_u128(id)),
            tool: "pay".to_owned(),
            arguments: serde_json::json!({"n": seq}),
            expires_at: None,
        };
        OpenAction { action, created_at: at(i64::from(seq)) }
    };
    Some((u128::try_from(seq).unwrap()..).step_by(3).zip(kinds).map(open).collect())
}

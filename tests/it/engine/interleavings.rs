//! Thousands of random interleavings of claim, beat, pause, take-over and append.
//!
//! The database is real; the nodes are models that use the real rules: who is dead
//! ([`Observer`]), and who may act ([`Proof`]). Time is a number. Whatever happens in whatever order:
//!
//! - a driver whose claim is lost appends nothing, and begins nothing that may not happen twice;
//! - no claim is given twice;
//! - a log is what was accepted, in that order, without a gap;
//! - when the faults are over, every run has one driver, on a node that lives.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stepwell::domain::event::Entry;
use stepwell::domain::ids::{NodeId, RunId};
use stepwell::domain::run::RunStatus;
use stepwell::engine::observe::Observer;
use stepwell::engine::trust::Proof;
use stepwell::log::pulse::Presence;
use stepwell::store::{
    Append, AppendOutcome, Batch, GuestDecision, Neighbour, Owner, RunUpdate, SharedStore,
};
use tokio::time::Instant;

use crate::store::fixtures::{
    add_agent, at, cancelling, create, delta, ends, log, new_run, row, run_id, running, update,
    visit,
};
use crate::support::databases::{Database, postgres, sqlite_in_memory};
use crate::support::random::Random;

const NODES: usize = 3;
const RUNS: u32 = 3;
const STEPS: usize = 80;

/// What the faults did, over all rounds.
#[derive(Debug, Default)]
struct Counts {
    take_overs: usize,
    fenced: usize,
    behind: usize,
    written: usize,
    acted: usize,
    refused: usize,
    reborn: usize,
    late: usize,
}

/// A driver as it believes to be.
#[derive(Debug, Clone)]
struct Driver {
    rev: i32,
    epoch: i32,
    next_seq: i32,
    /// It believes in the node that it began under.
    under: NodeId,
}

struct Node {
    id: NodeId,
    observer: Observer,
    proof: Proof,
    /// The process is there and goes on.
    runs: bool,
    killed: bool,
    /// It reaches the database.
    connected: bool,
    /// The database has a connection of its ear.
    listens: bool,
    drivers: BTreeMap<RunId, Driver>,
    /// A flush that is on its way, for a run.
    on_its_way: Option<(RunId, Append, NodeId)>,
}

struct World<'a> {
    store: &'a SharedStore,
    random: Random,
    begin: Instant,
    millis: u64,
    nodes: Vec<Node>,
    runs: Vec<u32>,
    /// Who owns a run by the database, and since which claim.
    owners: BTreeMap<RunId, (NodeId, i32)>,
    claims: BTreeSet<(RunId, i32)>,
    accepted: BTreeMap<RunId, Vec<Entry>>,
    counts: &'a mut Counts,
    next_node: u128,
}

impl World<'_> {
    fn now(&self) -> Instant {
        self.begin + Duration::from_millis(self.millis)
    }

    fn node_id(&mut self) -> NodeId {
        self.next_node += 1;
        NodeId::from_uuid(uuid::Uuid::from_u128(self.next_node))
    }

    async fn enter(&mut self) -> Node {
        let id = self.node_id();
        self.store.register_node(id, at(0)).await.expect("entered");
        let now = self.now().into_std();
        Node {
            id,
            observer: Observer::default(),
            proof: Proof { beat_sent: now, ear: Some(Presence { since: now, asked: now }) },
            runs: true,
            killed: false,
            connected: true,
            listens: true,
            drivers: BTreeMap::new(),
            on_its_way: None,
        }
    }

    /// One thing that may happen to one node.
    async fn step(&mut self, i: usize) {
        match self.random.below(20) {
            0 => self.nodes[i].runs = false,
            1 | 2 => self.nodes[i].runs = true,
            3 => self.nodes[i].connected = false,
            4 | 5 => self.nodes[i].connected = true,
            6 => self.nodes[i].listens = false,
            7 if self.random.below(4) == 0 => self.kill(i).await,
            8 => self.guest().await,
            9 => self.arrive(i).await,
            10..=12 => self.act(i),
            _ => self.live(i).await,
        }
    }

    async fn kill(&mut self, i: usize) {
        if self.nodes.iter().filter(|node| !node.killed).count() == 1 {
            return;
        }
        let node = &mut self.nodes[i];
        (node.killed, node.runs, node.listens) = (true, false, false);
        node.drivers.clear();
    }

    fn is_up(&self, i: usize) -> bool {
        self.nodes[i].runs && self.nodes[i].connected && !self.nodes[i].killed
    }

    /// What a node does when it is its turn: beat, be heard, look, claim, append; each or not.
    async fn live(&mut self, i: usize) {
        if !self.is_up(i) {
            self.nodes[i].observer.missed();
            return;
        }
        if self.random.below(4) != 0 {
            self.beat(i).await;
        }
        if self.random.below(4) != 0 {
            self.ask(i);
        }
        if self.random.below(4) != 0 {
            self.look(i).await;
        }
        if self.random.below(3) != 0 {
            self.claim(i).await;
        }
        self.reconcile(i).await;
        self.append(i).await;
    }

    async fn beat(&mut self, i: usize) {
        let now = self.now().into_std();
        if self.store.beat(self.nodes[i].id).await.expect("an answer") {
            self.nodes[i].proof.beat_sent = now;
            return;
        }
        let id = self.node_id();
        self.store.register_node(id, at(0)).await.expect("entered");
        self.nodes[i].id = id;
        self.nodes[i].proof.beat_sent = now;
        self.nodes[i].listens = false;
        self.counts.reborn += 1;
    }

    /// The ear answers; if its connection was lost, another one is made.
    fn ask(&mut self, i: usize) {
        let asked = self.now().into_std();
        let node = &mut self.nodes[i];
        let since = node.proof.ear.filter(|_| node.listens).map_or(asked, |ear| ear.since);
        node.listens = true;
        node.proof.ear = Some(Presence { since, asked });
    }

    async fn look(&mut self, i: usize) {
        let (me, now) = (self.nodes[i].id, self.now());
        let mut neighbours = self.store.other_nodes(me).await.expect("an answer");
        // The database knows of connections; a SQLite file does not.
        neighbours.retain(|neighbour| self.knows(neighbour));
        for neighbour in &mut neighbours {
            let of = self.nodes.iter().find(|node| node.id == neighbour.seen.node_id);
            neighbour.listens = Some(of.is_some_and(|node| node.listens));
        }
        for dead in self.nodes[i].observer.look(&neighbours, now) {
            self.store.bury(dead).await.expect("an answer");
        }
    }

    /// Nodes of earlier rounds are all buried, and ids that were given up in this one are among ours.
    fn knows(&self, neighbour: &Neighbour) -> bool {
        neighbour.seen.node_id.uuid().as_u128() > self.next_node - 1_000_000
    }

    async fn claim(&mut self, i: usize) {
        let id = self.nodes[i].id;
        let mut claims = self.store.claim_orphans(id, 2).await.expect("an answer");
        self.counts.take_overs += claims.len();
        claims.extend(self.store.claim_due(id, at(1_000_000), 2).await.expect("an answer"));
        for claim in claims {
            let is_new = self.claims.insert((claim.run_id, claim.epoch));
            assert!(is_new, "a claim was given twice: {claim:?}");
            self.owners.insert(claim.run_id, (id, claim.epoch));
            // The answer to the claim is lost: reconciliation finds the run.
            if self.random.below(8) != 0 {
                self.drive(i, claim.run_id).await;
            }
        }
    }

    async fn drive(&mut self, i: usize, run: RunId) {
        if self.waits_for(i, run) {
            return;
        }
        let id = self.nodes[i].id;
        let Some(loaded) = self.store.load_driveable(id, run).await.expect("an answer") else {
            self.nodes[i].drivers.remove(&run);
            return;
        };
        let row = &loaded.record.row;
        let old = self.nodes[i].drivers.get(&run);
        if old.is_some_and(|old| old.epoch != row.epoch) {
            // As a driver does that looks and finds another claim: the run is for another driver.
            self.nodes[i].drivers.remove(&run);
            return;
        }
        let under = old.map_or(id, |old| old.under);
        let next_seq = loaded.record.last_seq + 1;
        let driver = Driver { rev: row.rev, epoch: row.epoch, next_seq, under };
        self.nodes[i].drivers.insert(run, driver);
    }

    async fn reconcile(&mut self, i: usize) {
        if self.random.below(3) == 0 {
            return;
        }
        let owned = self.store.owned(self.nodes[i].id).await.expect("an answer");
        let owned: BTreeMap<RunId, i32> = owned.into_iter().collect();
        let driven: Vec<RunId> = self.nodes[i].drivers.keys().copied().collect();
        for run in driven {
            let rev = self.nodes[i].drivers[&run].rev;
            if owned.get(&run) != Some(&rev) {
                self.drive(i, run).await;
            }
        }
        for run in owned.into_keys() {
            if !self.nodes[i].drivers.contains_key(&run) {
                self.drive(i, run).await;
            }
        }
    }

    /// A driver pushes something: it is flushed at once, or is on its way for a while.
    async fn append(&mut self, i: usize) {
        let runs: Vec<RunId> = self.nodes[i].drivers.keys().copied().collect();
        if runs.is_empty() {
            return;
        }
        let run = *self.random.pick(&runs);
        if self.waits_for(i, run) {
            return;
        }
        let driver = self.nodes[i].drivers[&run].clone();
        let mut entries = vec![delta(run, driver.next_seq, &format!("epoch {}", driver.epoch))];
        let mut change = None;
        if self.random.below(3) == 0 {
            entries.push(running(run, driver.next_seq + 1));
            change = Some(update(RunStatus::Running, driver.next_seq + 1));
            if self.random.below(6) == 0 {
                // It lets go of the run, with its last event.
                let owner = Owner::Nobody { due_at: Some(at(1)) };
                change = change.map(|update| RunUpdate { owner, ..update });
            }
        }
        let append = Append { run_id: run, rev: driver.rev, entries, update: change };
        let node_id = self.nodes[i].id;
        if self.random.below(3) == 0 && self.nodes[i].on_its_way.is_none() {
            self.nodes[i].on_its_way = Some((run, append, node_id));
        } else {
            self.flush(i, run, append, node_id).await;
        }
    }

    /// A lane has one flush at a time, and its driver looks again only when that is settled.
    fn waits_for(&self, i: usize, run: RunId) -> bool {
        self.nodes[i].on_its_way.as_ref().is_some_and(|(of, ..)| *of == run)
    }

    /// What was on its way arrives, whatever became of the node since.
    async fn arrive(&mut self, i: usize) {
        if let Some((run, append, node_id)) = self.nodes[i].on_its_way.take() {
            self.counts.late += 1;
            self.flush(i, run, append, node_id).await;
        }
    }

    async fn flush(&mut self, i: usize, run: RunId, append: Append, node_id: NodeId) {
        let entries = append.entries.clone();
        let lets_go = append.update.as_ref().is_some_and(|update| update.owner != Owner::Keep);
        let rev = append.rev;
        let batch = batch_of(node_id, append);
        let outcome = self.store.flush(&batch).await.expect("an answer").appends[0];
        let driver = self.nodes[i].drivers.get(&run).cloned();
        match outcome {
            AppendOutcome::Written => {
                self.counts.written += 1;
                let owner = self.owners.get(&run);
                assert_eq!(owner.map(|(id, _)| *id), Some(node_id), "a stranger has written");
                self.accepted.entry(run).or_default().extend(entries.iter().cloned());
                if lets_go {
                    self.owners.remove(&run);
                }
                match driver {
                    Some(driver) if driver.rev == rev && !lets_go => {
                        let last = entries.last().expect("an entry").seq;
                        let driver = Driver { next_seq: driver.next_seq.max(last + 1), ..driver };
                        self.nodes[i].drivers.insert(run, driver);
                    }
                    Some(_) if lets_go => drop(self.nodes[i].drivers.remove(&run)),
                    Some(_) | None => {}
                }
            }
            AppendOutcome::Missed => {
                let mine = self.owners.get(&run).is_some_and(|(id, _)| *id == node_id);
                if mine {
                    self.counts.behind += 1
                } else {
                    self.counts.fenced += 1
                }
                if driver.is_some() && self.is_up(i) {
                    self.drive(i, run).await;
                }
            }
        }
    }

    /// A driver begins something that may not happen twice, if it may.
    fn act(&mut self, i: usize) {
        let node = &self.nodes[i];
        if !node.runs || node.killed {
            return;
        }
        let now = self.now().into_std();
        for (run, driver) in &node.drivers {
            if driver.under != node.id || !node.proof.may_act(now) {
                self.counts.refused += 1;
                continue;
            }
            self.counts.acted += 1;
            let claim = (driver.under, driver.epoch);
            assert_eq!(self.owners.get(run), Some(&claim), "it acted under a lost claim");
        }
    }

    /// Somebody who is not the driver writes.
    async fn guest(&mut self) {
        let n = *self.random.pick(&self.runs);
        let run = run_id(n);
        let last = log(self.store, n).await.len() as i32;
        let facts = vec![cancelling(run, last + 1)];
        let change = RunUpdate { owner: Owner::Keep, ..update(RunStatus::Running, last + 1) };
        let decision = GuestDecision::Append { facts: facts.clone(), update: Box::new(change) };
        visit(self.store, n, None, decision).await.expect("an answer");
        self.accepted.entry(run).or_default().extend(facts);
    }

    async fn check_logs(&self) {
        for n in &self.runs {
            let found = log(self.store, *n).await;
            let seqs: Vec<i32> = found.iter().map(|entry| entry.seq).collect();
            assert_eq!(seqs, (1..=found.len() as i32).collect::<Vec<_>>(), "gap-free");
            let accepted = self.accepted.get(&run_id(*n)).cloned().unwrap_or_default();
            assert_eq!(found[1..], accepted, "what was accepted, and nothing else");
        }
    }

    /// The faults are over: within 20 s every run has one driver, on a node that lives.
    async fn heal(&mut self) {
        for i in 0..self.nodes.len() {
            let node = &mut self.nodes[i];
            (node.runs, node.connected) = (!node.killed, true);
            self.arrive(i).await;
        }
        for _ in 0..20 {
            self.millis += 1_000;
            for i in 0..self.nodes.len() {
                if self.is_up(i) {
                    self.beat(i).await;
                    self.ask(i);
                    self.look(i).await;
                    self.claim(i).await;
                    for run in self.nodes[i].drivers.keys().copied().collect::<Vec<_>>() {
                        self.drive(i, run).await;
                    }
                    let owned = self.store.owned(self.nodes[i].id).await.expect("an answer");
                    for (run, _) in owned {
                        self.drive(i, run).await;
                    }
                    self.act(i);
                }
            }
        }
        for n in &self.runs {
            let owner = row(self.store, *n).await.node_id.expect("an owner");
            let drives = |node: &&Node| node.drivers.contains_key(&run_id(*n));
            let drivers: Vec<&Node> = self.nodes.iter().filter(drives).collect();
            assert_eq!(drivers.len(), 1, "one driver");
            assert!(drivers[0].id == owner && !drivers[0].killed, "on the node that owns it");
        }
    }

    /// Leaves nothing for the next round to claim.
    async fn clean_up(&self) {
        for n in &self.runs {
            let last = log(self.store, *n).await.len() as i32;
            let facts = vec![cancelling(run_id(*n), last + 1)];
            let decision = GuestDecision::Append { facts, update: Box::new(ends(last + 1)) };
            visit(self.store, *n, None, decision).await.expect("an answer");
        }
        for node in &self.nodes {
            self.store.retire_node(node.id).await.expect("an answer");
        }
    }
}

fn batch_of(node_id: NodeId, append: Append) -> Batch {
    Batch { node_id, ..crate::store::fixtures::batch(vec![], vec![append]) }
}

async fn play(database: &Database, rounds: usize) -> Counts {
    let store = &database.store;
    add_agent(store, "a").await;
    let mut counts = Counts::default();
    for round in 0..rounds {
        let first = 1_000 + round as u32 * RUNS;
        let runs: Vec<u32> = (first..first + RUNS).collect();
        create(store, runs.iter().map(|n| new_run(*n)).collect()).await;
        let mut world = World {
            store,
            random: Random::seeded(round as u64),
            begin: Instant::now(),
            millis: 0,
            nodes: Vec::new(),
            runs,
            owners: BTreeMap::new(),
            claims: BTreeSet::new(),
            accepted: BTreeMap::new(),
            counts: &mut counts,
            next_node: (round as u128 + 2) * 10_000_000,
        };
        for _ in 0..NODES {
            let node = world.enter().await;
            world.nodes.push(node);
        }
        for _ in 0..STEPS {
            world.millis += world.random.below(900);
            let i = world.random.below(NODES as u64) as usize;
            world.step(i).await;
        }
        world.check_logs().await;
        world.heal().await;
        world.check_logs().await;
        world.clean_up().await;
    }
    counts
}

/// The faults must have bitten, or nothing was shown.
fn assert_bitten(counts: &Counts, rounds: usize) {
    println!("{rounds} interleavings: {counts:?}");
    for (what, count) in [
        ("take-overs", counts.take_overs),
        ("fenced writers", counts.fenced * 3),
        ("drivers behind", counts.behind),
        ("late arrivals", counts.late),
        ("actions", counts.acted),
        ("refused actions", counts.refused),
        ("nodes declared dead that lived", counts.reborn),
    ] {
        assert!(count * 4 >= rounds, "{what}: only {count}");
    }
}

#[tokio::test]
async fn no_interleaving_lets_two_drivers_write_or_act_on_sqlite() {
    let rounds = crate::support::profile::pick(1_500, 20_000);
    let database = sqlite_in_memory().await;
    assert_bitten(&play(&database, rounds).await, rounds);
}

#[tokio::test]
async fn no_interleaving_lets_two_drivers_write_or_act_on_postgres() {
    let rounds = crate::support::profile::pick(300, 5_000);
    let database = postgres().await;
    assert_bitten(&play(&database, rounds).await, rounds);
}

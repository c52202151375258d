//! What may happen to a store, at random.

use proptest::prelude::*;

pub const RUNS: u32 = 6;
pub const NODES: u32 = 3;

/// What may happen. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
pub enum Op {
    /// A run is created, driven by a node or by nobody, maybe with one of few keys.
    Create {
        run: u32,
        driver: Option<u32>,
        key: Option<u32>,
        stale: bool,
    },
    /// A driver appends; `off` is added to the fence it should name.
    Append {
        run: u32,
        node: u32,
        off: i32,
        deltas: u32,
        fact: Option<bool>,
        park: Option<i64>,
    },
    /// A guest appends, asks to look again, or decides nothing.
    Guest {
        run: u32,
        key: Option<u32>,
        owner: Option<i64>,
        nothing: bool,
    },
    /// A guest ends a run that nobody drives, and erases one that has ended.
    Finish {
        run: u32,
    },
    Claim {
        node: u32,
        now: i64,
        limit: i64,
    },
    Orphans {
        node: u32,
        limit: i64,
    },
    /// One node is never taken for dead: somebody must be able to claim.
    Bury {
        node: u32,
    },
    Release {
        run: u32,
        node: u32,
        off: i32,
        due: i64,
    },
    /// A node gives a run to another.
    Transfer {
        run: u32,
        from: u32,
        to: u32,
        crashes: Option<i32>,
    },
    /// Everything of one run is read.
    Read {
        run: u32,
        above: i32,
        below: i32,
        limit: i64,
        descending: bool,
    },
}

pub fn op() -> impl Strategy<Value = Op> {
    let run = || 0..RUNS;
    let node = || 0..NODES;
    let key = || proptest::option::weighted(0.3, 0..3_u32);
    // The right fence mostly: a wrong one is soon dull.
    let off = || prop_oneof![8 => Just(0), 1 => Just(-1), 1 => Just(1)];
    let due = || proptest::option::weighted(0.3, 0..50_i64);
    prop_oneof![
        4 => (run(), proptest::option::of(node()), key(), proptest::bool::weighted(0.1))
            .prop_map(|(run, driver, key, stale)| Op::Create { run, driver, key, stale }),
        8 => (run(), node(), off(), 0..4_u32, proptest::option::of(any::<bool>()), due())
            .prop_map(|(run, node, off, deltas, fact, park)| {
                Op::Append { run, node, off, deltas, fact, park }
            }),
        3 => (run(), key(), due(), any::<bool>())
            .prop_map(|(run, key, owner, nothing)| Op::Guest { run, key, owner, nothing }),
        1 => run().prop_map(|run| Op::Finish { run }),
        3 => (node(), 0..50_i64, 0..4_i64)
            .prop_map(|(node, now, limit)| Op::Claim { node, now, limit }),
        1 => (node(), 0..4_i64).prop_map(|(node, limit)| Op::Orphans { node, limit }),
        1 => (0..NODES - 1).prop_map(|node| Op::Bury { node }),
        2 => (run(), node(), off(), 0..50_i64)
            .prop_map(|(run, node, off, due)| Op::Release { run, node, off, due }),
        1 => (run(), node(), node(), proptest::option::of(0..4_i32))
            .prop_map(|(run, from, to, crashes)| Op::Transfer { run, from, to, crashes }),
        2 => (run(), 0..6_i32, 0..12_i32, 1..5_i64, any::<bool>()).prop_map(
            |(run, above, below, limit, descending)| {
                Op::Read { run, above, below, limit, descending }
            }
        ),
    ]
}

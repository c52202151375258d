//! What only a file can do.

use std::sync::Arc;

use stepwell::store::sqlite::{Options, SqliteStore};
use stepwell::store::{
    AppendOutcome, Batch, GuestDecision, GuestWrite, Locked, SharedStore, StoreError, Transfer,
};

use super::fixtures::*;
use crate::support::databases::{Directory, open_sqlite};

async fn open(directory: &Directory) -> SharedStore {
    Arc::new(open_sqlite(directory, Options::default()).await)
}

#[tokio::test]
async fn a_second_server_is_refused_until_the_first_is_gone() {
    let directory = Directory::new();
    let first = open(&directory).await;
    let second = SqliteStore::open(directory.file(), Options::default()).await;
    assert!(
        matches!(&second, Err(StoreError::Unusable(why)) if why.contains("in use by another stepwell")),
        "{second:?}"
    );
    assert!(first.is_exclusive());
    first.close().await;
    assert!(!open(&directory).await.beat(node(1)).await.unwrap());
}

/// The same file as another process of ours opens it. (Two stores in one process are two sets of
/// connections, which is what two processes are to SQLite.)
async fn borrow(directory: &Directory) -> SharedStore {
    let options = Options { lent: true, ..Options::default() };
    Arc::new(SqliteStore::open(directory.file(), options).await.unwrap())
}

#[tokio::test]
async fn a_lent_file_is_written_by_both_and_each_sees_the_other() {
    let directory = Directory::new();
    let server = open(&directory).await;
    let child = borrow(&directory).await;
    assert!(server.is_exclusive() && !child.is_exclusive());
    add_agent(&server, "a").await;
    create(&server, vec![driven_run(1), driven_run(2)]).await;
    let given = Transfer { run_id: run_id(2), from: node(1), to: node(2), crashes: None };
    assert!(child.transfer(given).await.unwrap().is_some());
    // Both write all the time: none of them is refused, and none of them changes the other's run.
    let write = |store: SharedStore, n: u32, rev: i32| async move {
        for seq in 2..=200 {
            let entries = vec![delta(run_id(n), seq, "x")];
            let write =
                Batch { node_id: node(n), ..batch(vec![], vec![append(n, rev, entries, None)]) };
            assert_eq!(store.flush(&write).await.unwrap().appends, [AppendOutcome::Written]);
        }
    };
    tokio::join!(write(server.clone(), 1, 1), write(child.clone(), 2, 2));
    for store in [&server, &child] {
        assert_eq!((log(store, 1).await.len(), log(store, 2).await.len()), (200, 200));
    }
    // It goes without taking anything along: the server's lock, and the log before the file.
    child.close().await;
    let second = SqliteStore::open(directory.file(), Options::default()).await;
    assert!(matches!(second, Err(StoreError::Unusable(_))), "{second:?}");
    assert!(directory.wal_bytes() > 0);
    assert!(!server.beat(node(9)).await.unwrap());
    server.close().await;
}

#[tokio::test]
async fn a_file_that_is_not_there_cannot_be_lent() {
    let directory = Directory::new();
    let options = Options { lent: true, ..Options::default() };
    let refused = SqliteStore::open(directory.file(), options).await;
    assert!(matches!(refused, Err(StoreError::Unusable(_))), "{refused:?}");
    assert!(!directory.file().exists());
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let directory = Directory::new();
    let store = open(&directory).await;
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    append_to(&store, 1, 1, vec![delta(run_id(1), 2, "a")], None).await;
    store.close().await;
    // Closing leaves one file, which can be copied.
    assert_eq!(directory.wal_bytes(), 0);
    let store = open(&directory).await;
    assert_eq!(log(&store, 1).await, [queued(run_id(1)), delta(run_id(1), 2, "a")]);
    create(&store, vec![new_run(2)]).await;
    assert_eq!(log(&store, 2).await, [queued(run_id(2))]);
}

#[tokio::test]
async fn memory_is_no_file() {
    for path in ["", ":memory:", "file::memory:"] {
        let refused = SqliteStore::open(path, Options::default()).await;
        assert!(matches!(refused, Err(StoreError::Unusable(_))), "{path}: {refused:?}");
    }
}

#[tokio::test]
async fn what_is_no_database_is_unusable() {
    let directory = Directory::new();
    std::fs::write(directory.file(), "this is a letter to my grandmother".repeat(100)).unwrap();
    let refused = SqliteStore::open(directory.file(), Options::default()).await;
    assert!(matches!(refused, Err(StoreError::Unusable(_))), "{refused:?}");
    let absent = Directory::new().file();
    let refused = SqliteStore::open(absent, Options::default()).await;
    assert!(matches!(refused, Err(StoreError::Unusable(_))), "{refused:?}");
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_no_half_of_a_write() {
    let directory = Directory::new();
    let store = open(&directory).await;
    add_agent(&store, "a").await;
    // Each caller is dropped at its first wait, which is when its work was handed over.
    for n in 1..=50 {
        let write = batch(vec![driven_run(n)], vec![]);
        let mut flush = Box::pin(store.flush(&write));
        let waker = std::task::Waker::noop();
        let mut context = std::task::Context::from_waker(waker);
        assert!(std::future::Future::poll(flush.as_mut(), &mut context).is_pending());
        drop(flush);
        // Behind it on the writer: it is in or it is not, and nothing in between.
        let resolved = store.resolve(&write).await.unwrap();
        let found = store.load_run(HOME, run_id(n)).await.unwrap();
        assert_eq!(resolved.is_some(), found.is_some());
        assert_eq!(found.map(|record| record.first), resolved.map(|_| Some(queued(run_id(n)))));
    }
    assert!(!store.beat(node(1)).await.unwrap());
}

#[tokio::test]
async fn a_panic_in_a_decision_harms_nobody_else() {
    let directory = Directory::new();
    let store = open(&directory).await;
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    let decide = Arc::new(|_: &Locked| -> Result<GuestDecision, String> { panic!("on purpose") });
    let write =
        GuestWrite { workspace_id: HOME, run_id: run_id(1), key: Some(key("k", "x")), decide };
    let lost = store.guest(write).await;
    assert!(matches!(lost, Err(StoreError::InDoubt(_))), "{lost:?}");
    assert_eq!(store.find_key(&key("k", "x").key).await.unwrap(), None);
    create(&store, vec![driven_run(2)]).await;
}

#[tokio::test]
async fn the_log_before_the_file_stays_small_while_others_read() {
    // A reader that the machine stops in the middle of a page holds up everything behind it, and the log
    // grows meanwhile. That does not happen each time.
    let mut all = Vec::new();
    while all.len() < 5 {
        let largest = largest_log_while_others_read().await;
        assert!(largest > 64 * 1024, "{largest}");
        if largest < 2 * 1024 * 1024 {
            return;
        }
        all.push(largest);
    }
    panic!("the log grew to {all:?} bytes");
}

async fn largest_log_while_others_read() -> u64 {
    let directory = Directory::new();
    let options =
        Options { checkpoint_bytes: 64 * 1024, wal_limit_bytes: 512 * 1024, ..Options::default() };
    let store: SharedStore = Arc::new(open_sqlite(&directory, options).await);
    add_agent(&store, "a").await;
    create(&store, (0..8).map(driven_run).collect()).await;
    // Somebody reads all the time while 16 MiB are written.
    let text = "x".repeat(4_000);
    let mut largest = 0;
    let write = async {
        for seq in 2..=500 {
            let appends =
                (0..8).map(|n| append(n, 1, vec![delta(run_id(n), seq, &text)], None)).collect();
            store.flush(&batch(vec![], appends)).await.unwrap();
            largest = largest.max(directory.wal_bytes());
        }
    };
    let read = |n| {
        let store = store.clone();
        async move {
            loop {
                let page = store.read_log(HOME, run_id(n), ALL).await.unwrap();
                assert!(page.is_some());
            }
        }
    };
    tokio::select! {
        () = write => {}
        () = read(1) => {}
        () = read(2) => {}
    }
    assert_eq!(log(&store, 3).await.len(), 500);
    largest
}

#[tokio::test]
async fn the_file_shrinks_when_old_deltas_have_gone() {
    let directory = Directory::new();
    let store = open(&directory).await;
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    let text = "x".repeat(8_000);
    for first in (2..1_002).step_by(100) {
        let words = (first..first + 100).map(|seq| delta(run_id(1), seq, &text)).collect();
        append_to(&store, 1, 1, words, None).await;
    }
    append_to(&store, 1, 1, vec![completed(run_id(1), 1_002)], Some(ends(1_002))).await;
    assert!(!store.shrink().await.unwrap(), "nothing is free");
    let (mut after, mut slices) = (None, 0);
    loop {
        let swept = store.sweep_deltas(after, at(10)).await.unwrap();
        assert!(swept.deltas <= 200, "every flush waits for it");
        slices += 1;
        after = swept.more;
        if after.is_none() {
            break;
        }
    }
    assert!(slices >= 5);
    let mut turns = 0;
    while store.shrink().await.unwrap() {
        turns += 1;
    }
    assert!(turns >= 10, "{turns} turns");
    // Closing moves what was written into the file.
    store.close().await;
    let bytes = std::fs::metadata(directory.file()).unwrap().len();
    assert!(bytes < 2 * 1024 * 1024, "{bytes} bytes after 8,000,000 were deleted");
    let store = open(&directory).await;
    assert_eq!(log(&store, 1).await.len(), 2);
}

//! A cursor over what the store has, and over what it does not have any more.

use std::time::Duration;

use stepwell::clock::Clock;
use stepwell::domain::event::Entry;
use stepwell::domain::run::RunStatus;
use stepwell::log::{Cursor, Erased, FollowError, Gap, Log, Next};
use stepwell::store::{GuestDecision, SharedStore};

use super::fixtures::*;
use crate::support::databases::conformance;

conformance!(
    a_reader_is_led_across_what_retention_took_and_loses_nothing_else,
    a_reader_of_a_run_that_is_deleted_hears_of_it,
    readers_of_one_log_share_what_the_first_of_them_read,
);

/// A cursor of a process that drives nothing.
fn follow(store: &SharedStore, n: u32, after: i32) -> Cursor {
    let (log, _handovers) = Log::new(store.clone(), Clock::system(), node(9), 0);
    log.follow(HOME, run_id(n), after)
}

/// What a cursor gives, with events as the range of their seqs.
async fn steps(mut cursor: Cursor) -> Vec<(&'static str, i32, i32)> {
    let mut steps = Vec::new();
    loop {
        match cursor.next().await.unwrap() {
            Next::Gap(Gap { from_seq, to_seq }) => steps.push(("gap", from_seq, to_seq)),
            Next::Events(page) => {
                steps.push(("events", page.first_seq(), page.last_seq()));
                if page.ends() {
                    return steps;
                }
            }
        }
    }
}

async fn a_reader_is_led_across_what_retention_took_and_loses_nothing_else(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    let words = |seqs: std::ops::Range<i32>| seqs.map(|seq| delta(run_id(1), seq, "word"));
    // Longer than two pages.
    let mut entries: Vec<Entry> = words(2..1_200).collect();
    entries.push(running(run_id(1), 1_200));
    append_to(&store, 1, 1, entries, Some(update(RunStatus::Running, 1_200))).await;
    let mut entries: Vec<Entry> = words(1_201..1_210).collect();
    entries.push(completed(run_id(1), 1_210));
    append_to(&store, 1, 1, entries, Some(ends(1_210))).await;
    let whole = steps(follow(&store, 1, 0)).await;
    assert!(whole.len() > 2 && whole.iter().all(|(what, ..)| *what == "events"), "{whole:?}");
    assert!(whole.windows(2).all(|pair| pair[0].2 + 1 == pair[1].1), "{whole:?}");
    assert_eq!((whole[0].1, whole[whole.len() - 1].2), (1, 1_210));

    let later = Clock::system().now().plus(Duration::from_secs(2 * 24 * 3600));
    let mut after = None;
    loop {
        after = store.sweep_deltas(after, later).await.unwrap().more;
        if after.is_none() {
            break;
        }
    }
    let end = [("events", 1_200, 1_200), ("gap", 1_201, 1_209), ("events", 1_210, 1_210)];
    let led = steps(follow(&store, 1, 0)).await;
    assert_eq!(led[..2], [("events", 1, 1), ("gap", 2, 1_199)]);
    assert_eq!(led[2..], end);
    let led = steps(follow(&store, 1, 700)).await;
    assert_eq!((led[0], &led[1..]), (("gap", 701, 1_199), &end[..]));
    assert_eq!(steps(follow(&store, 1, 1_199)).await, end);
    assert_eq!(steps(follow(&store, 1, 1_209)).await, end[2..]);
}

async fn a_reader_of_a_run_that_is_deleted_hears_of_it(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    let mut cursor = follow(&store, 1, 0);
    let Next::Events(page) = cursor.next().await.unwrap() else { panic!("a hole") };
    assert_eq!((page.first_seq(), page.last_seq(), page.ends()), (1, 1, false));
    append_to(&store, 1, 1, vec![completed(run_id(1), 2)], Some(ends(2))).await;
    visit(&store, 1, None, GuestDecision::Erase { at: at(3) }).await.unwrap();
    let gone = cursor.next().await;
    assert!(matches!(gone, Err(FollowError::Gone)), "{gone:?}");
}

async fn readers_of_one_log_share_what_the_first_of_them_read(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    let mut entries: Vec<Entry> = (2..900).map(|seq| delta(run_id(1), seq, "word")).collect();
    entries.push(completed(run_id(1), 900));
    append_to(&store, 1, 1, entries, Some(ends(900))).await;
    let (log, _handovers) = Log::new(store.clone(), Clock::system(), node(9), 0);
    let read = async |after| {
        let mut cursor = log.follow(HOME, run_id(1), after);
        let mut pages = Vec::new();
        loop {
            let Next::Events(page) = cursor.next().await.unwrap() else { panic!("a hole") };
            let ends = page.ends();
            pages.push(page.bytes());
            if ends {
                return pages;
            }
        }
    };
    let first = read(0).await;
    assert!(first.len() > 2);
    // What was read is shared for two seconds, which may be over before the second one reads.
    let mut tries = 0;
    loop {
        let (first, second) = (read(0).await, read(0).await);
        assert_eq!(first, second);
        if first.iter().zip(&second).all(|(a, b)| a.as_ptr() == b.as_ptr()) {
            break;
        }
        tries += 1;
        assert!(tries < 5, "read again, each time");
    }
    // Whoever joins in the middle has the same bytes from there on.
    let (whole, rest) = (first.concat(), read(450).await.concat());
    assert!(whole.ends_with(&rest) && rest.starts_with(b"id: 451\n"));
    // And nobody reads what was erased here.
    assert_eq!(log.erase(HOME, run_id(1), None).await.unwrap(), Erased::Done);
    assert!(matches!(log.follow(HOME, run_id(1), 0).next().await, Err(FollowError::Gone)));
    assert_eq!(log.load_run(HOME, run_id(1)).await.unwrap(), None);
}

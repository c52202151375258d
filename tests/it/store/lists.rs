use stepwell::domain::ids::{ConversationId, RunId};
use stepwell::domain::page::{From, Order, Page};
use stepwell::domain::run::RunStatus;
use stepwell::store::{NewRun, RunFilter, SharedStore};
use uuid::Uuid;

use super::fixtures::*;
use crate::support::databases::conformance;

conformance!(
    runs_are_listed_in_pages_in_both_orders,
    every_filter_pages_in_both_orders,
    filters_let_through_what_they_name,
    all_conditions_must_hold,
    all_pairs_of_metadata_must_be_there,
    a_list_shows_its_own_workspace_only,
    a_listed_run_says_how_it_ended_but_not_with_what_it_began,
);

async fn page(
    store: &SharedStore,
    filter: &RunFilter,
    limit: u32,
    from: From<RunId>,
    order: Order,
) -> (Vec<u32>, bool) {
    let listed = store.list_runs(HOME, filter, &Page { limit, from, order }).await.unwrap();
    let numbers = listed
        .rows
        .iter()
        .map(|r| (1..200).find(|n| run_id(*n) == r.row.run_id).unwrap())
        .collect();
    (numbers, listed.has_more)
}

async fn all(store: &SharedStore, filter: &RunFilter) -> Vec<u32> {
    let (up, more) = page(store, filter, 100, From::Start, Order::Asc).await;
    let (mut down, _) = page(store, filter, 100, From::Start, Order::Desc).await;
    down.reverse();
    assert_eq!(up, down);
    assert!(!more);
    up
}

async fn runs_are_listed_in_pages_in_both_orders(store: SharedStore) {
    add_agent(&store, "a").await;
    // Created out of order: lists go by id.
    create(&store, [4, 2, 5, 1, 3, 6, 7].into_iter().map(new_run).collect()).await;
    let any = RunFilter::default();
    let read = async |from, order| page(&store, &any, 3, from, order).await;
    assert_eq!(read(From::Start, Order::Asc).await, (vec![1, 2, 3], true));
    assert_eq!(read(From::After(run_id(3)), Order::Asc).await, (vec![4, 5, 6], true));
    assert_eq!(read(From::After(run_id(6)), Order::Asc).await, (vec![7], false));
    assert_eq!(read(From::Before(run_id(6)), Order::Asc).await, (vec![3, 4, 5], true));
    assert_eq!(read(From::Before(run_id(3)), Order::Asc).await, (vec![1, 2], false));
    assert_eq!(read(From::Start, Order::Desc).await, (vec![7, 6, 5], true));
    assert_eq!(read(From::After(run_id(5)), Order::Desc).await, (vec![4, 3, 2], true));
    assert_eq!(read(From::Before(run_id(2)), Order::Desc).await, (vec![5, 4, 3], true));
    assert_eq!(read(From::Before(run_id(5)), Order::Desc).await, (vec![7, 6], false));
    // An id that is not there (any more) is a place all the same.
    assert_eq!(read(From::After(run_id(77)), Order::Desc).await, (vec![7, 6, 5], true));
}

/// Twelve runs: the even ones of agent b, every third completed, every fourth of team red.
async fn many(store: &SharedStore) {
    add_agent(store, "a").await;
    add_agent(store, "b").await;
    let run = |n: u32| {
        let mut new: NewRun = new_run(n);
        if n % 2 == 0 {
            new.row.agent_id = agent_id("b");
            new.row.end_user_id = Some("even".to_owned());
            new.row.conversation_id = Some(ConversationId::from_uuid(Uuid::from_u128(2)));
            new.row.parent_run_id = Some(run_id(100));
        }
        if n % 3 == 0 {
            new.row.status = RunStatus::Completed;
        } else if n == 11 {
            new.row.status = RunStatus::Running;
        }
        if n % 4 == 0 {
            new.body.metadata.insert("team".to_owned(), "red".to_owned());
            new.body.metadata.insert("n".to_owned(), n.to_string());
        }
        new
    };
    create(store, (1..=12).map(run).collect()).await;
}

async fn every_filter_pages_in_both_orders(store: SharedStore) {
    many(&store).await;
    let red = vec![("team".to_owned(), "red".to_owned())];
    let filters = [
        (RunFilter { agent_id: Some(agent_id("b")), ..RunFilter::default() }, [2, 4, 6]),
        (RunFilter { statuses: vec![RunStatus::Completed], ..RunFilter::default() }, [3, 6, 9]),
        (RunFilter { metadata: red, ..RunFilter::default() }, [4, 8, 12]),
        (
            RunFilter {
                statuses: vec![RunStatus::Queued, RunStatus::Running],
                ..RunFilter::default()
            },
            [1, 2, 4],
        ),
        (
            RunFilter {
                statuses: vec![RunStatus::Completed, RunStatus::Running],
                ..RunFilter::default()
            },
            [3, 6, 9],
        ),
    ];
    for (filter, [first, second, third]) in filters {
        let read = async |from, order| page(&store, &filter, 1, from, order).await;
        assert_eq!(read(From::Start, Order::Asc).await, (vec![first], true));
        assert_eq!(read(From::After(run_id(first)), Order::Asc).await, (vec![second], true));
        assert_eq!(read(From::Before(run_id(third)), Order::Asc).await, (vec![second], true));
        assert_eq!(read(From::After(run_id(third)), Order::Desc).await, (vec![second], true));
        assert_eq!(read(From::After(run_id(second)), Order::Desc).await, (vec![first], false));
        assert_eq!(read(From::Before(run_id(first)), Order::Desc).await.0, [second]);
    }
}

async fn filters_let_through_what_they_name(store: SharedStore) {
    many(&store).await;
    let none = RunFilter::default;
    let even = vec![2, 4, 6, 8, 10, 12];
    assert_eq!(all(&store, &none()).await, (1..=12).collect::<Vec<_>>());
    let filter = RunFilter { agent_id: Some(agent_id("b")), ..none() };
    assert_eq!(all(&store, &filter).await, even);
    let filter = RunFilter { agent_id: Some(agent_id("nobody")), ..none() };
    assert_eq!(all(&store, &filter).await, Vec::<u32>::new());
    let filter = RunFilter { statuses: vec![RunStatus::Completed], ..none() };
    assert_eq!(all(&store, &filter).await, [3, 6, 9, 12]);
    let filter = RunFilter { statuses: vec![RunStatus::Completed, RunStatus::Running], ..none() };
    assert_eq!(all(&store, &filter).await, [3, 6, 9, 11, 12]);
    let filter = RunFilter { statuses: vec![RunStatus::Running, RunStatus::Queued], ..none() };
    assert_eq!(all(&store, &filter).await, [1, 2, 4, 5, 7, 8, 10, 11]);
    let filter = RunFilter { end_user_id: Some("even".to_owned()), ..none() };
    assert_eq!(all(&store, &filter).await, even);
    let conversation = ConversationId::from_uuid(Uuid::from_u128(2));
    let filter = RunFilter { conversation_id: Some(conversation), ..none() };
    assert_eq!(all(&store, &filter).await, even);
    let filter = RunFilter { parent_run_id: Some(run_id(100)), ..none() };
    assert_eq!(all(&store, &filter).await, even);
    // Run n was created at n; both ends count.
    let filter = RunFilter { created_after: Some(at(10)), ..none() };
    assert_eq!(all(&store, &filter).await, [10, 11, 12]);
    let filter = RunFilter { created_before: Some(at(2)), ..none() };
    assert_eq!(all(&store, &filter).await, [1, 2]);
}

async fn all_conditions_must_hold(store: SharedStore) {
    many(&store).await;
    let filter = RunFilter {
        agent_id: Some(agent_id("b")),
        statuses: vec![RunStatus::Completed],
        end_user_id: Some("even".to_owned()),
        created_after: Some(at(7)),
        ..RunFilter::default()
    };
    assert_eq!(all(&store, &filter).await, [12]);
    let red = RunFilter { metadata: vec![("team".to_owned(), "red".to_owned())], ..filter };
    assert_eq!(all(&store, &red).await, [12]);
    let other = RunFilter { agent_id: Some(agent_id("a")), ..red };
    assert_eq!(all(&store, &other).await, Vec::<u32>::new());
}

async fn all_pairs_of_metadata_must_be_there(store: SharedStore) {
    many(&store).await;
    let filter = |pairs: &[(&str, &str)]| RunFilter {
        metadata: pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..RunFilter::default()
    };
    assert_eq!(all(&store, &filter(&[("team", "red")])).await, [4, 8, 12]);
    assert_eq!(all(&store, &filter(&[("team", "red"), ("n", "8")])).await, [8]);
    assert_eq!(all(&store, &filter(&[("n", "8"), ("team", "red")])).await, [8]);
    assert_eq!(all(&store, &filter(&[("n", "8"), ("n", "4")])).await, Vec::<u32>::new());
    assert_eq!(all(&store, &filter(&[("team", "re")])).await, Vec::<u32>::new());
    assert_eq!(all(&store, &filter(&[("Team", "red")])).await, Vec::<u32>::new());
}

async fn a_list_shows_its_own_workspace_only(store: SharedStore) {
    many(&store).await;
    store.insert_agent(ELSEWHERE, &agent("a"), None).await.unwrap();
    let mut foreign = new_run(50);
    foreign.row.workspace_id = ELSEWHERE;
    foreign.body.metadata.insert("team".to_owned(), "red".to_owned());
    create(&store, vec![foreign]).await;
    let red =
        RunFilter { metadata: vec![("team".to_owned(), "red".to_owned())], ..RunFilter::default() };
    assert_eq!(all(&store, &red).await, [4, 8, 12]);
    let everything = Page { limit: 100, from: From::Start, order: Order::Asc };
    for filter in [RunFilter::default(), red] {
        let listed = store.list_runs(ELSEWHERE, &filter, &everything).await.unwrap();
        let ids: Vec<_> = listed.rows.iter().map(|r| r.row.run_id).collect();
        assert_eq!(ids, [run_id(50)]);
    }
}

async fn a_listed_run_says_how_it_ended_but_not_with_what_it_began(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1), driven_run(2)]).await;
    append_to(&store, 1, 1, vec![completed(run_id(1), 2)], Some(ends(2))).await;
    append_to(&store, 2, 1, vec![delta(run_id(2), 2, "a")], None).await;
    let page = Page { limit: 10, from: From::Start, order: Order::Asc };
    let listed = store.list_runs(HOME, &RunFilter::default(), &page).await.unwrap();
    assert_eq!(listed.rows[0].newest_fact, Some(completed(run_id(1), 2)));
    assert_eq!(listed.rows[1].newest_fact, None);
    assert_eq!(listed.rows[1].last_seq, 2);
    for record in listed.rows {
        let mut loaded = store.load_run(HOME, record.row.run_id).await.unwrap().unwrap();
        loaded.first = None;
        assert_eq!(record, loaded);
    }
}

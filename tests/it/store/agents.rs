use stepwell::domain::agent::{Agent, ManagedBy};
use stepwell::domain::ids::AgentId;
use stepwell::domain::page::{From, Order, Page};
use stepwell::store::{KeyRow, SharedStore, Written};

use super::fixtures::*;
use crate::support::databases::conformance;

conformance!(
    an_agent_reads_back_as_it_was_written,
    an_id_is_taken_once,
    a_version_follows_the_one_it_was_made_from,
    old_versions_stay_and_are_listed,
    archived_agents_are_readable_but_not_listed,
    archiving_again_keeps_the_first_time,
    a_key_is_bound_with_the_write_that_names_it,
    a_write_that_changes_nothing_binds_no_key,
    agents_are_listed_in_pages_in_both_orders,
    agents_of_a_configuration_are_told_apart,
    an_agent_is_seen_from_its_own_workspace_only,
);

async fn an_agent_reads_back_as_it_was_written(store: SharedStore) {
    let written = agent("a");
    assert_eq!(store.insert_agent(HOME, &written, None).await.unwrap(), Written::Done(true));
    let read = store.load_agent(HOME, &agent_id("a"), None).await.unwrap();
    assert_eq!(read, Some(written.clone()));
    assert_eq!(store.load_agent(HOME, &agent_id("a"), Some(1)).await.unwrap(), Some(written));
    assert_eq!(store.load_agent(HOME, &agent_id("a"), Some(2)).await.unwrap(), None);
    assert_eq!(store.load_agent(HOME, &agent_id("b"), None).await.unwrap(), None);
}

async fn an_id_is_taken_once(store: SharedStore) {
    add_agent(&store, "a").await;
    let mut other = agent("a");
    other.settings.model = "builtin/script".to_owned();
    assert_eq!(store.insert_agent(HOME, &other, None).await.unwrap(), Written::Done(false));
    let read = store.load_agent(HOME, &agent_id("a"), None).await.unwrap().unwrap();
    assert_eq!(read.settings.model, "builtin/echo");
}

/// The next version of an agent.
fn next(of: &Agent) -> Agent {
    let mut next = of.clone();
    next.version += 1;
    next.updated_at = at(i64::from(next.version) * 100);
    next.settings.max_steps += 1;
    next
}

async fn a_version_follows_the_one_it_was_made_from(store: SharedStore) {
    add_agent(&store, "a").await;
    let mut second = next(&agent("a"));
    second.managed_by = ManagedBy::Config;
    second.archived_at = Some(at(5));
    let done = store.insert_agent_version(HOME, &second, None).await.unwrap();
    assert_eq!(done, Written::Done(true));
    let late = store.insert_agent_version(HOME, &second, None).await.unwrap();
    assert_eq!(late, Written::Done(false));
    let absent = store.insert_agent_version(HOME, &next(&agent("b")), None).await.unwrap();
    assert_eq!(absent, Written::Done(false));
    assert_eq!(store.load_agent(HOME, &agent_id("a"), None).await.unwrap(), Some(second.clone()));
    // What belongs to the agent and not to a version is the newest in every version.
    let first = store.load_agent(HOME, &agent_id("a"), Some(1)).await.unwrap().unwrap();
    assert_eq!(
        first,
        Agent { managed_by: ManagedBy::Config, archived_at: Some(at(5)), ..agent("a") }
    );
}

async fn old_versions_stay_and_are_listed(store: SharedStore) {
    add_agent(&store, "a").await;
    add_agent(&store, "b").await;
    let mut newest = agent("a");
    for _ in 0..4 {
        newest = next(&newest);
        store.insert_agent_version(HOME, &newest, None).await.unwrap();
    }
    let versions = async |from, order| {
        let page = Page { limit: 2, from, order };
        let listed = store.list_agent_versions(HOME, &agent_id("a"), &page).await.unwrap();
        (listed.rows.iter().map(|a| a.version).collect::<Vec<_>>(), listed.has_more)
    };
    assert_eq!(versions(From::Start, Order::Desc).await, (vec![5, 4], true));
    assert_eq!(versions(From::After(4), Order::Desc).await, (vec![3, 2], true));
    assert_eq!(versions(From::After(2), Order::Desc).await, (vec![1], false));
    assert_eq!(versions(From::Before(2), Order::Desc).await, (vec![4, 3], true));
    assert_eq!(versions(From::Start, Order::Asc).await, (vec![1, 2], true));
    assert_eq!(versions(From::Before(2), Order::Asc).await, (vec![1], false));
    let read = store.load_agent(HOME, &agent_id("a"), Some(3)).await.unwrap().unwrap();
    assert_eq!((read.version, read.created_at, read.updated_at), (3, at(1), at(300)));
}

async fn archived_agents_are_readable_but_not_listed(store: SharedStore) {
    add_agent(&store, "a").await;
    add_agent(&store, "b").await;
    let done = store.archive_agent(HOME, &agent_id("a"), at(9), None).await.unwrap();
    assert_eq!(done, Written::Done(true));
    let page = Page { limit: 10, from: From::Start, order: Order::Asc };
    let listed = store.list_agents(HOME, &page).await.unwrap();
    assert_eq!(listed.rows, [agent("b")]);
    let read = store.load_agent(HOME, &agent_id("a"), None).await.unwrap().unwrap();
    assert_eq!(read.archived_at, Some(at(9)));
    // The id is not free again.
    let taken = store.insert_agent(HOME, &agent("a"), None).await.unwrap();
    assert_eq!(taken, Written::Done(false));
}

async fn archiving_again_keeps_the_first_time(store: SharedStore) {
    add_agent(&store, "a").await;
    for millis in [9, 10] {
        let done = store.archive_agent(HOME, &agent_id("a"), at(millis), None).await.unwrap();
        assert_eq!(done, Written::Done(true));
    }
    let read = store.load_agent(HOME, &agent_id("a"), None).await.unwrap().unwrap();
    assert_eq!(read.archived_at, Some(at(9)));
    let absent = store.archive_agent(HOME, &agent_id("b"), at(9), None).await.unwrap();
    assert_eq!(absent, Written::Done(false));
}

async fn a_key_is_bound_with_the_write_that_names_it(store: SharedStore) {
    let new = key("k", "a");
    let taken = KeyRow { fingerprint: [7; 32], resource: "a".to_owned() };
    assert_eq!(store.find_key(&new.key).await.unwrap(), None);
    store.insert_agent(HOME, &agent("a"), Some(&new)).await.unwrap();
    assert_eq!(store.find_key(&new.key).await.unwrap(), Some(taken.clone()));
    // The same key again changes nothing, whatever it is named for.
    let mut other = key("k", "b");
    other.key.fingerprint = [8; 32];
    let again = store.insert_agent(HOME, &agent("b"), Some(&other)).await.unwrap();
    assert_eq!(again, Written::KeyTaken(taken.clone()));
    assert_eq!(store.load_agent(HOME, &agent_id("b"), None).await.unwrap(), None);
    let again = store.insert_agent_version(HOME, &next(&agent("a")), Some(&other)).await.unwrap();
    assert_eq!(again, Written::KeyTaken(taken.clone()));
    let again = store.archive_agent(HOME, &agent_id("a"), at(5), Some(&other)).await.unwrap();
    assert_eq!(again, Written::KeyTaken(taken));
    assert_eq!(store.load_agent(HOME, &agent_id("a"), None).await.unwrap(), Some(agent("a")));
    // Another scope is another key.
    other.key.scope = "DELETE /v1/agents/{agent_id}";
    assert_eq!(store.find_key(&other.key).await.unwrap(), None);
}

async fn a_write_that_changes_nothing_binds_no_key(store: SharedStore) {
    add_agent(&store, "a").await;
    let new = key("k", "a");
    let done = store.insert_agent(HOME, &agent("a"), Some(&new)).await.unwrap();
    assert_eq!(done, Written::Done(false));
    let mut late = agent("a");
    late.version = 7;
    let done = store.insert_agent_version(HOME, &late, Some(&new)).await.unwrap();
    assert_eq!(done, Written::Done(false));
    let done = store.archive_agent(HOME, &agent_id("b"), at(9), Some(&new)).await.unwrap();
    assert_eq!(done, Written::Done(false));
    assert_eq!(store.find_key(&new.key).await.unwrap(), None);
}

async fn agents_are_listed_in_pages_in_both_orders(store: SharedStore) {
    // Hyphens and underscores sort by their bytes, on every database.
    for name in ["a", "a-b", "a_b", "ab", "b"] {
        add_agent(&store, name).await;
    }
    let list = async |from: From<AgentId>, order| {
        let listed = store.list_agents(HOME, &Page { limit: 2, from, order }).await.unwrap();
        let names: Vec<_> = listed.rows.iter().map(|a| a.agent_id.to_string()).collect();
        (names.join(" "), listed.has_more)
    };
    let page = |names: &str, more| (names.to_owned(), more);
    assert_eq!(list(From::Start, Order::Asc).await, page("a a-b", true));
    assert_eq!(list(From::After(agent_id("a-b")), Order::Asc).await, page("a_b ab", true));
    assert_eq!(list(From::After(agent_id("ab")), Order::Asc).await, page("b", false));
    assert_eq!(list(From::Before(agent_id("ab")), Order::Asc).await, page("a-b a_b", true));
    assert_eq!(list(From::Start, Order::Desc).await, page("b ab", true));
    assert_eq!(list(From::After(agent_id("ab")), Order::Desc).await, page("a_b a-b", true));
    assert_eq!(list(From::Before(agent_id("a-b")), Order::Desc).await, page("ab a_b", true));
}

async fn agents_of_a_configuration_are_told_apart(store: SharedStore) {
    add_agent(&store, "a").await;
    for name in ["c", "b"] {
        let agent = Agent { managed_by: ManagedBy::Config, ..agent(name) };
        store.insert_agent(HOME, &agent, None).await.unwrap();
    }
    let listed = async || {
        let agents = store.list_config_agents(HOME).await.unwrap();
        let mut names: Vec<_> = agents.iter().map(|a| a.agent_id.to_string()).collect();
        names.sort();
        names
    };
    assert_eq!(listed().await, ["b", "c"]);
    store.archive_agent(HOME, &agent_id("c"), at(9), None).await.unwrap();
    assert_eq!(listed().await, ["b"]);
}

async fn an_agent_is_seen_from_its_own_workspace_only(store: SharedStore) {
    add_agent(&store, "a").await;
    assert_eq!(store.load_agent(ELSEWHERE, &agent_id("a"), None).await.unwrap(), None);
    let page = Page { limit: 10, from: From::Start, order: Order::Asc };
    assert_eq!(store.list_agents(ELSEWHERE, &page).await.unwrap().rows, []);
    let versions = Page { limit: 10, from: From::Start, order: Order::Asc };
    let listed = store.list_agent_versions(ELSEWHERE, &agent_id("a"), &versions).await.unwrap();
    assert_eq!(listed.rows, []);
    let done = store.archive_agent(ELSEWHERE, &agent_id("a"), at(9), None).await.unwrap();
    assert_eq!(done, Written::Done(false));
    let done = store.insert_agent(ELSEWHERE, &agent("a"), None).await.unwrap();
    assert_eq!(done, Written::Done(true));
}

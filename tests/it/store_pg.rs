//! What only Postgres can get wrong: lost answers, locks, and values that it refuses.

use stepwell::store::Store as _;

use crate::support::postgres;

#[tokio::test]
async fn a_fresh_database_can_be_used() {
    let store = postgres::store().await;
    store.ping().await.expect("it answers");
    store.close().await;
    assert!(store.ping().await.is_err());
}

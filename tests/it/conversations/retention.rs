//! Weeks later: conversations that are over go with all that is in them, the others stay.

use std::time::Duration;

use serde_json::{Value, json};
use stepwell::shutdown::Tasks;

use super::{at, conversation, messages, parked, rows, say, serve};
use crate::runs::retention::pass_after;
use crate::support::on_both_databases;

on_both_databases! {
    weeks_later_conversations_that_are_over_are_gone;
}

const DAY: Duration = Duration::from_secs(24 * 3_600);

async fn weeks_later_conversations_that_are_over_are_gone(url: String) {
    let (setup, server) = serve(url.clone()).await;
    let client = &server.client;
    let for_ever = json!({"timeout_seconds": null});
    let mut over = Vec::new();
    for n in 0..30 {
        let talk =
            conversation(client, if n % 2 == 0 { for_ever.clone() } else { json!({}) }).await;
        say(client, &talk, "Hello?").await;
        if n % 2 == 0 {
            client.post(&at(&talk, "close"), &Value::Null).await.expect(200);
        }
        over.push(talk);
    }
    let open = conversation(client, for_ever).await;
    say(client, &open, "Hello?").await;
    let busy = conversation(client, json!({})).await;
    parked(client, &busy, &["ask"]).await;
    assert!(server.terminate().await.success());
    let tasks = Tasks::new();
    assert_eq!(pass_after(&url, 29 * DAY, &tasks).await.conversations, 0);
    assert!(pass_after(&url, 31 * DAY, &tasks).await.conversations >= 30);
    assert_eq!(rows(&url, "conversations").await, 2);
    let server = setup.start().await;
    let client = &server.client;
    for talk in &over {
        assert_eq!(client.get(&at(talk, "")).await.status, 404);
    }
    assert_eq!(messages(client, &open).await.len(), 2, "its run's log is old, and gone; it is not");
    assert_eq!(super::get(client, &busy).await["status"], "open");
    say(client, &open, "Still there?").await;
    assert_eq!(messages(client, &open).await.len(), 4);
}

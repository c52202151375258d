//! Time that passes: conversations that live on, expire, and are over, on a server whose clock is moved
//! by hand.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stepwell::api::streams::{StreamLimits, Streams};
use stepwell::api::{self, ApiState};
use stepwell::app::{App, Links};
use stepwell::clock::Clock;
use stepwell::domain::egress::{Destinations, Outbound};
use stepwell::domain::ids::NodeId;
use stepwell::domain::model::Catalogue;
use stepwell::domain::retention::Retention;
use stepwell::domain::time::Timestamp;
use stepwell::egress::{Gate, Secrets};
use stepwell::engine::{Engine, Parts};
use stepwell::log::Log;
use stepwell::models::Models;
use stepwell::shutdown::Tasks;
use stepwell::store::SharedStore;
use stepwell::tools::Tools;

use super::{
    agent, asking, assert_refused, at, call, conversation, get, id, messages, parked, release, say,
};
use crate::support::client::Client;
use crate::support::databases::conformance;

conformance!(
    a_heartbeat_keeps_a_conversation_open,
    whatever_is_said_keeps_a_conversation_open,
    a_conversation_does_not_expire_while_a_run_is_under_way,
    what_has_expired_is_over_and_stays_readable,
    without_a_timeout_it_never_expires,
    a_stream_ends_when_its_conversation_expires,
);

const TIMEOUT: Duration = Duration::from_secs(1_800);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// A server in this process.
struct Stage {
    clock: Clock,
    client: Client,
    engine: Arc<Engine>,
    edge: Tasks,
    work: Tasks,
    journal: Tasks,
}

impl Stage {
    async fn set(store: &SharedStore) -> Self {
        let clock = Clock::manual(Clock::system().now());
        let (edge, work, journal) = (Tasks::new(), Tasks::new(), Tasks::new());
        let node_id = NodeId::from_uuid(clock.uuid());
        let (log, handovers) = Log::new(store.clone(), clock.clone(), node_id, 8);
        log.start(&work, &journal);
        let catalogue = Arc::new(Catalogue::default());
        let gate = Gate::new(Destinations::default());
        let engine = Engine::new(Parts {
            log: log.clone(),
            models: Arc::new(Models::new(vec![]).expect("the built-in models")),
            catalogue: catalogue.clone(),
            tools: Tools::new(clock.clone(), gate, Secrets::default(), work.clone()),
            slots: 8,
            // Nothing here goes down, so it is never started.
            child: Some(Arc::new(|_| tokio::process::Command::new("false"))),
            retention: Retention { run_days: 3_650, delta_days: 3_650 },
        });
        engine.start(handovers, &work).await.expect("an engine");
        let app = App::new(log, catalogue, Outbound::default(), Links::new(None));
        let router = api::router(ApiState {
            app: Arc::new(app),
            tasks: work.clone(),
            stop: edge.token(),
            admin_key: None,
            streams: Streams::new(StreamLimits {
                most: 10,
                most_per_workspace: 10,
                lifetime: HOUR,
            }),
            cors_origins: Arc::new([]),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        edge.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        let client = Client::new(&format!("http://{address}"));
        client.post("/v1/agents", &agent("a")).await.expect(201);
        Self { clock, client, engine, edge, work, journal }
    }

    /// A moment from now, as clients read it.
    fn in_(&self, time: Duration) -> Value {
        json!(Timestamp::plus(self.clock.now(), time))
    }

    async fn stop(self) {
        self.engine.drain().await;
        self.edge.stop();
        self.work.stop();
        self.work.finish().await;
        self.journal.stop();
        self.journal.finish().await;
    }
}

async fn status(client: &Client, talk: &str) -> (Value, Value) {
    let now = get(client, talk).await;
    (now["status"].clone(), now["expires_at"].clone())
}

async fn a_heartbeat_keeps_a_conversation_open(store: SharedStore) {
    let stage = Stage::set(&store).await;
    let client = &stage.client;
    let talk = conversation(client, json!({})).await;
    assert_eq!(status(client, &talk).await, (json!("open"), stage.in_(TIMEOUT)));
    stage.clock.advance(TIMEOUT - SECOND);
    let alive = client.post(&at(&talk, "heartbeat"), &Value::Null).await.expect(200);
    assert_eq!(alive, json!({"status": "alive", "expires_at": stage.in_(TIMEOUT)}));
    assert_eq!(get(client, &talk).await["last_active_at"], stage.in_(Duration::ZERO));
    stage.clock.advance(TIMEOUT - SECOND);
    assert_eq!(status(client, &talk).await, (json!("open"), stage.in_(SECOND)));
    // To look at it, or to change its notes, is no life.
    client.patch(&at(&talk, ""), &json!({"metadata": {"k": "v"}})).await.expect(200);
    stage.clock.advance(SECOND);
    assert_eq!(status(client, &talk).await.0, "expired");
    let answer = client.post(&at(&talk, "heartbeat"), &Value::Null).await;
    assert_refused(&answer, 409, "conversation_expired");
    stage.stop().await;
}

async fn whatever_is_said_keeps_a_conversation_open(store: SharedStore) {
    let stage = Stage::set(&store).await;
    let client = &stage.client;
    let talk = conversation(client, json!({"timeout_seconds": 60})).await;
    let minute = Duration::from_secs(60);
    for n in 0..4 {
        stage.clock.advance(minute - SECOND);
        if n % 2 == 0 {
            let body = json!({"role": "system", "content": "Be kind."});
            client.post(&at(&talk, "messages"), &body).await.expect(201);
        } else {
            say(client, &talk, "Still there?").await;
        }
        assert_eq!(status(client, &talk).await, (json!("open"), stage.in_(minute)));
    }
    stage.clock.advance(minute);
    assert_eq!(status(client, &talk).await.0, "expired");
    stage.stop().await;
}

async fn a_conversation_does_not_expire_while_a_run_is_under_way(store: SharedStore) {
    let stage = Stage::set(&store).await;
    let client = &stage.client;
    let talk = conversation(client, json!({})).await;
    let run = parked(client, &talk, &["ask"]).await;
    let body = json!({"input": "Next.", "on_busy": "enqueue"});
    let next = super::start(client, &talk, &body).await;
    stage.clock.advance(3 * HOUR);
    assert_eq!(status(client, &talk).await, (json!("open"), Value::Null));
    let alive = client.post(&at(&talk, "heartbeat"), &Value::Null).await.expect(200);
    assert_eq!(alive, json!({"status": "alive", "expires_at": null}));
    stage.clock.advance(3 * HOUR);
    assert_eq!(release(client, &run).await["status"], "completed");
    assert_eq!(client.wait(&next).await["status"], "completed");
    assert_eq!(status(client, &talk).await, (json!("open"), stage.in_(TIMEOUT)));
    // The end of a run counts, whatever the end.
    stage.clock.advance(TIMEOUT - SECOND);
    let run = parked(client, &talk, &["ask"]).await;
    stage.clock.advance(HOUR);
    client.post(&format!("/v1/runs/{}/cancel", id(&run)), &Value::Null).await.expect(200);
    assert_eq!(status(client, &talk).await, (json!("open"), stage.in_(TIMEOUT)));
    stage.clock.advance(TIMEOUT);
    assert_eq!(status(client, &talk).await.0, "expired");
    stage.stop().await;
}

async fn what_has_expired_is_over_and_stays_readable(store: SharedStore) {
    let stage = Stage::set(&store).await;
    let client = &stage.client;
    let talk = conversation(client, json!({})).await;
    let run = parked(client, &talk, &["ask"]).await;
    release(client, &run).await;
    let before = messages(client, &talk).await;
    stage.clock.advance(TIMEOUT);
    let expired = get(client, &talk).await;
    assert_eq!((&expired["status"], &expired["active_run_id"]), (&json!("expired"), &Value::Null));
    for (path, body) in [
        (at(&talk, "runs"), asking(&["ask"])),
        (at(&talk, "runs"), json!({})),
        (at(&talk, "runs"), json!({"input": "x", "on_busy": "enqueue"})),
        (at(&talk, "complete"), json!({"content": "x"})),
        (at(&talk, "messages"), json!({"role": "user", "content": "x"})),
        (at(&talk, "heartbeat"), json!({})),
        ("/v1/agents/a/runs".to_owned(), json!({"input": "x", "conversation_id": talk})),
    ] {
        let answer = client.post(&path, &body).await;
        assert_refused(&answer, 409, "conversation_expired");
        assert_eq!(
            (&answer.body["retry"], &answer.body["details"]["conversation_id"]),
            (&json!(false), &json!(talk))
        );
    }
    assert_eq!(messages(client, &talk).await, before);
    assert_eq!(
        client.get(&format!("/v1/runs/{}", id(&run))).await.expect(200)["status"],
        "completed"
    );
    assert_eq!(client.get(&at(&talk, "events")).await.status, 204);
    // The answer that was given is the answer that was given.
    let result = json!({"call_id": call(&run, "ask"), "success": true, "result": "Fine."});
    client.post(&at(&talk, "tool-results"), &result).await.expect(202);
    let patched = client.patch(&at(&talk, ""), &json!({"metadata": {"k": "v"}})).await.expect(200);
    assert_eq!(patched["status"], "expired");
    let closed = client.post(&at(&talk, "close"), &Value::Null).await.expect(200);
    assert_eq!(closed["status"], "expired", "what is over stays over in its way");
    client.delete(&at(&talk, "")).await.expect(204);
    stage.stop().await;
}

async fn without_a_timeout_it_never_expires(store: SharedStore) {
    let stage = Stage::set(&store).await;
    let client = &stage.client;
    let talk = conversation(client, json!({"timeout_seconds": null})).await;
    stage.clock.advance(10_000 * HOUR);
    assert_eq!(status(client, &talk).await, (json!("open"), Value::Null));
    let alive = client.post(&at(&talk, "heartbeat"), &Value::Null).await.expect(200);
    assert_eq!(alive, json!({"status": "alive", "expires_at": null}));
    say(client, &talk, "Hello?").await;
    stage.stop().await;
}

async fn a_stream_ends_when_its_conversation_expires(store: SharedStore) {
    let stage = Stage::set(&store).await;
    let client = &stage.client;
    let talk = conversation(client, json!({})).await;
    let run = say(client, &talk, "Hello?").await;
    let path = at(&talk, &format!("events?after={}:0", id(&run)));
    let mut stream = client.stream(client.request(reqwest::Method::GET, &path)).await;
    stream.until("run.completed").await;
    stage.clock.advance(TIMEOUT);
    let rest = stream.rest().await;
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert_eq!(rest[0].json()["reason"], "conversation_closed", "nothing more can come");
    stage.stop().await;
}

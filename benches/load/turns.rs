//! Turns of one long conversation, one after another: what one more costs.

use std::time::{Duration, Instant};

use memchr::memmem;

use crate::Fallible;
use crate::client::{Connection, request};
use crate::machine::{Used, Watch, millis};
use crate::model::Answer;
use crate::server::Server;

/// Turns that are measured around each that is asked for.
const AROUND: usize = 16;
/// How long all of it may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the model reads at most, answer not counted: some fifty turns.
const WINDOW: u32 = 4_000;

/// What the turns around one of them took.
pub struct Talked {
    /// Milliseconds, each.
    pub took: Vec<f64>,
    /// Who used the processors.
    pub used: Used,
}

/// Takes turns in one conversation, and measures those up to each of these, which ascend.
pub async fn talk(server: &Server, at: &[usize]) -> Fallible<Vec<(usize, Talked)>> {
    tokio::time::timeout(PATIENCE, take_turns(server, at)).await.map_err(|_| "it took too long")?
}

async fn take_turns(server: &Server, at: &[usize]) -> Fallible<Vec<(usize, Talked)>> {
    let mut connection = Connection::open(server.address).await?;
    let parameters = format!("{{\"max_context_tokens\":{WINDOW}}}");
    let body = format!("{{\"agent_id\":\"bench\",\"parameters\":{parameters}}}");
    let (_, made) = connection.exchange(&request("POST", "/v1/conversations", &body)).await?;
    let id = id_in(&made).ok_or_else(|| format!("no conversation: {:?}", text(&made)))?;
    let question = format!("{{\"content\":\"{}\"}}", Answer { tokens: 20, delay: 0 }.input());
    let ask = request("POST", &format!("/v1/conversations/{id}/complete"), &question);
    let (mut turns, mut talked) = (0, Vec::new());
    for last in at {
        while turns + AROUND < *last {
            turn(&mut connection, &ask).await?;
            turns += 1;
        }
        let (watch, mut took) = (Watch::start(server.watched()), Vec::new());
        while turns < *last {
            let asked = Instant::now();
            turn(&mut connection, &ask).await?;
            took.push(millis(asked.elapsed()));
            turns += 1;
        }
        talked.push((*last, Talked { took, used: watch.stop() }));
    }
    Ok(talked)
}

async fn turn(connection: &mut Connection, ask: &[u8]) -> Fallible<()> {
    let (status, body) = connection.exchange(ask).await?;
    if status != 200 || memmem::find(&body, b"\"finish_reason\":\"stop\"").is_none() {
        return Err(format!("the server answered {status}: {}", text(&body)).into());
    }
    Ok(())
}

fn id_in(body: &[u8]) -> Option<String> {
    let key = b"\"conversation_id\":\"";
    let at = memmem::find(body, key)? + key.len();
    let id = body.get(at..)?.split(|byte| *byte == b'"').next()?;
    String::from_utf8(id.to_vec()).ok()
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body.get(..300).unwrap_or(body)).into_owned()
}

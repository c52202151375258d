//! Somebody who follows a conversation's stream, drops it now and then, and comes back with the id of the
//! last event: every run comes whole, one after another, none twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Method;
use stepwell::shutdown::Tasks;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::super::readers::Seen;
use crate::support::client::{Client, Frame, Stream};
use crate::support::profile::Report;
use crate::support::random::Random;

/// Before it tries again after a connection that could not be made, or a 503.
const RETRY: Duration = Duration::from_millis(50);
/// How long it may take to hear the end of a conversation that is closed.
const FINISH: Duration = Duration::from_secs(60);
/// Events after which a connection is dropped, at most.
const DROPPED_AFTER: u64 = 60;

/// What was heard.
#[derive(Default)]
pub struct Heard {
    /// Runs in the order in which they came.
    pub order: Vec<String>,
    /// What was seen of each.
    pub runs: BTreeMap<String, Seen>,
    /// Connections that were taken up again with a cursor and gave an event.
    pub resumes: u64,
    violations: Vec<String>,
}

impl Heard {
    /// Whether a run has been begun and not heard to its end.
    pub fn in_the_middle(&self) -> bool {
        self.order.last().is_some_and(|run_id| !self.runs[run_id].ended)
    }

    fn hear(&mut self, run_id: &str, seq: i64, frame: &Frame) {
        let follows = match self.order.last() {
            Some(last) if last == run_id => {
                self.runs[run_id].events.keys().next_back() == Some(&(seq - 1))
            }
            Some(last) => self.runs[last].ended && !self.runs.contains_key(run_id) && seq == 1,
            None => seq == 1,
        };
        if !follows {
            let last = self.order.last().map(|run| (run, self.runs[run].events.len()));
            let wrong = format!("event {seq} of {run_id} came after {last:?}");
            self.violations.push(wrong);
        }
        if self.order.last().is_none_or(|last| last != run_id) {
            self.order.push(run_id.to_owned());
        }
        let seen = self.runs.entry(run_id.to_owned()).or_default();
        seen.events.insert(seq, frame.data.clone());
        seen.ended |= frame.is_final();
    }
}

/// A reader of a conversation's stream, to its end.
pub struct Listener {
    heard: Arc<Mutex<Heard>>,
    count: Arc<watch::Sender<u64>>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Follows a conversation in which nothing has happened yet, through these nodes. It is there when
    /// this returns.
    pub async fn begin(nodes: Vec<Client>, id: &str, random: &mut Random) -> Self {
        let (heard, count) = (Arc::default(), Arc::new(watch::Sender::new(0)));
        let first = open(&nodes[0], id, "").await;
        let reader = Reader {
            nodes,
            id: id.to_owned(),
            random: random.fork(),
            last: String::new(),
            heard: Arc::clone(&heard),
            count: Arc::clone(&count),
        };
        let task = Tasks::new().spawn(reader.follow(first.ok().flatten().expect("a stream")));
        Self { heard, count, task }
    }

    /// Events heard so far.
    pub fn count(&self) -> u64 {
        *self.count.borrow()
    }

    /// Resolves when so many events were heard.
    pub async fn until(&self, count: u64) {
        self.count.subscribe().wait_for(|heard| *heard >= count).await.expect("a listener");
    }

    /// Whether the run that is heard goes on.
    pub fn in_the_middle(&self) -> bool {
        self.heard.lock().expect("no panic").in_the_middle()
    }

    /// Waits for the end of the stream of a conversation that was closed.
    pub async fn finish(self, report: &Report) -> Heard {
        let over = tokio::time::timeout(FINISH, self.task).await.is_ok();
        let heard = std::mem::take(&mut *self.heard.lock().expect("no panic"));
        report.check(over, || format!("the stream did not end behind {:?}", heard.order.last()));
        report.add(*self.count.borrow(), heard.violations.clone());
        heard
    }
}

struct Reader {
    nodes: Vec<Client>,
    id: String,
    random: Random,
    /// The cursor; empty before the first event.
    last: String,
    heard: Arc<Mutex<Heard>>,
    count: Arc<watch::Sender<u64>>,
}

impl Reader {
    async fn follow(mut self, first: Stream) {
        let mut stream = first;
        loop {
            if self.read(stream).await {
                return;
            }
            stream = loop {
                let node = self.random.pick(&self.nodes).clone();
                match open(&node, &self.id, &self.last).await {
                    Ok(Some(stream)) => break stream,
                    Ok(None) => return,
                    Err(wrong) => {
                        if let Some(wrong) = wrong {
                            self.heard.lock().expect("no panic").violations.push(wrong);
                        }
                        tokio::time::sleep(RETRY).await;
                    }
                }
            };
        }
    }

    /// Reads for a while. Whether it was told that nothing more comes.
    async fn read(&mut self, mut stream: Stream) -> bool {
        let patience = 1 + self.random.below(DROPPED_AFTER);
        // Whoever has no cursor yet would miss what came while it was away.
        let (mut n, resumed) = (0, !self.last.is_empty());
        while n < patience || self.last.is_empty() {
            let Some(frame) = stream.next().await else { return false };
            if frame.event == "stream.end" {
                return frame.json()["reason"] == "conversation_closed";
            }
            let Some(id) = frame.id.clone() else { continue };
            let (run_id, seq) = id.split_once(':').expect("run_id:seq");
            let mut heard = self.heard.lock().expect("no panic");
            heard.hear(run_id, seq.parse().expect("a seq"), &frame);
            heard.resumes += u64::from(n == 0 && resumed);
            drop(heard);
            self.last = id;
            self.count.send_modify(|count| *count += 1);
            n += 1;
        }
        false
    }
}

/// A stream behind the cursor; `None` when nothing more comes. An error is a server that is away, or says
/// something that it must not say.
async fn open(node: &Client, id: &str, last: &str) -> Result<Option<Stream>, Option<String>> {
    let path = format!("/v1/conversations/{id}/events");
    let request = node.request(Method::GET, &path).header("last-event-id", last);
    let response = request.send().await.map_err(|_| None)?;
    match response.status().as_u16() {
        200 => Ok(Some(Stream::new(response))),
        204 => Ok(None),
        503 => Err(None),
        status => {
            let text = response.text().await.unwrap_or_default();
            Err(Some(format!("{id} behind {last:?}: {status} {text}")))
        }
    }
}

//! P4: what was answered survives a power loss.
//!
//! Nobody can pull the plug of the machine that tests run on. On SQLite the kernel's own account is
//! read instead (`strace`): between the last write of a batch to the write-ahead log and the first
//! byte of its events to a socket, the file was synced. On Postgres a server that does not sync is
//! refused.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::walker;
use crate::support::client::log_of;
use crate::support::postgres::Cluster;
use crate::support::profile::{Report, pick};
use crate::support::server::{Folder, Setup};

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_on_the_disk_before_its_first_byte_is_on_a_socket() {
    let report = Report::new("P4", "strace: a sync between write and send", "SQLite");
    let folder = Folder::new();
    let url = format!("sqlite://{}", folder.path().join("stepwell.db").display());
    let server = Setup::new(url, "").start().await;
    let client = &server.client;
    client.post("/v1/agents", &walker(3, 10, 15)).await.expect(201);
    let account = folder.path().join("strace");
    let strace = Strace::attach(server.pid(), &account).await;
    let mut events = 0;
    for _ in 0..pick(5, 50) {
        let run_id = super::create(client, "walker").await;
        events += log_of(&client.events(&run_id, 0).await.rest().await).len() as u64;
    }
    server.kill();
    strace.finish().await;
    let told = std::fs::read_to_string(&account).expect("an account");
    let account = Account::read(&told);
    report.check(account.unsynced.is_empty(), || format!("{:#?}", account.unsynced));
    report.add(account.sent, Vec::new());
    let (sent, syncs) = (account.sent, account.syncs);
    report.check(sent >= events, || format!("{events} events were read, {sent} seen in strace"));
    report.note(format!("{syncs} syncs, {sent} events"));
    // Nothing bites here but the account itself: there must be one.
    report.fault(syncs > 10);
    report.finish(1);
}

/// `strace` of a server with all of its threads.
struct Strace(Child);

impl Strace {
    async fn attach(pid: u32, into: &Path) -> Self {
        let mut child = Command::new("strace")
            // -y names the file of each descriptor, -s shows enough of a chunk to see its events.
            .args(["-f", "-y", "-s", "1000000", "-p", &pid.to_string()])
            .args(["-e", "trace=write,pwrite64,writev,sendto,sendmsg,fsync,fdatasync", "-o"])
            .arg(into)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace is installed: tests/run.sh does it");
        // It traces once the kernel says so of every thread.
        let traced = || {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the server runs");
            threads.flatten().all(|thread| {
                let status = std::fs::read_to_string(thread.path().join("status"));
                let mut lines = status.iter().flat_map(|status| status.lines());
                lines.any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
            })
        };
        while !traced() {
            assert!(child.try_wait().expect("waited").is_none(), "strace cannot trace here");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self(child)
    }

    /// Waits for its end, which follows the server's.
    async fn finish(mut self) {
        let wait = tokio::task::spawn_blocking(move || self.0.wait());
        wait.await.expect("no panic").expect("strace ends");
    }
}

/// What the kernel was asked to do, in order.
#[derive(Default)]
struct Account {
    /// Events that went to sockets.
    sent: u64,
    /// Syncs of the write-ahead log.
    syncs: u64,
    /// Events that were sent while nothing had synced what they were written with.
    unsynced: Vec<String>,
}

impl Account {
    fn read(told: &str) -> Self {
        let mut account = Self::default();
        // A call that another thread interrupted in the account counts where it ended if it syncs,
        // and where it began if it writes or sends: the strict way for both.
        let mut unfinished: HashMap<&str, String> = HashMap::new();
        // The events that were written to the log, and whether that was synced since.
        let mut written: HashMap<String, bool> = HashMap::new();
        for line in told.lines() {
            let Some((thread, call)) = line.split_once(' ') else { continue };
            let call = call.trim_start();
            if let Some(begun) = call.strip_suffix(" <unfinished ...>")
                && is_sync(begun)
            {
                unfinished.insert(thread, begun.to_owned());
                continue;
            }
            let resumed = call.starts_with("<... f") && call.contains("sync resumed>");
            let call = if resumed {
                unfinished.remove(thread).unwrap_or_default()
            } else {
                call.to_owned()
            };
            if is_sync(&call) && call.contains("stepwell.db-wal") {
                account.syncs += 1;
                written.values_mut().for_each(|synced| *synced = true);
            } else if call.contains("stepwell.db-wal") {
                for event in events(&call) {
                    // Pages are written again with what else is in them: the first time counts.
                    written.entry(event).or_insert(false);
                }
            } else if is_socket(&call) {
                for event in events(&call) {
                    account.sent += 1;
                    if !written.get(&event).is_some_and(|synced| *synced) {
                        account.unsynced.push(event);
                    }
                }
            }
        }
        account
    }
}

fn is_sync(call: &str) -> bool {
    call.starts_with("fsync(") || call.starts_with("fdatasync(")
}

fn is_socket(call: &str) -> bool {
    let descriptor = call.split(',').next().unwrap_or_default();
    descriptor.contains("socket:") || descriptor.contains("TCP")
}

/// The events in a buffer, as `run_id/seq`. The texts on the disk and on the wire are the same.
fn events(call: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in call.split(r#"\"seq\":"#).skip(1) {
        let mut fields = part.split(r#",\"run_id\":\""#);
        let (Some(seq), Some(rest)) = (fields.next(), fields.next()) else { continue };
        let is_seq = !seq.is_empty() && seq.bytes().all(|byte| byte.is_ascii_digit());
        if let (true, Some(run_id)) = (is_seq, rest.get(..36)) {
            found.push(format!("{run_id}/{seq}"));
        }
    }
    found
}

#[test]
fn an_event_that_is_sent_before_it_is_synced_is_found() {
    let event = r#"\"type\":\"x\",\"seq\":7,\"run_id\":\"run_01a2017cf36473859fd4418156c85b7e\",\"#;
    let write = format!("1 pwrite64(9</d/stepwell.db-wal>, \"{event}\", 99, 0) = 99");
    let send = format!("2 sendto(5<socket:[1]>, \"data: {event}\", 99, 0, NULL, 0) = 99");
    let sync = "1 fdatasync(9</d/stepwell.db-wal>) = 0";
    let begun = "1 fdatasync(9</d/stepwell.db-wal> <unfinished ...>";
    let over = "1 <... fdatasync resumed>) = 0";
    for (account, unsynced) in [
        (vec![&*write, sync, &send], 0),
        (vec![&*write, begun, over, &send], 0),
        (vec![&*write, &send, sync], 1),
        (vec![&*write, begun, &send, over], 1),
        (vec![sync, &*write, &send], 1),
        (vec![&*send], 1),
    ] {
        let read = Account::read(&account.join("\n"));
        assert_eq!((read.sent, read.unsynced.len()), (1, unsynced), "{account:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_may_lose_what_it_confirmed_is_refused() {
    let report = Report::new("P4", "unsafe settings are refused at boot", "Postgres");
    for setting in ["fsync=off", "full_page_writes=off", "synchronous_commit=off"] {
        let cluster = Cluster::start(&[setting]);
        let mut setup = Setup::new(cluster.empty_database().await, "");
        let refused = setup.try_start().await.map(|server| server.log());
        let refused = refused.map_err(|young| young.log);
        let told = refused.as_ref().err().cloned().unwrap_or_default();
        report.fault(refused.is_err());
        report.check(told.contains(setting) && told.contains("--unsafe-durability"), || {
            format!("with {setting} it said: {refused:?}")
        });
        setup.args = vec!["--unsafe-durability".to_owned()];
        let server = setup.start().await;
        let run = server.client.run_to_end("demo", &json!({"input": "Go"})).await;
        report.check(run["status"] == "completed", || format!("with {setting}: {run}"));
    }
    report.finish(3);
}

//! What the kernel knows: who used how much of the processors, and how much memory.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Fallible;

/// Files and sockets that the largest workload needs in one process, and some room: a socket to the
/// server and one from it to the model for each of 1,000 runs.
const OPEN_FILES: u64 = 8_192;
/// Ticks of `/proc/*/stat` in a second: fixed in the kernel's interface on every machine of today.
const TICKS: f64 = 100.0;

/// Lets this process, and the server, which inherits it, have as many sockets as the streams need.
pub fn raise_open_files() -> Fallible<()> {
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|most| most >= OPEN_FILES) {
        return Ok(());
    }
    if now.maximum.is_some_and(|most| most < OPEN_FILES) {
        return Err(format!("{OPEN_FILES} open files are needed: raise ulimit -Hn").into());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(OPEN_FILES), maximum: now.maximum })?)
}

/// Microseconds since this process looked at the clock first. The model server and the readers are in
/// one process, so they share it, and what lies between two readings is a delay.
pub fn micros() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let since = BEGAN.get_or_init(Instant::now).elapsed();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Whose use of the processors is told apart.
#[derive(Debug, Clone, Copy, Default)]
pub struct Watched {
    /// The server under test.
    pub server: Option<u32>,
    /// Its database, if it is a process of its own.
    pub postgres: Option<u32>,
}

/// Seconds of processor time between two moments.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    /// By the server.
    pub server: f64,
    /// By Postgres, with all of its processes.
    pub postgres: f64,
    /// By the clients and the model server, which are this process.
    pub bench: f64,
    /// By everybody else on this machine and, where it is a virtual one, by its neighbours.
    pub others: f64,
    /// How long it was.
    pub wall: f64,
}

impl Used {
    /// Processors that others kept busy. Beyond 0.2 or so, throw the figures away.
    pub fn other_cores(&self) -> f64 {
        self.others.max(0.0) / self.wall.max(0.001)
    }
}

/// A moment to measure from.
pub struct Watch {
    watched: Watched,
    began: Instant,
    at: Used,
}

impl Watch {
    /// Begins now.
    pub fn start(watched: Watched) -> Self {
        Self { watched, began: Instant::now(), at: read(watched) }
    }

    /// What was used since.
    pub fn stop(&self) -> Used {
        let now = read(self.watched);
        let (server, postgres) = (now.server - self.at.server, now.postgres - self.at.postgres);
        let bench = now.bench - self.at.bench;
        let all = now.others - self.at.others;
        let wall = self.began.elapsed().as_secs_f64();
        Used { server, postgres, bench, others: all - server - postgres - bench, wall }
    }
}

/// `others` is everybody here.
fn read(watched: Watched) -> Used {
    Used {
        server: watched.server.map_or(0.0, of_process),
        postgres: watched.postgres.map_or(0.0, of_family),
        bench: of_process(std::process::id()),
        others: of_machine(),
        wall: 0.0,
    }
}

/// The fields of `/proc/PID/stat` behind the name, which may hold anything. The first is the state.
fn stat(pid: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    rest.split_whitespace().map(str::to_owned).collect()
}

/// The sum of these fields, from ticks to seconds.
fn seconds(fields: &[String], from: usize, count: usize) -> f64 {
    let ticks = fields.iter().skip(from).take(count).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS
}

/// `utime` and `stime`.
fn of_process(pid: u32) -> f64 {
    seconds(&stat(pid), 11, 2)
}

/// The same of a process, of its children that live, and of those that it has waited for.
fn of_family(pid: u32) -> f64 {
    let children = children(pid);
    seconds(&stat(pid), 11, 4) + children.into_iter().map(of_process).sum::<f64>()
}

fn children(parent: u32) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parent = parent.to_string();
    pids.filter(|pid| stat(*pid).get(1) == Some(&parent)).collect()
}

/// All that was not idle: user, nice, system, interrupts, and what the host took for others.
fn of_machine() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let fields: Vec<String> = line.split_whitespace().skip(1).map(str::to_owned).collect();
    seconds(&fields, 0, 3) + seconds(&fields, 5, 3)
}

/// KiB of memory that the process has in use.
pub fn resident_kib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

/// The server process of the Postgres cluster whose files are here.
pub fn postmaster(data_directory: &str) -> Option<u32> {
    let file = Path::new(data_directory).join("postmaster.pid");
    fs::read_to_string(file).ok()?.lines().next()?.parse().ok()
}

/// The value below which this share of the values lies; NaN of none.
pub fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1) as f64;
    values.get((last * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// The middle one.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    percentile(&mut values.into_iter().collect::<Vec<_>>(), 0.5)
}

/// The same in milliseconds.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

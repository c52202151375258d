//! How long a test runs, and what it has to say about it.
//!
//! Crash tests have two sizes: one for CI, and the full one that `tests/run.sh --full` asks for
//! (`STEPWELL_TEST_FULL=1`). Each of them ends with one line of a report: what was done to the server,
//! how often it bit, how much was checked, and how much of it was wrong. `STEPWELL_TEST_REPORT` names
//! the file that collects the lines.

use std::fmt::Display;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Violations that are told word by word; a broken server makes thousands.
const TOLD: usize = 20;

/// Whether the long versions of the tests are wanted.
pub fn is_full() -> bool {
    std::env::var_os("STEPWELL_TEST_FULL").is_some_and(|value| value == "1")
}

/// A number for CI and one for the full profile.
pub fn pick<T>(ci: T, full: T) -> T {
    if is_full() { full } else { ci }
}

/// What a crash test did and found. It is written, and judged, by [`Report::finish`]; a test that
/// panics before leaves a line too.
pub struct Report {
    promise: &'static str,
    what: &'static str,
    database: &'static str,
    began: Instant,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    fired: u64,
    bit: u64,
    checks: u64,
    violations: Vec<String>,
    notes: Vec<String>,
    is_written: bool,
}

impl Report {
    /// Of this promise (`P1`), in a few words, on this database.
    pub fn new(promise: &'static str, what: &'static str, database: &'static str) -> Self {
        Self { promise, what, database, began: Instant::now(), tally: Mutex::default() }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fault was fired; `bit`: it hit what it was meant to hit.
    pub fn fault(&self, bit: bool) {
        let mut tally = self.tally();
        tally.fired += 1;
        tally.bit += u64::from(bit);
    }

    /// Something was checked, and this is what is wrong if it is not so.
    pub fn check(&self, is_so: bool, wrong: impl FnOnce() -> String) {
        let mut tally = self.tally();
        tally.checks += 1;
        if !is_so {
            let wrong = wrong();
            println!("violation: {wrong}");
            tally.violations.push(wrong);
        }
    }

    /// Checks that were made elsewhere.
    pub fn add(&self, checks: u64, violations: Vec<String>) {
        let mut tally = self.tally();
        tally.checks += checks;
        tally.violations.extend(violations);
    }

    /// A figure that belongs into the table.
    pub fn note(&self, note: impl Display) {
        self.tally().notes.push(note.to_string());
    }

    /// Writes the line, then panics if anything was violated, or fewer faults bit than `at_least`:
    /// a test whose faults miss proves nothing.
    #[track_caller]
    pub fn finish(self, at_least: u64) {
        let (bit, violations) = {
            let tally = self.tally();
            (tally.bit, tally.violations.clone())
        };
        self.write("");
        let told = violations.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>().join("\n");
        assert!(violations.is_empty(), "{} violations:\n{told}", violations.len());
        assert!(bit >= at_least, "only {bit} faults bit; {at_least} are needed to prove anything");
        assert!(self.tally().checks > 0, "nothing was checked");
    }

    fn write(&self, outcome: &str) {
        let mut tally = self.tally();
        tally.is_written = true;
        let seconds = self.began.elapsed().as_secs();
        let notes = [tally.notes.join(", "), outcome.to_owned()];
        let notes = notes.iter().filter(|note| !note.is_empty()).cloned().collect::<Vec<_>>();
        let line = format!(
            "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\n",
            self.promise,
            self.what,
            self.database,
            tally.fired,
            tally.bit,
            tally.checks,
            tally.violations.len(),
            seconds,
            notes.join("; "),
        );
        print!("report: {line}");
        let Some(path) = std::env::var_os("STEPWELL_TEST_REPORT") else { return };
        // One write: lines of tests that run side by side stay whole.
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the report is written");
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if !self.tally().is_written {
            self.write("BROKEN OFF");
        }
    }
}

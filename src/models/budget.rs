//! How many retries a provider gets: enough to ride out a hiccup, too few to keep it down.

use crate::domain::time::Timestamp;

/// Retries in a minute that are free, whatever the number of calls.
const FREE: u64 = 10;
/// Beyond them, one retry for so many calls.
const CALLS_PER_RETRY: u64 = 10;
/// Seconds that are counted.
const WINDOW: i64 = 60;

/// Calls and retries of one provider in the last minute, by the second.
#[derive(Debug)]
pub struct RetryBudget {
    seconds: [Second; WINDOW as usize],
}

#[derive(Debug, Clone, Copy)]
struct Second {
    /// Which second since 1970 this is; any number out of the window before it is first used.
    number: i64,
    calls: u64,
    retries: u64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { seconds: [Second { number: i64::MIN, calls: 0, retries: 0 }; WINDOW as usize] }
    }
}

impl RetryBudget {
    /// Counts a call, first attempts and retries alike.
    pub fn called(&mut self, now: Timestamp) {
        if let Some(second) = self.second(now) {
            second.calls += 1;
        }
    }

    /// Whether one more retry may be made now; if so, it is counted.
    pub fn take_retry(&mut self, now: Timestamp) -> bool {
        let at = number(now);
        let (mut calls, mut retries) = (0, 0);
        // A clock that was set back must not forget what just happened: near is near.
        for second in self.seconds.iter().filter(|s| s.number.abs_diff(at) < WINDOW.unsigned_abs())
        {
            calls += second.calls;
            retries += second.retries;
        }
        if retries >= FREE.max(calls / CALLS_PER_RETRY) {
            return false;
        }
        if let Some(second) = self.second(now) {
            second.retries += 1;
        }
        true
    }

    /// The counts of this second, emptied if they are of another one.
    fn second(&mut self, now: Timestamp) -> Option<&mut Second> {
        let number = number(now);
        let place = usize::try_from(number.rem_euclid(WINDOW)).unwrap_or(0);
        let second = self.seconds.get_mut(place)?;
        if second.number != number {
            *second = Second { number, calls: 0, retries: 0 };
        }
        Some(second)
    }
}

fn number(now: Timestamp) -> i64 {
    now.millis().div_euclid(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + second * 1000)
    }

    fn taken(budget: &mut RetryBudget, tries: usize, now: Timestamp) -> usize {
        (0..tries).filter(|_| budget.take_retry(now)).count()
    }

    #[test]
    fn ten_retries_a_minute_are_free() {
        let mut budget = RetryBudget::default();
        assert_eq!(taken(&mut budget, 50, at(0)), 10);
        assert_eq!(taken(&mut budget, 50, at(59)), 0);
        assert_eq!(taken(&mut budget, 50, at(60)), 10);
    }

    #[test]
    fn beyond_them_a_tenth_of_the_calls_may_be_retries() {
        let mut budget = RetryBudget::default();
        for second in 0..60 {
            for _ in 0..10 {
                budget.called(at(second));
            }
        }
        assert_eq!(taken(&mut budget, 1_000, at(59)), 60);
        // The calls of the first half minute no longer count; the retries still do.
        assert_eq!(taken(&mut budget, 1_000, at(89)), 0);
    }

    #[test]
    fn a_clock_that_is_set_back_gives_no_retries_away() {
        let mut budget = RetryBudget::default();
        assert_eq!(taken(&mut budget, 50, at(30)), 10);
        assert_eq!(taken(&mut budget, 50, at(0)), 0);
    }
}

//! Random numbers that can be had again: a test prints its seed, and `STEPWELL_TEST_SEED` repeats it.

/// SplitMix64: enough to choose moments and cursors by.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Numbers of a new seed, or of the one in `STEPWELL_TEST_SEED`. The seed is printed.
    pub fn new() -> Self {
        let given = std::env::var_os("STEPWELL_TEST_SEED");
        let given = given.and_then(|seed| seed.to_str()?.parse().ok());
        let seed = given.unwrap_or_else(|| stepwell::clock::Clock::system().uuid().as_u64_pair().1);
        println!("STEPWELL_TEST_SEED={seed}");
        Self(seed)
    }

    /// The numbers of this seed.
    pub const fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// Another source of numbers, for a task of its own.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

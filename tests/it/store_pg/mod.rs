//! What only Postgres can get wrong: lost answers, locks, values that it refuses, plans. What every
//! store must do is in `tests/it/store`.

mod doubt;
mod locks;
mod plans;
mod sample;
mod values;

//! What only Postgres can get wrong: lost answers, locks, values that it refuses, plans, days that
//! are dropped. What every store must do is in `tests/it/store`.

mod conversations;
mod doubt;
mod locks;
mod plans;
mod retention;
mod sample;
mod values;

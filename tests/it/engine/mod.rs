//! The engine's logic of ownership without its processes: several nodes on one real database, with a
//! clock of our own.

mod answers;
mod expiry;
mod families;
mod interleavings;
mod stage;

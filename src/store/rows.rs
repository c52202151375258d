//! Shared row types.

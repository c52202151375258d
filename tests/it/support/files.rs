//! How many files, and so sockets, a test and the servers that it starts may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Sees to it that so many files may be open at the same time; servers inherit it. Never lowers what
/// is allowed: tests run side by side.
pub fn allow_open_files(count: u64) {
    let limits = getrlimit(Resource::Nofile);
    if limits.current.is_none_or(|current| current >= count) {
        return;
    }
    let maximum = limits.maximum.map(|maximum| maximum.max(count));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum });
    assert!(raised.is_ok(), "{count} open files are allowed: {raised:?}");
}

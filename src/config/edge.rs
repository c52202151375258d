//! What clients may take of this process, all of it bounded.

use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, invalid};

/// Connections in all.
const MAX_CONNECTIONS: usize = 20_000;
/// Event streams on this node.
const MAX_STREAMS: usize = 10_000;
/// Seconds without a byte taken after which a connection is closed.
const STALL_SECONDS: u64 = 30;
/// Minutes after which a stream ends and is taken up again.
const STREAM_MINUTES: u64 = 30;
/// A number beyond this is a mistake: each connection is a file, and memory.
const MOST: usize = 1_000_000;

/// The bounds of the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// Connections in all.
    pub max_connections: usize,
    /// Connections of one address; behind a proxy all clients have the proxy's.
    pub max_connections_per_address: usize,
    /// Open event streams in all.
    pub max_streams: usize,
    /// Open event streams of one workspace.
    pub max_streams_per_workspace: usize,
    /// After so long without a byte taken a connection is closed.
    pub stall: Duration,
    /// After so long a stream ends and is taken up again.
    pub stream_lifetime: Duration,
}

/// The section `edge` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EdgeSection {
    max_connections: Option<usize>,
    max_connections_per_address: Option<usize>,
    max_streams: Option<usize>,
    max_streams_per_workspace: Option<usize>,
    stall_seconds: Option<u64>,
    stream_minutes: Option<u64>,
}

impl EdgeSection {
    pub(super) fn resolve(self) -> Result<Edge, ConfigError> {
        let max_connections = count("max_connections", self.max_connections, MAX_CONNECTIONS)?;
        let max_streams = count("max_streams", self.max_streams, MAX_STREAMS)?;
        Ok(Edge {
            max_connections,
            max_connections_per_address: count(
                "max_connections_per_address",
                self.max_connections_per_address,
                max_connections,
            )?,
            max_streams,
            max_streams_per_workspace: count(
                "max_streams_per_workspace",
                self.max_streams_per_workspace,
                max_streams,
            )?,
            stall: super::seconds("edge.stall_seconds", self.stall_seconds, STALL_SECONDS)?,
            stream_lifetime: match self.stream_minutes.unwrap_or(STREAM_MINUTES) {
                minutes @ 1..=1_440 => Duration::from_secs(minutes * 60),
                _ => return Err(invalid("edge.stream_minutes", "must be 1 to 1440 minutes")),
            },
        })
    }
}

fn count(key: &str, value: Option<usize>, default: usize) -> Result<usize, ConfigError> {
    match value.unwrap_or(default) {
        count @ 1..=MOST => Ok(count),
        _ => Err(invalid(format!("edge.{key}"), "must be 1 to 1000000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_follows_from_what_is() {
        let edge = EdgeSection::default().resolve().unwrap();
        assert_eq!(edge.max_connections_per_address, edge.max_connections);
        assert_eq!((edge.max_streams, edge.stall.as_secs()), (10_000, 30));
        let section =
            EdgeSection { max_streams: Some(7), stream_minutes: Some(2), ..Default::default() };
        let edge = section.resolve().unwrap();
        assert_eq!((edge.max_streams, edge.max_streams_per_workspace), (7, 7));
        assert_eq!(edge.stream_lifetime.as_secs(), 120);
    }

    #[test]
    fn senseless_numbers_are_refused_by_name() {
        for (section, key) in [
            (EdgeSection { max_connections: Some(0), ..Default::default() }, "max_connections"),
            (EdgeSection { stream_minutes: Some(0), ..Default::default() }, "stream_minutes"),
            (EdgeSection { stall_seconds: Some(4_000), ..Default::default() }, "stall_seconds"),
        ] {
            let error = section.resolve().unwrap_err().to_string();
            assert!(error.starts_with(&format!("edge.{key}: must be")), "{error}");
        }
    }
}

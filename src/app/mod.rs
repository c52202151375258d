//! WHAT ONE CAN ASK FOR, whatever the protocol.
//!
//! Each use case is a method of [`App`]: it takes the [`Caller`] first, checks what it was given,
//! decides with the domain, and reads or writes through the store and the log. What comes back is a
//! domain type or an [`AppError`], which every protocol can turn into its own words.
//!
//! - [`caller`]: who asks; [`error`]: what can go wrong; [`idempotency`]: what a repeated request gets.
//! - [`agents`]: create, read, change, archive; [`config_agents`]: those of `stepwell.yaml`;
//!   [`current`]: the current versions that creating runs needs again and again.
//! - [`forks`]: going on from a step of another run; [`answers`]: what people say about a run: approvals, results, steering; the open approvals.
//! - [`conversations`]: create, read, change, close, erase, and their messages; [`turns`]: runs in them.
//! - [`runs`]: create, read, list, wait, cancel, erase; [`view`]: a run as clients read it;
//!   [`estimate`]: how long runs of an agent take; [`reading`]: JSON into types, with pointers.
//!
//! What this room must never do: know HTTP, run a model or a tool, or answer with anything that is
//! not durable.
//!
//! To add a use case: a method of [`App`] in the file of its resource, with `&Caller` first; what it
//! may refuse is a variant of [`AppError`].

pub mod agents;
pub mod answers;
pub mod caller;
pub mod config_agents;
pub mod conversations;
pub mod current;
pub mod error;
pub mod estimate;
pub mod forks;
pub mod idempotency;
pub mod reading;
pub mod runs;
pub mod turns;
pub mod view;

use std::sync::Arc;

use crate::clock::Clock;
use crate::domain::egress::Outbound;
use crate::domain::model::Catalogue;
use crate::domain::time::Timestamp;
use crate::log::Log;
use crate::log::pulse::Trouble;
use crate::store::SharedStore;

pub use caller::Caller;
pub use error::{AppError, Sought};
pub use view::Links;

/// The use cases of this server. Shared behind an `Arc`.
pub struct App {
    log: Log,
    catalogue: Arc<Catalogue>,
    outbound: Outbound,
    links: Links,
    current: current::CurrentAgents,
    durations: estimate::Durations,
}

impl App {
    /// The use cases over a log, for the models that the operator configured and the places that tools
    /// may reach.
    pub fn new(log: Log, catalogue: Arc<Catalogue>, outbound: Outbound, links: Links) -> Self {
        Self {
            log,
            catalogue,
            outbound,
            links,
            current: current::CurrentAgents::default(),
            durations: estimate::Durations::default(),
        }
    }

    /// The time, ids and chance.
    pub const fn clock(&self) -> &Clock {
        &self.log.clock
    }

    /// Where things are, for links.
    pub const fn links(&self) -> &Links {
        &self.links
    }

    /// Why this process cannot do its work at the moment, in sentences; nothing means that it can.
    pub fn what_is_wrong(&self) -> Vec<String> {
        let tell = |trouble| match trouble {
            Trouble::NoEngine => "The engine is not alive.".to_owned(),
            Trouble::NoBeat(since) => {
                format!("The database has taken no write for {} s.", since.as_secs())
            }
            Trouble::Deaf(since) => {
                format!("Other nodes have not been heard for {} s.", since.as_secs())
            }
            Trouble::Stuck(since) => {
                format!("A run has waited for {} s although slots are free.", since.as_secs())
            }
        };
        self.log.pulse.troubles().into_iter().map(tell).collect()
    }

    fn store(&self) -> &SharedStore {
        &self.log.store
    }

    fn now(&self) -> Timestamp {
        self.log.clock.now()
    }
}

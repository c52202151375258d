//! Where created runs meet free slots of this node's engine.
//!
//! A run that is created while a slot is free is born claimed and handed over after its commit: no
//! poll, no second write. `app` and `engine` never see each other; they meet here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::domain::ids::NodeId;
use crate::store::RunRecord;

use super::live::Watched;

/// A created run on its way to the engine, with the slot that was kept for it.
pub struct Handover {
    /// The run, as it was written.
    pub record: RunRecord,
    /// Its slot.
    pub slot: OwnedSemaphorePermit,
    /// Its watch, with a tail that already holds the first event.
    pub watch: Watched,
}

/// A slot that was kept for a run which is about to be created.
pub struct KeptSlot {
    /// The slot.
    pub slot: OwnedSemaphorePermit,
    /// The node that will own the run.
    pub node_id: NodeId,
}

/// The desk.
pub struct Desk {
    slots: Arc<Semaphore>,
    open: Mutex<Option<NodeId>>,
    handovers: mpsc::UnboundedSender<Handover>,
    queue: AtomicBool,
    arrived: Notify,
}

impl Desk {
    /// A desk with so many slots, closed until an engine opens it. What is handed over comes out of
    /// the receiver; it holds no more than there are slots.
    pub fn new(slots: usize) -> (Self, mpsc::UnboundedReceiver<Handover>) {
        let (handovers, receiver) = mpsc::unbounded_channel();
        let desk = Self {
            slots: Arc::new(Semaphore::new(slots)),
            open: Mutex::new(None),
            handovers,
            queue: AtomicBool::new(false),
            arrived: Notify::new(),
        };
        (desk, receiver)
    }

    /// All slots, for the engine.
    pub fn slots(&self) -> &Arc<Semaphore> {
        &self.slots
    }

    /// The engine is there, as this node; `None`: it takes nothing (any more).
    pub fn open_as(&self, node_id: Option<NodeId>) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = node_id;
    }

    /// Whether older runs wait in the queue: then new ones queue up behind them.
    pub fn queue_waits(&self, waits: bool) {
        self.queue.store(waits, Ordering::Relaxed);
    }

    /// Keeps a slot for a run that is about to be created.
    pub fn keep_slot(&self) -> Option<KeptSlot> {
        if self.queue.load(Ordering::Relaxed) {
            return None;
        }
        let node_id = (*self.open.lock().unwrap_or_else(PoisonError::into_inner))?;
        let slot = self.slots.clone().try_acquire_owned().ok()?;
        Some(KeptSlot { slot, node_id })
    }

    /// Hands a created run over. If the engine is gone, its reconciliation or another node's finds it.
    pub fn hand_over(&self, handover: Handover) {
        let _ = self.handovers.send(handover);
    }

    /// A run was put into the queue: the engine should look.
    pub fn queued(&self) {
        self.arrived.notify_one();
    }

    /// Resolves when a run was put into the queue.
    pub async fn arrival(&self) {
        self.arrived.notified().await;
    }
}

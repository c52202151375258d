//! WHAT ONE CAN ASK FOR, whatever the protocol.

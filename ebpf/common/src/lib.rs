//! The ABI between the kernel programs and the agent.
//!
//! Everything here is plain `repr(C)` data with sized integers and explicit padding, so that both
//! compilers lay it out alike; sizes are asserted below. Discriminants travel as integers and are
//! decoded with the `from_raw` functions, never by transmuting.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod config;
pub mod connection;
pub mod loss;
pub mod process;
pub mod prologue;
pub mod python;
pub mod sample;
pub mod unwind;
pub mod v8;

/// What a ring record holds: the first byte of every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// A [`connection::ConnectionOpened`].
    ConnectionOpened = 1,
    /// A [`connection::SocketData`] followed by its captured bytes.
    SocketData = 2,
    /// A [`connection::ConnectionClosed`].
    ConnectionClosed = 3,
    /// A [`process::ProcessExec`] followed by its command line.
    ProcessExec = 4,
    /// A [`process::ProcessExit`].
    ProcessExit = 5,
}

impl RecordKind {
    /// The kind of a record that begins with `raw`; `None` for a byte that no program writes.
    #[must_use]
    pub const fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::ConnectionOpened),
            2 => Some(Self::SocketData),
            3 => Some(Self::ConnectionClosed),
            4 => Some(Self::ProcessExec),
            5 => Some(Self::ProcessExit),
            _ => None,
        }
    }
}

const _: () = {
    assert!(size_of::<connection::ConnectionOpened>() == 80);
    assert!(size_of::<connection::SocketData>() == 96);
    assert!(size_of::<connection::ConnectionClosed>() == 56);
    assert!(size_of::<connection::ConnectionState>() == 136);
    assert!(size_of::<process::ProcessExec>() == 48);
    assert!(size_of::<process::ProcessExit>() == 24);
};

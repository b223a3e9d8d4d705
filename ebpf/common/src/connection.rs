//! Connections and the bytes that pass through them.
//!
//! A connection is one kernel socket (TCP or Unix stream) from the first byte that the tap saw to
//! its end. It carries an id that the kernel side gives out and never reuses.

/// Which way bytes move, as the process that owns the socket sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// Read by the process.
    Ingress = 0,
    /// Written by the process.
    Egress = 1,
}

impl Direction {
    /// The direction that `raw` stands for; `None` for a value that no program writes.
    #[must_use]
    pub const fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            0 => Some(Self::Ingress),
            1 => Some(Self::Egress),
            _ => None,
        }
    }

    /// The other direction.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }
}

/// Address families as the kernel numbers them (`include/linux/socket.h`).
pub mod family {
    /// `AF_UNIX`
    pub const UNIX: u16 = 1;
    /// `AF_INET`
    pub const INET: u16 = 2;
    /// `AF_INET6`
    pub const INET6: u16 = 10;
}

/// How far one direction of a connection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes))]
#[repr(C)]
pub struct Cursor {
    /// Bytes that passed since the tap first saw the connection.
    pub offset_bytes: u64,
    /// When the last of them passed: `CLOCK_MONOTONIC`, nanoseconds; 0 when none did.
    pub last_ns: u64,
}

/// Sent once, before the first [`SocketData`] of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes))]
#[repr(C)]
pub struct ConnectionOpened {
    /// [`crate::RecordKind::ConnectionOpened`]
    pub kind: u8,
    /// Alignment only.
    pub padding: [u8; 1],
    /// One of [`family`].
    pub family: u16,
    /// Local port, host byte order; 0 for Unix sockets.
    pub local_port: u16,
    /// Remote port, host byte order; 0 for Unix sockets.
    pub remote_port: u16,
    /// Given out by the kernel side, never reused while the agent runs.
    pub connection_id: u64,
    /// Address of the kernel's `struct sock`: the key of the connection map.
    pub socket: u64,
    /// The socket's inode number, as in `/proc/PID/fd` and `/proc/net/tcp`.
    pub inode: u64,
    /// When the tap first saw the connection: `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// Process (user-space sense) whose call brought the connection to notice.
    pub pid: u32,
    /// Inode number of the socket's network namespace.
    pub network_namespace: u32,
    /// Local address; IPv4 in the first four bytes, all zero for Unix sockets.
    pub local_address: [u8; 16],
    /// Remote address, as `local_address`.
    pub remote_address: [u8; 16],
}

/// Bits of [`SocketData::flags`].
pub mod data_flags {
    /// The captured bytes are the end of the segment, not its beginning.
    pub const TAIL: u8 = 1;
    /// Reading the process's memory failed: the bytes passed, but none could be captured.
    pub const FAULT: u8 = 2;
}

/// A segment: the bytes that one call moved through a connection. The first `captured_len` of them
/// follow this header in the record.
///
/// Segments inside long bodies are not sent; the next record of the connection carries how far
/// each direction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes))]
#[repr(C)]
pub struct SocketData {
    /// [`crate::RecordKind::SocketData`]
    pub kind: u8,
    /// A [`Direction`].
    pub direction: u8,
    /// See [`data_flags`].
    pub flags: u8,
    /// Alignment only.
    pub padding: u8,
    /// Bytes that follow the header.
    pub captured_len: u32,
    /// See [`ConnectionOpened::connection_id`].
    pub connection_id: u64,
    /// Process that made the call (user-space sense: the kernel's tgid).
    pub pid: u32,
    /// Thread that made the call.
    pub tid: u32,
    /// Offset of the segment's first byte in its direction's stream.
    pub offset_bytes: u64,
    /// Bytes that the call moved.
    pub len_bytes: u64,
    /// When it moved them: `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// When the last byte before `offset_bytes` passed; 0 when there was none.
    pub previous_ns: u64,
    /// How far the other direction has come.
    pub opposite: Cursor,
    /// Address of the kernel's `struct sock`: the key of the connection map.
    pub socket: u64,
    /// Of a segment that the process reads: when the first of its bytes arrived; 0 where that is
    /// not known.
    pub arrived_ns: u64,
    /// Where a run of reads begins that may be a request, see [`busy_ticks`].
    pub busy_ticks: u32,
    /// Alignment only.
    pub padding2: u32,
}

/// For how many of the kernel's ticks a TCP connection has had bytes that the peer had not
/// acknowledged (`tcpi_busy_time` of `tcp_info`), since it began; or one of these.
pub mod busy_ticks {
    /// Nobody asked.
    pub const UNASKED: u32 = u32::MAX;
    /// There are such bytes now.
    pub const STILL_BUSY: u32 = u32::MAX - 1;
}

/// Why (half of) a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CloseReason {
    /// An orderly end: FIN, EOF or close.
    Fin = 0,
    /// Reset by either side.
    Reset = 1,
    /// The kernel gave up on the peer.
    Timeout = 2,
    /// The kernel side gave the connection up: another socket took its place.
    Replaced = 3,
}

impl CloseReason {
    /// The reason that `raw` stands for; `None` for a value that no program writes.
    #[must_use]
    pub const fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            0 => Some(Self::Fin),
            1 => Some(Self::Reset),
            2 => Some(Self::Timeout),
            3 => Some(Self::Replaced),
            _ => None,
        }
    }
}

/// Bits of [`ConnectionClosed::directions`].
pub mod closed {
    /// No more bytes will be read.
    pub const INGRESS: u8 = 1;
    /// No more bytes will be written.
    pub const EGRESS: u8 = 2;
    /// The connection is gone.
    pub const BOTH: u8 = INGRESS | EGRESS;
}

/// One or both directions of a connection have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes))]
#[repr(C)]
pub struct ConnectionClosed {
    /// [`crate::RecordKind::ConnectionClosed`]
    pub kind: u8,
    /// See [`closed`].
    pub directions: u8,
    /// A [`CloseReason`].
    pub reason: u8,
    /// Alignment only.
    pub padding: u8,
    /// See [`busy_ticks`].
    pub busy_ticks: u32,
    /// See [`ConnectionOpened::connection_id`].
    pub connection_id: u64,
    /// When it ended: `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// How far ingress (0) and egress (1) had come.
    pub cursors: [Cursor; 2],
}

/// What the kernel side knows of a connection's protocol.
pub mod protocol_state {
    /// Nothing recognized yet.
    pub const UNKNOWN: u8 = 0;
    /// A message of HTTP/1 was seen, and the process receives the requests.
    pub const HTTP1_SERVER: u8 = 1;
    /// Neither HTTP nor TLS after its first segments: costs nothing from now on.
    pub const OTHER: u8 = 2;
    /// TLS: the bytes say nothing.
    pub const TLS: u8 = 3;
    /// A message of HTTP/1 was seen, and the process sends the requests.
    pub const HTTP1_CLIENT: u8 = 4;

    /// Whether a message of HTTP/1 was seen.
    #[must_use]
    pub const fn is_http(protocol: u8) -> bool {
        matches!(protocol, HTTP1_SERVER | HTTP1_CLIENT)
    }
}

/// Value of the map of sockets that nobody has read yet, keyed by the address of `struct sock`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FirstArrival {
    /// When the connection was ready to be accepted; 0 where that was not seen.
    pub ready_ns: u64,
    /// Where the queue time of its first bytes begins; 0 until some have arrived.
    pub arrived_ns: u64,
}

/// Key of the map of the endpoints that are Elasticsearch or OpenSearch clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ClusterEndpoint {
    /// As in [`ConnectionOpened`].
    pub address: [u8; 16],
    /// Host byte order.
    pub port: u32,
}

// SAFETY: plain integers without padding; every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for ClusterEndpoint {}

/// What [`ConnectionState::kept`] holds: in its lowest three bits and in the three from the fifth on, how far the
/// end of a chunked body has come in ingress and in egress.
pub mod kept {
    /// A request was sent before the one before it was answered: more is captured.
    pub const PIPELINED: u8 = 0x80;

    /// The last bytes of a stream, as far as they may be the beginning of what ends a chunked body, in
    /// three bits. `last` holds them with the newest in the lowest place.
    #[must_use]
    #[inline(always)]
    pub const fn pack(last: u32) -> u8 {
        match (last, last & 0xff_ffff, last & 0xffff, last & 0xff) {
            (0x30_0d_0a_0d, ..) => 4,
            (_, 0x0d_0a_0d, ..) => 7,
            (_, 0x30_0d_0a, ..) => 3,
            (_, _, 0x0d_0a, _) => 6,
            (_, _, 0x30_0d, _) => 2,
            (.., 0x0d) => 5,
            (.., 0x30) => 1,
            _ => 0,
        }
    }

    /// The bytes that [`pack`] kept.
    #[must_use]
    #[inline(always)]
    pub const fn unpack(kept: u8) -> u32 {
        match kept & 7 {
            1 => 0x30,
            2 => 0x30_0d,
            3 => 0x30_0d_0a,
            4 => 0x30_0d_0a_0d,
            5 => 0x0d,
            6 => 0x0d_0a,
            7 => 0x0d_0a_0d,
            _ => 0,
        }
    }
}

/// Value of [`ConnectionState::arrived_ns`] where the process sends the requests, or they are none.
pub const NOT_AWAITED: u64 = u64::MAX;

/// Value of the connection map, keyed by the address of `struct sock`. The agent reads it to ask
/// how far a long body has come.
///
/// A hash element of the kernel has 48 bytes of its own before the key. With 136 bytes of value it
/// fills three cache lines, so that CPUs with neighbouring connections do not wait for each other,
/// and all that a segment touches is in the second one.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ConnectionState {
    /// See [`ConnectionOpened::connection_id`].
    pub connection_id: u64,
    /// How far ingress (0) and egress (1) have come.
    pub cursors: [Cursor; 2],
    /// Bytes of the present run that may still be captured, a direction.
    pub budget_bytes: [u32; 2],
    /// Process that last moved bytes.
    pub pid: u32,
    /// One of [`family`].
    pub family: u8,
    /// See [`kept`].
    pub kept: u8,
    /// Ring that this connection's records go to.
    pub ring: u8,
    /// One of [`protocol_state`].
    pub protocol: u8,
    /// Direction of the last segment, as [`Direction`]; 255 before the first.
    pub last_direction: u8,
    /// Segments at the start of a run that began no message.
    pub strikes: u8,
    /// See [`closed`]: what was told already.
    pub closed: u8,
    /// A [`CloseReason`] noted on the way to the end.
    pub close_reason: u8,
    /// `tcp_sock.copied_seq` behind the last byte that was seen: tells of bytes that were read past
    /// the tap. 0 for Unix sockets.
    pub copied_seq: u32,
    /// See [`ConnectionOpened::inode`]; tells a reused address from the connection that had it.
    pub inode: u64,
    /// Address of a Unix socket's peer; 0 otherwise.
    pub peer_socket: u64,
    /// When the tap first saw the connection.
    pub opened_ns: u64,
    /// Local and remote address, as in [`ConnectionOpened`].
    pub addresses: [[u8; 16]; 2],
    /// Local and remote port, host byte order.
    pub ports: [u16; 2],
    /// Inode number of the socket's network namespace.
    pub network_namespace: u32,
    /// When the first of the bytes that nobody has read arrived: `CLOCK_MONOTONIC`, nanoseconds; 0
    /// where there are none, or it is not known; [`NOT_AWAITED`] where it is of no interest. In a
    /// line of its own with what hardly ever changes: arrivals are another processor's, which
    /// touches nothing else.
    pub arrived_ns: u64,
}

// SAFETY: plain integers without implicit padding; every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for ConnectionState {}

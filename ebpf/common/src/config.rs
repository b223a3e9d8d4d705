//! What the agent tells the kernel programs before they are loaded.
//!
//! One read-only global, `CONFIG`. The verifier sees its fields as constants, so an offset read
//! from BTF costs nothing at run time and a branch that a kernel does not need is removed.

/// Offset of a member that this kernel does not have.
pub const MISSING: u32 = u32::MAX;

/// Byte offsets of kernel structure members, from `/sys/kernel/btf/vmlinux`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Offsets {
    /// `pt_regs`: the system call's number (x86-64 `orig_ax`, arm64 `syscallno`).
    pub regs_syscall: u32,
    /// `pt_regs`: the call's result, `-ENOSYS` until it has one.
    pub regs_result: u32,
    /// `pt_regs`: the call's first four arguments, which stay until its end.
    pub regs_args: [u32; 4],
    /// `task_struct.files`
    pub task_files: u32,
    /// `task_struct.mm`
    pub task_mm: u32,
    /// `task_struct.stack`, or [`MISSING`].
    pub task_stack: u32,
    /// `task_struct.thread.fsbase`, or [`MISSING`].
    pub task_fs_base: u32,
    /// `task_struct.pid`: the thread's number.
    pub task_pid: u32,
    /// `task_struct.__state`, or [`MISSING`] before 5.14: 0 while the thread can run.
    pub task_state: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.real_parent`
    pub task_real_parent: u32,
    /// `task_struct.exit_code`
    pub task_exit_code: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `signal_struct.live`: threads that still run.
    pub signal_live: u32,
    /// `mm_struct.arg_start`
    pub mm_arg_start: u32,
    /// `mm_struct.arg_end`
    pub mm_arg_end: u32,
    /// `files_struct.fdt`
    pub files_fdt: u32,
    /// `fdtable.max_fds`
    pub fdtable_max_fds: u32,
    /// `fdtable.fd`
    pub fdtable_fd: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `file.private_data`
    pub file_private_data: u32,
    /// `inode.i_mode`
    pub inode_mode: u32,
    /// `inode.i_ino`
    pub inode_number: u32,
    /// `socket.sk`
    pub socket_sk: u32,
    /// From a `struct socket` to the inode beside it (`socket_alloc.vfs_inode`).
    pub socket_to_inode: u32,
    /// `sock.sk_socket`
    pub sock_socket: u32,
    /// `sock.sk_type`
    pub sock_type: u32,
    /// `sock.sk_err`
    pub sock_err: u32,
    /// `sock_common.skc_family`
    pub sock_family: u32,
    /// `sock_common.skc_num`: the local port, host byte order.
    pub sock_local_port: u32,
    /// `sock_common.skc_dport`: the remote port, network byte order.
    pub sock_remote_port: u32,
    /// `sock_common.skc_rcv_saddr`
    pub sock_local_v4: u32,
    /// `sock_common.skc_daddr`
    pub sock_remote_v4: u32,
    /// `sock_common.skc_v6_rcv_saddr`, or [`MISSING`] without IPv6.
    pub sock_local_v6: u32,
    /// `sock_common.skc_v6_daddr`, or [`MISSING`] without IPv6.
    pub sock_remote_v6: u32,
    /// `sock_common.skc_net`
    pub sock_net: u32,
    /// `net.ns.inum`
    pub net_inum: u32,
    /// `unix_sock.peer`, or [`MISSING`] where Unix sockets are a module without BTF.
    pub unix_peer: u32,
    /// `sock.sk_shutdown`, or [`MISSING`] where it is a bit field.
    pub sock_shutdown: u32,
    /// `sock.sk_protocol`, or [`MISSING`] where it is a bit field.
    pub sock_protocol: u32,
    /// `msghdr.msg_flags`
    pub msg_flags: u32,
    /// `msghdr.msg_iter.iter_type`; `type` before 5.14, of which the least byte is enough.
    pub msg_iter_type: u32,
    /// `msghdr.msg_iter.iov_offset`
    pub msg_iter_offset: u32,
    /// `msghdr.msg_iter.count`
    pub msg_iter_count: u32,
    /// `msghdr.msg_iter.__iov`, `iov` before 6.4: a union with `ubuf`.
    pub msg_iter_memory: u32,
    /// `sock_common.skc_flags`
    pub sock_flags: u32,
    /// `sock.sk_user_data`
    pub sock_user_data: u32,
    /// `tcp_sock.copied_seq`
    pub tcp_copied_seq: u32,
    /// `tcp_sock.rcv_nxt`
    pub tcp_rcv_nxt: u32,
    /// `inet_connection_sock.icsk_ulp_ops`, with which every `tcp_sock` begins.
    pub tcp_ulp_ops: u32,
    /// `sock.sk_receive_queue.qlen`: buffers that nobody has read.
    pub sock_unread: u32,
    /// `sk_buff.cb`: the protocol's own data of a packet.
    pub skb_control: u32,
    /// `sock.sk_wmem_queued`: memory of what was written and not yet acknowledged.
    pub sock_write_queued: u32,
    /// `tcp_sock.chrono_stat`: ticks with such bytes, by what they waited for.
    pub tcp_chrono_stat: u32,
}

/// Kinds of `struct iov_iter`, whose numbers changed three times.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Iterators {
    /// Bits of the kind in the least byte of its member.
    pub type_mask: u32,
    /// `ITER_IOVEC`
    pub iovec: u32,
    /// `ITER_UBUF`, or [`MISSING`] before 6.0.
    pub ubuf: u32,
}

/// Numbers of the system calls that move bytes, on the architecture that the agent runs on.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Syscalls {
    /// `read(2)`
    pub read: u32,
    /// `write(2)`
    pub write: u32,
    /// `readv(2)`
    pub readv: u32,
    /// `writev(2)`
    pub writev: u32,
    /// `sendto(2)`
    pub sendto: u32,
    /// `recvfrom(2)`
    pub recvfrom: u32,
    /// `sendmsg(2)`
    pub sendmsg: u32,
    /// `recvmsg(2)`
    pub recvmsg: u32,
    /// `sendmmsg(2)`
    pub sendmmsg: u32,
    /// `recvmmsg(2)`
    pub recvmmsg: u32,
    /// `sendfile(2)`
    pub sendfile: u32,
    /// `splice(2)`
    pub splice: u32,
}

/// The read-only global `CONFIG`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Config {
    /// See [`Offsets`].
    pub offsets: Offsets,
    /// See [`Syscalls`].
    pub syscalls: Syscalls,
    /// See [`Iterators`].
    pub iterators: Iterators,
    /// The agent's own pid as the kernel counts it: its traffic is left alone.
    pub agent_pid: u32,
    /// Bytes captured from the start of each message, at most [`MAX_CAPTURE_BYTES`].
    pub capture_bytes: u32,
    /// Bytes captured of a body beyond that, on connections to clusters: 0, or more than
    /// [`MAX_CAPTURE_BYTES`], for the last record's worth is not.
    pub body_bytes: u32,
    /// Rings in use, 1 to [`MAX_RINGS`].
    pub rings: u32,
    /// Scratch records a CPU: one for each program of the tap.
    pub scratches: u32,
    /// 1: the arrival of bytes is noted for [`crate::connection::SocketData::arrived_ns`]; 0: not.
    pub queue_time: u32,
    /// 1: the peers' acknowledgements are asked for, for [`crate::connection::busy_ticks`]; 0: not.
    pub delivery_time: u32,
    /// 1: each sample's time goes up too ([`crate::sample::SampleTime`]); 0: counts alone.
    pub sample_times: u32,
}

/// Most bytes that one record captures.
pub const MAX_CAPTURE_BYTES: u32 = 16 * 1024;

/// Bytes captured of a run that holds several messages: 64 heads of 4 KiB.
pub const PIPELINED_CAPTURE_BYTES: u32 = 256 * 1024;

/// Most rings that the object declares.
pub const MAX_RINGS: u32 = 8;

// SAFETY: plain integers without padding; every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Config {}

impl Config {
    /// What the object carries until the agent replaces it.
    // SAFETY: integers alone; all zero is a value.
    pub const EMPTY: Self = unsafe { core::mem::zeroed() };
}

//! The offsets and numbers that the kernel programs get as constants.

use ebpf_common::config::{Iterators, MISSING, Offsets, Syscalls};

use super::btf::{Btf, BtfError};

/// `pt_regs` members: the system call's number, its result, and its first four arguments, which
/// stay until its end.
#[cfg(target_arch = "x86_64")]
const REGISTERS: (&str, &str, [&str; 4]) = ("orig_ax", "ax", ["di", "si", "dx", "r10"]);

/// Finds every offset in the kernel's BTF.
///
/// # Errors
/// Where a member is missing that no fallback can replace.
pub fn resolve(btf: &Btf) -> Result<Offsets, BtfError> {
    let register = |name: &str| btf.offset("pt_regs", name);
    let optional = |structure: &str, path: &str| btf.offset(structure, path).unwrap_or(MISSING);
    let either = |new: &str, old: &str| match optional("msghdr", new) {
        MISSING => optional("msghdr", old),
        offset => offset,
    };
    let (syscall, result, [first, second, third, fourth]) = REGISTERS;
    Ok(Offsets {
        regs_syscall: register(syscall)?,
        regs_result: register(result)?,
        regs_args: [
            register(first)?,
            register(second)?,
            register(third)?,
            register(fourth)?,
        ],
        task_files: btf.offset("task_struct", "files")?,
        task_mm: btf.offset("task_struct", "mm")?,
        task_stack: optional("task_struct", "stack"),
        task_fs_base: optional("task_struct", "thread.fsbase"),
        task_pid: btf.offset("task_struct", "pid")?,
        task_state: optional("task_struct", "__state"),
        task_tgid: btf.offset("task_struct", "tgid")?,
        task_real_parent: btf.offset("task_struct", "real_parent")?,
        task_exit_code: btf.offset("task_struct", "exit_code")?,
        task_signal: btf.offset("task_struct", "signal")?,
        signal_live: btf.offset("signal_struct", "live")?,
        mm_arg_start: btf.offset("mm_struct", "arg_start")?,
        mm_arg_end: btf.offset("mm_struct", "arg_end")?,
        files_fdt: btf.offset("files_struct", "fdt")?,
        fdtable_max_fds: btf.offset("fdtable", "max_fds")?,
        fdtable_fd: btf.offset("fdtable", "fd")?,
        file_inode: btf.offset("file", "f_inode")?,
        file_private_data: btf.offset("file", "private_data")?,
        inode_mode: btf.offset("inode", "i_mode")?,
        inode_number: btf.offset("inode", "i_ino")?,
        socket_sk: btf.offset("socket", "sk")?,
        socket_to_inode: btf.offset("socket_alloc", "vfs_inode")?,
        sock_socket: btf.offset("sock", "sk_socket")?,
        sock_type: btf.offset("sock", "sk_type")?,
        sock_err: btf.offset("sock", "sk_err")?,
        sock_shutdown: optional("sock", "sk_shutdown"),
        sock_family: btf.offset("sock_common", "skc_family")?,
        sock_local_port: btf.offset("sock_common", "skc_num")?,
        sock_remote_port: btf.offset("sock_common", "skc_dport")?,
        sock_local_v4: btf.offset("sock_common", "skc_rcv_saddr")?,
        sock_remote_v4: btf.offset("sock_common", "skc_daddr")?,
        sock_local_v6: optional("sock_common", "skc_v6_rcv_saddr"),
        sock_remote_v6: optional("sock_common", "skc_v6_daddr"),
        sock_net: btf.offset("sock_common", "skc_net")?,
        net_inum: btf.offset("net", "ns.inum")?,
        sock_flags: btf.offset("sock_common", "skc_flags")?,
        sock_user_data: btf.offset("sock", "sk_user_data")?,
        tcp_copied_seq: btf.offset("tcp_sock", "copied_seq")?,
        tcp_rcv_nxt: btf.offset("tcp_sock", "rcv_nxt")?,
        tcp_ulp_ops: btf.offset("inet_connection_sock", "icsk_ulp_ops")?,
        unix_peer: optional("unix_sock", "peer"),
        sock_protocol: optional("sock", "sk_protocol"),
        msg_flags: optional("msghdr", "msg_flags"),
        msg_iter_type: either("msg_iter.iter_type", "msg_iter.type"),
        msg_iter_offset: optional("msghdr", "msg_iter.iov_offset"),
        msg_iter_count: optional("msghdr", "msg_iter.count"),
        msg_iter_memory: either("msg_iter.__iov", "msg_iter.iov"),
        sock_unread: btf.offset("sock", "sk_receive_queue.qlen")?,
        skb_control: btf.offset("sk_buff", "cb")?,
        sock_write_queued: btf.offset("sock", "sk_wmem_queued")?,
        tcp_chrono_stat: btf.offset("tcp_sock", "chrono_stat")?,
    })
}

/// The kinds of I/O vectors; `None` where the kernel does not tell, or where the members are that
/// the fentry tap needs.
#[must_use]
pub fn iterators(btf: &Btf, offsets: &Offsets) -> Option<Iterators> {
    let needed = [
        offsets.msg_flags,
        offsets.msg_iter_type,
        offsets.msg_iter_offset,
        offsets.msg_iter_count,
        offsets.msg_iter_memory,
    ];
    let iovec = btf.enumerator("iter_type", "ITER_IOVEC")?;
    let ubuf = btf.enumerator("iter_type", "ITER_UBUF");
    // One member of a union: the program reads either at the same place.
    let one_place = ubuf.is_none()
        || btf
            .offset("msghdr", "msg_iter.ubuf")
            .is_ok_and(|offset| offset == offsets.msg_iter_memory);
    let is_known = one_place && !needed.contains(&MISSING);
    is_known.then(|| Iterators {
        // Before 5.14 bits told the kinds apart, and the lowest one the direction.
        type_mask: if btf.offset("iov_iter", "iter_type").is_ok() {
            0xff
        } else {
            0xfe
        },
        iovec,
        ubuf: ubuf.unwrap_or(MISSING),
    })
}

/// The numbers of the calls that move bytes, on this architecture.
#[must_use]
pub fn syscalls() -> Syscalls {
    // System call numbers are small and positive; `libc` types them as `c_long`.
    let number = |number: libc::c_long| u32::try_from(number).unwrap_or(u32::MAX);
    Syscalls {
        read: number(libc::SYS_read),
        write: number(libc::SYS_write),
        readv: number(libc::SYS_readv),
        writev: number(libc::SYS_writev),
        sendto: number(libc::SYS_sendto),
        recvfrom: number(libc::SYS_recvfrom),
        sendmsg: number(libc::SYS_sendmsg),
        recvmsg: number(libc::SYS_recvmsg),
        sendmmsg: number(libc::SYS_sendmmsg),
        recvmmsg: number(libc::SYS_recvmmsg),
        sendfile: number(libc::SYS_sendfile),
        splice: number(libc::SYS_splice),
    }
}

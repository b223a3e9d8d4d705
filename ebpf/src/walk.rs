//! From a descriptor to its socket, for kernels before 6.3: task → files → fdt → file → socket.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_ktime_get_ns};
use ebpf_common::{config::Offsets, connection::Direction};

use crate::{
    buffer::{UserBuffer, buffer_of},
    connection::get_or_open,
    kernel::{is_followed, load, read},
    maps::{config, scratch},
    messages::{gather_messages, length_of_messages},
    segment::{Left, NOTHING, Segment, handle, is_of_interest},
    tap::receive_ended,
};

/// `S_IFMT` and `S_IFSOCK` of `i_mode`.
const FILE_TYPE: u16 = 0o170_000;
const SOCKET: u16 = 0o140_000;

/// `MSG_PEEK | MSG_ERRQUEUE`, `MSG_TRUNC`
const NOT_CONSUMED: u64 = 0x2 | 0x2000;
const DISCARDED: u64 = 0x20;

/// A call that moves bytes has returned `result`. A function of its own: see [`handle`].
#[inline(never)]
pub fn handle_exit(regs: u64, syscall: u32, mut direction: Direction, result: i64) -> Left {
    let config = config();
    let (offsets, syscalls) = (&config.offsets, &config.syscalls);
    if result < 0 && result != -104 {
        return NOTHING;
    }
    let thread = bpf_get_current_pid_tgid();
    if (thread >> 32) as u32 == config.agent_pid {
        return NOTHING;
    }
    let argument = |index: usize| -> u64 {
        // SAFETY: `regs` is the tracepoint's typed argument, the offset is that of `pt_regs`.
        unsafe { load(regs, offsets.regs_args[index]) }
    };
    let flags = if syscall == syscalls.recvmsg {
        argument(2)
    } else if syscall == syscalls.recvfrom || syscall == syscalls.recvmmsg {
        argument(3)
    } else {
        0
    };
    if flags & NOT_CONSUMED != 0 {
        return NOTHING;
    }
    let mut sock = socket_of(offsets, argument(0));
    if syscall == syscalls.splice {
        // From the first descriptor to the third argument's.
        if sock != 0 {
            direction = Direction::Ingress;
        } else {
            sock = socket_of(offsets, argument(2));
        }
    }
    if sock == 0 {
        return NOTHING;
    }
    let family: u16 = read(sock, offsets.sock_family);
    if !is_followed(family, read(sock, offsets.sock_type)) {
        return NOTHING;
    }
    if result <= 0 {
        if matches!(direction, Direction::Ingress) {
            receive_ended(sock, result as i32);
        }
        return NOTHING;
    }
    let mut len = result as u64;
    let Some(scratch) = scratch(Direction::Ingress as u32) else {
        return NOTHING;
    };
    let is_several = syscall == syscalls.sendmmsg || syscall == syscalls.recvmmsg;
    if is_several {
        len = length_of_messages(argument(1), result as u64);
    }
    let buffer = if flags & DISCARDED != 0 {
        UserBuffer::NONE
    } else if is_several && result > 1 {
        gather_messages(argument(1), result as u64, scratch)
    } else {
        buffer_of(regs, syscall, scratch)
    };
    let buffer = buffer.forget(scratch);
    if let Some(state) = get_or_open(sock, family, scratch)
        && is_of_interest(state)
    {
        if matches!(direction, Direction::Ingress) {
            // What `splice` reads is seen here: nothing is read past this tap.
            // SAFETY: the map's own element, which was looked up just now.
            unsafe { (*state).copied_seq = read(sock, offsets.tcp_copied_seq) };
        }
        // SAFETY: no arguments.
        let time_ns = unsafe { bpf_ktime_get_ns() };
        return handle(&Segment {
            socket: sock,
            state,
            thread,
            direction,
            len,
            read_past: 0,
            time_ns,
            buffer,
            scratch,
        });
    }
    NOTHING
}

/// The `struct sock` behind a descriptor of the current process; 0 where it is no socket.
#[inline(always)]
fn socket_of(offsets: &Offsets, descriptor: u64) -> u64 {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let files: u64 = read(task, offsets.task_files);
    let table: u64 = read(files, offsets.files_fdt);
    let size: u32 = read(table, offsets.fdtable_max_fds);
    let descriptor = descriptor & 0xffff_ffff;
    if descriptor >= u64::from(size) {
        return 0;
    }
    let array: u64 = read(table, offsets.fdtable_fd);
    let file: u64 = read(array + descriptor * 8, 0);
    let inode: u64 = read(file, offsets.file_inode);
    if read::<u16>(inode, offsets.inode_mode) & FILE_TYPE != SOCKET {
        return 0;
    }
    let socket: u64 = read(file, offsets.file_private_data);
    read(socket, offsets.socket_sk)
}

//! Reading kernel structures at the offsets that the agent found in BTF.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use ebpf_common::{
    config::{MISSING, Offsets},
    connection::family,
};

/// `SOCK_STREAM`
const STREAM: u16 = 1;

/// Types of which every bit pattern is a value.
///
/// # Safety
/// As the name says: integers and arrays of them.
pub unsafe trait Plain: Copy {}
// SAFETY: integers.
unsafe impl Plain for u8 {}
// SAFETY: integers.
unsafe impl Plain for u16 {}
// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for i32 {}
// SAFETY: integers.
unsafe impl Plain for u64 {}
// SAFETY: arrays of plain elements have no padding.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Reads a `T` at `base + offset`; zero where that fails, as a null pointer on the way does.
#[inline(always)]
pub fn read<T: Plain>(base: u64, offset: u32) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the address, and fills the value with zeroes where it cannot read
    // it (kernel/trace/bpf_trace.c, bpf_probe_read_kernel_common). Not asking for the result keeps
    // the verifier from following two paths.
    unsafe {
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            (base + u64::from(offset)) as *const _,
        );
        value.assume_init()
    }
}

/// Reads a `T` at `base + offset` with a plain load.
///
/// # Safety
/// `base` must be a pointer that the verifier knows by its BTF type (an argument of a `tp_btf`
/// program), and `offset` a constant of [`Offsets`] for that type.
#[inline(always)]
pub unsafe fn load<T: Copy>(base: u64, offset: u32) -> T {
    // SAFETY: the verifier checks the access against the type; a fault reads as zero.
    unsafe { core::ptr::read_volatile((base as *const u8).add(offset as usize).cast()) }
}

/// Whether a socket of this family and type is one that the tap follows.
#[inline(always)]
pub const fn is_followed(family: u16, socket_type: u16) -> bool {
    socket_type == STREAM && matches!(family, family::INET | family::INET6 | family::UNIX)
}

/// The inode number of a socket: 0 once its file is gone.
#[inline(always)]
pub fn socket_inode(offsets: &Offsets, sock: u64) -> u64 {
    let socket: u64 = read(sock, offsets.sock_socket);
    if socket == 0 {
        return 0;
    }
    read(
        socket + u64::from(offsets.socket_to_inode),
        offsets.inode_number,
    )
}

/// `RCV_SHUTDOWN` of `sk_shutdown`: the peer will send no more.
pub const RECEIVE_SHUTDOWN: u8 = 1;
/// `SHUTDOWN_MASK`: on a Unix socket, the peer is gone.
pub const SHUTDOWN_MASK: u8 = 3;

/// `sk_shutdown`; where the kernel keeps it in a bit field, a read of nothing is the end of file.
#[inline(always)]
pub fn shutdown(offsets: &Offsets, sock: u64) -> u8 {
    if offsets.sock_shutdown == MISSING {
        return RECEIVE_SHUTDOWN;
    }
    read(sock, offsets.sock_shutdown)
}

//! Which message of a `sendmmsg` or `recvmmsg` the bytes are that move right now.
//!
//! The tap runs once a message. Nothing in the kernel tells which one it is, but they come in order
//! and a thread is in one call at a time: it is the one after the last, until the call is known to
//! have ended. A call ends with its last message, with an error (the tap sees those too), and with a
//! message that was sent in part (`__sys_sendmmsg`, net/socket.c). A place that is remembered from a
//! call that ended otherwise is found out by the length that the kernel writes behind each message
//! that it has done.
//!
//! The walk runs once a call, when all is done: to it the messages are one buffer of many pieces.

use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};

use crate::{
    buffer::{MAX_VECTOR, UserBuffer, read_user},
    maps::{Scratch, scratch_at},
};

/// `sizeof(struct mmsghdr)`, and where its `msg_len` is.
const MMSGHDR_BYTES: u64 = 64;
const MMSGHDR_LEN: u64 = 56;

/// The kernel takes no more messages at a time (`UIO_MAXIOV`).
const MAX_MESSAGES: u64 = 1024;

/// Where a thread is in its call.
#[repr(C)]
#[derive(Clone, Copy)]
struct Place {
    socket: u64,
    /// Address of the array of `struct mmsghdr`.
    messages: u64,
    /// Messages done.
    done: u32,
    /// Bytes of the last one.
    last_bytes: u32,
}

/// Places by thread: of those that are in such a call, few at a time.
#[btf_map]
static PLACES: LruHashMap<u64, Place, 512> = LruHashMap::new();

/// The buffer of the message of which `len` bytes move right now, in a call of `thread` with `count`
/// messages at `messages`.
#[inline(always)]
pub fn buffer_of_message(
    thread: u64,
    socket: u64,
    [messages, count]: [u64; 2],
    len: u64,
    is_sent: bool,
    scratch: *mut Scratch,
) -> UserBuffer {
    let mut done = 0;
    if let Some(place) = PLACES.get_ptr_mut(thread) {
        // SAFETY: the map's own element, of a thread that runs here.
        let place = unsafe { &*place };
        let before = messages + (u64::from(place.done).wrapping_sub(1)) * MMSGHDR_BYTES;
        if place.socket == socket
            && place.messages == messages
            && place.done > 0
            && read_user::<u32>(before + MMSGHDR_LEN) == place.last_bytes
        {
            done = u64::from(place.done);
        }
    }
    let done = Scratch::forget(scratch, done);
    let buffer = UserBuffer::of_message(messages + done * MMSGHDR_BYTES, scratch);
    let ended =
        done + 1 >= count || done + 1 >= MAX_MESSAGES || is_sent && room_of(&buffer, scratch) > len;
    if ended {
        let _ = PLACES.remove(thread);
    } else {
        let place = Place {
            socket,
            messages,
            done: done as u32 + 1,
            last_bytes: len as u32,
        };
        let _ = PLACES.insert(thread, place, 0);
    }
    buffer
}

/// The call of `thread` has failed.
#[inline(always)]
pub fn end_call(thread: u64) {
    let _ = PLACES.remove(thread);
}

/// Most messages whose lengths are added up.
const MAX_ADDED: u64 = 64;

/// Steps from piece to piece and from message to message.
const MAX_STEPS: u32 = 48;

/// Bytes of the first `count` messages, which are done.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn length_of_messages(messages: u64, count: u64) -> u64 {
    let mut sum = 0;
    let mut index = 0;
    while index < MAX_ADDED {
        if index >= count {
            break;
        }
        sum += u64::from(read_user::<u32>(
            messages + index * MMSGHDR_BYTES + MMSGHDR_LEN,
        ));
        index += 1;
    }
    sum
}

/// The buffer of the first `count` messages together.
#[inline(always)]
pub fn gather_messages(messages: u64, count: u64, scratch: *mut Scratch) -> UserBuffer {
    // SAFETY: this CPU's scratch record.
    let rest = unsafe { &mut (*scratch).rest };
    rest.base = messages;
    rest.pieces = 0;
    rest.until = count;
    rest.position = 0;
    rest.last = 0;
    rest.len = 0;
    let mut step = 0;
    while step < MAX_STEPS {
        // SAFETY: as above.
        if gather_piece(unsafe { (*scratch).index }) == 0 {
            break;
        }
        step += 1;
    }
    // SAFETY: as above; a volatile read, for another function wrote it.
    let pieces = unsafe { (&raw const (*scratch).rest.pieces).read_volatile() };
    UserBuffer::of_pieces(pieces)
}

/// Adds the next piece to the vector in the scratch, or goes to the next message; 0 at the end. In
/// `Scratch::rest`: messages at `base`, `position` of `until` done, of the present one `len` bytes
/// left and `last` pieces taken.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn gather_piece(index: u32) -> u32 {
    let Some(scratch) = scratch_at(index) else {
        return 0;
    };
    // SAFETY: this CPU's scratch record.
    let (rest, vector) = unsafe { (&mut (*scratch).rest, &raw mut (*scratch).vector) };
    if rest.position >= rest.until || rest.pieces >= MAX_VECTOR {
        return 0;
    }
    let message = rest.base + rest.position * MMSGHDR_BYTES;
    if rest.last == 0 {
        rest.len = u64::from(read_user::<u32>(message + MMSGHDR_LEN));
    }
    let [pieces, count]: [u64; 2] = read_user(message + 16);
    if rest.len > 0 && rest.last < count {
        let [base, len]: [u64; 2] = read_user(pieces + rest.last * 16);
        let used = if len < rest.len { len } else { rest.len };
        let at = core::hint::black_box(rest.pieces);
        if at < MAX_VECTOR {
            // SAFETY: as above; an element of the vector.
            unsafe { (*vector)[at as usize] = [base, used] };
        }
        rest.pieces += 1;
        rest.last += 1;
        rest.len -= used;
        return 1;
    }
    rest.position += 1;
    rest.last = 0;
    1
}

/// Bytes of the vector in the scratch.
#[inline(always)]
fn room_of(buffer: &UserBuffer, scratch: *mut Scratch) -> u64 {
    let (_, pieces) = buffer.parts();
    let mut sum = 0u64;
    let mut index = 0;
    while index < MAX_VECTOR {
        if index >= pieces {
            break;
        }
        // SAFETY: this CPU's scratch record.
        sum = sum.wrapping_add(unsafe { (*scratch).vector[index as usize][1] });
        index += 1;
    }
    sum
}

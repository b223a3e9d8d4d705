//! Rules of Go's code, whose frames are told by the runtime's own table.

use ebpf_common::unwind::{UnwindRule, cfa_kind, fp_kind};

use super::rule::UNSUPPORTED;
use crate::go::GoFunction;

/// Changes of depth that are looked at to see whether a function has a frame.
const FRAME_PROBES: usize = 16;

/// The rules of a function, each from an address on.
pub(super) fn rules(function: GoFunction<'_, '_>) -> impl Iterator<Item = (u64, UnwindRule)> {
    let flags = function.flags();
    let kind = match function.name() {
        _ if is_signal_return(function) => Kind::SignalReturn,
        // It ends the goroutine's turn: what it calls is the scheduler, which has no caller.
        Some("runtime.mcall") => Kind::Top,
        // Called from C, whose registers it keeps where the table does not tell.
        Some("crosscall2") => Kind::Unknown,
        // The handler has a caller: see above.
        Some("runtime.sigtramp") => Kind::Usual,
        _ if flags.is_top() => Kind::Top,
        _ if !flags.switches_stack() => Kind::Usual,
        // Only one with a frame saves `rbp`.
        _ if has_frame(function) => Kind::Switches,
        _ => Kind::SwitchesBare,
    };
    let depths = function.stack_depths();
    let before = u64::from(kind == Kind::SignalReturn);
    depths.map(move |(address, depth)| (address.saturating_sub(before), rule(kind, depth)))
}

/// Is it what a signal handler returns to? No call stands before it, so that callers are looked for
/// at the byte before its first.
pub(super) fn is_signal_return(function: GoFunction<'_, '_>) -> bool {
    // The second name since Go 1.20.
    let names = ["runtime.sigreturn", "runtime.sigreturn__sigaction"];
    function.name().is_some_and(|name| names.contains(&name))
}

/// Only a function with a frame saves `rbp`.
fn has_frame(function: GoFunction<'_, '_>) -> bool {
    let mut depths = function.stack_depths().take(FRAME_PROBES);
    depths.any(|(_, depth)| depth > 0)
}

/// How a function treats the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Usual,
    Top,
    SignalReturn,
    Unknown,
    /// Goes to another stack, where `rsp` tells nothing of the caller; `rbp` goes on to point into
    /// the one that it came from.
    Switches,
    /// The same, without a frame of its own: `rbp` is its caller's, who is left out.
    SwitchesBare,
}

fn rule(kind: Kind, depth: i32) -> UnwindRule {
    let other_stack = UnwindRule::new(cfa_kind::OTHER_STACK, 0, 0, 0, 0);
    match kind {
        Kind::Top => UnwindRule::new(cfa_kind::OUTERMOST, 0, 0, 0, 0),
        Kind::SignalReturn => UnwindRule::new(cfa_kind::SIGNAL, 0, 0, 0, 0),
        Kind::Unknown => UNSUPPORTED,
        Kind::SwitchesBare => other_stack,
        Kind::Switches if depth > 0 => other_stack,
        Kind::Usual | Kind::Switches => match depth.checked_add(8) {
            Some(8) => UnwindRule::new(cfa_kind::SP, 8, fp_kind::SAME, 0, 0),
            // The compiler, and the assembler for functions with a frame, save `rbp` below the
            // return address.
            Some(cfa @ 16..) => UnwindRule::new(cfa_kind::SP, cfa, fp_kind::AT_CFA, -16, 0),
            _ => UNSUPPORTED,
        },
    }
}

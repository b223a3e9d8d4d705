//! The rules of addresses that were looked up before: the callers in a program's stacks are the same
//! addresses again and again, and to find the rule of one takes two thirds of a frame's time.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use ebpf_common::unwind::{KNOWN_RULES, UnwindRule};

/// [`KNOWN_RULES`] a CPU; the agent sets the capacity. A CPU's are used with interrupts off alone.
#[btf_map]
static UNWIND_KNOWN: Array<KnownRule, KNOWN_RULES> = Array::new();

/// The rule of an address, as long as the process is known by this version.
#[repr(C)]
pub struct KnownRule {
    address: u64,
    version: u32,
    padding: u32,
    pub rule: UnwindRule,
}

impl KnownRule {
    /// Where the rule of `address` is, if it is known at all.
    #[inline(always)]
    pub fn of(cpu: u32, version: u32, address: u64) -> Option<&'static mut Self> {
        // The upper bits of a product depend on all bits of its factors.
        let mixed = address.wrapping_mul(0x9E37_79B1_85EB_CA87) >> 32;
        let slot = (mixed as u32 ^ version) & (KNOWN_RULES as u32 - 1);
        let known = UNWIND_KNOWN.get_ptr_mut(cpu * KNOWN_RULES as u32 + slot)?;
        // SAFETY: this CPU's; programs that walk do not interrupt each other.
        Some(unsafe { &mut *known })
    }

    /// Is it this address's?
    #[inline(always)]
    pub fn is_of(&self, version: u32, address: u64) -> bool {
        self.address == address && self.version == version
    }

    /// Makes it this address's.
    #[inline(always)]
    pub fn set(&mut self, version: u32, address: u64, rule: UnwindRule) {
        self.address = address;
        self.version = version;
        self.rule = rule;
    }
}

//! Telltale's kernel programs: one object file. Read `maps.rs` first, then one module a probe.
#![no_std]
#![no_main]

mod buffer;
mod cluster;
mod connection;
mod delivery;
mod detect;
mod fentry;
mod kernel;
mod known;
mod log;
mod maps;
mod messages;
mod off_cpu;
mod process;
mod python;
mod queue;
mod rest;
mod ring;
mod sample;
mod segment;
mod tap;
mod tcp;
mod unwind;
mod v8;
mod walk;

/// The helpers that read kernel memory are for GPL-compatible programs alone.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier rejects a program that could get here.
    loop {}
}

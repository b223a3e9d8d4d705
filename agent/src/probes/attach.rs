//! Verifying and attaching: each probe by itself, so that a missing one is a fallback.

use aya::Ebpf;
use aya::programs::{BtfTracePoint, ProgramError};

use super::load::{ArrivalVariant, Loaded, TapVariant, privilege_hint};

/// A kernel program and what becomes of the agent without it.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Name of the program, of its section and of the tracepoint that it attaches to.
    pub tracepoint: &'static str,
    /// When it is attached.
    pub when: When,
    /// What it is for, in a few words.
    pub purpose: &'static str,
    /// What happens without it; `None` where the main job cannot be done.
    pub fallback: Option<&'static str>,
}

/// When a probe is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Always.
    Always,
    /// As a part of this tap.
    Tap(TapVariant),
    /// Where this tells of arrivals.
    Arrivals(ArrivalVariant),
}

/// Every probe of `telltale run`, in the order of attaching: what notes the end of things before
/// what lets them begin.
pub const PROBES: [Probe; 9] = [
    Probe {
        tracepoint: "sched_process_exec",
        when: When::Always,
        purpose: "new processes",
        fallback: Some("processes are found in /proc at their first exchange"),
    },
    Probe {
        tracepoint: "sched_process_exit",
        when: When::Always,
        purpose: "ended processes",
        fallback: Some("ended processes are found by a scan of /proc"),
    },
    Probe {
        tracepoint: "tcp_destroy_sock",
        when: When::Always,
        purpose: "end of TCP connections",
        fallback: None,
    },
    Probe {
        tracepoint: "inet_sock_set_state",
        when: When::Always,
        purpose: "resets, time-outs, half-closed connections",
        fallback: Some("a reset looks like an early end"),
    },
    Probe {
        tracepoint: ArrivalVariant::Socket.tracepoint(),
        when: When::Arrivals(ArrivalVariant::Socket),
        purpose: "queue time: arrival of requests",
        fallback: Some("no queue time"),
    },
    Probe {
        tracepoint: ArrivalVariant::Segment.tracepoint(),
        when: When::Arrivals(ArrivalVariant::Segment),
        purpose: "queue time: arrival of requests over TCP",
        fallback: Some("no queue time"),
    },
    Probe {
        tracepoint: "sock_send_length",
        when: When::Tap(TapVariant::Socket),
        purpose: "bytes sent",
        fallback: None,
    },
    Probe {
        tracepoint: "sock_recv_length",
        when: When::Tap(TapVariant::Socket),
        purpose: "bytes received",
        fallback: None,
    },
    Probe {
        tracepoint: "sys_exit",
        when: When::Tap(TapVariant::Walk),
        purpose: "bytes sent and received",
        fallback: None,
    },
];

/// What became of a probe.
#[derive(Debug)]
pub struct ProbeReport {
    /// Which.
    pub probe: Probe,
    /// Instructions that the verifier processed (kernels from 5.16 tell); the error otherwise.
    pub result: Result<Option<u32>, ProgramError>,
}

/// A probe without which nothing can be observed did not attach.
#[derive(Debug, thiserror::Error)]
#[error("cannot attach `{program}` ({purpose}): {source}{hint}", hint = privilege_hint(source))]
pub struct AttachError {
    /// The program.
    program: &'static str,
    /// What it is for.
    purpose: &'static str,
    /// What the kernel said.
    source: ProgramError,
}

/// Verifies and attaches every wanted probe, and tells what became of each.
///
/// # Errors
/// The first probe that has no fallback and cannot be attached.
pub fn attach(loaded: &mut Loaded) -> Result<Vec<ProbeReport>, AttachError> {
    let mut reports = Vec::with_capacity(PROBES.len());
    for probe in wanted(loaded) {
        let result = attach_one(&mut loaded.ebpf, &loaded.btf, probe.tracepoint);
        match result {
            Err(source) if probe.fallback.is_none() => {
                return Err(AttachError {
                    program: probe.tracepoint,
                    purpose: probe.purpose,
                    source,
                });
            }
            result => reports.push(ProbeReport { probe, result }),
        }
    }
    Ok(reports)
}

/// Verifies every wanted probe without attaching it: what `telltale check` shows.
pub fn verify(loaded: &mut Loaded) -> Vec<ProbeReport> {
    wanted(loaded)
        .map(|probe| ProbeReport {
            probe,
            result: verify_one(&mut loaded.ebpf, &loaded.btf, probe.tracepoint).map(|(_, n)| n),
        })
        .collect()
}

fn wanted(loaded: &Loaded) -> impl Iterator<Item = Probe> + use<> {
    let (tap, arrivals) = (loaded.tap, loaded.arrivals);
    PROBES.into_iter().filter(move |probe| match probe.when {
        When::Always => true,
        When::Tap(variant) => variant == tap,
        When::Arrivals(variant) => Some(variant) == arrivals,
    })
}

fn attach_one(ebpf: &mut Ebpf, btf: &aya::Btf, name: &str) -> Result<Option<u32>, ProgramError> {
    let (program, instructions) = verify_one(ebpf, btf, name)?;
    program.attach()?;
    Ok(instructions)
}

fn verify_one<'a>(
    ebpf: &'a mut Ebpf,
    btf: &aya::Btf,
    name: &str,
) -> Result<(&'a mut BtfTracePoint, Option<u32>), ProgramError> {
    let program: &mut BtfTracePoint = ebpf
        .program_mut(name)
        .ok_or(ProgramError::UnexpectedProgramType)?
        .try_into()?;
    program.load(name, btf)?;
    let instructions = program.info()?.verified_instruction_count();
    Ok((program, instructions))
}

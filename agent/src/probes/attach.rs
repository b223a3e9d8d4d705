//! Verifying and attaching: each probe by itself, so that a missing one is a fallback.

use aya::Ebpf;
use aya::programs::{BtfTracePoint, Program, ProgramError};

use super::load::{ArrivalVariant, Loaded, TapVariant, privilege_hint};

/// A kernel program and what becomes of the agent without it.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Name of the program, and of the tracepoint or the function that it attaches to.
    pub program: &'static str,
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
pub const PROBES: [Probe; 17] = [
    Probe {
        program: "sched_process_exec",
        when: When::Always,
        purpose: "new processes",
        fallback: Some("processes are found in /proc at their first exchange"),
    },
    Probe {
        program: "sched_process_exit",
        when: When::Always,
        purpose: "ended processes",
        fallback: Some("ended processes are found by a scan of /proc"),
    },
    Probe {
        program: "tcp_destroy_sock",
        when: When::Always,
        purpose: "end of TCP connections",
        fallback: None,
    },
    Probe {
        program: "inet_sock_set_state",
        when: When::Always,
        purpose: "resets, time-outs, half-closed connections",
        fallback: Some("a reset looks like an early end"),
    },
    fentry("inet_recvmsg", "bytes received, IPv4"),
    fentry("inet_sendmsg", "bytes sent, IPv4"),
    fentry(INET6[0], "bytes received, IPv6"),
    fentry(INET6[1], "bytes sent, IPv6"),
    fentry("unix_stream_recvmsg", "bytes received, Unix sockets"),
    fentry("unix_stream_sendmsg", "bytes sent, Unix sockets"),
    fentry("sock_splice_read", "bytes spliced from sockets"),
    fentry(SENDPAGE, "bytes of sendfile and splice"),
    Probe {
        program: ArrivalVariant::Socket.tracepoint(),
        when: When::Arrivals(ArrivalVariant::Socket),
        purpose: "queue time: arrival of requests",
        fallback: Some("no queue time"),
    },
    Probe {
        program: ArrivalVariant::Segment.tracepoint(),
        when: When::Arrivals(ArrivalVariant::Segment),
        purpose: "queue time: arrival of requests over TCP",
        fallback: Some("no queue time"),
    },
    Probe {
        program: "sock_send_length",
        when: When::Tap(TapVariant::Socket),
        purpose: "bytes sent",
        fallback: None,
    },
    Probe {
        program: "sock_recv_length",
        when: When::Tap(TapVariant::Socket),
        purpose: "bytes received",
        fallback: None,
    },
    Probe {
        program: "sys_exit",
        when: When::Tap(TapVariant::Walk),
        purpose: "bytes sent and received",
        fallback: None,
    },
];

/// The functions of IPv6, which a kernel may be without.
const INET6: [&str; 2] = ["inet6_recvmsg", "inet6_sendmsg"];
/// Until 6.4; later sendfile and splice send messages.
const SENDPAGE: &str = "sock_sendpage";

const fn fentry(program: &'static str, purpose: &'static str) -> Probe {
    Probe {
        program,
        when: When::Tap(TapVariant::Fentry),
        purpose,
        fallback: None,
    }
}

/// The functions that the fentry tap traces where they are there.
pub(super) fn functions() -> impl Iterator<Item = &'static str> {
    let probes = PROBES.into_iter();
    probes
        .filter(|probe| probe.when == When::Tap(TapVariant::Fentry))
        .map(|probe| probe.program)
}

/// Whether the fentry tap sees all sockets with those of its functions that a kernel names.
pub(super) fn functions_suffice(named: &[&str], has_ipv6: bool) -> bool {
    functions().all(|name| {
        named.contains(&name) || name == SENDPAGE || (INET6.contains(&name) && !has_ipv6)
    })
}

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

impl ProbeReport {
    /// Why the kernel refused it, in one line: the error, and where there is one the verifier's
    /// last word. Empty where it did not.
    #[must_use]
    pub fn reason(&self) -> String {
        match &self.result {
            Ok(_) => String::new(),
            Err(ProgramError::LoadError {
                io_error,
                verifier_log,
            }) => match last_word(&verifier_log.to_string()) {
                Some(word) => format!("{io_error}: {word}"),
                None => io_error.to_string(),
            },
            Err(error) => error.to_string(),
        }
    }

    /// Whether the main job cannot be done.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        self.result.is_err() && self.probe.fallback.is_none()
    }
}

/// What was attached.
#[derive(Debug)]
pub struct Attached {
    /// The tap in use.
    pub tap: TapVariant,
    /// A better tap, with the probe that the kernel refused.
    pub refused: Option<(TapVariant, ProbeReport)>,
    /// The probes of the tap in use, and those that are always wanted.
    pub probes: Vec<ProbeReport>,
}

/// Verifies and attaches every wanted probe. Of the taps that may fit, it is the first one that the
/// kernel takes.
///
/// # Errors
/// The first probe that has no fallback and cannot be attached.
pub fn attach(loaded: &mut Loaded) -> Result<Attached, AttachError> {
    let mut attached = attach_best(loaded);
    let fatal = attached.probes.iter().position(ProbeReport::is_fatal);
    match fatal.map(|index| attached.probes.swap_remove(index)) {
        Some(ProbeReport {
            probe,
            result: Err(source),
        }) => Err(AttachError {
            program: probe.program,
            purpose: probe.purpose,
            source,
        }),
        _ => Ok(attached),
    }
}

/// Does what [`attach`] does, errors and all, and undoes it at once: what `telltale check` shows.
/// Some kernels verify a program and refuse to attach it.
pub fn try_out(loaded: &mut Loaded) -> Attached {
    let attached = attach_best(loaded);
    for probe in PROBES {
        unload(&mut loaded.ebpf, probe.program);
    }
    attached
}

fn attach_best(loaded: &mut Loaded) -> Attached {
    let mut probes = attach_all(loaded, When::Always);
    if let Some(arrivals) = loaded.arrivals {
        probes.extend(attach_all(loaded, When::Arrivals(arrivals)));
    }
    let (best, other) = loaded.taps;
    let mut reports = attach_all(loaded, When::Tap(best));
    let fatal = reports.iter().position(ProbeReport::is_fatal);
    let (tap, refused) = match (fatal, other) {
        (Some(fatal), Some(other)) => {
            // Half a tap would count some bytes twice.
            for report in &reports {
                unload(&mut loaded.ebpf, report.probe.program);
            }
            let refused = reports.swap_remove(fatal);
            reports = attach_all(loaded, When::Tap(other));
            (other, Some((best, refused)))
        }
        _ => (best, None),
    };
    probes.extend(reports);
    Attached {
        tap,
        refused,
        probes,
    }
}

/// Attaches the probes of one kind, up to the first one of a tap that the kernel refuses.
fn attach_all(loaded: &mut Loaded, when: When) -> Vec<ProbeReport> {
    let mut reports = Vec::new();
    for probe in PROBES.into_iter().filter(|probe| probe.when == when) {
        if probe.program == SENDPAGE && !loaded.functions.contains(&SENDPAGE) {
            continue;
        }
        let result = attach_one(&mut loaded.ebpf, &loaded.btf, probe);
        let report = ProbeReport { probe, result };
        let is_the_end = report.is_fatal() && matches!(when, When::Tap(_));
        reports.push(report);
        if is_the_end {
            break;
        }
    }
    reports
}

fn attach_one(ebpf: &mut Ebpf, btf: &aya::Btf, probe: Probe) -> Result<Option<u32>, ProgramError> {
    let name = probe.program;
    let program = ebpf
        .program_mut(name)
        .ok_or(ProgramError::UnexpectedProgramType)?;
    let info = match program {
        Program::FExit(program) => {
            program.load(name, btf)?;
            program.attach()?;
            program.info()?
        }
        program => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load(name, btf)?;
            // For a time now and then: see `Programs::watch_arrivals`.
            if !matches!(probe.when, When::Arrivals(_)) {
                program.attach()?;
            }
            program.info()?
        }
    };
    Ok(info.verified_instruction_count())
}

/// Detaches a program, and takes it out of the kernel.
fn unload(ebpf: &mut Ebpf, name: &str) {
    // One that was not loaded cannot be unloaded.
    let _ = match ebpf.program_mut(name) {
        Some(Program::FExit(program)) => program.unload(),
        Some(Program::BtfTracePoint(program)) => program.unload(),
        _ => Ok(()),
    };
}

/// What the verifier says before its statistics.
fn last_word(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 3] = ["verification time", "stack depth", "processed"];
    log.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !STATISTICS.iter().any(|word| line.starts_with(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_verifiers_log_the_reason_is_left() {
        let log = "0: R1=ctx()\nR2 invalid mem access 'inv'\nverification time 5 usec\n\
                   stack depth 0+320\nprocessed 47498 insns (limit 1000000)\n\n";
        assert_eq!(last_word(log), Some("R2 invalid mem access 'inv'"));
        assert_eq!(last_word("\n"), None);
    }

    #[test]
    fn the_fentry_tap_may_lack_only_what_the_kernel_lacks() {
        let all: Vec<_> = functions().collect();
        assert!(functions_suffice(&all, true));
        let without = |missing: &[&str]| -> Vec<_> {
            let kept = all.iter().filter(|name| !missing.contains(name));
            kept.copied().collect()
        };
        assert!(functions_suffice(&without(&[SENDPAGE]), true));
        assert!(functions_suffice(&without(&INET6), false));
        assert!(!functions_suffice(&without(&INET6), true));
        assert!(!functions_suffice(&without(&["inet_sendmsg"]), true));
    }
}

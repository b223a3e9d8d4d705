//! `telltale check`: what this kernel lets the agent do, and what it does instead where not.

use std::fmt::Write as _;
use std::path::Path;

use crate::config::Tap;
use crate::probes::attach::{self, ProbeReport};
use crate::probes::load::{ArrivalVariant, LoadOptions, Loaded, TapVariant, load};
use crate::probes::sampler::{self, Variant};
use crate::probes::{btf, mounts};
use profile::v8::V8;

/// How a line of the table ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// There, and used.
    Ok,
    /// Not there; the agent does something else instead.
    Fallback,
    /// Not there, and the main job cannot be done without it.
    Failed,
}

impl Verdict {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Fallback => "fallback",
            Self::Failed => "FAILED",
        }
    }
}

struct Line {
    what: String,
    verdict: Verdict,
    detail: String,
}

/// What was found.
pub struct Report {
    lines: Vec<Line>,
    advice: Vec<String>,
}

impl Report {
    /// Whether the main job, observing sockets, can be done.
    #[must_use]
    pub fn is_able(&self) -> bool {
        self.lines
            .iter()
            .all(|line| line.verdict != Verdict::Failed)
    }

    /// The table as text, with what to do about each failure.
    #[must_use]
    pub fn to_text(&self) -> String {
        let width = |of: fn(&Line) -> usize| self.lines.iter().map(of).max().unwrap_or(0);
        let what = width(|line| line.what.len());
        let verdict = width(|line| line.verdict.as_str().len());
        let mut text = String::new();
        for line in &self.lines {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{:what$}  {:verdict$}  {}",
                line.what,
                line.verdict.as_str(),
                line.detail
            );
        }
        text.push('\n');
        for advice in &self.advice {
            let _ = writeln!(text, "to do: {advice}");
        }
        text.push_str(if self.is_able() {
            "telltale can run here\n"
        } else {
            "telltale cannot run here\n"
        });
        text
    }

    fn add(&mut self, what: impl Into<String>, verdict: Verdict, detail: impl Into<String>) {
        self.lines.push(Line {
            what: what.into(),
            verdict,
            detail: detail.into(),
        });
    }
}

/// Looks at everything that the agent needs. Attaches every program and detaches it at once.
#[must_use]
pub fn check(tap: Tap) -> Report {
    let mut report = Report {
        lines: Vec::new(),
        advice: Vec::new(),
    };
    report.add("kernel", Verdict::Ok, kernel_release());
    check_privileges(&mut report);
    check_kernel_btf(&mut report);
    for filesystem in mounts::WANTED {
        let (verdict, detail) = if filesystem.is_mounted() {
            (Verdict::Ok, "mounted".to_owned())
        } else {
            (
                Verdict::Fallback,
                "absent: `telltale run` mounts it where it may".to_owned(),
            )
        };
        report.add(filesystem.target, verdict, detail);
    }
    let options = LoadOptions {
        tap,
        queue_time: true,
        delivery_time: true,
        ..LoadOptions::MINIMAL
    };
    match load(&options) {
        Ok(mut loaded) => check_programs(&mut report, &mut loaded),
        Err(error) => report.add("kernel programs", Verdict::Failed, error.to_string()),
    }
    report
}

fn check_programs(report: &mut Report, loaded: &mut Loaded) {
    let attached = attach::try_out(loaded);
    if let Some((tap, refused)) = attached.refused {
        let (program, reason) = (refused.probe.program, refused.reason());
        let detail = format!("the kernel refuses {program} ({reason})");
        report.add(format!("tap {}", tap.as_str()), Verdict::Fallback, detail);
    }
    let (verdict, detail) = match attached.tap {
        TapVariant::Fentry => (
            Verdict::Ok,
            "fentry: the ends of the kernel's own functions",
        ),
        TapVariant::Socket => (Verdict::Ok, "socket: sock_send_length and sock_recv_length"),
        TapVariant::Walk => (
            Verdict::Fallback,
            "walk: sys_exit, from the descriptor to the socket; every system call pays for it",
        ),
    };
    report.add("tap", verdict, detail);
    let (verdict, detail) = match loaded.arrivals {
        Some(ArrivalVariant::Socket) => (Verdict::Ok, "sk_data_ready: TCP and Unix sockets"),
        Some(ArrivalVariant::Segment) => (
            Verdict::Fallback,
            "tcp_probe: TCP alone (Unix sockets need Linux 6.3)",
        ),
        None => (Verdict::Fallback, "none: the kernel has no such tracepoint"),
    };
    report.add("queue time", verdict, detail);
    for ProbeReport { probe, result } in attached.probes {
        let what = format!("program {}", probe.program);
        match (result, probe.fallback) {
            (Ok(instructions), _) => {
                let steps = verified(instructions);
                report.add(what, Verdict::Ok, format!("{}{steps}", probe.purpose));
            }
            (Err(error), Some(fallback)) => {
                report.add(what, Verdict::Fallback, format!("{fallback} ({error})"));
            }
            (Err(error), None) => report.add(what, Verdict::Failed, error.to_string()),
        }
    }
    match sampler::Sampler::new(&mut loaded.ebpf, &loaded.btf) {
        Ok(sampler) => {
            let Variant {
                has_loop,
                verified_steps,
                off_cpu,
            } = sampler.variant();
            let steps = verified(*verified_steps);
            let (verdict, how) = if *has_loop {
                (Verdict::Ok, "")
            } else {
                (
                    Verdict::Fallback,
                    " (without bpf_loop, which needs Linux 5.17)",
                )
            };
            let detail = format!("CPU profiles{how}{steps}");
            report.add("program sample", verdict, detail);
            let (verdict, detail) = match off_cpu {
                Ok(steps) => (Verdict::Ok, format!("off-CPU profiles{}", verified(*steps))),
                Err(error) => (
                    Verdict::Fallback,
                    format!("no off-CPU profiles, which need Linux 5.17 ({error})"),
                ),
            };
            report.add("program sched_switch", verdict, detail);
            report.add("frames of Python", Verdict::Ok, "CPython 3.8 to 3.14");
            report.add(
                "frames of Node",
                Verdict::Ok,
                format!(
                    "V8 {}; other code of JIT compilers by perf maps",
                    V8::versions()
                ),
            );
        }
        Err(error) => {
            report.add(
                "program sample",
                Verdict::Fallback,
                format!("no CPU profiles ({error})"),
            );
        }
    }
}

/// How large a program is to the verifier, where the kernel tells.
fn verified(steps: Option<u32>) -> String {
    steps.map_or(String::new(), |steps| format!(", {steps} steps verified"))
}

fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(
        |error| format!("unknown: {error}"),
        |text| text.trim().to_owned(),
    )
}

/// Bits of `CapEff` in `/proc/self/status` (`include/uapi/linux/capability.h`).
const CAPABILITIES: [(&str, u32, &str); 7] = [
    ("CAP_BPF", 39, "loads kernel programs"),
    ("CAP_PERFMON", 38, "attaches them and samples stacks"),
    ("CAP_SYS_PTRACE", 19, "reads /proc/PID of other users"),
    (
        "CAP_DAC_READ_SEARCH",
        2,
        "reads environments for service names, executables for symbols",
    ),
    ("CAP_SYSLOG", 34, "names kernel frames of profiles"),
    (
        "CAP_CHECKPOINT_RESTORE",
        40,
        "finds symbols of programs that were replaced while they run",
    ),
    (
        "CAP_SYS_ADMIN",
        21,
        "enables run-time statistics; stands in for CAP_BPF and CAP_PERFMON",
    ),
];

fn check_privileges(report: &mut Report) {
    let Some(effective) = effective_capabilities() else {
        report.add(
            "privileges",
            Verdict::Fallback,
            "cannot read /proc/self/status",
        );
        return;
    };
    let has = |bit: u32| effective >> bit & 1 == 1;
    let is_admin = has(21);
    for (name, bit, purpose) in CAPABILITIES {
        let verdict = match (has(bit), name) {
            (true, _) => Verdict::Ok,
            (false, "CAP_BPF" | "CAP_PERFMON") if !is_admin => Verdict::Failed,
            (false, _) => Verdict::Fallback,
        };
        report.add(name, verdict, purpose);
    }
    if !(is_admin || has(39) && has(38)) {
        report
            .advice
            .push("run as root (sudo telltale check), or grant CAP_BPF and CAP_PERFMON".into());
    }
}

fn effective_capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn check_kernel_btf(report: &mut Report) {
    if Path::new(btf::VMLINUX).exists() {
        report.add("BTF", Verdict::Ok, btf::VMLINUX);
    } else {
        report.add(
            "BTF",
            Verdict::Failed,
            format!("{} is absent", btf::VMLINUX),
        );
        report
            .advice
            .push("use a kernel built with CONFIG_DEBUG_INFO_BTF=y (5.10 or newer)".into());
    }
}

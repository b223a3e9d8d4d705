//! The agent's own process, and which agent it is.

use prometheus::core::Collector;
use prometheus::{Counter, Gauge, IntGaugeVec, Opts, Registry};

use super::OnScrape;

pub(super) fn register_build_info(registry: &Registry) -> Result<(), prometheus::Error> {
    let info = IntGaugeVec::new(
        Opts::new(
            "telltale_build_info",
            "Always 1; the version is in the label.",
        ),
        &["version"],
    )?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    registry.register(Box::new(info))
}

/// The `process_*` metrics that every Prometheus client library has, from `/proc/self`.
pub(super) fn register_process(registry: &Registry) -> Result<(), prometheus::Error> {
    let cpu = Counter::new(
        "process_cpu_seconds_total",
        "CPU time of the agent, user and system.",
    )?;
    let gauges = [
        (
            "process_resident_memory_bytes",
            "Resident memory of the agent.",
        ),
        (
            "process_virtual_memory_bytes",
            "Virtual memory of the agent.",
        ),
        (
            "process_open_fds",
            "File descriptors that the agent holds open.",
        ),
        (
            "process_max_fds",
            "File descriptors that the agent may hold open.",
        ),
        ("process_threads", "Threads of the agent."),
        (
            "process_start_time_seconds",
            "When the agent started, seconds since the epoch.",
        ),
    ];
    let mut made = Vec::with_capacity(gauges.len());
    for (name, help) in gauges {
        made.push(Gauge::new(name, help)?);
    }
    let mut parts: Vec<Box<dyn Collector>> = vec![Box::new(cpu.clone())];
    parts.extend(
        made.iter()
            .map(|gauge| Box::new(gauge.clone()) as Box<dyn Collector>),
    );
    registry.register(Box::new(OnScrape::new(parts, move || {
        let Some(usage) = ProcessUsage::read() else {
            return;
        };
        cpu.inc_by((usage.cpu_seconds - cpu.get()).max(0.0));
        for (gauge, value) in made.iter().zip(usage.gauges) {
            gauge.set(value);
        }
    })))
}

struct ProcessUsage {
    cpu_seconds: f64,
    /// In the order of the names in [`register_process`].
    gauges: [f64; 6],
}

impl ProcessUsage {
    /// `None` where `/proc` cannot be read; the metrics then keep their last values.
    fn read() -> Option<Self> {
        let process = procfs::process::Process::myself().ok()?;
        let stat = process.stat().ok()?;
        let ticks_per_second = procfs::ticks_per_second() as f64;
        let open_fds = process.fd_count().ok()?;
        let max_fds = match process.limits().ok()?.max_open_files.soft_limit {
            procfs::process::LimitValue::Unlimited => f64::INFINITY,
            procfs::process::LimitValue::Value(limit) => limit as f64,
        };
        let boot_seconds = procfs::boot_time_secs().ok()?;
        Some(Self {
            cpu_seconds: (stat.utime + stat.stime) as f64 / ticks_per_second,
            gauges: [
                stat.rss as f64 * procfs::page_size() as f64,
                stat.vsize as f64,
                open_fds as f64,
                max_fds,
                stat.num_threads as f64,
                boot_seconds as f64 + stat.starttime as f64 / ticks_per_second,
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn the_agent_tells_its_own_memory_and_start() {
        let registry = Registry::new();
        register_process(&registry).unwrap();
        let value = |name: &str| -> f64 {
            let told = TextEncoder::new()
                .encode_to_string(&registry.gather())
                .unwrap();
            let line = told
                .lines()
                .find(|line| line.starts_with(&format!("{name} ")));
            line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let age = now.as_secs_f64() - value("process_start_time_seconds");
        assert!(
            (-2.0..600.0).contains(&age),
            "the agent is {age} seconds old"
        );
    }
}

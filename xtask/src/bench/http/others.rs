//! Servers that do not speak HTTP, at full rate: the agent has nothing to tell of them, and should
//! cost them nothing.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::Setting;
use crate::bench::agent::{Agent, rest};
use crate::bench::figure::{Figure, Reach};
use crate::bench::pairs::{Ratios, in_turn, median};
use crate::bench::processors::pinned;
use crate::bench::server::{Kept, free_address, wait_for};
use crate::command::output;
use crate::host;

const REDIS_CONNECTIONS: u32 = 32;
const POSTGRES_CONNECTIONS: u32 = 8;
/// pgbench makes 100,000 rows of each: all of them fit into the server's buffers.
const POSTGRES_SCALE: u32 = 5;
/// Where Debian puts each version of PostgreSQL.
const POSTGRES_VERSIONS: &str = "/usr/lib/postgresql";
/// PostgreSQL refuses to run as root; Debian's package makes this user.
const POSTGRES_USER: &str = "postgres";

/// redis-server under redis-benchmark.
///
/// # Errors
/// When the agent or the server does not start or answer.
pub(super) fn redis(setting: &Setting) -> Result<Vec<Figure>> {
    let address = free_address()?;
    let folder = tempfile::Builder::new()
        .prefix("telltale-bench-")
        .tempdir()?;
    let _server = start(
        pinned(&setting.processors.server, "redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--port", &address.port().to_string(), "--dir"])
            .arg(folder.path()),
        folder.path(),
    )?;
    let load = |requests: u64| -> Result<f64> {
        let report = output(
            pinned(&setting.processors.load, "redis-benchmark")
                .args(["-h", "127.0.0.1", "-p", &address.port().to_string()])
                .args(["-t", "get", "--csv", "-c", &REDIS_CONNECTIONS.to_string()])
                .args(["-n", &requests.to_string()]),
        )?;
        redis_per_second(&report).with_context(|| format!("redis-benchmark wrote:\n{report}"))
    };
    wait_for("redis-server", || Ok(TcpStream::connect(address)?))?;
    let per_second = load(50_000)?;
    let requests = (per_second * f64::from(setting.seconds)) as u64;
    let name = format!("redis-server, GET, {REDIS_CONNECTIONS} connections");
    Ok(vec![compare(setting, &name, || load(requests))?])
}

/// PostgreSQL under `pgbench -S`.
///
/// # Errors
/// When the agent or the server does not start or answer.
pub(super) fn postgres(setting: &Setting) -> Result<Vec<Figure>> {
    let programs = postgres_programs()?;
    let folder = tempfile::Builder::new()
        .prefix("telltale-bench-")
        .tempdir()?;
    let data = folder.path().join("data");
    fs::create_dir(&data)?;
    let owner = output(Command::new("id").args(["-u", POSTGRES_USER]))?;
    for path in [folder.path(), &data] {
        let group = path.metadata()?.gid();
        chown(path, Some(owner.trim().parse()?), Some(group))?;
    }
    let as_owner = |program: &str| {
        let mut command = pinned(&setting.processors.server, "setpriv");
        command
            .args(["--reuid", POSTGRES_USER, "--clear-groups"])
            .arg(programs.join(program))
            .current_dir(folder.path());
        command
    };
    output(
        as_owner("initdb")
            .args(["--auth", "trust", "--no-sync", "--pgdata"])
            .arg(&data),
    )?;
    let address = free_address()?;
    let port = address.port().to_string();
    let server = start(
        as_owner("postgres")
            .args(["-h", "127.0.0.1", "-p", &port, "-k"])
            .arg(folder.path())
            .args(["-c", "fsync=off", "-D"])
            .arg(&data),
        folder.path(),
    )?;
    let bench = |flags: &[&str]| {
        output(
            pinned(&setting.processors.load, "pgbench")
                .args(["-h", "127.0.0.1", "-p", &port, "-U", POSTGRES_USER])
                .args(flags)
                .arg("postgres"),
        )
    };
    let scale = POSTGRES_SCALE.to_string();
    wait_for("postgres", || {
        bench(&["--initialize", "--quiet", "--scale", &scale])
    })?;
    let clients = POSTGRES_CONNECTIONS.to_string();
    let seconds = setting.seconds.to_string();
    let load = || -> Result<f64> {
        let report = bench(&["-S", "-n", "-M", "prepared", "-c", &clients, "-T", &seconds])?;
        postgres_per_second(&report).with_context(|| format!("pgbench wrote:\n{report}"))
    };
    load()?;
    let name = format!("postgres, pgbench -S, {POSTGRES_CONNECTIONS} connections");
    let figure = compare(setting, &name, load);
    // SIGINT is its fast shutdown, which ends its children too.
    output(Command::new("kill").args(["-INT", &server.0.id().to_string()]))?;
    wait_for("the end of postgres", || {
        ensure!(
            TcpStream::connect(address).is_err(),
            "postgres still accepts"
        );
        Ok(())
    })?;
    Ok(vec![figure?])
}

fn start(command: &mut Command, folder: &Path) -> Result<Kept> {
    let log = File::create(folder.join("output.log"))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start the server")?;
    Ok(Kept(child))
}

/// Requests a second with the agent and without.
fn compare(setting: &Setting, what: &str, load: impl Fn() -> Result<f64>) -> Result<Figure> {
    let pairs = in_turn(
        setting.pairs,
        || {
            rest();
            load()?;
            load()
        },
        || {
            let agent = Agent::start(&setting.agent, &setting.processors.agent, "")?.past_samples();
            load()?;
            let per_second = load()?;
            agent.stop()?;
            eprintln!("{what}: {per_second:.0} requests/s");
            Ok(per_second)
        },
    )?;
    let each = || pairs.iter().map(|pair| (pair.without, pair.with));
    let ratios = Ratios::of(each());
    let without = median(each().map(|(without, _)| without));
    let with = median(each().map(|(_, with)| with));
    let figure = Figure::new(
        format!("{what}: throughput on/off"),
        ratios.median,
        "",
        format!("{ratios}: {without:.0} → {with:.0} requests/s"),
    );
    Ok(figure.reach(Reach::AtLeast(0.98)))
}

/// `"GET","151515.16",…`, below a line of names.
fn redis_per_second(report: &str) -> Result<f64> {
    let line = report
        .lines()
        .find(|line| line.starts_with("\"GET\""))
        .context("no line of GET")?;
    let rate = line.split(',').nth(1).context("no requests a second")?;
    Ok(rate.trim_matches('"').parse()?)
}

/// `tps = 21233.12 (without initial connection time)`.
fn postgres_per_second(report: &str) -> Result<f64> {
    let rate = report
        .lines()
        .find_map(|line| line.strip_prefix("tps = "))
        .context("no transactions a second")?;
    let (rate, _) = rate.split_once(' ').unwrap_or((rate, ""));
    Ok(rate.parse()?)
}

/// The folder with `initdb` and `postgres` of the newest version here.
fn postgres_programs() -> Result<PathBuf> {
    if let Some(path) = host::find("initdb") {
        return Ok(path.parent().map(Path::to_path_buf).unwrap_or_default());
    }
    let versions = fs::read_dir(POSTGRES_VERSIONS).context(POSTGRES_VERSIONS)?;
    versions
        .filter_map(Result::ok)
        .map(|version| version.path().join("bin"))
        .filter(|programs| programs.join("initdb").exists())
        .max()
        .with_context(|| format!("no initdb below {POSTGRES_VERSIONS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_from_the_reports() {
        let redis = "\"test\",\"rps\",\"avg_latency_ms\"\n\"GET\",\"151515.16\",\"0.110\"\n";
        assert_eq!(redis_per_second(redis).unwrap(), 151_515.16);
        let postgres = "scaling factor: 5\ntps = 21233.12 (without initial connection time)\n";
        assert_eq!(postgres_per_second(postgres).unwrap(), 21_233.12);
        assert!(redis_per_second("").is_err());
        assert!(postgres_per_second("").is_err());
    }
}

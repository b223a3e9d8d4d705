//! `telltale profile`: one CPU profile, without a running agent.

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use profile::{Kind, Profile};

use crate::cli::ProfileArgs;
use crate::config::{Config, ConfigError};
use crate::probes::load::{LoadOptions, load};
use crate::probes::sampler::Sampler;
use crate::process::ProcessTable;
use crate::profiler::{ProfileRequest, ProfileTime, Profiler, Selector, Target, WorkFilter};
use crate::sink::profile_format::ProfileFormat;
use crate::start::{self, WatchedRequests};
use crate::symbolize::jit::is_mark;

/// Takes the profile and writes it to the file.
///
/// # Errors
/// A [`ConfigError::Usage`] for flags that can't be followed (exit status 2), anything else for
/// what went wrong (exit status 1). Each reads as one line.
pub async fn run(args: &ProfileArgs) -> anyhow::Result<()> {
    let format = ProfileFormat::of_file(&args.output).ok_or_else(|| {
        let name = args.output.display();
        ConfigError::Usage(format!(
            "--output is `{name}`: the name has to end in .pb.gz (pprof), .svg (flamegraph), \
             .folded or .json (speedscope)"
        ))
    })?;
    let duration = Duration::from_secs(args.seconds);
    let request = ProfileRequest {
        selector: Selector {
            target: target(args)?,
            thread: args.thread.clone(),
            work: WorkFilter {
                route: args.route.clone(),
                method: args.method.clone(),
                operation: args.operation.clone(),
            },
        },
        time: if args.off_cpu {
            ProfileTime::Waits {
                duration,
                min: Duration::from_micros(u64::from(args.min_us)),
            }
        } else {
            ProfileTime::Next {
                duration,
                hz: args.hz,
            }
        },
    };
    let invalid = |error| ConfigError::Usage(format!("--{error}"));
    request.selector.validate().map_err(invalid)?;
    let nothing = nothing(args);
    let name = args.output.display();
    let cannot_write = || format!("cannot write `{name}`");
    // Before anything is sampled: a folder that can't be written to is the commonest mistake.
    // What is in the file stays there until there is something better.
    let is_new = !args.output.exists();
    let mut file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&args.output)
        .with_context(cannot_write)?;
    let taken = tokio::select! {
        taken = take(request, duration, format) => taken,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
    };
    let written = taken.and_then(|(profile, bytes)| {
        file.set_len(0)
            .and_then(|()| file.write_all(&bytes))
            .with_context(cannot_write)?;
        Ok(profile)
    });
    match written {
        Ok(profile) => {
            println!("{}", summary(&profile, &args.output, nothing));
            Ok(())
        }
        Err(error) => {
            // An empty file would look like a profile.
            if is_new {
                let _ = fs::remove_file(&args.output);
            }
            Err(error)
        }
    }
}

/// What the flags mean.
fn target(args: &ProfileArgs) -> Result<Target, ConfigError> {
    let mut named = [
        args.pid.map(Target::Pid),
        args.tid.map(Target::Tid),
        args.service.clone().map(Target::Service),
        args.container.clone().map(Target::Container),
        args.cgroup.clone().map(Target::Cgroup),
        args.all.then_some(Target::All),
    ]
    .into_iter()
    .flatten();
    match (named.next(), named.next()) {
        (Some(target), None) => Ok(target),
        _ => Err(ConfigError::Usage(
            "one of --pid, --tid, --service, --container, --cgroup and --all is needed".to_owned(),
        )),
    }
}

async fn take(
    request: ProfileRequest,
    duration: Duration,
    format: ProfileFormat,
) -> anyhow::Result<(Profile, Vec<u8>)> {
    let title = request.to_string();
    let bar = progress_bar(duration);
    let watches_requests = !request.selector.work.is_any();
    let started = tokio::task::spawn_blocking(move || start(watches_requests));
    let (profiler, _watched) = started.await.context("cannot start the profiler")??;
    let profile = {
        let collecting = profiler.collect(request);
        tokio::pin!(collecting);
        let begin = Instant::now();
        let mut redraw = tokio::time::interval(Duration::from_millis(100));
        loop {
            tokio::select! {
                profile = &mut collecting => break profile?,
                _ = redraw.tick() => {
                    bar.set_position(u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX));
                }
            }
        }
    };
    bar.finish_and_clear();
    let bytes = format
        .encode(&profile, &title)
        .context("cannot encode the profile")?;
    Ok((profile, bytes))
}

/// Loads the kernel side, of which only the sampler is used, unless requests are watched too.
fn start(watches_requests: bool) -> anyhow::Result<(Profiler, Option<WatchedRequests>)> {
    let config = Config::default();
    let mut loaded = load(&if watches_requests {
        start::load_options_for_requests(&config)
    } else {
        LoadOptions::MINIMAL
    })?;
    let sampler = Sampler::new(&mut loaded.ebpf, &loaded.btf)?;
    let processes = Arc::new(ProcessTable::default());
    processes.scan();
    let watched = watches_requests.then(|| WatchedRequests::start(loaded, &config, &processes));
    let (source, watched) = watched.transpose()?.unzip();
    let profiler = Profiler::new(sampler, processes, None, None, source);
    Ok((profiler.context("cannot start a thread")?, watched))
}

/// Drawn on a terminal alone.
fn progress_bar(duration: Duration) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {percent:>3} %")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(millis)
        .with_style(style)
        .with_message("sampling")
}

/// What a profile without samples means.
const fn nothing(args: &ProfileArgs) -> &'static str {
    let is_of_work = args.route.is_some() || args.method.is_some() || args.operation.is_some();
    match (is_of_work, args.thread.is_some(), args.off_cpu) {
        (true, ..) => "nothing that was sampled is proven to be of such a request",
        (false, true, false) => "no thread of that name ran on a CPU",
        (false, true, true) => "no thread of that name waited",
        (false, false, false) => "it did not run on a CPU",
        (false, false, true) => "it did not wait",
    }
}

/// One line on what was written.
fn summary(profile: &Profile, output: &Path, nothing: &str) -> String {
    let unnamed = profile
        .frames
        .iter()
        .filter(|frame| frame.functions.iter().all(|named| is_mark(&named.name)))
        .count();
    let counted = profile.sample_count();
    let counted = match profile.kind {
        Kind::Cpu => format!("{counted} samples"),
        Kind::OffCpu => format!(
            "{:.3} s of waiting",
            counted as f64 * 1e-9 * profile.period_ns as f64
        ),
    };
    let mut line = format!(
        "{}: {counted}, {} stacks, {} of {} frames named",
        output.display(),
        profile.samples.len(),
        profile.frames.len() - unnamed,
        profile.frames.len(),
    );
    if let Some(lost) = profile.lost() {
        line.push_str(&format!(", {lost}"));
    }
    if profile.samples.is_empty() {
        line.push_str(&format!(" ({nothing} while it was watched)"));
    }
    line
}

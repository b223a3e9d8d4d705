//! Parameters of the profile endpoints: which samples, of which time.

use std::time::{Duration, SystemTime};

use profile::Kind;

use crate::config::ProfileConfig;
use crate::profiler::{ProfileRequest, ProfileTime, SHORTEST_WAIT, Selector, Target, WorkFilter};

/// How long a profile lasts when nobody says.
const DEFAULT_SECONDS: u64 = 30;

/// Samples a second and CPU when nobody says.
const DEFAULT_HZ: u32 = 99;

/// Begin of a range of which only the end is said: that long before it.
const DEFAULT_RANGE: Duration = Duration::from_secs(300);

/// Parameters that say which samples are meant and of which time.
pub(super) const ALLOWED: &str = "seconds, hz, from, to, type, min_us, pid, tid, service, container, cgroup, thread, route, method, operation";

/// What was said of one profile; what was not said is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    target: Option<Target>,
    thread: Option<String>,
    work: WorkFilter,
    seconds: Option<u64>,
    hz: Option<u32>,
    kind: Option<Kind>,
    min_us: Option<u32>,
    from: Option<SystemTime>,
    to: Option<SystemTime>,
}

impl Asked {
    /// Takes in a parameter. `false` for one that is not known here.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub(super) fn take(&mut self, key: &str, value: &str, now: SystemTime) -> Result<bool, String> {
        let target = match key {
            "seconds" => {
                self.seconds = Some(number(key, value)?);
                return Ok(true);
            }
            "hz" => {
                self.hz = Some(number(key, value)?);
                return Ok(true);
            }
            "type" => {
                self.kind = Some(match value {
                    "cpu" => Kind::Cpu,
                    "off_cpu" => Kind::OffCpu,
                    _ => return Err(format!("type is {value:?}; allowed: cpu, off_cpu")),
                });
                return Ok(true);
            }
            "min_us" => {
                self.min_us = Some(number(key, value)?);
                return Ok(true);
            }
            "from" => {
                self.from = Some(time(key, value, now)?);
                return Ok(true);
            }
            "to" => {
                self.to = Some(time(key, value, now)?);
                return Ok(true);
            }
            "thread" => {
                self.thread = Some(value.to_owned());
                return Ok(true);
            }
            "route" => {
                self.work.route = Some(value.to_owned());
                return Ok(true);
            }
            "method" => {
                self.work.method = Some(value.to_owned());
                return Ok(true);
            }
            "operation" => {
                self.work.operation = Some(value.to_owned());
                return Ok(true);
            }
            "pid" => Target::Pid(number(key, value)?),
            "tid" => Target::Tid(number(key, value)?),
            "service" => Target::Service(value.to_owned()),
            "container" => Target::Container(value.to_owned()),
            "cgroup" => Target::Cgroup(value.to_owned()),
            _ => return Ok(false),
        };
        if self.target.replace(target).is_some() {
            return Err(
                "more than one of pid, tid, service, container and cgroup is given".to_owned(),
            );
        }
        Ok(true)
    }

    /// Takes over from `other` whatever was not said.
    pub(super) fn or(self, other: &Self) -> Self {
        let range_said = self.from.is_some() || self.to.is_some();
        let times = if range_said { &self } else { other };
        Self {
            from: times.from,
            to: times.to,
            seconds: None,
            hz: None,
            kind: self.kind.or(other.kind),
            min_us: None,
            target: self.target.or_else(|| other.target.clone()),
            thread: self.thread.or_else(|| other.thread.clone()),
            work: if self.work.is_any() {
                other.work.clone()
            } else {
                self.work
            },
        }
    }

    /// The request: from now on, or of the past where a time was said.
    ///
    /// # Errors
    /// What does not go together, in one line.
    pub(super) fn request(self, now: SystemTime) -> Result<ProfileRequest, String> {
        let selector = Selector {
            target: self.target.unwrap_or(Target::All),
            thread: self.thread,
            work: self.work,
        };
        let is_past = self.from.is_some() || self.to.is_some();
        let duration = Duration::from_secs(self.seconds.unwrap_or(DEFAULT_SECONDS));
        let time = match self.kind.unwrap_or_default() {
            Kind::OffCpu if is_past => {
                return Err(
                    "type is off_cpu: waits are not kept, only measured from now on".to_owned(),
                );
            }
            Kind::OffCpu if self.hz.is_some() => {
                return Err("type is off_cpu: waits are measured, not sampled at hz".to_owned());
            }
            Kind::OffCpu => ProfileTime::Waits {
                duration,
                min: self
                    .min_us
                    .map_or(SHORTEST_WAIT, |min| Duration::from_micros(u64::from(min))),
            },
            Kind::Cpu if self.min_us.is_some() => {
                return Err("min_us belongs to type=off_cpu".to_owned());
            }
            Kind::Cpu if is_past && (self.seconds.is_some() || self.hz.is_some()) => {
                return Err(
                    "seconds and hz belong to a profile from now on; from and to to what is kept"
                        .to_owned(),
                );
            }
            Kind::Cpu if is_past => range(self.from, self.to, now)?,
            Kind::Cpu => ProfileTime::Next {
                duration,
                hz: self.hz.unwrap_or(DEFAULT_HZ),
            },
        };
        Ok(ProfileRequest { selector, time })
    }

    /// The request of what is kept; of the last minutes where no time was said.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub(super) fn past_request(self, now: SystemTime) -> Result<ProfileRequest, String> {
        let to = self.to.or_else(|| self.from.is_none().then_some(now));
        Self { to, ..self }.request(now)
    }
}

fn range(
    from: Option<SystemTime>,
    to: Option<SystemTime>,
    now: SystemTime,
) -> Result<ProfileTime, String> {
    let to = to.unwrap_or(now);
    let before = to
        .checked_sub(DEFAULT_RANGE)
        .unwrap_or(SystemTime::UNIX_EPOCH);
    let from = from.unwrap_or(before);
    if from >= to {
        return Err("from is not before to".to_owned());
    }
    Ok(ProfileTime::Past { from, to })
}

/// Whether the configuration allows a profile this long and this dense.
pub(super) fn check_limits(request: &ProfileRequest, limits: &ProfileConfig) -> Result<(), String> {
    let (duration, hz) = match request.time {
        ProfileTime::Next { duration, hz } => (duration, hz),
        ProfileTime::Waits { duration, .. } => (duration, 0),
        ProfileTime::Past { .. } => return Ok(()),
    };
    if duration > limits.max_duration {
        return Err(format!(
            "seconds is {}: at most {} is allowed (profile.max_duration)",
            duration.as_secs(),
            limits.max_duration.as_secs()
        ));
    }
    if hz > limits.max_hz {
        return Err(format!(
            "hz is {hz}: at most {} is allowed (profile.max_hz)",
            limits.max_hz
        ));
    }
    Ok(())
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("{key} is {value:?}: a whole number is needed"))
}

/// `now`, `now-90s`, `now-5m`, `now-1h`, or seconds since 1970 (with a fraction, if need be).
fn time(key: &str, value: &str, now: SystemTime) -> Result<SystemTime, String> {
    let ago = |text: &str| {
        let digits = text.strip_suffix(['s', 'm', 'h'])?;
        let factor = match text.as_bytes().last()? {
            b'h' => 3600,
            b'm' => 60,
            _ => 1,
        };
        let seconds = digits.parse::<u64>().ok()?.checked_mul(factor)?;
        now.checked_sub(Duration::from_secs(seconds))
    };
    let since_epoch = |text: &str| {
        let seconds = text.parse().ok()?;
        let since = Duration::try_from_secs_f64(seconds).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(since)
    };
    let parsed = match value.strip_prefix("now") {
        Some("") => Some(now),
        Some(rest) => rest.strip_prefix('-').and_then(ago),
        None => since_epoch(value),
    };
    parsed.ok_or_else(|| {
        format!("{key} is {value:?}: now, now-90s, now-5m, now-1h or seconds since 1970 is needed")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    fn asked(query: &[(&str, &str)]) -> Result<Asked, String> {
        let mut asked = Asked::default();
        for (key, value) in query {
            assert!(asked.take(key, value, now())?);
        }
        Ok(asked)
    }

    fn parsed(query: &[(&str, &str)]) -> Result<ProfileRequest, String> {
        asked(query)?.request(now())
    }

    fn ago(seconds: u64) -> SystemTime {
        now() - Duration::from_secs(seconds)
    }

    #[test]
    fn nothing_said_means_everything_for_half_a_minute() {
        let request = parsed(&[]).unwrap();
        assert_eq!(request.selector, Target::All.into());
        let duration = Duration::from_secs(30);
        assert_eq!(request.time, ProfileTime::Next { duration, hz: 99 });
    }

    #[test]
    fn parameters_are_taken() {
        let query = [
            ("seconds", "5"),
            ("hz", "499"),
            ("service", "a b"),
            ("thread", "w"),
            ("route", "/a/{id}"),
            ("method", "GET"),
            ("operation", "search"),
        ];
        let request = parsed(&query).unwrap();
        let selector = Selector {
            target: Target::Service("a b".into()),
            thread: Some("w".into()),
            work: WorkFilter {
                route: Some("/a/{id}".into()),
                method: Some("GET".into()),
                operation: Some("search".into()),
            },
        };
        let duration = Duration::from_secs(5);
        assert_eq!(request.selector, selector);
        assert_eq!(request.time, ProfileTime::Next { duration, hz: 499 });
        let target = |key, value| parsed(&[(key, value)]).unwrap().selector.target;
        assert_eq!(target("pid", "7"), Target::Pid(7));
        assert_eq!(target("tid", "7"), Target::Tid(7));
        assert_eq!(target("cgroup", "/a"), Target::Cgroup("/a".into()));
        assert_eq!(target("container", "abc"), Target::Container("abc".into()));
    }

    #[test]
    fn times_are_absolute_or_before_now() {
        for (query, from, to) in [
            (&[("from", "now-5m")][..], ago(300), now()),
            (&[("from", "now-1h"), ("to", "now-90s")], ago(3600), ago(90)),
            (
                &[("from", "1699999990.5")],
                ago(10) + Duration::from_millis(500),
                now(),
            ),
            (&[("to", "now-1m")], ago(360), ago(60)),
        ] {
            let time = parsed(query).unwrap().time;
            assert_eq!(time, ProfileTime::Past { from, to }, "{query:?}");
        }
    }

    #[test]
    fn waits_are_asked_for_by_type() {
        let waits = |query| parsed(query).unwrap().time;
        let duration = Duration::from_secs(30);
        let min = SHORTEST_WAIT;
        assert_eq!(
            waits(&[("type", "off_cpu")]),
            ProfileTime::Waits { duration, min }
        );
        let (duration, min) = (Duration::from_secs(2), Duration::from_micros(50));
        assert_eq!(
            waits(&[("type", "off_cpu"), ("seconds", "2"), ("min_us", "50")]),
            ProfileTime::Waits { duration, min }
        );
        assert_eq!(waits(&[("type", "cpu")]), waits(&[]));
    }

    #[test]
    fn a_base_takes_over_what_was_not_said() {
        let main = asked(&[("service", "b"), ("from", "now-5m"), ("seconds", "1")]).unwrap();
        let other_service = asked(&[("service", "a")]).unwrap().or(&main);
        assert_eq!(
            other_service,
            asked(&[("service", "a"), ("from", "now-5m")]).unwrap()
        );
        let routes = asked(&[("route", "/b"), ("from", "now-5m")]).unwrap();
        let other_route = asked(&[("route", "/a")]).unwrap().or(&routes);
        assert_eq!(
            other_route,
            asked(&[("route", "/a"), ("from", "now-5m")]).unwrap()
        );
        let earlier = asked(&[("to", "now-5m")]).unwrap().or(&main);
        assert_eq!(
            earlier,
            asked(&[("service", "b"), ("to", "now-5m")]).unwrap()
        );
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for (query, reason) in [
            (
                &[("seconds", "five")][..],
                "seconds is \"five\": a whole number is needed",
            ),
            (&[("pid", "-1")], "pid is \"-1\": a whole number is needed"),
            (
                &[("pid", "1"), ("service", "x")],
                "more than one of pid, tid, service, container and cgroup is given",
            ),
            (
                &[("from", "now-5m"), ("hz", "9")],
                "seconds and hz belong to a profile from now on; from and to to what is kept",
            ),
            (
                &[("from", "now"), ("to", "now-5m")],
                "from is not before to",
            ),
            (
                &[("type", "wall")],
                "type is \"wall\"; allowed: cpu, off_cpu",
            ),
            (
                &[("type", "off_cpu"), ("from", "now-5m")],
                "type is off_cpu: waits are not kept, only measured from now on",
            ),
            (
                &[("type", "off_cpu"), ("hz", "9")],
                "type is off_cpu: waits are measured, not sampled at hz",
            ),
            (&[("min_us", "9")], "min_us belongs to type=off_cpu"),
            (
                &[("from", "yesterday")],
                "from is \"yesterday\": now, now-90s, now-5m, now-1h or seconds since 1970 is needed",
            ),
        ] {
            assert_eq!(parsed(query).unwrap_err(), reason);
        }
        let mut asked = Asked::default();
        assert_eq!(asked.take("second", "1", now()), Ok(false));
    }

    #[test]
    fn the_configuration_bounds_what_is_asked_for() {
        let limits = ProfileConfig {
            max_duration: Duration::from_secs(60),
            max_hz: 199,
            ..ProfileConfig::default()
        };
        let check = |query: &[(&str, &str)]| check_limits(&parsed(query).unwrap(), &limits);
        assert_eq!(check(&[("seconds", "60"), ("hz", "199")]), Ok(()));
        assert_eq!(check(&[("from", "now-1h")]), Ok(()));
        let too_long = check(&[("seconds", "61")]).unwrap_err();
        assert_eq!(
            too_long,
            "seconds is 61: at most 60 is allowed (profile.max_duration)"
        );
        let too_dense = check(&[("hz", "200")]).unwrap_err();
        assert_eq!(
            too_dense,
            "hz is 200: at most 199 is allowed (profile.max_hz)"
        );
    }

    proptest! {
        #[test]
        fn no_value_panics(key in "from|to|seconds|hz|pid|tid|type|min_us", value in "(now)?-?[0-9.e]{0,25}[smh]?") {
            let mut asked = Asked::default();
            if asked.take(&key, &value, now()).is_ok() {
                let _ = asked.request(now());
            }
        }
    }
}

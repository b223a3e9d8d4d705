//! A profile as the flamegraph page's script reads it: names and threads once, stacks by number.

use std::collections::HashMap;

use profile::{Kind, Profile, Sample};
use serde::Serialize;

use super::flamegraph::names;

/// See the module. Encodes as JSON.
#[derive(Debug, Serialize)]
pub struct FlameData {
    /// Of counts, in words.
    pub unit: &'static str,
    /// Whether it is of waits.
    pub is_of_waits: bool,
    /// Functions; those of the kernel end in `_[k]`.
    pub names: Vec<String>,
    /// Names of threads.
    pub threads: Vec<String>,
    /// Method and route of requests, and operations that they wait for; the first is that of what is
    /// proven to be of none.
    pub work: Vec<String>,
    /// Stacks, outermost first, below the service.
    pub stacks: Vec<Stack>,
}

/// A stack of the threads of one name at one kind of work.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Stack {
    /// Index into [`FlameData::threads`].
    pub thread: usize,
    /// Index into [`FlameData::work`].
    pub work: usize,
    /// Samples.
    pub count: u64,
    /// Indices into [`FlameData::names`].
    pub names: Vec<usize>,
}

impl FlameData {
    /// Sums what reads the same.
    #[must_use]
    pub fn of(profile: &Profile) -> Self {
        let mut functions = Numbered::default();
        let mut threads = Numbered::default();
        let mut works = Numbered::default();
        works.number(String::new());
        let frames: Vec<Vec<usize>> = profile
            .frames
            .iter()
            .map(|frame| {
                let outermost_first = names(profile, frame).into_iter().rev();
                outermost_first.map(|name| functions.number(name)).collect()
            })
            .collect();
        let mut counts: HashMap<(usize, usize, Vec<usize>), u64> = HashMap::new();
        for sample in &profile.samples {
            let Sample {
                service,
                thread,
                work,
                ..
            } = sample;
            let mut stack = vec![functions.number(service.to_string())];
            let outermost_first = sample.frames.iter().rev();
            stack.extend(outermost_first.filter_map(|at| frames.get(*at)).flatten());
            let thread = threads.number(thread.to_string());
            let key = (thread, works.number(work.to_string()), stack);
            *counts.entry(key).or_default() += sample.count;
        }
        let mut stacks: Vec<Stack> = counts
            .into_iter()
            .map(|((thread, work, names), count)| Stack {
                thread,
                work,
                count,
                names,
            })
            .collect();
        let key = |stack: &Stack| (stack.thread, stack.work);
        stacks.sort_by(|a, b| (&a.names, key(a)).cmp(&(&b.names, key(b))));
        Self {
            unit: profile.kind.unit(),
            is_of_waits: profile.kind == Kind::OffCpu,
            names: functions.texts,
            threads: threads.texts,
            work: works.texts,
            stacks,
        }
    }
}

/// Texts, each once.
#[derive(Default)]
struct Numbered {
    texts: Vec<String>,
    by_text: HashMap<String, usize>,
}

impl Numbered {
    fn number(&mut self, text: String) -> usize {
        *self.by_text.entry(text).or_insert_with_key(|text| {
            self.texts.push(text.clone());
            self.texts.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use profile::Request;

    use super::*;
    use crate::sink::profile_fixture::profile;

    #[test]
    fn stacks_read_outermost_first_and_are_summed_by_thread() {
        let mut profile = profile();
        let mut other = profile.samples[0].clone();
        other.tid += 1;
        profile.samples.push(other.clone());
        other.thread = "other".into();
        profile.samples.push(other.clone());
        other.work.request = Some(Request {
            route: "/a/{id}".into(),
            method: "GET",
        });
        profile.samples.push(other);
        let data = FlameData::of(&profile);
        let read = |stack: &Stack| {
            let names: Vec<&str> = stack.names.iter().map(|at| &*data.names[*at]).collect();
            let (thread, work) = (&*data.threads[stack.thread], &*data.work[stack.work]);
            (names.join(" / "), thread, work, stack.count)
        };
        let whole = "shop / main <&>; x / work / inlined / vfs_read_[k]".to_owned();
        let read: Vec<_> = data.stacks.iter().map(read).collect();
        assert_eq!(read.len(), 4);
        for (thread, work, count) in [
            ("worker", "", 6),
            ("other", "", 3),
            ("other", "GET /a/{id}", 3),
        ] {
            assert!(
                read.contains(&(whole.clone(), thread, work, count)),
                "{read:?}"
            );
        }
        assert_eq!(data.unit, "samples");
    }
}

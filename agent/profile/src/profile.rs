//! A finished profile: what the encoders turn into pprof, SVG and the rest.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::mapping::Mapping;
use crate::stack::{Unwind, Work};

/// Index into [`Profile::mappings`].
pub type MappingIndex = usize;

/// Index into [`Profile::frames`].
pub type FrameIndex = usize;

/// What the samples of a profile count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Ticks of a sampling clock that found a thread on a CPU.
    #[default]
    Cpu,
    /// Microseconds that threads waited off the CPU.
    OffCpu,
}

impl Kind {
    /// What was seen, in words.
    #[must_use]
    pub const fn events(self) -> &'static str {
        match self {
            Self::Cpu => "samples",
            Self::OffCpu => "waits",
        }
    }

    /// What a count is, in words.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Cpu => "samples",
            Self::OffCpu => "µs",
        }
    }
}

/// A finished profile.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What is counted.
    pub kind: Kind,
    /// When sampling began.
    pub started: SystemTime,
    /// How long it lasted.
    pub duration: Duration,
    /// What one count stands for: the CPU time between two samples of one CPU, or a microsecond.
    pub period_ns: u64,
    /// Files that frames lie in; no two are equal.
    pub mappings: Vec<Mapping>,
    /// Code addresses; no two have the same address and mapping, unless it was code without a
    /// file, which is each process's own.
    pub frames: Vec<Frame>,
    /// Stacks with their counts, the most frequent first.
    pub samples: Vec<Sample>,
    /// Samples that were taken of what was asked for and are in none of `samples`; waits, off the CPU.
    pub lost_samples: u64,
    /// Those that were lost on the whole host meanwhile, of which nobody knows whose they were.
    pub lost_on_host: u64,
}

impl Profile {
    /// What was lost, in words, for people; `None` where nothing was.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        let events = self.kind.events();
        match (self.lost_samples, self.lost_on_host) {
            (0, 0) => None,
            (own, 0) => Some(format!("{own} {events} lost")),
            (0, host) => Some(format!("{host} {events} lost on the whole host")),
            (own, host) => Some(format!("{own} {events} lost, and {host} on the whole host")),
        }
    }

    /// Samples in the profile.
    #[must_use]
    pub fn sample_count(&self) -> u64 {
        self.samples.iter().map(|sample| sample.count).sum()
    }

    /// The profile of some of its samples, with the frames and mappings that they refer to. Lost
    /// samples are nobody's in particular, and stay.
    #[must_use]
    pub fn subset(&self, wanted: impl Fn(&Sample) -> bool) -> Self {
        let mut frame_numbers = HashMap::new();
        let mut mapping_numbers = HashMap::new();
        let mut subset = Self {
            mappings: Vec::new(),
            frames: Vec::new(),
            samples: Vec::new(),
            ..*self
        };
        for sample in self.samples.iter().filter(|sample| wanted(sample)) {
            let mut sample = sample.clone();
            for number in &mut sample.frames {
                *number = *frame_numbers.entry(*number).or_insert_with_key(|number| {
                    let mut frame = self.frames[*number].clone();
                    frame.mapping = frame.mapping.map(|number| {
                        *mapping_numbers.entry(number).or_insert_with(|| {
                            subset.mappings.push(self.mappings[number].clone());
                            subset.mappings.len() - 1
                        })
                    });
                    subset.frames.push(frame);
                    subset.frames.len() - 1
                });
            }
            subset.samples.push(sample);
        }
        subset
    }
}

/// A code address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Address that was looked up: the interrupted instruction of a leaf, the last byte of the
    /// call of a caller. In the file's own terms where there is a mapping (see [`Mapping`]); 0 for
    /// what an interpreter runs.
    pub address: u64,
    /// File, where there is one.
    pub mapping: Option<MappingIndex>,
    /// The functions at this address: innermost inlined callee first, the function that really
    /// stands there last. Empty when unknown.
    pub functions: Vec<SymbolizedFrame>,
}

impl Frame {
    /// Is it one of a language that an interpreter runs? Such a frame has no address.
    #[must_use]
    pub fn is_interpreted(&self) -> bool {
        self.mapping.is_none() && self.address == 0
    }
}

/// A function and the line in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SymbolizedFrame {
    /// Name, demangled.
    pub name: Arc<str>,
    /// Source file, where the debug information tells.
    pub file: Option<Arc<str>>,
    /// Line in it.
    pub line: Option<u32>,
}

/// A stack of a thread, and how often it was seen.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Frames, leaf first.
    pub frames: Vec<FrameIndex>,
    /// How often.
    pub count: u64,
    /// Process (user-space sense: the kernel's tgid).
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// The thread's name.
    pub thread: Arc<str>,
    /// Service that the process belongs to.
    pub service: Arc<str>,
    /// What the thread worked on.
    pub work: Work,
    /// How far the stack could be followed.
    pub unwind: Unwind,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_told_with_whose_it_was() {
        let lost = |kind, own, host| {
            let profile = Profile {
                kind,
                started: SystemTime::UNIX_EPOCH,
                duration: Duration::ZERO,
                period_ns: 1,
                mappings: Vec::new(),
                frames: Vec::new(),
                samples: Vec::new(),
                lost_samples: own,
                lost_on_host: host,
            };
            profile.lost()
        };
        assert_eq!(lost(Kind::Cpu, 0, 0), None);
        assert_eq!(lost(Kind::Cpu, 2, 0).unwrap(), "2 samples lost");
        let host = lost(Kind::OffCpu, 0, 3).unwrap();
        assert_eq!(host, "3 waits lost on the whole host");
        let both = lost(Kind::OffCpu, 2, 3).unwrap();
        assert_eq!(both, "2 waits lost, and 3 on the whole host");
    }
}

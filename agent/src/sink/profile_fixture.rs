//! A small profile for the encoders' tests.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use profile::{BuildId, Frame, Mapping, Profile, Sample, SymbolizedFrame, Unwind, Work};

fn function(name: &str, file: Option<&str>, line: Option<u32>) -> SymbolizedFrame {
    SymbolizedFrame {
        name: name.into(),
        file: file.map(Arc::from),
        line,
    }
}

/// 3 samples of `main` → `work` → (inlined) → a kernel function, one of an unknown function that
/// `main` calls.
pub(crate) fn profile() -> Profile {
    let kernel = Mapping {
        start: 1 << 63,
        end: u64::MAX,
        file_offset: 0,
        path: "[kernel.kallsyms]".into(),
        build_id: None,
    };
    let program = Mapping {
        start: 0x1000,
        end: 0x9000,
        file_offset: 0,
        path: "/usr/bin/shop;1".into(),
        build_id: BuildId::new(&[0xab, 0xcd]),
    };
    let inlined = vec![
        function("inlined", Some("a.c"), Some(7)),
        function("work", Some("a.c"), Some(40)),
    ];
    let frames = vec![
        Frame {
            address: (1 << 63) + 5,
            mapping: Some(0),
            functions: vec![function("vfs_read", None, None)],
        },
        Frame {
            address: 0x1100,
            mapping: Some(1),
            functions: inlined,
        },
        Frame {
            address: 0x1200,
            mapping: Some(1),
            functions: vec![function("main <&>; x", None, None)],
        },
        Frame {
            address: 0x1300,
            mapping: Some(1),
            functions: vec![],
        },
    ];
    let sample = |frames: &[usize], count, unwind| Sample {
        frames: frames.into(),
        count,
        pid: 70,
        tid: 71,
        thread: "worker".into(),
        service: "shop".into(),
        work: Work::default(),
        unwind,
    };
    Profile {
        started: SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
        duration: Duration::from_secs(2),
        kind: profile::Kind::Cpu,
        period_ns: 10_000_000,
        mappings: vec![kernel, program],
        frames,
        samples: vec![
            sample(&[0, 1, 2], 3, Unwind::Complete),
            sample(&[3, 2], 1, Unwind::Unverified),
        ],
        lost_samples: 0,
        lost_on_host: 0,
    }
}

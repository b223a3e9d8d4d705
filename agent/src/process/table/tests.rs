//! Against a folder laid out as `/proc`, and against real children in the real `/proc`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ebpf_common::RecordKind;
use tempfile::TempDir;

use super::*;
use crate::process::Runtime;

const ID: &str = "3f9a7c1be2d84650a1b2c3d4e5f60718293a4b5c6d7e8f901a2b3c4d5e6f7081";
const UID: &str = "8b7f0d9e-51c2-4e0b-9d4f-1c2b3a495867";

/// A process as `/proc` would show it.
#[derive(Default)]
struct Fake<'a> {
    pid: u32,
    parent: u32,
    start_ticks: u64,
    zombie: bool,
    executable: &'a str,
    command_line: &'a [&'a str],
    environment: &'a [&'a str],
    directory: &'a str,
    cgroup: &'a str,
    host_name_namespace: &'a str,
}

impl Fake<'_> {
    fn write(&self, root: &Path) {
        let folder = root.join(self.pid.to_string());
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("ns")).unwrap();
        let state = if self.zombie { 'Z' } else { 'S' };
        let stat = format!(
            "{} (comm of it) {state} {} 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 1 0 {} 1 1 1 1 1 1 1 1 \
             0 0 0 0 0 0 0 17 1 0 0 0 0 0 1 1 1 1 1 1 1 0\n",
            self.pid, self.parent, self.start_ticks
        );
        fs::write(folder.join("stat"), stat).unwrap();
        let joined = |parts: &[&str]| {
            parts
                .iter()
                .map(|part| format!("{part}\0"))
                .collect::<String>()
        };
        fs::write(folder.join("cmdline"), joined(self.command_line)).unwrap();
        fs::write(folder.join("environ"), joined(self.environment)).unwrap();
        fs::write(folder.join("cgroup"), format!("0::{}\n", self.cgroup)).unwrap();
        symlink(self.executable, folder.join("exe")).unwrap();
        symlink(self.directory, folder.join("cwd")).unwrap();
        symlink(self.host_name_namespace, folder.join("ns/uts")).unwrap();
    }
}

fn table(processes: &[Fake<'_>]) -> (TempDir, ProcessTable) {
    let root = tempfile::tempdir().unwrap();
    for process in processes {
        process.write(root.path());
    }
    let table = ProcessTable::new(root.path());
    (root, table)
}

fn python(pid: u32) -> Fake<'static> {
    Fake {
        pid,
        start_ticks: 100,
        executable: "/usr/bin/python3.11",
        command_line: &["python3", "/srv/venv/bin/uvicorn", "orders.main:app"],
        directory: "/srv",
        cgroup: "/system.slice/orders.service",
        host_name_namespace: "uts:[1]",
        ..Fake::default()
    }
}

fn exec(pid: u32, comm: &str) -> ProcessExec {
    let mut padded = [0; 16];
    padded[..comm.len()].copy_from_slice(comm.as_bytes());
    ProcessExec {
        kind: RecordKind::ProcessExec as u8,
        padding: [0; 3],
        pid,
        parent_pid: 1,
        command_line_len: 0,
        time_ns: 1,
        comm: padded,
        reserved: 0,
    }
}

#[track_caller]
fn check_name(table: &ProcessTable, pid: u32, name: &str, source: NameSource) {
    let process = table.lookup(pid);
    assert_eq!((&*process.service, process.service_source), (name, source));
}

#[test]
fn names_come_from_environment_then_container_then_script_then_executable() {
    let docker = format!("/docker/{ID}");
    let (root, table) = table(&[
        Fake {
            environment: &[
                "OTEL_SERVICE_NAME=checkout",
                "OTEL_RESOURCE_ATTRIBUTES=service.namespace=shop",
            ],
            cgroup: &docker,
            ..python(10)
        },
        Fake {
            cgroup: &docker,
            ..python(11)
        },
        python(12),
        Fake {
            executable: "/usr/sbin/nginx",
            command_line: &["nginx: worker process"],
            ..python(13)
        },
    ]);
    // A container that nothing on the node names: an id is no name for a service.
    check_name(&table, 11, "orders", NameSource::Script);
    assert_eq!(table.lookup(11).container_id.as_deref(), Some(ID));

    let record = root
        .path()
        .join(format!("1/root/var/lib/docker/containers/{ID}"));
    fs::create_dir_all(&record).unwrap();
    fs::write(record.join("config.v2.json"), r#"{"Name":"/billing"}"#).unwrap();
    let table = ProcessTable::new(root.path());
    check_name(&table, 10, "checkout", NameSource::Environment);
    assert_eq!(table.lookup(10).service_namespace.as_deref(), Some("shop"));
    check_name(&table, 11, "billing", NameSource::Container);
    check_name(&table, 12, "orders", NameSource::Script);
    assert_eq!(table.lookup(12).runtime, Runtime::Python);
    check_name(&table, 13, "nginx", NameSource::Executable);
}

#[test]
fn pods_are_named_by_their_workload() {
    let cgroup = format!("/kubepods/burstable/pod{UID}/{ID}");
    let pod = Fake {
        environment: &["HOSTNAME=web-7d9c5b8f6c-x2x9k"],
        cgroup: &cgroup,
        host_name_namespace: "uts:[2]",
        ..python(20)
    };
    let on_the_nodes_network = Fake {
        pid: 21,
        environment: &["HOSTNAME=node-7"],
        host_name_namespace: "uts:[1]",
        ..pod
    };
    let (_root, table) = table(&[python(1), pod, on_the_nodes_network]);
    check_name(&table, 20, "web", NameSource::Container);
    let found = table.lookup(20).pod.clone().unwrap();
    assert_eq!(
        (&*found.uid, found.name.as_deref()),
        (UID, Some("web-7d9c5b8f6c-x2x9k"))
    );
    // Its host name is the node's, not the pod's.
    check_name(&table, 21, "orders", NameSource::Script);
}

#[test]
fn multiprocessing_workers_are_named_as_their_parent() {
    let worker = Fake {
        parent: 30,
        command_line: &[
            "python3",
            "-c",
            "from multiprocessing.spawn import spawn_main",
        ],
        ..python(31)
    };
    let (_root, table) = table(&[python(30), worker]);
    check_name(&table, 31, "orders", NameSource::Script);
}

#[test]
fn a_process_that_was_never_seen_is_unknown_and_counted_once() {
    let (_root, table) = table(&[]);
    check_name(&table, 40, "unknown", NameSource::Comm);
    check_name(&table, 40, "unknown", NameSource::Comm);
    assert_eq!(table.unknown.load(Ordering::Relaxed), 1);
    assert!(table.list().is_empty(), "it does not run");
}

#[test]
fn a_short_lived_process_is_named_by_its_exec_event() {
    let (_root, table) = table(&[]);
    table.handle_exec(&exec(50, "curl"), b"/usr/bin/curl\0-s\0http://127.0.0.1/\0");
    table.handle_exit(50);
    check_name(&table, 50, "curl", NameSource::Executable);
    assert_eq!(table.lookup(50).command_line[1], "-s");
    table.handle_exec(&exec(51, "python3"), b"python3\0-m\0orders.main\0");
    check_name(&table, 51, "orders", NameSource::Script);
    table.handle_exec(&exec(52, "kworker"), b"");
    check_name(&table, 52, "kworker", NameSource::Comm);
}

#[test]
fn an_exec_replaces_the_process_and_an_exit_keeps_it() {
    let (root, table) = table(&[python(60)]);
    check_name(&table, 60, "orders", NameSource::Script);
    table.note_seen(60, Some(8000), "http");
    let before = table.lookup(60);

    // Nothing new: the same process, with its ports.
    table.scan();
    assert!(Arc::ptr_eq(&before, &table.lookup(60)));
    assert_eq!(table.ports(60), [8000]);

    Fake {
        executable: "/usr/sbin/nginx",
        command_line: &["nginx"],
        ..python(60)
    }
    .write(root.path());
    table.handle_exec(&exec(60, "nginx"), b"nginx\0");
    check_name(&table, 60, "nginx", NameSource::Executable);
    assert!(table.ports(60).is_empty());

    fs::remove_dir_all(root.path().join("60")).unwrap();
    table.handle_exit(60);
    check_name(&table, 60, "nginx", NameSource::Executable);
    assert!(table.list().is_empty());
}

#[test]
fn a_reused_pid_is_another_process() {
    let (root, table) = table(&[python(70)]);
    check_name(&table, 70, "orders", NameSource::Script);
    table.handle_exit(70);
    Fake {
        zombie: true,
        ..python(70)
    }
    .write(root.path());
    check_name(&table, 70, "orders", NameSource::Script);
    // Forked, so that no exec told of it.
    Fake {
        start_ticks: 200,
        command_line: &["python3", "next.py"],
        ..python(70)
    }
    .write(root.path());
    check_name(&table, 70, "next", NameSource::Script);
}

#[test]
fn a_scan_finds_what_runs_and_what_has_gone() {
    let (root, table) = table(&[python(80), python(81)]);
    table.scan();
    let pids = |table: &ProcessTable| -> Vec<u32> {
        table
            .list()
            .iter()
            .map(|target| target.process.pid)
            .collect()
    };
    assert_eq!(pids(&table), [80, 81]);
    fs::remove_dir_all(root.path().join("80")).unwrap();
    Fake {
        start_ticks: 200,
        command_line: &["python3", "next.py"],
        ..python(81)
    }
    .write(root.path());
    python(82).write(root.path());
    table.scan();
    assert_eq!(pids(&table), [81, 82]);
    check_name(&table, 81, "next", NameSource::Script);

    // An exec that no event told of: before the probe was there, or lost.
    Fake {
        executable: "/usr/sbin/nginx",
        command_line: &["nginx"],
        ..python(82)
    }
    .write(root.path());
    table.scan();
    check_name(&table, 82, "nginx", NameSource::Executable);
}

#[test]
fn the_table_is_bounded_and_ended_processes_go_first() {
    let root = tempfile::tempdir().unwrap();
    let table = ProcessTable::with_capacity(root.path(), 8);
    for pid in 1..=8 {
        table.handle_exec(&exec(pid, "sleep"), b"sleep\0");
    }
    table.handle_exit(7);
    table.handle_exit(8);
    table.handle_exec(&exec(9, "sleep"), b"sleep\0");
    assert!(table.len() <= 8);
    let left: BTreeSet<u32> = table.read().keys().copied().collect();
    assert_eq!(
        left,
        BTreeSet::from([3, 4, 5, 6, 9]),
        "7 and 8 had ended, 1 and 2 were the oldest"
    );
    assert_eq!(table.evicted.load(Ordering::Relaxed), 4);
}

#[test]
fn proc_is_read_when_somebody_asks_for_a_process_that_exec_told_of() {
    let (_root, table) = table(&[python(90), python(91)]);
    table.handle_exec(&exec(90, "python3"), b"python3\0");
    table.handle_exec(&exec(91, "python3"), b"python3\0");
    table.handle_exec(&exec(92, "true"), b"true\0");
    assert!(
        table
            .read()
            .values()
            .all(|entry| entry.process.start_ticks == 0)
    );
    check_name(&table, 90, "orders", NameSource::Script);
    assert_eq!(table.read()[&91].process.start_ticks, 0);
    let listed: Vec<_> = table
        .list()
        .iter()
        .map(|target| target.process.start_ticks)
        .collect();
    assert_eq!(listed, [100, 100], "92 has ended");
}

#[test]
fn an_exit_that_belonged_to_the_pids_former_owner_ends_nobody() {
    let (_root, table) = table(&[python(93)]);
    let before = table.lookup(93);
    table.handle_exit(93);
    assert!(table.list().is_empty());
    assert!(Arc::ptr_eq(&before, &table.lookup(93)));
    assert_eq!(table.list().len(), 1);
}

#[test]
fn ports_and_protocols_are_bounded() {
    let (_root, table) = table(&[python(95)]);
    let _ = table.lookup(95);
    for port in 1..1000 {
        table.note_seen(95, Some(port), "http");
    }
    table.note_seen(95, None, "elasticsearch");
    table.note_seen(96, Some(80), "http");
    let targets = table.list();
    assert_eq!(targets.len(), 1);
    assert_eq!(targets[0].ports.len(), MAX_PORTS);
    assert_eq!(targets[0].protocols, ["elasticsearch", "http"]);
}

/// Ends its child whatever becomes of the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(command: &mut Command) -> Running {
    Running(
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    )
}

#[test]
fn a_real_child_is_read_from_proc() {
    let child = run(Command::new("sleep")
        .arg("60")
        .env("OTEL_SERVICE_NAME", "nap"));
    // `spawn` returns in the middle of the exec: the arguments are in their place a moment later.
    let process = (0..200)
        .map(|_| ProcessTable::default().lookup(child.0.id()))
        .find(|process| {
            std::thread::sleep(Duration::from_millis(10));
            !process.command_line.is_empty() && process.command_line[0] == "sleep"
        })
        .expect("the child runs");
    assert_eq!(&*process.service, "nap");
    assert_eq!(process.service_source, NameSource::Environment);
    assert_eq!(process.command_line, ["sleep", "60"]);
    assert_eq!(process.executable.file_name(), Some("sleep".as_ref()));
    assert_eq!(process.runtime, Runtime::Native);
    assert!(process.start_ticks > 0);
}

#[test]
fn a_real_script_names_its_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("collector.sh");
    fs::write(&path, "read line\n").unwrap();
    let child = run(Command::new("sh").arg(&path).env_clear());
    let table = ProcessTable::default();
    // Between fork and exec the child is still this test.
    let found = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        table.handle_exec(&exec(child.0.id(), "sh"), b"");
        &*table.lookup(child.0.id()).service == "collector"
    });
    assert!(found, "{:?}", table.lookup(child.0.id()));
}

#[test]
fn this_test_is_a_rust_program_and_the_whole_of_proc_can_be_scanned() {
    let table = ProcessTable::default();
    table.scan();
    let me = table.lookup(std::process::id());
    assert_eq!(me.runtime, Runtime::Rust);
    assert_eq!(me.service_source, NameSource::Executable);
    assert!(
        table
            .list()
            .iter()
            .all(|target| !target.process.service.is_empty())
    );
}

//! Container and pod of a process, from `/proc/PID/cgroup`.
//!
//! Engines write the container's id into the cgroup's path, each in its own way, on cgroup v1 and
//! v2, under systemd and without it. What they agree on: the id is 64 lower-case hexadecimal
//! digits, and a path component holds it alone or between punctuation.

const CONTAINER_ID_DIGITS: usize = 64;

/// What a cgroup path tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cgroup {
    /// Id of the innermost container.
    pub(crate) container_id: Option<Box<str>>,
    /// Uid of the Kubernetes pod, with dashes.
    pub(crate) pod_uid: Option<Box<str>>,
}

impl Cgroup {
    /// Reads the lines of `/proc/PID/cgroup`, `hierarchy:controllers:path` (cgroups(7)). Hybrid
    /// hosts have the path of a container in some hierarchies alone, so the first that names one
    /// is taken.
    pub(crate) fn parse(lines: &str) -> Self {
        let mut found = Self::default();
        for line in lines.lines() {
            // The path may hold colons itself (`kubepods-pod1.slice:cri-containerd:2`).
            let Some(path) = line.splitn(3, ':').nth(2) else {
                continue;
            };
            let components = || path.rsplit('/');
            found.container_id = found
                .container_id
                .or_else(|| components().find_map(container_id));
            found.pod_uid = found.pod_uid.or_else(|| components().find_map(pod_uid));
        }
        found
    }
}

fn container_id(component: &str) -> Option<Box<str>> {
    // conmon watches over a container from outside: its scope carries the container's id too.
    if component.contains("conmon") {
        return None;
    }
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    component
        .split(['-', '.', ':', '_'])
        .find(|token| token.len() == CONTAINER_ID_DIGITS && token.bytes().all(is_digit))
        .map(Into::into)
}

/// `pod<uid>` (cgroupfs) or `kubepods-burstable-pod<uid>.slice` (systemd, which writes the uid's
/// dashes as underscores).
fn pod_uid(component: &str) -> Option<Box<str>> {
    let start = component.strip_prefix("pod").or_else(|| {
        let slice = component.strip_prefix("kubepods")?;
        slice.split_once("-pod").map(|(_, uid)| uid)
    })?;
    let end = start
        .find(|character: char| !character.is_ascii_hexdigit() && !['-', '_'].contains(&character))
        .unwrap_or(start.len());
    let uid = start[..end].replace('_', "-");
    // A static pod's uid is a hash of its manifest: no dashes.
    let is_uid = match uid.len() {
        36 => uid
            .bytes()
            .enumerate()
            .all(|(index, byte)| (byte == b'-') == [8, 13, 18, 23].contains(&index)),
        32 => !uid.contains('-'),
        _ => false,
    };
    is_uid.then(|| uid.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "3f9a7c1be2d84650a1b2c3d4e5f60718293a4b5c6d7e8f901a2b3c4d5e6f7081";
    const OUTER: &str = "aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbccccccccccccccccdddddddddddddddd";
    const UID: &str = "8b7f0d9e-51c2-4e0b-9d4f-1c2b3a495867";

    #[track_caller]
    fn check(line: &str, container: Option<&str>, pod: Option<&str>) {
        let line = line
            .replace("ID", ID)
            .replace("OUTER", OUTER)
            .replace("U_I_D", &UID.replace('-', "_"))
            .replace("POD", UID);
        let found = Cgroup::parse(&line);
        assert_eq!(found.container_id.as_deref(), container, "{line}");
        assert_eq!(found.pod_uid.as_deref(), pod, "{line}");
    }

    #[test]
    fn containers_of_each_engine() {
        for line in [
            // Docker: cgroupfs v1, systemd v2, cgroupfs v2.
            "12:memory:/docker/ID",
            "0::/system.slice/docker-ID.scope",
            "0::/docker/ID",
            // A service manager inside the container.
            "1:name=systemd:/docker/ID/init.scope",
            "0::/system.slice/docker-ID.scope/system.slice/nginx.service",
            // Docker in Docker: the inner one counts.
            "0::/docker/OUTER/docker/ID",
            // Podman: root, rootless, cgroupfs, with the container's own sub-cgroup.
            "0::/machine.slice/libpod-ID.scope",
            "0::/machine.slice/libpod-ID.scope/container",
            "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
            "4:pids:/libpod_parent/libpod-ID",
            // Amazon ECS.
            "9:perf_event:/ecs/0410eff2-7e59-4111-823e-1e0d98ef7f30/ID",
            // The agent's own cgroup namespace hides the upper part.
            "0::/../ID",
        ] {
            check(line, Some(ID), None);
        }
    }

    #[test]
    fn containers_in_kubernetes() {
        for line in [
            "11:cpu,cpuacct:/kubepods/burstable/podPOD/ID",
            "11:cpu,cpuacct:/kubepods/podPOD/ID",
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU_I_D.slice/cri-containerd-ID.scope",
            "0::/kubepods.slice/kubepods-podU_I_D.slice/crio-ID.scope",
            "0::/kubepods.slice/kubepods-podU_I_D.slice/crio-ID.scope/container",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_I_D.slice/docker-ID.scope",
            // containerd told to use systemd's names under the cgroupfs driver.
            "2:pids:/system.slice/containerd.service/kubepods-burstable-podU_I_D.slice:cri-containerd:ID",
            // kind: a node that is a container itself.
            "0::/docker/OUTER/kubelet.slice/kubelet-kubepods.slice/podPOD/ID",
            "0::/../../kubepods-burstable-podU_I_D.slice/cri-containerd-ID.scope",
        ] {
            check(line, Some(ID), Some(UID));
        }
        check(
            "0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/ID",
            Some(ID),
            Some("0123456789abcdef0123456789abcdef"),
        );
    }

    #[test]
    fn not_containers() {
        for line in [
            "",
            "0::/",
            "0::/init.scope",
            "0::/system.slice/nginx.service",
            "0::/user.slice/user-1000.slice/session-3.scope",
            "4:memory:/process_api/1832045c1435674d18afb23306e2ceef",
            "0::/machine.slice/libpod-conmon-ID.scope",
            "0::/kubepods.slice/crio-conmon-ID.scope",
            "0::/system.slice/pod-sync.service",
            "0::/system.slice/podman.socket",
            "no colon at all",
        ] {
            check(line, None, None);
        }
    }

    #[test]
    fn any_hierarchy_may_tell() {
        let lines =
            format!("13:rdma:/\n12:memory:/docker/{ID}\n0::/system.slice/containerd.service\n");
        assert_eq!(Cgroup::parse(&lines).container_id.as_deref(), Some(ID));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC*(\n\\PC*){0,4}") {
            let found = Cgroup::parse(&text);
            prop_assert!(found.container_id.is_none_or(|id| id.len() == 64));
        }

        #[test]
        fn an_id_is_found_wherever_it_stands(
            id in "[0-9a-f]{64}", before in "(/[a-z]{1,8}){0,4}", prefix in "([a-z]{1,6}-)?", suffix in "(\\.scope)?"
        ) {
            let line = format!("0::{before}/{prefix}{id}{suffix}");
            let found = Cgroup::parse(&line).container_id;
            prop_assert_eq!(found.as_deref(), Some(id.as_str()));
        }
    }
}

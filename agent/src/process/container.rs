//! Names of containers and pods, by container id, as the engines leave them on the node's disk.
//!
//! A cgroup tells an id, and an id names one run of a container, not a service: it changes with
//! each restart. No engine is asked over its socket, which would be a privilege of its own.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::name::{clean, workload_name};

/// Most answers that are kept; beyond, all are asked for again.
const MAX_CACHED: usize = 4096;
/// Largest file that is read. A Docker container's is 3 to 10 KB.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What the node knows about a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ContainerName {
    /// What to call the service.
    pub(super) service: Box<str>,
    /// Its own name.
    pub(super) container: Box<str>,
    /// `k8s.pod.name`.
    pub(super) pod: Option<Box<str>>,
    /// `k8s.namespace.name`.
    pub(super) namespace: Option<Box<str>>,
}

/// Finds names under the node's root folder; remembers what it found and what it did not.
#[derive(Debug)]
pub(super) struct ContainerNames {
    node_root: PathBuf,
    known: Mutex<HashMap<Box<str>, Option<ContainerName>>>,
}

impl ContainerNames {
    /// `node_root` is the root folder of the node: `/proc/1/root`, where the agent itself may run
    /// in a container with `hostPID`.
    pub(super) fn new(node_root: PathBuf) -> Self {
        Self {
            node_root,
            known: Mutex::default(),
        }
    }

    /// The name of the container with this id.
    pub(super) fn find(&self, id: &str) -> Option<ContainerName> {
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(id) {
            return known.clone();
        }
        // Without the lock: a disk may be slow.
        let found = self
            .kubelet(id)
            .or_else(|| self.docker(id))
            .or_else(|| self.podman(id));
        let mut known = lock();
        if known.len() >= MAX_CACHED {
            known.clear();
        }
        known.insert(id.into(), found.clone());
        found
    }

    /// The kubelet links each container's log as `POD_NAMESPACE_CONTAINER-ID.log`.
    fn kubelet(&self, id: &str) -> Option<ContainerName> {
        let folder = std::fs::read_dir(self.node_root.join("var/log/containers")).ok()?;
        let ending = format!("-{id}.log");
        folder.flatten().find_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str()?.strip_suffix(&ending)?;
            let mut parts = name.splitn(3, '_');
            let (pod, namespace, container) = (parts.next()?, parts.next()?, parts.next()?);
            Some(ContainerName {
                service: clean(workload_name(pod))?.into(),
                container: clean(container)?.into(),
                pod: Some(clean(pod)?.into()),
                namespace: Some(clean(namespace)?.into()),
            })
        })
    }

    /// Docker's own record of the container. A service of Compose or Swarm is what its labels
    /// say: several containers may serve it.
    fn docker(&self, id: &str) -> Option<ContainerName> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Record {
            name: String,
            #[serde(default)]
            config: Settings,
        }
        #[derive(Default, serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Settings {
            labels: Option<HashMap<String, String>>,
        }
        let path = format!("var/lib/docker/containers/{id}/config.v2.json");
        let record: Record = read_json(&self.node_root.join(path))?;
        let container = clean(record.name.trim_start_matches('/'))?;
        let labels = record.config.labels.unwrap_or_default();
        let service = [
            "com.docker.compose.service",
            "com.docker.swarm.service.name",
        ]
        .iter()
        .find_map(|label| clean(labels.get(*label)?));
        Some(ContainerName {
            service: service.unwrap_or_else(|| container.clone()).into(),
            container: container.into(),
            ..ContainerName::default()
        })
    }

    /// Podman's list of its (root's) containers.
    fn podman(&self, id: &str) -> Option<ContainerName> {
        #[derive(serde::Deserialize)]
        struct Record {
            id: String,
            #[serde(default)]
            names: Vec<String>,
        }
        let lists = ["overlay-containers", "vfs-containers"];
        let record = lists.iter().find_map(|driver| {
            let path = format!("var/lib/containers/storage/{driver}/containers.json");
            let records: Vec<Record> = read_json(&self.node_root.join(path))?;
            records.into_iter().find(|record| record.id == id)
        })?;
        let name = clean(record.names.first()?)?;
        Some(ContainerName {
            service: name.as_str().into(),
            container: name.into(),
            ..ContainerName::default()
        })
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let file = std::fs::File::open(path).ok()?;
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ID: &str = "3f9a7c1be2d84650a1b2c3d4e5f60718293a4b5c6d7e8f901a2b3c4d5e6f7081";

    fn node_with(path: &str, content: &str) -> (tempfile::TempDir, ContainerNames) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        let names = ContainerNames::new(root.path().to_owned());
        (root, names)
    }

    #[test]
    fn pods_by_the_kubelets_log_links() {
        let link = format!("var/log/containers/web-7d9c5b8f6c-x2x9k_shop_nginx-{ID}.log");
        let (_root, names) = node_with(&link, "");
        let found = names.find(ID).unwrap();
        assert_eq!(&*found.service, "web");
        assert_eq!(&*found.container, "nginx");
        assert_eq!(found.pod.as_deref(), Some("web-7d9c5b8f6c-x2x9k"));
        assert_eq!(found.namespace.as_deref(), Some("shop"));
        assert_eq!(names.find(&ID.replace('3', "4")), None);
    }

    #[test]
    fn docker_containers_by_their_record() {
        let path = format!("var/lib/docker/containers/{ID}/config.v2.json");
        // As Docker 24 writes it, shortened.
        let record = r#"{"StreamConfig":{},"State":{"Running":true,"Pid":4242},"ID":"3f9a",
            "Config":{"Hostname":"3f9a7c1be2d8","Labels":{"maintainer":"x"}},"Name":"/orders-db"}"#;
        let (_root, names) = node_with(&path, record);
        assert_eq!(&*names.find(ID).unwrap().service, "orders-db");
    }

    #[test]
    fn compose_services_by_their_label() {
        let path = format!("var/lib/docker/containers/{ID}/config.v2.json");
        let record = r#"{"Config":{"Labels":{"com.docker.compose.service":"orders"}},
            "Name":"/shop-orders-1"}"#;
        let (_root, names) = node_with(&path, record);
        let found = names.find(ID).unwrap();
        assert_eq!(
            (&*found.service, &*found.container),
            ("orders", "shop-orders-1")
        );
    }

    #[test]
    fn podman_containers_by_its_list() {
        let list = format!(
            r#"[{{"id":"{}","names":["other"]}},{{"id":"{ID}","names":["billing"],"image":"x"}}]"#,
            ID.replace('3', "5")
        );
        let (_root, names) = node_with(
            "var/lib/containers/storage/overlay-containers/containers.json",
            &list,
        );
        assert_eq!(&*names.find(ID).unwrap().service, "billing");
    }

    #[test]
    fn broken_records_are_no_names() {
        let path = format!("var/lib/docker/containers/{ID}/config.v2.json");
        for record in ["", "{", "[]", r#"{"Name":"/"}"#, r#"{"Name":7}"#] {
            let (_root, names) = node_with(&path, record);
            assert_eq!(names.find(ID), None, "{record}");
        }
    }
}

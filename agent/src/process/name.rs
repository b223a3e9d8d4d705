//! The service name of a process: from its environment, else its container, else the script that
//! an interpreter runs, else its executable.

use std::path::Path;

use percent_encoding::percent_decode_str;

/// Most bytes of a service name: it becomes a label of every series.
pub(super) const MAX_NAME_BYTES: usize = 128;

/// What the environment says. All else in it is left unread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Environment {
    /// `OTEL_SERVICE_NAME`, else `service.name` of `OTEL_RESOURCE_ATTRIBUTES`.
    pub(super) service_name: Option<String>,
    /// `service.namespace` of `OTEL_RESOURCE_ATTRIBUTES`.
    pub(super) service_namespace: Option<String>,
    /// `HOSTNAME`: the pod's name, in Kubernetes.
    pub(super) hostname: Option<String>,
}

impl Environment {
    /// Reads `/proc/PID/environ`: `NAME=value`, each ended by NUL.
    pub(super) fn parse(block: &[u8]) -> Self {
        let mut found = Self::default();
        let mut attributes_name = None;
        for variable in block.split(|&byte| byte == 0) {
            let Some(equals) = memchr::memchr(b'=', variable) else {
                continue;
            };
            let (name, value) = (&variable[..equals], &variable[equals + 1..]);
            match name {
                b"OTEL_SERVICE_NAME" => found.service_name = clean(&String::from_utf8_lossy(value)),
                b"HOSTNAME" => found.hostname = clean(&String::from_utf8_lossy(value)),
                b"OTEL_RESOURCE_ATTRIBUTES" => {
                    let value = String::from_utf8_lossy(value);
                    attributes_name = attribute(&value, "service.name");
                    found.service_namespace = attribute(&value, "service.namespace");
                }
                _ => {}
            }
        }
        found.service_name = found.service_name.or(attributes_name);
        found
    }
}

/// One of `key1=value1,key2=value2`, percent-encoded (OpenTelemetry specification, resource SDK,
/// "Specifying resource information via an environment variable").
fn attribute(attributes: &str, wanted: &str) -> Option<String> {
    let pairs = attributes
        .split(',')
        .filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.into_iter().find(|(key, _)| key.trim() == wanted)?;
    clean(&percent_decode_str(value.trim()).decode_utf8_lossy())
}

/// A name fit for a label: no control characters, single spaces, at most [`MAX_NAME_BYTES`];
/// `None` where nothing is left.
pub(super) fn clean(name: &str) -> Option<String> {
    let mut cleaned = String::new();
    for word in name.split(|character: char| character.is_whitespace() || character.is_control()) {
        if word.is_empty() {
            continue;
        }
        if !cleaned.is_empty() {
            cleaned.push(' ');
        }
        cleaned.push_str(word);
        if cleaned.len() >= MAX_NAME_BYTES {
            break;
        }
    }
    cleaned.truncate(cleaned.floor_char_boundary(MAX_NAME_BYTES));
    let end = cleaned.trim_end().len();
    cleaned.truncate(end);
    (!cleaned.is_empty()).then_some(cleaned)
}

/// The executable's file name.
///
/// `None` for one that was started from memory (`memfd_create(2)`): its name was made up by whoever
/// started it, often at random.
pub(super) fn executable_name(executable: &Path) -> Option<String> {
    if executable.to_string_lossy().starts_with("/memfd:") {
        return None;
    }
    let name = executable.file_name()?.to_string_lossy();
    // The kernel says so of a file that was replaced while it ran: an upgraded package.
    clean(name.strip_suffix(" (deleted)").unwrap_or(&name))
}

/// The workload of a pod, by the names that Kubernetes' controllers give their pods:
/// `web-7d9c5b8f6c-x2x9k` (Deployment) → `web`, `es-data-0` (StatefulSet) → `es-data`,
/// `node-agent-x2x9k` (DaemonSet) → `node-agent`, `report-28912345-x2x9k` (CronJob) → `report`.
/// A pod that nobody controls keeps its name.
pub(super) fn workload_name(pod: &str) -> &str {
    // What `k8s.io/apimachinery/pkg/util/rand` draws from: no vowels, no digits like letters.
    let is_random = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte))
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some((rest, last)) = pod.rsplit_once('-') else {
        return pod;
    };
    if last.len() == 5 && is_random(last) {
        return match rest.rsplit_once('-') {
            Some((workload, hash)) if (8..=10).contains(&hash.len()) && is_random(hash) => workload,
            // Minutes since 1970.
            Some((workload, minute)) if minute.len() == 8 && is_number(minute) => workload,
            _ => rest,
        };
    }
    if last.len() <= 4 && is_number(last) {
        return rest;
    }
    pod
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn environment(variables: &[&str]) -> Environment {
        Environment::parse((variables.join("\0") + "\0").as_bytes())
    }

    #[test]
    fn service_name_wins_over_resource_attributes() {
        let found = environment(&[
            "PATH=/usr/bin",
            "OTEL_RESOURCE_ATTRIBUTES=service.name=attributes,service.namespace=shop%20eu",
            "OTEL_SERVICE_NAME=orders",
            "OTEL_SERVICE_NAMES=no",
        ]);
        assert_eq!(found.service_name.as_deref(), Some("orders"));
        assert_eq!(found.service_namespace.as_deref(), Some("shop eu"));
    }

    #[test]
    fn resource_attributes_name_the_service() {
        let found = environment(&[
            "OTEL_RESOURCE_ATTRIBUTES=deployment.environment=prod, service.name=b%C3%A9ta%2Cx ,a",
        ]);
        assert_eq!(found.service_name.as_deref(), Some("béta,x"));
        assert_eq!(found.service_namespace, None);
    }

    #[test]
    fn an_empty_name_is_none() {
        let found = environment(&[
            "OTEL_SERVICE_NAME=",
            "OTEL_RESOURCE_ATTRIBUTES=service.name=x",
        ]);
        assert_eq!(found.service_name.as_deref(), Some("x"));
        assert_eq!(
            environment(&["OTEL_SERVICE_NAME=  ", "novalue"]),
            Environment::default()
        );
    }

    #[test]
    fn workloads_of_pods() {
        for (pod, workload) in [
            ("web-7d9c5b8f6c-x2x9k", "web"),
            ("order-service-5f4d7c9b8-lq4zz", "order-service"),
            ("es-data-0", "es-data"),
            ("es-data-12", "es-data"),
            ("node-agent-x2x9k", "node-agent"),
            ("report-28912345-x2x9k", "report"),
            ("migrate-x2x9k", "migrate"),
            ("standalone", "standalone"),
            ("my-tool", "my-tool"),
            ("kube-apiserver-node1", "kube-apiserver-node1"),
            ("redis-20240101", "redis-20240101"),
            ("", ""),
        ] {
            assert_eq!(workload_name(pod), workload, "{pod}");
        }
    }

    #[test]
    fn executables_that_were_replaced_keep_their_name() {
        let name = |path: &str| executable_name(Path::new(path));
        assert_eq!(name("/usr/sbin/nginx (deleted)").as_deref(), Some("nginx"));
        assert_eq!(name("/srv/axum-demo").as_deref(), Some("axum-demo"));
        assert_eq!(name(""), None);
        assert_eq!(name("/memfd:sealed-91173221a7ea (deleted)"), None);
    }

    proptest! {
        #[test]
        fn clean_names_are_fit_for_labels(name in "\\PC{0,200}|[\\x00-\\x7f]{0,200}") {
            if let Some(cleaned) = clean(&name) {
                prop_assert!(!cleaned.is_empty() && cleaned.len() <= MAX_NAME_BYTES);
                prop_assert!(!cleaned.chars().any(char::is_control));
                prop_assert_eq!(clean(&cleaned), Some(cleaned));
            }
        }

        #[test]
        fn any_environment_is_survived(block in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Environment::parse(&block);
        }
    }
}

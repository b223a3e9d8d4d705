//! `GET /targets`.

use serde::Serialize;

use crate::process::Target;
use crate::process::{NameSource, Pod, Runtime};

/// A watched process as JSON tells it. The command line stays out: people pass secrets in it.
#[derive(Debug, Serialize)]
pub(super) struct TargetView<'a> {
    pid: u32,
    service: &'a str,
    service_source: NameSource,
    service_namespace: Option<&'a str>,
    executable: String,
    runtime: Runtime,
    interpreter: Option<&'a str>,
    container: Option<&'a str>,
    pod: Option<&'a Pod>,
    ports: &'a [u16],
    protocols: &'a [&'static str],
}

impl<'a> TargetView<'a> {
    pub(super) fn of(target: &'a Target) -> Self {
        let process = &*target.process;
        Self {
            pid: process.pid,
            service: &process.service,
            service_source: process.service_source,
            service_namespace: process.service_namespace.as_deref(),
            executable: process.executable.to_string_lossy().into_owned(),
            runtime: process.runtime,
            interpreter: target.interpreter.as_deref(),
            container: process.container_id.as_deref(),
            pod: process.pod.as_deref(),
            ports: &target.ports,
            protocols: &target.protocols,
        }
    }
}

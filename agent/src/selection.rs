//! Which processes are observed.

use globset::{GlobBuilder, GlobMatcher};

use crate::config::{TargetRule, TargetsConfig};
use crate::process::Process;

/// The rules of [`TargetsConfig`], ready to match.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    include: Vec<Rule>,
    exclude: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    executable: Option<GlobMatcher>,
    executable_file_name: Option<GlobMatcher>,
    command_line: Option<GlobMatcher>,
    port: Option<u16>,
    service: Option<GlobMatcher>,
    container: Option<GlobMatcher>,
}

impl Selection {
    /// Prepares the rules of a configuration.
    ///
    /// # Errors
    ///
    /// A glob that is none; [`crate::config::Config`] has refused those before.
    pub fn new(targets: &TargetsConfig) -> Result<Self, globset::Error> {
        let rules = |rules: &[TargetRule]| rules.iter().map(Rule::new).collect::<Result<_, _>>();
        Ok(Self {
            include: rules(&targets.include)?,
            exclude: rules(&targets.exclude)?,
        })
    }

    /// Whether `process`, which serves on the TCP ports `ports`, is observed. A rule that names a
    /// port fails while the port is not known: ask again when a process begins to serve one.
    #[must_use]
    pub fn selects(&self, process: &Process, ports: &[u16]) -> bool {
        let any = |rules: &[Rule]| rules.iter().any(|rule| rule.matches(process, ports));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }

    /// Whether some rule names a port, so that the answer can change with the ports.
    #[must_use]
    pub fn depends_on_ports(&self) -> bool {
        let mut rules = self.include.iter().chain(&self.exclude);
        rules.any(|rule| rule.port.is_some())
    }
}

impl Rule {
    fn new(rule: &TargetRule) -> Result<Self, globset::Error> {
        let prepare =
            |pattern: Option<&String>| pattern.map(|glob_text| glob(glob_text)).transpose();
        let (paths, file_names) = match &rule.executable {
            Some(pattern) if pattern.contains('/') => (Some(pattern), None),
            other => (None, other.as_ref()),
        };
        // A container id is given by its first digits, as container engines take it.
        let container = rule.container.as_ref().map(|id| format!("{id}*"));
        Ok(Self {
            executable: prepare(paths)?,
            executable_file_name: prepare(file_names)?,
            command_line: prepare(rule.command_line.as_ref())?,
            port: rule.port,
            service: prepare(rule.service.as_ref())?,
            container: prepare(container.as_ref())?,
        })
    }

    fn matches(&self, process: &Process, ports: &[u16]) -> bool {
        fn holds(glob: Option<&GlobMatcher>, test: impl FnOnce(&GlobMatcher) -> bool) -> bool {
            glob.is_none_or(test)
        }
        self.port.is_none_or(|port| ports.contains(&port))
            && holds(self.service.as_ref(), |glob| {
                glob.is_match(&*process.service)
            })
            && holds(self.executable.as_ref(), |glob| {
                glob.is_match(&process.executable)
            })
            && holds(self.executable_file_name.as_ref(), |glob| {
                process
                    .executable
                    .file_name()
                    .is_some_and(|name| glob.is_match(name))
            })
            && holds(self.command_line.as_ref(), |glob| {
                glob.is_match(process.command_line.join(" "))
            })
            && holds(self.container.as_ref(), |glob| {
                process
                    .container_id
                    .as_deref()
                    .is_some_and(|id| glob.is_match(id))
            })
    }
}

/// Compiles a glob whose `*` matches slashes too: what it is matched against is seldom a path.
///
/// # Errors
///
/// What is wrong with the pattern.
pub fn glob(pattern: &str) -> Result<GlobMatcher, globset::Error> {
    Ok(GlobBuilder::new(pattern)
        .literal_separator(false)
        .build()?
        .compile_matcher())
}

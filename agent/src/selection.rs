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

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process {
            service: "orders-api".into(),
            executable: "/usr/bin/python3.11".into(),
            command_line: ["python3", "-m", "uvicorn", "orders:api"]
                .map(str::to_owned)
                .to_vec(),
            container_id: Some("3f9a7c1be2d84650".into()),
            ..Process::unknown(7, "python3")
        }
    }

    fn rules(text: &str) -> Vec<TargetRule> {
        serde_saphyr::from_str(text).unwrap()
    }

    fn selection(include: &str, exclude: &str) -> Selection {
        let targets = TargetsConfig {
            include: rules(include),
            exclude: rules(exclude),
        };
        Selection::new(&targets).unwrap()
    }

    #[test]
    fn by_default_every_process_is_observed() {
        let selection = Selection::new(&TargetsConfig::default()).unwrap();
        assert!(selection.selects(&process(), &[]));
        assert!(selection.selects(&Process::unknown(1, ""), &[]));
        assert!(!selection.depends_on_ports());
    }

    #[test]
    fn each_condition_selects() {
        for (rule, selected) in [
            ("executable: python*", true),
            ("executable: python3", false),
            ("executable: /usr/bin/*", true),
            ("executable: /opt/**", false),
            ("executable: '{python,node}*'", true),
            ("command_line: '*uvicorn orders:*'", true),
            ("command_line: uvicorn", false),
            ("port: 8000", true),
            ("port: 8001", false),
            ("service: orders-*", true),
            ("service: orders", false),
            ("service: 'order?-a[a-z]i'", true),
            ("container: 3f9a", true),
            ("container: 3f9a7c1be2d84650", true),
            ("container: 9a7c", false),
            ("container: '*2d8'", true),
        ] {
            let include = selection(&format!("[{{{rule}}}]"), "[]");
            assert_eq!(
                include.selects(&process(), &[443, 8000]),
                selected,
                "include {rule}"
            );
            let exclude = selection("[]", &format!("[{{{rule}}}]"));
            assert_eq!(
                exclude.selects(&process(), &[443, 8000]),
                !selected,
                "exclude {rule}"
            );
        }
    }

    #[test]
    fn all_conditions_of_a_rule_have_to_hold_and_any_rule_will_do() {
        let both = selection("[{service: orders-*, port: 8000}]", "[]");
        assert!(both.selects(&process(), &[8000]));
        assert!(!both.selects(&process(), &[]));
        assert!(both.depends_on_ports());
        let either = selection("[{service: other}, {port: 8000}]", "[]");
        assert!(either.selects(&process(), &[8000]));
        assert!(!either.selects(&process(), &[80]));
    }

    #[test]
    fn an_exclude_rule_wins() {
        let selection = selection("[{service: orders-*}]", "[{executable: python*}]");
        assert!(!selection.selects(&process(), &[]));
    }

    #[test]
    fn a_process_that_is_in_no_container_matches_no_container_rule() {
        let selection = selection("[{container: '*'}]", "[]");
        assert!(selection.selects(&process(), &[]));
        assert!(!selection.selects(&Process::unknown(1, "x"), &[]));
    }

    #[test]
    fn a_broken_glob_is_an_error() {
        let targets = TargetsConfig {
            include: rules("[{service: 'a['}]"),
            exclude: Vec::new(),
        };
        assert!(Selection::new(&targets).is_err());
    }
}

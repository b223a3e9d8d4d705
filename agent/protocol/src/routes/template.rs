//! Route templates as people write them.

use std::collections::HashMap;
use std::ptr;
use std::sync::Arc;

use super::next_segment;

/// Why a template is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It does not begin with a slash.
    #[error("route template {0:?} must begin with '/'")]
    NotAbsolute(String),
    /// A brace without its other half.
    #[error("route template {0:?} has a brace without its counterpart")]
    UnbalancedBrace(String),
    /// Something that this form of template does not know.
    #[error(
        "route template {template:?}: segment {segment:?} is not supported \
         (allowed: text, {{name}}, {{name:path}}, :name, *, each with text around it at most)"
    )]
    Unsupported {
        /// The whole template.
        template: String,
        /// The segment that is not understood.
        segment: String,
    },
}

/// A trie of templates. At each segment a literal is tried before a parameter with text around it,
/// that before a bare parameter, and a parameter that takes the whole rest comes last.
#[derive(Debug, Default)]
pub(super) struct Templates {
    root: Node,
}

#[derive(Debug, Default)]
struct Node {
    literals: HashMap<Box<str>, Node>,
    partial: Vec<(Affixes, Node)>,
    parameter: Option<Box<Node>>,
    rest: Option<Box<Node>>,
    route: Option<Arc<str>>,
}

/// Text before and behind a parameter in one segment.
#[derive(Debug, PartialEq, Eq)]
struct Affixes {
    prefix: Box<str>,
    suffix: Box<str>,
}

impl Affixes {
    /// The parameter itself takes one character at least.
    fn matches(&self, segment: &str) -> bool {
        segment
            .strip_prefix(&*self.prefix)
            .and_then(|rest| rest.strip_suffix(&*self.suffix))
            .is_some_and(|parameter| !parameter.is_empty())
    }
}

/// One segment of a template.
#[derive(Debug, PartialEq, Eq)]
enum Pattern<'a> {
    Literal(&'a str),
    Partial(Affixes),
    Parameter,
    /// Any number of segments.
    Rest,
}

impl Templates {
    pub(super) fn parse(templates: &[String]) -> Result<Self, TemplateError> {
        let mut parsed = Self::default();
        for template in templates {
            if !template.starts_with('/') {
                return Err(TemplateError::NotAbsolute(template.clone()));
            }
            let mut node = &mut parsed.root;
            let mut rest = template.as_str();
            while let Some((segment, below)) = next_segment(rest) {
                node = node.child(Pattern::parse(segment, template)?);
                rest = below;
            }
            // The first of two that match the same paths wins.
            node.route.get_or_insert_with(|| template.as_str().into());
        }
        Ok(parsed)
    }

    /// The most specific template that matches `path`.
    pub(super) fn route(&self, path: &str) -> Option<Arc<str>> {
        self.root.find(path, &mut Failed::new()).cloned()
    }
}

/// Nodes behind a rest that match no end of the path of so many bytes or fewer. A path has each of
/// its ends once, so that a node need not look at one of them again for each way that a rest before
/// it may divide the path: with a dozen rests in a template these are millions.
type Failed = HashMap<*const Node, usize>;

impl Node {
    fn child(&mut self, pattern: Pattern<'_>) -> &mut Self {
        match pattern {
            Pattern::Literal(text) => self.literals.entry(text.into()).or_default(),
            Pattern::Parameter => self.parameter.get_or_insert_default(),
            Pattern::Rest => self.rest.get_or_insert_default(),
            Pattern::Partial(affixes) => {
                let known = self.partial.iter().position(|(known, _)| *known == affixes);
                let index = known.unwrap_or_else(|| {
                    self.partial.push((affixes, Self::default()));
                    self.partial.len() - 1
                });
                &mut self.partial[index].1
            }
        }
    }

    /// Matches what is left of a path. Visits a node once, or once a segment below a rest.
    fn find(&self, path: &str, failed: &mut Failed) -> Option<&Arc<str>> {
        let Some((segment, below)) = next_segment(path) else {
            // A rest may be empty: `/files/*` is `/files` too.
            let empty_rest = || self.rest.as_ref()?.route.as_ref();
            return self.route.as_ref().or_else(empty_rest);
        };
        let literal = self.literals.get(segment).into_iter();
        let matching = self.partial.iter().filter(|(a, _)| a.matches(segment));
        let partial = matching.map(|(_, node)| node);
        literal
            .chain(partial)
            .chain(self.parameter.as_deref())
            .find_map(|node| node.find(below, failed))
            .or_else(|| self.rest.as_ref()?.find_behind_rest(below, failed))
    }

    /// Matches a node behind a rest that has taken one segment, and may take more.
    fn find_behind_rest(&self, path: &str, failed: &mut Failed) -> Option<&Arc<str>> {
        let known = failed.get(&ptr::from_ref(self)).copied();
        let mut left = path;
        while known.is_none_or(|known| left.len() > known) {
            if let Some(route) = self.find(left, failed) {
                return Some(route);
            }
            match next_segment(left) {
                Some((_, below)) => left = below,
                None => break,
            }
        }
        let longest = failed.entry(self).or_default();
        *longest = path.len().max(*longest);
        None
    }
}

impl<'a> Pattern<'a> {
    fn parse(segment: &'a str, template: &str) -> Result<Self, TemplateError> {
        let unsupported = || TemplateError::Unsupported {
            template: template.to_owned(),
            segment: segment.to_owned(),
        };
        if matches!(segment, "*" | "**") {
            return Ok(Self::Rest);
        }
        let (prefix, name, suffix) = match segment.split_once('{') {
            Some((prefix, behind)) => {
                let unbalanced = || TemplateError::UnbalancedBrace(template.to_owned());
                let (name, suffix) = behind.split_once('}').ok_or_else(unbalanced)?;
                // `{*rest}` and `{rest...}` are how axum and Go write it.
                let takes_rest =
                    name.ends_with(":path") || name.starts_with('*') || name.ends_with("...");
                if takes_rest && prefix.is_empty() && suffix.is_empty() {
                    return Ok(Self::Rest);
                }
                if takes_rest {
                    return Err(unsupported());
                }
                (prefix, name, suffix)
            }
            None if segment.contains('}') => {
                return Err(TemplateError::UnbalancedBrace(template.to_owned()));
            }
            None => match segment.split_once(':') {
                Some((prefix, behind)) => {
                    let end = behind
                        .find(|letter: char| !letter.is_alphanumeric() && letter != '_')
                        .unwrap_or(behind.len());
                    let (name, suffix) = behind.split_at(end);
                    (prefix, name, suffix)
                }
                None if segment.contains('*') => return Err(unsupported()),
                None => return Ok(Self::Literal(segment)),
            },
        };
        let strange = |text: &str| text.contains(['{', '}', ':', '*', '(', ')', '?', '+']);
        if name.is_empty() || strange(prefix) || strange(suffix) {
            return Err(unsupported());
        }
        if prefix.is_empty() && suffix.is_empty() {
            return Ok(Self::Parameter);
        }
        Ok(Self::Partial(Affixes {
            prefix: prefix.into(),
            suffix: suffix.into(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(templates: &[&str], path: &str) -> Option<String> {
        let templates: Vec<String> = templates.iter().map(ToString::to_string).collect();
        let templates = Templates::parse(&templates).unwrap();
        templates.route(path).map(|route| route.to_string())
    }

    fn error(template: &str) -> TemplateError {
        Templates::parse(&[template.to_owned()]).unwrap_err()
    }

    #[test]
    fn openapi_and_express_forms() {
        for (template, path) in [
            ("/users/{id}", "/users/7"),
            ("/users/{id:int}", "/users/7/"),
            ("/users/:id", "/users/7"),
            ("/files/{path:path}", "/files/a/b/c"),
            ("/files/{*path}", "/files/a/b/c"),
            ("/files/*", "/files/a/b/c"),
            ("/files/*", "/files"),
            ("/{name}.json", "/index.json"),
            ("/:name.json", "/index.json"),
            ("/{path:path}/meta", "/a/b/meta"),
            ("/", "/"),
        ] {
            assert_eq!(route(&[template], path).as_deref(), Some(template));
        }
    }

    #[test]
    fn what_does_not_match() {
        for (template, path) in [
            ("/users/{id}", "/users"),
            ("/users/{id}", "/users/7/posts"),
            ("/{name}.json", "/.json"),
            ("/{path:path}/meta", "/a/b/data"),
            ("/users", "/user"),
        ] {
            assert_eq!(route(&[template], path), None, "{template} {path}");
        }
    }

    #[test]
    fn the_most_specific_wins_whatever_the_order() {
        let templates = ["/*", "/users/{id}", "/users/{id}.json", "/users/me"];
        for (path, expected) in [
            ("/users/me", "/users/me"),
            ("/users/7.json", "/users/{id}.json"),
            ("/users/7", "/users/{id}"),
            ("/users/7/posts", "/*"),
            ("/", "/*"),
        ] {
            assert_eq!(route(&templates, path).as_deref(), Some(expected));
            let mut reversed = templates;
            reversed.reverse();
            assert_eq!(route(&reversed, path).as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_literal_that_leads_nowhere_gives_way() {
        let templates = ["/a/b/c", "/{x}/b/d"];
        assert_eq!(route(&templates, "/a/b/d").as_deref(), Some("/{x}/b/d"));
    }

    /// Found by fuzzing: each rest used to try every end of the path anew for each way of the rests
    /// before it, so that the longest path of such a template took years.
    #[test]
    fn many_rests_are_as_quick_as_one() {
        let template = "/**/a".repeat(16);
        let path = "/a".repeat(512);
        assert_eq!(route(&[&template, "/*"], &path), Some(template.clone()));
        let other = format!("{path}/b");
        assert_eq!(route(&[&template, "/*"], &other).as_deref(), Some("/*"));
        assert_eq!(route(&[&template], &other), None);
    }

    #[test]
    fn errors_name_the_template() {
        assert_eq!(error("users"), TemplateError::NotAbsolute("users".into()));
        for template in ["/{id", "/id}"] {
            let unbalanced = TemplateError::UnbalancedBrace(template.into());
            assert_eq!(error(template), unbalanced);
        }
        for template in [
            "/:id([0-9]+)",
            "/:id?",
            "/{a}{b}",
            "/{}",
            "/a*b",
            "/x{p:path}",
        ] {
            let error = error(template);
            assert!(
                matches!(error, TemplateError::Unsupported { .. }),
                "{template}"
            );
            assert!(error.to_string().contains(template), "{error}");
        }
    }
}

//! Routes: paths with what identifies taken out, so that few of them name many requests.
//!
//! A service's routes come from the templates that its configuration gives, most specific first.
//! A path that none of them matches is learned, and so bounded: at most `max_routes` routes. Where
//! there would be more, those that are used least fold into one that tells their beginning,
//! `/repos/{id}/*`; [`OVERFLOW_ROUTE`] is left for what has no beginning in common.

mod identifier;
mod learned;
mod template;

use std::sync::Arc;

use learned::Learned;
pub use template::TemplateError;
use template::Templates;

/// The route of paths that came when the table was full and nothing in it could fold.
pub const OVERFLOW_ROUTE: &str = "/{overflow}";

/// The route of every target of CONNECT: a host and a port are no path.
pub const AUTHORITY_ROUTE: &str = "{authority}";

/// The routes of one service.
#[derive(Debug)]
pub struct RouteTable {
    templates: Templates,
    learned: Learned,
    overflow: Arc<str>,
    authority: Arc<str>,
    verbatim: Arc<str>,
    none: Arc<str>,
}

impl RouteTable {
    /// A table with the given templates that learns at most `max_routes` routes beside them.
    ///
    /// Templates are written as in FastAPI and OpenAPI (`/users/{id}`, `/files/{path:path}`,
    /// `/{name}.json`) or as in Express (`/users/:id`, `/files/*`).
    ///
    /// # Errors
    ///
    /// [`TemplateError`] names the template that is none, and why.
    pub fn new(templates: &[String], max_routes: usize) -> Result<Self, TemplateError> {
        Ok(Self {
            templates: Templates::parse(templates)?,
            learned: Learned::new(max_routes),
            overflow: OVERFLOW_ROUTE.into(),
            authority: AUTHORITY_ROUTE.into(),
            verbatim: "*".into(),
            none: "".into(),
        })
    }

    /// The route of a path without query and fragment. A path keeps its route for as long as the
    /// table lives, unless its siblings turn out to be identifiers too, or the table is full: then it shares a
    /// coarser one with them.
    pub fn route(&mut self, path: &str) -> Arc<str> {
        match path {
            "" => return Arc::clone(&self.none),
            "*" => return Arc::clone(&self.verbatim),
            _ if !path.starts_with('/') => return Arc::clone(&self.authority),
            _ => {}
        }
        if let Some(route) = self.templates.route(path) {
            return route;
        }
        self.learned
            .route(path)
            .unwrap_or_else(|| Arc::clone(&self.overflow))
    }

    /// Routes that were learned so far.
    #[must_use]
    pub fn learned_routes(&self) -> usize {
        self.learned.len()
    }
}

/// The first segment of a path, and what is behind it. Servers take empty segments and a slash at
/// the end for nothing, and so does this.
fn next_segment(path: &str) -> Option<(&str, &str)> {
    let path = path.trim_start_matches('/');
    let end = path.find('/').unwrap_or(path.len());
    (!path.is_empty()).then(|| path.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(templates: &[&str]) -> RouteTable {
        let templates: Vec<String> = templates.iter().map(ToString::to_string).collect();
        RouteTable::new(&templates, 200).unwrap()
    }

    #[test]
    fn templates_win_over_what_would_be_learned() {
        let mut table = table(&["/get_complete_tree/{workflow_id}"]);
        assert_eq!(
            &*table.route("/get_complete_tree/42"),
            "/get_complete_tree/{workflow_id}"
        );
        assert_eq!(&*table.route("/other/42"), "/other/{id}");
    }

    #[test]
    fn targets_that_are_no_paths() {
        let mut table = table(&[]);
        assert_eq!(&*table.route("*"), "*");
        assert_eq!(&*table.route("example.org:443"), AUTHORITY_ROUTE);
        assert_eq!(&*table.route(""), "");
        assert_eq!(&*table.route("/"), "/");
        assert_eq!(&*table.route("//"), "/");
        assert_eq!(table.learned_routes(), 1);
    }
}

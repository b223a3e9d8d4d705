//! Routes learned from the paths themselves.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::identifier::is_identifier;
use super::next_segment;

/// What stands for an identifier in a learned route.
const PARAMETER: &str = "{id}";
/// What stands for all that lies deeper than [`MAX_DEPTH`].
const REST: &str = "{path}";
/// What stands for all that lies below a node that was folded.
const FOLDED: &str = "*";
/// Segments of a learned route.
const MAX_DEPTH: usize = 16;
/// Words under one node that may be identifiers; a power of two.
const MAX_SIBLINGS: usize = 64;
/// The second half of a node's words takes so many times the requests of both halves that the first
/// half took, or more, or they are taken for identifiers: of those there are always new ones, while
/// the last of the names of resources come late.
const SLOWDOWN: u32 = 3;
/// A word that has come so often is kept when its siblings are taken for identifiers.
const ESTABLISHED: u32 = 8;
/// When the table is full, words are taken for identifiers from so many under one node on that are
/// not established.
const MAX_SIBLINGS_WHEN_FULL: usize = 16;

/// A trie of segments. It grows by the routes that are learned and by nothing else, so that their
/// bound is the bound of its memory.
///
/// When the table is full, many words beside each other are taken for identifiers, where there are
/// such; else the least used part of the trie is folded: all that lies below one node shares a
/// route, `/repos/{id}/{id}/*`. So a route only ever gets coarser, and what is new has one that
/// tells where it belongs.
#[derive(Debug)]
pub(super) struct Learned {
    root: Node,
    routes: usize,
    max_routes: usize,
    /// The table is full, and nothing in it can be folded: nor will it, for it can't grow.
    exhausted: bool,
}

impl Learned {
    pub(super) fn new(max_routes: usize) -> Self {
        Self {
            root: Node::default(),
            routes: 0,
            max_routes,
            exhausted: false,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.routes
    }

    /// The route of `path`; `None` when it would be one too many.
    pub(super) fn route(&mut self, path: &str) -> Option<Arc<str>> {
        if let Some(name) = self.root.find(path) {
            return Some(name);
        }
        if self.exhausted {
            return None;
        }
        if self.routes >= self.max_routes {
            self.exhausted = !self.root.collapse_widest() && !self.root.fold_least_used();
            self.routes = self.root.routes();
            if let Some(name) = self.root.find(path) {
                return Some(name);
            }
            if self.routes >= self.max_routes {
                return None;
            }
        }
        let collapsed = self.root.insert(path);
        self.routes = if collapsed {
            self.root.routes()
        } else {
            self.routes + 1
        };
        self.root.find(path)
    }
}

#[derive(Debug, Default)]
struct Node {
    words: BTreeMap<Box<str>, Node>,
    parameter: Option<Box<Node>>,
    /// Words that are not in `words` are identifiers here.
    closed: bool,
    /// How often a path led here.
    hits: u32,
    /// How often it had when `words` were half as many as now, or more.
    half_hits: u32,
    /// The route of paths that end here; `None` inside until it was asked for.
    route: Option<Option<Arc<str>>>,
    /// The same of all paths that lead further: then there are neither words nor a parameter.
    folded: Option<Option<Arc<str>>>,
}

/// Where a segment leads.
enum Step<'a> {
    Word(&'a str),
    Identifier,
}

/// The next step along a path and what is left behind it; `None` at its end.
fn next_step(path: &str, depth: usize) -> Option<(Step<'_>, &str)> {
    let (segment, below) = next_segment(path)?;
    Some(if depth == MAX_DEPTH {
        (Step::Word(REST), "")
    } else if is_identifier(segment) {
        (Step::Identifier, below)
    } else {
        (Step::Word(segment), below)
    })
}

impl Node {
    /// The name of the route that `path` has.
    fn find(&mut self, path: &str) -> Option<Arc<str>> {
        if let Some(name) = self.walk(path, true, |_| {})? {
            return Some(Arc::clone(name));
        }
        let mut name = String::new();
        let route = self.walk(path, false, |segment| {
            name.push('/');
            name.push_str(segment);
        })?;
        if name.is_empty() {
            name.push('/');
        }
        Some(Arc::clone(route.insert(name.into())))
    }

    /// The route that `path` ends at, if there is one. Shows its segments to `visit` on the way, and
    /// counts the nodes' hits where it `counts`.
    fn walk(
        &mut self,
        path: &str,
        counts: bool,
        mut visit: impl FnMut(&str),
    ) -> Option<&mut Option<Arc<str>>> {
        let mut node = self;
        let mut rest = path;
        let mut depth = 0;
        while let Some((step, below)) = next_step(rest, depth) {
            if node.folded.is_some() {
                visit(FOLDED);
                return node.folded.as_mut();
            }
            let word = match step {
                Step::Word(word) if node.words.contains_key(word) => Some(word),
                Step::Word(_) if !node.closed => return None,
                Step::Word(_) | Step::Identifier => None,
            };
            visit(word.unwrap_or(PARAMETER));
            node = match word {
                Some(word) => node.words.get_mut(word)?,
                None => node.parameter.as_mut()?,
            };
            node.hits = node.hits.saturating_add(u32::from(counts));
            rest = below;
            depth += 1;
        }
        node.route.as_mut()
    }

    /// Adds the route of `path`, which has none. True when words were taken for identifiers on the
    /// way.
    fn insert(&mut self, path: &str) -> bool {
        let mut collapsed = false;
        let mut node = self;
        let mut rest = path;
        let mut depth = 0;
        while let Some((step, below)) = next_step(rest, depth) {
            let word = match step {
                Step::Word(word) if node.words.contains_key(word) => Some(word),
                Step::Word(_) if node.closed => None,
                Step::Word(_) if node.looks_like_identifiers() => {
                    if depth == 0 {
                        // The first segments name the parts of a service. They stay when a scanner
                        // tries a thousand others.
                        node.closed = true;
                    } else {
                        node.collapse();
                        collapsed = true;
                    }
                    None
                }
                Step::Word(word) => Some(word),
                Step::Identifier => None,
            };
            node = match word {
                Some(word) => node.words.entry(word.into()).or_default(),
                None => node.parameter.get_or_insert_default(),
            };
            rest = below;
            depth += 1;
        }
        node.route.get_or_insert_default();
        collapsed
    }

    /// Whether the words here are many, and new ones come as fast as ever. To be asked once for each
    /// new word.
    fn looks_like_identifiers(&mut self) -> bool {
        let words = self.words.len();
        if words < MAX_SIBLINGS / 2 || !words.is_power_of_two() {
            return false;
        }
        let half_hits = std::mem::replace(&mut self.half_hits, self.hits);
        words >= MAX_SIBLINGS && self.hits < SLOWDOWN.saturating_mul(half_hits)
            || self.is_mostly_new()
    }

    /// Whether there are many words, and most of them came only once.
    fn is_mostly_new(&self) -> bool {
        let once = || self.words.values().filter(|word| word.hits <= 1).count();
        self.words.len() >= MAX_SIBLINGS && 2 * once() >= self.words.len()
    }

    /// Words that a collapse would take for identifiers.
    fn passing_words(&self) -> usize {
        let passing = |word: &&Self| word.hits < ESTABLISHED;
        self.words.values().filter(passing).count()
    }

    /// Takes the words here for identifiers that are not established, and those below which all is
    /// as below an identifier: it is below one from now on.
    fn collapse(&mut self) {
        self.closed = true;
        let parameter = self.parameter.get_or_insert_default();
        let words = std::mem::take(&mut self.words).into_iter();
        let (established, passing): (Vec<_>, Vec<_>) =
            words.partition(|(_, node)| node.hits >= ESTABLISHED);
        for (_, node) in passing {
            parameter.merge(node);
        }
        for (word, node) in established {
            if node.resembles(parameter) {
                parameter.merge(node);
            } else {
                self.words.insert(word, node);
            }
        }
        parameter.forget_names();
    }

    /// Whether three of four words below are below the other one too.
    fn resembles(&self, other: &Self) -> bool {
        let shared = self
            .words
            .keys()
            .filter(|word| other.words.contains_key(*word));
        self.words.len() >= 2 && 4 * shared.count() >= 3 * self.words.len()
    }

    fn merge(&mut self, other: Self) {
        for (word, node) in other.words {
            if self.closed {
                self.parameter.get_or_insert_default().merge(node);
            } else {
                self.words.entry(word).or_default().merge(node);
            }
        }
        if let Some(node) = other.parameter {
            self.parameter.get_or_insert_default().merge(*node);
        }
        self.route = self.route.take().or(other.route);
        self.hits = self.hits.saturating_add(other.hits);
        if self.folded.is_some() || other.folded.is_some() {
            self.fold();
        } else if !self.closed && (other.closed || self.is_mostly_new()) {
            self.collapse();
        }
    }

    /// Below a collapse, routes are called otherwise.
    fn forget_names(&mut self) {
        for name in [&mut self.route, &mut self.folded].into_iter().flatten() {
            *name = None;
        }
        for node in self.children() {
            node.forget_names();
        }
    }

    /// Collapses the node with the most passing words below this one, if that is worth it.
    fn collapse_widest(&mut self) -> bool {
        let width = self.widest_below();
        width >= MAX_SIBLINGS_WHEN_FULL && self.collapse_below(width)
    }

    fn widest_below(&mut self) -> usize {
        let width = |node: &mut Self| node.passing_words().max(node.widest_below());
        self.children().map(width).max().unwrap_or(0)
    }

    /// Collapses the first node below this one that has `width` passing words.
    fn collapse_below(&mut self, width: usize) -> bool {
        self.children().any(|node| {
            if node.passing_words() == width {
                node.collapse();
                true
            } else {
                node.collapse_below(width)
            }
        })
    }

    /// Folds the node below this one that is used least, of those that have more than one route
    /// below them. False where there is none.
    fn fold_least_used(&mut self) -> bool {
        let Some((hits, Reverse(depth))) = self.least_used_below(1) else {
            return false;
        };
        self.fold_below(hits, depth)
    }

    /// How often a path led to the node that is to be folded, and how deep it is: of those that are
    /// used as little, the deepest, whose route tells most. The nodes below this one are so deep.
    fn least_used_below(&self, depth: usize) -> Option<(u32, Reverse<usize>)> {
        let children = self.words.values().chain(self.parameter.as_deref());
        let used = children.filter_map(|node| {
            let here = node.is_foldable().then_some((node.hits, Reverse(depth)));
            let below = node.least_used_below(depth + 1);
            here.into_iter().chain(below).min()
        });
        used.min()
    }

    /// Folds the first node so many levels below this one that is used so much.
    fn fold_below(&mut self, hits: u32, depth: usize) -> bool {
        self.children().any(|node| match depth {
            1 if node.hits == hits && node.is_foldable() => {
                node.fold();
                true
            }
            1 => false,
            _ => node.fold_below(hits, depth - 1),
        })
    }

    fn is_foldable(&self) -> bool {
        self.routes() - usize::from(self.route.is_some()) >= 2
    }

    /// Lets all that lies below share a route.
    fn fold(&mut self) {
        self.words.clear();
        self.parameter = None;
        self.folded.get_or_insert_default();
    }

    fn routes(&self) -> usize {
        let children = self.words.values().chain(self.parameter.as_deref());
        let below: usize = children.map(Self::routes).sum();
        below + usize::from(self.route.is_some()) + usize::from(self.folded.is_some())
    }

    fn children(&mut self) -> impl Iterator<Item = &mut Self> {
        self.words.values_mut().chain(self.parameter.as_deref_mut())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn routes(paths: &[&str]) -> Vec<String> {
        let mut learned = Learned::new(200);
        paths
            .iter()
            .map(|path| learned.route(path).unwrap().to_string())
            .collect()
    }

    #[test]
    fn identifiers_collapse_at_once() {
        assert_eq!(
            routes(&[
                "/users/7/posts/550e8400-e29b-41d4-a716-446655440000",
                "/users/me/posts/",
                "/health",
                "/",
            ]),
            ["/users/{id}/posts/{id}", "/users/me/posts", "/health", "/"]
        );
    }

    #[test]
    fn too_many_siblings_are_identifiers() {
        let mut learned = Learned::new(200);
        let path = |index: usize| format!("/posts/title{}/edit", letters(index));
        for index in 0..MAX_SIBLINGS {
            let name = learned.route(&path(index)).unwrap();
            assert_eq!(*name, *path(index));
        }
        assert_eq!(learned.len(), MAX_SIBLINGS);
        assert_eq!(&*learned.route("/posts/new").unwrap(), "/posts/{id}");
        for index in 0..=MAX_SIBLINGS {
            let name = learned.route(&path(index)).unwrap();
            assert_eq!(&*name, "/posts/{id}/edit");
        }
        assert_eq!(learned.len(), 2);
    }

    /// Stripe has 76 resources below `/v1`: more than there may be words that come once.
    #[test]
    fn resources_that_come_again_are_no_identifiers() {
        let mut learned = Learned::new(500);
        let path = |index: usize| format!("/v1/{}", letters(index));
        for known in 1..MAX_SIBLINGS + 20 {
            for index in 0..known {
                let name = learned.route(&path(index)).unwrap();
                assert_eq!(*name, *path(index));
            }
        }
        // A scanner's words are, and do not take those along that are established.
        for index in 0..200 {
            learned.route(&format!("/v1/scan{}", letters(index)));
        }
        assert_eq!(&*learned.route("/v1/scana").unwrap(), "/v1/{id}");
        assert_eq!(&*learned.route("/v1/a").unwrap(), "/v1/a");
    }

    #[test]
    fn what_is_alike_below_is_one_identifier() {
        let mut learned = Learned::new(2000);
        for owner in (0..10).chain(0..MAX_SIBLINGS + 1) {
            for part in ["issues", "pulls"] {
                learned.route(&format!("/repos/{}/{part}", letters(owner)));
            }
            if owner < 10 {
                for _ in 0..ESTABLISHED {
                    learned.route(&format!("/repos/{}/issues", letters(owner)));
                }
            }
        }
        assert_eq!(
            &*learned.route("/repos/a/pulls").unwrap(),
            "/repos/{id}/pulls"
        );
    }

    #[test]
    fn the_first_segments_survive_a_scanner() {
        let mut learned = Learned::new(200);
        learned.route("/health");
        learned.route("/users/list");
        for index in 0..1000 {
            learned.route(&format!("/scan{}", letters(index)));
        }
        assert_eq!(&*learned.route("/health").unwrap(), "/health");
        assert_eq!(&*learned.route("/users/list").unwrap(), "/users/list");
        assert_eq!(&*learned.route("/something-else").unwrap(), "/{id}");
    }

    #[test]
    fn a_full_table_makes_room_where_it_is_widest() {
        let mut learned = Learned::new(40);
        for index in 0..30 {
            learned.route(&format!("/slugs/{}", letters(index)));
        }
        for index in 0..10 {
            learned.route(&format!("/words/{}", letters(index)));
        }
        assert_eq!(learned.len(), 40);
        assert_eq!(&*learned.route("/new").unwrap(), "/new");
        assert_eq!(&*learned.route("/slugs/a").unwrap(), "/slugs/{id}");
        assert_eq!(&*learned.route("/words/a").unwrap(), "/words/a");
        assert_eq!(learned.len(), 12);
    }

    #[test]
    fn a_full_table_without_a_wide_node_overflows() {
        let mut learned = Learned::new(3);
        for path in ["/a", "/b", "/c"] {
            assert!(learned.route(path).is_some());
        }
        assert_eq!(learned.route("/d"), None);
        assert!(learned.route("/a").is_some());
    }

    #[test]
    fn a_full_table_folds_what_is_used_least() {
        let mut learned = Learned::new(8);
        for _ in 0..10 {
            for path in ["/a/b/c", "/a/b/d", "/a/b/e"] {
                learned.route(path);
            }
        }
        for path in ["/x", "/x/y/1", "/x/y/a", "/x/y/b", "/x/z"] {
            assert!(learned.route(path).is_some());
        }
        assert_eq!(learned.len(), 8);
        assert_eq!(&*learned.route("/new").unwrap(), "/new");
        let named = |learned: &mut Learned, path: &str| learned.route(path).unwrap().to_string();
        assert_eq!(named(&mut learned, "/a/b/c"), "/a/b/c");
        for path in ["/x/y/1", "/x/y/never/seen"] {
            assert_eq!(named(&mut learned, path), "/x/y/*");
        }
        assert_eq!(named(&mut learned, "/x"), "/x");
        assert_eq!(named(&mut learned, "/x/y"), "/x/y");
        // What was folded may fold again, further up.
        for index in 0..2 {
            named(&mut learned, &format!("/new{}", letters(index)));
        }
        assert_eq!(named(&mut learned, "/x/y/1"), "/x/*");
        assert_eq!(named(&mut learned, "/x"), "/x");
        assert!(learned.len() <= 8);
    }

    #[test]
    fn deep_paths_end_in_a_rest() {
        let name = routes(&[&"/a".repeat(100)]).remove(0);
        assert_eq!(name, format!("{}/{REST}", "/a".repeat(MAX_DEPTH)));
    }

    /// A word without digits that is another for each index.
    fn letters(mut index: usize) -> String {
        let mut word = String::new();
        loop {
            word.push(char::from(b'a' + u8::try_from(index % 26).unwrap()));
            index /= 26;
            if index == 0 {
                return word;
            }
        }
    }

    fn depth(node: &Node) -> usize {
        let children = node.words.values().chain(node.parameter.as_deref());
        1 + children.map(depth).max().unwrap_or(0)
    }

    proptest! {
        /// Routes are as many as allowed, counted right, and a path's route only ever gets coarser:
        /// each segment stays or becomes a parameter, and the last ones may fold.
        #[test]
        fn routes_are_bounded_and_stable(
            paths in proptest::collection::vec("(/[a-h]{1,2}|/[0-9]{1,3}|/){0,4}", 1..400),
            max_routes in 1..100_usize,
        ) {
            let mut learned = Learned::new(max_routes);
            let mut named = std::collections::HashMap::new();
            for path in &paths {
                let name = learned.route(path);
                prop_assert_eq!(name.clone(), learned.route(path));
                prop_assert!(learned.len() <= max_routes);
                prop_assert_eq!(learned.len(), learned.root.routes());
                if let Some(name) = name {
                    named.insert(path, name);
                }
            }
            for (path, before) in named {
                let after = learned.route(path);
                prop_assert!(after.is_some(), "{} was {} and is lost", path, before);
                let after = after.unwrap();
                let mut before = before.split('/');
                let mut is_folded = false;
                for after in after.split('/') {
                    let before = before.next();
                    prop_assert!(
                        before == Some(after)
                            || before.is_some() && [PARAMETER, FOLDED].contains(&after)
                    );
                    if after == FOLDED {
                        is_folded = true;
                    }
                }
                prop_assert!(is_folded || before.next().is_none());
            }
            prop_assert!(depth(&learned.root) <= MAX_DEPTH + 2);
        }

        /// No identifier is ever part of a route.
        #[test]
        fn identifiers_never_stay(path in "(/[!-.0-~]{0,60}){0,20}") {
            let mut learned = Learned::new(200);
            let name = learned.route(&path).unwrap();
            for segment in name.split('/').filter(|s| *s != PARAMETER && *s != REST) {
                prop_assert!(!is_identifier(segment), "{}", segment);
            }
        }
    }
}

//! How well learned routes agree with the templates of public APIs.
//!
//! `cargo test -p protocol --test routes -- --nocapture` prints the figures.

use std::collections::{HashMap, HashSet};

use protocol::routes::{OVERFLOW_ROUTE, RouteTable};

/// Requests to each template, on average.
const REQUESTS: u64 = 40;
/// The default of `routes.max_per_service`.
const MAX_ROUTES: usize = 200;

/// Numbers that look random and are the same each time (Steele, Lea, Flood: SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_of(&mut self, words: &[&'static str]) -> &'static str {
        words[self.below(words.len() as u64) as usize]
    }

    fn text(&mut self, alphabet: &str, len: usize) -> String {
        let letters: Vec<char> = alphabet.chars().collect();
        let letter = |random: &mut Self| letters[random.below(letters.len() as u64) as usize];
        (0..len).map(|_| letter(self)).collect()
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for index in (1..list.len()).rev() {
            list.swap(index, self.below(index as u64 + 1) as usize);
        }
    }

    fn hex(&mut self, len: usize) -> String {
        self.text("0123456789abcdef", len)
    }

    /// A value as parameters of a kind have it.
    fn value(&mut self, kind: &str) -> String {
        const WORDS: [&str; 24] = [
            "amber", "birch", "cobalt", "delta", "ember", "falcon", "garnet", "harbor", "indigo",
            "juniper", "kernel", "lumen", "maple", "nimbus", "onyx", "pepper", "quartz", "river",
            "saffron", "timber", "umbra", "velvet", "willow", "zephyr",
        ];
        const ALPHANUMERIC: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        match kind {
            "number" => self.below(1_000_000).to_string(),
            "uuid" => [8, 4, 4, 4, 12].map(|len| self.hex(len)).join("-"),
            "hash" => {
                let len = [12, 40, 64][self.below(3) as usize];
                self.hex(len)
            }
            "opaque" => {
                let prefix = self.one_of(&["acct", "cus", "pm", "sub", "price"]);
                format!("{prefix}_1{}", self.text(ALPHANUMERIC, 23))
            }
            "locale" => self
                .one_of(&[
                    "en-US", "en-GB", "de-DE", "fr-FR", "pt_BR", "zh-CN", "es-419",
                ])
                .to_owned(),
            "slug" => {
                let words = 4 + self.below(5) as usize;
                let words: Vec<_> = (0..words).map(|_| self.one_of(&WORDS)).collect();
                words.join("-")
            }
            "date" => format!(
                "20{}-{:02}-{:02}",
                20 + self.below(7),
                1 + self.below(12),
                1 + self.below(28)
            ),
            "asset" => format!("{}.{}.js", self.one_of(&WORDS), self.hex(8)),
            "file" => {
                let ending = self.one_of(&["jpg", "png", "pdf"]);
                format!("{}_{}.{ending}", self.one_of(&WORDS), self.below(10_000))
            }
            // What people call things: one word, two, and some with a number.
            name => {
                assert_eq!(name, "name", "no kind of value");
                match self.below(3) {
                    0 => self.one_of(&WORDS).to_owned(),
                    1 => format!("{}-{}", self.one_of(&WORDS), self.one_of(&WORDS)),
                    _ => format!("{}-{}", self.one_of(&WORDS), self.below(100)),
                }
            }
        }
    }

    /// A path of a template.
    fn path(&mut self, template: &str) -> String {
        let mut path = String::new();
        let mut rest = template;
        while let Some((before, behind)) = rest.split_once('{') {
            let (parameter, behind) = behind.split_once('}').expect("the brace's counterpart");
            let (_, kind) = parameter.split_once(':').expect("the parameter's kind");
            path.push_str(before);
            path.push_str(&self.value(kind));
            rest = behind;
        }
        path + rest
    }
}

/// How requests spread over the templates.
#[derive(Clone, Copy, Debug)]
enum Traffic {
    /// As many to each.
    Even,
    /// To each in inverse proportion to its rank (Zipf), as traffic is.
    Skewed,
}

/// Requests in no order: the number of the template, and the path.
fn requests(templates: &[&str], traffic: Traffic, random: &mut Random) -> Vec<(usize, String)> {
    let mut ranks: Vec<usize> = (1..=templates.len()).collect();
    Random(11).shuffle(&mut ranks);
    let total = REQUESTS * templates.len() as u64;
    let harmonic: f64 = ranks.iter().map(|rank| 1.0 / *rank as f64).sum();
    let counts: Vec<u64> = ranks
        .iter()
        .map(|rank| match traffic {
            Traffic::Even => REQUESTS,
            Traffic::Skewed => (total as f64 / (*rank as f64 * harmonic)).ceil() as u64,
        })
        .collect();
    let mut requests: Vec<_> = (0..counts.iter().copied().max().unwrap_or_default())
        .flat_map(|round| templates.iter().enumerate().map(move |each| (round, each)))
        .filter(|(round, (index, _))| *round < counts[*index])
        .map(|(_, (index, template))| (index, random.path(template)))
        .collect();
    random.shuffle(&mut requests);
    requests
}

/// Of a template's segments, the share that a route names: in its place the same word, or a
/// parameter where the template has one.
fn told(template: &str, route: &str) -> f64 {
    fn segments(text: &str) -> impl Iterator<Item = &str> {
        text.split('/').filter(|segment| !segment.is_empty())
    }
    let len = segments(template).count();
    let same = segments(template)
        .zip(segments(route))
        .take_while(|(template, route)| {
            template == route || template.contains('{') && *route == "{id}"
        })
        .count();
    if len == 0 {
        1.0
    } else {
        same as f64 / len as f64
    }
}

/// Of what a request shares its route with, the share that has its template too; and the other way
/// round. Means over all requests (B-cubed: Bagga and Baldwin, 1998).
fn precision_and_recall(pairs: &[(usize, String)]) -> (f64, f64) {
    let (mut of_template, mut of_route, mut of_both) =
        (HashMap::new(), HashMap::new(), HashMap::new());
    for (template, route) in pairs {
        *of_template.entry(template).or_insert(0.0) += 1.0;
        *of_route.entry(route).or_insert(0.0) += 1.0;
        *of_both.entry((template, route)).or_insert(0.0) += 1.0;
    }
    let mean = |share: &dyn Fn(&(usize, String), f64) -> f64| {
        let shares = pairs
            .iter()
            .map(|pair| share(pair, of_both[&(&pair.0, &pair.1)]));
        shares.sum::<f64>() / pairs.len() as f64
    };
    (
        mean(&|(_, route), both: f64| both / of_route[route]),
        mean(&|(template, _), both: f64| both / of_template[template]),
    )
}

/// How well a table's routes agree with the templates.
struct Quality {
    precision: f64,
    recall: f64,
    /// See [`told`]; a mean over requests.
    told: f64,
}

/// What a table says once it has seen as much again; whether it had said so before as well.
fn measure(name: &str, corpus: &str, max_routes: usize, traffic: Traffic) -> Quality {
    let templates: Vec<_> = corpus
        .lines()
        .filter(|line| line.starts_with('/'))
        .collect();
    let mut table = RouteTable::new(&[], max_routes).expect("no templates");
    let mut random = Random(7);
    let routed = |requests: &[(usize, String)], table: &mut RouteTable| -> Vec<_> {
        let routes = requests
            .iter()
            .map(|(template, path)| (*template, table.route(path).to_string()));
        routes.collect()
    };
    let learned_from = requests(&templates, traffic, &mut random);
    let at_first = routed(&learned_from, &mut table);
    let asked = requests(&templates, traffic, &mut random);
    routed(&asked, &mut table);
    let told_last = routed(&asked, &mut table);
    let changed = at_first
        .iter()
        .zip(routed(&learned_from, &mut table))
        .filter(|((_, before), (_, after))| before != after)
        .count();
    let routes: HashSet<_> = told_last.iter().map(|(_, route)| route).collect();
    let of_all = |count: usize| count as f64 / told_last.len() as f64;
    let overflown = told_last
        .iter()
        .filter(|(_, route)| route == OVERFLOW_ROUTE)
        .count();
    let (precision, recall) = precision_and_recall(&told_last);
    let told = told_last
        .iter()
        .map(|(template, route)| told(templates[*template], route));
    let told = told.sum::<f64>() / told_last.len() as f64;
    println!(
        "{name:<20} {traffic:?} {:>4} templates {:>4} routes  precision {precision:.3}  \
         recall {recall:.3}  segments told {told:.3}  overflown {:.3}  renamed {:.3}",
        templates.len(),
        routes.len(),
        of_all(overflown),
        of_all(changed),
    );
    assert!(table.learned_routes() <= max_routes);
    Quality {
        precision,
        recall,
        told,
    }
}

#[test]
fn learned_routes_agree_with_public_apis() {
    let (docker, web) = (
        include_str!("corpus/docker.txt"),
        include_str!("corpus/web.txt"),
    );
    let github = include_str!("corpus/github.txt");
    let kubernetes = include_str!("corpus/kubernetes.txt");
    let stripe = include_str!("corpus/stripe.txt");
    for (name, corpus, max_routes, traffic, least) in [
        (
            "docker",
            docker,
            MAX_ROUTES,
            Traffic::Even,
            [0.95, 0.99, 0.94],
        ),
        ("web", web, MAX_ROUTES, Traffic::Even, [0.99, 0.96, 0.94]),
        // These have more templates than a service may have routes by default.
        ("github", github, 2000, Traffic::Even, [0.99, 0.99, 0.94]),
        (
            "kubernetes",
            kubernetes,
            2000,
            Traffic::Even,
            [0.99, 0.98, 0.94],
        ),
        ("stripe", stripe, 2000, Traffic::Even, [0.99, 0.99, 0.94]),
        (
            "github, bounded",
            github,
            MAX_ROUTES,
            Traffic::Even,
            [0.22, 0.99, 0.59],
        ),
        (
            "github, bounded",
            github,
            MAX_ROUTES,
            Traffic::Skewed,
            [0.58, 0.98, 0.72],
        ),
        (
            "kubernetes, bounded",
            kubernetes,
            MAX_ROUTES,
            Traffic::Even,
            [0.59, 0.99, 0.75],
        ),
        (
            "kubernetes, bounded",
            kubernetes,
            MAX_ROUTES,
            Traffic::Skewed,
            [0.77, 0.99, 0.83],
        ),
        (
            "stripe, bounded",
            stripe,
            MAX_ROUTES,
            Traffic::Even,
            [0.46, 0.99, 0.64],
        ),
        (
            "stripe, bounded",
            stripe,
            MAX_ROUTES,
            Traffic::Skewed,
            [0.76, 0.99, 0.83],
        ),
    ] {
        let quality = measure(name, corpus, max_routes, traffic);
        let figures = [quality.precision, quality.recall, quality.told];
        for (figure, least) in figures.iter().zip(least) {
            assert!(*figure >= least, "{name}, {traffic:?}: {figures:?}");
        }
    }
}

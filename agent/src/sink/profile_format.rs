//! The forms that a profile can be had in.

use std::io;
use std::path::Path;

use profile::Profile;

use super::{flamegraph, pprof, speedscope};

/// A form that a profile can be had in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProfileFormat {
    /// Gzipped pprof protobuf.
    Pprof,
    /// A flamegraph to look at.
    Svg,
    /// Folded stacks, as text.
    Folded,
    /// Speedscope's JSON.
    Speedscope,
}

impl ProfileFormat {
    /// The form that a file of this name has: `.pb.gz`, `.svg`, `.folded`, `.json`.
    #[must_use]
    pub fn of_file(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let endings = [
            (".pb.gz", Self::Pprof),
            (".svg", Self::Svg),
            (".folded", Self::Folded),
            (".json", Self::Speedscope),
        ];
        endings
            .iter()
            .find(|(ending, _)| name.ends_with(ending))
            .map(|(_, format)| *format)
    }

    /// Media type of the encoded profile.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Pprof => "application/octet-stream",
            Self::Svg => "image/svg+xml",
            Self::Folded => "text/plain; charset=utf-8",
            Self::Speedscope => "application/json",
        }
    }

    /// Encodes `profile`; `title` is what a person reads above it.
    ///
    /// # Errors
    /// None that writing into memory could give.
    pub fn encode(self, profile: &Profile, title: &str) -> io::Result<Vec<u8>> {
        match self {
            Self::Pprof => pprof::encode(profile),
            Self::Svg => flamegraph::svg(profile, title),
            Self::Folded => Ok(flamegraph::folded(profile).into_bytes()),
            Self::Speedscope => Ok(speedscope::encode(profile, title)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_follows_the_file_name() {
        let of = |name| ProfileFormat::of_file(Path::new(name));
        assert_eq!(of("/tmp/a.pb.gz"), Some(ProfileFormat::Pprof));
        assert_eq!(of("a.b.svg"), Some(ProfileFormat::Svg));
        assert_eq!(of("a.folded"), Some(ProfileFormat::Folded));
        assert_eq!(of("a.json"), Some(ProfileFormat::Speedscope));
        assert_eq!(of("a.gz"), None);
        assert_eq!(of("/"), None);
    }
}

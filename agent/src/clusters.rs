//! Endpoints that are known to be Elasticsearch or OpenSearch clusters: from the configuration,
//! or because an answer said so. What one connection learned serves all others to the endpoint.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use protocol::elasticsearch::Cluster;
use protocol::observation::SearchProduct;

use crate::probes::maps::ClusterEndpoints;

/// Most endpoints that are remembered; a host that has this many clusters keeps the first.
const MAX_ENDPOINTS: usize = 1024;

/// Most path prefixes that one endpoint may have: a proxy in front of this many clusters keeps the
/// first.
const MAX_PREFIXES: usize = 8;

/// Known clusters by endpoint.
#[derive(Debug, Default)]
pub struct Clusters {
    endpoints: RwLock<HashMap<SocketAddr, Cluster>>,
    generation: AtomicU64,
    /// Told of each endpoint, where it captures more of clusters' bodies.
    kernel: Option<ClusterEndpoints>,
}

impl Clusters {
    /// Takes the configured endpoints (`host:port`, or `host:port/prefix` behind a proxy) in; one
    /// that does not resolve is logged, since it may be a cluster that is down today.
    #[must_use]
    pub fn new(configured: &[String], kernel: Option<ClusterEndpoints>) -> Self {
        let clusters = Self {
            kernel,
            ..Self::default()
        };
        for endpoint in configured {
            let (address, prefix) = split_prefix(endpoint);
            match address.to_socket_addrs() {
                Ok(addresses) => {
                    for address in addresses {
                        clusters.learn(address, SearchProduct::Elasticsearch, prefix);
                    }
                }
                Err(error) => {
                    tracing::warn!(endpoint, %error, "elasticsearch.endpoints: does not resolve");
                }
            }
        }
        clusters
    }

    /// What is known of an endpoint.
    #[must_use]
    pub fn at(&self, endpoint: SocketAddr) -> Option<Cluster> {
        let endpoints = self
            .endpoints
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        endpoints.get(&endpoint).cloned()
    }

    /// Remembers that `product` answers at an endpoint, behind `prefix` where that is not empty.
    pub fn learn(&self, endpoint: SocketAddr, product: SearchProduct, prefix: &str) {
        let is_known = |cluster: &Cluster| {
            cluster.product == product
                && (prefix.is_empty() || cluster.prefixes.iter().any(|known| **known == *prefix))
        };
        if self.at(endpoint).as_ref().is_some_and(is_known) {
            return;
        }
        let mut endpoints = self
            .endpoints
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if endpoints.len() >= MAX_ENDPOINTS && !endpoints.contains_key(&endpoint) {
            return;
        }
        let before = endpoints.get(&endpoint).cloned();
        let cluster = endpoints.entry(endpoint).or_insert_with(|| product.into());
        cluster.product = product;
        if !is_known(cluster) && cluster.prefixes.len() < MAX_PREFIXES {
            let mut prefixes = cluster.prefixes.to_vec();
            prefixes.push(prefix.into());
            prefixes.sort_by_key(|prefix| Reverse(prefix.len()));
            cluster.prefixes = prefixes.into();
        }
        if let (None, Some(kernel)) = (&before, &self.kernel) {
            kernel.insert(endpoint);
        }
        if before.as_ref() != Some(&*cluster) {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// Changes whenever something was learned: a connection that saw this number need not ask.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

/// `es:9200/search/` → `es:9200`, `/search`.
fn split_prefix(endpoint: &str) -> (&str, &str) {
    let at = endpoint.find('/').unwrap_or(endpoint.len());
    let (address, prefix) = endpoint.split_at(at);
    (address, prefix.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_learned_is_told() {
        let clusters = Clusters::new(&["127.0.0.1:9200/es/".to_owned()], None);
        let endpoint: SocketAddr = "127.0.0.1:9200".parse().unwrap();
        let known = clusters.at(endpoint).unwrap();
        assert_eq!(known.product, SearchProduct::Elasticsearch);
        assert_eq!(*known.prefixes, ["/es".into()]);
        let before = clusters.generation();
        clusters.learn(endpoint, SearchProduct::OpenSearch, "/search");
        let known = clusters.at(endpoint).unwrap();
        assert_eq!(known.product, SearchProduct::OpenSearch);
        assert_eq!(*known.prefixes, ["/search".into(), "/es".into()]);
        assert_ne!(clusters.generation(), before);
        let before = clusters.generation();
        clusters.learn(endpoint, SearchProduct::OpenSearch, "");
        clusters.learn(endpoint, SearchProduct::OpenSearch, "/es");
        assert_eq!(clusters.generation(), before, "nothing new");
        let other: SocketAddr = "127.0.0.1:9201".parse().unwrap();
        clusters.learn(other, SearchProduct::OpenSearch, "");
        assert_ne!(clusters.generation(), before);
        assert!(clusters.at(other).unwrap().prefixes.is_empty());
    }

    #[test]
    fn prefixes_are_bounded() {
        let clusters = Clusters::default();
        let endpoint: SocketAddr = "127.0.0.1:9200".parse().unwrap();
        for number in 0..100 {
            clusters.learn(endpoint, SearchProduct::OpenSearch, &format!("/{number}"));
        }
        assert_eq!(clusters.at(endpoint).unwrap().prefixes.len(), MAX_PREFIXES);
    }
}

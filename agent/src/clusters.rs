//! Endpoints that are known to be Elasticsearch or OpenSearch clusters: from the configuration,
//! or because an answer said so. What one connection learned serves all others to the endpoint.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use protocol::observation::SearchProduct;

/// Most endpoints that are remembered; a host that has this many clusters keeps the first.
const MAX_ENDPOINTS: usize = 1024;

/// Known clusters by endpoint.
#[derive(Debug, Default)]
pub struct Clusters {
    endpoints: RwLock<HashMap<SocketAddr, SearchProduct>>,
    generation: AtomicU64,
}

impl Clusters {
    /// Takes the configured endpoints (`host:port`) in; one that does not resolve is logged, since
    /// it may be a cluster that is down today.
    #[must_use]
    pub fn new(configured: &[String]) -> Self {
        let clusters = Self::default();
        for endpoint in configured {
            match endpoint.to_socket_addrs() {
                Ok(addresses) => {
                    for address in addresses {
                        clusters.learn(address, SearchProduct::Elasticsearch);
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
    pub fn product(&self, endpoint: SocketAddr) -> Option<SearchProduct> {
        let endpoints = self
            .endpoints
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        endpoints.get(&endpoint).copied()
    }

    /// Remembers that `product` answers at an endpoint.
    pub fn learn(&self, endpoint: SocketAddr, product: SearchProduct) {
        if self.product(endpoint) == Some(product) {
            return;
        }
        let mut endpoints = self
            .endpoints
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if endpoints.len() < MAX_ENDPOINTS || endpoints.contains_key(&endpoint) {
            endpoints.insert(endpoint, product);
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// Changes whenever something was learned: a connection that saw this number need not ask.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

//! Bodies of connections to Elasticsearch and OpenSearch: captured further than others, for what became
//! of each item of a bulk request stands all over them.
//!
//! Whether a connection leads to a cluster is asked when a run has used up what is captured of any, so
//! that others pay for one look at a map where they have a long body, and for nothing where not.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE},
    btf_maps::HashMap,
    helpers::generated::bpf_ringbuf_query,
    macros::btf_map,
};
use ebpf_common::connection::{ClusterEndpoint, ConnectionState, protocol_state};

use crate::maps::{
    SOCKET_RING_0, SOCKET_RING_1, SOCKET_RING_2, SOCKET_RING_3, SOCKET_RING_4, SOCKET_RING_5,
    SOCKET_RING_6, SOCKET_RING_7,
};

/// Endpoints that the agent knows to be clusters. It sets the capacity.
#[btf_map]
static CLUSTERS: HashMap<ClusterEndpoint, u8, 1> = HashMap::new();

/// Whether the end of a connection that answers is a cluster.
#[inline(always)]
pub fn leads_to_cluster(state: &ConnectionState) -> bool {
    let (address, port) = if state.protocol == protocol_state::HTTP1_CLIENT {
        (state.addresses[1], state.ports[1])
    } else {
        (state.addresses[0], state.ports[0])
    };
    let endpoint = ClusterEndpoint {
        address,
        port: port.into(),
    };
    CLUSTERS.get_ptr(endpoint).is_some()
}

/// Whether ring number `ring` has room to spare: no body may push the heads of others out of it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn has_room(ring: u32) -> u32 {
    macro_rules! room {
        ($map:ident) => {{
            let map = (&raw const $map).cast_mut().cast();
            // SAFETY: the map is a ring buffer.
            unsafe {
                (
                    bpf_ringbuf_query(map, u64::from(BPF_RB_AVAIL_DATA)),
                    bpf_ringbuf_query(map, u64::from(BPF_RB_RING_SIZE)),
                )
            }
        }};
    }
    let (used, size) = match ring {
        0 => room!(SOCKET_RING_0),
        1 => room!(SOCKET_RING_1),
        2 => room!(SOCKET_RING_2),
        3 => room!(SOCKET_RING_3),
        4 => room!(SOCKET_RING_4),
        5 => room!(SOCKET_RING_5),
        6 => room!(SOCKET_RING_6),
        _ => room!(SOCKET_RING_7),
    };
    u32::from(used < size / 4 * 3)
}

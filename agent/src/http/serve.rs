//! The listening socket and its connections, each with its bounds.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::sync::Semaphore;

/// Connections at once. More wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 64;

/// Longest wait for a request's head, on a new or on an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

const MAX_HEADERS: usize = 64;
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Longest wait at the end for answers that are under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Rest after an `accept` that failed for want of resources, so that it is not tried in a loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the API cannot listen: the value of the key `listen` cannot be used.
#[derive(Debug, Error)]
#[error("listen: cannot listen on {address}: {}", explain(.source))]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// What the kernel says.
    #[source]
    pub source: io::Error,
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program listens there; choose another port with --listen".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "this host has no such address".to_owned(),
        io::ErrorKind::PermissionDenied => "not permitted; choose a port from 1024 on".to_owned(),
        _ => error.to_string(),
    }
}

/// Opens the listening socket, before anything is attached: a port that is taken is an error at
/// the start, not later.
///
/// # Errors
///
/// When the address cannot be had.
pub fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    let open = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    open().map_err(|source| BindError { address, source })
}

/// Serves until `stop` is done, then finishes the answers that are under way, for at most two
/// seconds.
///
/// # Errors
///
/// When the socket cannot be given to the runtime.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES);
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        let accept = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accept => accepted,
        };
        let (stream, permit) = match (accepted, permit) {
            (Ok((stream, _)), Ok(permit)) => (stream, permit),
            (Err(error), _) => {
                tracing::warn!(%error, "a connection to the API could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
            // Nobody closes the semaphore.
            (_, Err(_)) => break,
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the API ended badly");
            }
        });
    }
    drop(listener);
    // What is not done by then is cut off when the runtime ends.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await;
    Ok(())
}

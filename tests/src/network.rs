//! Two network namespaces with a cable between them, as two hosts would have.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::prerequisite;

/// One end of a [`Network`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The first one.
    Near,
    /// The other one.
    Far,
}

impl End {
    /// Its address; the same in every network, which are apart from each other.
    #[must_use]
    pub const fn address(self) -> Ipv4Addr {
        match self {
            Self::Near => Ipv4Addr::new(10, 99, 0, 1),
            Self::Far => Ipv4Addr::new(10, 99, 0, 2),
        }
    }
}

/// Two namespaces; gone with the value.
#[derive(Debug)]
pub struct Network {
    name: String,
}

impl Network {
    /// Makes them; their ends are up.
    ///
    /// # Errors
    /// Without the privilege, or without `ip`.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let network = Self { name };
        let [near, far] = [End::Near, End::Far].map(|end| network.namespace(end));
        ip(&["netns", "add", &near])?;
        ip(&["netns", "add", &far])?;
        ip(&[
            "-n", &near, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns",
            &far,
        ])?;
        for end in [End::Near, End::Far] {
            let namespace = network.namespace(end);
            let address = format!("{}/30", end.address());
            ip(&["-n", &namespace, "address", "add", &address, "dev", "cable"])?;
            for link in ["lo", "cable"] {
                ip(&["-n", &namespace, "link", "set", link, "up"])?;
            }
        }
        Ok(network)
    }

    /// The name of an end's namespace, for `ip netns exec`.
    #[must_use]
    pub fn namespace(&self, end: End) -> String {
        format!(
            "{}-{}",
            self.name,
            if end == End::Near { "near" } else { "far" }
        )
    }

    /// A listener at an end.
    ///
    /// # Errors
    /// When there is none to be had.
    pub fn listen(&self, end: End) -> Result<(TcpListener, SocketAddr)> {
        self.within(end, move || {
            let listener = TcpListener::bind((end.address(), 0))?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        })
    }

    /// A connection from an end.
    ///
    /// # Errors
    /// When it is not answered in five seconds.
    pub fn connect(&self, end: End, address: SocketAddr) -> Result<TcpStream> {
        self.within(end, move || {
            Ok(TcpStream::connect_timeout(
                &address,
                Duration::from_secs(5),
            )?)
        })
    }

    /// From now on nothing that one end sends arrives at the other one.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn cut(&self) -> Result<()> {
        ip(&[
            "-n",
            &self.namespace(End::Far),
            "link",
            "set",
            "cable",
            "down",
        ])
    }

    /// Runs `action` on a thread that is at an end; the sockets that it makes stay there.
    fn within<T: Send>(&self, end: End, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(format!("/run/netns/{}", self.namespace(end)))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(file.as_fd(), network).context("setns")?;
                action()
            });
            thread.join().map_err(|_| anyhow!("the thread died"))?
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for end in [End::Near, End::Far] {
            let _ = ip(&["netns", "delete", &self.namespace(end)]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new(prerequisite::on_path("ip")?)
        .args(arguments)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "ip {}: {said}",
        arguments.join(" ")
    );
    Ok(())
}

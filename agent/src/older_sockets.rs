//! Sockets that are older than the agent: of every other one it sees the very first byte.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Tables of one network namespace below `/proc/PID/net`, and the column of the inode number.
const TABLES: [(&str, usize); 3] = [("tcp", 9), ("tcp6", 9), ("unix", 6)];

/// Most sockets that are remembered, some 8 MB. On a host that has more, none is known to be young.
const MAX_SOCKETS: usize = 1 << 20;

/// Inode numbers of the sockets that were there at one moment.
#[derive(Debug)]
pub struct OlderSockets {
    /// Sorted; `None` where not all could be found.
    inodes: Option<Vec<u64>>,
}

impl OlderSockets {
    /// Those of every network namespace in which a process lives. A connection that waits to be
    /// accepted has no inode number yet; nobody has read of it either.
    #[must_use]
    pub fn scan(proc_root: &Path) -> Self {
        let inodes = scan(proc_root)
            .inspect_err(|error| tracing::debug!(%error, "cannot tell older sockets from younger"))
            .ok();
        Self { inodes }
    }

    /// Whether the socket with that inode number was certainly not there.
    #[must_use]
    pub fn is_younger(&self, inode: u64) -> bool {
        let inodes = self.inodes.as_ref();
        inode != 0 && inodes.is_some_and(|inodes| inodes.binary_search(&inode).is_err())
    }
}

fn scan(proc_root: &Path) -> io::Result<Vec<u64>> {
    let mut namespaces = HashSet::new();
    let mut inodes = Vec::new();
    for entry in std::fs::read_dir(proc_root)? {
        let entry = entry?;
        let is_process = entry.file_name().to_string_lossy().parse::<u32>().is_ok();
        // A process that has ended has no namespace any more.
        let Some(namespace) = is_process
            .then(|| std::fs::metadata(entry.path().join("ns/net")).ok())
            .flatten()
        else {
            continue;
        };
        if namespaces.contains(&namespace.ino()) {
            continue;
        }
        let read = TABLES.iter().try_for_each(|(name, column)| {
            read_inodes(&entry.path().join("net").join(name), *column, &mut inodes)
        });
        match read {
            // It ended in between: another one of its namespace may be there.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
            Ok(()) => {
                namespaces.insert(namespace.ino());
            }
        }
    }
    inodes.sort_unstable();
    inodes.dedup();
    Ok(inodes)
}

/// Adds the numbers in a table's `column`; a table that this kernel lacks has none.
fn read_inodes(table: &Path, column: usize, inodes: &mut Vec<u64>) -> io::Result<()> {
    let file = match File::open(table) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    for row in BufReader::new(file).lines().skip(1) {
        let inode = row?
            .split_ascii_whitespace()
            .nth(column)
            .and_then(|inode| inode.parse::<u64>().ok());
        inodes.extend(inode.filter(|inode| *inode != 0));
        if inodes.len() > MAX_SOCKETS {
            return Err(io::Error::other("more sockets than are remembered"));
        }
    }
    Ok(())
}

fn is_gone(error: &io::Error) -> bool {
    /// `ESRCH` of `asm-generic/errno-base.h`: how `/proc` says that a process has ended.
    const NO_SUCH_PROCESS: i32 = 3;
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(NO_SUCH_PROCESS)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn inode(socket: &impl AsFd) -> u64 {
        let link = format!("/proc/self/fd/{}", socket.as_fd().as_raw_fd());
        std::fs::metadata(link).expect("the socket").ino()
    }

    #[test]
    fn what_was_there_is_older_and_what_comes_is_younger() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let connect = || {
            let client = TcpStream::connect(listener.local_addr().expect("its address"));
            (
                client.expect("a connection"),
                listener.accept().expect("a connection").0,
            )
        };
        let (client, server) = connect();
        let (unix, _peer) = UnixStream::pair().expect("a pair");
        let pending = TcpStream::connect(listener.local_addr().expect("its address"));
        let sockets = OlderSockets::scan(Path::new("/proc"));
        for older in [
            inode(&client),
            inode(&server),
            inode(&unix),
            inode(&pending.expect("one")),
        ] {
            assert!(!sockets.is_younger(older));
        }
        let (accepted, _) = listener.accept().expect("the pending connection");
        assert!(sockets.is_younger(inode(&accepted)));
        let (client, server) = connect();
        assert!(sockets.is_younger(inode(&client)) && sockets.is_younger(inode(&server)));
        assert!(!sockets.is_younger(0));
    }

    #[test]
    fn where_nothing_can_be_read_nothing_is_younger() {
        let nowhere = OlderSockets::scan(Path::new("/nowhere"));
        assert!(!nowhere.is_younger(7));
    }
}

//! Processes that listen at a port of this machine: Linux lets several programs share one, and gives each of them a part of the
//! calls.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::config::meet;

/// Returns the processes that listen at this address, as far as they can be told apart, each with its name; none where that cannot
/// be seen, as in another network namespace.
pub(super) fn at(address: SocketAddr) -> Vec<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let sockets: Vec<Socket> = tables.iter().flat_map(|table| listening(table)).filter(|socket| meet(socket.address, address)).collect();
    let wanted: BTreeSet<u64> = sockets.iter().map(|socket| socket.inode).collect();
    let mut found: BTreeMap<u64, String> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    // A process that was started with the sockets of another one is not counted a second time.
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) else { continue };
        let inodes = inodes(&process.path());
        if inodes.iter().any(|inode| wanted.contains(inode) && !seen.contains(inode)) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.insert(pid, format!("{} (process {pid})", name.trim_end()));
            seen.extend(inodes);
        }
    }
    // Of sockets of other users the user alone is known.
    let unseen: BTreeSet<u32> = sockets.iter().filter(|socket| !seen.contains(&socket.inode)).map(|socket| socket.uid).collect();
    found.into_values().chain(unseen.into_iter().map(|uid| format!("a process of uid {uid}"))).collect()
}

/// A socket that takes connections.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    address: SocketAddr,
    uid: u32,
    inode: u64,
}

/// Reads the listening sockets of a table of the kernel (proc(5), `/proc/net/tcp`); lines that cannot be read are passed over.
fn listening(table: &str) -> Vec<Socket> {
    let read = |line: &str| {
        let mut words = line.split_whitespace();
        let (local, state) = (words.nth(1)?, words.nth(1)?);
        let (uid, inode) = (words.nth(3)?, words.nth(1)?);
        (state == LISTEN).then_some(())?;
        Some(Socket { address: address(local)?, uid: uid.parse().ok()?, inode: inode.parse().ok()? })
    };
    table.lines().skip(1).filter_map(read).collect()
}

/// Parses an address as the kernel writes it: each four bytes of the address as one number in the order of this machine, and the
/// port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let mut bytes = Vec::new();
    for word in ip.as_bytes().chunks(8) {
        bytes.extend(u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?.to_ne_bytes());
    }
    let ip = match (<[u8; 4]>::try_from(bytes.as_slice()), <[u8; 16]>::try_from(bytes.as_slice())) {
        (Ok(four), _) => IpAddr::V4(Ipv4Addr::from(four)),
        (_, Ok(sixteen)) => IpAddr::V6(Ipv6Addr::from(sixteen)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// Returns the inodes of a process's sockets; none where this user may not look.
fn inodes(process: &Path) -> Vec<u64> {
    let files = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let inode = |file: std::fs::DirEntry| {
        let target = std::fs::read_link(file.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    files.filter_map(inode).collect()
}

/// State `TCP_LISTEN` in a table of the kernel.
const LISTEN: &str = "0A";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e9_reads_who_listens_from_the_tables_of_the_kernel() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0100007F:24E3 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 4711 1 0000000000000000 100 0 0 10 0\n   \
             1: 0100007F:24E3 0100007F:9999 01 00000000:00000000 00:00000000 00000000   101        0 4712 1 0000000000000000 100 0 0 10 0\n   \
             2: nonsense\n";
        let expected = Socket { address: "127.0.0.1:9443".parse().unwrap(), uid: 101, inode: 4711 };
        assert_eq!(listening(table), if cfg!(target_endian = "little") { vec![expected] } else { Vec::new() });
        assert_eq!(address("00000000000000000000000000000000:24E3"), Some("[::]:9443".parse().unwrap()));
        assert_eq!(address("0100007F"), None);
    }

    #[test]
    fn e9_one_process_is_one_however_many_sockets_it_has() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let [one] = at(address).try_into().unwrap();
        assert!(one.contains(&format!("(process {})", std::process::id())), "{one}");
        drop(listener);
        assert_eq!(at(address), Vec::<String>::new());
    }
}

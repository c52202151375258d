//! Who is at the other end of a connection on this machine. Linux tells it in `/proc`, so a test can hit
//! exactly the process that talks to it, without any door for faults in the product.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use rustix::process::{Pid, Signal, kill_process};

/// Looks for a connection that is there. The kernel's table is not read in one moment, and a line may be
/// missed while others come and go.
const LOOKS: usize = 10;

/// Both ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    pub ours: SocketAddr,
    pub theirs: SocketAddr,
}

/// A process of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// Its command line.
    pub arguments: Vec<String>,
}

impl Process {
    /// The process that holds the other end of this connection.
    pub fn behind(ends: Ends) -> Self {
        let inode = (0..LOOKS).find_map(|_| inode(ends));
        let inode = inode.unwrap_or_else(|| panic!("nobody is behind {ends:?}"));
        let name = format!("socket:[{inode}]");
        let holds = |pid: &u32| {
            // A process that is going just now has no descriptors that could be read.
            let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
            descriptors
                .flatten()
                .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
                .any(|link| link.as_os_str() == name.as_str())
        };
        let pid = pids().find(holds).unwrap_or_else(|| panic!("nobody has {name}"));
        Self::of(pid)
    }

    /// The process of this number.
    pub fn of(pid: u32) -> Self {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments = line.split(|byte| *byte == 0).filter(|argument| !argument.is_empty());
        let text = |argument: &[u8]| String::from_utf8_lossy(argument).into_owned();
        Self { pid, arguments: arguments.map(text).collect() }
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// SIGSTOP: it is there, and does nothing.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("it is there and ours");
    }

    /// The process that started it.
    pub fn parent(&self) -> Self {
        Self::of(self.stat(1).and_then(|pid| pid.parse().ok()).expect("a parent"))
    }

    /// Whether it is there and no corpse.
    pub fn is_alive(&self) -> bool {
        self.stat(0).is_some_and(|state| state != "Z" && state != "X")
    }

    /// The bytes of data that it may have.
    pub fn data_limit(&self) -> Option<u64> {
        let limits = fs::read_to_string(format!("/proc/{}/limits", self.pid)).ok()?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max data size"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// The fields of `/proc/PID/stat` behind the name, which may hold anything.
    fn stat(&self, field: usize) -> Option<String> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        fields.split_whitespace().nth(field).map(str::to_owned)
    }
}

/// The state of a socket that waits for connections, in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// The clients whose connections to this address are still held by a process at that end.
pub fn held_at(server: SocketAddr) -> HashSet<SocketAddr> {
    let table = fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let server = hex(server);
    let held = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // A socket that its process has closed is of nobody until the kernel has done with it.
        let is_held = fields.get(1) == Some(&server.as_str())
            && fields.get(3) != Some(&LISTENING)
            && fields.get(9) != Some(&"0");
        is_held.then(|| from_hex(fields.get(2)?))?
    });
    held.collect()
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The socket at their end, by its number in `/proc/net/tcp`.
fn inode(ends: Ends) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let (theirs, ours) = (hex(ends.theirs), hex(ends.ours));
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&theirs.as_str()) && fields.get(2) == Some(&ours.as_str()))
            .then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    })
}

fn from_hex(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let ip = u32::from_str_radix(ip, 16).ok()?.to_ne_bytes();
    Some((ip, u16::from_str_radix(port, 16).ok()?).into())
}

/// An address as the kernel writes it: the four bytes as one number of this machine.
fn hex(address: SocketAddr) -> String {
    let IpAddr::V4(ip) = address.ip() else { panic!("the tests talk over IPv4") };
    format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port())
}

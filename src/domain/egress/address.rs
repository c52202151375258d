//! Whether an address is one of the public internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether anybody on the internet has this address: not this machine, not its networks, not a
/// cloud's metadata service, and nothing that only wraps another address.
///
/// What is not known to be public is not. IANA's special-purpose registries are the source.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_reserved = match (a, b, c) {
        // "This network": Linux takes 0.0.0.0 for the machine itself.
        (0, ..) => true,
        // Carrier-grade NAT; Alibaba's metadata service is in it.
        (100, 64..=127, _) => true,
        // IETF protocol assignments; Oracle's metadata service is in them.
        (192, 0, 0) => true,
        // Anycast of whoever is next: relays of 6to4 and of multicast (AMT), sinks for reverse look-ups of
        // private addresses (AS112). Whoever runs one decides where it leads.
        (192, 88, 99) | (192, 52, 193) | (192, 31, 196) | (192, 175, 48) => true,
        // Benchmarks between networks.
        (198, 18..=19, _) => true,
        // Reserved, and broadcast at its end.
        (240.., ..) => true,
        _ => false,
    };
    !(is_reserved
        || address == AZURE
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation())
}

/// Azure's metadata and wire server: a public address that every machine there reaches privately.
const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Only what is handed out as global unicast (2000::/3), less what is special in it. That leaves out,
/// among others: unspecified, loopback, IPv4-compatible and IPv4-mapped (::/8), NAT64 (64:ff9b::/96,
/// 64:ff9b:1::/48), discard (100::/64), unique local (fc00::/7), link-local (fe80::/10), site-local
/// (fec0::/10) and multicast (ff00::/8).
fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // IETF protocol assignments: Teredo, ORCHID, benchmarks, anycast.
        [0x2001, 0x0000..=0x01ff, ..] => false,
        // AS112 once more.
        [0x2620, 0x004f, 0x8000, ..] => false,
        // Documentation.
        [0x2001, 0x0db8, ..] | [0x3fff, 0x0000..=0x0fff, ..] => false,
        // 6to4: an IPv4 address in disguise.
        [0x2002, ..] => false,
        [0x2000..=0x3fff, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First and last address of everything that is special, and what stands for it.
    const CLOSED: &[&str] = &[
        // This network, and this machine.
        "0.0.0.0",
        "0.0.0.1",
        "0.255.255.255",
        "127.0.0.0",
        "127.0.0.1",
        "127.255.255.255",
        // Private networks.
        "10.0.0.0",
        "10.255.255.255",
        "172.16.0.0",
        "172.31.255.255",
        "192.168.0.0",
        "192.168.255.255",
        // Carrier-grade NAT, link-local, metadata services.
        "100.64.0.0",
        "100.100.100.200",
        "100.127.255.255",
        "169.254.0.0",
        "169.254.169.254",
        "169.254.170.2",
        "169.254.255.255",
        "168.63.129.16",
        "192.0.0.192",
        // Protocol assignments, documentation, relays, benchmarks.
        "192.0.0.0",
        "192.0.0.255",
        "192.0.2.0",
        "192.0.2.255",
        "198.51.100.7",
        "203.0.113.255",
        "192.88.99.0",
        "192.88.99.255",
        "192.31.196.1",
        "192.52.193.1",
        "192.175.48.1",
        "198.18.0.0",
        "198.19.255.255",
        // Multicast, reserved, broadcast.
        "224.0.0.0",
        "239.255.255.255",
        "240.0.0.0",
        "255.255.255.254",
        "255.255.255.255",
        // Unspecified, loopback, IPv4-compatible, IPv4-mapped, IPv4-translated.
        "::",
        "::1",
        "::2",
        "::7f00:1",
        "::a00:1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:8.8.8.8",
        "::ffff:0:127.0.0.1",
        // NAT64, well-known and local.
        "64:ff9b::7f00:1",
        "64:ff9b::8.8.8.8",
        "64:ff9b::ffff:ffff",
        "64:ff9b:1::1",
        "64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
        // Discard, Teredo, ORCHID, benchmarks, documentation, 6to4.
        "100::1",
        "100:0:0:1::1",
        "2001::1",
        "2001:0:7f00:1::",
        "2001:2::1",
        "2001:10::1",
        "2001:20::1",
        "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
        "2620:4f:8000::1",
        "2620:4f:8000:ffff:ffff:ffff:ffff:ffff",
        "2001:db8::1",
        "2001:db8:ffff::1",
        "3fff::1",
        "3fff:fff:ffff::1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2002:808:808::1",
        // Segment routing, unassigned, unique local (with the metadata services in it).
        "5f00::1",
        "4000::1",
        "fc00::1",
        "fd00::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        // Link-local, site-local, multicast.
        "fe80::1",
        "fe80::a9fe:a9fe",
        "febf:ffff::1",
        "fec0::1",
        "feff::1",
        "ff00::1",
        "ff02::1",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ];

    /// Public addresses, among them the neighbours of what is closed.
    const OPEN: &[&str] = &[
        "1.0.0.0",
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "93.184.216.34",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "168.63.129.15",
        "168.63.129.17",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.3.0",
        "192.31.195.255",
        "192.31.197.0",
        "192.52.192.255",
        "192.52.194.0",
        "192.88.98.255",
        "192.88.100.0",
        "192.175.47.255",
        "192.175.49.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "2000::1",
        "2001:200::1",
        "2001:4860:4860::8888",
        "2001:db7:ffff::1",
        "2001:db9::1",
        "2003::1",
        "2606:4700:4700::1111",
        "2620:4f:7fff:ffff::1",
        "2620:4f:8001::1",
        "2a00:1450:4001:800::200e",
        "3ffe::1",
        "3fff:1000::1",
    ];

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for (addresses, public) in [(CLOSED, false), (OPEN, true)] {
            for text in addresses {
                assert_eq!(is_public(text.parse().unwrap()), public, "{text}");
            }
        }
    }
}

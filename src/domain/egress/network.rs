//! Networks, as operators write them: `10.1.0.0/16`, or a single address.

use std::net::IpAddr;
use std::str::FromStr;

/// A block of addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

impl Network {
    /// Whether the address is in it. An IPv4 address inside of an IPv6 one is another address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (ours, bits) = bits(self.address);
        let (theirs, their_bits) = self::bits(address);
        // Shifting all bits away is what `/0` means.
        let network = |address: u128| address.checked_shr(bits - self.prefix).unwrap_or(0);
        bits == their_bits && network(ours) == network(theirs)
    }
}

/// The address as a number, and how many bits it has.
fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    }
}

impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| "is no address and no network")?;
        let (number, most) = bits(address);
        let prefix = match prefix {
            None => most,
            Some(prefix) => prefix
                .parse()
                .ok()
                .filter(|prefix| *prefix <= most)
                .ok_or("has a prefix length that its family does not have")?,
        };
        // Whoever writes 10.1.2.3/16 means one of two things, and a gate must not guess which.
        let host = number & 1_u128.checked_shl(most - prefix).map_or(u128::MAX, |size| size - 1);
        if host == 0 {
            Ok(Self { address, prefix })
        } else {
            Err("has bits set behind its prefix: write the network's first address")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_its_addresses_and_no_others() {
        for (network, address, is_in) in [
            ("10.1.0.0/16", "10.1.0.0", true),
            ("10.1.0.0/16", "10.1.255.255", true),
            ("10.1.0.0/16", "10.2.0.0", false),
            ("10.1.0.0/16", "::ffff:10.1.0.1", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("0.0.0.0/0", "255.1.2.3", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "fe80::1", true),
            ("fd00:1::/32", "fd00:1:2::3", true),
            ("fd00:1::/32", "fd00:2::", false),
            ("::1", "::1", true),
            ("::1", "::", false),
        ] {
            let network: Network = network.parse().unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), is_in, "{network:?} {address}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/",
            "10.1.2.3/16",
            "::1/64",
            "::/129",
            "localhost",
            "10.0.0",
            "010.0.0.1",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}

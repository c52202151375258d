//! Where requests may go that a user or a model can aim, and which secrets they may carry: the rules.
//!
//! [`Destinations`] says it for URLs and for the addresses that names turn out to have; [`address`]
//! knows which addresses are public; [`SecretRules`] says whom the operator's secrets are for.
//! `crate::egress` holds every connection to all of it.

pub mod address;
mod network;
mod secret;

use std::net::IpAddr;

use url::{Host, Url};

pub use network::Network;
pub use secret::{SecretFacts, SecretRefused, SecretRules, is_secret_name};

/// All rules for outbound requests, for whoever stores an agent.
#[derive(Debug, Clone, Default)]
pub struct Outbound {
    /// Where they may go.
    pub destinations: Destinations,
    /// Which secrets they may carry.
    pub secrets: SecretRules,
}

/// What may be reached: the public internet by `https`, and what the operator has opened besides.
#[derive(Debug, Clone, Default)]
pub struct Destinations {
    hosts: Vec<String>,
    networks: Vec<Network>,
}

/// Why a request may not go where it was aimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not `http` and not `https`, or without a host.
    #[error("must begin with https:// and name a host")]
    NoHttp,
    /// A name or a password in front of the host.
    #[error("must not hold a user name or a password: use a header with ${{secret.NAME}}")]
    UserInfo,
    /// `http` to what the operator has not opened.
    #[error("must begin with https://: the server's operator has not opened this host")]
    Plain,
    /// An address that is not public.
    #[error("leads to an address that is not public, which the server's operator has not opened")]
    NotPublic,
}

impl Destinations {
    /// The public internet, and what these entries open: host names, addresses and networks. A name
    /// opens itself alone and none below it, whatever addresses it has; an address or a network opens all
    /// names that have no other (public ones by https aside). What is opened is opened on all ports, and may
    /// be called by `http` too.
    ///
    /// # Errors
    /// The first entry that is none of these, and why.
    pub fn opening(entries: &[String]) -> Result<Self, (String, &'static str)> {
        let mut opened = Self::default();
        for entry in entries {
            match entry.parse() {
                Ok(network) => opened.networks.push(network),
                Err(why) => {
                    opened.hosts.push(host(entry, why).map_err(|why| (entry.clone(), why))?)
                }
            }
        }
        Ok(opened)
    }

    /// Whether a request to this URL may be tried. What its host's name resolves to is not known yet:
    /// [`Destinations::check_addresses`] says the last word.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, url: &Url) -> Result<(), Refused> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refused::NoHttp);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refused::UserInfo);
        }
        let is_plain = url.scheme() == "http";
        match url.host().ok_or(Refused::NoHttp)? {
            Host::Domain(name) => {
                // It may still have an address that is opened.
                let may_be_opened = self.is_opened(name) || !self.networks.is_empty();
                if is_plain && !may_be_opened { Err(Refused::Plain) } else { Ok(()) }
            }
            Host::Ipv4(address) => self.check_address(address.into(), is_plain),
            Host::Ipv6(address) => self.check_address(address.into(), is_plain),
        }
    }

    /// Whether a connection may be made to the host of this name, which resolved to these addresses. One
    /// that may not be reached spoils them all: whoever answers with such a mixture is up to something.
    ///
    /// # Errors
    /// Why not.
    pub fn check_addresses(
        &self,
        host: &str,
        addresses: &[IpAddr],
        is_plain: bool,
    ) -> Result<(), Refused> {
        if self.is_opened(host) {
            return Ok(());
        }
        addresses.iter().try_for_each(|address| self.check_address(*address, is_plain))
    }

    fn check_address(&self, address: IpAddr, is_plain: bool) -> Result<(), Refused> {
        if self.networks.iter().any(|network| network.contains(address)) {
            Ok(())
        } else if !address::is_public(address) {
            Err(Refused::NotPublic)
        } else if is_plain {
            Err(Refused::Plain)
        } else {
            Ok(())
        }
    }

    fn is_opened(&self, host: &str) -> bool {
        self.hosts.iter().any(|opened| opened == host)
    }
}

/// A name to open. What is wrong with it as a network is known.
fn host(entry: &str, as_network: &'static str) -> Result<String, &'static str> {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    if entry.contains('*') {
        return Err("has a wildcard: open each host by its name, or their network");
    }
    if entry.contains("://") {
        return Err("is a URL: open its host alone");
    }
    if entry.split_once(':').is_some_and(|(_, port)| is_port(port)) {
        return Err("has a port: a host is opened on all of them");
    }
    // Colons and slashes are in addresses and networks only; what ends in a digit and is no address
    // (10.1, 0x7f000001) is one to whoever resolves it.
    match Host::parse(entry) {
        _ if entry.contains([':', '/']) => Err(as_network),
        Ok(Host::Domain(name)) => Ok(name),
        _ => Err("is no host name, address or network"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(entries: &[&str]) -> Destinations {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        Destinations::opening(&entries).unwrap()
    }

    fn check(destinations: &Destinations, url: &str) -> Result<(), Refused> {
        destinations.check(&Url::parse(url).unwrap())
    }

    #[test]
    fn no_spelling_of_an_address_that_is_not_public_passes() {
        let closed = Destinations::default();
        for host in [
            "127.0.0.1",
            "127.1",
            "127.0.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0X7F.0.0.0X1",
            "017700000001",
            "0177.0.0.1",
            "0177.0x0.0.1",
            "127.0.0.1.",
            "127.000.000.001",
            "%31%32%37.0.0.1",
            "１２７.0.0.1",
            "127。0。0。1",
            "①②⑦.⓪.⓪.①",
            "0",
            "0x0",
            "0.0.0.0",
            "00000.0",
            "10.1",
            "0xa9fea9fe",
            "2852039166",
            "169.254.43518",
            "0251.0376.0251.0376",
            "[::1]",
            "[0:0:0:0:0:0:0:1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[0000::ffff:169.254.169.254]",
            "[::127.0.0.1]",
            "[64:ff9b::127.0.0.1]",
            "[64:ff9b:1::a00:1]",
            "[2002:7f00:1::]",
            "[2001:0:7f00:1::]",
            "[fd00:ec2::254]",
            "[fe80::1]",
            "[fec0::1]",
            "[ff02::1]",
            "[2001:db8::1]",
        ] {
            for scheme in ["http", "https"] {
                let url = format!("{scheme}://{host}:8080/x");
                assert_eq!(check(&closed, &url), Err(Refused::NotPublic), "{url}");
            }
        }
    }

    #[test]
    fn only_https_without_credentials_goes_out() {
        let closed = Destinations::default();
        for (url, answer) in [
            ("https://example.com/x", Ok(())),
            ("https://8.8.8.8/", Ok(())),
            ("https://[2606:4700:4700::1111]:8443/", Ok(())),
            ("http://example.com/", Err(Refused::Plain)),
            ("http://8.8.8.8/", Err(Refused::Plain)),
            ("https://user@example.com/", Err(Refused::UserInfo)),
            ("https://:pass@example.com/", Err(Refused::UserInfo)),
            ("ftp://example.com/", Err(Refused::NoHttp)),
            ("file:///etc/passwd", Err(Refused::NoHttp)),
            ("gopher://example.com/", Err(Refused::NoHttp)),
            ("data:text/plain,x", Err(Refused::NoHttp)),
            ("unix:/run/docker.sock", Err(Refused::NoHttp)),
        ] {
            assert_eq!(check(&closed, url), answer, "{url}");
        }
    }

    #[test]
    fn what_a_name_resolves_to_is_held_to_the_same_rules() {
        let closed = Destinations::default();
        let addresses = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let vet = |destinations: &Destinations, texts: &[&str], is_plain| {
            destinations.check_addresses("tools.internal", &addresses(texts), is_plain)
        };
        assert_eq!(vet(&closed, &["8.8.8.8", "2606:4700::1"], false), Ok(()));
        assert_eq!(vet(&closed, &["8.8.8.8", "10.0.0.1"], false), Err(Refused::NotPublic));
        assert_eq!(vet(&closed, &["::1", "8.8.8.8"], false), Err(Refused::NotPublic));
        assert_eq!(vet(&closed, &["8.8.8.8"], true), Err(Refused::Plain));
        let network = opening(&["10.1.0.0/16"]);
        assert_eq!(vet(&network, &["10.1.2.3", "8.8.8.8"], false), Ok(()));
        assert_eq!(vet(&network, &["10.1.2.3"], true), Ok(()));
        assert_eq!(vet(&network, &["10.1.2.3", "8.8.8.8"], true), Err(Refused::Plain));
        assert_eq!(vet(&network, &["10.2.2.3"], true), Err(Refused::NotPublic));
        let host = opening(&["tools.internal"]);
        assert_eq!(vet(&host, &["10.2.2.3", "::1"], true), Ok(()));
        assert_eq!(
            host.check_addresses("other.internal", &addresses(&["10.2.2.3"]), false),
            Err(Refused::NotPublic)
        );
    }

    #[test]
    fn the_operator_opens_hosts_and_networks() {
        let opened = opening(&["127.0.0.1", "10.1.0.0/16", "fd00::/8", "Tools.Internal"]);
        for url in [
            "http://127.0.0.1:9/",
            "http://2130706433/",
            "https://10.1.255.1/",
            "http://[fd00::1]/",
            "http://tools.internal:8443/",
            "http://TOOLS.internal/",
            // It may have an address in one of the networks.
            "http://example.com/",
        ] {
            assert_eq!(check(&opened, url), Ok(()), "{url}");
        }
        for url in ["http://127.0.0.2/", "https://10.2.0.1/", "http://[::ffff:127.0.0.1]/"] {
            assert_eq!(check(&opened, url), Err(Refused::NotPublic), "{url}");
        }
        let host = opening(&["tools.internal"]);
        assert_eq!(check(&host, "http://x.tools.internal/"), Err(Refused::Plain));
        for (wrong, says) in [
            ("", "no host name"),
            ("10.1", "no host name"),
            ("0x7f000001", "no host name"),
            ("a b", "no host name"),
            ("10.1.2.3/16", "bits set"),
            ("tools.internal/x", "no address"),
            ("[::1]", "no address"),
            ("tools.internal:80", "has a port"),
            ("10.1.2.3:80", "has a port"),
            ("*.internal", "has a wildcard"),
            ("http://x", "is a URL"),
        ] {
            let (entry, why) = Destinations::opening(&[wrong.to_owned()]).unwrap_err();
            assert_eq!(entry, wrong);
            assert!(why.contains(says), "{wrong} {why}");
        }
    }
}

//! `stepwell healthcheck`: one request to the server on this machine, without a runtime.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long the server may take for each of connecting, reading and answering.
const PATIENCE: Duration = Duration::from_secs(3);
/// Enough for a status line: the rest of the answer is not read.
const STATUS_LINE: usize = 12;

/// Why the server is not healthy.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unhealthy {
    /// The configured port is not the one in use.
    #[error("listen has port 0, so the port in use is not known")]
    NoPort,
    /// Nobody answers.
    #[error("{address} does not answer")]
    Silent {
        /// Who was asked.
        address: SocketAddr,
        /// What came instead.
        #[source]
        source: io::Error,
    },
    /// It answers something else than 200.
    #[error("{address} answered {status:?}")]
    Status {
        /// Who was asked.
        address: SocketAddr,
        /// The beginning of its answer.
        status: String,
    },
}

/// Asks `GET /healthz` of the server that listens on `listen`.
///
/// # Errors
/// It does not answer within a few seconds, or not with 200.
pub(super) fn check(listen: SocketAddr) -> Result<(), Unhealthy> {
    let address = reachable(listen);
    if address.port() == 0 {
        return Err(Unhealthy::NoPort);
    }
    let status = ask(address).map_err(|source| Unhealthy::Silent { address, source })?;
    if status == "HTTP/1.1 200" { Ok(()) } else { Err(Unhealthy::Status { address, status }) }
}

/// "All addresses" is none that one can connect to everywhere: loopback is among them.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!("GET /healthz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut status = [0; STATUS_LINE];
    stream.read_exact(&mut status)?;
    Ok(String::from_utf8_lossy(&status).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Answers one request with `answer`.
    fn server(listen: &str, answer: &'static str) -> (SocketAddr, thread::JoinHandle<String>) {
        let listener = TcpListener::bind(listen).unwrap();
        let address = listener.local_addr().unwrap();
        let asked = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (address, asked)
    }

    #[test]
    fn a_server_that_says_200_is_healthy_also_behind_all_addresses() {
        let (address, asked) = server("0.0.0.0:0", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        check(address).unwrap();
        assert!(asked.join().unwrap().starts_with("GET /healthz HTTP/1.1\r\n"));
    }

    #[test]
    fn another_answer_and_no_answer_are_failures() {
        let (address, asked) = server("127.0.0.1:0", "HTTP/1.1 503 Service Unavailable\r\n\r\n");
        assert!(check(address).unwrap_err().to_string().contains("503"));
        asked.join().unwrap();
        // The listener is gone now.
        assert!(matches!(check(address), Err(Unhealthy::Silent { .. })));
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        assert!(matches!(check(nowhere), Err(Unhealthy::NoPort)));
    }
}

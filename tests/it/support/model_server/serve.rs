//! One connection: requests are read and replies are written by hand, so that they can be written wrongly.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{End, Piece, Reply, Request, Shared};
use crate::support::peers::Ends;

/// Whether the connection may take another request.
#[derive(PartialEq, Eq)]
enum After {
    KeepAlive,
    Close,
}

pub(super) async fn serve(mut socket: TcpStream, shared: Arc<Shared>) {
    let _ = socket.set_nodelay(true);
    let (Ok(ours), Ok(theirs)) = (socket.local_addr(), socket.peer_addr()) else { return };
    let ends = Ends { ours, theirs };
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut socket, &mut buffer, ends).await {
        let reply = shared.reply_to(request);
        let (mut from, mut to) = socket.split();
        let mut spare = [0; 64];
        let after = tokio::select! {
            biased;
            after = write_reply(reply, &mut to) => after,
            // A client that sends nothing more can only close.
            _ = from.read(&mut spare) => Err(std::io::ErrorKind::ConnectionAborted.into()),
        };
        match after {
            Ok(After::KeepAlive) => {}
            Ok(After::Close) => return,
            Err(error)
                if error.kind() == std::io::ErrorKind::ConnectionReset && is_wanted(&error) =>
            {
                let _ = socket.set_zero_linger();
                return;
            }
            Err(_) => {
                shared.closed_early.send_modify(|count| *count += 1);
                return;
            }
        }
    }
}

const WANTED: &str = "the script says so";

fn is_wanted(error: &std::io::Error) -> bool {
    error.to_string() == WANTED
}

fn reset() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::ConnectionReset, WANTED)
}

async fn read_request(socket: &mut TcpStream, buffer: &mut Vec<u8>, ends: Ends) -> Option<Request> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if socket.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..end + 4).collect()).ok()?;
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    while buffer.len() < length {
        if socket.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body: Vec<u8> = buffer.drain(..length).collect();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Some(Request { method, path, headers, body, ends })
}

async fn write_reply(
    reply: Reply,
    to: &mut (impl AsyncWriteExt + Unpin),
) -> std::io::Result<After> {
    match reply {
        Reply::Reset => Err(reset()),
        Reply::Hang => std::future::pending().await,
        Reply::Head { status, headers } => {
            let mut head = format!("HTTP/1.1 {status} X\r\n");
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            to.write_all(head.as_bytes()).await?;
            std::future::pending().await
        }
        Reply::Whole { status, headers, body } => {
            let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            to.write_all(&[head.as_bytes(), &body].concat()).await?;
            Ok(After::KeepAlive)
        }
        Reply::Stream { mut headers, pieces, end } => {
            if !headers.iter().any(|(name, _)| name == "content-type") {
                headers.push(("content-type".to_owned(), "text/event-stream".to_owned()));
            }
            let mut head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n".to_owned();
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            to.write_all(head.as_bytes()).await?;
            for piece in pieces {
                match piece {
                    Piece::Wait(time) => tokio::time::sleep(time).await,
                    Piece::Gate(gate) => drop(gate.0.acquire().await),
                    Piece::Bytes(bytes) => {
                        let size = format!("{:x}\r\n", bytes.len());
                        to.write_all(&[size.as_bytes(), &bytes, b"\r\n"].concat()).await?;
                    }
                    Piece::Repeat(bytes, times) => {
                        to.write_all(format!("{:x}\r\n", bytes.len() * times).as_bytes()).await?;
                        for _ in 0..times {
                            to.write_all(&bytes).await?;
                        }
                        to.write_all(b"\r\n").await?;
                    }
                }
            }
            match end {
                End::Clean => {
                    to.write_all(b"0\r\n\r\n").await?;
                    Ok(After::KeepAlive)
                }
                End::Close => Ok(After::Close),
                End::Reset => Err(reset()),
                End::Hang => std::future::pending().await,
            }
        }
    }
}

//! Answers that were bitten by chance: whatever comes, it is read in bounded memory to an end, and to
//! the same end however the network cuts it. The seed is fixed.

use super::*;

const SEED: u64 = 20_261_122;
/// In memory, and over sockets.
const ROUNDS: usize = 40_000;
const ROUNDS_ON_SOCKETS: usize = 400;

const ANSWERS: [&str; 4] = [
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
     e\r\ndata: {\"a\":1}\n\r\n1b;x=y\r\n\ndata: [DONE], not really\n\n\r\n0\r\nx-t: 1\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 429 Too Many Requests\r\n\
     retry-after: 3\r\ncontent-type: application/json\r\ncontent-length: 27\r\n\r\n\
     {\"error\":{\"message\":\"slow\"}}",
    "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nuntil the very end\r\n\r\n",
];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    /// One of the answers, bitten up to four times.
    fn bitten(&mut self) -> Vec<u8> {
        let mut bytes = ANSWERS[self.below(ANSWERS.len())].as_bytes().to_vec();
        for _ in 0..self.below(5) {
            let at = self.below(bytes.len());
            let other = ANSWERS[self.below(ANSWERS.len())].as_bytes();
            let from = self.below(other.len());
            let piece = &other[from..(from + self.below(24)).min(other.len())];
            match self.below(6) {
                0 => drop(bytes.splice(at.., [])),
                1 => drop(bytes.splice(at..(at + self.below(8)).min(bytes.len()), [])),
                2 => drop(bytes.splice(at..at, piece.iter().copied())),
                3 => drop(bytes.splice(at..at, b"\r\n".repeat(self.below(3)))),
                4 => drop(bytes.splice(at..at, b"9fA \0\xff:;,"[self.below(10)..].to_vec())),
                _ => {
                    let byte = u8::try_from(self.below(256)).unwrap();
                    bytes.splice(at..(at + 1).min(bytes.len()), [byte]);
                }
            }
            if bytes.is_empty() {
                bytes.push(b'H');
            }
        }
        bytes
    }

    fn cut(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(1 + self.below(rest.len().min(40)));
            pieces.push(piece.to_vec());
            rest = behind;
        }
        pieces
    }
}

/// What is made of an answer that comes in these pieces.
#[derive(Debug, PartialEq)]
struct Read {
    head: Option<Head>,
    payload: Vec<u8>,
    behind: Vec<u8>,
    is_malformed: bool,
}

fn read(pieces: &[Vec<u8>]) -> Read {
    let mut reader = HeadReader::default();
    let mut read =
        Read { head: None, payload: Vec::new(), behind: Vec::new(), is_malformed: false };
    let mut body = None;
    for piece in pieces {
        let mut piece = piece.clone();
        if body.is_none() {
            match reader.take(&piece) {
                Ok(None) => continue,
                Ok(Some((head, behind))) => {
                    (read.head, body) = (Some(head), Some(head.body));
                    piece = behind;
                }
                Err(Malformed) => {
                    read.is_malformed = true;
                    return read;
                }
            }
        }
        let Some(body) = &mut body else { continue };
        match body.take(&piece, &mut read.payload) {
            Ok(behind) => read.behind.extend_from_slice(behind),
            Err(Malformed) => {
                read.is_malformed = true;
                return read;
            }
        }
    }
    read
}

#[test]
fn whatever_is_answered_is_read_the_same_however_it_is_cut() {
    let mut random = Random(SEED);
    let (mut heads, mut malformed) = (0, 0);
    for _ in 0..ROUNDS {
        let bytes = random.bitten();
        let whole = read(std::slice::from_ref(&bytes));
        let cut = read(&random.cut(&bytes));
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(whole, cut, "{text}");
        assert!(whole.payload.len() + whole.behind.len() < bytes.len().max(1), "{text}");
        heads += usize::from(whole.head.is_some());
        malformed += usize::from(whole.is_malformed);
    }
    assert!(heads > ROUNDS / 4 && malformed > ROUNDS / 10, "{heads} heads, {malformed} malformed");
}

#[tokio::test]
async fn whatever_is_answered_on_a_socket_comes_to_an_end() {
    let mut random = Random(SEED);
    let plays: Vec<_> = (0..ROUNDS_ON_SOCKETS)
        .map(|_| {
            let bytes = random.bitten();
            random.cut(&bytes)
        })
        .collect();
    let plays = Arc::new(plays);
    let server = Server::start(move |number, mut socket| {
        let plays = plays.clone();
        async move {
            socket.set_nodelay(true).unwrap();
            read_request(&mut socket).await.unwrap();
            for piece in &plays[number % plays.len()] {
                if socket.write_all(piece).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    let endpoint = server.endpoint();
    let (mut whole, mut failed) = (0, 0);
    for _ in 0..ROUNDS_ON_SOCKETS {
        let fetched = async {
            let mut incoming = endpoint.post(json!({})).await?;
            while incoming.chunk().await?.is_some() {}
            Ok::<_, Fault>(())
        };
        match tokio::time::timeout(Duration::from_secs(60), fetched).await.expect("an end") {
            Ok(()) => whole += 1,
            Err(_) => failed += 1,
        }
    }
    assert!(whole > 20 && failed > 20, "{whole} whole, {failed} failed");
}

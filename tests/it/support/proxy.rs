//! What lies between a server and Postgres: a network that can hold everything back, cut everything
//! off, and lose the answer to one statement.
//!
//! It reads what the client says just far enough to know which statement is carried out: the text
//! comes with *Parse* (or a simple *Query*), and *Bind* names it. Answers are not read, but for the
//! *`ReadyForQuery`* at their end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It works.
    Pass,
    /// A black hole: connections are made, nothing arrives, nobody is told. When it ends, what was
    /// sent flows again, as TCP would send it again.
    Hold,
    /// Every connection is reset, and every new one.
    Reset,
}

/// What becomes of a statement that is to be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It is carried out, to its end; the answer never comes.
    Answer,
    /// It never arrives.
    Statement,
    /// It is kept, and arrives after [`Proxy::release`]: long after the client gave it up.
    Kept,
}

/// A proxy; it and its connections end when it is dropped.
pub struct Proxy {
    /// The database's URL through the proxy.
    pub url: String,
    shared: Arc<Shared>,
    _connections: JoinSet<()>,
}

struct Shared {
    upstream: String,
    mode: watch::Sender<Mode>,
    /// The next statement with this text is lost.
    next: Mutex<Option<(&'static str, Loss)>>,
    lost: watch::Sender<u64>,
    cut: Notify,
    /// Statements that are kept, each with the server's side of its connection.
    kept: Mutex<Vec<(Vec<u8>, TcpStream)>>,
}

impl Proxy {
    /// A proxy before the server of this URL.
    pub async fn before(url: &str) -> Self {
        let (credentials, rest) = url.split_once('@').expect("a user");
        let (upstream, database) = rest.split_once('/').expect("a database");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            mode: watch::Sender::new(Mode::Pass),
            next: Mutex::default(),
            lost: watch::Sender::new(0),
            cut: Notify::new(),
            kept: Mutex::default(),
        });
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, Arc::clone(&shared)));
        let url = format!("{credentials}@127.0.0.1:{port}/{database}?sslmode=disable");
        Self { url, shared, _connections: connections }
    }

    /// Changes what the network does.
    pub fn set(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// Loses the next statement whose text contains this, and with it the connection.
    pub fn lose(&self, statement: &'static str, loss: Loss) {
        *self.shared.next.lock().expect("no panic") = Some((statement, loss));
    }

    /// Cuts all clients off. The server does not learn of it before it answers.
    pub fn cut(&self) {
        self.shared.cut.notify_waiters();
    }

    /// Lets what was kept arrive; gives what the server says to it.
    pub async fn release(&self) -> Vec<u8> {
        let kept = std::mem::take(&mut *self.shared.kept.lock().expect("no panic"));
        let mut said = Vec::new();
        for (statement, mut server) in kept {
            server.write_all(&statement).await.expect("the server listens");
            server.shutdown().await.expect("the server listens");
            server.read_to_end(&mut said).await.expect("the server answers");
        }
        said
    }

    /// How many statements were lost.
    pub fn lost(&self) -> u64 {
        *self.shared.lost.borrow()
    }

    /// Resolves when so many statements were lost.
    pub async fn until_lost(&self, count: u64) {
        let mut lost = self.shared.lost.subscribe();
        lost.wait_for(|lost| *lost >= count).await.expect("the proxy is there");
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(carry(client, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

impl Shared {
    /// Resolves with how the network goes on: not before a black hole has ended.
    async fn open(&self) -> Mode {
        let mut mode = self.mode.subscribe();
        *mode.wait_for(|mode| *mode != Mode::Hold).await.expect("the proxy is there")
    }

    async fn reset(&self) {
        let mut mode = self.mode.subscribe();
        mode.wait_for(|mode| *mode == Mode::Reset).await.expect("the proxy is there");
    }

    /// Whether one of these statements is the one to be lost; then no other is.
    fn take_loss(&self, statements: &[String]) -> Option<Loss> {
        let mut next = self.next.lock().expect("no panic");
        let (text, loss) = (*next)?;
        statements.iter().any(|statement| statement.contains(text)).then(|| {
            *next = None;
            loss
        })
    }

    fn count_loss(&self) {
        self.lost.send_modify(|lost| *lost += 1);
    }
}

async fn carry(mut client: TcpStream, shared: Arc<Shared>) {
    let _ = client.set_nodelay(true);
    let up = async {
        match shared.open().await {
            Mode::Reset => None,
            Mode::Pass | Mode::Hold => TcpStream::connect(&shared.upstream).await.ok(),
        }
    };
    let Some(mut server) = up.await else {
        let _ = client.set_zero_linger();
        return;
    };
    let _ = server.set_nodelay(true);
    let end = tokio::select! {
        biased;
        () = shared.reset() => End::Reset,
        () = shared.cut.notified() => End::Cut,
        end = pump(&mut client, &mut server, &shared) => end,
    };
    match end {
        End::Over => {}
        End::Reset => {
            let _ = client.set_zero_linger();
            let _ = server.set_zero_linger();
        }
        End::Cut => {
            drop(client);
            // The server's side stays open until the server ends it.
            while matches!(server.read(&mut [0; 1024]).await, Ok(1..)) {}
        }
        End::Kept(statement) => {
            shared.kept.lock().expect("no panic").push((statement, server));
        }
    }
}

/// Why a connection is not carried on.
enum End {
    Over,
    Reset,
    Cut,
    Kept(Vec<u8>),
}

/// Carries bytes both ways until one side ends, or something is lost.
async fn pump(client: &mut TcpStream, server: &mut TcpStream, shared: &Shared) -> End {
    let mut statements = Statements::default();
    let (mut there, mut back) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut there) => {
                let Ok(read @ 1..) = read else { return End::Over };
                shared.open().await;
                let loss = shared.take_loss(&statements.read(&there[..read]));
                match loss {
                    Some(Loss::Statement) => {
                        shared.count_loss();
                        return End::Over;
                    }
                    Some(Loss::Kept) => {
                        shared.count_loss();
                        return End::Kept(there[..read].to_vec());
                    }
                    Some(Loss::Answer) | None => {}
                }
                if server.write_all(&there[..read]).await.is_err() { return End::Over }
                if loss == Some(Loss::Answer) {
                    // To its end: a commit is over when the server is ready again.
                    let mut tail = Vec::new();
                    while !is_ready(&tail) {
                        let Ok(read @ 1..) = server.read(&mut back).await else { break };
                        tail.extend_from_slice(&back[..read]);
                        tail.drain(..tail.len().saturating_sub(6));
                    }
                    shared.count_loss();
                    return End::Over;
                }
            }
            read = server.read(&mut back) => {
                let Ok(read @ 1..) = read else { return End::Over };
                shared.open().await;
                if client.write_all(&back[..read]).await.is_err() { return End::Over }
            }
        }
    }
}

/// Whether an answer ends here: `ReadyForQuery`, five bytes long, with the state of the transaction.
fn is_ready(tail: &[u8]) -> bool {
    matches!(tail, [b'Z', 0, 0, 0, 5, _])
}

/// What one connection has prepared.
#[derive(Default)]
struct Statements {
    /// The first message has no type.
    begun: bool,
    rest: Vec<u8>,
    prepared: HashMap<Vec<u8>, String>,
}

impl Statements {
    /// The texts of the statements that these bytes carry out.
    fn read(&mut self, bytes: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(bytes);
        let mut carried_out = Vec::new();
        loop {
            let kind_bytes = usize::from(self.begun);
            let Some(length) = self.rest.get(kind_bytes..kind_bytes + 4) else { break };
            let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
            if self.rest.len() < kind_bytes + length {
                break;
            }
            let message: Vec<u8> = self.rest.drain(..kind_bytes + length).collect();
            if !self.begun {
                self.begun = true;
                continue;
            }
            let mut texts = message[5..].split(|byte| *byte == 0);
            let mut text = || texts.next().unwrap_or_default();
            match message[0] {
                b'Q' => carried_out.push(String::from_utf8_lossy(text()).into_owned()),
                b'P' => {
                    let name = text().to_vec();
                    self.prepared.insert(name, String::from_utf8_lossy(text()).into_owned());
                }
                b'B' => {
                    let (_portal, name) = (text(), text());
                    carried_out.extend(self.prepared.get(name).cloned());
                }
                _ => {}
            }
        }
        carried_out
    }
}

//! A TCP proxy that loses answers, or holds back what was sent.

use std::sync::{Arc, Mutex};

use stepwell::shutdown::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

/// What happens to the next bytes from the client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// Both ways are open.
    Pass,
    /// The client's statement arrives; at the server's answer to it the client is cut off.
    LoseAnswer,
    /// The client's statement is kept, and the client cut off; it arrives after `release`.
    HoldRequest,
}

pub struct Proxy {
    /// The database's URL through the proxy.
    pub url: String,
    mode: watch::Sender<Mode>,
    release: Arc<Notify>,
    cut: Arc<Notify>,
    late: Arc<Mutex<Vec<tokio::task::JoinHandle<Vec<u8>>>>>,
    _tasks: Tasks,
}

impl Proxy {
    pub async fn before(url: &str) -> Self {
        let (credentials, rest) = url.split_once('@').expect("a user");
        let (upstream, database) = rest.split_once('/').expect("a database");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let upstream = upstream.to_owned();
        let (mode, watched) = watch::channel(Mode::Pass);
        let release = Arc::new(Notify::new());
        let cut = Arc::new(Notify::new());
        let late = Arc::new(Mutex::new(Vec::new()));
        let tasks = Tasks::new();
        let inner = tasks.clone();
        let (releasing, cutting, kept) =
            (Arc::clone(&release), Arc::clone(&cut), Arc::clone(&late));
        tasks.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&upstream).await.expect("the server");
                let line = Line {
                    mode: watched.clone(),
                    release: Arc::clone(&releasing),
                    cut: Arc::clone(&cutting),
                    late: Arc::clone(&kept),
                    tasks: inner.clone(),
                };
                inner.spawn(line.carry(client, server));
            }
        });
        let url = format!("{credentials}@127.0.0.1:{port}/{database}?sslmode=disable");
        Self { url, mode, release, cut, late, _tasks: tasks }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Cuts all clients off. The server does not learn of it.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// Lets what was held arrive, and waits for what the server says to it.
    pub async fn release(&self) -> Vec<u8> {
        let late: Vec<_> = self.late.lock().expect("no panic").drain(..).collect();
        self.release.notify_waiters();
        let mut said = Vec::new();
        for answer in late {
            said.extend(answer.await.expect("no panic"));
        }
        said
    }
}

struct Line {
    mode: watch::Receiver<Mode>,
    release: Arc<Notify>,
    cut: Arc<Notify>,
    late: Arc<Mutex<Vec<tokio::task::JoinHandle<Vec<u8>>>>>,
    tasks: Tasks,
}

impl Line {
    async fn carry(self, mut client: TcpStream, mut server: TcpStream) {
        // Preparing is let through: it writes nothing. A statement to be carried out begins with Bind.
        let mut carries_out = false;
        let mut there = vec![0; 1 << 20];
        let mut back = vec![0; 1 << 20];
        loop {
            tokio::select! {
                () = self.cut.notified() => {
                    drop(client);
                    // The server's side stays open until the server ends it.
                    while matches!(server.read(&mut back).await, Ok(1..)) {}
                    return;
                }
                read = client.read(&mut there) => {
                    let Ok(read @ 1..) = read else { return };
                    carries_out = there[0] == b'B';
                    if carries_out && *self.mode.borrow() == Mode::HoldRequest {
                        let request = there[..read].to_vec();
                        let release = Arc::clone(&self.release);
                        // Waits from now on, not from when the task first runs.
                        let mut released = Box::pin(release.notified_owned());
                        released.as_mut().enable();
                        let late = self.tasks.spawn(async move {
                            released.await;
                            server.write_all(&request).await.expect("the server listens");
                            server.shutdown().await.expect("the server listens");
                            let mut said = Vec::new();
                            server.read_to_end(&mut said).await.expect("the server answers");
                            said
                        });
                        self.late.lock().expect("no panic").push(late);
                        return;
                    }
                    if server.write_all(&there[..read]).await.is_err() { return }
                }
                read = server.read(&mut back) => {
                    let Ok(read @ 1..) = read else { return };
                    if carries_out && *self.mode.borrow() == Mode::LoseAnswer { return }
                    if client.write_all(&back[..read]).await.is_err() { return }
                }
            }
        }
    }
}

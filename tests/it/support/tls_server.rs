//! HTTPS servers of a test: an authority that certifies whom it likes, and servers that say hello and write
//! down who came. `openssl` makes the certificates.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::server::Folder;

/// Somebody who certifies. Its files go with it.
pub struct Authority {
    name: &'static str,
    folder: Folder,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy)]
pub enum Valid {
    Now,
    /// For a day in the year 2020.
    LongAgo,
}

impl Authority {
    pub fn new(name: &'static str) -> Self {
        let authority = Self { name, folder: Folder::new() };
        let path = authority.folder.path();
        std::fs::write(path.join("index"), "").expect("a file");
        std::fs::write(
            path.join("config"),
            "[req]\ndistinguished_name = name\n[name]\n[ca]\ndefault_ca = us\n[us]\n\
             database = index\nnew_certs_dir = .\nrand_serial = yes\ndefault_md = sha256\n\
             default_days = 2\npolicy = any\nunique_subject = no\n[any]\ncommonName = supplied\n\
             [authority]\nbasicConstraints = critical, CA:true\n\
             keyUsage = critical, keyCertSign\nsubjectKeyIdentifier = hash\n",
        )
        .expect("a file");
        authority.openssl(&format!(
            "req -config config -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
             -keyout ca.key -out ca.pem -subj /CN={name} -extensions authority -days 2"
        ));
        authority
    }

    /// The file to trust it by.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// What a server of this name shows: `DNS:localhost`, `IP:127.0.0.1`.
    fn certify(&self, name: &str, valid: Valid) -> ServerConfig {
        let folder = self.folder.path();
        let extensions = format!(
            "subjectAltName = {name}\nbasicConstraints = CA:false\n\
             extendedKeyUsage = serverAuth\nauthorityKeyIdentifier = keyid\n"
        );
        std::fs::write(folder.join("extensions"), extensions).expect("a file");
        self.openssl(
            "req -config config -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
             -keyout server.key -out server.csr -subj /CN=server",
        );
        let dates = match valid {
            Valid::Now => "",
            Valid::LongAgo => "-startdate 20200101000000Z -enddate 20200102000000Z",
        };
        self.openssl(&format!(
            "ca -config config -batch -notext -in server.csr -out server.pem -cert ca.pem \
             -keyfile ca.key -extfile extensions {dates}"
        ));
        let certificate = CertificateDer::from_pem_file(folder.join("server.pem"));
        let key = PrivateKeyDer::from_pem_file(folder.join("server.key"));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the usual versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.expect("a certificate")], key.expect("a key"))
            .expect("they belong together");
        // It would rather speak HTTP/2.
        config.alpn_protocols = ["h2", "http/1.1"].map(|name| name.as_bytes().to_vec()).to_vec();
        config
    }

    fn openssl(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        command.args(arguments.split_whitespace()).current_dir(self.folder.path());
        let output = command.output().expect("these tests need openssl: apt-get install openssl");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: openssl {arguments}: {said}", self.name);
    }
}

/// A connection that came, as far as it got.
#[derive(Debug, Clone, Default)]
pub struct Visit {
    /// The name that was asked for in the TLS handshake.
    pub server_name: Option<String>,
    /// The protocol that was agreed on in it.
    pub protocol: Option<String>,
    /// Whether there was a handshake to its end.
    pub is_secure: bool,
    /// The request line; empty if none came.
    pub request: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
}

/// An HTTPS server on 127.0.0.1 that answers everything with `{"hello": "you"}`.
pub struct TlsServer {
    pub port: u16,
    visits: Arc<Mutex<Vec<Visit>>>,
    /// How often somebody came and went without a word.
    knocks: watch::Receiver<u64>,
    _accepting: JoinSet<()>,
}

impl TlsServer {
    pub async fn start(authority: &Authority, name: &str, valid: Valid) -> Self {
        let acceptor = TlsAcceptor::from(Arc::new(authority.certify(name, valid)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let visits = Arc::<Mutex<Vec<Visit>>>::default();
        let seen = visits.clone();
        let (knocked, knocks) = watch::channel(0);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            // One after another: behind a knock, all who came before it are written down.
            while let Ok((socket, _)) = listener.accept().await {
                if socket.peek(&mut [0]).await.is_ok_and(|bytes| bytes == 0) {
                    knocked.send_modify(|knocks| *knocks += 1);
                    continue;
                }
                let visit = serve(socket, &acceptor).await;
                seen.lock().expect("no panic").push(visit);
            }
        });
        Self { port, visits, knocks, _accepting: accepting }
    }

    /// Everybody who came so far. A visitor may have his answer and be gone before he is written down, so
    /// this knocks behind him and waits until that was heard.
    pub async fn visits(&self) -> Vec<Visit> {
        let mut knocks = self.knocks.clone();
        let before = *knocks.borrow();
        drop(TcpStream::connect(("127.0.0.1", self.port)).await.expect("a connection"));
        knocks.wait_for(|knocks| *knocks > before).await.expect("the server is there");
        self.visits.lock().expect("no panic").clone()
    }
}

async fn serve(socket: TcpStream, acceptor: &TlsAcceptor) -> Visit {
    let mut visit = Visit::default();
    let Ok(mut stream) = acceptor.accept(socket).await else { return visit };
    visit.is_secure = true;
    let (_, session) = stream.get_ref();
    visit.server_name = session.server_name().map(str::to_owned);
    visit.protocol = session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.unwrap_or_default() == 0 {
            break;
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    visit.request = lines.next().unwrap_or_default().to_owned();
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(|line| line.split_once(':'));
    visit.headers = headers.map(|(k, v)| (k.to_ascii_lowercase(), v.trim().to_owned())).collect();
    let body = json!({"hello": "you"}).to_string();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
    visit
}

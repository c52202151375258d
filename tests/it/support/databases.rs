//! The databases that the store's tests run on. All of them must give the same answers.

use std::path::PathBuf;
use std::sync::Arc;

use stepwell::clock::Clock;
use stepwell::store::SharedStore;
use stepwell::store::sqlite::{Options, SqliteStore};

/// Runs each of these tests (`async fn(SharedStore)`) on every database.
macro_rules! conformance {
    ($($test:ident),+ $(,)?) => {
        $crate::support::databases::on!(sqlite: $($test),+);
        $crate::support::databases::on!(postgres: $($test),+);
    };
}
pub(crate) use conformance;

macro_rules! on {
    ($database:ident: $($test:ident),+) => {
        mod $database {
            $(
                #[tokio::test]
                async fn $test() {
                    let database = $crate::support::databases::$database().await;
                    super::$test(database.store.clone()).await;
                    database.store.close().await;
                }
            )+
        }
    };
}
pub(crate) use on;

/// One empty database of each kind, for tests that compare them.
pub async fn all() -> Vec<Database> {
    vec![sqlite().await, postgres().await]
}

/// A database of its own, with its schema, which goes when this is dropped.
pub struct Database {
    /// What it is, for messages.
    pub name: &'static str,
    /// Its store.
    pub store: SharedStore,
    _directory: Option<Directory>,
}

/// A new SQLite file.
pub async fn sqlite() -> Database {
    let directory = Directory::new();
    let store = open_sqlite(&directory, Options::default()).await;
    Database { name: "sqlite", store: Arc::new(store), _directory: Some(directory) }
}

/// A new SQLite file in memory, where there is such a place: for what is done ten thousand times.
pub async fn sqlite_in_memory() -> Database {
    let memory = std::path::Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let directory = Directory::in_folder(&place);
    let store = open_sqlite(&directory, Options::default()).await;
    Database { name: "sqlite", store: Arc::new(store), _directory: Some(directory) }
}

/// The database of a directory, migrated.
pub async fn open_sqlite(directory: &Directory, options: Options) -> SqliteStore {
    let store = SqliteStore::open(directory.file(), options).await.unwrap();
    store.migrate().await.unwrap();
    store
}

/// A new database on the test's Postgres server.
pub async fn postgres() -> Database {
    let store = super::postgres::store().await;
    Database { name: "postgres", store: Arc::new(store), _directory: None }
}

/// A new directory, which goes with all files in it when this is dropped.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        Self::in_folder(&std::env::temp_dir())
    }

    fn in_folder(folder: &std::path::Path) -> Self {
        let name = format!("stepwell-test-{}", Clock::system().uuid().simple());
        let path = folder.join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Where the database is.
    pub fn file(&self) -> PathBuf {
        self.0.join("stepwell.db")
    }

    /// The bytes of its write-ahead log.
    pub fn wal_bytes(&self) -> u64 {
        std::fs::metadata(self.0.join("stepwell.db-wal")).map_or(0, |file| file.len())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed stays in the temporary directory, where it harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

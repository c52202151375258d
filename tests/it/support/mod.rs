//! What tests stand on.

pub mod client;
pub mod databases;
pub mod disk;
pub mod files;
pub mod mcp_server;
pub mod model_server;
pub mod peers;
pub mod postgres;
pub mod profile;
pub mod proxy;
pub mod random;
pub mod server;
pub mod tls_server;
pub mod transcripts;

/// Runs each of these tests (`async fn(database_url: String)`) on an empty database of each kind.
macro_rules! on_both_databases {
    ($($test:ident;)+) => {
        mod on_sqlite {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    let folder = $crate::support::server::Folder::new();
                    let path = folder.path().join("stepwell.db");
                    super::$test(format!("sqlite://{}", path.display())).await;
                }
            )+
        }
        mod on_postgres {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    super::$test($crate::support::postgres::empty_database().await).await;
                }
            )+
        }
    };
}
pub(crate) use on_both_databases;

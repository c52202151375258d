//! The command line as users meet it: the binary itself, with real flags, variables and files.

use std::process::{Command, Output};

use tempdir::TempDir;

/// A folder of its own for each test, gone afterwards.
mod tempdir {
    use std::path::{Path, PathBuf};

    pub struct TempDir(PathBuf);

    impl TempDir {
        pub fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("stepwell-cli-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
        pub fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

fn stepwell(folder: &TempDir, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_stepwell"))
        .args(arguments)
        .current_dir(folder.path())
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

/// What a command that fails says; it must fail with exit code 1 and one line.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(output.stdout.is_empty());
    text
}

#[test]
fn a_flag_beats_a_variable_and_a_variable_beats_the_file() {
    let folder = TempDir::new("precedence");
    std::fs::write(folder.path().join("stepwell.yaml"), "listen: 192.0.2.1:1\n").unwrap();
    let variable = [("STEPWELL_LISTEN", "192.0.2.2:2")];
    // Each of them needs a key that is not there, and the complaint names the one that counts.
    let file = complaint(&stepwell(&folder, &["serve"], &[]));
    assert!(file.contains("192.0.2.1:1") && file.contains("STEPWELL_ADMIN_KEY"), "{file}");
    assert!(complaint(&stepwell(&folder, &["serve"], &variable)).contains("192.0.2.2:2"));
    let flag = stepwell(&folder, &["serve", "--listen", "192.0.2.3:3"], &variable);
    assert!(complaint(&flag).contains("192.0.2.3:3"));
    assert!(!folder.path().join("stepwell.db").exists(), "it failed before it did anything");
}

#[test]
fn another_file_is_read_when_it_is_named() {
    let folder = TempDir::new("config");
    std::fs::write(folder.path().join("other.yaml"), "# mine\nlistn: 127.0.0.1:1\n").unwrap();
    for (arguments, environment) in [
        (&["serve", "--config", "other.yaml"][..], &[][..]),
        (&["serve"][..], &[("STEPWELL_CONFIG", "other.yaml")][..]),
    ] {
        let text = complaint(&stepwell(&folder, arguments, environment));
        assert!(text.starts_with("stepwell: other.yaml: ") && text.contains("`listn`"), "{text}");
    }
    let missing = complaint(&stepwell(&folder, &["serve", "--config", "none.yaml"], &[]));
    assert!(missing.contains("none.yaml") && missing.contains("No such file"), "{missing}");
}

#[test]
fn migrate_makes_a_database_and_can_be_repeated() {
    let folder = TempDir::new("migrate");
    for _ in 0..2 {
        let output = stepwell(&folder, &["migrate"], &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(folder.path().join("stepwell.db").exists());
}

#[test]
fn openapi_prints_the_committed_description() {
    let folder = TempDir::new("openapi");
    let yaml = stepwell(&folder, &["openapi"], &[]);
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml"));
    assert!(yaml.status.success());
    assert_eq!(
        String::from_utf8(yaml.stdout).unwrap().trim_end(),
        committed.unwrap().trim_end(),
        "openapi.yaml is stale: cargo run -- openapi > openapi.yaml"
    );
    let json = stepwell(&folder, &["openapi", "--json"], &[]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["openapi"], "3.1.0");
}

#[test]
fn a_health_check_of_nobody_fails() {
    let folder = TempDir::new("health");
    // A port that is taken, by a socket that never listens.
    let taken = tokio::net::TcpSocket::new_v4().unwrap();
    taken.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let text = complaint(&stepwell(&folder, &["healthcheck"], &[("STEPWELL_LISTEN", &listen)]));
    assert!(text.contains("does not answer"), "{text}");
}

#[test]
fn help_names_no_value_of_the_environment() {
    let folder = TempDir::new("help");
    let secret = [("STEPWELL_DATABASE_URL", "postgres://u:hunter2@h/d")];
    let output = stepwell(&folder, &["serve", "--help"], &secret);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("STEPWELL_DATABASE_URL"));
    assert!(!text.contains("hunter2"));
}

//! What a process that the server starts for a single run needs to find the same settings.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::Flags;

/// Variables that say what the flags of this process said. The rest (the file, keys, other variables)
/// a child finds where this process found it. They may hold the database's password, so `{:?}` leaves
/// the values out.
#[derive(Clone, Default)]
pub struct Inherited(Vec<(&'static str, OsString)>);

impl Inherited {
    pub(super) fn of(flags: &Flags) -> Self {
        // Every flag by name: one that is new must be passed on too.
        let Flags {
            config,
            listen,
            database_url,
            public_url,
            max_concurrent_runs,
            default_provider,
            cors_allow_origins,
            unsafe_durability,
            log,
            log_format,
        } = flags;
        let format = log_format.and_then(|format| format.to_possible_value());
        let origins = Some(cors_allow_origins.join(",")).filter(|origins| !origins.is_empty());
        let text = |value: &Option<String>| value.as_ref().map(OsString::from);
        let all = [
            ("STEPWELL_CONFIG", config.as_ref().map(OsString::from)),
            ("STEPWELL_LISTEN", text(listen)),
            ("STEPWELL_DATABASE_URL", text(database_url)),
            ("STEPWELL_PUBLIC_URL", text(public_url)),
            ("STEPWELL_MAX_CONCURRENT_RUNS", max_concurrent_runs.map(|n| n.to_string().into())),
            ("STEPWELL_DEFAULT_PROVIDER", text(default_provider)),
            ("STEPWELL_CORS_ALLOW_ORIGINS", origins.map(OsString::from)),
            ("STEPWELL_UNSAFE_DURABILITY", unsafe_durability.then(|| "true".into())),
            ("STEPWELL_LOG", text(log)),
            ("STEPWELL_LOG_FORMAT", format.map(|format| format.get_name().into())),
        ];
        Self(all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
    }

    /// The variables, to be set in a child beside those that it inherits.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, &OsString)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }
}

impl fmt::Debug for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// This very program, to be started again.
///
/// # Errors
/// When the system does not say where it is.
pub fn program() -> std::io::Result<PathBuf> {
    // Behind the link is the program that runs, even if its file was replaced by another version.
    let link = Path::new("/proc/self/exe");
    if link.exists() { Ok(link.to_owned()) } else { std::env::current_exe() }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    fn read(arguments: &[&str]) -> Flags {
        let command = Flags::augment_args(Command::new("x"));
        Flags::from_arg_matches(&command.get_matches_from(arguments)).unwrap()
    }

    #[test]
    fn every_flag_reaches_a_child_as_its_variable() {
        let arguments = [
            "x",
            "--config=/c.yaml",
            "--listen=127.0.0.1:1",
            "--database-url=postgres://u:canary@h/n",
            "--public-url=https://x.example",
            "--max-concurrent-runs=7",
            "--default-provider=p",
            "--cors-allow-origins=https://a.example,https://b.example",
            "--unsafe-durability",
            "--log=debug",
            "--log-format=pretty",
        ];
        let inherited = Inherited::of(&read(&arguments));
        let command = Flags::augment_args(Command::new("x"));
        let mut known: Vec<(String, String)> = command
            .get_arguments()
            .filter_map(|a| Some((a.get_env()?.to_str()?, a.get_long()?)))
            .map(|(variable, flag)| (variable.to_owned(), flag.to_owned()))
            .collect();
        assert_eq!(known.len(), arguments.len() - 1);
        // Given back as flags, the variables say the same.
        let mut again = vec!["x".to_owned()];
        for (name, value) in inherited.variables() {
            let at = known.iter().position(|(variable, _)| variable == name).unwrap();
            let (_, flag) = known.remove(at);
            match flag.as_str() {
                "unsafe-durability" => again.push(format!("--{flag}")),
                _ => again.push(format!("--{flag}={}", value.to_str().unwrap())),
            }
        }
        assert!(known.is_empty(), "not passed on: {known:?}");
        let again: Vec<&str> = again.iter().map(String::as_str).collect();
        assert_eq!(format!("{:?}", read(&again)), format!("{:?}", read(&arguments)));
        assert!(!format!("{inherited:?}").contains("canary"));
        assert!(format!("{inherited:?}").contains("STEPWELL_DATABASE_URL"));
    }

    #[test]
    fn what_was_not_said_is_not_passed_on() {
        assert_eq!(Inherited::of(&Flags::default()).variables().count(), 0);
    }

    #[test]
    fn the_program_is_this_one() {
        let there = std::fs::canonicalize(program().unwrap()).unwrap();
        assert_eq!(there, std::fs::canonicalize(std::env::current_exe().unwrap()).unwrap());
    }
}

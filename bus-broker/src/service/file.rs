//! Service files: which command or unit owns a name once it runs.
//!
//! The file `NAME.toml` is about the name NAME, so that two files of one directory are never about
//! one; of several directories the first that has it counts, as for everything else under
//! `XDG_DATA_DIRS`. A file that is wrong is left out and told: one package's mistake must not keep
//! the bus of a session from its start.

use std::{
    collections::BTreeMap,
    env, fs,
    num::NonZeroU16,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bus_core::GroupName;
use serde::Deserialize;

use crate::config::{ConfigError, Place};

/// How a service is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceFile {
    pub(crate) name: GroupName,
    pub(crate) what: What,
    /// How long it may take to claim its name.
    pub(crate) timeout: Duration,
    /// How many sends may wait for it.
    pub(crate) queue: u16,
    pub(crate) environment: BTreeMap<String, String>,
}

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A program and its arguments.
    Command(Vec<String>),
    /// A unit of systemd.
    Unit(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    command: Option<Vec<String>>,
    unit: Option<String>,
    #[serde(default = "default_timeout", with = "bus_core::duration_text")]
    timeout: Duration,
    #[serde(default = "default_queue")]
    queue: NonZeroU16,
    #[serde(default)]
    environment: BTreeMap<String, String>,
}

impl ServiceFile {
    pub(crate) fn from_toml(name: GroupName, text: &str, path: &Path) -> Result<Self, ConfigError> {
        let form: Form =
            toml::from_str(text).map_err(|error| ConfigError::from_parser(&error, text, path))?;
        let wrong = |message: &str| ConfigError::Wrong {
            path: path.to_owned(),
            place: Place::of(text, 0),
            message: message.to_owned(),
        };
        let what = match (form.command, form.unit) {
            (Some(command), None) => match command.first() {
                Some(program) if program.starts_with('/') => What::Command(command),
                _ => return Err(wrong("a command begins with an absolute path")),
            },
            (None, Some(unit)) => {
                let good = |byte: u8| byte.is_ascii_alphanumeric() || b"@_.:-\\".contains(&byte);
                if unit.starts_with('-') || !unit.contains('.') || !unit.bytes().all(good) {
                    return Err(wrong("a unit has a name such as clock.service"));
                }
                What::Unit(unit)
            }
            _ => return Err(wrong("a service has either a command or a unit")),
        };
        let reserved = |name: &str| name.is_empty() || name.contains(['=', '\0']);
        if form.environment.keys().any(|name| reserved(name)) {
            return Err(wrong("a variable of the environment has a name without ="));
        }
        let Form { timeout, queue, environment, .. } = form;
        Ok(Self { name, what, timeout, queue: queue.get(), environment })
    }
}

/// The services of these directories.
pub(crate) fn read_services(directories: &[PathBuf]) -> BTreeMap<GroupName, Arc<ServiceFile>> {
    let mut services = BTreeMap::new();
    for directory in directories {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".toml"));
            let Some(name) = name else { continue };
            if let Some(service) = read(&path, name)
                && !services.contains_key(&service.name)
            {
                services.insert(service.name.clone(), Arc::new(service));
            }
        }
    }
    services
}

fn read(path: &Path, name: &str) -> Option<ServiceFile> {
    let unusable = |error: &dyn std::fmt::Display| {
        tracing::warn!(path = %path.display(), %error, "a service file is left out");
    };
    let name = name.parse::<GroupName>().inspect_err(|error| unusable(error)).ok()?;
    let text = fs::read_to_string(path).inspect_err(|error| unusable(error)).ok()?;
    ServiceFile::from_toml(name, &text, path).inspect_err(|error| unusable(error)).ok()
}

/// `unisono/services` under the user's and the system's data directories.
pub(crate) fn default_directories() -> Vec<PathBuf> {
    let of_user = env::var_os("XDG_DATA_HOME").filter(|home| !home.is_empty()).map_or_else(
        || env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")),
        |home| Some(PathBuf::from(home)),
    );
    let of_system = env::var_os("XDG_DATA_DIRS").filter(|dirs| !dirs.is_empty());
    let of_system = of_system.unwrap_or_else(|| "/usr/local/share:/usr/share".into());
    let directories = of_user.into_iter().chain(env::split_paths(&of_system));
    let absolute = directories.filter(|directory| directory.is_absolute());
    absolute.map(|directory| directory.join("unisono/services")).collect()
}

fn default_timeout() -> Duration {
    Duration::from_secs(25)
}

fn default_queue() -> NonZeroU16 {
    NonZeroU16::new(256).expect("256 is not 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> Result<ServiceFile, String> {
        let name = "org.example.Clock".parse().unwrap();
        ServiceFile::from_toml(name, text, Path::new("s.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_service_is_a_command_or_a_unit() {
        let clock = service("command = [\"/bin/clock\", \"-v\"]\ntimeout = \"2s\"\n").unwrap();
        assert_eq!(clock.what, What::Command(vec!["/bin/clock".into(), "-v".into()]));
        assert_eq!((clock.timeout, clock.queue), (Duration::from_secs(2), 256));
        let unit = service("unit = \"clock@1.service\"\n").unwrap();
        assert_eq!(unit.what, What::Unit("clock@1.service".into()));
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        for (case, text, expected) in [
            ("nothing", "", "s.toml:1:1: a service has either"),
            ("both", "command = [\"/a\"]\nunit = \"a.service\"", "s.toml:1:1: a service has"),
            ("relative", "command = [\"a\"]", "s.toml:1:1: a command begins"),
            ("no command", "command = []", "s.toml:1:1: a command begins"),
            ("an option for a unit", "unit = \"--now.service\"", "s.toml:1:1: a unit"),
            ("unknown", "unit = \"a.service\"\nuser = \"x\"", "s.toml:2:1: "),
            ("no queue", "unit = \"a.service\"\nqueue = 0", "s.toml:2:9: "),
        ] {
            let error = service(text).expect_err(case);
            assert!(error.starts_with(expected), "{case}: {error}");
        }
    }

    #[test]
    fn the_first_directory_counts_and_a_bad_file_is_left_out() {
        let top = tempfile::tempdir().unwrap();
        let directories = [top.path().join("a"), top.path().join("b"), top.path().join("none")];
        for directory in &directories[..2] {
            fs::create_dir(directory).unwrap();
        }
        let put = |at: usize, name: &str, text: &str| {
            fs::write(directories[at].join(name), text).unwrap();
        };
        put(0, "org.a.toml", "unit = \"first.service\"");
        put(1, "org.a.toml", "unit = \"second.service\"");
        put(0, "org.b.toml", "unit = 7");
        put(1, "org.b.toml", "unit = \"b.service\"");
        put(1, "a..b.toml", "unit = \"c.service\"");
        put(1, "README", "no service");
        let found = read_services(&directories);
        let found: Vec<_> = found.values().map(|s| (s.name.as_str(), s.what.clone())).collect();
        assert_eq!(
            found,
            [
                ("org.a", What::Unit("first.service".into())),
                ("org.b", What::Unit("b.service".into())),
            ]
        );
    }
}

//! What the broker is told: where to listen, with how many threads, under which limits.
//!
//! A `Config` that was read from a file is right: unknown keys and values out of range are refused
//! with file, line and column, so that no setting is ever ignored or truncated silently. One that
//! was put together in a program is checked by [`crate::Broker::bind`].

use std::{
    fmt,
    num::{NonZeroU32, NonZeroUsize},
    path::{Path, PathBuf},
    str::FromStr,
    thread,
    time::Duration,
};

use bus_core::{Amounts, GroupName, LimitError, Limits, RecorderSize};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::ingress::IngressConfig;
use crate::policy::{Policy, RuleForms, read_directory};
use crate::sandbox::SandboxMode;
use crate::service::default_directories;
use crate::user_limits::{AccountLimits, UsersConfig};

/// Settings of one broker.
///
/// ```
/// use bus_broker::Config;
///
/// let config = Config::from_toml("threads = 2\n[limits]\nstall = \"5s\"\n", "bus.toml".as_ref())?;
/// assert_eq!(config.limits.stall.as_secs(), 5);
///
/// let error = Config::from_toml("threads = 2\nthraeds = 3\n", "bus.toml".as_ref()).unwrap_err();
/// assert!(error.to_string().starts_with("bus.toml:2:1: "));
/// # Ok::<(), bus_broker::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Where to listen.
    pub listen: Listen,
    /// I/O threads; by default one for every two cores that this process may use, 1 to 4: the
    /// programs that it serves need the others.
    pub threads: Option<NonZeroUsize>,
    /// Every bound of the bus, told to each client in its greeting.
    pub limits: Limits,
    /// Limits of particular users.
    pub users: UsersConfig,
    /// How long a connection may take to say HELLO, so that one that says nothing does not keep a
    /// place that others need.
    #[serde(with = "bus_core::duration_text")]
    pub greeting: Duration,
    /// Whether clients may have rings in memory that they share with the broker. Each connection's are
    /// charged to its user (`user_pinned_bytes`); connections beyond that keep to their sockets.
    pub rings: bool,
    /// Payloads from this size on are written once into memory that their recipients read, where
    /// these can, whether or not their senders have asked for it. 0 for none.
    pub apart_from_bytes: u32,
    /// Sockets for programs that know nothing of Unisono.
    pub ingress: Vec<IngressConfig>,
    /// Who may do what: the rules `[[policy]]` of this configuration.
    #[serde(skip)]
    pub policy: Policy,
    /// Directories of files `*.toml` with further rules, which come before those of this
    /// configuration.
    pub policy_directories: Vec<PathBuf>,
    /// Further sockets, for clients that are to be known by where they came in.
    pub socket: Vec<SocketConfig>,
    /// Directories of service files; by default `unisono/services` under the user's and the
    /// system's data directories. Only the program `bus-broker` starts services.
    pub service_directories: Option<Vec<PathBuf>>,
    /// Who runs the commands of service files.
    pub commands: CommandServices,
    #[serde(rename = "policy")]
    rules: RuleForms,
    /// Where it was read from.
    #[serde(skip)]
    source: Option<PathBuf>,
    /// As it was there.
    #[serde(skip)]
    as_read: Option<Box<Self>>,
    /// How far the program `bus-broker` confines itself.
    pub sandbox: SandboxMode,
    /// What is kept of past messages, for `unisono why`.
    pub recorder: RecorderConfig,
    /// Where what is counted is told to what watches over the system.
    pub metrics: MetricsConfig,
    /// What the program `bus-broker` logs, and how. A broker inside another program logs through
    /// that program's `tracing` subscriber and ignores this.
    pub log: LogConfig,
}

/// Where a broker listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Listen {
    /// `$XDG_RUNTIME_DIR/unisono/bus`.
    #[default]
    Default,
    /// A socket at this path.
    Path(PathBuf),
    /// Nowhere: only [`crate::BrokerHandle::connect`] makes connections.
    Nowhere,
}

/// A socket for clients that are to be known by where they came in: those of a sandbox, into which
/// its launcher puts the socket.
///
/// They are subject to the rules that name the socket's identity, and without rules may do nothing
/// but connect, whoever's user they are.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SocketConfig {
    /// Its path.
    pub path: PathBuf,
    /// Who its clients are to the rules.
    pub identity: GroupName,
    /// How many connections they may have at a time, within the bus's limit.
    #[serde(default = "default_connections")]
    pub connections: NonZeroU32,
    /// What they may have together, where it is not what a user may have: the keys of
    /// `[users.NAME.limits]`.
    #[serde(default)]
    pub limits: AccountLimits,
}

impl SocketConfig {
    /// What its clients may have together.
    pub(crate) fn budget(&self, limits: &Limits) -> Amounts {
        self.limits.over(limits.of_user())
    }
}

fn default_connections() -> NonZeroU32 {
    NonZeroU32::new(16).expect("16 is not 0")
}

/// Who runs the commands of service files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CommandServices {
    /// The broker's helper: they are its children, and confined as it is.
    #[default]
    Direct,
    /// The service manager, as transient units (`systemd-run`): with a broker that is confined by a
    /// unit, which what it starts should not be.
    Systemd,
}

/// What the program logs. Logs go to standard error.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LogConfig {
    /// A filter as the crate `tracing-subscriber` reads it: `info`, `bus_broker=debug`, ...
    pub filter: String,
    /// Lines for people, or an object of JSON a line.
    pub format: LogFormat,
}

/// What is kept of past messages: `[recorder]`. Of each a few words, and nothing of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RecorderConfig {
    /// How many bytes it may take; 0 switches it off.
    #[serde(deserialize_with = "recorder_bytes")]
    pub bytes: usize,
}

impl RecorderConfig {
    /// Who puts a wrong number into it has none.
    pub(crate) fn size(self) -> RecorderSize {
        RecorderSize::bytes(self.bytes).unwrap_or(RecorderSize::off())
    }
}

fn recorder_bytes<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    let bytes = usize::deserialize(d)?;
    if bytes != 0
        && let Err(error) = RecorderSize::bytes(bytes)
    {
        return Err(de::Error::custom(error));
    }
    Ok(bytes)
}

/// A socket for OpenMetrics: `[metrics]`. There is none by default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct MetricsConfig {
    /// The path of the Unix socket, which speaks HTTP.
    pub listen: Option<PathBuf>,
    /// How many groups are listed at most, those with the most messages; 0 for none.
    pub groups: u16,
    /// How many endpoints are listed at most, those that others wait for first.
    pub endpoints: u16,
}

impl Default for RecorderConfig {
    fn default() -> Self {
        Self { bytes: 1 << 20 }
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { listen: None, groups: 100, endpoints: 200 }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A line with one JSON object.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Listen::default(),
            threads: None,
            limits: Limits::default(),
            users: UsersConfig::default(),
            greeting: Duration::from_secs(10),
            rings: true,
            apart_from_bytes: 4 << 10,
            ingress: Vec::new(),
            policy: Policy::private(rustix::process::geteuid().as_raw()),
            policy_directories: Vec::new(),
            socket: Vec::new(),
            service_directories: None,
            commands: CommandServices::default(),
            rules: RuleForms::default(),
            source: None,
            as_read: None,
            sandbox: SandboxMode::default(),
            recorder: RecorderConfig::default(),
            metrics: MetricsConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text }
    }
}

/// Why a configuration was not taken. Nothing of it is in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read; check the path and its permissions.
    #[error("{path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is no TOML, or has a key or a value that is not known; mend it at this place.
    #[error("{path}:{place}: {message}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Line and column.
        place: Place,
        /// What is wrong there.
        message: String,
    },
    /// A limit is out of its range; mend it at this place.
    #[error("{path}:{place}: {source}")]
    Limit {
        /// The file.
        path: PathBuf,
        /// Line and column.
        place: Place,
        /// Which limit, what it was and what it may be.
        source: LimitError,
    },
}

/// A place in a text, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or [`Config::from_toml`] refuses its text.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let mut config = Self::from_toml(&text, path)?;
        config.as_read = Some(Box::new(config.clone()));
        config.source = Some(path.to_owned());
        Ok(config)
    }

    /// All rules: those of the directories, then those of this configuration.
    ///
    /// # Errors
    ///
    /// A file cannot be read or is wrong.
    pub fn whole_policy(&self) -> Result<Policy, ConfigError> {
        let mut rules = Vec::new();
        for directory in &self.policy_directories {
            rules.extend(read_directory(directory)?);
        }
        Ok(self.policy.clone().after(rules))
    }

    /// The file that it was read from.
    pub(crate) fn source(&self) -> Option<&Path> {
        self.source.as_deref()
    }

    /// Where service files are.
    pub(crate) fn service_directories(&self) -> Vec<PathBuf> {
        self.service_directories.clone().unwrap_or_else(default_directories)
    }

    /// As the file has it now; one that is from no file is as it was.
    pub(crate) fn anew(&self) -> Result<Self, ConfigError> {
        match &self.source {
            Some(path) => Self::read(path),
            None => Ok(self.clone()),
        }
    }

    /// What is different in `now` and takes a restart to come into force. Compared with the file as
    /// it was read: what a command line has changed is no change of the file's.
    pub(crate) fn pending_changes(&self, now: &Self) -> Vec<String> {
        let then = self.as_read.as_deref().unwrap_or(self);
        let mut changed: Vec<String> = Vec::new();
        let mut differ = |name: &str, differs: bool| {
            if differs {
                changed.push(format!("{name}: needs a restart"));
            }
        };
        differ("listen", then.listen != now.listen);
        differ("threads", then.threads != now.threads);
        differ("greeting", then.greeting != now.greeting);
        differ("rings", then.rings != now.rings);
        differ("apart_from_bytes", then.apart_from_bytes != now.apart_from_bytes);
        differ("ingress", then.ingress != now.ingress);
        let doors = |config: &Self| -> Vec<_> {
            let door = |socket: &SocketConfig| {
                (socket.path.clone(), socket.identity.clone(), socket.connections)
            };
            config.socket.iter().map(door).collect()
        };
        differ("socket", doors(then) != doors(now));
        differ("service_directories", then.service_directories != now.service_directories);
        differ("commands", then.commands != now.commands);
        differ("sandbox", then.sandbox != now.sandbox);
        differ("recorder", then.recorder != now.recorder);
        differ("metrics", then.metrics != now.metrics);
        differ("log", then.log != now.log);
        // Limits of users are taken by a reload.
        let rest = now.limits.clone().for_user(then.limits.of_user());
        let rest = Limits { user_connection_rate: then.limits.user_connection_rate, ..rest };
        let tables = (toml::Table::try_from(&then.limits), toml::Table::try_from(&rest));
        match tables {
            (Ok(then), Ok(now)) => {
                for (name, value) in &now {
                    differ(&format!("limits.{name}"), then.get(name) != Some(value));
                }
            }
            _ => differ("limits", then.limits != rest),
        }
        changed
    }

    /// Takes a configuration from TOML. `path` is only named in errors.
    ///
    /// # Errors
    ///
    /// Anything that is not known or out of its range, with its place.
    pub fn from_toml(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self =
            toml::from_str(text).map_err(|error| ConfigError::from_parser(&error, text, path))?;
        config.policy = config.policy.after(config.rules.rules(text, path)?);
        if let Err(source) = config.limits.check() {
            return Err(ConfigError::Limit {
                path: path.to_owned(),
                place: Place::of(text, offset_of(text, &["limits", source.name])),
                source,
            });
        }
        if let Err((source, keys)) = config.users.check(&config.limits) {
            let keys = keys.each_ref().map(String::as_str);
            let place = Place::of(text, offset_of(text, &keys));
            return Err(ConfigError::Limit { path: path.to_owned(), place, source });
        }
        for socket in &config.socket {
            let limits = config.limits.clone().for_user(socket.budget(&config.limits));
            if let Err(source) = limits.check() {
                let place = Place::of(text, offset_of(text, &["socket"]));
                return Err(ConfigError::Limit { path: path.to_owned(), place, source });
            }
        }
        Ok(config)
    }

    pub(crate) fn thread_count(&self) -> usize {
        self.threads.map_or_else(
            || {
                let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
                (cores / 2).clamp(1, DEFAULT_MOST_THREADS)
            },
            NonZeroUsize::get,
        )
    }
}

impl FromStr for Listen {
    type Err = EmptyAddress;

    /// A path or `unix:PATH`.
    fn from_str(text: &str) -> Result<Self, EmptyAddress> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        if path.is_empty() {
            return Err(EmptyAddress);
        }
        Ok(Self::Path(path.into()))
    }
}

impl TryFrom<String> for Listen {
    type Error = EmptyAddress;

    fn try_from(text: String) -> Result<Self, EmptyAddress> {
        text.parse()
    }
}

/// An address without a path; name one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the address is empty; it is a path or unix:PATH")]
pub struct EmptyAddress;

impl ConfigError {
    pub(crate) fn from_parser(error: &toml::de::Error, text: &str, path: &Path) -> Self {
        Self::Wrong {
            path: path.to_owned(),
            place: Place::of(text, error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        }
    }
}

impl Place {
    pub(crate) fn of(text: &str, offset: usize) -> Self {
        let before = &text[..text.floor_char_boundary(offset)];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Where the value stands to which these keys lead. The text was parsed once already, so a limit
/// that is wrong is there: the defaults are in range.
fn offset_of(text: &str, keys: &[&str]) -> usize {
    let (Ok(table), [first, rest @ ..]) = (toml::de::DeTable::parse(text), keys) else {
        return 0;
    };
    let found = table.get_ref().get(*first);
    let found = rest.iter().fold(found, |found, key| found?.get_ref().get(*key));
    found.map_or(0, |value| value.span().start)
}

/// More threads than this gain little on a desktop: all of them meet in the 8 locks of one bus.
const DEFAULT_MOST_THREADS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Config::from_toml(text, Path::new("bus.toml")).expect_err("refused").to_string()
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let config = Config::from_toml("", Path::new("bus.toml")).unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.limits, Limits::default());
        assert!((1..=4).contains(&config.thread_count()));
    }

    #[test]
    fn every_setting_can_be_given() {
        let text = "listen = \"unix:/run/x/bus\"\nthreads = 3\n[limits]\nqueue_messages = 7\n\
                    [recorder]\nbytes = 65536\n[metrics]\nlisten = \"/run/x/metrics\"\n\
                    groups = 3\n[log]\nfilter = \"debug\"\nformat = \"json\"\n";
        let config = Config::from_toml(text, Path::new("bus.toml")).unwrap();
        assert_eq!(config.listen, Listen::Path("/run/x/bus".into()));
        assert_eq!(config.thread_count(), 3);
        assert_eq!(config.limits.queue_messages, 7);
        assert_eq!(config.recorder.bytes, 65_536);
        assert_eq!(config.metrics.listen.as_deref(), Some("/run/x/metrics".as_ref()));
        assert_eq!((config.metrics.groups, config.metrics.endpoints), (3, 200));
        assert_eq!(config.log.filter, "debug");
        assert_eq!(config.log.format, LogFormat::Json);
    }

    #[test]
    fn errors_name_file_line_and_column() {
        for (case, text, start) in [
            ("not toml", "threads == 3\n", "bus.toml:1:10: "),
            ("unknown key", "\nthraeds = 3\n", "bus.toml:2:1: "),
            ("unknown table", "[limit]\n", "bus.toml:1:2: "),
            ("no threads", "threads = 0\n", "bus.toml:1:11: "),
            ("empty address", "listen = \"unix:\"\n", "bus.toml:1:10: "),
            ("wrong format", "[log]\n  format = \"xml\"\n", "bus.toml:2:12: "),
            ("a recorder too small", "[recorder]\nbytes = 10\n", "bus.toml:2:9: "),
            ("unknown limit", "[limits]\nqueue = 7\n", "bus.toml:2:1: "),
            ("unknown user limit", "[users.0.limits]\nmoons = 1\n", "bus.toml:2:1: "),
            ("unknown user", "[users.\"no one\".limits]\n", "bus.toml:1:"),
            ("one user twice", "[users.0.limits]\n[users.root.limits]\n", "bus.toml:1:"),
            ("too much for a user", "[users.0.limits]\nconnections = 0\n", "bus.toml:2:15: "),
            ("far ingress", "[[ingress]]\nlisten = \"tcp:10.0.0.1:9\"\n", "bus.toml:2:10: "),
            ("ingress without a group", "\n[[ingress]]\nlisten = \"unix:/x\"\n", "bus.toml:2:1: "),
        ] {
            let message = refused(text);
            assert!(message.starts_with(start), "{case}: {message}");
        }
    }

    #[test]
    fn a_limit_out_of_range_is_named_with_its_place_and_range() {
        let message = refused("[limits]\nlanes = 4\nqueue_messages = 0\n");
        assert!(message.starts_with("bus.toml:3:18: "), "{message}");
        assert!(message.contains("queue_messages is 0, and must be between 1 and"), "{message}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let message =
            Config::read(Path::new("/nonexistent/bus.toml")).expect_err("refused").to_string();
        assert!(message.starts_with("/nonexistent/bus.toml: "), "{message}");
    }
}

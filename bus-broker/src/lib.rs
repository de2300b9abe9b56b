//! The Unisono broker: ordered groups between processes, over Unix sockets.
//!
//! [`Broker::bind`] makes one from a [`Config`], [`Broker::run`] serves until
//! [`BrokerHandle::shutdown`]. The program `bus-broker` is that plus a command line, signals, logs
//! and the service manager; a broker inside another program is that and nothing else.
//!
//! How order is decided is `bus-core`'s business. Here is what moves bytes between sockets and it.
//! In reading order:
//!
//! | file | what it knows |
//! |---|---|
//! | `config`, `user_limits` | what a broker is told, and where a file is wrong |
//! | `listener`, `activation` | the socket, and who may own its path; sockets from systemd |
//! | `door` | a socket and who its clients are |
//! | `credentials`, `peer_process` | who is at the other end, and which process |
//! | `connection_rate` | how often a user and a process may connect |
//! | `service`, `service/` | what is started when somebody sends to its name |
//! | `helper`, `helper/` | a process of the program's own that starts services and looks at processes |
//! | `sandbox`, `sandbox/` | what the program gives up before it serves |
//! | `policy`, `policy/` | who may do what: rules, what one connection may do, reload |
//! | `broker` | what all threads share; start and end |
//! | `inbox` | what threads have for each other, and how a sleeper is woken |
//! | `event_loop`, `acceptor` | a thread's turn; taking and refusing connections |
//! | `slice` | how long a thread's slices of the processor are |
//! | `relief` | memory that is not needed any more goes back to the system |
//! | `connection` | a socket, an unfinished frame, output, a conversation |
//! | `link`, `rings` | the way to the client: a socket, and rings in shared memory |
//! | `transport`, `output` | bytes and descriptors in and out; what waits to be written |
//! | `protocol` | which conversation: the first bytes decide |
//! | `session` | Unisono's own: frames, calls; `session/port` an endpoint, `session/sending` and `session/lane_queue` a lane |
//! | `ingress`, `ingress/` | programs that know nothing of Unisono: framed streams that feed a group or a name |
//! | `tally`, `roster` | what threads count; which program is behind a connection and an endpoint |
//! | `metrics`, `metrics/` | OpenMetrics on a socket of their own |
//! | `logging`, `log_writer`, `log_limit` | the program's logs, that nobody waits for them, and how often the same is said of the same peer |
//!
//! **Invariant:** a connection belongs to one thread, and nobody else touches it. What the bus or
//! another thread has for it goes through the thread's inbox.
//!
//! **Invariant:** every buffer is bounded by those who fill it, and a client pays for its own: it is
//! not read while it does not read its answers, and its messages stay in its queue while its socket
//! is full. Room in anybody's queue is never a reason not to read a connection.
#![deny(unsafe_code)]

mod acceptor;
mod activation;
mod apart;
mod bells;
mod broker;
mod config;
mod connection;
mod connection_rate;
mod credentials;
mod door;
mod event_loop;
mod helper;
mod inbox;
mod ingress;
mod link;
mod listener;
mod log_limit;
mod log_writer;
mod logging;
mod metrics;
mod orphans;
mod output;
mod passed_over;
mod peer_process;
mod policy;
mod protocol;
mod relief;
mod rings;
mod roster;
mod sandbox;
mod service;
mod session;
mod slice;
mod tally;
mod transport;
mod user_limits;

#[cfg(test)]
mod testing;

pub use activation::{ActivationError, activation_sockets};
pub use broker::{BindError, Broker, BrokerHandle, ConnectError, RunError};
pub use config::{
    CommandServices, Config, ConfigError, EmptyAddress, Listen, LogConfig, LogFormat,
    MetricsConfig, Place, RecorderConfig, SocketConfig,
};
pub use helper::{HELPER_ARGUMENT, Helper, run_helper};
pub use ingress::{
    ByteOrder, Framing, IngressAddress, IngressAddressError, IngressConfig, IngressError,
    IngressTarget,
};
pub use listener::ListenError;
pub use log_writer::{LAST_WORDS, LogWriter, stderr_takes_some};
pub use logging::{LogFilterError, log_to_stderr};
pub use policy::{
    Action, Decision, NoSuchGroup, NoSuchUser, Policy, ReloadError, Reloaded, RulePlace, Sandbox,
    Subject, group_id, groups_of, user_id,
};
pub use sandbox::{SandboxError, SandboxMode, enter_sandbox};
pub use user_limits::{AccountLimits, UsersConfig};

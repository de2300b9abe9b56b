//! The Unisono broker.
#![deny(unsafe_code)]

mod activation;
mod config;
mod credentials;
mod listener;
mod logging;

pub use activation::{ActivationError, activation_sockets};
pub use config::{Config, ConfigError, EmptyAddress, Listen, LogConfig, LogFormat, Place};
pub use listener::ListenError;
pub use logging::{LogFilterError, log_to_stderr};

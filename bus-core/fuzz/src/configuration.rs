//! What must hold for any file that is taken for a broker's configuration.

use std::path::Path;

use bus_broker::Config;

/// It is a configuration, or an error with a place, and never a panic.
///
/// # Panics
///
/// A rule is broken: that is a finding.
pub fn hold_to_the_rules(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match Config::from_toml(&text, Path::new("broker.toml")) {
        Ok(config) => assert!(config.limits.check().is_ok(), "limits that were checked"),
        Err(error) => assert!(error.to_string().contains("broker.toml"), "{error}"),
    }
}

/// Good inputs to begin with.
pub fn corpus() -> Vec<Vec<u8>> {
    let inputs = [
        "",
        "[limits]\nqueue_messages = 256\nstall_ms = 500\nmembers = 10\n",
        "[[ingress]]\nlisten = \"tcp:127.0.0.1:9090\"\nidentity = \"org.example.T\"\n\
         group = \"org.example.R\"\nframing = { kind = \"length-prefix\", width = 4, bias = 4 }\n",
        "[[policy]]\nallow = [\"own\"]\nuser = \"root\"\n",
        "[[socket]]\npath = \"/run/x\"\nidentity = \"org.example.App\"\n",
    ];
    inputs.map(|input| input.as_bytes().to_vec()).to_vec()
}

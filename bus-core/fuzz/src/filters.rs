//! What must hold for any text that is taken for a filter, and any message that it is asked about.

use bus_core::{Attributes, Filter};

/// The first line is taken for a filter. The rest is a key, an operation and a payload, as far as
/// they are what these may be.
///
/// # Panics
///
/// A rule is broken: that is a finding.
pub fn hold_to_the_rules(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let filter: Filter = match first.parse() {
        Ok(filter) => filter,
        Err(error) => return assert!(!format!("{error}").is_empty()),
    };
    assert!(!filter.alternatives().is_empty(), "a filter says something");
    let (key, operation) = rest.split_once('\n').unwrap_or((rest, ""));
    let (key, operation) = (key.to_owned(), operation.to_owned());
    let built = Attributes::builder().key(key.as_bytes()).operation(operation).build();
    let attributes = built.unwrap_or(Attributes::EMPTY);
    let accepted = filter.accepts(&attributes, rest.as_bytes());
    // Alternatives are alternatives: what one of them accepts is accepted.
    let again = Filter::any([filter.clone(), filter]);
    if let Ok(twice) = again {
        assert_eq!(twice.accepts(&attributes, rest.as_bytes()), accepted);
    }
}

/// Good inputs to begin with.
pub fn corpus() -> Vec<Vec<u8>> {
    let inputs = [
        "key^=sensor. && field.unit=C\nsensor.1\nread",
        "key=a\na\n",
        "operation=Get && key^=x\nxy\nGet",
        "operation^=G\n\nGet",
        "field.name=value\nk\no",
    ];
    inputs.map(|input| input.as_bytes().to_vec()).to_vec()
}

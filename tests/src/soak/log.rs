//! What a broker under bad luck may say in its log: of each fault that was injected, and of nothing
//! else.
//!
//! A trial says what it has done ([`Faults::injected`]): which line that may bring, about which
//! program, and how often. At the end every line at `warn` or above has to be one of these: the very
//! message, the reason, the program, and no more of them than there were faults, those counted that
//! the log says it left out.

use std::fmt::Write as _;

use serde_json::Value;

/// A kind of fault, and the line that it brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// What was done.
    pub(super) what: &'static str,
    /// The line's message, word by word.
    pub(super) message: &'static str,
    /// What its reason begins with, or the name of the group that it is about.
    pub(super) about: &'static str,
    /// The program that it names; of lines about none, nothing.
    pub(super) program: Option<&'static str>,
    /// Whether each of them is logged; else there may be fewer, or none.
    pub(super) each: bool,
}

/// All that was injected.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<(Fault, u64)>);

impl Faults {
    /// So many of a kind were injected.
    pub(super) fn injected(&mut self, fault: Fault, count: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == fault) {
            Some((_, before)) => *before += count,
            None => self.0.push((fault, count)),
        }
    }

    /// Reads a log: what it says, and what it should not say.
    pub(super) fn compare(&self, log: &str) -> (String, Vec<String>) {
        let mut events = vec![0; self.0.len()];
        let (mut findings, mut below) = (Vec::new(), 0_u64);
        for line in log.lines() {
            let Ok(value) = serde_json::from_str::<Value>(line) else {
                findings.push(format!("in the log, and no JSON: {line}"));
                continue;
            };
            if !matches!(value["level"].as_str(), Some("ERROR" | "WARN")) {
                below += 1;
                continue;
            }
            match self.0.iter().position(|(fault, _)| fault.explains(&value)) {
                Some(at) => events[at] += 1 + value["fields"]["suppressed"].as_u64().unwrap_or(0),
                None => findings.push(format!("in the log, and nobody did that: {line}")),
            }
        }
        let mut told = String::new();
        for ((fault, injected), events) in self.0.iter().zip(events) {
            let Fault { what, message, .. } = fault;
            let _ = write!(told, "{injected} {what}: {events} '{message}'; ");
            if events > *injected || fault.each && events < *injected {
                findings.push(format!("{injected} {what}, and {events} times '{message}'"));
            }
        }
        findings.truncate(20);
        (format!("{told}{below} lines at info and below, nothing else"), findings)
    }
}

impl Fault {
    fn explains(&self, line: &Value) -> bool {
        let fields = &line["fields"];
        let is = |key: &str| fields[key].as_str().unwrap_or_default();
        let about = ["reason", "group", "name"].map(is);
        line["level"] == "WARN"
            && is("message") == self.message
            && about.iter().any(|text| text.starts_with(self.about))
            && self.program.is_none_or(|program| is("program").starts_with(program))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIES: Fault =
        Fault { what: "lies", message: "ended", about: "a frame", program: Some("me"), each: true };

    fn line(message: &str, reason: &str, program: &str, suppressed: u64) -> String {
        let fields = serde_json::json!({
            "message": message, "reason": reason, "program": program, "suppressed": suppressed,
        });
        serde_json::json!({ "level": "WARN", "fields": fields }).to_string()
    }

    #[test]
    fn a_line_that_no_fault_explains_is_a_finding() {
        let mut faults = Faults::default();
        faults.injected(LIES, 3);
        let compared = |lines: &[String]| faults.compare(&lines.join("\n")).1;
        let (one, three) =
            (line("ended", "a frame lies", "me", 0), line("ended", "a frame", "me", 2));
        assert_eq!(compared(std::slice::from_ref(&three)), [""; 0]);
        assert_eq!(compared(&[one.clone(), one.clone(), one.clone()]), [""; 0]);
        for (case, lines) in [
            ("more than injected", vec![three.clone(), one.clone()]),
            ("fewer", vec![one]),
            ("another message", vec![three.clone(), line("evicted", "a frame", "me", 0)]),
            ("another reason", vec![three.clone(), line("ended", "no greeting", "me", 0)]),
            ("another program", vec![three.clone(), line("ended", "a frame", "you", 0)]),
            ("no JSON", vec![three.clone(), "thread panicked".to_owned()]),
            ("an error", vec![three.clone(), three.replace("WARN", "ERROR")]),
        ] {
            assert_eq!(compared(&lines).len(), 1, "{case}");
        }
    }
}

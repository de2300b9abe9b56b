//! `unisono verify` on files; the checks themselves have their tests beside them.

use std::path::Path;

use crate::harness::{Ended as _, Fixture, output, unisono};

/// Four senders at the same time, three listeners, everything recorded.
fn record(dir: &Path) {
    let fixture = Fixture::new();
    let listeners = [1, 2, 3].map(|n| (n, fixture.listen("g -n 4000")));
    let senders = [1, 2, 3, 4].map(|n| {
        let mut sender = fixture.start("send g --lines --json --wait-members 3");
        let mut stdin = sender.stdin();
        let writer = std::thread::spawn(move || {
            use std::io::Write as _;
            for line in 0..1_000 {
                writeln!(stdin, "line {line} of {n}").expect("written");
            }
        });
        (n, sender, writer)
    });
    for (n, sender, writer) in senders {
        writer.join().expect("joins");
        let output = sender.finish().assert_code(0);
        std::fs::write(dir.join(format!("send-{n}")), &output.stdout).expect("written");
    }
    for (n, (listener, joined)) in listeners {
        let output = listener.finish().assert_code(0);
        let text = format!("{joined}\n{}", output.text());
        std::fs::write(dir.join(format!("listen-{n}")), text).expect("written");
    }
}

fn verify(dir: &Path) -> std::process::Output {
    let path = |name: &str| dir.join(name).display().to_string();
    output(unisono(
        ["verify"]
            .map(str::to_owned)
            .into_iter()
            .chain([1, 2, 3].map(|n| path(&format!("listen-{n}"))))
            .chain(["--sends".to_owned()])
            .chain([1, 2, 3, 4].map(|n| path(&format!("send-{n}")))),
    ))
}

#[test]
fn g2_four_senders_and_three_listeners_have_one_order_and_a_fault_is_found() {
    let dir = tempfile::tempdir().expect("a folder");
    record(dir.path());
    let good = verify(dir.path()).assert_code(0);
    assert_eq!(good.text(), "ok: 3 traces, 4000 messages, 4000 receipts\n");

    let path = dir.path().join("listen-2");
    let text = std::fs::read_to_string(&path).expect("read");
    let lines: Vec<_> = text.lines().collect();
    let without: String = lines
        .iter()
        .enumerate()
        .filter(|(n, _)| *n != 2_000)
        .map(|(_, line)| format!("{line}\n"))
        .collect();
    std::fs::write(&path, without).expect("written");
    let bad = verify(dir.path()).assert_code(5);
    let place = format!("{}:2000: gap: ", path.display());
    assert!(bad.text().starts_with(&place), "{}", bad.text());
}

#[test]
fn files_that_are_missing_or_make_no_sense_are_1_and_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("trace").display().to_string();
    let missing = output(unisono(["verify", &path])).assert_code(1);
    assert!(missing.error().contains(&path), "{}", missing.error());
    std::fs::write(&path, "{}\n").expect("written");
    let nonsense = output(unisono(["verify", &path])).assert_code(1);
    assert!(nonsense.error().contains(&format!("{path}:1")), "{}", nonsense.error());
}

#[test]
fn findings_can_be_had_as_json() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("trace").display().to_string();
    let message = |sequence, serial| {
        format!(
            r#"{{"type":"message","sequence":{sequence},"group":"g","sender":1,"sender_serial":{serial},"payload":"x"}}"#
        ) + "\n"
    };
    std::fs::write(&path, message(2, 1) + &message(2, 1)).expect("written");
    let output = output(unisono(["verify", &path, "--json"])).assert_code(5);
    let report = &output.lines()[0];
    assert_eq!(report["violations"][0]["kind"], "duplicate");
    assert_eq!(report["violations"][0]["place"], format!("{path}:2"));
    assert_eq!(report["counts"]["duplicate"], 1);
}

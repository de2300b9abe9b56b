//! `unisono demo`.

use sha2::{Digest as _, Sha256};

use crate::harness::{Ended as _, output, unisono};

#[test]
fn g2_all_digests_are_equal_and_are_those_of_the_files_that_were_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().display().to_string();
    let demo = output(unisono([
        "demo",
        "--members",
        "3",
        "--senders",
        "2",
        "--messages",
        "400",
        "--traces",
        &path,
    ]));
    let demo = demo.assert_code(0);
    let mut digests = Vec::new();
    for n in 1..=3 {
        let text = std::fs::read(dir.path().join(format!("member-{n}.jsonl"))).expect("kept");
        assert_eq!(text.iter().filter(|b| **b == b'\n').count(), 800);
        let digest: String = Sha256::digest(&text).iter().map(|b| format!("{b:02x}")).collect();
        digests.push(digest);
    }
    assert!(digests.iter().all(|d| *d == digests[0]), "{digests:?}");
    assert_eq!(demo.text().matches(&digests[0]).count(), 3, "{}", demo.text());

    let member = |n| format!("{path}/member-{n}.jsonl");
    let sender = |n| format!("{path}/sends/sender-{n}.jsonl");
    let verify = [
        "verify".to_owned(),
        member(1),
        member(2),
        member(3),
        "--sends".to_owned(),
        sender(1),
        sender(2),
    ];
    let verify = output(unisono(verify)).assert_code(0);
    assert!(
        verify.text().contains("ok: 3 traces, 800 messages, 800 receipts"),
        "{}",
        verify.text()
    );
}

#[test]
fn a_text_of_ones_own_is_sent() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().display().to_string();
    let text = dir.path().join("text");
    std::fs::write(&text, "first\nsecond\n").expect("written");
    let text = text.display().to_string();
    output(unisono([
        "demo",
        "--members",
        "1",
        "--senders",
        "1",
        "--messages",
        "3",
        "--file",
        &text,
        "--traces",
        &path,
    ]))
    .assert_code(0);
    let kept = std::fs::read_to_string(dir.path().join("member-1.jsonl")).expect("kept");
    let payloads: Vec<_> = kept
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line)["payload"].clone())
        .collect();
    assert_eq!(payloads, ["first", "second", "first"]);
}

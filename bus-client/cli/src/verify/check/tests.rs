//! Each kind of violation in traces made by hand, and what is none.

use super::{
    super::{
        history::Histories,
        report::{Kind, Report},
    },
    check,
};

fn verify(traces: &[&str], sends: Option<&[&str]>) -> Report {
    let mut history = Histories::default();
    for (n, text) in traces.iter().enumerate() {
        let name = char::from(b'a' + u8::try_from(n).expect("few")).to_string();
        history.add_trace(&name, text.as_bytes()).expect("reads");
    }
    for (n, text) in sends.unwrap_or_default().iter().enumerate() {
        history.add_receipts(&format!("s{n}"), text.as_bytes()).expect("reads");
    }
    let mut report = Report::default();
    for (incarnation, history) in history.all() {
        report.append(&incarnation, check(&history));
    }
    report
}

fn joined(group: &str, sequence: u64) -> String {
    format!(r#"{{"type":"joined","group":"{group}","sequence":{sequence},"flags":[]}}"#) + "\n"
}

fn left(group: &str, sequence: u64) -> String {
    format!(r#"{{"type":"left","group":"{group}","sequence":{sequence}}}"#) + "\n"
}

fn end(through: u64) -> String {
    format!(r#"{{"type":"end","reason":"count","through":{through}}}"#) + "\n"
}

fn gap(group: &str, missed: u64, first: u64, last: u64) -> String {
    format!(r#"{{"type":"gap","group":"{group}","missed":{missed},"first":{first},"last":{last}}}"#)
        + "\n"
}

fn message_to(group: &str, sequence: u64, sender: u64, serial: u64) -> String {
    format!(
        r#"{{"type":"message","sequence":{sequence},"group":"{group}","sender":{sender},"sender_serial":{serial},"payload":"p{sequence}"}}"#
    ) + "\n"
}

/// A message of one sender, to the group `g`, whose serial is its sequence less 10.
fn message(sequence: u64) -> String {
    message_to("g", sequence, 1, sequence - 10)
}

fn messages(sequences: impl IntoIterator<Item = u64>) -> String {
    sequences.into_iter().map(message).collect()
}

fn receipt(sequence: u64, recipients: u64, after: u64) -> String {
    format!(
        r#"{{"sequence":{sequence},"sender":1,"sender_serial":{},"recipients":{recipients},"after":{after},"group":"g"}}"#,
        sequence - 10
    ) + "\n"
}

fn receipts(sequences: impl IntoIterator<Item = u64>) -> String {
    sequences.into_iter().map(|s| receipt(s, 2, 0)).collect()
}

#[track_caller]
fn assert_clean(report: &Report) {
    assert!(report.is_clean(), "{report}");
}

/// Exactly one violation, of this kind, at this place.
#[track_caller]
fn assert_one(report: &Report, kind: Kind, place: &str) {
    assert_eq!(report.violations.len(), 1, "{report}");
    assert_eq!(report.violations[0].kind, kind, "{report}");
    assert_eq!(report.violations[0].place, place, "{report}");
}

#[track_caller]
fn assert_note(report: &Report, words: &str) {
    assert!(report.not_checked.iter().any(|n| n.contains(words)), "{report}");
}

#[test]
fn equal_traces_with_their_receipts_pass_with_nothing_left_unchecked() {
    let trace = joined("g", 10) + &messages(11..=20) + &end(20);
    let report = verify(&[&trace, &trace], Some(&[&receipts(11..=20)]));
    assert_clean(&report);
    assert_eq!((report.traces, report.messages, report.receipts), (2, 10, 10));
    assert_eq!(report.not_checked, [""; 0]);
}

#[test]
fn members_that_come_late_or_go_early_pass() {
    let whole = joined("g", 10) + &messages(11..=20) + &end(20);
    let late = joined("g", 15) + &messages(16..=20) + &end(20);
    let early = joined("g", 10) + &messages(11..=14) + &left("g", 15);
    let killed = joined("g", 10) + &messages(11..=13);
    assert_clean(&verify(&[&whole, &late, &early, &killed], None));
    let again = joined("g", 10)
        + &messages(11..=12)
        + &left("g", 13)
        + &joined("g", 17)
        + &messages(18..=20)
        + &end(20);
    assert_clean(&verify(&[&whole, &again], None));
}

#[test]
fn g2_a_sequence_that_falls_is_an_order_violation() {
    let good = joined("g", 10) + &messages([11, 12, 13]);
    let bad = joined("g", 10) + &messages([11, 13, 12]);
    assert_one(&verify(&[&good, &bad], None), Kind::Order, "b:4");
}

#[test]
fn g2_messages_that_changed_places_and_sequences_are_found() {
    let good = joined("g", 10) + &message_to("g", 11, 1, 1) + &message_to("g", 12, 2, 1);
    let bad = joined("g", 10) + &message_to("g", 11, 2, 1) + &message_to("g", 12, 1, 1);
    let report = verify(&[&good, &bad], None);
    assert!(report.violations.iter().all(|v| v.kind == Kind::Identity), "{report}");
    assert_eq!(report.violations[0].place, "b:2", "{report}");
}

#[test]
fn g2_one_sequence_for_two_messages_is_found() {
    let one = joined("g", 10) + &message_to("g", 11, 1, 1);
    let other = joined("g", 10) + &message_to("g", 11, 2, 1);
    assert_one(&verify(&[&one, &other], None), Kind::Identity, "b:2");
}

#[test]
fn g2_one_message_with_two_contents_is_found() {
    let one = joined("g", 10) + &message(11);
    let other = one.replace("p11", "q11");
    assert_one(&verify(&[&one, &other], None), Kind::Identity, "b:2");
}

#[test]
fn g2_a_receipt_that_names_another_message_is_found() {
    let trace = joined("g", 10) + &message_to("g", 11, 7, 3);
    let report = verify(&[&trace], Some(&[&receipts([11])]));
    assert_one(&report, Kind::Identity, "s0:1");
}

#[test]
fn g3_a_senders_messages_stand_in_the_order_of_their_serials() {
    let trace = joined("g", 10) + &message_to("g", 11, 1, 2) + &message_to("g", 12, 1, 1);
    assert_one(&verify(&[&trace], None), Kind::Order, "a:2");
}

#[test]
fn a_message_that_comes_twice_is_a_duplicate() {
    for again in [message(11), message(12)] {
        let trace = joined("g", 10) + &messages([11, 12]) + &again;
        assert_one(&verify(&[&trace], None), Kind::Duplicate, "a:4");
    }
}

#[test]
fn a_second_receipt_is_a_duplicate() {
    let trace = joined("g", 10) + &messages([11]);
    let report = verify(&[&trace], Some(&[&receipts([11, 11])]));
    assert_one(&report, Kind::Duplicate, "s0:2");
}

#[test]
fn g1_a_message_that_only_another_member_has_is_a_gap() {
    let good = joined("g", 10) + &messages(11..=15) + &end(15);
    let bad = joined("g", 10) + &messages([11, 12, 15]) + &end(15);
    let report = verify(&[&good, &bad], None);
    assert_one(&report, Kind::Gap, "b:3");
    assert!(report.violations[0].text.contains("2 messages"), "{report}");
    assert!(report.violations[0].text.contains("a:4"), "{report}");
}

#[test]
fn g1_a_hole_in_a_lone_traces_serials_is_a_gap() {
    let trace = joined("g", 10) + &messages([11, 12, 15]);
    assert_one(&verify(&[&trace], None), Kind::Gap, "a:4");
}

#[test]
fn a_hole_is_no_gap_where_the_sender_also_sends_elsewhere() {
    let trace = joined("g", 10) + &messages([11, 14]);
    let other = joined("h", 10) + &message_to("h", 12, 1, 2);
    let report = verify(&[&trace, &other], None);
    assert_clean(&report);
    assert_note(&report, "elsewhere");
}

#[test]
fn g1_what_only_the_sender_knows_of_is_a_loss() {
    let trace = joined("g", 10) + &messages([11, 13]) + &end(13);
    let report = verify(&[&trace, &trace], Some(&[&receipts(11..=13)]));
    assert_eq!(report.counts.get(&Kind::Loss), Some(&2), "{report}");
    assert_eq!(report.violations[0].place, "a:2", "{report}");
    assert_eq!(report.violations[1].place, "b:2", "{report}");
}

#[test]
fn g1_loss_is_found_before_the_first_and_after_the_last_message() {
    let late = joined("g", 10) + &messages([12, 13]) + &end(13);
    assert_one(&verify(&[&late], Some(&[&receipts(11..=13)])), Kind::Loss, "a:0");
    let early = joined("g", 10) + &messages([11, 12]) + &left("g", 20);
    assert_one(&verify(&[&early], Some(&[&receipts(11..=13)])), Kind::Loss, "a:3");
    let counted = joined("g", 10) + &messages([11, 12]) + &end(12);
    assert_clean(&verify(&[&counted], Some(&[&receipts(11..=13)])));
}

#[test]
fn receipts_without_a_group_are_taken_for_the_only_group() {
    let trace = joined("g", 10) + &messages([11, 13]) + &end(13);
    let sends = receipts(11..=13).replace(r#","group":"g""#, "");
    assert_one(&verify(&[&trace], Some(&[&sends])), Kind::Loss, "a:2");
}

#[test]
fn g7_what_a_gap_report_covers_is_no_violation() {
    let good = joined("g", 10) + &messages(11..=16) + &end(16);
    let notice = joined("g", 10) + &messages([11, 12]) + &gap("g", 2, 13, 14) + &messages([15, 16]);
    let on_message = joined("g", 10)
        + &messages([11, 12])
        + &message(15).replace('}', r#","missed":2,"first":13,"last":14}"#)
        + &message(16);
    for told in [notice, on_message] {
        assert_clean(&verify(&[&good, &told], Some(&[&receipts(11..=16)])));
        assert_clean(&verify(&[&told], None));
    }
}

#[test]
fn g7_a_gap_report_that_counts_too_few_is_found() {
    let good = joined("g", 10) + &messages(11..=16) + &end(16);
    let told = joined("g", 10) + &messages([11]) + &gap("g", 2, 12, 15) + &message(16);
    assert_one(&verify(&[&good, &told], None), Kind::Gap, "b:3");
}

#[test]
fn g7_a_gap_report_over_a_message_that_came_is_found() {
    let told = joined("g", 10) + &messages([11]) + &gap("g", 1, 12, 14) + &messages([13, 14]);
    assert_one(&verify(&[&told], None), Kind::Gap, "a:3");
}

#[test]
fn g7_a_gap_report_of_another_group_covers_nothing() {
    let good = joined("g", 10) + &messages(11..=13);
    let told = joined("g", 10) + &messages([11]) + &gap("h", 1, 12, 12) + &message(13);
    assert_one(&verify(&[&good, &told], None), Kind::Gap, "b:2");
}

#[test]
fn g7_a_gap_report_that_contradicts_itself_is_found() {
    for (missed, first, last) in [(0, 12, 12), (1, 13, 12), (3, 12, 13)] {
        let trace = joined("g", 10) + &gap("g", missed, first, last);
        assert_one(&verify(&[&trace], None), Kind::Gap, "a:2");
    }
}

#[test]
fn g4_messages_outside_of_the_membership_are_found() {
    let early = joined("g", 12) + &messages([11, 13]);
    assert_one(&verify(&[&early], None), Kind::View, "a:2");
    let late = joined("g", 10) + &messages([11]) + &left("g", 12) + &message(13);
    let report = verify(&[&late], None);
    assert_eq!(report.counts.get(&Kind::View), Some(&1), "{report}");
    assert_eq!(report.violations[0].place, "a:4", "{report}");
}

#[test]
fn g4_a_message_from_before_the_leave_may_be_read_after_it() {
    let trace = joined("g", 10) + &messages([11]) + &left("g", 13) + &message(12);
    assert_clean(&verify(&[&trace], None));
}

#[test]
fn g3_a_message_before_one_that_its_sender_had_taken_is_found() {
    let trace = joined("g", 10) + &messages([11, 12]) + &end(12);
    let sends = receipt(11, 1, 0) + &receipt(12, 1, 12);
    let report = verify(&[&trace], Some(&[&sends]));
    assert_one(&report, Kind::Causality, "s0:2");
}

#[test]
fn g1_more_traces_than_recipients_are_found() {
    let trace = joined("g", 10) + &messages([11]) + &end(11);
    let report = verify(&[&trace, &trace], Some(&[&receipt(11, 1, 0)]));
    assert_one(&report, Kind::Delivery, "s0:1");
}

#[test]
fn members_do_not_lack_what_they_sent_without_loopback() {
    let good = joined("g", 10) + &messages(11..=13) + &end(13);
    let own = good.replace(r#""flags":[]"#, r#""flags":[],"endpoint":5"#).replace(&message(12), "");
    let good = good.replace(r#""sender":1,"sender_serial":2"#, r#""sender":5,"sender_serial":1"#);
    let own = own.replace(r#""sender_serial":3"#, r#""sender_serial":2"#);
    let good = good.replace(r#""sender_serial":3"#, r#""sender_serial":2"#);
    assert_clean(&verify(&[&good, &own], None));
    let loud = own.replace("[]", r#"["loopback"]"#);
    assert_one(&verify(&[&good, &loud], None), Kind::Gap, "b:2");
}

#[test]
fn filters_are_told_to_be_unchecked() {
    let good = joined("g", 10) + &messages(11..=13) + &end(13);
    let some =
        good.replace(r#""flags":[]"#, r#""flags":[],"filter":"key^=a.""#).replace(&message(12), "");
    let report = verify(&[&good, &some], None);
    assert_clean(&report);
    assert_note(&report, "through a filter");
}

#[test]
fn what_was_not_checked_is_told() {
    let bare = messages(11..=13);
    let report = verify(&[&bare], None);
    assert_clean(&report);
    for words in ["no receipts", "no joined line", "how it ended"] {
        assert_note(&report, words);
    }
    let report = verify(&[&(bare + &message_to("g", 14, 9, 1))], Some(&[&receipts(11..=13)]));
    assert_clean(&report);
    assert_note(&report, "no receipts of 1 senders");
}

#[test]
fn a_line_that_was_cut_off_at_the_end_is_passed_over() {
    let whole = joined("g", 10) + &messages(11..=13);
    for cut in 1..message(13).len() - 1 {
        let report = verify(&[&whole[..whole.len() - 1 - cut]], None);
        assert_clean(&report);
        assert_eq!(report.messages, 2, "{cut}");
        if cut < message(13).len() - 1 {
            assert_note(&report, "a:4: cut off");
        }
    }
}

#[test]
fn a_line_that_makes_no_sense_elsewhere_is_an_error_with_its_place() {
    let mut history = Histories::default();
    let text = message(11) + "nonsense\n";
    let failure = history.add_trace("a", text.as_bytes()).expect_err("no trace");
    assert!(failure.to_string().starts_with("a:2: "), "{failure}");
}

#[test]
fn lines_of_other_types_and_empty_ones_do_no_harm() {
    let trace = joined("g", 10) + "\n" + r#"{"type":"view","n":1}"# + "\n" + &messages([11]);
    let report = verify(&[&trace], None);
    assert_clean(&report);
    assert_note(&report, "unknown type");
}

#[test]
fn one_fault_among_many_messages_is_found_at_its_line() {
    let all: Vec<String> = (11..=20_010).map(message).collect();
    let good = joined("g", 10) + &all.concat();
    let mut bad = all;
    bad.remove(12_345);
    let bad = joined("g", 10) + &bad.concat();
    let report = verify(&[&good, &good, &bad], Some(&[&receipts(11..=20_010)]));
    assert_eq!(report.counts.len(), 2, "{report}");
    assert_eq!(report.violations[0].place, "c:12346", "{report}");
    assert_eq!(report.violations[0].kind, Kind::Gap, "{report}");
    assert_eq!(report.counts.get(&Kind::Delivery), Some(&19_999), "{report}");
}

#[test]
fn g7_a_loss_that_was_not_told_yet_is_no_violation_of_a_member_that_drops() {
    let good = joined("g", 10) + &messages(11..=16) + &end(16);
    let drops = good.replace("[]", r#"["drop-when-full"]"#);
    let cut = drops.replace(&messages(14..=16), "");
    let report = verify(&[&good, &cut], None);
    assert_clean(&report);
    assert_note(&report, "for want of room");
    let hole = drops.replace(&messages(14..=15), "");
    assert_one(&verify(&[&good, &hole], None), Kind::Gap, "b:4");
}

/// A membership in an incarnation of the bus.
fn joined_to(incarnation: &str, sequence: u64) -> String {
    format!(
        r#"{{"type":"joined","group":"g","sequence":{sequence},"incarnation":"{incarnation}"}}"#
    ) + "\n"
}

fn reconnected(before: &str, last: u64, now: &str) -> String {
    format!(
        r#"{{"type":"reconnected","before":"{before}","last":{last},"incarnation":"{now}","endpoint":9}}"#
    ) + "\n"
}

#[test]
fn each_incarnation_has_an_order_of_its_own() {
    let both = [
        joined_to("a", 10),
        messages(11..=13),
        reconnected("a", 13, "b"),
        joined_to("b", 10),
        message_to("g", 11, 7, 1),
    ]
    .concat();
    // It has more of the first, which the other one was told it may lack.
    let first = [joined_to("a", 10), messages(11..=20)].concat();
    let report = verify(&[&both, &first], None);
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.traces, report.messages), (3, 11));
}

#[test]
fn what_is_missing_before_the_last_that_was_told_of_is_a_gap() {
    let lacks =
        [joined_to("a", 10), messages([11, 13]), reconnected("a", 13, "b"), joined_to("b", 10)]
            .concat();
    let has = [joined_to("a", 10), messages(11..=13)].concat();
    let report = verify(&[&lacks, &has], None);
    assert_eq!(report.counts.get(&Kind::Gap), Some(&1), "{report}");
}

#[test]
fn a_disagreement_within_the_second_incarnation_is_found() {
    let one = [joined_to("a", 10), reconnected("a", 10, "b"), joined_to("b", 10), messages([11])];
    let other = [joined_to("b", 10), message_to("g", 11, 5, 1)];
    let report = verify(&[&one.concat(), &other.concat()], None);
    assert!(!report.is_clean(), "{report}");
}

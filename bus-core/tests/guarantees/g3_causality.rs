//! G3: what was sent after something was seen comes after it.

use crate::given::{Party, assert_rising, bus, outcome, wait};

#[test]
fn g3_an_answer_stands_behind_what_it_answers() {
    let bus = bus(8);
    let (mut asks, mut answers) = (Party::on(&bus), Party::on(&bus));
    let mut watches = Party::on(&bus);
    let group = answers.join("g");
    watches.join("g");
    let asked = asks.send(group, "question");
    assert_eq!(answers.take(), "question");
    let answered = answers.send(watches.id(), "answer");
    assert!(answered.sequence > asked.sequence);
    assert_eq!(answered.after, asked.sequence);
    assert_eq!(watches.take_all(), ["question", "answer"]);
}

/// Sequences follow what was seen along chains, whichever locks the recipients have.
#[test]
fn g3_chains_over_endpoints_that_share_no_queue_rise() {
    let bus = bus(8);
    let mut parties: Vec<Party> = (0..40).map(|_| Party::on(&bus)).collect();
    let mut sequences = Vec::new();
    for at in 0..parties.len() - 1 {
        let next = parties[at + 1].id();
        sequences.push(parties[at].send(next, "on").sequence);
        parties[at + 1].take();
    }
    assert_rising(&sequences);
}

#[test]
fn g3_sends_of_two_lanes_follow_each_other_when_the_first_call_had_returned() {
    let bus = bus(8);
    let mut sender = Party::on(&bus);
    let mut second = sender.endpoint.lane().unwrap();
    let readers: Vec<Party> = (0..16).map(|_| Party::on(&bus)).collect();
    let mut sequences = Vec::new();
    for pair in readers.chunks(2) {
        sequences.push(sender.send(pair[0].id(), "a").sequence);
        sequences.push(second.try_send(pair[1].here(), "b").unwrap().sequence);
    }
    assert_rising(&sequences);
}

#[test]
fn g3_joins_leaves_and_creations_follow_what_their_endpoint_has_seen() {
    let bus = bus(8);
    let (mut sender, reader) = (Party::on(&bus), Party::on(&bus));
    let sent = sender.send(reader.id(), "x").sequence;
    let name = "g".parse().unwrap();
    let (group, created) = sender.endpoint.create_group(&name).unwrap();
    let joined = sender.endpoint.join(&name, bus_core::JoinOptions::default()).unwrap();
    let left = sender.endpoint.leave(group).unwrap();
    assert_rising(&[sent, created, joined.sequence, left]);
    assert!(!joined.created);
}

#[test]
fn g3_a_waiting_send_follows_what_was_taken_before_its_commit() {
    let bus = bus(1);
    let (mut sender, mut other, mut full) = (Party::on(&bus), Party::on(&bus), Party::on(&bus));
    other.send(full.id(), "fills");
    sender.wait(full.id(), "waits");
    let taken = other.send(sender.id(), "taken meanwhile").sequence;
    sender.take();
    full.take();
    let receipt = outcome(&mut sender.lane).unwrap();
    assert_eq!(receipt.after, taken);
    assert!(receipt.sequence > taken);
}

#[test]
fn g3_serials_count_an_endpoints_messages_over_all_its_lanes() {
    let bus = bus(1);
    let mut sender = Party::on(&bus);
    let (mut a, b) = (Party::on(&bus), Party::on(&bus));
    let mut second = sender.endpoint.lane().unwrap();
    assert_eq!(sender.send(a.id(), "1").sender_serial, 1);
    wait(&mut second, a.id(), "3");
    assert_eq!(sender.send(b.id(), "2").sender_serial, 2);
    a.take();
    assert_eq!(outcome(&mut second).unwrap().sender_serial, 3);
    assert_eq!(a.take_message().sender_serial(), 3);
}

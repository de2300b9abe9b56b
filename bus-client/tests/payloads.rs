//! Large payloads against a real broker in this process: lent, copied at most once, read in place.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::{Duration, Instant};

use bus_client::{
    Bus, CompletedRange, EmbeddedBroker, Event, JoinOptions, Limits, Message, Outgoing, Pool,
    PoolError, Reconnect, SealedFile, SendError, Way,
};
use std::io::Write;

#[path = "payloads/together.rs"]
mod together;
#[path = "payloads/unasked.rs"]
mod unasked;

/// Longer than anything here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

fn broker(limits: Limits) -> (EmbeddedBroker, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let broker = EmbeddedBroker::builder().limits(limits).path(dir.path().join("bus"));
    (broker.start().unwrap(), dir)
}

/// Limits with queues that hold some large payloads.
fn wide() -> Limits {
    Limits { queue_bytes: 64 << 20, lent: Duration::from_secs(600), ..Limits::default() }
}

fn lender(broker: &EmbeddedBroker) -> Bus {
    Bus::builder().address(broker.address()).zerocopy().connect().unwrap()
}

fn truster(broker: &EmbeddedBroker) -> Bus {
    Bus::builder().address(broker.address()).trust_own_user().connect().unwrap()
}

fn message(bus: &Bus) -> Message {
    match bus.receive_deadline(PATIENCE).unwrap() {
        Some(Event::Message(message)) => message,
        other => panic!("{other:?} where a message was expected"),
    }
}

/// What the numbered payload has in each byte.
fn pattern(number: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(((at / 64) * 31 + number * 7) % 251).unwrap()).collect()
}

fn filled(pool: &Pool, number: usize, length: usize) -> Outgoing {
    let mut buffer = pool.take_deadline(PATIENCE).unwrap();
    buffer.set_len(length);
    buffer.copy_from_slice(&pattern(number, length));
    Outgoing::lent(buffer)
}

fn completions(bus: &Bus, count: u32) -> Vec<CompletedRange> {
    let until = Instant::now() + PATIENCE;
    let mut ranges = Vec::new();
    while ranges.iter().map(CompletedRange::count).sum::<u32>() < count {
        assert!(Instant::now() < until, "{ranges:?}");
        bus.wait_completions(Duration::from_secs(1));
        ranges.extend(bus.completions());
    }
    ranges
}

#[test]
fn a_lent_payload_is_copied_once_and_read_in_place_by_all() {
    let (broker, _dir) = broker(wide());
    let sender = lender(&broker);
    let readers = [0; 3].map(|_| broker.connect().unwrap());
    let members: Vec<_> = readers.iter().map(|reader| reader.join("large").unwrap()).collect();
    let pool = sender.pool(4, 2 * MIB).unwrap();
    let group = sender.group("large").unwrap();
    for number in 0..20 {
        let length = MIB + 64 * number;
        let receipt = group.send(filled(&pool, number, length).key("k")).unwrap();
        assert_eq!(receipt.completion, Some(u32::try_from(number).unwrap()));
        let got: Vec<_> = readers.iter().map(message).collect();
        for message in &got {
            assert_eq!(message.way(), Way::Arena);
            assert_eq!((message.key(), message.payload().len()), (Some(&b"k"[..]), length));
            assert!(message.payload() == pattern(number, length), "{number}");
        }
    }
    let ranges = completions(&sender, 20);
    assert!(ranges.iter().all(|range| range.copied), "the broker made the one copy: {ranges:?}");
    assert_eq!((ranges[0].first, ranges.last().unwrap().last), (0, 19));
    assert_eq!(pool.free(), 4);
    drop(members);
}

#[test]
fn flagged_and_unflagged_sends_mix_in_one_order_and_only_flagged_ones_take_numbers() {
    let (broker, _dir) = broker(wide());
    let sender = lender(&broker);
    let reader = broker.connect().unwrap();
    let _member = reader.join("mixed").unwrap();
    let group = sender.group("mixed").unwrap();
    let pool = sender.pool(8, MIB).unwrap();
    let plain = group.send("plain").unwrap();
    let small = group.send(Outgoing::text("small").zerocopy()).unwrap();
    let empty = group.send(Outgoing::bytes([]).zerocopy()).unwrap();
    let failed = sender.group("nobody.made.it").unwrap().send(filled(&pool, 1, MIB));
    let large = group.send(filled(&pool, 2, MIB)).unwrap();
    let copied = group.send(Outgoing::bytes(pattern(3, MIB)).zerocopy()).unwrap();
    assert!(matches!(failed, Err(SendError::NoSuchGroup(_))), "{failed:?}");
    assert_eq!((plain.completion, empty.completion), (None, None));
    assert_eq!(
        (small.completion, large.completion, copied.completion),
        (Some(0), Some(1), Some(2))
    );
    let got: Vec<_> = (0..5).map(|_| message(&reader)).collect();
    assert!(got.windows(2).all(|pair| pair[0].sequence() < pair[1].sequence()));
    assert_eq!((got[0].payload(), got[1].payload()), (&b"plain"[..], &b"small"[..]));
    assert!(got[2].payload().is_empty());
    assert!(got[3].payload() == pattern(2, MIB) && got[4].payload() == pattern(3, MIB));
    let ranges = completions(&sender, 3);
    let mut numbers: Vec<_> = ranges.iter().flat_map(|range| range.numbers()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2]);
    let until = Instant::now() + PATIENCE;
    while pool.free() < 8 {
        assert!(Instant::now() < until, "the refused one came back too");
        sender.wait_completions(Duration::from_millis(50));
        sender.completions().for_each(drop);
    }
}

#[test]
fn each_message_of_a_batch_takes_a_number_of_its_own() {
    let (broker, _dir) = broker(wide());
    let sender = lender(&broker);
    let reader = broker.connect().unwrap();
    let _member = reader.join("batch").unwrap();
    let group = sender.group("batch").unwrap();
    let cork = sender.cork();
    let text = |number: u32| Outgoing::text(number.to_string());
    // Those that are not flagged take none, wherever they stand.
    let sends: Vec<_> = (0..30)
        .map(|number| match number % 3 {
            0 => group.start_send(text(number)).unwrap(),
            _ => group.start_send(text(number).zerocopy()).unwrap(),
        })
        .collect();
    drop(cork);
    let mut numbers = Vec::new();
    for (number, send) in (0..30).zip(sends) {
        let completion = send.wait().unwrap().completion;
        assert_eq!(completion.is_some(), number % 3 != 0, "{number}");
        numbers.extend(completion);
    }
    assert!(numbers.iter().copied().eq(0..20), "{numbers:?}");
    assert_eq!(completions(&sender, 20), [CompletedRange::new(0, 19, true)], "one range");
    for number in 0..30_u32 {
        assert_eq!(message(&reader).text(), Some(&*number.to_string()));
    }
}

#[test]
fn g8_a_flagged_send_past_a_limit_is_no_buffers_names_it_and_reached_nobody() {
    // Half of it is lent to whoever asks, and half of that to one process: 9 MiB, 8 of them to the pool.
    let limits = Limits { user_pinned_bytes: 36 * MIB as u64, completions: 3, ..wide() };
    let (broker, _dir) = broker(limits);
    let reader = broker.connect().unwrap();
    let _member = reader.join("bounds").unwrap();

    let plain = broker.connect().unwrap();
    let refused = plain.group("bounds").unwrap().send(Outgoing::text("x").zerocopy());
    let which = |refused: Result<_, SendError>| match refused {
        Err(SendError::NoBuffers { limit, .. }) => limit,
        other => panic!("{other:?}"),
    };
    assert_eq!(which(refused), "zerocopy", "not switched on");

    let sender = lender(&broker);
    let group = sender.group("bounds").unwrap();
    let pool = sender.pool(4, 2 * MIB).unwrap();
    let past = group.send(filled(&pool, 0, MIB + (64 << 10)));
    assert_eq!(which(past), "user_pinned_bytes", "the user's limit");
    for _ in 0..3 {
        group.send(Outgoing::text("counted").zerocopy()).unwrap();
    }
    assert_eq!(
        which(group.send(Outgoing::text("y").zerocopy())),
        "completions",
        "unread ones count"
    );
    group.send("unflagged").unwrap();
    assert_eq!(completions(&sender, 3), [CompletedRange::new(0, 2, true)], "one range");
    group.send(Outgoing::text("again").zerocopy()).unwrap();
    let texts: Vec<_> = (0..5).map(|_| message(&reader).text().unwrap().to_owned()).collect();
    assert_eq!(texts, ["counted", "counted", "counted", "unflagged", "again"]);
}

#[test]
fn a_sealed_file_is_not_copied_and_mapped_by_each() {
    let (broker, _dir) = broker(wide());
    let sender = lender(&broker);
    let readers = [0; 2].map(|_| broker.connect().unwrap());
    let _members: Vec<_> = readers.iter().map(|reader| reader.join("files").unwrap()).collect();
    let group = sender.group("files").unwrap();
    let file = SealedFile::written(|file| file.write_all(&pattern(5, MIB))).unwrap();
    group.send(Outgoing::file(file)).unwrap();
    for reader in &readers {
        let message = message(reader);
        assert_eq!(message.way(), Way::File);
        assert!(message.payload() == pattern(5, MIB));
        drop(message);
        // Its release goes with the next thing that is said.
        reader.ping().unwrap();
    }
    assert_eq!(completions(&sender, 1), [CompletedRange::new(0, 0, false)], "nobody copied it");
}

#[test]
fn who_trusts_reads_in_place_and_the_buffer_is_free_when_all_have_let_go() {
    let (broker, _dir) = broker(wide());
    let sender = lender(&broker);
    let readers = [0; 2].map(|_| truster(&broker));
    let members: Vec<_> = readers.iter().map(|reader| reader.join("trust").unwrap()).collect();
    let pool = sender.pool_for(members[0].joined().group_id, 2, MIB).unwrap();
    let group = sender.group("trust").unwrap();
    group.send(filled(&pool, 9, MIB)).unwrap();
    let mut got: Vec<_> = readers.iter().map(message).collect();
    for message in &got {
        assert_eq!(message.way(), Way::Buffer);
        assert!(message.view().is_lent() && message.view().as_slice().is_none());
        let mut read = Vec::new();
        message.view().for_each_part(|part| read.extend_from_slice(part)).unwrap();
        assert!(read == pattern(9, MIB));
    }
    drop(got.pop());
    assert!(!sender.wait_completions(Duration::from_millis(20)), "one still reads");
    drop(got);
    assert_eq!(completions(&sender, 1), [CompletedRange::new(0, 0, false)]);
    assert_eq!(pool.free(), 2);
}

#[test]
fn who_keeps_a_payload_cannot_hold_the_buffer_and_goes_on_from_the_copy() {
    let (broker, _dir) = broker(Limits { lent: Duration::from_millis(20), ..wide() });
    let sender = lender(&broker);
    let reader = truster(&broker);
    let member = reader.join("kept").unwrap();
    let pool = sender.pool_for(member.joined().group_id, 1, MIB).unwrap();
    let group = sender.group("kept").unwrap();
    group.send(filled(&pool, 1, MIB)).unwrap();
    let kept = message(&reader);
    assert_eq!(kept.way(), Way::Buffer);
    let mut first = [0; 64];
    kept.view().read_at(0, &mut first).unwrap();
    assert_eq!(completions(&sender, 1), [CompletedRange::new(0, 0, true)], "copied after all");
    // The one buffer is written again, and the reader still reads what was sent.
    let _next = filled(&pool, 2, MIB);
    let mut read = Vec::new();
    kept.view().for_each_part(|part| read.extend_from_slice(part)).unwrap();
    assert!(read == pattern(1, MIB));
    assert!(kept.payload() == pattern(1, MIB));
}

#[test]
fn recipients_that_die_leave_or_do_not_read_complete_it_too() {
    let (broker, _dir) = broker(wide());
    let sender = lender(&broker);
    let dying = truster(&broker);
    let member = dying.join("ends").unwrap();
    let pool = sender.pool_for(member.joined().group_id, 3, MIB).unwrap();
    let group = sender.group("ends").unwrap();
    group.send(filled(&pool, 1, MIB)).unwrap();
    let held = message(&dying);
    assert_eq!(held.way(), Way::Buffer);
    // Not taken, and not even read off the socket.
    group.send(filled(&pool, 2, MIB)).unwrap();
    assert!(!sender.wait_completions(Duration::from_millis(20)));
    dying.close();
    assert_eq!(completions(&sender, 2).iter().map(CompletedRange::count).sum::<u32>(), 2);
    drop((held, member));
    assert_eq!(pool.free(), 3);
}

#[test]
fn a_sender_that_dies_takes_nothing_from_those_who_still_read() {
    let (broker, _dir) = broker(wide());
    let sender = lender(&broker);
    let (plain, trusting) = (broker.connect().unwrap(), truster(&broker));
    let member = plain.join("legacy").unwrap();
    let _other = trusting.join("legacy").unwrap();
    let pool = sender.pool_for(member.joined().group_id, 2, MIB).unwrap();
    let group = sender.group("legacy").unwrap();
    group.send(filled(&pool, 4, MIB)).unwrap();
    let lent = message(&trusting);
    sender.close();
    drop((group, pool, sender));
    let copied = message(&plain);
    assert_eq!(copied.way(), Way::Arena);
    for message in [&lent, &copied] {
        assert!(message.payload() == pattern(4, MIB));
    }
}

#[test]
fn private_messages_lie_in_memory_of_their_recipient() {
    let (broker, _dir) = broker(wide());
    let sender = lender(&broker);
    let readers = [0; 2].map(|_| broker.connect().unwrap());
    let pool = sender.pool(2, MIB).unwrap();
    for (number, reader) in readers.iter().enumerate() {
        let to = sender.endpoint(reader.endpoint_id());
        to.send(filled(&pool, number, MIB)).unwrap();
        let message = message(reader);
        assert_eq!(message.way(), Way::Arena);
        assert!(message.payload() == pattern(number, MIB));
    }
    assert!(completions(&sender, 2).iter().all(|range| range.copied));
}

#[test]
fn monitors_and_members_with_filters_get_copies_of_their_own() {
    let (broker, _dir) = broker(wide());
    let sender = lender(&broker);
    let (monitor, reader) = (truster(&broker), truster(&broker));
    monitor.monitor(None).unwrap();
    let options = JoinOptions::new().filter("key=a".parse().unwrap());
    let member = reader.join_with("watched", options).unwrap();
    let pool = sender.pool_for(member.joined().group_id, 2, MIB).unwrap();
    sender.group("watched").unwrap().send(filled(&pool, 8, MIB).key("a")).unwrap();
    let filtered = message(&reader);
    assert_eq!(filtered.way(), Way::Arena, "not where others may look");
    assert!(filtered.payload() == pattern(8, MIB));
    let seen = loop {
        match monitor.receive_deadline(PATIENCE).unwrap() {
            Some(Event::Monitored(seen)) => break seen,
            Some(_) => {}
            None => panic!("the monitor sees nothing"),
        }
    };
    assert!(seen.message.payload() == pattern(8, MIB));
    assert_eq!(seen.message.way(), Way::Inline);
}

#[test]
fn a_waiting_completion_makes_the_descriptor_readable_and_disturbs_nothing() {
    use rustix::event::{PollFd, PollFlags, poll};
    use std::os::fd::AsFd;
    let (broker, _dir) = broker(wide());
    let sender = lender(&broker);
    let reader = broker.connect().unwrap();
    let _member = reader.join("poll").unwrap();
    let readable = || {
        let mut fds = [PollFd::new(&sender, PollFlags::IN)];
        poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() == 1
    };
    let _ = sender.as_fd();
    sender.dispatch().unwrap();
    assert!(!readable());
    let group = sender.group("poll").unwrap();
    group.send(Outgoing::text("small").zerocopy()).unwrap();
    for _ in 0..3 {
        sender.dispatch().unwrap();
        assert!(readable(), "until it is read");
        group.send("others go on").unwrap();
    }
    assert_eq!(sender.completions().count(), 1);
    sender.dispatch().unwrap();
    assert!(!readable());
    (0..4).for_each(|_| drop(message(&reader)));
}

#[test]
fn g8_a_queue_takes_lent_payloads_for_a_sixteenth_of_their_bytes_and_no_more() {
    let (broker, _dir) = broker(Limits { lent: Duration::from_millis(20), ..Limits::default() });
    let sender = lender(&broker);
    let (reader, late) = (broker.connect().unwrap(), broker.connect().unwrap());
    let member = reader.join("deep").unwrap();
    let dropper = late.join_with("deep", JoinOptions::new().drop_when_full(true)).unwrap();
    let group = sender.group("deep").unwrap();
    let pool = sender.pool(4, MIB).unwrap();
    for number in 0..16 {
        // After a while the broker has copied what lies in the queues, and the buffers are free again.
        group.try_send(filled(&pool, number, MIB)).unwrap();
    }
    match group.try_send(filled(&pool, 16, MIB)) {
        Err(SendError::WouldBlock { full, .. }) => assert_eq!(full, [reader.endpoint_id()]),
        other => panic!("{other:?} where there is no room"),
    }
    for number in 0..16 {
        assert!(message(&reader).payload() == pattern(number, MIB), "{number}");
    }
    // The broker knows of the room before it answers.
    reader.ping().unwrap();
    let receipt = group.try_send(filled(&pool, 17, MIB)).unwrap();
    assert_eq!((receipt.recipients, receipt.dropped), (1, 1), "the other one is full as well");
    drop((member, dropper));
}

#[test]
fn g4_what_is_written_after_a_leave_lies_where_who_left_cannot_look() {
    let (broker, _dir) = broker(wide());
    let sender = lender(&broker);
    let (stays, leaves) = (truster(&broker), truster(&broker));
    let member = stays.join("apart").unwrap();
    let leaver = leaves.join("apart").unwrap();
    let group = sender.group("apart").unwrap();
    let pool = sender.pool_for(member.joined().group_id, 2, MIB).unwrap();
    group.send(filled(&pool, 1, MIB)).unwrap();
    for reader in [&stays, &leaves] {
        let message = message(reader);
        assert_eq!(message.way(), Way::Buffer);
        let mut read = vec![0; MIB];
        message.view().read_at(0, &mut read).unwrap();
        assert!(read == pattern(1, MIB));
    }
    assert!(!pool.is_over());
    // Who only watches is entitled to no more than before.
    let watcher = broker.connect().unwrap();
    let watch = watcher.watch_members("apart").unwrap();
    sender.ping().unwrap();
    assert!(!pool.is_over());
    leaver.leave().unwrap();
    sender.ping().unwrap();
    assert!(pool.is_over() && pool.try_take().is_none(), "no more is written there");
    group.send(filled(&pool, 2, MIB)).unwrap();
    let message = message(&stays);
    assert_eq!(message.way(), Way::Buffer, "other memory");
    assert!(!pool.is_over() && message.payload() == pattern(2, MIB));
    drop(watch);
}

#[test]
fn a_narrower_filter_and_an_eviction_begin_other_memory_too() {
    let limits = Limits { stall: Duration::from_millis(100), queue_messages: 1, ..wide() };
    let (broker, _dir) = broker(limits);
    let sender = lender(&broker);
    let (stays, other) = (truster(&broker), truster(&broker));
    let member = stays.join("narrow").unwrap();
    let narrowed = other.join("narrow").unwrap();
    let group = sender.group("narrow").unwrap();
    let pool = sender.pool_for(member.joined().group_id, 4, MIB).unwrap();
    let sent = |number| {
        group.send(filled(&pool, number, MIB)).unwrap();
        message(&stays).way()
    };
    assert_eq!(sent(1), Way::Buffer);
    assert_eq!(message(&other).way(), Way::Buffer);
    narrowed.set_filter(Some("key=other".parse().unwrap())).unwrap();
    sender.ping().unwrap();
    assert!(pool.is_over());
    assert_eq!(sent(2), Way::Arena, "filters choose");
    narrowed.set_filter(None).unwrap();
    assert_eq!(sent(3), Way::Buffer);
    sender.ping().unwrap();
    assert!(!pool.is_over());
    // One lies in its queue, and one waits until it is put out.
    group.send(filled(&pool, 4, MIB)).unwrap();
    drop(message(&stays));
    let until = Instant::now() + PATIENCE;
    while !pool.is_over() {
        assert!(Instant::now() < until, "it does not read, and is not put out");
        sender.dispatch_timeout(Duration::from_millis(10)).unwrap();
    }
    assert_eq!(sent(5), Way::Buffer, "among those who are left");
}

#[test]
fn buffers_that_are_lent_when_the_broker_is_lost_are_not_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bus");
    let start = || EmbeddedBroker::builder().limits(wide()).path(path.clone()).start().unwrap();
    let first = start();
    let address = first.address().to_owned();
    let builder = || Bus::builder().address(address.clone()).reconnect(Reconnect::new());
    let sender = builder().zerocopy().connect().unwrap();
    let reader = builder().trust_own_user().connect().unwrap();
    let member = reader.join("lost").unwrap();
    let pool = sender.pool_for(member.joined().group_id, 1, MIB).unwrap();
    let plain = sender.pool(1, MIB).unwrap();
    let group = sender.group("lost").unwrap();
    group.send(filled(&pool, 1, MIB)).unwrap();
    let lent = message(&reader);
    assert_eq!(lent.way(), Way::Buffer);
    let down = std::thread::spawn(move || first.shutdown());
    let until = Instant::now() + PATIENCE;
    while !(pool.is_over() && plain.is_over() && down.is_finished()) {
        assert!(Instant::now() < until, "the loss is noticed");
        // What is read in place comes with the broker's last words.
        reader.dispatch_timeout(Duration::from_millis(10)).unwrap();
        sender.dispatch_timeout(Duration::from_millis(10)).unwrap();
    }
    down.join().unwrap();
    assert!(pool.try_take().is_none(), "the reader may look there still");
    assert_eq!(completions(&sender, 1), [CompletedRange::new(0, 0, true)]);
    assert!(lent.payload() == pattern(1, MIB));
    let second = start();
    for bus in [&reader, &sender] {
        while !matches!(bus.receive_deadline(PATIENCE).unwrap(), Some(Event::Reconnected(_))) {}
    }
    assert_eq!(pool.take_deadline(PATIENCE).unwrap_err(), PoolError::OtherBroker);
    let buffer = filled(&plain, 2, MIB);
    group.send(buffer).unwrap();
    assert!(message(&reader).payload() == pattern(2, MIB));
    drop(second);
}

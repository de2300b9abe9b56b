//! Clients that lend what nobody may be given: each is told why, has it back, and has reached nobody.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bus_core::wire::{
    BrokerFrame, ClientFrame, FailureCode, LaneNumber, Lent, LentFrom, Request, Response,
    SendFlags, SendId, Serial,
};
use bus_core::{Destination, GroupId, Receipt};
use bytes::BytesMut;
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use tests::broker::Broker;
use tests::raw::{Answer, RawClient, id, send_frame};

const LENGTH: u64 = 64 << 10;
const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// A client that lends, and what it calls its loans.
struct Lender {
    client: RawClient,
    lendings: u32,
}

impl Lender {
    fn new(broker: &Broker) -> Self {
        let client = RawClient::with_features(broker.socket(), &["lend-payloads"]);
        Self { client, lendings: 0 }
    }

    /// Lends, and gives the answer. If that is a refusal, the loan has ended.
    fn lend(
        &mut self,
        to: Destination,
        from: LentFrom,
        length: u64,
        file: Option<BorrowedFd<'_>>,
    ) -> Answer<Receipt> {
        let serial = self.post(LaneNumber::FIRST, to, from, length, file);
        let answer = self.client.outcome(serial);
        if answer.as_ref().is_err_and(|refused| refused.code != FailureCode::NoBuffers) {
            self.completed(self.lendings);
        }
        if answer.is_err() {
            self.client.resume();
        }
        answer
    }

    fn post(
        &mut self,
        lane: LaneNumber,
        to: Destination,
        from: LentFrom,
        length: u64,
        file: Option<BorrowedFd<'_>>,
    ) -> Serial {
        self.lendings += 1;
        let lending = self.lendings;
        let serial = self.client.next_serial();
        let id = SendId { lane, ..id(serial) };
        let mut send = send_frame(id, to, &Lent { lending, from, length }.encode());
        send.head.flags |= SendFlags::APART;
        send.head.descriptors = u8::from(file.is_some());
        let mut bytes = BytesMut::new();
        ClientFrame::Send(send).encode(&mut bytes).unwrap();
        match file {
            Some(file) => self.client.write_descriptors(&bytes, &[file]),
            None => self.client.write(&bytes),
        }
        serial
    }

    fn completed(&mut self, lending: u32) {
        let range = self.client.hear_that(|frame| match frame {
            BrokerFrame::Completed(range) => Some(*range),
            _ => None,
        });
        assert!(range.contains(lending), "{range:?} and not {lending}");
    }

    fn pool(&mut self, group_id: Option<GroupId>) -> (u32, OwnedFd) {
        let asked = Request::CreatePool { buffers: 2, bytes: LENGTH, group_id };
        let Response::Pool { pool } = self.client.call(asked).unwrap() else {
            panic!("no pool");
        };
        self.client.say(&ClientFrame::DescriptorsTaken);
        (pool, self.client.descriptors.pop_front().unwrap())
    }

    fn sealed_pool(&mut self, group_id: Option<GroupId>) -> u32 {
        let (pool, file) = self.pool(group_id);
        bus_memory::take_pages(file.as_fd(), 2 * usize::try_from(LENGTH).unwrap()).unwrap();
        self.client.call(Request::SealPool { pool }).unwrap();
        pool
    }
}

fn memory() -> OwnedFd {
    memfd_create("lent", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap()
}

/// So many bytes, of which `written` are there.
fn file(size: u64, written: usize, seals: SealFlags) -> OwnedFd {
    let file = memory();
    ftruncate(&file, size).unwrap();
    rustix::io::pwrite(&file, &vec![7; written], 0).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}

#[test]
fn g10_files_that_may_change_or_are_not_all_there_are_refused_and_reach_nobody() {
    let broker = Broker::start();
    let mut reader = broker.raw();
    let group = Destination::Group(reader.join("files"));
    let mut lender = Lender::new(&broker);
    let hidden = memory();
    ftruncate(&hidden, 8 << 20).unwrap();
    fallocate(&hidden, FallocateFlags::KEEP_SIZE, 8 << 20, 16 << 20).unwrap();
    fcntl_add_seals(&hidden, SEALS).unwrap();
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    let whole = usize::try_from(LENGTH).unwrap();
    let cases: [(&str, OwnedFd, &str); 9] = [
        ("may be written", file(LENGTH, whole, SEALS - SealFlags::WRITE), "its contents"),
        ("may grow", file(LENGTH, whole, SEALS - SealFlags::GROW), "growing"),
        ("may shrink", file(LENGTH, whole, SEALS - SealFlags::SHRINK), "shrinking"),
        ("seals may be added", file(LENGTH, whole, SEALS - SealFlags::SEAL), "its seals"),
        ("is too short", file(LENGTH - 1, whole - 1, SEALS), "were announced"),
        ("has holes", file(16 << 20, 4096, SEALS), "it has holes"),
        ("hides its holes", hidden, "it occupies"),
        ("is a pipe", pipe, "no memory file"),
        ("is a device", File::open("/dev/zero").unwrap().into(), "no memory file"),
    ];
    for (case, file, why) in &cases {
        let refused = lender.lend(group, LentFrom::File, LENGTH, Some(file.as_fd())).unwrap_err();
        assert_eq!(refused.code, FailureCode::BadRequest, "{case}: {refused}");
        assert!(refused.text.contains(why), "{case}: {refused}");
    }
    let good = file(LENGTH, whole, SEALS);
    let receipt = lender.lend(group, LentFrom::File, LENGTH, Some(good.as_fd())).unwrap();
    let message = reader.receive();
    assert_eq!(message.head.sequence, receipt.sequence, "the others reached nobody");
    assert!(message.payload == vec![7; whole]);
    lender.completed(lender.lendings);
    // Who has not said that it lends does not.
    let mut plain = Lender { client: broker.raw(), lendings: 0 };
    let refused = plain.lend(group, LentFrom::File, LENGTH, Some(good.as_fd())).unwrap_err();
    assert_eq!(refused.code, FailureCode::NoBuffers);
}

#[test]
fn g10_buffers_that_are_not_there_lent_already_or_of_others_are_refused_and_reach_nobody() {
    let broker = Broker::start();
    let mut reader = broker.raw();
    let joined = reader.join("buffers");
    let group = Destination::Group(joined);
    let mut lender = Lender::new(&broker);
    let ((open, _), (holey, _)) = (lender.pool(None), lender.pool(None));
    let refused = lender.client.call(Request::SealPool { pool: holey }).unwrap_err();
    assert!(refused.text.contains("it has holes"), "{refused}");
    let pool = lender.sealed_pool(None);
    let elsewhere = lender.client.join("elsewhere");
    let of_another = lender.sealed_pool(Some(elsewhere));
    for (case, pool, buffer, length, why) in [
        ("no such pool", 4_000_000, 0, LENGTH, "no such pool"),
        ("one that others may map for writing", open, 0, LENGTH, "not sealed"),
        ("one with holes", holey, 0, LENGTH, "not sealed"),
        ("no such buffer", pool, 2, LENGTH, "no such buffer"),
        ("the last number that there is", pool, u32::MAX, LENGTH, "no such buffer"),
        ("longer than it is", pool, 0, LENGTH + 1, "too short"),
        ("longer than the bus takes", pool, 0, u64::MAX, "the limit is"),
        ("nothing", pool, 0, 0, "no bytes"),
        ("for another group", of_another, 0, LENGTH, "another group"),
    ] {
        let from = LentFrom::Pool { pool, buffer };
        let refused = lender.lend(group, from, length, None).unwrap_err();
        assert!(refused.text.contains(why), "{case}: {refused}");
    }
    let from = LentFrom::Pool { pool, buffer: 1 };
    let receipt = lender.lend(group, from, LENGTH, None).unwrap();
    assert_eq!(reader.receive().head.sequence, receipt.sequence, "the others reached nobody");
    lender.completed(lender.lendings);
    // What waits for room is lent.
    let mut full = broker.raw();
    while lender.client.try_send(full.address(), b"").is_ok() {}
    lender.client.resume();
    let waits = LaneNumber::new(1).unwrap();
    let waiting = lender.post(waits, full.address(), from, LENGTH, None);
    let refused = lender.lend(group, from, LENGTH, None).unwrap_err();
    assert!(refused.text.contains("it is lent"), "{refused}");
    let _ = full.receive();
    full.credit(1, 0);
    lender.client.outcome(waiting).unwrap();
}

use std::thread;
use std::time::Duration;

use bus_core::wire::{
    BrokerFrame, ClientFrame, Entries, Failure, FailureCode, GoodbyeCode, Handle, LaneNumber,
    MessagesFrame, Notice, Placed, PlacedIn, Response, SendId, Serial,
};
use bus_core::{Attributes, EndpointId, Gap, GroupId, Limits, Sequence};
use bytes::Bytes;

use crate::testing::{FakeBroker, encoded, head, pair_with, receipts};
use crate::{Builder, Bus, JoinOptions, Outgoing};

/// A small generator, so that a failure names the seed that repeats it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn small(&mut self) -> u32 {
        u32::try_from(self.below(4)).unwrap()
    }
}

/// Uses everything, until the connection is gone. What the answers are does not matter.
fn use_everything(bus: &Bus) {
    let options = JoinOptions::new().loopback(true);
    let mut kept = Vec::new();
    while bus.dispatch().is_ok() {
        let member = bus.join_with("g", options.clone());
        let group = bus.group("g").unwrap();
        kept.push(group.start_send("a"));
        let _ = group.try_send("b");
        drop(group.start_try_send("c"));
        group.resume();
        let _ = group.send_deadline(vec![0; 20_000], Duration::from_millis(1));
        drop(group.watch_writable());
        let second = bus.open_endpoint();
        if let Ok(second) = &second {
            let _ = second.join("h");
            let _ = second.try_receive();
        }
        let _ = bus.receive_deadline(Duration::from_millis(1));
        if let Ok(member) = member {
            let _ = member.leave();
        }
        let _ = bus.endpoint(EndpointId::from_raw(1)).send(Outgoing::text("d"));
        let _ = bus.groups();
    }
    for send in kept.into_iter().flatten() {
        let _ = send.wait();
    }
    assert!(bus.events().last().is_none_or(|last| last.is_err()));
}

/// The right answer, if the frame wants one.
fn answer(frame: &ClientFrame, random: &mut Random) -> Option<BrokerFrame> {
    let failure = |code| Box::new(Failure::new(code, "so be it"));
    Some(match frame {
        ClientFrame::Call { endpoint, serial, .. } if random.below(4) == 0 => BrokerFrame::Error {
            endpoint: *endpoint,
            serial: *serial,
            failure: failure(FailureCode::NoSuchGroup),
        },
        ClientFrame::Call { endpoint, serial, request } => {
            BrokerFrame::Done { endpoint: *endpoint, serial: *serial, response: response(request) }
        }
        ClientFrame::Send(send) => {
            let codes = [
                FailureCode::WouldBlock,
                FailureCode::OwnQueueFull,
                FailureCode::LaneRefused,
                FailureCode::NoSuchGroup,
                FailureCode::Cancelled,
            ];
            let code = codes[usize::try_from(random.below(5)).unwrap()].clone();
            BrokerFrame::Refused { id: send.head.id, failure: failure(code) }
        }
        ClientFrame::Watch { endpoint, serial, .. } => {
            BrokerFrame::Writable { endpoint: *endpoint, serial: *serial }
        }
        _ => return None,
    })
}

fn response(request: &bus_core::wire::Request) -> Response {
    use bus_core::wire::Request;
    let (group_id, sequence) = (GroupId::from_raw(3), Sequence::from_raw(9));
    match request {
        Request::OpenEndpoint => Response::Opened { endpoint: EndpointId::from_raw(70) },
        Request::CloseEndpoint => Response::Closed,
        Request::Join { .. } => Response::Joined { group_id, sequence, created: false, members: 1 },
        Request::Leave { .. } => Response::Left { sequence },
        Request::FindGroup { group } => Response::Group(bus_core::wire::GroupInfo {
            name: group.clone(),
            group_id,
            members: 1,
            creator: None,
            retain: None,
            gated: false,
        }),
        Request::Groups => Response::Groups { sequence, groups: Vec::new() },
        _ => Response::Pong,
    }
}

/// A frame that is well-formed and comes out of nowhere.
fn noise(random: &mut Random, seen: &[Serial]) -> BrokerFrame {
    let endpoint = Handle::from_raw(random.small());
    let serial = match seen.len() {
        0 => Serial::FIRST,
        count => seen[usize::try_from(random.below(count as u64)).unwrap()],
    };
    let id = SendId { endpoint, lane: LaneNumber::FIRST, serial };
    match random.below(15) {
        0 => BrokerFrame::Done { endpoint, serial, response: Response::Closed },
        1 => BrokerFrame::Done {
            endpoint,
            serial,
            response: Response::Left { sequence: Sequence::from_raw(random.next()) },
        },
        2 => BrokerFrame::Refused {
            id,
            failure: Box::new(Failure::new(FailureCode::OwnQueueFull, "")),
        },
        3 => BrokerFrame::Writable { endpoint, serial },
        4 => BrokerFrame::DescriptorsTaken,
        5 => BrokerFrame::Notice {
            endpoint,
            notice: Notice::Gap {
                group_id: GroupId::from_raw(3),
                gap: Gap {
                    count: u64::MAX,
                    first: Sequence::from_raw(0),
                    last: Sequence::from_raw(u64::MAX),
                },
            },
        },
        6 => BrokerFrame::Notice {
            endpoint,
            notice: Notice::Evicted {
                group_id: GroupId::from_raw(3),
                sequence: Sequence::from_raw(u64::MAX),
                reason: bus_core::wire::EvictionReason::Stalled,
                stalled: Duration::MAX,
                queued_messages: u64::MAX,
                back_off: Duration::ZERO,
            },
        },
        7 => receipts(endpoint, &[serial, serial.next(), serial], random.next()),
        8 => {
            let mut head = head(u64::MAX - random.below(20));
            head.endpoint = endpoint;
            let messages = vec![
                (Attributes::EMPTY, Bytes::from_static(b"again"));
                1 + random.small() as usize
            ];
            let (count, entries) =
                (u32::try_from(messages.len()).unwrap(), Entries::Here(messages));
            BrokerFrame::Messages(Box::new(MessagesFrame { head, count, entries }))
        }
        9 => {
            let mut head = head(random.next());
            (head.endpoint, head.apart) = (endpoint, true);
            let within = PlacedIn::Arena { memory: random.small() };
            let placed = Placed { hold: random.small(), within, offset: random.next(), length: 20 };
            let entries = Entries::Apart(placed);
            BrokerFrame::Messages(Box::new(MessagesFrame { head, count: 2, entries }))
        }
        _ => {
            let mut head = head(random.next());
            head.endpoint = endpoint;
            head.commit_time = u64::MAX;
            BrokerFrame::from(bus_core::wire::MessageFrame {
                head,
                attributes: bus_core::Attributes::EMPTY,
                payload: vec![0; usize::try_from(random.below(40_000)).unwrap()].into(),
            })
        }
    }
}

/// Plays a broker that is mad, for a while. It stops when the client has had enough.
fn play(broker: &mut FakeBroker, seed: u64) {
    // A client waits for ever for what a mad broker does not say.
    broker.wait_no_longer_than(Duration::from_millis(20));
    let mut random = Random(seed * 2 + 1);
    let mut seen = Vec::new();
    for _ in 0..10 + random.below(60) {
        if broker.is_quiet() && random.below(4) == 0 {
            let frame = noise(&mut random, &seen);
            if !broker.try_put_bytes(&encoded(&frame)) {
                return;
            }
            continue;
        }
        let Some(frame) = broker.next_or_end() else {
            return;
        };
        match &frame {
            ClientFrame::Send(send) => seen.push(send.head.id.serial),
            ClientFrame::Call { serial, .. } => seen.push(*serial),
            ClientFrame::Goodbye(_) => return,
            _ => {}
        }
        let Some(answer) = answer(&frame, &mut random) else {
            continue;
        };
        let mut bytes = encoded(&answer);
        match random.below(40) {
            0 => {
                let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
                bytes[at] ^= 1 << random.below(8);
            }
            1 => bytes.truncate(usize::try_from(random.below(bytes.len() as u64)).unwrap()),
            2 => {
                let again = bytes.clone();
                bytes.extend_from_slice(&again);
            }
            _ => {}
        }
        if !broker.try_put_bytes(&bytes) {
            return;
        }
    }
    if random.below(2) == 0 {
        let _ = broker.try_put_bytes(&encoded(&BrokerFrame::Goodbye(
            bus_core::wire::Goodbye::new(GoodbyeCode::Shutdown, ""),
        )));
    }
}

/// Given a broker that answers wrongly, twice, to nobody, or in pieces,
/// when a program uses everything, then each of its calls returns and none panics.
#[test]
fn a_mad_broker_makes_nobody_panic_or_wait_for_ever() {
    let limits = Limits { queue_messages: 8, lane_messages: 4, ..Limits::default() };
    for seed in 0..300 {
        let (bus, mut broker) = pair_with(limits.clone(), Builder::new().backlog(2, 1000));
        let using = thread::spawn(move || use_everything(&bus));
        play(&mut broker, seed);
        drop(broker);
        assert!(using.join().is_ok(), "seed {seed}");
    }
}

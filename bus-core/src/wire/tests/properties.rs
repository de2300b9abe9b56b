//! Any frame there and back, in whatever pieces its bytes arrive.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::super::{
    BatchView, BrokerFrame, ChangeCode, ClientFrame, ControlError, Entries, Failure, FailureCode,
    Goodbye, GoodbyeCode, GroupInfo, Handle, Hello, LaneNumber, Lent, LentFrom, MemberInfo,
    MessageFrame, MessageHead, MessageView, MessagesFrame, Notice, PlainRun, ReceiptsFrame,
    Request, Response, Role, SendFlags, SendFrame, SendHead, SendId, SendRun, Serial, ViewNotice,
};
use super::{Direction, corpus, encoded};
use crate::attributes;
use crate::{
    Attributes, AttributesError, Condition, ContentType, Credentials, Destination, EndpointId,
    Filter, Gap, GroupId, GroupName, Interest, MemberFlags, NameFlags, NameId, Pattern, Receipt,
    Retain, Sequence,
};

fn handle() -> impl Strategy<Value = Handle> {
    any::<u32>().prop_map(Handle::from_raw)
}

fn serial() -> impl Strategy<Value = Serial> {
    (1..=u32::MAX).prop_map(|number| Serial::new(number).unwrap())
}

fn lane() -> impl Strategy<Value = LaneNumber> {
    (0..16_u8).prop_map(|number| LaneNumber::new(number).unwrap())
}

fn send_id() -> impl Strategy<Value = SendId> {
    (handle(), lane(), serial()).prop_map(|(endpoint, lane, serial)| SendId {
        endpoint,
        lane,
        serial,
    })
}

fn endpoint_id() -> impl Strategy<Value = EndpointId> {
    any::<u64>().prop_map(EndpointId::from_raw)
}

fn group_id() -> impl Strategy<Value = GroupId> {
    any::<u64>().prop_map(GroupId::from_raw)
}

fn sequence() -> impl Strategy<Value = Sequence> {
    any::<u64>().prop_map(Sequence::from_raw)
}

fn destination() -> impl Strategy<Value = Destination> {
    prop_oneof![
        group_id().prop_map(Destination::Group),
        endpoint_id().prop_map(Destination::Endpoint),
        any::<u64>().prop_map(|id| Destination::Name(NameId::from_raw(id))),
    ]
}

fn gap() -> impl Strategy<Value = Gap> {
    (1..=u64::MAX, any::<u64>(), any::<u64>()).prop_map(|(count, a, b)| Gap {
        count,
        first: Sequence::from_raw(a.min(b)),
        last: Sequence::from_raw(a.max(b)),
    })
}

fn name() -> impl Strategy<Value = GroupName> {
    "[A-Za-z0-9_-]{1,20}(\\.[A-Za-z0-9_-]{1,20}){0,3}".prop_map(|text| text.parse().unwrap())
}

fn flags() -> impl Strategy<Value = MemberFlags> {
    any::<u8>().prop_map(MemberFlags::from_bits_truncate)
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let content_type = prop_oneof![
        Just(ContentType::Bytes),
        Just(ContentType::Text),
        Just(ContentType::Cbor),
        Just(ContentType::Json),
    ];
    let fields = proptest::collection::btree_map("[a-z]{1,30}", ".{0,60}", 0..16);
    (option::of(vec(any::<u8>(), 0..=255)), option::of(".{1,60}"), content_type, fields).prop_map(
        |(key, operation, content_type, fields)| {
            let mut builder = Attributes::builder().content_type(content_type);
            if let Some(key) = key {
                builder = builder.key(key);
            }
            if let Some(operation) = operation {
                builder = builder.operation(operation);
            }
            for (name, value) in fields {
                builder = builder.field(name, value);
            }
            match builder.build() {
                Ok(attributes) => attributes,
                // What is asked for may be over 4 KiB; it is not what is tested here.
                Err(AttributesError::FieldsTooLong { .. }) => Attributes::EMPTY,
                Err(error) => panic!("{error}"),
            }
        },
    )
}

fn payload() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        8 => vec(any::<u8>(), 0..200),
        1 => vec(any::<u8>(), 16_000..17_000),
    ]
    .prop_map(Bytes::from)
}

fn filter() -> impl Strategy<Value = Filter> {
    let fit = |exact, bytes: Vec<u8>| match exact {
        true => Pattern::exactly(bytes),
        false => Pattern::prefix(bytes),
    };
    let text = |exact, text: String| match exact {
        true => Pattern::exactly(text),
        false => Pattern::prefix(text),
    };
    let condition = prop_oneof![
        (any::<bool>(), vec(any::<u8>(), 0..=255))
            .prop_map(move |(exact, key)| Condition::Key(fit(exact, key))),
        (any::<bool>(), "[a-zA-Z]{1,20}")
            .prop_map(move |(exact, name)| Condition::Operation(text(exact, name))),
        (any::<bool>(), "[a-z]{1,9}", ".{0,9}").prop_map(move |(exact, name, value)| {
            Condition::Field { name, value: text(exact, value) }
        }),
        Just(corpus::program()),
    ];
    vec(vec(condition, 1..4), 1..4).prop_map(|all| Filter::new(all).unwrap())
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        Just(Request::Ping),
        Just(Request::OpenEndpoint),
        (name(), flags(), any::<bool>(), option::of(filter())).prop_map(
            |(group, flags, create, filter)| Request::Join {
                group,
                flags,
                create,
                filter,
                retain: create.then(|| Retain::keys(7)),
                state: create,
            }
        ),
        (group_id(), option::of(filter()))
            .prop_map(|(group_id, filter)| Request::SetFilter { group_id, filter }),
        name().prop_map(|group| Request::Create { group, retain: None, stall_ms: None }),
        (name(), option::of(any::<u16>())).prop_map(|(group, backlog)| Request::CreateGated {
            group,
            backlog,
            stall_ms: None
        }),
        (name(), flags(), option::of(filter()))
            .prop_map(|(group, flags, filter)| Request::Connect { group, flags, filter }),
        (group_id(), endpoint_id(), flags(), any::<bool>(), option::of(filter())).prop_map(
            |(group_id, endpoint, flags, drop_at_peer, filter)| Request::Admit {
                group_id,
                endpoint,
                flags,
                drop_at_peer,
                filter
            }
        ),
        (group_id(), endpoint_id(), ".{0,60}").prop_map(|(group_id, endpoint, text)| {
            Request::Refuse { group_id, endpoint, text }
        }),
        group_id().prop_map(|group_id| Request::Leave { group_id }),
        (name(), any::<(bool, bool)>()).prop_map(|(group, (anybody, create))| {
            let interest = if anybody { Interest::Anybody } else { Interest::Members };
            Request::WatchGroup { group, interest, create }
        }),
        group_id().prop_map(|group_id| Request::UnwatchGroup { group_id }),
        (name(), any::<u8>()).prop_map(|(name, flags)| Request::OwnName {
            name,
            flags: NameFlags::from_bits_truncate(flags),
            description: None,
        }),
        Just(Request::Groups),
        group_id().prop_map(|group_id| Request::Members { group_id }),
    ]
}

/// A SEND that is like the one before it more often than not.
fn send_among_few() -> impl Strategy<Value = ClientFrame> {
    let few = (0..8_u32, 0..8_u8, 0..8_u64).prop_map(|(endpoint, lane, group)| {
        let is_other = |number: u64| u64::from(number == 7);
        let lane = LaneNumber::new(u8::from(lane == 7)).unwrap();
        let endpoint = Handle::from_raw(u32::from(endpoint == 7));
        (endpoint, lane, Destination::Group(GroupId::from_raw(is_other(group))))
    });
    let rare =
        proptest::sample::select(vec![(0, 0, 3), (0, 0, 200), (0, 0, 5000), (9, 0, 3), (0, 1, 3)]);
    let flags = proptest::sample::select(vec![0, 1, 2, 128, 129, 130, 16, 256]);
    (few, serial(), flags, rare, attributes(), any::<bool>()).prop_map(
        |((endpoint, lane, destination), serial, flags, rare, attributes, bare)| {
            let (deadline, descriptors, length) = rare;
            let lent = Lent { lending: 1, from: LentFrom::File, length: 9 };
            let payload = match flags {
                256 => Bytes::copy_from_slice(&lent.encode()),
                _ => Bytes::from(vec![7; length]),
            };
            ClientFrame::Send(SendFrame {
                head: SendHead {
                    id: SendId { endpoint, lane, serial },
                    destination: match flags {
                        16 => Destination::Endpoint(EndpointId::from_raw(1)),
                        _ => destination,
                    },
                    flags: SendFlags::from_bits(flags).unwrap(),
                    deadline,
                    descriptors,
                },
                attributes: if bare { Attributes::EMPTY } else { attributes },
                payload,
            })
        },
    )
}

fn client_frame() -> impl Strategy<Value = ClientFrame> {
    let send =
        (send_id(), destination(), 0..4_u8, any::<u64>(), 0..=16_u8, attributes(), payload())
            .prop_map(|(id, destination, flags, deadline, descriptors, attributes, payload)| {
                ClientFrame::Send(SendFrame {
                    head: SendHead {
                        id,
                        destination,
                        flags: SendFlags::from_bits(flags.into()).unwrap(),
                        deadline,
                        descriptors,
                    },
                    attributes,
                    payload,
                })
            });
    prop_oneof![
        4 => send,
        2 => (handle(), serial(), request()).prop_map(|(endpoint, serial, request)| {
            ClientFrame::Call { endpoint, serial, request }
        }),
        1 => (vec(any::<u16>(), 0..5), vec(".{0,20}", 0..5), option::of(".{0,60}")).prop_map(
            |(versions, features, program)| {
                ClientFrame::Hello(Hello { versions, features, program })
            },
        ),
        1 => send_id().prop_map(ClientFrame::Cancel),
        1 => (handle(), lane()).prop_map(|(endpoint, lane)| ClientFrame::Resume { endpoint, lane }),
        1 => Just(ClientFrame::Flush),
        1 => (handle(), any::<u32>(), any::<u64>()).prop_map(|(endpoint, messages, bytes)| {
            ClientFrame::Credit { endpoint, messages, bytes }
        }),
        1 => (handle(), serial(), destination(), attributes()).prop_map(
            |(endpoint, serial, destination, attributes)| {
                ClientFrame::Watch { endpoint, serial, destination, attributes }
            }
        ),
        1 => (handle(), serial())
            .prop_map(|(endpoint, serial)| ClientFrame::Unwatch { endpoint, serial }),
    ]
}

fn failure() -> impl Strategy<Value = Box<Failure>> {
    let code = prop_oneof![
        proptest::sample::select(FailureCode::ALL),
        "[a-z-]{1,20}".prop_map(|text| FailureCode::from(text.as_str())),
    ];
    (
        code,
        ".{0,100}",
        vec(endpoint_id(), 0..20),
        any::<u32>(),
        option::of(("[a-z_]{1,20}", any::<u64>())),
    )
        .prop_map(|(code, text, full, count, limit)| {
            let failure = Failure::new(code, text).with_full(&full, count);
            Box::new(match limit {
                Some((name, value)) => failure.with_limit(&name, value),
                None => failure,
            })
        })
}

fn response() -> impl Strategy<Value = Response> {
    let group = (name(), group_id(), any::<u32>(), option::of(endpoint_id())).prop_map(
        |(name, group_id, members, creator)| GroupInfo {
            name,
            group_id,
            members,
            creator,
            retain: None,
            gated: members % 2 == 0,
        },
    );
    let member = (
        endpoint_id(),
        any::<(u32, u32)>(),
        flags(),
        any::<(u64, u64, u64, u64, u64)>(),
        option::of(sequence()),
    )
        .prop_map(|(endpoint, (uid, pid), flags, numbers, full_since_sequence)| {
            let (queued_messages, queued_bytes, capacity, dropped, blocks) = numbers;
            MemberInfo {
                endpoint,
                uid,
                pid,
                flags,
                queued_messages,
                queued_bytes,
                capacity,
                dropped,
                full_since_sequence,
                blocks,
            }
        });
    prop_oneof![
        (sequence(), vec(group, 0..5))
            .prop_map(|(sequence, groups)| Response::Groups { sequence, groups }),
        (sequence(), vec(member, 0..5))
            .prop_map(|(sequence, members)| Response::Members { sequence, members }),
        (group_id(), sequence(), any::<bool>(), any::<u32>()).prop_map(
            |(group_id, sequence, created, members)| Response::Joined {
                group_id,
                sequence,
                created,
                members
            }
        ),
    ]
}

fn view() -> impl Strategy<Value = ViewNotice> {
    (
        (name(), group_id(), sequence(), endpoint_id()),
        proptest::sample::select(ChangeCode::ALL),
        any::<(u32, u32, u32, bool)>(),
        option::of(gap()),
    )
        .prop_map(|((group, group_id, sequence, endpoint), change, numbers, missed)| {
            let (uid, pid, members, ended) = numbers;
            ViewNotice {
                group_id,
                group,
                sequence,
                change,
                endpoint,
                uid,
                pid,
                members,
                ended,
                missed,
            }
        })
}

/// To a group, to the endpoint itself, or to a name of it.
fn addressed() -> impl Strategy<Value = (Option<GroupId>, Option<NameId>)> {
    prop_oneof![
        group_id().prop_map(|group| (Some(group), None)),
        Just((None, None)),
        (1..=u64::MAX).prop_map(|name| (None, Some(NameId::from_raw(name)))),
    ]
}

fn plain_message() -> impl Strategy<Value = BrokerFrame> {
    let key = option::of(vec(any::<u8>(), 0..9));
    let parts = (handle(), sequence(), endpoint_id(), any::<u64>(), key, vec(any::<u8>(), 0..99));
    parts.prop_map(|(endpoint, sequence, sender, number, key, payload)| {
        let head = MessageHead {
            sequence,
            sender,
            sender_serial: number,
            commit_time: number,
            ..MessageHead::to_group(endpoint, GroupId::from_raw(number))
        };
        let builder = key.into_iter().fold(Attributes::builder(), |builder, key| builder.key(key));
        let attributes = builder.build().unwrap();
        MessageFrame { head, attributes, payload: payload.into() }.into()
    })
}

fn broker_frame() -> impl Strategy<Value = BrokerFrame> {
    let head = (
        (handle(), sequence(), addressed(), endpoint_id()),
        any::<(u64, u64, u64, u32, u32)>(),
        option::of(gap()),
        0..=16_u8,
        any::<bool>(),
        option::of(endpoint_id()),
    )
        .prop_map(
            |(
                (endpoint, sequence, (group, name), sender),
                numbers,
                missed,
                descriptors,
                lost,
                peer,
            )| {
                let (sender_serial, commit_time, deadline, uid, pid) = numbers;
                let (request, first) = (sequence, Some(sequence));
                let role = match (group, numbers.0 % 5) {
                    (Some(_), _) | (None, 0) => Role::Plain,
                    (None, 1) => Role::Request { first: None },
                    (None, 2) => Role::Request { first },
                    (None, more) => Role::Reply { request, refusal: more == 3 },
                };
                let says_name = matches!(role, Role::Plain | Role::Request { first: None });
                MessageHead {
                    endpoint,
                    sequence,
                    group,
                    name: name.filter(|_| says_name),
                    sender,
                    sender_serial,
                    commit_time,
                    deadline,
                    credentials: Credentials { uid, pid },
                    missed,
                    retained: false,
                    apart: false,
                    lent: false,
                    descriptors,
                    descriptors_lost: lost,
                    role,
                    peer,
                }
            },
        );
    let message = (head, attributes(), payload()).prop_map(|(head, attributes, payload)| {
        BrokerFrame::from(MessageFrame { head, attributes, payload })
    });
    let receipt = (send_id(), any::<(u64, u64, u64, u32, u32)>()).prop_map(|(id, numbers)| {
        let (sequence, sender_serial, after, recipients, dropped) = numbers;
        BrokerFrame::Receipt {
            id,
            receipt: Receipt {
                sequence: Sequence::from_raw(sequence),
                sender_serial,
                after: Sequence::from_raw(after),
                recipients,
                dropped,
                completion: None,
            },
        }
    });
    let head = (handle(), any::<[u64; 6]>(), any::<(u32, u32)>()).prop_map(|(endpoint, n, ids)| {
        MessageHead {
            sequence: Sequence::from_raw(n[0]),
            sender: EndpointId::from_raw(n[1]),
            sender_serial: n[2],
            commit_time: n[3],
            credentials: Credentials { uid: ids.0, pid: ids.1 },
            ..MessageHead::to_group(endpoint, GroupId::from_raw(n[4]))
        }
    });
    let entries = vec((attributes(), vec(any::<u8>(), 0..200).prop_map(Bytes::from)), 1..6);
    let messages = (head, entries).prop_map(|(head, entries)| {
        let count = u32::try_from(entries.len()).unwrap();
        BrokerFrame::Messages(Box::new(MessagesFrame {
            head,
            count,
            entries: Entries::Here(entries),
        }))
    });
    let receipts = (handle(), lane(), vec(serial(), 1..9), any::<(u64, u64, u64, u32)>());
    let receipts = receipts.prop_map(|(endpoint, lane, serials, numbers)| {
        let (sequence, sender_serial, after, recipients) = numbers;
        let first = Receipt {
            sequence: Sequence::from_raw(sequence),
            sender_serial,
            after: Sequence::from_raw(after),
            recipients,
            dropped: 0,
            completion: None,
        };
        BrokerFrame::Receipts(Box::new(ReceiptsFrame { lane: (endpoint, lane), serials, first }))
    });
    prop_oneof![
        4 => message,
        2 => messages,
        2 => receipt,
        1 => receipts,
        2 => (handle(), serial(), response()).prop_map(|(endpoint, serial, response)| {
            BrokerFrame::Done { endpoint, serial, response }
        }),
        1 => (handle(), serial(), failure()).prop_map(|(endpoint, serial, failure)| {
            BrokerFrame::Error { endpoint, serial, failure }
        }),
        1 => (send_id(), failure()).prop_map(|(id, failure)| BrokerFrame::Refused { id, failure }),
        1 => (handle(), group_id(), gap()).prop_map(|(endpoint, group_id, gap)| {
            BrokerFrame::Notice { endpoint, notice: Notice::Gap { group_id, gap } }
        }),
        1 => (handle(), view()).prop_map(|(endpoint, view)| {
            BrokerFrame::Notice { endpoint, notice: Notice::View(Box::new(view)) }
        }),
        1 => (handle(), serial())
            .prop_map(|(endpoint, serial)| BrokerFrame::Writable { endpoint, serial }),
        1 => (proptest::sample::select(GoodbyeCode::ALL), ".{0,100}")
            .prop_map(|(code, text)| BrokerFrame::Goodbye(Goodbye::new(code, text))),
    ]
}

/// Encodes all frames into one stream, lets it arrive in pieces, and decodes.
fn through_pieces<F: Direction>(frames: &[F], pieces: &[usize]) -> Vec<F> {
    let mut stream = BytesMut::new();
    for frame in frames {
        frame.encode(&mut stream).unwrap();
    }
    let mut arrived = Vec::new();
    let mut unread = BytesMut::new();
    let mut sizes = pieces.iter().cycle();
    while !stream.is_empty() {
        let size = stream.len().min(*sizes.next().unwrap());
        unread.extend_from_slice(&stream.split_to(size));
        while let Some(frame) = F::decode(&mut unread).unwrap() {
            arrived.push(frame);
        }
    }
    assert!(unread.is_empty());
    arrived
}

proptest! {
    #[test]
    fn client_frames_arrive_as_they_were_sent(
        frames in vec(client_frame(), 1..6),
        pieces in vec(1..5000_usize, 1..10),
    ) {
        prop_assert_eq!(through_pieces(&frames, &pieces), frames);
    }

    /// What one frame brings is what each would bring by itself, whatever is between the frames and
    /// however many are taken at a time.
    #[test]
    fn messages_of_one_frame_are_what_each_would_be_alone(
        head in (any::<[u64; 5]>(), handle()),
        entries in vec((attributes(), vec(any::<u8>(), 0..200).prop_map(Bytes::from)), 1..9),
        at_once in 1..4_usize,
    ) {
        let (numbers, endpoint) = head;
        let head = MessageHead {
            sequence: Sequence::from_raw(numbers[0]),
            sender_serial: numbers[1],
            commit_time: numbers[2],
            ..MessageHead::to_group(endpoint, GroupId::from_raw(numbers[3]))
        };
        let count = u32::try_from(entries.len()).unwrap();
        let frame = MessagesFrame { head, count, entries: Entries::Here(entries.clone()) };
        let mut bytes = BytesMut::new();
        BrokerFrame::Messages(Box::new(frame.clone())).encode(&mut bytes).unwrap();
        bytes.extend_from_slice(&[0xff]);
        let mut view = BatchView::decode(&mut bytes).unwrap().unwrap();
        prop_assert_eq!(&bytes[..], &[0xff][..]);
        let charged = |message: &MessageFrame| message.charged_bytes();
        let alone = frame.into_messages();
        prop_assert_eq!(view.charged_bytes(), alone.iter().map(charged).sum::<u64>());
        let mut came = Vec::new();
        while !view.is_empty() {
            let last = view.take_into(at_once, &mut came, |message| message);
            prop_assert_eq!(last, came.last().map(MessageView::sequence));
            prop_assert_eq!(view.len() as usize, entries.len() - came.len());
        }
        prop_assert_eq!(came.len(), alone.len());
        for (message, alone) in came.into_iter().zip(alone) {
            prop_assert!(message.is_plain());
            prop_assert_eq!(message.head(), alone.head);
            prop_assert_eq!(message.sequence(), alone.head.sequence);
            prop_assert_eq!(message.attributes(), alone.attributes.clone());
            prop_assert_eq!(message.charged_bytes(), alone.charged_bytes());
            prop_assert_eq!(message.payload(), &alone.payload[..]);
            prop_assert_eq!(message.into_payload(), alone.payload);
        }
    }

    /// SENDs that came in a row are gathered, up to one that is not like them, and their messages are
    /// what was sent.
    #[test]
    fn sends_in_a_row_are_gathered_as_they_are(
        frames in vec((send_among_few(), 1..4_usize), 1..4),
        most in 2..9_u32,
    ) {
        let mut stream = BytesMut::new();
        let mut sends = Vec::new();
        for (frame, times) in &frames {
            for _ in 0..*times {
                frame.encode(&mut stream).unwrap();
                sends.push(frame.clone());
            }
        }
        let is_plain = |frame: &ClientFrame| match frame {
            ClientFrame::Send(send) => {
                let extra = SendFlags::REQUEST | SendFlags::REFUSAL | SendFlags::APART;
                matches!(send.head.destination, Destination::Group(_))
                    && !send.head.flags.intersects(extra)
                    && send.head.deadline == 0
                    && send.head.descriptors == 0
                    && send.payload.len() < 4096
            }
            _ => false,
        };
        let way = |frame: &ClientFrame| match frame {
            ClientFrame::Send(send) => {
                Some((send.head.id.endpoint, send.head.id.lane, send.head.destination))
            }
            _ => None,
        };
        let like = |frame: &&ClientFrame| is_plain(frame) && way(frame) == way(&sends[0]);
        let run: Vec<_> = sends.iter().take_while(like).take(most as usize).collect();
        let gathered = SendRun::gather(&stream, 4096, most);
        let begins = gathered.as_ref().map(|run| (run.lane, run.group));
        prop_assert_eq!(SendRun::begins(&stream, 4096), begins);
        prop_assert_eq!(gathered.is_some(), run.len() > 1);
        let Some(gathered) = gathered else { return Ok(()) };
        prop_assert_eq!(gathered.batch.len() as usize, run.len());
        let mut length = BytesMut::new();
        let mut may_wait = true;
        for (frame, serial) in run.iter().zip(&gathered.serials) {
            frame.encode(&mut length).unwrap();
            let ClientFrame::Send(send) = frame else { unreachable!("it is plain") };
            prop_assert_eq!(send.head.id.serial, *serial);
            may_wait &= send.head.flags.contains(SendFlags::RECEIPT_MAY_WAIT);
        }
        prop_assert_eq!(gathered.length, length.len());
        prop_assert_eq!(gathered.receipts_may_wait, may_wait);
    }

    #[test]
    fn broker_frames_arrive_as_they_were_sent(
        frames in vec(broker_frame(), 1..6),
        pieces in vec(1..5000_usize, 1..10),
    ) {
        prop_assert_eq!(through_pieces(&frames, &pieces), frames);
    }

    #[test]
    fn attributes_say_what_they_were_given(
        key in option::of(vec(any::<u8>(), 0..=255)),
        operation in option::of(".{1,60}"),
        names in proptest::collection::btree_set("[a-z]{1,30}", 0..16),
    ) {
        let mut builder = Attributes::builder();
        if let Some(key) = &key {
            builder = builder.key(key);
        }
        if let Some(operation) = &operation {
            builder = builder.operation(operation);
        }
        for name in &names {
            builder = builder.field(name, name.to_uppercase());
        }
        let made = builder.build().unwrap();
        let attributes = Attributes::decode(made.encoded().clone()).unwrap();
        prop_assert_eq!(attributes.key(), key.as_deref());
        prop_assert_eq!(attributes.operation(), operation.as_deref());
        let upper: Vec<_> = names.iter().map(|name| name.to_uppercase()).collect();
        let expected: Vec<_> =
            names.iter().map(String::as_str).zip(upper.iter().map(String::as_str)).collect();
        prop_assert_eq!(attributes.fields().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn any_block_is_refused_or_read_without_a_panic(block in vec(0..6_u8, 0..60)) {
        if let Ok(attributes) = Attributes::decode(block.clone().into()) {
            let _ = (attributes.key(), attributes.operation(), attributes.content_type());
            prop_assert!(attributes.fields().count() <= 16);
            prop_assert_eq!(attributes::check(&block), Ok(()));
        }
    }

    #[test]
    fn any_body_of_a_call_is_refused_or_read_without_a_panic(body in vec(any::<u8>(), 0..60)) {
        if let Err(ControlError::UnknownOperation(op)) = Request::decode(&body) {
            prop_assert!(op.len() <= 64);
        }
    }

    #[test]
    fn a_message_says_the_same_where_it_lies(frame in broker_frame(), cut in any::<u16>()) {
        let bytes = encoded(&frame);
        let BrokerFrame::Message(message) = frame else {
            prop_assert!(!MessageView::is_next(&bytes));
            return Ok(());
        };
        prop_assert!(MessageView::is_next(&bytes));
        let mut part = BytesMut::from(&bytes[..usize::from(cut) % bytes.len()]);
        prop_assert_eq!(MessageView::decode(&mut part), Ok(None));
        let mut unread = BytesMut::from(&bytes[..]);
        let view = MessageView::decode(&mut unread).unwrap().unwrap();
        prop_assert!(unread.is_empty());
        prop_assert_eq!(view.head(), message.head);
        prop_assert_eq!(view.attributes(), message.attributes.clone());
        prop_assert_eq!(view.charged_bytes(), message.charged_bytes());
        prop_assert_eq!(view.key(), message.attributes.key());
        prop_assert_eq!(view.missed(), message.head.missed);
        prop_assert_eq!(view.into_payload(), message.payload);
    }

    #[test]
    fn a_run_is_the_plain_messages_that_have_come_whole(
        frames in vec(prop_oneof![4 => plain_message(), 1 => broker_frame()], 1..8),
        cut in any::<u16>(),
    ) {
        let mut bytes: Vec<u8> = frames.iter().flat_map(encoded).collect();
        bytes.truncate(bytes.len() - usize::from(cut) % bytes.len().min(100));
        let (mut one_by_one, mut at_once) = (BytesMut::from(&bytes[..]), BytesMut::from(&bytes[..]));
        let mut expected = Vec::new();
        loop {
            let before = one_by_one.clone();
            match MessageView::is_next(&one_by_one).then(|| MessageView::decode(&mut one_by_one)) {
                Some(Ok(Some(message))) if message.is_plain() => expected.push(message),
                _ => {
                    one_by_one = before;
                    break;
                }
            }
        }
        let run = PlainRun::take(&mut at_once);
        let run: Vec<_> = run.into_iter().flatten().map(Result::unwrap).collect();
        prop_assert_eq!(run, expected);
        prop_assert_eq!(at_once, one_by_one);
    }

    #[test]
    fn what_is_encoded_is_as_long_as_its_header_says(frame in broker_frame()) {
        let bytes = encoded(&frame);
        prop_assert_eq!(BrokerFrame::bytes_needed(&bytes), Ok(bytes.len()));
    }
}

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use bus_core::Limits;
use bus_core::wire::{
    BrokerFrame, Goodbye, GoodbyeCode, Handle, LaneNumber, Response, SendId, Serial,
};

use crate::testing::{FIRST, FakeBroker, encoded, pair, pair_with, welcome};
use crate::{Builder, Bus, ConnectError, GoneReason, Outgoing};

fn connect(
    builder: Builder,
    script: impl FnOnce(&mut FakeBroker) + Send + 'static,
) -> Result<Bus, ConnectError> {
    let (client, mut broker) = FakeBroker::new();
    let scripted = thread::spawn(move || {
        script(&mut broker);
        broker
    });
    let connected = builder.connect_socket(client, "here", None);
    scripted.join().unwrap();
    connected
}

#[test]
fn the_greeting_names_version_and_program_and_tells_limits() {
    let limits = Limits { queue_messages: 5, ..Limits::default() };
    let name = "x".repeat(300);
    let (client, mut broker) = FakeBroker::new();
    let connecting =
        thread::spawn(move || Builder::new().program(name).connect_socket(client, "", None));
    let hello = broker.hello();
    assert_eq!(hello.versions, [1]);
    assert_eq!(hello.program.map(|program| program.len()), Some(255));
    broker.put(&BrokerFrame::Welcome(Box::new(welcome(limits))));
    let bus = connecting.join().unwrap().unwrap();
    assert_eq!(bus.endpoint_id(), FIRST);
    assert_eq!(bus.incarnation(), [9; 16]);
    assert_eq!(bus.limits().queue_messages, 5);
}

#[test]
fn a_greeting_may_come_byte_by_byte() {
    let (client, mut broker) = FakeBroker::new();
    let connecting = thread::spawn(move || Builder::new().connect_socket(client, "", None));
    broker.hello();
    let welcome = encoded(&BrokerFrame::Welcome(Box::new(welcome(Limits::default()))));
    for byte in welcome {
        broker.put_bytes(&[byte]);
    }
    assert!(connecting.join().unwrap().is_ok());
}

#[test]
fn what_comes_with_the_greeting_is_not_lost() {
    let (client, mut broker) = FakeBroker::new();
    let connecting = thread::spawn(move || Builder::new().connect_socket(client, "", None));
    broker.hello();
    let mut bytes = encoded(&BrokerFrame::Welcome(Box::new(welcome(Limits::default()))));
    let message = broker.group_message(b"early");
    bytes.extend_from_slice(&encoded(&BrokerFrame::from(message)));
    broker.put_bytes(&bytes);
    let bus = connecting.join().unwrap().unwrap();
    let event = bus.receive().unwrap().into_message().unwrap();
    assert_eq!(event.payload(), b"early");
}

#[test]
fn a_broker_that_refuses_is_quoted() {
    let refused = connect(Builder::new(), |broker| {
        broker.hello();
        broker.put(&BrokerFrame::Goodbye(Goodbye::new(GoodbyeCode::NoCommonVersion, "too old")));
    });
    let Err(ConnectError::Refused { code, text, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((&*code, &*text), ("no-common-version", "too old"));
}

#[test]
fn what_is_no_greeting_is_named() {
    for (case, bytes) in [
        ("noise", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("another frame", encoded(&BrokerFrame::DescriptorsTaken).to_vec()),
        (
            "limits out of range",
            encoded(&BrokerFrame::Welcome(Box::new(welcome(Limits {
                queue_messages: 0,
                ..Limits::default()
            }))))
            .to_vec(),
        ),
    ] {
        let gone = connect(Builder::new(), move |broker| {
            broker.hello();
            broker.put_bytes(&bytes);
        });
        match gone {
            Err(ConnectError::Gone { gone, .. }) => {
                assert!(matches!(gone.reason(), GoneReason::Protocol(_)), "{case}: {gone}")
            }
            other => panic!("{case}: {other:?}"),
        }
    }
}

#[test]
fn a_broker_that_goes_before_its_greeting_is_gone() {
    let (client, broker) = FakeBroker::new();
    drop(broker);
    let connected = Builder::new().connect_socket(client, "here", None);
    match connected {
        Err(ConnectError::Gone { gone, .. }) => assert_eq!(gone.reason(), &GoneReason::Closed),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_silent_broker_is_given_up_in_time() {
    let (client, broker) = FakeBroker::new();
    let connected =
        Builder::new().timeout(Duration::from_millis(10)).connect_socket(client, "here", None);
    assert!(matches!(connected, Err(ConnectError::TimedOut { .. })), "{connected:?}");
    drop(broker);
}

#[test]
fn nobody_at_the_address_is_an_error_with_the_address() {
    let path = std::env::temp_dir().join("unisono-no-broker-is-here");
    let error = Bus::builder().address(path.to_str().unwrap()).connect().unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("unisono-no-broker-is-here"));
}

#[test]
fn garbage_ends_the_connection_and_the_broker_is_told() {
    let (bus, mut broker) = pair();
    broker.message(b"good");
    broker.put_bytes(&[0xee; 40]);
    let good = bus.receive().unwrap().into_message().unwrap();
    assert_eq!(good.payload(), b"good", "what came before is received");
    let error = bus.receive().unwrap_err();
    assert!(error.to_string().contains("broke the protocol"), "{error}");
    assert_eq!(broker.farewell().code, GoodbyeCode::Protocol);
    assert!(broker.is_ended());
    let again = bus.ping().unwrap_err();
    assert!(again.to_string().contains("broke the protocol"), "{again}");
}

#[test]
fn an_answer_to_nothing_ends_the_connection() {
    type Script = fn(&mut FakeBroker);
    let cases: [(&str, Script); 4] = [
        ("receipt", |broker| {
            broker.receipt(SendId {
                endpoint: Handle::FIRST,
                lane: LaneNumber::FIRST,
                serial: Serial::FIRST,
            });
        }),
        ("done", |broker| {
            broker.done((Handle::FIRST, Serial::FIRST), Response::Pong);
        }),
        ("descriptors taken", |broker| {
            broker.put(&BrokerFrame::DescriptorsTaken);
        }),
        ("handle", |broker| {
            let mut message = broker.group_message(b"");
            message.head.endpoint = Handle::from_raw(99);
            broker.put(&BrokerFrame::from(message));
        }),
    ];
    for (case, script) in cases {
        let (bus, mut broker) = pair();
        script(&mut broker);
        let error = bus.receive().unwrap_err();
        assert!(error.to_string().contains("broke the protocol"), "{case}: {error}");
    }
}

#[test]
fn an_answer_to_another_question_ends_the_connection() {
    let (bus, mut broker) = pair();
    let asking = thread::spawn(move || bus.stats());
    let (handle, serial, _) = broker.call();
    broker.done((handle, serial), Response::Pong);
    let error = asking.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("broke the protocol"), "{error}");
}

#[test]
fn a_farewell_is_the_reason_that_everybody_gets() {
    let (bus, mut broker) = pair();
    broker.message(b"last");
    broker.goodbye(GoodbyeCode::Shutdown, "back soon");
    drop(broker);
    assert!(bus.receive().is_ok());
    let error = bus.receive().unwrap_err();
    assert!(error.to_string().contains("back soon"), "{error}");
    let error = bus.group("a").unwrap().send("x").unwrap_err();
    assert!(error.to_string().contains("back soon"), "{error}");
    assert!(error.reached_nobody());
}

#[test]
fn a_reason_is_found_even_by_who_only_writes() {
    let (bus, mut broker) = pair();
    broker.goodbye(GoodbyeCode::NotReading, "too slow for us");
    drop(broker);
    let error = bus.ping().unwrap_err();
    assert!(error.to_string().contains("too slow for us"), "{error}");
}

#[test]
fn the_last_handle_ends_the_stream() {
    let (bus, mut broker) = pair();
    let group = bus.group("a").unwrap();
    drop(bus);
    assert!(broker.is_quiet(), "a handle is left");
    drop(group);
    assert!(broker.is_ended());
}

#[test]
fn close_ends_the_connection_for_all_handles() {
    let (bus, mut broker) = pair();
    let other = bus.clone();
    let receiving = thread::spawn(move || other.receive());
    bus.close();
    let error = receiving.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("this side closed"), "{error}");
    assert!(broker.is_ended());
}

#[test]
fn a_forked_child_leaves_its_parents_connection_alone() {
    let (bus, mut broker) = pair();
    bus.inner.connection.lock().pretend_to_be_forked();
    let error = bus.ping().unwrap_err();
    assert!(error.to_string().contains("forked"), "{error}");
    let error = bus.receive().unwrap_err();
    assert!(error.to_string().contains("forked"), "{error}");
    assert!(broker.is_quiet(), "neither a call nor a shutdown");
}

#[test]
fn an_address_that_is_a_listening_socket_works_with_and_without_its_scheme() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bus");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    for prefix in ["", "unix:"] {
        let address = format!("{prefix}{}", path.display());
        let connecting = thread::spawn(move || Bus::builder().address(address).connect());
        let (stream, _): (UnixStream, _) = listener.accept().unwrap();
        let mut broker = FakeBroker::on(stream);
        broker.greet(Limits::default());
        assert!(connecting.join().unwrap().is_ok(), "{prefix:?}");
    }
}

#[test]
fn limits_of_the_broker_bound_a_message_before_it_leaves() {
    let limits = Limits { payload_bytes: 3, descriptors: 0, ..Limits::default() };
    let (bus, mut broker) = pair_with(limits, Builder::new());
    let group = bus.group("a").unwrap();
    let error = group.send("four").unwrap_err().to_string();
    assert!(error.contains("4 bytes") && error.contains('3'), "{error}");
    let with_descriptor = Outgoing::text("").descriptor(UnixStream::pair().unwrap().0);
    assert!(group.send(with_descriptor).is_err());
    let error = group.send(Outgoing::text("").key([0; 256])).unwrap_err();
    assert!(error.to_string().contains("bad message"), "{error}");
    assert!(broker.is_quiet());
}

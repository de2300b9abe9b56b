//! Recorded conversations of wire version 1, which every later broker and client must be able to
//! have again.
//!
//! A transcript is made by a scenario: a few lines of an application, run against a broker with a
//! recorder in between. It is a text in `tests/transcripts`: a line for each frame, whose sender is
//! before the arrow (`A>` is what the program A wrote, `A<` what it was sent), its bytes in
//! hexadecimal, and behind a `;` what they mean, which is for people only.
//!
//! - **Against the broker**: what was written is written again, and the broker must answer each
//!   connection with the same frames in the same order. Ids and sequences are those of the broker
//!   at hand: a recorded one stands for one of today's and no other, wherever it stands, and
//!   whatever is written is written with today's. Not looked at are times, process and user ids, the
//!   incarnation, and the limits and features of the greeting.
//! - **Against the client**: the scenario is run again, and the recorded answers are given. The client
//!   must write the very same bytes. When and in what parts it returns credit is its own affair, so
//!   CREDIT is not looked at.
//!
//! What may be added within version 1 does not disturb: unknown keys are passed over on both sides.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use bus_client::{
    Bus, Event, JoinOptions, NameOptions, Outgoing, Retain, SendError, Transport, WatchOptions,
};
use bus_core::Destination;
use bus_core::wire::{BrokerFrame, ClientFrame, MAGIC};
use bytes::BytesMut;

use crate::broker::Broker;
use crate::deadline::DEADLINE;

/// A few lines of an application.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What it is called, and its file.
    pub name: &'static str,
    run: fn(&dyn Fn(char) -> Bus),
}

/// All of them.
pub const SCENARIOS: [Scenario; 6] = [
    Scenario { name: "group", run: group },
    Scenario { name: "request", run: request },
    Scenario { name: "state", run: state },
    Scenario { name: "views", run: views },
    Scenario { name: "gate", run: gate },
    Scenario { name: "refusals", run: refusals },
];

/// Two members and one who is none: messages with all that a header may have, filters, leaving.
fn group(connect: &dyn Fn(char) -> Bus) {
    let (a, b) = (connect('A'), connect('B'));
    let member = a.join("org.example.Chat").unwrap();
    b.join_with("org.example.Chat", JoinOptions::new().filter("key^=a.".parse().unwrap())).unwrap();
    let group = a.group("org.example.Chat").unwrap();
    let message =
        || Outgoing::text("hello").key("a.b").operation("Say").field("unit", "C").field("n", "1");
    assert_eq!(group.send(message()).unwrap().recipients, 1);
    assert_eq!(b.receive().unwrap().into_message().unwrap().text(), Some("hello"));
    assert_eq!(group.try_send(Outgoing::bytes([0, 255]).key("b")).unwrap().recipients, 0);
    let other = b.group("org.example.Chat").unwrap();
    assert_eq!(other.send(Outgoing::json(&[1, 2]).unwrap()).unwrap().recipients, 1);
    assert!(a.receive().unwrap().into_message().unwrap().decode::<Vec<u32>>().is_ok());
    b.endpoint(a.endpoint_id()).send("to you alone").unwrap();
    assert!(a.receive().unwrap().into_message().unwrap().group().is_none());
    let own = a.open_endpoint().unwrap();
    own.join_with("org.example.Chat", JoinOptions::new().drop_when_full(true)).unwrap();
    other.send(vec![7; 5000]).unwrap();
    assert!(a.receive().unwrap().into_message().is_some());
    assert!(own.receive().unwrap().into_message().is_some());
    member.leave().unwrap();
    a.ping().unwrap();
}

/// A name, a call, its reply, a refusal.
fn request(connect: &dyn Fn(char) -> Bus) {
    let (a, b) = (connect('A'), connect('B'));
    let owned = a.own_name_with("org.example.Clock", NameOptions::new().wait(true)).unwrap();
    let clock = b.name("org.example.Clock").unwrap();
    let call = clock.start_call(Outgoing::text("").operation("Now")).unwrap();
    a.receive().unwrap().into_message().unwrap().reply("noon").unwrap();
    assert_eq!(call.wait().unwrap().text(), Some("noon"));
    let call = clock.start_call(Outgoing::text("yesterday").operation("Set")).unwrap();
    a.receive().unwrap().into_message().unwrap().refuse("no").unwrap();
    assert!(call.wait().is_err());
    owned.release().unwrap();
    assert!(matches!(clock.send("gone"), Err(SendError::NoSuchName(_))));
}

/// What a group retains, for who comes later.
fn state(connect: &dyn Fn(char) -> Bus) {
    let (a, b) = (connect('A'), connect('B'));
    let group = a.create_retaining("org.example.Levels", Retain::keys(4)).unwrap();
    for (key, level) in [("left", "1"), ("right", "2"), ("left", "3")] {
        group.send(Outgoing::text(level).key(key)).unwrap();
    }
    b.join_with("org.example.Levels", JoinOptions::new().with_state(true)).unwrap();
    for _ in 0..2 {
        assert!(b.receive().unwrap().into_message().unwrap().retained());
    }
    assert!(matches!(b.receive().unwrap(), Event::Current(current) if current.messages == 2));
}

/// Who comes and goes.
fn views(connect: &dyn Fn(char) -> Bus) {
    let (a, b) = (connect('A'), connect('B'));
    let watch = a.watch_members_with("org.example.Lobby", WatchOptions::new()).unwrap();
    let member = b.join("org.example.Lobby").unwrap();
    assert!(matches!(a.receive().unwrap(), Event::View(view) if view.members == 1));
    member.leave().unwrap();
    assert!(matches!(a.receive().unwrap(), Event::View(view) if view.members == 0));
    watch.end().unwrap();
}

/// A gated group: who asks is admitted, and expelled.
fn gate(connect: &dyn Fn(char) -> Bus) {
    let (a, b) = (connect('A'), connect('B'));
    let gate = a.create_gated("org.example.Club").unwrap();
    let mut asking = b.connect_to("org.example.Club", JoinOptions::new()).unwrap();
    let Event::Candidate(candidate) = a.receive().unwrap() else { panic!("somebody asks") };
    asking.peer().send("please").unwrap();
    assert!(a.receive().unwrap().into_message().unwrap().peer().is_some());
    gate.admit(candidate.endpoint, candidate.wishes).unwrap();
    assert!(asking.join_deadline(DEADLINE).unwrap().is_some());
    gate.expel(candidate.endpoint, "enough").unwrap();
    assert!(matches!(b.receive().unwrap(), Event::Expelled(_)));
}

/// What is not there, is there already, or may not be.
fn refusals(connect: &dyn Fn(char) -> Bus) {
    let a = connect('A');
    assert!(a.group("org.example.Nowhere").unwrap().send("x").is_err());
    assert!(a.join_with("org.example.Nowhere", JoinOptions::new().create(false)).is_err());
    let member = a.join("org.example.Here").unwrap();
    assert!(a.join("org.example.Here").is_err());
    assert!(a.create("org.example.Here").is_err());
    assert_eq!(member.send("nobody else").unwrap().recipients, 0);
    let gone = {
        let other = a.open_endpoint().unwrap();
        other.endpoint_id()
    };
    assert!(a.endpoint(gone).send("x").is_err());
    a.close();
}

/// A frame that a program wrote, or was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    program: char,
    from_client: bool,
    bytes: Vec<u8>,
}

impl Scenario {
    /// Where its transcript is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("transcripts");
        folder.join(self.name).with_extension("txt")
    }

    /// Has the conversation anew, and gives its transcript.
    #[must_use]
    pub fn record(&self) -> String {
        let broker = Broker::start();
        let directory = tempfile::tempdir().unwrap();
        let lines: Arc<Mutex<Vec<Line>>> = Arc::default();
        let recorders: Mutex<Vec<JoinHandle<()>>> = Mutex::default();
        (self.run)(&|program| {
            let path = directory.path().join(program.to_string());
            let listener = UnixListener::bind(&path).unwrap();
            let connecting = connect(&path);
            let ours = listener.accept().unwrap().0;
            let theirs = UnixStream::connect(broker.socket()).unwrap();
            for from_client in [true, false] {
                let (from, to) = match from_client {
                    true => (&ours, &theirs),
                    false => (&theirs, &ours),
                };
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let lines = Arc::clone(&lines);
                recorders.lock().unwrap().push(thread::spawn(move || {
                    pass_on(program, from_client, from, to, &lines);
                }));
            }
            connecting.join().unwrap()
        });
        for recorder in recorders.into_inner().unwrap() {
            recorder.join().unwrap();
        }
        let mut text = format!("# Wire version 1: {}. `>` is what a program wrote.\n", self.name);
        for line in lines.lock().unwrap().iter() {
            let arrow = if line.from_client { '>' } else { '<' };
            let hex: String = line.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = writeln!(text, "{}{arrow} {hex} ; {}", line.program, meaning(line));
        }
        text
    }

    /// Writes to a broker what was written, and compares its answers.
    ///
    /// # Panics
    ///
    /// It answers otherwise.
    pub fn replay_to_a_broker(&self) {
        let broker = Broker::start();
        let mut connections: HashMap<char, Connection> = HashMap::new();
        let mut names = Names::default();
        for (number, line) in read(&self.path()).into_iter().enumerate() {
            let place = format!("{}, frame {number}: {}", self.name, meaning(&line));
            let connection = connections.entry(line.program).or_insert_with(|| {
                let stream = UnixStream::connect(broker.socket()).unwrap();
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                Connection { stream, unread: BytesMut::new() }
            });
            if line.from_client {
                let bytes = names.translated(&line.bytes);
                connection.stream.write_all(&bytes).expect(&place);
                continue;
            }
            let recorded = decode_broker(&line.bytes);
            let answered = connection.hear(&place);
            names.compare(&shown(&recorded), &shown(&answered), &place);
        }
    }

    /// Runs the program again, and gives it the recorded answers.
    ///
    /// # Panics
    ///
    /// It writes something else.
    pub fn replay_to_a_client(&self) {
        let directory = tempfile::tempdir().unwrap();
        let all = read(&self.path());
        let brokers: Mutex<Vec<JoinHandle<()>>> = Mutex::default();
        (self.run)(&|program| {
            let path = directory.path().join(program.to_string());
            let listener = UnixListener::bind(&path).unwrap();
            let connecting = connect(&path);
            let stream = listener.accept().unwrap().0;
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let lines: Vec<_> = all.iter().filter(|l| l.program == program).cloned().collect();
            let name = self.name;
            let playing = thread::spawn(move || play(name, stream, &lines));
            brokers.lock().unwrap().push(playing);
            connecting.join().unwrap()
        });
        for broker in brokers.into_inner().unwrap() {
            broker.join().unwrap();
        }
    }
}

fn connect(path: &Path) -> JoinHandle<Bus> {
    // What travels through rings cannot be listened to.
    let builder = Bus::builder().transport(Transport::Socket).program("transcript");
    let builder = builder.address(path.display().to_string());
    thread::spawn(move || builder.connect().unwrap())
}

/// Passes bytes on, and takes note of each frame before.
fn pass_on(
    program: char,
    from_client: bool,
    mut from: UnixStream,
    mut to: UnixStream,
    lines: &Mutex<Vec<Line>>,
) {
    let mut unread = BytesMut::new();
    let mut greeted = !from_client;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer).unwrap_or(0);
        if count == 0 {
            let _ = to.shutdown(std::net::Shutdown::Both);
            return;
        }
        unread.extend_from_slice(&buffer[..count]);
        while let Some(bytes) = cut(&mut unread, from_client, &mut greeted) {
            lines.lock().unwrap().push(Line { program, from_client, bytes });
        }
        if to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// The next frame's bytes; the magic goes with the first one.
fn cut(unread: &mut BytesMut, from_client: bool, greeted: &mut bool) -> Option<Vec<u8>> {
    let magic = if *greeted { 0 } else { MAGIC.len() };
    let needed = match from_client {
        true => ClientFrame::bytes_needed(unread.get(magic..)?).unwrap(),
        false => BrokerFrame::bytes_needed(unread).unwrap(),
    };
    if unread.len() < magic + needed {
        return None;
    }
    *greeted = true;
    Some(unread.split_to(magic + needed).to_vec())
}

/// Plays the broker on one connection.
fn play(name: &str, mut stream: UnixStream, lines: &[Line]) {
    let mut unread = BytesMut::new();
    let mut greeted = false;
    let mut buffer = vec![0; 64 << 10];
    for (number, line) in lines.iter().enumerate() {
        let place = format!("{name}, {} {number}: {}", line.program, meaning(line));
        if !line.from_client {
            // At the end it may have gone.
            let _ = stream.write_all(&line.bytes);
            continue;
        }
        if is_credit(&line.bytes) {
            continue;
        }
        let written = loop {
            match cut(&mut unread, true, &mut greeted) {
                Some(bytes) if is_credit(&bytes) => {}
                Some(bytes) => break bytes,
                None => {
                    let count = stream.read(&mut buffer).expect(&place);
                    assert!(count > 0, "{place}: the client has gone");
                    unread.extend_from_slice(&buffer[..count]);
                }
            }
        };
        if written != line.bytes {
            let own = Line { bytes: written, ..line.clone() };
            panic!("{place}: it writes {}", meaning(&own));
        }
    }
}

fn is_credit(bytes: &[u8]) -> bool {
    !bytes.starts_with(&MAGIC) && matches!(decode_client(bytes), ClientFrame::Credit { .. })
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    unread: BytesMut,
}

impl Connection {
    fn hear(&mut self, place: &str) -> BrokerFrame {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(frame) = BrokerFrame::decode(&mut self.unread).expect(place) {
                return frame;
            }
            let count = self.stream.read(&mut buffer).expect(place);
            assert!(count > 0, "{place}: the broker has closed the connection");
            self.unread.extend_from_slice(&buffer[..count]);
        }
    }
}

/// Which of today's ids and sequences a recorded one stands for.
#[derive(Debug, Default)]
struct Names {
    today: HashMap<(String, u64), u64>,
    recorded: HashMap<(String, u64), u64>,
}

impl Names {
    /// Compares two frames as they are shown, number by number where a number is a name.
    fn compare(&mut self, recorded: &str, today: &str, place: &str) {
        let (was, is) = (pieces(recorded), pieces(today));
        let texts = |pieces: &[(String, Option<u64>)]| -> Vec<String> {
            pieces.iter().map(|(text, _)| text.clone()).collect()
        };
        assert_eq!(texts(&was), texts(&is), "{place}\nrecorded {recorded}\nanswered {today}");
        for ((kind, was), (_, is)) in was.into_iter().zip(is) {
            let (Some(was), Some(is)) = (was, is) else { continue };
            let kind = KINDS.iter().find(|k| kind.ends_with(*k)).copied().unwrap_or_default();
            let stands_for = *self.today.entry((kind.to_owned(), was)).or_insert(is);
            let stood_for = *self.recorded.entry((kind.to_owned(), is)).or_insert(was);
            assert_eq!((stands_for, stood_for), (is, was), "{place}: {kind}{was})");
        }
    }

    /// What a client wrote, with today's names.
    fn translated(&self, bytes: &[u8]) -> Vec<u8> {
        let (magic, frame) = match bytes.strip_prefix(&MAGIC) {
            Some(frame) => (&MAGIC[..], frame),
            None => (&[][..], bytes),
        };
        let mut decoded = decode_client(frame);
        let mut out = BytesMut::from(magic);
        let now = |kind: &str, id: u64| *self.today.get(&(kind.to_owned(), id)).unwrap_or(&id);
        if let ClientFrame::Send(send) = &mut decoded {
            send.head.destination = match send.head.destination {
                Destination::Group(id) => {
                    Destination::Group(bus_core::GroupId::from_raw(now("GroupId(", id.get())))
                }
                Destination::Endpoint(id) => Destination::Endpoint(bus_core::EndpointId::from_raw(
                    now("EndpointId(", id.get()),
                )),
                Destination::Name(id) => {
                    Destination::Name(bus_core::NameId::from_raw(now("NameId(", id.get())))
                }
                Destination::Caller(request) => Destination::Caller(bus_core::Sequence::from_raw(
                    now("Sequence(", request.get()),
                )),
            };
            decoded.encode(&mut out).unwrap();
            return out.to_vec();
        }
        let mut frame = frame.to_vec();
        if matches!(decoded, ClientFrame::Call { .. }) {
            // In CBOR an id of a broker has its first byte before it; they are far too large to
            // stand for anything else.
            for ((_, was), is) in self.today.iter().filter(|((_, was), _)| *was > 1 << 32) {
                let (was, is) = (cbor(*was), cbor(*is));
                while let Some(at) = frame.windows(was.len()).position(|part| part == was)
                    && was != is
                {
                    frame.splice(at..at + was.len(), is.iter().copied());
                }
            }
            let length = u32::try_from(frame.len()).unwrap();
            frame[..4].copy_from_slice(&length.to_le_bytes());
        }
        out.extend_from_slice(&frame);
        out.to_vec()
    }
}

/// A number of more than 32 bits, as CBOR has it.
fn cbor(number: u64) -> Vec<u8> {
    if let Ok(number) = u32::try_from(number) {
        return [&[0x1a], &number.to_be_bytes()[..]].concat();
    }
    [&[0x1b], &number.to_be_bytes()[..]].concat()
}

/// Texts, each with the number behind it that is a name, if it ends with the beginning of one.
/// What is not to be looked at is left out.
fn pieces(shown: &str) -> Vec<(String, Option<u64>)> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut rest = shown;
    while let Some(next) = rest.chars().next() {
        text.push(next);
        rest = &rest[next.len_utf8()..];
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if digits == 0 {
            continue;
        }
        if KINDS.iter().any(|kind| text.ends_with(kind)) {
            pieces.push((std::mem::take(&mut text), rest[..digits].parse().ok()));
            rest = &rest[digits..];
        } else if IGNORED.iter().any(|name| text.ends_with(name)) {
            rest = &rest[digits..];
        }
    }
    pieces.push((text, None));
    pieces
}

const KINDS: [&str; 4] = ["EndpointId(", "GroupId(", "NameId(", "Sequence("];
const IGNORED: [&str; 5] = ["commit_time: ", "deadline: ", "uid: ", "pid: ", "uptime: "];

/// A frame as it is compared.
fn shown(frame: &BrokerFrame) -> String {
    match frame {
        BrokerFrame::Welcome(welcome) => {
            format!("Welcome version {} {:?}", welcome.version, welcome.endpoint)
        }
        BrokerFrame::Message(message) => format!(
            "{:?} {:02x?} {:02x?}",
            message.head,
            message.attributes.encoded(),
            &message.payload[..]
        ),
        // What is said to people may be said better.
        BrokerFrame::Error { endpoint, serial, failure } => {
            format!("Error {endpoint:?} {serial:?} {:?}", failure.code)
        }
        BrokerFrame::Refused { id, failure } => format!("Refused {id:?} {:?}", failure.code),
        other => format!("{other:?}"),
    }
}

fn meaning(line: &Line) -> String {
    let text = match line.from_client {
        true => {
            format!("{:?}", decode_client(line.bytes.strip_prefix(&MAGIC).unwrap_or(&line.bytes)))
        }
        false => format!("{:?}", decode_broker(&line.bytes)),
    };
    match text.char_indices().nth(MOST_SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

const MOST_SHOWN: usize = 160;

fn decode_client(bytes: &[u8]) -> ClientFrame {
    ClientFrame::decode(&mut BytesMut::from(bytes)).unwrap().expect("a whole frame")
}

fn decode_broker(bytes: &[u8]) -> BrokerFrame {
    BrokerFrame::decode(&mut BytesMut::from(bytes)).unwrap().expect("a whole frame")
}

fn read(path: &Path) -> Vec<Line> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let (head, rest) = line.split_once(' ').expect(line);
            let hex = rest.split(';').next().unwrap_or_default().trim();
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect(line);
            Line {
                program: head.chars().next().expect(line),
                from_client: head.ends_with('>'),
                bytes: (0..hex.len()).step_by(2).map(byte).collect(),
            }
        })
        .collect()
}

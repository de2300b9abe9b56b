//! Unisono through its client library, as an application uses it.

use std::{collections::VecDeque, io};

use bus_client::{
    Bus, Condition, EndpointId, Event, Filter, Group, JoinOptions, Member, Message, Outgoing,
    Pattern, PendingSend, Pool, RemoteEndpoint, Sequence, Transport,
};

use super::{Caller, Receiver, Responder, Sender};
use crate::bench::{
    plan::{Plan, Workload},
    stamp::Stamp,
    system::System,
};

pub(super) fn connect(plan: &Plan) -> io::Result<Bus> {
    let address = plan.socket().display().to_string();
    let transport = match plan.system {
        System::UnisonoRing => Transport::Ring,
        _ => Transport::Socket,
    };
    let builder = Bus::builder().address(address).program("unisono-bench").transport(transport);
    let builder = if plan.flagged { builder.zerocopy_quietly() } else { builder };
    builder.connect().map_err(io::Error::other)
}

/// Sends that have left and are not answered.
#[derive(Debug)]
struct Window {
    pending: VecDeque<PendingSend>,
    most: usize,
}

impl Window {
    fn new(bus: &Bus) -> Self {
        Self { pending: VecDeque::new(), most: bus.limits().lane_messages as usize }
    }

    fn push(&mut self, send: PendingSend) -> io::Result<()> {
        self.pending.push_back(send);
        if self.pending.len() < self.most {
            return Ok(());
        }
        self.wait_oldest()
    }

    fn wait_oldest(&mut self) -> io::Result<()> {
        let Some(oldest) = self.pending.pop_front() else {
            return Ok(());
        };
        oldest.wait().map(drop).map_err(io::Error::other)
    }

    fn finish(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            self.wait_oldest()?;
        }
        Ok(())
    }
}

/// Sends to the group, pipelined.
#[derive(Debug)]
pub(super) struct GroupSender {
    bus: Bus,
    group: Group,
    window: Window,
    payload: Vec<u8>,
    /// Where payloads are made that are lent.
    pool: Option<Pool>,
    flagged: bool,
    /// By stream, where receivers filter.
    keys: Vec<Option<String>>,
}

impl GroupSender {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        let bus = connect(plan)?;
        let buffers = u32::try_from(POOL_BYTES / plan.size.max(1)).unwrap_or(1).clamp(2, 64);
        let pool = plan.apart.then(|| bus.pool(buffers, plan.size)).transpose();
        Ok(Self {
            group: bus.group(GROUP).map_err(io::Error::other)?,
            window: Window::new(&bus),
            payload: vec![0; plan.size],
            pool: pool.map_err(io::Error::other)?,
            flagged: plan.flagged,
            keys: (0..plan.streams()).map(|stream| plan.key_of(stream)).collect(),
            bus,
        })
    }
}

impl Sender for GroupSender {
    fn send(&mut self, stamps: &[Stamp]) -> io::Result<()> {
        let _cork = (stamps.len() > 1).then(|| self.bus.cork());
        for stamp in stamps {
            let mut message = match &self.pool {
                Some(pool) => {
                    let mut buffer = pool.take().map_err(io::Error::other)?;
                    stamp.write(&mut buffer);
                    Outgoing::lent(buffer)
                }
                None => {
                    stamp.write(&mut self.payload);
                    Outgoing::bytes(self.payload.as_slice())
                }
            };
            if self.flagged {
                message = message.zerocopy();
            }
            if let Some(Some(key)) = self.keys.get(stamp.stream()) {
                message = message.key(key);
            }
            let send = self.group.start_send(message).map_err(io::Error::other)?;
            self.window.push(send)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.window.finish()
    }
}

/// A member of the group.
#[derive(Debug)]
pub(super) struct MemberReceiver {
    bus: Bus,
    _members: Vec<Member>,
    events: Vec<Event>,
    last: Option<Sequence>,
}

impl MemberReceiver {
    pub(super) fn new(plan: &Plan, index: usize) -> io::Result<Self> {
        let bus = connect(plan)?;
        let mut options = JoinOptions::new().create(true);
        if let Some(key) = plan.key_of(index % plan.streams()) {
            let wanted = Condition::Key(Pattern::exactly(key));
            options = options.filter(Filter::new([vec![wanted]]).map_err(io::Error::other)?);
        }
        let join = |group: &str| bus.join_with(group, options.clone());
        let mut members = vec![join(GROUP).map_err(io::Error::other)?];
        if plan.workload == Workload::Fair {
            members.push(join(&small_group(index)).map_err(io::Error::other)?);
        }
        Ok(Self { bus, _members: members, events: Vec::new(), last: None })
    }

    fn take(&mut self, event: &Event, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let message = message_of(event)?;
        // G2 makes the order visible; that costs a comparison to check.
        if self.last >= Some(message.sequence()) {
            return Err(io::Error::other("the sequence does not rise (G2)"));
        }
        self.last = Some(message.sequence());
        sink(message.payload());
        Ok(())
    }
}

impl Receiver for MemberReceiver {
    fn receive(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let most = self.bus.limits().queue_messages as usize;
        let mut events = std::mem::take(&mut self.events);
        self.bus.receive_batch(&mut events, most).map_err(io::Error::other)?;
        // Each is let go of once it was read: what it lay in is written again while caches have it.
        let taken = events.drain(..).try_for_each(|event| self.take(&event, sink));
        self.events = events;
        taken
    }

    fn drain(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.receive(sink)?;
        for _ in 1..self.bus.limits().queue_messages {
            match self.bus.try_receive().map_err(io::Error::other)? {
                Some(event) => self.take(&event, sink)?,
                None => break,
            }
        }
        Ok(())
    }
}

/// An endpoint that is to call another.
#[derive(Debug)]
pub(super) struct DirectCaller {
    bus: Bus,
    size: usize,
}

impl DirectCaller {
    pub(super) fn connect(plan: &Plan) -> io::Result<Self> {
        Ok(Self { bus: connect(plan)?, size: plan.size })
    }

    pub(super) fn to(self, address: &str) -> io::Result<Calling> {
        let id = address.parse().map_err(io::Error::other)?;
        Ok(Calling {
            other: self.bus.endpoint(EndpointId::from_raw(id)),
            window: Window::new(&self.bus),
            bus: self.bus,
            payload: vec![0; self.size],
        })
    }
}

/// An endpoint that calls another.
#[derive(Debug)]
pub(super) struct Calling {
    bus: Bus,
    other: RemoteEndpoint,
    window: Window,
    payload: Vec<u8>,
}

impl Caller for Calling {
    fn call(&mut self, stamp: Stamp, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        stamp.write(&mut self.payload);
        let message = Outgoing::bytes(self.payload.as_slice());
        let send = self.other.start_send(message).map_err(io::Error::other)?;
        let reply = self.bus.receive().map_err(io::Error::other)?;
        sink(message_of(&reply)?.payload());
        self.window.push(send)
    }
}

/// An endpoint that answers.
#[derive(Debug)]
pub(super) struct DirectResponder {
    bus: Bus,
    other: Option<RemoteEndpoint>,
    window: Window,
}

impl DirectResponder {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        let bus = connect(plan)?;
        Ok(Self { window: Window::new(&bus), other: None, bus })
    }
}

impl Responder for DirectResponder {
    fn address(&self) -> String {
        self.bus.endpoint_id().get().to_string()
    }

    fn respond(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let event = self.bus.receive().map_err(io::Error::other)?;
        let call = message_of(&event)?;
        sink(call.payload());
        let other = self.other.get_or_insert_with(|| self.bus.endpoint(call.sender()));
        let reply = Outgoing::bytes(call.payload());
        let send = other.start_send(reply).map_err(io::Error::other)?;
        self.window.push(send)
    }
}

/// The fan-out sender of `fair`.
#[derive(Debug)]
pub(super) struct WaitingSender {
    group: Group,
    payload: Vec<u8>,
}

impl WaitingSender {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        let bus = connect(plan)?;
        Ok(Self { group: bus.group(GROUP).map_err(io::Error::other)?, payload: vec![0; plan.size] })
    }
}

impl Sender for WaitingSender {
    fn send(&mut self, stamps: &[Stamp]) -> io::Result<()> {
        for stamp in stamps {
            stamp.write(&mut self.payload);
            let message = Outgoing::bytes(self.payload.as_slice());
            self.group.send(message).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// A small sender of `fair`, which writes to one receiver at a time.
#[derive(Debug)]
pub(super) struct SmallSender {
    /// By stream; those of other senders are absent.
    groups: Vec<Option<(Group, Window)>>,
    payload: Vec<u8>,
    _bus: Bus,
}

impl SmallSender {
    pub(super) fn new(plan: &Plan, receivers: &[usize]) -> io::Result<Self> {
        let bus = connect(plan)?;
        let mut groups: Vec<_> = (0..plan.streams()).map(|_| None).collect();
        for receiver in receivers {
            let group = bus.group(&small_group(*receiver)).map_err(io::Error::other)?;
            let mut window = Window::new(&bus);
            // All groups share the lane's window, and none may take it whole.
            window.most = (window.most / receivers.len().max(1)).max(1);
            groups[1 + receiver] = Some((group, window));
        }
        Ok(Self { groups, payload: vec![0; plan.size], _bus: bus })
    }
}

impl Sender for SmallSender {
    fn send(&mut self, stamps: &[Stamp]) -> io::Result<()> {
        for stamp in stamps {
            stamp.write(&mut self.payload);
            let Some((group, window)) = &mut self.groups[stamp.stream()] else {
                return Err(io::Error::other("a stream of another sender"));
            };
            let message = Outgoing::bytes(self.payload.as_slice());
            window.push(group.start_send(message).map_err(io::Error::other)?)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        let mut windows = self.groups.iter_mut().flatten();
        windows.try_for_each(|(_, window)| window.finish())
    }
}

fn message_of(event: &Event) -> io::Result<&Message> {
    match event {
        Event::Message(message) => Ok(message),
        other => Err(io::Error::other(format!("no message, but {other:?}"))),
    }
}

fn small_group(receiver: usize) -> String {
    format!("bench.small.{receiver}")
}

const GROUP: &str = "bench.all";
/// About how much a sender has for what is lent.
const POOL_BYTES: usize = 8 << 20;

//! A connection that speaks Unisono's own protocol: frames in, frames out, endpoints on the bus.
//!
//! Invariants:
//! - No frame waits for room in a queue. A send that has to wait is kept by its lane
//!   ([`lane_queue`]) and every other frame is acted on as it comes, so credit, cancel, leave
//!   and shutdown are never behind a send that waits (G5).
//! - Each CALL, SEND and WATCH is answered once.
//! - At most one frame with descriptors is on its way to the client. The kernel counts descriptors
//!   in flight per user, so one client that does not read must not use them up for others. An
//!   endpoint whose next message has descriptors waits for its turn; its order is kept, and the
//!   connection's other endpoints go on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus_core::wire::{
    BATCHES_FEATURE, BrokerFrame, COPY_BYTES, ClientFrame, Copied, EvictionReason, Failure,
    FailureCode, FrameHead, Goodbye, GoodbyeCode, Handle, Hello, Lent, MessageHead, Notice,
    RINGS_FEATURE, Role, SendFlags, SendFrame, SendId, SendRun, Serial, VERSION, ViewNotice,
    Welcome, encode_batch_apart, encode_batch_head, encode_message, encode_message_head,
};
use bus_core::{
    Batch, Credentials, Delivery, Destination, Draft, EndpointId, Eviction, EvictionCause, Gap,
    GroupId, GroupName, Kind, Message, Monitored, Payload, PeerChange, Resource,
};
use bytes::{Buf, BytesMut};

use crate::apart::LargeSends;
use crate::broker::Shared;
use crate::connection::{Context, End};
use crate::inbox::{Part, Signal, Token};
use crate::output::{Carried, Output};
use crate::passed_over::PassedOver;
use crate::policy::{Action, Gate};
use crate::protocol::{Progress, refused};
use crate::roster::EndpointEntry;
use crate::transport::Arrived;
use lazy_memory::{LazyMemory, Skills};
use listings::Listings;
use memory::{Company, Under, Way};
use port::Port;
use ports::Ports;
use sending::ABOVE_TOGETHER;

pub(crate) use calls::stats;

mod accounts;
mod calls;
mod failure;
mod gated;
pub(crate) mod inside;
mod lane_charge;
mod lane_queue;
mod lazy_memory;
mod listings;
mod memory;
mod monitoring;
mod names;
mod permission;
mod port;
mod ports;
mod sending;

/// The conversation with one client.
#[derive(Debug)]
pub(crate) struct Session {
    token: Token,
    credentials: Credentials,
    gate: Gate,
    /// What its endpoints monitor, if they are monitors.
    monitors: BTreeMap<Handle, Option<GroupName>>,
    /// Until when it has to greet, if it has not.
    greeting_until: Option<Instant>,
    ports: Ports,
    /// Ports whose queues may have messages; the others sleep.
    readable: VecDeque<Handle>,
    /// Ports whose next message waits until the client has taken descriptors.
    holding: VecDeque<Handle>,
    /// The client has not yet taken the descriptors of the last frame that had some.
    descriptors_out: bool,
    /// So many frames are to be acted on one by one: together they could not be.
    singly: u32,
    listings: Listings,
    /// The greeting has switched on rings.
    knows_rings: bool,
    /// And frames for several messages.
    knows_batches: bool,
    /// What lies beside the stream, if the client knows of such a thing.
    memory: LazyMemory,
    large: LargeSends,
}

impl Session {
    pub(crate) fn new(
        token: Token,
        credentials: Credentials,
        gate: Gate,
        greeting_until: Instant,
    ) -> Self {
        Self {
            token,
            credentials,
            gate,
            monitors: BTreeMap::new(),
            greeting_until: Some(greeting_until),
            ports: Ports::default(),
            readable: VecDeque::new(),
            holding: VecDeque::new(),
            descriptors_out: false,
            singly: 0,
            listings: Listings::default(),
            knows_rings: false,
            knows_batches: false,
            memory: LazyMemory::None,
            large: LargeSends::default(),
        }
    }

    /// Whether a frame with descriptors may go out now; then it is under way.
    pub(crate) fn begin_descriptors(&mut self) -> bool {
        !std::mem::replace(&mut self.descriptors_out, true)
    }

    /// Until when it has to greet, if it has not.
    pub(crate) fn greeting_until(&self) -> Option<Instant> {
        self.greeting_until
    }

    /// Takes all whole frames off `unread` and acts on them.
    pub(crate) fn input(
        &mut self,
        unread: &mut BytesMut,
        arrived: &mut Arrived,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Result<Progress, End> {
        if let Some(text) = arrived.excess() {
            return Err(fault(text));
        }
        let until = Instant::now() + TURN;
        for count in 1_u32.. {
            if !output.has_room_for_answers() {
                return Ok(Progress::OutputFull);
            }
            if count.is_multiple_of(FRAMES_A_LOOK) && Instant::now() > until {
                return Ok(Progress::TurnOver);
            }
            if self.singly > 0 {
                self.singly -= 1;
            } else if let Some(length) = self.send_run(unread, output, context) {
                unread.advance(length);
                if Instant::now() > until {
                    return Ok(Progress::TurnOver);
                }
                continue;
            }
            let needed = ClientFrame::bytes_needed(unread).map_err(|error| bad_frame(&error))?;
            if unread.len() < needed {
                return Ok(Progress::Needs(needed));
            }
            // A long message stays in the memory that it was read into. If that is mostly other
            // frames' it gets its own, so that a message that is kept keeps no more than itself.
            let frame = if needed > COPY_BYTES && unread.capacity() > 2 * needed {
                let mut own = BytesMut::from(&unread[..needed]);
                unread.advance(needed);
                ClientFrame::decode(&mut own)
            } else {
                ClientFrame::decode(unread)
            };
            match frame.map_err(|error| bad_frame(&error))? {
                // Where bytes travel is the connection's business.
                Some(ClientFrame::Rings(rings)) if self.knows_rings => {
                    return Ok(Progress::Rings(rings));
                }
                Some(frame) => self.act(frame, arrived, output, context)?,
                None => return Ok(Progress::Needs(needed)),
            }
        }
        Ok(Progress::TurnOver)
    }

    /// Whether messages with descriptors wait for the client.
    pub(crate) fn holds_descriptors(&mut self) -> bool {
        let mut holds = false;
        for handle in self.ports.iter().map(Port::handle).collect::<Vec<_>>() {
            holds |= self.ports.get_mut(handle).is_some_and(|port| port.holds_descriptors());
            self.set_readable(handle);
        }
        holds
    }

    /// A part of the connection has something to do.
    pub(crate) fn ready(&mut self, part: Part, output: &mut Output, context: &mut Context<'_>) {
        match part {
            Part::Queue(handle) => self.set_readable(handle),
            Part::Lane(handle, lane) => {
                if let Some(port) = self.ports.get_mut(handle) {
                    port.lane_decided(lane, output, context);
                }
            }
            Part::Admission(handle, group) => {
                self.admission_decided(handle, group, output, context);
            }
            Part::Completions => {
                if let Some(memory) = self.memory.made() {
                    memory.say_completed(output);
                }
            }
            Part::Memory => {
                if let Some(memory) = self.memory.made() {
                    memory.look(output);
                }
            }
            Part::Watch(..) if context.shared.is_stopping() => {}
            Part::Watch(handle, serial) => {
                if let Some(port) = self.ports.get_mut(handle) {
                    port.watch_decided(serial, output);
                }
            }
        }
    }

    /// Moves messages from the queues to `output` while it has room: a few of each endpoint in
    /// turn, and in turn with them a part of what is listed.
    pub(crate) fn fill(&mut self, output: &mut Output) {
        if let Some(memory) = self.memory.made() {
            memory.say_completed(output);
            memory.begin_turn();
        }
        while output.has_room_for_messages() && !self.has_copied_enough() && self.has_more() {
            if let Some(handle) = self.readable.pop_front() {
                match self.fill_from(handle, output) {
                    Filled::MayHaveMore => self.readable.push_back(handle),
                    Filled::Sleeps => {}
                    Filled::Holds => self.holding.push_back(handle),
                }
            }
            if self.listings.is_under_way() && output.has_room_for_messages() {
                self.listings.fill(output, &self.gate);
            }
        }
    }

    fn has_copied_enough(&mut self) -> bool {
        self.memory.made().is_some_and(|memory| memory.has_copied_enough())
    }

    /// The broker ends: moves what lies in the queues to `output`, whatever room it has. The
    /// queues bound it, and the time for which the connection lingers.
    pub(crate) fn fill_last(&mut self, output: &mut Output) {
        for handle in self.ports.iter().map(Port::handle).collect::<Vec<_>>() {
            while self.fill_some(handle, output, Room::ForAll) == Filled::MayHaveMore {}
        }
        if let Some(memory) = self.memory.made() {
            memory.move_lent(output);
        }
    }

    /// Whether `fill` would find something now.
    pub(crate) fn has_more(&self) -> bool {
        !self.readable.is_empty() || self.listings.is_under_way()
    }

    /// The descriptors that were on their way are there, or could not be sent.
    pub(crate) fn descriptors_done(&mut self) {
        self.descriptors_taken();
    }

    /// Closes all endpoints: they leave their groups, and their waiting sends end.
    pub(crate) fn close(&mut self, context: &mut Context<'_>) {
        for port in self.ports.iter() {
            *context.waiting_sends -= port.waiting_lanes();
        }
        self.ports.clear();
        self.readable.clear();
        self.holding.clear();
        self.listings.clear();
        self.memory = LazyMemory::None;
    }

    fn act(
        &mut self,
        frame: ClientFrame,
        arrived: &mut Arrived,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Result<(), End> {
        if self.greeting_until.is_some() {
            return match frame {
                ClientFrame::Hello(hello) => self.greet(&hello, output, context),
                ClientFrame::Goodbye(goodbye) => Err(End::Left(goodbye)),
                _ => Err(fault("the first frame is not HELLO")),
            };
        }
        match frame {
            ClientFrame::Hello(_) => return Err(fault("a second HELLO")),
            ClientFrame::Call { endpoint, serial, mut request } => {
                if let Err(failure) = self.permit(&mut request, context.shared) {
                    answer_call(endpoint, serial, Err(failure), output, context);
                    return Ok(());
                }
                let Shared { bus, ledger, .. } = &**context.shared;
                let user = (!self.gate.is_trusted()).then(|| context.account.uid());
                match self.listings.begin(endpoint, serial, &request, (bus, ledger), user) {
                    Some(Ok(())) => return Ok(()),
                    Some(Err(failure)) => {
                        answer_call(endpoint, serial, Err(failure), output, context);
                        return Ok(());
                    }
                    None => {}
                }
                let gated = self.gated_call(endpoint, serial, &request, output, context);
                let result = match gated {
                    Some(answer) => answer,
                    None => Some(self.call(endpoint, &request, output, context)),
                };
                if let Some(result) = result {
                    answer_call(endpoint, serial, result, output, context);
                }
            }
            ClientFrame::BadCall { endpoint, serial, problem, .. } => answer_call(
                endpoint,
                serial,
                Err(Box::new(Failure::from(&problem))),
                output,
                context,
            ),
            ClientFrame::Send(send) => return self.send(send, arrived, output, context),
            ClientFrame::Cancel(id) => {
                if let Some(port) = self.ports.get_mut(id.endpoint) {
                    port.cancel(id, output, context);
                }
            }
            ClientFrame::Resume { endpoint, lane } => {
                if let Some(port) = self.ports.get_mut(endpoint) {
                    port.resume(lane);
                }
            }
            ClientFrame::Flush => output.hurry(),
            ClientFrame::Credit { endpoint, messages, bytes } => {
                if let Some(port) = self.ports.get_mut(endpoint) {
                    let released = port.release(messages, bytes);
                    if released.map_err(|error| fault(error.to_string()))? {
                        self.set_readable(endpoint);
                    }
                }
            }
            ClientFrame::Watch { endpoint, serial, destination, attributes } => {
                let Shared { policy, bus, .. } = &**context.shared;
                if let Err(failure) = self.gate.check_send(policy, bus, destination) {
                    say(BrokerFrame::Error { endpoint, serial, failure }, output);
                    return Ok(());
                }
                match self.ports.get_mut(endpoint) {
                    Some(port) => {
                        let about = (destination, attributes);
                        port.watch(self.token, serial, about, output, context);
                    }
                    None => {
                        let failure = Box::new(no_such_port(endpoint));
                        say(BrokerFrame::Error { endpoint, serial, failure }, output);
                    }
                }
            }
            ClientFrame::Unwatch { endpoint, serial } => {
                self.listings.cancel(endpoint, serial, output);
                if let Some(port) = self.ports.get_mut(endpoint) {
                    port.unwatch(serial);
                }
            }
            ClientFrame::Release(holds) => {
                let known = self.memory.made().is_some_and(|memory| memory.release(&holds));
                if !known {
                    return Err(fault("RELEASE of what is not held"));
                }
            }
            ClientFrame::Fetch { hold } => {
                let memory = self.memory.made();
                if !memory.is_some_and(|memory| memory.fetch(hold, output)) {
                    return Err(fault("FETCH of what is not held"));
                }
            }
            ClientFrame::DescriptorsTaken => {
                if !self.descriptors_out {
                    return Err(fault("DESCRIPTORS_TAKEN, and none were sent"));
                }
                self.descriptors_taken();
            }
            ClientFrame::Rings(_) => {
                return Err(fault("a frame about rings, which the greeting has not switched on"));
            }
            ClientFrame::Goodbye(goodbye) => return Err(End::Left(goodbye)),
        }
        Ok(())
    }

    fn greet(
        &mut self,
        hello: &Hello,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Result<(), End> {
        let version = hello.common_version(&[VERSION]).ok_or_else(|| {
            End::Fault(Goodbye::new(
                GoodbyeCode::NoCommonVersion,
                format!("this broker speaks version {VERSION} only"),
            ))
        })?;
        let shared = context.shared;
        self.gate.check(&shared.policy, Action::Connect, None).map_err(|failure| {
            End::Denied(Goodbye::new(GoodbyeCode::PermissionDenied, failure.text))
        })?;
        self.knows_batches = hello.features.iter().any(|known| known == BATCHES_FEATURE);
        let endpoint = self.open_port(Handle::FIRST, context).map_err(|failure| {
            End::NoPlace(Goodbye::new(GoodbyeCode::LimitExceeded, failure.text))
        })?;
        self.greeting_until = None;
        if let Some(name) = &hello.program {
            context.client.set_name(name);
        }
        self.knows_rings =
            shared.config.rings && hello.features.iter().any(|known| known == RINGS_FEATURE);
        self.memory = LazyMemory::new(hello, self.credentials.uid, self.token, context);

        let mut features = Skills::features(hello);
        features.extend(self.knows_batches.then(|| BATCHES_FEATURE.to_owned()));
        features.extend(self.knows_rings.then(|| RINGS_FEATURE.to_owned()));
        let welcome = Welcome {
            version,
            features,
            incarnation: shared.incarnation,
            endpoint,
            limits: shared.bus.limits().clone().for_user(context.account.limits()),
        };
        say(BrokerFrame::Welcome(Box::new(welcome)), output);
        tracing::debug!(
            %endpoint,
            uid = self.credentials.uid,
            pid = self.credentials.pid,
            program = hello.program.as_deref(),
            "welcome"
        );
        Ok(())
    }

    /// Sends SENDs that came in a row together, as many of the first as can be, and gives the bytes of
    /// their frames. None if that is not two; then nothing was done, and these frames are to be acted
    /// on one by one.
    fn send_run(
        &mut self,
        unread: &[u8],
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Option<usize> {
        let Shared { policy, bus, .. } = &**context.shared;
        let ((handle, lane), group) = SendRun::begins(unread, ABOVE_TOGETHER)?;
        let may = self.greeting_until.is_none()
            && self.gate.check_send(policy, bus, Destination::Group(group)).is_ok();
        let port = self.ports.get_mut(handle).filter(|_| may)?;
        // The first send of a lane makes it.
        if !port.is_clear(lane)? {
            self.singly = FRAMES_A_LOOK;
            return None;
        }
        let mut most = u32::MAX;
        loop {
            let run = SendRun::gather(unread, ABOVE_TOGETHER, most)?;
            let (messages, length) = (run.batch.len(), run.length);
            match port.send_batch(run, output, context) {
                Ok(()) => return Some(length),
                Err(refused) if (2..messages).contains(&refused.fits()) => most = refused.fits(),
                Err(_) => {
                    self.singly = messages - 1;
                    return None;
                }
            }
        }
    }

    fn send(
        &mut self,
        send: SendFrame,
        arrived: &mut Arrived,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Result<(), End> {
        let id = send.head.id;
        let mut descriptors = match send.head.descriptors {
            0 => Vec::new(),
            count => {
                say(BrokerFrame::DescriptorsTaken, output);
                if std::mem::take(&mut arrived.lost) {
                    arrived.descriptors.clear();
                    let failure = Failure::new(
                        FailureCode::LimitExceeded,
                        "the broker has no room for more descriptors",
                    );
                    refuse(id, failure, output, context);
                    return Ok(());
                }
                if arrived.descriptors.len() != usize::from(count) {
                    return Err(fault(format!(
                        "a SEND with {count} descriptors, and {} came",
                        arrived.descriptors.len()
                    )));
                }
                std::mem::take(&mut arrived.descriptors)
            }
        };
        if descriptors.iter().any(|descriptor| context.shared.is_own_connection(descriptor)) {
            let failure = Failure::new(
                FailureCode::BadRequest,
                "a descriptor is a connection to this bus; connect again instead",
            );
            refuse(id, failure, output, context);
            return Ok(());
        }
        let Shared { policy, bus, .. } = &**context.shared;
        let denied = self.gate.check_send(policy, bus, send.head.destination).err();
        let payload = match lent_in(&send)? {
            None => {
                let uid = self.credentials.uid;
                self.large.payload(uid, send.payload, &context.shared.payloads)
            }
            Some(lent) => {
                let lent = match self.memory.get() {
                    Some(memory) => memory.lend(&lent, send.head.destination, &mut descriptors),
                    None => Err(memory::lends_nothing()),
                };
                match lent {
                    Ok(payload) => payload,
                    Err(failure) => {
                        refuse(id, *failure, output, context);
                        return Ok(());
                    }
                }
            }
        };
        let charge = match descriptors.len() {
            0 => None,
            count => match context.account.charge(Resource::Descriptors, count as u64) {
                Ok(charge) => Some(charge),
                Err(limit) => {
                    refuse(id, failure::of_limit(&limit), output, context);
                    return Ok(());
                }
            },
        };
        if charge.is_some() {
            context.shared.expect_orphans();
        }
        let Some(port) = self.ports.get_mut(id.endpoint) else {
            refuse(id, no_such_port(id.endpoint), output, context);
            return Ok(());
        };
        if let Some(failure) = &denied {
            let (sender, to) = (port.endpoint().id(), send.head.destination);
            bus.note_refusal(sender, self.credentials, to, &failure.text);
        }
        let draft = Draft {
            attributes: send.attributes,
            payload,
            deadline: send.head.deadline,
            descriptors,
            kind: kind_of(send.head.flags),
            charge,
        };
        port.send(self.token, &send.head, (draft, denied), output, context).map_err(|exceeded| {
            fault(format!("lane {} of endpoint {}: {exceeded}", id.lane, id.endpoint))
        })
    }

    /// A frame has come that its user had no bytes left for: nothing was kept but its head.
    pub(crate) fn refuse_frame(
        &mut self,
        passed: &PassedOver,
        arrived: &mut Arrived,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Result<(), End> {
        let failure = failure::of_limit(&passed.limit);
        let head = ClientFrame::peek(&passed.head).map_err(|error| bad_frame(&error))?;
        match head {
            Some(FrameHead::Send(head)) if self.greeting_until.is_none() => {
                if head.descriptors != 0 {
                    say(BrokerFrame::DescriptorsTaken, output);
                    *arrived = Arrived::default();
                }
                match self.ports.get_mut(head.id.endpoint) {
                    Some(port) => port.refuse_send(&head, failure, output, context),
                    None => refuse(head.id, failure, output, context),
                }
            }
            Some(FrameHead::Call { endpoint, serial }) if self.greeting_until.is_none() => {
                answer_call(endpoint, serial, Err(Box::new(failure)), output, context);
            }
            _ => return Err(refused(&passed.limit)),
        }
        Ok(())
    }

    fn open_port(
        &mut self,
        handle: Handle,
        context: &mut Context<'_>,
    ) -> Result<bus_core::EndpointId, Box<Failure>> {
        let endpoint = context
            .shared
            .bus
            .open_endpoint_for(self.credentials, context.account)
            .map_err(|error| failure::of_limit(&error))?;
        let id = endpoint.id();
        let waker = Signal::waker(context.inbox, self.token, Part::Queue(handle));
        let entry = EndpointEntry::new(context.shared, context.client, id);
        let times = context.inbox.reader_times(&context.shared.bus);
        self.ports.insert(Port::new(handle, endpoint, waker, entry, times, self.knows_batches));
        self.set_readable(handle);
        Ok(id)
    }

    fn set_readable(&mut self, handle: Handle) {
        if let Some(port) = self.ports.get_mut(handle)
            && port.wake()
        {
            self.readable.push_back(handle);
        }
    }

    fn descriptors_taken(&mut self) {
        self.descriptors_out = false;
        // The first of them goes on, and those behind it when their turn comes.
        self.readable.extend(self.holding.drain(..));
    }

    /// Takes a few messages of one endpoint.
    fn fill_from(&mut self, handle: Handle, output: &mut Output) -> Filled {
        self.fill_some(handle, output, Room::AsItHas)
    }

    fn fill_some(&mut self, handle: Handle, output: &mut Output, room: Room) -> Filled {
        let Some(port) = self.ports.get_mut(handle) else {
            return Filled::Sleeps;
        };
        for _ in 0..MESSAGES_A_TURN {
            if room == Room::AsItHas && !output.has_room_for_messages() {
                return Filled::MayHaveMore;
            }
            let delivery = port.next_delivery();
            // Nearly all are such.
            if let Some(Delivery::Message { message, missed: None }) = &delivery
                && let Some(group) = plain_group(message)
            {
                deliver_plain(handle, group, message, output);
                continue;
            }
            match delivery {
                Some(Delivery::Batch(batch)) if !self.knows_batches => {
                    for message in batch.messages() {
                        deliver_plain(handle, batch.group(), &message, output);
                    }
                }
                Some(Delivery::Batch(batch)) => {
                    let out = &mut self.descriptors_out;
                    if !deliver_batch(&mut self.memory, handle, &batch, out, output) {
                        if room == Room::ForAll {
                            put_batch(handle, &batch, output);
                            continue;
                        }
                        port.hold(Delivery::Batch(batch));
                        return Filled::Holds;
                    }
                    if room == Room::AsItHas
                        && self.memory.made().is_some_and(|memory| memory.has_copied_enough())
                    {
                        return Filled::MayHaveMore;
                    }
                }
                Some(delivery @ (Delivery::Message { .. } | Delivery::FromPeer { .. })) => {
                    let (message, missed, peer) = match &delivery {
                        Delivery::FromPeer { peer, message, missed } => {
                            (message, *missed, Some(*peer))
                        }
                        Delivery::Message { message, missed } => (message, *missed, None),
                        _ => continue,
                    };
                    let has_descriptors = !message.descriptors().is_empty();
                    if has_descriptors && self.descriptors_out {
                        if room == Room::ForAll {
                            deliver(
                                handle,
                                message,
                                How::WithoutDescriptors { missed, peer },
                                Way::Inline,
                                output,
                            );
                            continue;
                        }
                        port.hold(delivery);
                        return Filled::Holds;
                    }
                    let how = How::Queued { missed, peer };
                    let out = &mut self.descriptors_out;
                    if !deliver_by(&mut self.memory, handle, message, how, out, output) {
                        if room == Room::ForAll {
                            let how = match has_descriptors {
                                true => How::WithoutDescriptors { missed, peer },
                                false => how,
                            };
                            deliver(handle, message, how, Way::Inline, output);
                            continue;
                        }
                        port.hold(delivery);
                        return Filled::Holds;
                    }
                    if message.payload().is_apart()
                        && room == Room::AsItHas
                        && self.memory.made().is_some_and(|memory| memory.has_copied_enough())
                    {
                        return Filled::MayHaveMore;
                    }
                }
                Some(Delivery::Monitored { seen: Monitored::Message { message, to }, missed }) => {
                    let notice = Notice::Monitored(Box::new(Copied::new(&message, to)));
                    say(BrokerFrame::Notice { endpoint: handle, notice }, output);
                    // A copy, always: and with its message, so that nothing comes between the two.
                    deliver(handle, &message, How::Monitored { missed }, Way::Inline, output);
                }
                Some(Delivery::Retained { message }) => {
                    deliver(handle, &message, How::Retained, Way::Inline, output);
                }
                Some(other) => {
                    if let Some(notice) = notice_of(other) {
                        let endpoint = handle;
                        say(BrokerFrame::Notice { endpoint, notice }, output);
                    }
                }
                None if port.take_end() => {
                    let notice = Notice::ReceiveEnded;
                    say(BrokerFrame::Notice { endpoint: handle, notice }, output);
                }
                None if port.fall_asleep() => return Filled::Sleeps,
                None => {}
            }
        }
        Filled::MayHaveMore
    }
}

/// How much room there is for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// While the output has room for another one.
    AsItHas,
    /// For all that are queued: nobody will ask again.
    ForAll,
}

/// What is left of a port after it was asked for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filled {
    /// It was not its turn any longer, or the output is full.
    MayHaveMore,
    /// Nothing; its waker is in place, or it has ended.
    Sleeps,
    /// Its next message has descriptors and has to wait.
    Holds,
}

/// As what a message comes.
#[derive(Clone, Copy, Debug)]
enum How {
    /// In its place, which it takes until its credit comes.
    Queued {
        /// What was dropped just before it.
        missed: Option<Gap>,
        /// The peer endpoint through which it came.
        peer: Option<EndpointId>,
    },
    /// The same, marked as one whose descriptors are lost: they cannot wait for their turn.
    WithoutDescriptors {
        /// What was dropped just before it.
        missed: Option<Gap>,
        /// The peer endpoint through which it came.
        peer: Option<EndpointId>,
    },
    /// As a part of what its group retained, beside the queue's places.
    Retained,
    /// As a monitor's copy.
    Monitored {
        /// What was missed just before it.
        missed: Option<Gap>,
    },
}

/// Delivers a message of the queue as its payload is to go. False if it has to wait until the client
/// has taken the descriptors that are under way.
fn deliver_by(
    memory: &mut LazyMemory,
    handle: Handle,
    message: &Arc<Message>,
    how: How,
    descriptors_out: &mut bool,
    output: &mut Output,
) -> bool {
    let is_apart = message.payload().is_apart();
    let way = match if is_apart { memory.get() } else { None } {
        Some(memory) => {
            // A peer endpoint's messages are for its owner alone.
            let company = match how {
                How::Queued { peer: None, .. } => Company::All,
                _ => Company::Alone,
            };
            memory.way(message, company, &mut Under { way: descriptors_out, output })
        }
        None => Way::Inline,
    };
    if matches!(way, Way::Waits) {
        return false;
    }
    *descriptors_out |= !message.descriptors().is_empty() || matches!(way, Way::File(..));
    deliver(handle, message, how, way, output);
    true
}

/// The group that a message went to of which nothing more is to be said: it is short, all of it is
/// in its frame, and it brings no descriptors.
#[inline]
fn plain_group(message: &Message) -> Option<GroupId> {
    let payload = message.payload();
    let plain = message.descriptors().is_empty()
        && !payload.is_apart()
        && !payload.was_lent()
        && payload.len() <= SHARE_BYTES;
    match message.destination() {
        Destination::Group(group) if plain => Some(group),
        _ => None,
    }
}

/// As [`deliver`] does with a message to a group in whose frame nothing is but itself.
#[inline]
fn deliver_plain(handle: Handle, group: GroupId, message: &Message, output: &mut Output) {
    let head = MessageHead {
        sequence: message.sequence(),
        sender: message.sender(),
        sender_serial: message.sender_serial(),
        commit_time: message.commit_time(),
        deadline: message.deadline(),
        credentials: message.credentials(),
        ..MessageHead::to_group(handle, group)
    };
    encode_message(output.frames(), &head, message.attributes(), message.payload())
        .expect("it is short");
}

/// Delivers messages that took their places together, where they lie for all recipients, or in the
/// stream. False if they have to wait until the client has taken the descriptors that are under way.
fn deliver_batch(
    memory: &mut LazyMemory,
    handle: Handle,
    batch: &Batch,
    descriptors_out: &mut bool,
    output: &mut Output,
) -> bool {
    let is_apart = batch.payload().is_some_and(Payload::is_apart);
    let way = match if is_apart { memory.get() } else { None } {
        Some(memory) => memory.way_of_batch(batch, &mut Under { way: descriptors_out, output }),
        None => Way::Inline,
    };
    match way {
        Way::Waits => return false,
        Way::Apart(placed) => encode_batch_apart(output.frames(), handle, batch, &placed),
        Way::Inline | Way::File(..) => put_batch(handle, batch, output),
    }
    true
}

/// Puts such messages into the stream: all recipients get the same bytes.
fn put_batch(handle: Handle, batch: &Batch, output: &mut Output) {
    let entries = batch.entries();
    encode_batch_head(output.frames(), handle, batch);
    if entries.len() > SHARE_BYTES {
        output.push_shared(entries.clone());
    } else {
        output.frames().extend_from_slice(entries);
    }
}

fn deliver(handle: Handle, message: &Arc<Message>, how: How, way: Way, output: &mut Output) {
    let descriptors_lost = matches!(how, How::WithoutDescriptors { .. });
    let own = if descriptors_lost { 0 } else { message.descriptors().len() };
    let count = own + usize::from(matches!(way, Way::File(..)));
    let descriptors =
        u8::try_from(count).expect("the bus takes no message with more than 16 descriptors");
    let (missed, peer) = match how {
        How::Queued { missed, peer } | How::WithoutDescriptors { missed, peer } => (missed, peer),
        How::Monitored { missed } => (missed, None),
        How::Retained => (None, None),
    };
    let is_copy = matches!(how, How::Monitored { .. });
    let head = MessageHead {
        endpoint: handle,
        sequence: message.sequence(),
        group: match message.destination() {
            Destination::Group(group) => Some(group),
            _ => None,
        },
        name: match message.destination() {
            Destination::Name(name) if !is_copy => Some(name),
            _ => None,
        },
        sender: message.sender(),
        sender_serial: message.sender_serial(),
        commit_time: message.commit_time(),
        deadline: message.deadline(),
        credentials: message.credentials(),
        missed,
        retained: matches!(how, How::Retained),
        apart: !matches!(way, Way::Inline | Way::Waits),
        lent: message.payload().was_lent(),
        descriptors,
        descriptors_lost,
        role: if is_copy { Role::Plain } else { role_of(message) },
        peer,
    };
    let attributes = message.attributes();
    let reference = match &way {
        Way::Inline | Way::Waits => None,
        Way::Apart(placed) | Way::File(placed, _) => Some(placed.encode()),
    };
    let payload = match &reference {
        Some(reference) => &reference[..],
        None => message.payload(),
    };
    let fits = "the bus takes no message that is longer than a frame";
    if descriptors == 0 && payload.len() <= SHARE_BYTES {
        encode_message(output.frames(), &head, attributes, payload).expect(fits);
        return;
    }
    if descriptors == 0 {
        encode_message_head(output.frames(), &head, attributes, payload.len()).expect(fits);
    } else {
        let (mut with, mut without) = (BytesMut::new(), BytesMut::new());
        encode_message_head(&mut with, &head, attributes, payload.len()).expect(fits);
        let lost = MessageHead { descriptors: 0, descriptors_lost: true, ..head };
        encode_message_head(&mut without, &lost, attributes, payload.len()).expect(fits);
        let carried = match way {
            Way::File(_, files) => Carried::Files(files),
            _ => Carried::Message(Arc::clone(message)),
        };
        output.push_with_descriptors(with.freeze(), without.freeze(), carried);
    }
    if payload.len() > SHARE_BYTES {
        output.push_shared(message.payload().as_bytes().clone());
    } else {
        output.frames().extend_from_slice(payload);
    }
}

/// What a SEND refers to, if its payload lies apart.
fn lent_in(send: &SendFrame) -> Result<Option<Lent>, End> {
    let apart = send.head.flags.contains(SendFlags::APART);
    apart.then(|| Lent::decode(&send.payload).map_err(|error| bad_frame(&error))).transpose()
}

/// What a message asks for, as its SEND says.
fn kind_of(flags: SendFlags) -> Kind {
    if flags.contains(SendFlags::REQUEST) {
        Kind::Request { repeatable: flags.contains(SendFlags::REPEATABLE) }
    } else if flags.contains(SendFlags::REFUSAL) {
        Kind::Refusal
    } else {
        Kind::Message
    }
}

/// What a message is to its receiver, as its MESSAGE says.
fn role_of(message: &Message) -> Role {
    if let Some(request) = message.answers() {
        Role::Reply { request, refusal: message.is_refusal() }
    } else if message.is_request() {
        Role::Request { first: message.repeats() }
    } else {
        Role::Plain
    }
}

/// What an endpoint is told beside messages.
fn notice_of(delivery: Delivery) -> Option<Notice> {
    match delivery {
        Delivery::Gap { group, gap } => Some(Notice::Gap { group_id: group, gap }),
        Delivery::View { change, missed } => {
            Some(Notice::View(Box::new(ViewNotice::new(&change, missed))))
        }
        Delivery::Monitored { seen, missed } => monitoring::notice_of(seen, missed),
        Delivery::Flags { group, flags, sequence } => {
            Some(Notice::FlagsChanged { group_id: group, flags, sequence })
        }
        Delivery::MonitorGap { gap } => Some(Notice::MonitorGap { gap }),
        Delivery::Current { group, sequence, messages } => {
            Some(Notice::Current { group_id: group, sequence, messages })
        }
        Delivery::ViewsLost { group, gap } => Some(Notice::ViewsLost { group_id: group, gap }),
        other @ (Delivery::Name(_) | Delivery::Owner { .. } | Delivery::OwnersLost { .. }) => {
            names::notice_of(&other)
        }
        Delivery::Evicted(eviction) => Some(end_of(*eviction)),
        Delivery::Candidate(candidate) => Some(Notice::Candidate {
            group_id: candidate.group,
            group: candidate.name,
            sequence: candidate.sequence,
            candidate: candidate.endpoint,
            uid: candidate.credentials.uid,
            pid: candidate.credentials.pid,
            peer: candidate.peer,
            flags: candidate.wishes,
        }),
        Delivery::Outcome(outcome) => Some(Notice::Outcome {
            request: outcome.request,
            sequence: outcome.sequence,
            why: outcome.why.into(),
        }),
        Delivery::RequestEnded(ended) => {
            Some(Notice::RequestEnded { request: ended.request, why: ended.why.into() })
        }
        Delivery::PeerGap { group, peer, gap } => {
            Some(Notice::PeerGap { group_id: group, peer, gap })
        }
        Delivery::Peer { group, peer, change: PeerChange::Stalled, sequence } => {
            Some(Notice::PeerStalled { group_id: group, peer, sequence })
        }
        Delivery::Peer { peer, change: PeerChange::Closed, sequence, .. } => {
            Some(Notice::PeerClosed { peer, sequence })
        }
        _ => None,
    }
}

/// What a member is told that was put out of a group.
fn end_of(eviction: Eviction) -> Notice {
    let (group_id, sequence) = (eviction.group, eviction.sequence);
    match eviction.cause {
        EvictionCause::Expelled(text) => Notice::Expelled { group_id, sequence, text: text.into() },
        EvictionCause::PeerClosed => {
            let text = "the owner has closed the connection".to_owned();
            Notice::Expelled { group_id, sequence, text }
        }
        cause => Notice::Evicted {
            group_id,
            sequence,
            reason: match cause {
                EvictionCause::Full => EvictionReason::Full,
                _ => EvictionReason::Stalled,
            },
            stalled: eviction.stalled,
            queued_messages: eviction.queued_messages,
            back_off: eviction.back_off,
        },
    }
}

/// Appends a frame.
pub(crate) fn say(frame: BrokerFrame, output: &mut Output) {
    if let Err(error) = frame.encode(output.frames()) {
        // Texts are clipped and pages bounded, so every answer fits.
        tracing::error!(%error, "a frame could not be written");
        debug_assert!(false, "{error}");
    }
}

fn answer_call(
    endpoint: Handle,
    serial: Serial,
    result: Result<bus_core::wire::Response, Box<Failure>>,
    output: &mut Output,
    context: &Context<'_>,
) {
    let frame = match result {
        Err(_) if context.shared.is_stopping() => return,
        Ok(response) => BrokerFrame::Done { endpoint, serial, response },
        Err(failure) => BrokerFrame::Error { endpoint, serial, failure },
    };
    say(frame, output);
}

/// Answers a send that has reached nobody.
///
/// Nothing that fails is answered once the broker is told to end: connections go one by one, and
/// what a client was told of a group that went with another one would be true and mislead it.
/// GOODBYE is next, and says why. Whoever has seen such an end has seen that the broker stops:
/// the bus's locks and the inboxes' order the two.
fn refuse(id: SendId, failure: Failure, output: &mut Output, context: &Context<'_>) {
    if context.shared.is_stopping() {
        return;
    }
    context.inbox.counters.refused.add(1);
    let failure = Box::new(failure);
    say(BrokerFrame::Refused { id, failure }, output);
}

fn no_such_port(handle: Handle) -> Failure {
    Failure::new(FailureCode::NoSuchEndpoint, format!("this connection has no endpoint {handle}"))
}

fn bad_frame(error: &bus_core::wire::WireError) -> End {
    End::Fault(Goodbye::from(error))
}

fn fault(text: impl Into<String>) -> End {
    End::Fault(Goodbye::new(GoodbyeCode::Protocol, text))
}

/// Payloads above this go to the socket from where they lie; below it a copy is cheaper than the
/// extra slice and its reference count.
const SHARE_BYTES: usize = 4 << 10;

/// How long one connection's frames are acted on before the others have their turn. A read holds a
/// thousand small frames, and what one of them costs depends on how many it is for.
const TURN: Duration = Duration::from_millis(1);
/// How often the clock is looked at meanwhile.
const FRAMES_A_LOOK: u32 = 16;
/// Messages that one endpoint of a connection gives before the next one has its turn.
const MESSAGES_A_TURN: usize = 64;

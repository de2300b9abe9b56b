//! CALLs: what is asked for outside the order of sends, answered at once.

use std::time::Duration;

use bus_core::{
    GroupId, GroupOptions, JoinOptions,
    wire::{
        Failure, FailureCode, Handle, Request, Response, Stats, Status, VERSION, inside::QueueTimes,
    },
};

use super::memory::Memory;
use super::{Session, Under, failure, inside, listings::group_info, no_such_port, port::Port};
use crate::{broker::Shared, connection::Context, log_writer, output::Output, policy::Reloaded};

impl Session {
    pub(super) fn call(
        &mut self,
        handle: Handle,
        request: &Request,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Result<Response, Box<Failure>> {
        let shared = context.shared;
        if Memory::is_asked(request)
            && let Some(memory) = self.memory.get()
        {
            let mut under = Under { way: &mut self.descriptors_out, output: &mut *output };
            if let Some(answer) = memory.call(request, &mut under) {
                return answer;
            }
        }
        if let Some(answer) = self.call_of_names(handle, request, shared) {
            return answer;
        }
        match request {
            Request::Ping => Ok(Response::Pong),
            Request::Status => {
                let mut status = status(shared);
                status.limits = status.limits.for_user(context.account.limits());
                Ok(Response::Status(Box::new(status)))
            }
            Request::Stats => Ok(Response::Stats(Box::new(stats(shared)))),
            Request::Reload => match shared.reload() {
                Ok(Reloaded { rules, pending }) => Ok(Response::Reloaded { rules, pending }),
                Err(error) => {
                    let failure = Failure::new(FailureCode::BadRequest, error.to_string());
                    Err(Box::new(failure))
                }
            },
            Request::Look(look) => {
                inside::look(look, shared).map(|seen| Response::Seen(Box::new(seen)))
            }
            Request::OpenEndpoint => self.open_endpoint(handle, context),
            Request::CloseEndpoint => self.close_endpoint(handle, output, context),
            Request::ShutdownReceive => {
                Ok(Response::Shut { sequence: self.port(handle)?.shutdown_receive() })
            }
            Request::Create { group, retain, stall_ms } => {
                let stall = stall_ms.map(|ms| Duration::from_millis(ms.into()));
                let options = GroupOptions { retain: *retain, stall };
                let created = self.port(handle)?.endpoint().create_group_with(group, options);
                let (group_id, sequence) = created.map_err(|e| failure::of_create(&e))?;
                Ok(Response::Created { group_id, sequence })
            }
            Request::Join { group, flags, create, filter, retain, state } => {
                let (flags, create, filter) = (*flags, *create, filter.clone());
                let options = JoinOptions { flags, create, filter, retain: *retain, state: *state };
                let joined = self.port(handle)?.endpoint().join(group, options);
                let joined = joined.map_err(|e| failure::of_join(&e))?;
                Ok(Response::Joined {
                    group_id: joined.group,
                    sequence: joined.sequence,
                    created: joined.created,
                    members: joined.members,
                })
            }
            Request::SetFilter { group_id, filter } => {
                let set = self.port(handle)?.endpoint().set_filter(*group_id, filter.clone());
                let sequence = set.map_err(|e| failure::of_filter_change(&e))?;
                Ok(Response::FilterSet { sequence })
            }
            Request::Leave { group_id } => {
                let left = self.port(handle)?.endpoint().leave(*group_id);
                let sequence = left.map_err(|e| failure::of_leave(&e))?;
                Ok(Response::Left { sequence })
            }
            Request::Monitor { group } => {
                let monitoring = self.port(handle)?.endpoint().monitor(group.clone());
                let sequence = monitoring.map_err(|e| failure::of_monitor(&e))?;
                self.note_monitor(handle, Some(group.clone()));
                Ok(Response::Monitoring { sequence })
            }
            Request::Unmonitor => {
                let ended = self.port(handle)?.endpoint().unmonitor();
                self.note_monitor(handle, None);
                let sequence = ended.ok_or_else(|| {
                    Failure::new(FailureCode::NotWatching, "the endpoint is no monitor")
                })?;
                Ok(Response::Unmonitored { sequence })
            }
            Request::WatchGroup { group, interest, create } => {
                let watching = self.port(handle)?.endpoint().watch_group(group, *interest, *create);
                let watching = watching.map_err(|e| failure::of_join(&e))?;
                Ok(Response::Watching {
                    group_id: watching.group,
                    sequence: watching.sequence,
                    members: watching.members,
                })
            }
            Request::UnwatchGroup { group_id } => {
                let ended = self.port(handle)?.endpoint().unwatch_group(*group_id);
                let sequence = ended.ok_or_else(|| {
                    let text = format!("the endpoint does not watch group {group_id}");
                    Failure::new(FailureCode::NotWatching, text)
                })?;
                Ok(Response::Unwatched { sequence })
            }
            Request::CancelRequest { request } => {
                let ended = self.port(handle)?.endpoint().cancel_request(*request);
                Ok(Response::RequestEnded { ended })
            }
            Request::DeclineRequest { request } => {
                let ended = self.port(handle)?.endpoint().decline_request(*request);
                Ok(Response::RequestEnded { ended })
            }
            Request::FindGroup { group } => match shared.bus.find_group(group) {
                Some(info) => Ok(Response::Group(group_info(info))),
                None => {
                    let text = format!("there is no group {group}");
                    Err(Box::new(Failure::new(FailureCode::NoSuchGroup, text)))
                }
            },
            _ => Err(Box::new(Failure::new(
                FailureCode::Unsupported,
                "this broker does not know the operation",
            ))),
        }
    }

    fn open_endpoint(
        &mut self,
        handle: Handle,
        context: &mut Context<'_>,
    ) -> Result<Response, Box<Failure>> {
        if self.ports.contains(handle) {
            let text = format!("this connection has an endpoint {handle} already");
            return Err(Box::new(Failure::new(FailureCode::BadRequest, text)));
        }
        let most = context.shared.bus.limits().endpoints_per_connection;
        if self.ports.len() >= usize::from(most) {
            let text = format!("this connection has {most} endpoints already");
            let failure = Failure::new(FailureCode::LimitExceeded, text);
            return Err(Box::new(failure.with_limit("endpoints_per_connection", most.into())));
        }
        let endpoint = self.open_port(handle, context)?;
        Ok(Response::Opened { endpoint })
    }

    fn close_endpoint(
        &mut self,
        handle: Handle,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Result<Response, Box<Failure>> {
        let mut port = self.ports.remove(handle).ok_or_else(|| Box::new(no_such_port(handle)))?;
        port.cancel_sends(output, context);
        port.cancel_watches(output);
        port.cancel_joins(output);
        self.listings.cancel_all(handle, output);
        self.note_monitor(handle, None);
        self.readable.retain(|readable| *readable != handle);
        self.holding.retain(|holding| *holding != handle);
        Ok(Response::Closed)
    }

    pub(super) fn port(&mut self, handle: Handle) -> Result<&mut Port, Box<Failure>> {
        match self.ports.get_mut(handle) {
            Some(port) => Ok(port),
            None => Err(Box::new(no_such_port(handle))),
        }
    }
}

fn status(shared: &Shared) -> Status {
    let address = shared.address.as_deref();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: VERSION,
        address: address.map(|path| path.to_string_lossy().into_owned()),
        incarnation: shared.incarnation,
        pid: std::process::id(),
        uptime_seconds: shared.started.elapsed().as_secs(),
        limits: shared.bus.limits().clone(),
    }
}

/// What the broker and its bus count.
pub(crate) fn stats(shared: &Shared) -> Stats {
    let bus = shared.bus.stats();
    let counters = shared.counters();
    Stats {
        waiting_sends: bus.waiting_sends as u64,
        open_requests: bus.open_requests,
        endpoints: bus.endpoints as u64,
        groups: bus.groups as u64,
        connections: shared.connection_count() as u64,
        names: bus.names as u64,
        messages: bus.messages,
        message_bytes: bus.bytes,
        deliveries: bus.deliveries,
        dropped: bus.dropped,
        refused: counters.refused,
        protocol_errors: counters.protocol_errors,
        bytes_read: counters.bytes_read,
        bytes_written: counters.bytes_written,
        connections_refused: counters.connections_refused,
        memory_given_back: counters.reliefs,
        log_lines_suppressed: shared.log_limit.suppressed(),
        log_lines_lost: log_writer::lost(),
        uptime_us: u64::try_from(shared.started.elapsed().as_micros()).unwrap_or(u64::MAX),
        time_in_queue: QueueTimes::from(&shared.bus.time_in_queues()),
    }
}

pub(super) fn no_such_group(group: GroupId) -> Failure {
    Failure::new(FailureCode::NoSuchGroup, format!("there is no group {group}; it may have ended"))
}

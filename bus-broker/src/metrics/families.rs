//! Which metrics there are: the broker's own, those of groups, of endpoints, of ingresses.
//!
//! Invariant: the number of series is bounded by the configuration, whatever clients do. What is not
//! listed is counted in `unisono_unlisted`. Groups with the most messages are listed, and endpoints
//! that others wait for, or have waited for the longest: those that one is paged about.

use std::cmp::Reverse;

use bus_core::wire::inside::{GroupTraffic, QueueTimes};

use super::text::{Text, Type};
use crate::broker::Shared;
use crate::session::inside::{all_endpoints, all_groups, endpoint};
use crate::session::stats;

/// The text that a scraper gets.
pub(super) fn text(shared: &Shared, most_groups: usize, most_endpoints: usize) -> String {
    let mut text = Text::default();
    let incarnation = shared.incarnation.to_string();
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("incarnation", &incarnation)];
    text.family("unisono_broker", Type::Info, "", "What broker this is.").sample(&labels, 1);
    let stats = stats(shared);
    text.family("unisono_uptime_seconds", Type::Gauge, "seconds", "Since the broker's start.")
        .seconds(&[], stats.uptime_us);
    for (name, help, value) in [
        ("unisono_connections", "Connections now.", stats.connections),
        ("unisono_endpoints", "Endpoints now.", stats.endpoints),
        ("unisono_groups", "Groups now.", stats.groups),
        ("unisono_names", "Well-known names that are claimed or watched now.", stats.names),
        ("unisono_waiting_sends", "Sends that wait for room now.", stats.waiting_sends),
        ("unisono_open_requests", "Requests without an outcome now.", stats.open_requests),
    ] {
        text.gauge(name, help, value);
    }
    for (name, unit, help, value) in [
        ("unisono_messages", "", "Messages committed.", stats.messages),
        ("unisono_message_bytes", "bytes", "Bytes of these, each once.", stats.message_bytes),
        ("unisono_deliveries", "", "Places that they took in queues.", stats.deliveries),
        ("unisono_dropped", "", "Deliveries that members without room missed.", stats.dropped),
        ("unisono_refused_sends", "", "Sends refused.", stats.refused),
        ("unisono_protocol_errors", "", "Peers that broke the protocol.", stats.protocol_errors),
        ("unisono_read_bytes", "bytes", "Bytes read from connections.", stats.bytes_read),
        ("unisono_written_bytes", "bytes", "Bytes written to connections.", stats.bytes_written),
        (
            "unisono_refused_connections",
            "",
            "Connections for which there was no place.",
            stats.connections_refused,
        ),
        (
            "unisono_suppressed_log_lines",
            "",
            "Lines not logged, because many were like them.",
            stats.log_lines_suppressed,
        ),
        (
            "unisono_lost_log_lines",
            "",
            "Lines not written, because nobody took them.",
            stats.log_lines_lost,
        ),
    ] {
        text.counter(name, unit, help, value);
    }
    let help = "From a message's commit until the application has taken it.";
    let times = &stats.time_in_queue;
    text.family("unisono_queue_seconds", Type::Histogram, "seconds", help).histogram(
        &QueueTimes::bounds_us(),
        &times.counts,
        times.total_us,
    );
    let groups_left = groups(&mut text, shared, most_groups);
    let endpoints_left = endpoints(&mut text, shared, most_endpoints);
    ingresses(&mut text, shared);
    let mut left = text.family("unisono_unlisted", Type::Gauge, "", "What is not listed.");
    left.sample(&[("kind", "groups")], groups_left as u64);
    left.sample(&[("kind", "endpoints")], endpoints_left as u64);
    text.end()
}

fn groups(text: &mut Text, shared: &Shared, most: usize) -> usize {
    let mut groups = all_groups(shared);
    let left = groups.len().saturating_sub(most);
    if left > 0 {
        groups.sort_by_key(|group| (Reverse(group.messages), group.group_id));
        groups.truncate(most);
        groups.sort_by(|one, other| one.group.cmp(&other.group));
    }
    let mut family = |name: &str, kind, unit: &str, help: &str, of: fn(&GroupTraffic) -> u64| {
        let mut family = text.family(name, kind, unit, help);
        for group in &groups {
            family.sample(&[("group", group.group.as_str())], of(group));
        }
    };
    use Type::{Counter, Gauge};
    family("unisono_group_members", Gauge, "", "Members now.", |g| g.members.into());
    family("unisono_group_messages", Counter, "", "Messages sent to it.", |g| g.messages);
    family("unisono_group_bytes", Counter, "bytes", "Bytes of these, each once.", |g| g.bytes);
    family("unisono_group_deliveries", Counter, "", "Places in queues.", |g| g.deliveries);
    family("unisono_group_dropped", Counter, "", "Deliveries missed.", |g| g.dropped);
    left
}

fn endpoints(text: &mut Text, shared: &Shared, most: usize) -> usize {
    let mut all = all_endpoints(shared);
    let left = all.len().saturating_sub(most);
    if left > 0 {
        let rank = |known: &bus_core::EndpointTraffic| {
            let traffic = known.received.0 + known.sent_messages;
            Reverse((known.blocks, known.blocked_time, known.queued.0, traffic, Reverse(known.id)))
        };
        all.sort_by_cached_key(rank);
        all.truncate(most);
        all.sort_by_key(|known| known.id);
    }
    let all: Vec<_> = all.into_iter().map(|known| endpoint(known, shared)).collect();
    let labels: Vec<_> = all
        .iter()
        .map(|known| {
            let of = &known.of;
            let program = of.program.clone().unwrap_or_default();
            (known.endpoint.to_string(), of.uid.to_string(), of.pid.to_string(), program)
        })
        .collect();
    type Value = fn(&bus_core::wire::inside::EndpointTraffic) -> u64;
    let families: [(&str, Type, &str, &str, Value); 14] = [
        ("queued_messages", Type::Gauge, "", "In its queue.", |e| e.queued_messages),
        ("queued_bytes", Type::Gauge, "bytes", "Bytes in its queue.", |e| e.queued_bytes),
        ("capacity_messages", Type::Gauge, "", "What its queue holds.", |e| e.capacity),
        ("blocks", Type::Gauge, "", "Sends that wait for it now.", |e| e.blocks),
        ("blocked_sends", Type::Counter, "", "Sends that waited for it.", |e| e.blocked_sends),
        ("blocked_seconds", Type::Counter, "seconds", "How long these did.", |e| e.blocked_us),
        ("received_messages", Type::Counter, "", "Put into its queue.", |e| e.received_messages),
        ("received_bytes", Type::Counter, "bytes", "Bytes of these.", |e| e.received_bytes),
        ("sent_messages", Type::Counter, "", "Messages sent.", |e| e.sent_messages),
        ("sent_bytes", Type::Counter, "bytes", "Bytes of these.", |e| e.sent_bytes),
        ("refused_sends", Type::Counter, "", "Sends of its refused.", |e| e.refused),
        ("waits", Type::Counter, "", "Sends of its that waited.", |e| e.waits),
        ("waited_seconds", Type::Counter, "seconds", "How long these did.", |e| e.waited_us),
        ("dropped", Type::Counter, "", "Messages of groups missed.", |e| e.dropped),
    ];
    for (name, kind, unit, help, value) in families {
        let name = format!("unisono_endpoint_{name}");
        let mut family = text.family(&name, kind, unit, help);
        for (known, (id, uid, pid, program)) in all.iter().zip(&labels) {
            let labels =
                [("endpoint", id.as_str()), ("uid", uid), ("pid", pid), ("program", program)];
            match unit {
                "seconds" => family.seconds(&labels, value(known)),
                _ => family.sample(&labels, value(known)),
            }
        }
    }
    left
}

fn ingresses(text: &mut Text, shared: &Shared) {
    let all: Vec<_> = shared.ingresses().iter().map(|ingress| ingress.traffic()).collect();
    type Value = fn(&bus_core::wire::inside::IngressTraffic) -> u64;
    let families: [(&str, Type, &str, &str, Value); 7] = [
        ("streams", Type::Gauge, "", "Streams now.", |i| i.streams),
        ("accepted", Type::Counter, "", "Streams accepted.", |i| i.accepted),
        ("refused", Type::Counter, "", "Streams refused.", |i| i.refused),
        ("failed", Type::Counter, "", "Streams that ended with an error.", |i| i.failed),
        ("messages", Type::Counter, "", "Messages that came in.", |i| i.messages),
        ("bytes", Type::Counter, "bytes", "Bytes of these.", |i| i.bytes),
        ("replies", Type::Counter, "", "Replies that went out.", |i| i.replies),
    ];
    if all.is_empty() {
        return;
    }
    for (name, kind, unit, help, value) in families {
        let name = format!("unisono_ingress_{name}");
        let mut family = text.family(&name, kind, unit, help);
        for ingress in &all {
            let labels = [("ingress", ingress.ingress.as_str()), ("feeds", ingress.feeds.as_str())];
            family.sample(&labels, value(ingress));
        }
    }
}

//! Bytes that come slowly, and bytes that lie.

use std::io::Write as _;
use std::time::Instant;

use bus_core::wire::{ClientFrame, Handle, MAGIC, Request};
use bytes::BytesMut;

use super::Field;
use crate::raw::{RawClient, id, send_frame};

/// Many connections, each of which brings a byte now and then, of a greeting or a frame.
pub(super) fn slow(field: &mut Field<'_>) -> String {
    let Field { broker, plan, random } = field;
    let began = Instant::now();
    let mut frame = BytesMut::new();
    let ping = ClientFrame::Call {
        endpoint: Handle::FIRST,
        serial: bus_core::wire::Serial::FIRST,
        request: Request::Ping,
    };
    ping.encode(&mut frame).unwrap();
    let mut clients: Vec<(RawClient, Vec<u8>, usize)> = (0..200)
        .map(|number| match number % 2 {
            0 => (RawClient::silent(broker.socket()), MAGIC.to_vec(), 0),
            _ => (broker.raw(), frame.to_vec(), 0),
        })
        .collect();
    let (mut bytes, mut frames) = (0_u64, 0_u64);
    while began.elapsed() < plan.each {
        let at = random.below(clients.len());
        let (client, whole, written) = &mut clients[at];
        if *written < whole.len() {
            client.try_write(&whole[*written..=*written]);
            *written += 1;
            bytes += 1;
        } else if whole.len() > MAGIC.len() {
            client.ping();
            *written = 0;
            frames += 1;
        }
    }
    for (client, whole, written) in &mut clients {
        if whole.len() > MAGIC.len() && *written > 0 {
            client.try_write(&whole[*written..]);
            client.ping();
        }
    }
    format!("{bytes} bytes one by one on 200 connections, {frames} frames came whole")
}

/// Frames whose lengths are lies: of the frame, of what is in it, of what CBOR says follows.
pub(super) fn lies(field: &mut Field<'_>) -> String {
    let Field { broker, plan, random } = field;
    let began = Instant::now();
    let (mut told, mut ended) = (0_u64, 0_u64);
    let mut bystander = broker.raw();
    let group = bystander.join("lies");
    while began.elapsed() < plan.each {
        let mut client = broker.raw();
        let serial = client.next_serial();
        let mut bytes = BytesMut::new();
        match random.below(3) {
            0 => {
                let to = bus_core::Destination::Endpoint(client.endpoint());
                let payload = random.bytes(random.clone().below(300));
                let frame = send_frame(id(serial), to, &payload);
                ClientFrame::Send(frame).encode(&mut bytes).unwrap();
            }
            1 => {
                let request = Request::SetFilter {
                    group_id: group,
                    filter: Some("key^=a && field.b=c".parse().unwrap()),
                };
                let call = ClientFrame::Call { endpoint: Handle::FIRST, serial, request };
                call.encode(&mut bytes).unwrap();
            }
            _ => {
                let (endpoint, messages) = (Handle::FIRST, 1 << random.below(32));
                let credit = ClientFrame::Credit { endpoint, messages, bytes: random.draw() };
                credit.encode(&mut bytes).unwrap();
            }
        }
        // Any byte that may be a length: those of the header, and those of the body.
        for _ in 0..=random.below(3) {
            let at = match random.below(2) {
                0 => random.below(4),
                _ => random.below(bytes.len()),
            };
            bytes[at] = random.bytes(1)[0];
        }
        client.try_write(&bytes);
        told += 1;
        // It may wait for the rest of a long frame: then that never comes.
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        if client.goodbye().is_some() {
            ended += 1;
        }
        let _ = client.stream.flush();
    }
    bystander.ping();
    format!("{told} lies, {ended} of them were told what was wrong")
}

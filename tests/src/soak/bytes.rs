//! Bytes that come slowly, and bytes that lie.

use std::time::Instant;

use bus_core::wire::{ClientFrame, GoodbyeCode, Handle, MAGIC, Request};
use bytes::BytesMut;

use super::{Fault, Field};
use crate::fuzz;
use crate::raw::RawClient;

/// Many connections, each of which brings a byte now and then, of a greeting or a frame.
pub(super) fn slow(field: &mut Field<'_>) -> String {
    let Field { broker, plan, random, faults, .. } = field;
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
    let began = Instant::now();
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
    let (message, about, program) = ("closed", "the greeting did not come in time", Some("soak"));
    let fault = Fault { what: "slow greetings", message, about, program, each: false };
    faults.injected(fault, 100);
    format!("{bytes} bytes one by one on 200 connections, {frames} frames came whole")
}

/// Frames that lie about every length: each byte of each frame that the protocol page shows, as that
/// of the frame, of what is in it, of what CBOR says follows, is made to say more and less.
pub(super) fn lies(field: &mut Field<'_>) -> String {
    let Field { broker, plan, random, faults, .. } = field;
    let began = Instant::now();
    let mut bystander = broker.raw();
    bystander.join("lies");
    let before = bystander.stats().protocol_errors;
    let frames = fuzz::frames("client");
    let bytes = frames.iter().map(Vec::len).sum::<usize>();
    // In an order that a short time, too, takes from everywhere.
    let mut at = random.below(bytes * LIES);
    let (mut told, mut ended, mut quiet) = (0, 0_u64, 0);
    while told < bytes * LIES && (told == 0 || began.elapsed() < plan.each) {
        at = (at + STRIDE) % (bytes * LIES);
        told += 1;
        let (mut place, lie) = (at / LIES, at % LIES);
        let mut frame = frames.iter();
        let frame = loop {
            let frame = frame.next().unwrap();
            if place < frame.len() {
                break frame;
            }
            place -= frame.len();
        };
        let mut frame = frame.clone();
        frame[place] = match lie {
            0 => 0,
            1 => 0xff,
            2 => 0x7f,
            3 => frame[place].wrapping_add(1),
            4 => frame[place].wrapping_sub(1),
            _ => frame[place] ^ 0x20,
        };
        let greets = frame.starts_with(&MAGIC[..4]);
        let mut client = if greets { RawClient::silent(broker.socket()) } else { broker.raw() };
        client.try_write(&frame);
        // It may wait for the rest of a long frame: then that never comes.
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        match client.goodbye().map(|goodbye| goodbye.code) {
            Some(GoodbyeCode::Protocol | GoodbyeCode::NoCommonVersion) => ended += 1,
            // Nothing was wrong with it, or not enough of it came, or it began no protocol.
            _ => quiet += 1,
        }
    }
    bystander.ping();
    let counted = bystander.stats().protocol_errors - before;
    let (message, program) = ("ended: the peer broke the protocol", Some("soak"));
    let fault = Fault { what: "lies", message, about: "", program, each: false };
    faults.injected(fault, counted);
    if !(ended..=ended + quiet).contains(&counted) {
        field.findings.push(format!("{ended} were told of a lie, {counted} are counted"));
    }
    format!(
        "{told} of the {} lies about the {bytes} bytes of {} frames; {ended} were told what was wrong",
        bytes * LIES,
        frames.len(),
    )
}

/// What is said in the place of each byte.
const LIES: usize = 6;
/// Prime, and so without a common divisor with how many there are, unless that is a multiple.
const STRIDE: usize = 7_919;

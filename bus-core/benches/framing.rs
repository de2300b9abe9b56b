//! What it costs to find the end of one message.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Instant;

use bus_core::framing::bpf::Program;
use bus_core::framing::{
    Assembly, BpfFramer, Endianness, Framer, LengthPrefix, Unisono, Unread, Width,
};
use criterion::{Criterion, criterion_group, criterion_main};

const THRIFT: &[u8] = include_bytes!("../tests/fixtures/thrift.bpf.o");
const NETSTRING: &[u8] = include_bytes!("../tests/fixtures/netstring.bpf.o");
const VARINT: &[u8] = include_bytes!("../tests/fixtures/varint.bpf.o");

/// A length of 60 and as many bytes: the size of message at which framing weighs most.
const MESSAGE: [u8; 64] = {
    let mut message = [0; 64];
    message[3] = 60;
    message
};

fn load(object: &[u8]) -> BpfFramer {
    BpfFramer::load(object).expect("the fixture is good")
}

fn built_in(c: &mut Criterion) {
    let mut group = c.benchmark_group("built_in");
    let prefix = LengthPrefix::new(0, Width::Four, Endianness::Big, 4).expect("frames something");
    let whole = Unread::from(&MESSAGE[..]);
    group.bench_function("length_prefix", |b| {
        b.iter(|| black_box(&prefix).measure(black_box(whole)));
    });
    group.bench_function("length_prefix/short", |b| {
        let short = Unread::from(&MESSAGE[..3]);
        b.iter(|| black_box(&prefix).measure(black_box(short)));
    });
    group.bench_function("length_prefix/seam", |b| {
        let (first, second) = MESSAGE.split_at(2);
        let split = Unread::new(first, second);
        b.iter(|| black_box(&prefix).measure(black_box(split)));
    });
    group.bench_function("unisono", |b| {
        let frame = [&[64, 0, 0, 0][..], &MESSAGE[4..]].concat();
        b.iter(|| Unisono.measure(black_box(Unread::from(&frame[..]))));
    });
    group.finish();
}

fn bpf(c: &mut Criterion) {
    let mut group = c.benchmark_group("bpf");
    let thrift = load(THRIFT);
    group.bench_function("thrift", |b| {
        let whole = Unread::from(&MESSAGE[..]);
        b.iter(|| black_box(&thrift).measure(black_box(whole)));
    });
    group.bench_function("thrift/short", |b| {
        let short = Unread::from(&MESSAGE[..3]);
        b.iter(|| black_box(&thrift).measure(black_box(short)));
    });
    group.bench_function("thrift/seam", |b| {
        let (first, second) = MESSAGE.split_at(2);
        let split = Unread::new(first, second);
        b.iter(|| black_box(&thrift).measure(black_box(split)));
    });
    group.bench_function("netstring", |b| {
        let framer = load(NETSTRING);
        let whole = Unread::from(&b"60:abc"[..]);
        b.iter(|| black_box(&framer).measure(black_box(whole)));
    });
    group.bench_function("varint", |b| {
        let framer = load(VARINT);
        let whole = Unread::from(&[0xbc, 1, 2, 3][..]);
        b.iter(|| black_box(&framer).measure(black_box(whole)));
    });
    group.bench_function("longest_program", |b| {
        let mut code = [0xb7, 0, 0, 0, 1, 0, 0, 0].to_vec();
        code.extend([0x07, 0, 0, 0, 1, 0, 0, 0].repeat(4094));
        code.extend([0x95, 0, 0, 0, 0, 0, 0, 0]);
        let program = Program::verify(&code, 0).expect("4096 instructions are allowed");
        b.iter(|| black_box(&program).run(Unread::from(&MESSAGE[..]), &[]));
    });
    group.bench_function("load_object", |b| b.iter(|| load(black_box(THRIFT))));
    group.finish();
}

#[expect(clippy::disallowed_methods, reason = "the caller brings the clock, and that is here")]
fn assembly(c: &mut Criterion) {
    let mut group = c.benchmark_group("assembly");
    let maximum = NonZeroUsize::new(1 << 20).expect("is not 0");
    let whole = Unread::from(&MESSAGE[..]);
    let now = Instant::now();
    let prefix = LengthPrefix::new(0, Width::Four, Endianness::Big, 4).expect("frames something");
    let framers: [(&str, Box<dyn Framer>); 2] =
        [("length_prefix", Box::new(prefix)), ("thrift", Box::new(load(THRIFT)))];
    for (name, framer) in framers {
        let mut stream = Assembly::new(maximum, None);
        group.bench_function(name, |b| {
            b.iter(|| stream.next(&*framer, black_box(whole), now));
        });
    }
    group.finish();
}

criterion_group!(benches, built_in, bpf, assembly);
criterion_main!(benches);

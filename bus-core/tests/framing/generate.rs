//! Random programs that pass the verifier, with branches, memory and packet loads.
//!
//! All registers and a part of the stack get numbers first, and whatever clears a register writes
//! it again at once; jumps lead to the start of a later piece. So every path finds everything
//! written, and nothing has to be thrown away.

use proptest::prelude::*;

/// Which instructions a program is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kinds {
    All,
    /// Those that mean the same to rbpf. It reads packets in the order of the host, takes unsigned
    /// comparisons with a negative number for a number of 32 bits, keeps the high half when the
    /// divisor of a 32-bit remainder is 0, and overflows in a negation. It lacks the newer ones.
    RbpfAgrees,
}

/// One random choice, to be made into a piece of a program.
type Choice = (u8, u8, u8, u8, i32, u8);

/// The code of a program.
pub(crate) fn program(kinds: Kinds) -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![any::<i32>(), -4..70_i32];
    let choice = (any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>(), number, any::<u8>());
    let value = prop_oneof![any::<u64>(), 0..70_u64, any::<i32>().prop_map(|n| n as u64)];
    (proptest::array::uniform9(value), proptest::collection::vec(choice, 0..40))
        .prop_map(move |(values, choices)| assemble(kinds, values, &choices))
}

fn assemble(kinds: Kinds, values: [u64; 9], choices: &[Choice]) -> Vec<u8> {
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let mut jumps = Vec::new();
    for &choice in choices {
        match piece(kinds, choice) {
            Piece::Plain(code) => pieces.push(code),
            Piece::Jump(code, over) => {
                jumps.push((pieces.len(), over));
                pieces.push(code);
            }
        }
    }
    for (at, over) in jumps {
        let last = pieces.len().min(at + 1 + over);
        let distance: usize = pieces[at + 1..last].iter().map(|code| code.len() / 8).sum();
        let distance = i16::try_from(distance).expect("programs here are short");
        pieces[at][2..4].copy_from_slice(&distance.to_le_bytes());
    }
    let mut code = ins(0xbf, 6, 1, 0, 0);
    for (register, value) in REGISTERS.into_iter().zip(values) {
        code.extend(constant(register, value));
    }
    for (register, place) in REGISTERS.into_iter().zip([-8, -16, -24, -32]) {
        code.extend(ins(0x7b, 10, register, place, 0));
    }
    code.extend(pieces.concat());
    code.extend(ins(0x95, 0, 0, 0, 0));
    code
}

enum Piece {
    Plain(Vec<u8>),
    /// And over how many pieces.
    Jump(Vec<u8>, usize),
}

fn piece(kinds: Kinds, (kind, a, b, c, number, d): Choice) -> Piece {
    let all = kinds == Kinds::All;
    let register = |n: u8| REGISTERS[usize::from(n) % 9];
    let (dst, src) = (register(a), register(b));
    let wide = c & 1 != 0;
    let by_register = c & 2 != 0;
    let class = if wide { 7 } else { 4 };
    let size = [0x00, 0x08, 0x10, 0x18][usize::from(c >> 2) % 4];
    let bytes = [4, 2, 1, 8][usize::from(size) / 8];
    // Within the 32 bytes that are written at first.
    let offset = -(i16::from(d) % (33 - bytes)) - bytes;
    Piece::Plain(match kind % if all { 14 } else { 9 } {
        0..3 => arithmetic(all, class, by_register, dst, src, number, d),
        3 => {
            let to = [16, 32, 64][usize::from(d) % 3];
            let code = if by_register { 0xdc } else { 0xd4 };
            ins(code, dst, 0, 0, to)
        }
        4 => ins(0x63 | size, 10, src, offset, 0),
        5 => ins(0x62 | size, 10, 0, offset, number),
        6 => ins(0x61 | size, dst, 10, offset, 0),
        7 | 8 => {
            let conditions = [1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13];
            let condition = conditions[usize::from(d) % 11];
            let class = if wide { 5 } else { 6 };
            let number = if all { number } else { number & i32::MAX };
            let code = if by_register {
                ins(condition << 4 | 8 | class, dst, src, 0, 0)
            } else {
                ins(condition << 4 | class, dst, 0, 0, number)
            };
            return Piece::Jump(code, usize::from(b % 8));
        }
        9 => {
            let width = [0x00, 0x08, 0x10][usize::from(size) / 8 % 3];
            let load = if by_register {
                // r7 to r9 may have any value; make it an offset that is often inside.
                [ins(0x57, 7, 0, 0, 15), ins(0x40 | width, 0, 7, 0, number % 8)].concat()
            } else {
                ins(0x20 | width, 0, 0, 0, (number & 31) % 12)
            };
            let cleared = (1..=5).flat_map(|register| ins(0xb7, register, 0, 0, number));
            load.into_iter().chain(cleared).collect()
        }
        10 => ins(0x61, dst, 6, 0, 0),
        11 => {
            let bits = [8, 16, 32][usize::from(d) % if wide { 3 } else { 2 }];
            ins(0xb8 | class, dst, src, bits, 0)
        }
        12 => ins(0xd7, dst, 0, 0, [16, 32, 64][usize::from(d) % 3]),
        _ => {
            // There is no signed load of 8 bytes: a byte instead.
            let signed = if bytes == 8 { 0x91 } else { 0x81 | size };
            ins(signed, dst, 10, offset, 0)
        }
    })
}

fn arithmetic(
    all: bool,
    class: u8,
    by_register: bool,
    dst: u8,
    src: u8,
    number: i32,
    d: u8,
) -> Vec<u8> {
    let code = (d % 13) << 4;
    let divides = matches!(code, 0x30 | 0x90);
    let offset = i16::from(all && divides && d > 127);
    match code {
        0x80 if all || class == 4 => ins(0x80 | class, dst, 0, 0, 0),
        0x80 => ins(0xbf, dst, src, 0, 0),
        _ if by_register && (all || (code, class) != (0x90, 4)) => {
            ins(code | 8 | class, dst, src, offset, 0)
        }
        0x60 | 0x70 | 0xc0 => ins(code | class, dst, 0, 0, number & 31),
        _ if divides && number == 0 => ins(code | class, dst, 0, offset, 1),
        _ => ins(code | class, dst, 0, offset, number),
    }
}

pub(crate) fn ins(opcode: u8, dst: u8, src: u8, offset: i16, number: i32) -> Vec<u8> {
    let mut bytes = vec![opcode, src << 4 | dst];
    bytes.extend(offset.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes
}

fn constant(dst: u8, value: u64) -> Vec<u8> {
    let [b0, b1, b2, b3, b4, b5, b6, b7] = value.to_le_bytes();
    let low = i32::from_le_bytes([b0, b1, b2, b3]);
    let high = i32::from_le_bytes([b4, b5, b6, b7]);
    [ins(0x18, dst, 0, 0, low), ins(0, 0, 0, 0, high)].concat()
}

/// All that hold numbers: r6 keeps the context.
const REGISTERS: [u8; 9] = [0, 1, 2, 3, 4, 5, 7, 8, 9];

//! A second interpreter, written to be obviously right: it decodes each instruction when its turn
//! comes, keeps for every register what it holds, and does arithmetic in numbers that cannot
//! overflow. It shares nothing with the one in the library.
//!
//! It panics on whatever a verified program may not do: a read of what nobody wrote, an access
//! outside the stack, a jump back, a pointer used as a number.

use std::collections::HashMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Number(u64),
    Context,
    /// Bytes from the top of the stack.
    Stack(i64),
}

/// What a run came to, and in how many steps; `None` for a load past the end.
pub(crate) fn run(code: &[u8], message: &[u8], context: &[u32]) -> (Option<u64>, usize) {
    let mut machine = Machine {
        registers: HashMap::from([(1, Value::Context), (10, Value::Stack(0))]),
        stack: HashMap::new(),
        message,
        context,
    };
    let mut at = 0;
    let mut steps = 0;
    loop {
        steps += 1;
        let bytes: [u8; 8] = code[at * 8..at * 8 + 8].try_into().expect("8 bytes");
        let instruction = u64::from_le_bytes(bytes);
        let next = if bytes[0] == 0x18 {
            let high = u32::from_le_bytes(code[at * 8 + 12..at * 8 + 16].try_into().expect("4"));
            let low = instruction >> 32;
            machine.set(bytes[1] & 15, u64::from(high) << 32 | low);
            at + 2
        } else {
            match machine.step(bytes) {
                Next::Exit => return (Some(machine.number(0)), steps),
                Next::PastEnd => return (None, steps),
                Next::Jump(distance) => {
                    assert!(distance >= 0, "a jump back at {at}");
                    at + 1 + usize::try_from(distance).expect("forward")
                }
            }
        };
        at = next;
    }
}

enum Next {
    Exit,
    PastEnd,
    Jump(i64),
}

struct Machine<'a> {
    registers: HashMap<u8, Value>,
    stack: HashMap<i64, u8>,
    message: &'a [u8],
    context: &'a [u32],
}

impl Machine<'_> {
    fn get(&self, register: u8) -> Value {
        let found = self.registers.get(&register);
        *found.unwrap_or_else(|| panic!("r{register} holds nothing"))
    }

    fn number(&self, register: u8) -> u64 {
        match self.get(register) {
            Value::Number(number) => number,
            other => panic!("r{register} holds {other:?}"),
        }
    }

    fn set(&mut self, register: u8, number: u64) {
        assert!(register < 10);
        self.registers.insert(register, Value::Number(number));
    }

    fn step(&mut self, bytes: [u8; 8]) -> Next {
        let opcode = bytes[0];
        let (dst, src) = (bytes[1] % 16, bytes[1] / 16);
        let offset = i16::from_le_bytes([bytes[2], bytes[3]]);
        let imm = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        match opcode % 8 {
            0 => return self.packet(opcode, src, imm),
            1 => return self.load(opcode, dst, src, offset),
            2 => self.store(opcode, dst, offset, imm as u64),
            3 => self.store(opcode, dst, offset, self.number(src)),
            4 | 7 => self.compute(opcode, dst, src, offset, imm),
            _ => return self.jump(opcode, dst, src, offset, imm),
        }
        Next::Jump(0)
    }

    fn packet(&mut self, opcode: u8, src: u8, imm: i32) -> Next {
        assert_eq!(self.get(6), Value::Context);
        let index = match opcode & 0xe0 {
            0x20 => 0,
            0x40 => self.number(src),
            _ => panic!("opcode {opcode:#x}"),
        };
        let at = index.wrapping_add(imm as u64) as i32;
        let length = size(opcode);
        for clobbered in 1..=5 {
            self.registers.remove(&clobbered);
        }
        let mut value = 0_u64;
        for place in i64::from(at)..i64::from(at) + length {
            let byte = usize::try_from(place).ok().and_then(|place| self.message.get(place));
            let Some(&byte) = byte else {
                return Next::PastEnd;
            };
            value = value * 256 + u64::from(byte);
        }
        self.set(0, value);
        Next::Jump(0)
    }

    fn load(&mut self, opcode: u8, dst: u8, src: u8, offset: i16) -> Next {
        let length = size(opcode);
        let value = match self.get(src) {
            Value::Stack(base) => {
                let from = base + i64::from(offset);
                assert!(from >= -512 && from + length <= 0);
                (0..length)
                    .rev()
                    .fold(0_u64, |value, byte| value * 256 + u64::from(self.stack[&(from + byte)]))
            }
            Value::Context => {
                assert_eq!((length, offset % 4, opcode & 0xe0), (4, 0, 0x60));
                match self.context.get(usize::try_from(offset / 4).expect("inside")) {
                    Some(&word) => word.into(),
                    None => return Next::PastEnd,
                }
            }
            Value::Number(_) => panic!("a load through a number"),
        };
        let negative = value >> (length * 8 - 1) == 1;
        let signed = opcode & 0xe0 == 0x80 && negative && length < 8;
        let value = if signed { value.wrapping_sub(1 << (length * 8)) } else { value };
        self.set(dst, value);
        Next::Jump(0)
    }

    fn store(&mut self, opcode: u8, dst: u8, offset: i16, value: u64) {
        let Value::Stack(base) = self.get(dst) else {
            panic!("a store outside the stack");
        };
        let from = base + i64::from(offset);
        let length = size(opcode);
        assert!(from >= -512 && from + length <= 0);
        for byte in 0..length {
            self.stack.insert(from + byte, (value >> (byte * 8)) as u8);
        }
    }

    fn compute(&mut self, opcode: u8, dst: u8, src: u8, offset: i16, imm: i32) {
        let wide = opcode % 8 == 7;
        let by_register = opcode & 8 != 0;
        match opcode & 0xf0 {
            0xd0 => {
                let length = imm as usize / 8;
                let mut bytes = self.number(dst).to_le_bytes()[..length].to_vec();
                if wide || by_register {
                    bytes.reverse();
                }
                bytes.resize(8, 0);
                let value = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
                return self.set(dst, value);
            }
            0xb0 if by_register && wide && offset == 0 => {
                let value = self.get(src);
                assert_ne!(dst, 10);
                self.registers.insert(dst, value);
                return;
            }
            _ => {}
        }
        if let Some(Value::Stack(base)) = self.registers.get(&dst)
            && opcode & 0xf0 != 0xb0
        {
            assert!(wide && !by_register && dst != 10);
            let moved = match opcode & 0xf0 {
                0x00 => base + i64::from(imm),
                0x10 => base - i64::from(imm),
                _ => panic!("arithmetic with a pointer"),
            };
            self.registers.insert(dst, Value::Stack(moved));
            return;
        }
        let modulus = if wide { 1_i128 << 64 } else { 1 << 32 };
        // Both readings of a number of this width.
        let unsigned = |value: i128| value.rem_euclid(modulus);
        let signed = |value: i128| match unsigned(value) {
            value if value >= modulus / 2 => value - modulus,
            value => value,
        };
        let by = match by_register {
            true => i128::from(self.number(src)),
            false => i128::from(imm),
        };
        let a = match opcode & 0xf0 {
            0xb0 => 0,
            _ => i128::from(self.number(dst)),
        };
        let (ua, ub) = (unsigned(a), unsigned(by));
        let (sa, sb) = (signed(a), signed(by));
        let count = ub % if wide { 64 } else { 32 };
        let result = match (opcode & 0xf0, offset) {
            (0x00, 0) => ua + ub,
            (0x10, 0) => ua - ub,
            (0x20, 0) => sa * sb,
            (0x30, _) if ub == 0 => 0,
            (0x90, _) if ub == 0 => ua,
            (0x30, 0) => ua / ub,
            (0x30, 1) => sa / sb,
            (0x40, 0) => ua | ub,
            (0x50, 0) => ua & ub,
            // By one place at a time, so that nothing is lost at the top.
            (0x60, 0) => (0..count).fold(ua, |value, _| unsigned(value * 2)),
            (0x70, 0) => ua >> count,
            (0x80, 0) => -ua,
            (0x90, 0) => ua % ub,
            (0x90, 1) => sa % sb,
            (0xa0, 0) => ua ^ ub,
            (0xb0, 0) => ub,
            (0xb0, 8) => i128::from(by as i8),
            (0xb0, 16) => i128::from(by as i16),
            (0xb0, 32) => i128::from(by as i32),
            (0xc0, 0) => sa >> count,
            _ => panic!("opcode {opcode:#x} with offset {offset}"),
        };
        self.set(dst, u64::try_from(unsigned(result)).expect("64 bits"));
    }

    fn jump(&mut self, opcode: u8, dst: u8, src: u8, offset: i16, imm: i32) -> Next {
        match opcode {
            0x95 => return Next::Exit,
            0x05 => return Next::Jump(offset.into()),
            0x06 => return Next::Jump(imm.into()),
            _ => {}
        }
        let by = match opcode & 8 {
            0 => i64::from(imm) as u64,
            _ => self.number(src),
        };
        let a = self.number(dst);
        let wide = opcode % 8 == 5;
        let (ua, ub) = match wide {
            true => (a, by),
            false => (a % (1 << 32), by % (1 << 32)),
        };
        let (sa, sb) = match wide {
            true => (ua as i64, ub as i64),
            false => ((ua as u32 as i32).into(), (ub as u32 as i32).into()),
        };
        let taken = match opcode & 0xf0 {
            0x10 => ua == ub,
            0x20 => ua > ub,
            0x30 => ua >= ub,
            0x40 => ua & ub != 0,
            0x50 => ua != ub,
            0x60 => sa > sb,
            0x70 => sa >= sb,
            0xa0 => ua < ub,
            0xb0 => ua <= ub,
            0xc0 => sa < sb,
            0xd0 => sa <= sb,
            _ => panic!("opcode {opcode:#x}"),
        };
        Next::Jump(if taken { offset.into() } else { 0 })
    }
}

fn size(opcode: u8) -> i64 {
    [4, 2, 1, 8][usize::from(opcode / 8 % 4)]
}

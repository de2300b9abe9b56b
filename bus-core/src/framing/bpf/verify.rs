//! Decides whether code may run, and turns it into operations that need no further check.
//!
//! Invariant: what an instruction may rely on holds on every path that leads to it. One pass in the
//! order of the instructions is enough for that: jumps lead forward only, so when an instruction's
//! turn comes, every path to it has been followed. Where paths meet, what is known is what both
//! agree on. (The kernel follows each path by itself, and so accepts more; it needs a budget.)
//!
//! What is known of a register is whether it holds a number, the context, or a place on the stack,
//! and then which place. So each access to memory is resolved here, with its bounds, and the
//! running program handles numbers alone.

use super::fault::{Fault, VerifyError};
use super::instruction::{INSTRUCTION_BYTES, Instruction, LOAD_CONSTANT, class, mode};
use super::op::{Alu, Bits, Condition, Op, REGISTERS, Reg, Unary, Width};
use super::{MAX_INSTRUCTIONS, Program, STACK_BYTES};

pub(super) fn verify(code: &[u8], context_words: usize) -> Result<Program, VerifyError> {
    let (chunks, rest) = code.as_chunks::<INSTRUCTION_BYTES>();
    if !rest.is_empty() {
        return Err(VerifyError::Cut { bytes: code.len() });
    }
    if chunks.is_empty() {
        return Err(VerifyError::Empty);
    }
    if chunks.len() > MAX_INSTRUCTIONS {
        let given = chunks.len();
        return Err(VerifyError::TooLong { given });
    }
    let code: Vec<_> = chunks.iter().map(Instruction::decode).collect();
    let mut verifier = Verifier {
        arriving: vec![None; code.len()],
        second_half: second_halves(&code),
        code: &code,
        context_words,
    };
    let mut ops = Vec::with_capacity(code.len());
    let mut before = Some(State::at_entry());
    for at in 0..code.len() {
        let (op, after) = verifier
            .follow(at, before.take())
            .map_err(|fault| VerifyError::Instruction { at, fault })?;
        ops.push(op);
        before = after;
    }
    let uses_stack = ops.iter().any(|op| {
        // What is loaded was stored.
        matches!(op, Op::StoreNumber { .. } | Op::StoreRegister { .. })
    });
    Ok(Program { ops: ops.into(), uses_stack })
}

/// Which slots are not instructions but the end of a 64-bit constant.
fn second_halves(code: &[Instruction]) -> Vec<bool> {
    let mut found = vec![false; code.len()];
    for at in 1..code.len() {
        found[at] = code[at - 1].opcode == LOAD_CONSTANT && !found[at - 1];
    }
    found
}

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    Number,
    Context,
    /// A place on the stack, relative to r10.
    Stack(i32),
    /// Not the same on all paths.
    Mixed,
}

/// What is known at one place of the program.
#[derive(Clone, Debug)]
struct State {
    registers: [Held; REGISTERS as usize],
    /// A bit for each byte of the stack that has been written.
    written: [u64; STACK_BYTES / 64],
}

impl State {
    fn at_entry() -> Self {
        let mut registers = [Held::Nothing; REGISTERS as usize];
        registers[1] = Held::Context;
        registers[10] = Held::Stack(0);
        Self { registers, written: [0; _] }
    }

    /// Keeps what holds here and there.
    fn meet(&mut self, other: &Self) {
        for (here, &there) in self.registers.iter_mut().zip(&other.registers) {
            *here = match (*here, there) {
                (same, there) if same == there => same,
                (Held::Nothing, _) | (_, Held::Nothing) => Held::Nothing,
                _ => Held::Mixed,
            };
        }
        for (here, there) in self.written.iter_mut().zip(other.written) {
            *here &= there;
        }
    }

    fn held(&self, register: Reg) -> Held {
        self.registers[register.slot()]
    }

    /// A register that is read, whatever it holds.
    fn read(&self, number: u8) -> Result<(Reg, Held), Fault> {
        let register = Reg::new(number).ok_or(Fault::Register(number))?;
        match self.held(register) {
            Held::Nothing => Err(Fault::Uninitialised(number)),
            Held::Mixed => Err(Fault::Mixed(number)),
            held => Ok((register, held)),
        }
    }

    /// A register that is read as a number.
    fn number(&self, number: u8) -> Result<Reg, Fault> {
        match self.read(number)? {
            (register, Held::Number) => Ok(register),
            _ => Err(Fault::Pointer(number)),
        }
    }

    fn write(&mut self, number: u8, held: Held) -> Result<Reg, Fault> {
        let register = Reg::new(number).ok_or(Fault::Register(number))?;
        if number == FRAME_POINTER {
            return Err(Fault::FramePointer);
        }
        self.registers[register.slot()] = held;
        Ok(register)
    }

    fn is_written(&self, byte: u16) -> bool {
        let byte = usize::from(byte);
        self.written[byte / 64] & 1 << (byte % 64) != 0
    }

    fn mark_written(&mut self, at: u16, width: Width) {
        for byte in at..at + width.bytes() {
            let byte = usize::from(byte);
            self.written[byte / 64] |= 1 << (byte % 64);
        }
    }
}

struct Verifier<'a> {
    code: &'a [Instruction],
    second_half: Vec<bool>,
    /// What is known on the jumps that lead to each instruction not reached yet.
    arriving: Vec<Option<Box<State>>>,
    context_words: usize,
}

impl Verifier<'_> {
    /// Checks one instruction that is reached with `before` from the one above it, and says what it
    /// does and what is known after it, if it goes on to the one below.
    fn follow(&mut self, at: usize, before: Option<State>) -> Result<(Op, Option<State>), Fault> {
        if self.second_half[at] {
            return Ok((Op::Skip, before));
        }
        let mut state = match (before, self.arriving[at].take()) {
            (Some(mut above), Some(jumped)) => {
                above.meet(&jumped);
                above
            }
            (Some(above), None) => above,
            (None, Some(jumped)) => *jumped,
            (None, None) => return Err(Fault::Unreachable),
        };
        let op = self.check(at, &mut state)?;
        let slots = if self.code[at].opcode == LOAD_CONSTANT { 2 } else { 1 };
        let after = match op {
            Op::Exit | Op::Goto { .. } => None,
            _ if at + slots == self.code.len() => return Err(Fault::PastEnd),
            _ => Some(state),
        };
        Ok((op, after))
    }

    fn check(&mut self, at: usize, state: &mut State) -> Result<Op, Fault> {
        let instruction = self.code[at];
        match instruction.class() {
            class::LD if instruction.opcode == LOAD_CONSTANT => self.constant(at, state),
            class::LD => packet_load(instruction, state),
            class::LDX => self.load(instruction, state),
            class::ST | class::STX => store(instruction, state),
            class::ALU | class::ALU64 => arithmetic(instruction, state),
            // Of the eight classes, the jumps on 64 and on 32 bits are left.
            _ => self.jump(at, state),
        }
    }

    fn constant(&self, at: usize, state: &mut State) -> Result<Op, Fault> {
        let low = self.code[at];
        let high = *self.code.get(at + 1).ok_or(Fault::ConstantCut)?;
        if (high.opcode, high.dst, high.src, high.offset) != (0, 0, 0, 0) {
            return Err(Fault::ConstantCut);
        }
        if low.src != 0 {
            return Err(Fault::Reference);
        }
        low.no_offset()?;
        let dst = state.write(low.dst, Held::Number)?;
        let value =
            u64::from(high.number.cast_unsigned()) << 32 | u64::from(low.number.cast_unsigned());
        Ok(Op::Set { dst, value })
    }

    fn load(&self, instruction: Instruction, state: &mut State) -> Result<Op, Fault> {
        let width = instruction.width();
        let signed = match instruction.mode() {
            mode::MEM => false,
            mode::MEM_SIGNED if width != Width::Double => true,
            _ => return Err(Fault::Opcode(instruction.opcode)),
        };
        instruction.no_number()?;
        let op = match state.read(instruction.src)? {
            (_, Held::Stack(base)) => {
                let at = place_on_stack(base, instruction.offset, width)?;
                if let Some(byte) = (at..at + width.bytes()).find(|&byte| !state.is_written(byte)) {
                    return Err(Fault::UninitialisedStack(from_frame_pointer(byte)));
                }
                let dst = state.write(instruction.dst, Held::Number)?;
                Op::Load { width, signed, dst, at }
            }
            (_, Held::Context) => {
                let offset = instruction.offset;
                let word = u16::try_from(offset / 4).ok().filter(|&word| {
                    let whole = width == Width::Word && !signed && offset % 4 == 0;
                    whole && usize::from(word) < self.context_words
                });
                let bounds = Fault::ContextBounds { offset, width: width.bytes() };
                let word = word.ok_or(bounds)?;
                let dst = state.write(instruction.dst, Held::Number)?;
                Op::Context { dst, word }
            }
            _ => return Err(Fault::NotAPointer(instruction.src)),
        };
        Ok(op)
    }

    fn jump(&mut self, at: usize, state: &State) -> Result<Op, Fault> {
        let instruction = self.code[at];
        let wide = instruction.class() == class::JMP;
        match (instruction.code(), instruction.by_register()) {
            (0x90, false) if wide => return exit(instruction, state),
            (0x80, _) if wide => return Err(Fault::Call),
            (0x00, false) => {
                instruction.no_registers()?;
                // The 32-bit form keeps its distance where there is room for more.
                let distance = if wide {
                    instruction.no_number()?;
                    instruction.offset.into()
                } else {
                    instruction.no_offset()?;
                    instruction.number
                };
                let to = self.arrive(at, distance, state)?;
                return Ok(Op::Goto { to });
            }
            _ => {}
        }
        let condition = condition(instruction)?;
        let a = state.number(instruction.dst)?;
        if instruction.by_register() {
            instruction.no_number()?;
            let b = state.number(instruction.src)?;
            let to = self.arrive(at, instruction.offset.into(), state)?;
            Ok(if wide {
                Op::IfWideRegister { condition, a, b, to }
            } else {
                Op::IfNarrowRegister { condition, a, b, to }
            })
        } else {
            instruction.no_source()?;
            let b = instruction.number;
            let to = self.arrive(at, instruction.offset.into(), state)?;
            Ok(if wide {
                Op::IfWideNumber { condition, a, b, to }
            } else {
                Op::IfNarrowNumber { condition, a, b, to }
            })
        }
    }

    /// Notes what is known where a jump leads.
    fn arrive(&mut self, at: usize, distance: i32, state: &State) -> Result<u16, Fault> {
        // At most 4096 instructions: neither `at` nor the sum is near the ends of i64.
        let target = i64::try_from(at).unwrap_or(i64::MAX) + 1 + i64::from(distance);
        if distance < 0 {
            return Err(Fault::Backward(target));
        }
        let index = usize::try_from(target).unwrap_or(usize::MAX);
        let (Some(place), Ok(to)) = (self.arriving.get_mut(index), u16::try_from(index)) else {
            return Err(Fault::Outside(target));
        };
        if self.second_half[index] {
            return Err(Fault::IntoConstant(target));
        }
        match place {
            Some(known) => known.meet(state),
            None => *place = Some(Box::new(state.clone())),
        }
        Ok(to)
    }
}

fn exit(instruction: Instruction, state: &State) -> Result<Op, Fault> {
    instruction.no_registers()?;
    instruction.no_offset()?;
    instruction.no_number()?;
    state.number(Reg::R0.number())?;
    Ok(Op::Exit)
}

fn condition(instruction: Instruction) -> Result<Condition, Fault> {
    Ok(match instruction.code() {
        0x10 => Condition::Eq,
        0x20 => Condition::Gt,
        0x30 => Condition::Ge,
        0x40 => Condition::Set,
        0x50 => Condition::Ne,
        0x60 => Condition::SignedGt,
        0x70 => Condition::SignedGe,
        0xa0 => Condition::Lt,
        0xb0 => Condition::Le,
        0xc0 => Condition::SignedLt,
        0xd0 => Condition::SignedLe,
        _ => return Err(Fault::Opcode(instruction.opcode)),
    })
}

fn packet_load(instruction: Instruction, state: &mut State) -> Result<Op, Fault> {
    let width = instruction.width();
    let indexed = match instruction.mode() {
        mode::ABS => false,
        mode::IND => true,
        _ => return Err(Fault::Opcode(instruction.opcode)),
    };
    if width == Width::Double {
        return Err(Fault::Opcode(instruction.opcode));
    }
    if instruction.dst != 0 {
        return Err(instruction.field("destination", instruction.dst.into()));
    }
    instruction.no_offset()?;
    if state.registers[PACKET_REGISTER] != Held::Context {
        return Err(Fault::NoContext);
    }
    let number = instruction.number;
    let op = if indexed {
        let index = state.number(instruction.src)?;
        Op::PacketIndexed { width, index, plus: number }
    } else {
        instruction.no_source()?;
        let at = u32::try_from(number).map_err(|_| Fault::PacketOffset(number))?;
        Op::Packet { width, at }
    };
    // As a call would, in the kernel.
    state.registers[1..=5].fill(Held::Nothing);
    state.registers[0] = Held::Number;
    Ok(op)
}

fn store(instruction: Instruction, state: &mut State) -> Result<Op, Fault> {
    let by_register = instruction.class() == class::STX;
    match instruction.mode() {
        mode::MEM => {}
        mode::ATOMIC if by_register => return Err(Fault::Atomic),
        _ => return Err(Fault::Opcode(instruction.opcode)),
    }
    let width = instruction.width();
    let base = match state.read(instruction.dst)? {
        (_, Held::Stack(base)) => base,
        (_, Held::Context) => return Err(Fault::StoreToContext(instruction.dst)),
        _ => return Err(Fault::NotAPointer(instruction.dst)),
    };
    let at = place_on_stack(base, instruction.offset, width)?;
    let op = if by_register {
        instruction.no_number()?;
        let src = state.number(instruction.src)?;
        Op::StoreRegister { width, at, src }
    } else {
        instruction.no_source()?;
        let value = instruction.number;
        Op::StoreNumber { width, at, value }
    };
    state.mark_written(at, width);
    Ok(op)
}

/// Where an access begins, counted from the stack's bottom, if it lies inside with all its bytes.
fn place_on_stack(base: i32, offset: i16, width: Width) -> Result<u16, Fault> {
    let offset = i64::from(base) + i64::from(offset);
    let at = STACK_BYTES_I64 + offset;
    let last = STACK_BYTES_I64 - i64::from(width.bytes());
    match u16::try_from(at) {
        Ok(place) if at <= last => Ok(place),
        _ => Err(Fault::StackBounds { offset, width: width.bytes() }),
    }
}

fn from_frame_pointer(place: u16) -> i64 {
    i64::from(place) - STACK_BYTES_I64
}

fn arithmetic(instruction: Instruction, state: &mut State) -> Result<Op, Fault> {
    let wide = instruction.class() == class::ALU64;
    match instruction.code() {
        0x80 => negation(instruction, wide, state),
        0xb0 => copy(instruction, wide, state),
        0xd0 => byte_order(instruction, wide, state),
        _ => two_operands(instruction, wide, state),
    }
}

fn negation(instruction: Instruction, wide: bool, state: &mut State) -> Result<Op, Fault> {
    if instruction.by_register() {
        return Err(Fault::Opcode(instruction.opcode));
    }
    instruction.no_source()?;
    instruction.no_offset()?;
    instruction.no_number()?;
    let of = state.number(instruction.dst)?;
    let unary = if wide { Unary::NegWide } else { Unary::NegNarrow };
    let dst = state.write(instruction.dst, Held::Number)?;
    Ok(Op::Unary { unary, dst, of })
}

fn byte_order(instruction: Instruction, wide: bool, state: &mut State) -> Result<Op, Fault> {
    let number = instruction.number;
    let bits = match Bits::from_count(number) {
        Some(bits) if bits != Bits::B8 => bits,
        _ => return Err(instruction.field("immediate", number)),
    };
    // Numbers are little-endian in here, whatever the machine is.
    let unary = match (wide, instruction.by_register()) {
        (false, false) => Unary::Low(bits),
        (false, true) | (true, false) => Unary::Swap(bits),
        (true, true) => return Err(Fault::Opcode(instruction.opcode)),
    };
    instruction.no_source()?;
    instruction.no_offset()?;
    let of = state.number(instruction.dst)?;
    let dst = state.write(instruction.dst, Held::Number)?;
    Ok(Op::Unary { unary, dst, of })
}

fn copy(instruction: Instruction, wide: bool, state: &mut State) -> Result<Op, Fault> {
    if !instruction.by_register() {
        instruction.no_source()?;
        instruction.no_offset()?;
        let dst = state.write(instruction.dst, Held::Number)?;
        let (alu, by) = (Alu::Mov, instruction.number);
        return Ok(if wide {
            Op::WideNumber { alu, dst, by }
        } else {
            Op::NarrowNumber { alu, dst, by }
        });
    }
    instruction.no_number()?;
    if wide && instruction.offset == 0 {
        let (by, held) = state.read(instruction.src)?;
        let dst = state.write(instruction.dst, held)?;
        return Ok(match held {
            Held::Number => {
                let alu = Alu::Mov;
                Op::WideRegister { alu, dst, by }
            }
            _ => Op::Skip,
        });
    }
    let of = state.number(instruction.src)?;
    let dst = state.write(instruction.dst, Held::Number)?;
    let bits = Bits::from_count(instruction.offset.into());
    let unary = match (wide, bits) {
        (false, None) if instruction.offset == 0 => Unary::Low(Bits::B32),
        (true, Some(bits @ (Bits::B8 | Bits::B16 | Bits::B32))) => Unary::SignWide(bits),
        (false, Some(bits @ (Bits::B8 | Bits::B16))) => Unary::SignNarrow(bits),
        _ => return Err(instruction.field("offset", instruction.offset.into())),
    };
    Ok(Op::Unary { unary, dst, of })
}

fn two_operands(instruction: Instruction, wide: bool, state: &mut State) -> Result<Op, Fault> {
    let alu = operation(instruction)?;
    let (dst, held) = state.read(instruction.dst)?;
    if instruction.by_register() {
        instruction.no_number()?;
        state.number(instruction.dst)?;
        let by = state.number(instruction.src)?;
        state.write(instruction.dst, Held::Number)?;
        return Ok(if wide {
            Op::WideRegister { alu, dst, by }
        } else {
            Op::NarrowRegister { alu, dst, by }
        });
    }
    instruction.no_source()?;
    let by = instruction.number;
    check_number(alu, wide, by)?;
    let held = match (held, alu) {
        (Held::Number, _) => Held::Number,
        (Held::Stack(base), Alu::Add) if wide => moved(instruction, base, i64::from(by))?,
        (Held::Stack(base), Alu::Sub) if wide => moved(instruction, base, -i64::from(by))?,
        _ => return Err(Fault::Pointer(instruction.dst)),
    };
    state.write(instruction.dst, held)?;
    Ok(match held {
        Held::Number if wide => Op::WideNumber { alu, dst, by },
        Held::Number => Op::NarrowNumber { alu, dst, by },
        _ => Op::Skip,
    })
}

/// Where a stack pointer points after a number was added. It may leave the stack and come back.
fn moved(instruction: Instruction, base: i32, by: i64) -> Result<Held, Fault> {
    let offset = i64::from(base) + by;
    match i32::try_from(offset) {
        Ok(place) if offset.abs() <= MAX_POINTER_OFFSET => Ok(Held::Stack(place)),
        _ => Err(Fault::PointerOffset { register: instruction.dst, offset }),
    }
}

fn operation(instruction: Instruction) -> Result<Alu, Fault> {
    let (plain, signed) = match instruction.code() {
        0x00 => (Alu::Add, None),
        0x10 => (Alu::Sub, None),
        0x20 => (Alu::Mul, None),
        0x30 => (Alu::Div, Some(Alu::SignedDiv)),
        0x40 => (Alu::Or, None),
        0x50 => (Alu::And, None),
        0x60 => (Alu::Lsh, None),
        0x70 => (Alu::Rsh, None),
        0x90 => (Alu::Mod, Some(Alu::SignedMod)),
        0xa0 => (Alu::Xor, None),
        0xc0 => (Alu::Arsh, None),
        _ => return Err(Fault::Opcode(instruction.opcode)),
    };
    match (instruction.offset, signed) {
        (0, _) => Ok(plain),
        (1, Some(signed)) => Ok(signed),
        (offset, _) => Err(instruction.field("offset", offset.into())),
    }
}

/// Numbers that can only be mistakes; the kernel refuses them too.
fn check_number(alu: Alu, wide: bool, by: i32) -> Result<(), Fault> {
    let bits: u8 = if wide { 64 } else { 32 };
    match alu {
        Alu::Div | Alu::SignedDiv | Alu::Mod | Alu::SignedMod if by == 0 => {
            Err(Fault::DivisionByZero)
        }
        Alu::Lsh | Alu::Rsh | Alu::Arsh if !(0..i32::from(bits)).contains(&by) => {
            Err(Fault::Shift { bits, by })
        }
        _ => Ok(()),
    }
}

/// Fields that must be 0, and the width of an access.
impl Instruction {
    fn field(self, field: &'static str, given: i32) -> Fault {
        let opcode = self.opcode;
        Fault::Field { opcode, field, given }
    }

    fn no_source(self) -> Result<(), Fault> {
        match self.src {
            0 => Ok(()),
            given => Err(self.field("source", given.into())),
        }
    }

    fn no_registers(self) -> Result<(), Fault> {
        self.no_source()?;
        match self.dst {
            0 => Ok(()),
            given => Err(self.field("destination", given.into())),
        }
    }

    fn no_offset(self) -> Result<(), Fault> {
        match self.offset {
            0 => Ok(()),
            given => Err(self.field("offset", given.into())),
        }
    }

    fn no_number(self) -> Result<(), Fault> {
        match self.number {
            0 => Ok(()),
            given => Err(self.field("immediate", given)),
        }
    }

    fn width(self) -> Width {
        match self.size() {
            0x00 => Width::Word,
            0x08 => Width::Half,
            0x10 => Width::Byte,
            _ => Width::Double,
        }
    }
}

const FRAME_POINTER: u8 = 10;
/// Where packet loads expect the context.
const PACKET_REGISTER: usize = 6;
const STACK_BYTES_I64: i64 = STACK_BYTES as i64;
/// How far from r10 a pointer may be on its way to a place on the stack, in bytes.
const MAX_POINTER_OFFSET: i64 = 1 << 20;

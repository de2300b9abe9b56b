//! BPF programs that look at a message: what is accepted, and how it runs.
//!
//! The instructions are the kernel's (`struct bpf_insn`, RFC 9669: base, division and the packet
//! loads), so what clang makes for a KCM socket or a socket filter loads unchanged. Who asks gives
//! a result its meaning: a framer takes it for a length, a filter for yes or no.
//!
//! Invariant: a [`Program`] that exists was verified, and therefore
//! - ends after at most as many steps as it has instructions, because every jump leads forward;
//! - touches nothing but its registers and its own stack, because there is no call, and an address
//!   is never a number: the verifier resolves every access, and none is computed while it runs;
//! - depends on nothing but the message and the context, because it reads no register and no byte
//!   of the stack that it has not written on every path.
//!
//! So it needs no budget, no memory but the stack, no `unsafe`, and cannot panic.

use std::fmt;
use std::sync::Arc;

use super::Unread;
use op::{Op, Reg, Width};

mod fault;
mod instruction;
mod op;
mod verify;

pub use fault::{Fault, VerifyError};

/// A verified program. Cheap to clone, and shared by any number of threads.
///
/// ```
/// use bus_core::framing::Unread;
/// use bus_core::framing::bpf::{Outcome, Program};
///
/// // r6 = r1; r0 = the byte at 1; exit
/// let code = [0xbf, 0x16, 0, 0, 0, 0, 0, 0, 0x30, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
/// let program = Program::verify(&code, 0)?;
/// assert_eq!(program.run(Unread::from(&[7, 8][..]), &[]), Outcome::Returned(8));
/// assert_eq!(program.run(Unread::from(&[7][..]), &[]), Outcome::PastEnd);
/// # Ok::<(), bus_core::framing::bpf::VerifyError>(())
/// ```
#[derive(Clone)]
pub struct Program {
    ops: Arc<[Op]>,
    uses_stack: bool,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The program exited with this in r0.
    Returned(u64),
    /// The program loaded a byte of the message that is not there. The kernel's programs end with
    /// 0 then: a framer needs more bytes, a filter rejects.
    PastEnd,
}

impl Program {
    /// Checks raw instructions, 8 bytes each, and makes them a program.
    ///
    /// The program finds a context in r1, of which it can read the first `context_words` words of
    /// 32 bits, as the kernel's programs read fields of `struct __sk_buff`; the rest of it is
    /// opaque. Packet loads want the context in r6.
    ///
    /// # Errors
    ///
    /// [`VerifyError`], with the first instruction that may not be and why. The verifier follows
    /// all branches at once: where two meet, it knows only what holds on both.
    pub fn verify(code: &[u8], context_words: usize) -> Result<Self, VerifyError> {
        verify::verify(code, context_words)
    }

    /// How many instructions it has, the two halves of a 64-bit constant counted separately. No
    /// run takes more steps.
    #[must_use]
    pub fn instructions(&self) -> usize {
        self.ops.len()
    }

    /// Runs the program over a message.
    ///
    /// `context` holds the words that the program may read through r1; one that is missing counts
    /// as a load past the end. Neither blocks nor allocates.
    #[must_use]
    pub fn run(&self, message: Unread<'_>, context: &[u32]) -> Outcome {
        self.run_counted(message, context, || ())
    }

    fn run_counted(&self, message: Unread<'_>, context: &[u32], step: impl FnMut()) -> Outcome {
        let ended = if self.uses_stack {
            execute(&self.ops, message, context, &mut [0; STACK_BYTES], step)
        } else {
            // Most framing programs need none, and clearing it costs as much as they do.
            execute(&self.ops, message, context, &mut [], step)
        };
        ended.map_or(Outcome::PastEnd, Outcome::Returned)
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("instructions", &self.ops.len()).finish_non_exhaustive()
    }
}

/// `None` for a load past the end. The verifier has ruled out that a program runs off its end or
/// reaches outside its stack; rather than panic, those would end here in the same way.
#[inline(always)]
fn execute(
    ops: &[Op],
    message: Unread<'_>,
    context: &[u32],
    stack: &mut [u8],
    mut step: impl FnMut(),
) -> Option<u64> {
    let mut regs = [0_u64; 16];
    let mut next = 0;
    loop {
        let op = *ops.get(next)?;
        next += 1;
        step();
        match op {
            Op::Skip => {}
            Op::Exit => return Some(regs[Reg::R0.slot()]),
            Op::Set { dst, value } => regs[dst.slot()] = value,
            Op::WideNumber { alu, dst, by } => {
                regs[dst.slot()] = alu.wide(regs[dst.slot()], op::extended(by));
            }
            Op::WideRegister { alu, dst, by } => {
                regs[dst.slot()] = alu.wide(regs[dst.slot()], regs[by.slot()]);
            }
            Op::NarrowNumber { alu, dst, by } => {
                regs[dst.slot()] = alu.narrow(regs[dst.slot()], op::extended(by));
            }
            Op::NarrowRegister { alu, dst, by } => {
                regs[dst.slot()] = alu.narrow(regs[dst.slot()], regs[by.slot()]);
            }
            Op::Unary { unary, dst, of } => regs[dst.slot()] = unary.apply(regs[of.slot()]),
            Op::Goto { to } => next = to.into(),
            Op::IfWideNumber { condition, a, b, to } => {
                if condition.wide(regs[a.slot()], op::extended(b)) {
                    next = to.into();
                }
            }
            Op::IfWideRegister { condition, a, b, to } => {
                if condition.wide(regs[a.slot()], regs[b.slot()]) {
                    next = to.into();
                }
            }
            Op::IfNarrowNumber { condition, a, b, to } => {
                if condition.narrow(regs[a.slot()], op::extended(b)) {
                    next = to.into();
                }
            }
            Op::IfNarrowRegister { condition, a, b, to } => {
                if condition.narrow(regs[a.slot()], regs[b.slot()]) {
                    next = to.into();
                }
            }
            Op::Packet { width, at } => {
                regs[Reg::R0.slot()] = packet(message, width, usize::try_from(at).ok()?)?;
            }
            Op::PacketIndexed { width, index, plus } => {
                let at = packet_offset(regs[index.slot()].wrapping_add(op::extended(plus)))?;
                regs[Reg::R0.slot()] = packet(message, width, at)?;
            }
            Op::Context { dst, word } => {
                regs[dst.slot()] = (*context.get(usize::from(word))?).into();
            }
            Op::Load { width, signed, dst, at } => {
                regs[dst.slot()] = load(stack, width, signed, at.into())?;
            }
            Op::StoreNumber { width, at, value } => {
                store(stack, width, at.into(), op::extended(value))?;
            }
            Op::StoreRegister { width, at, src } => {
                store(stack, width, at.into(), regs[src.slot()])?;
            }
        }
    }
}

/// The kernel passes the sum as an `int`; before the message's start there is nothing to load.
fn packet_offset(sum: u64) -> Option<usize> {
    usize::try_from(op::low_word(sum).cast_signed()).ok()
}

#[inline]
fn packet(message: Unread<'_>, width: Width, at: usize) -> Option<u64> {
    Some(match width {
        Width::Byte => message.byte(at)?.into(),
        Width::Half => u16::from_be_bytes(message.array(at)?).into(),
        Width::Word => u32::from_be_bytes(message.array(at)?).into(),
        Width::Double => u64::from_be_bytes(message.array(at)?),
    })
}

fn load(stack: &[u8], width: Width, signed: bool, at: usize) -> Option<u64> {
    let bytes = stack.get(at..)?;
    let (value, bits) = match width {
        Width::Byte => ((*bytes.first()?).into(), op::Bits::B8),
        Width::Half => (u16::from_le_bytes(*bytes.first_chunk()?).into(), op::Bits::B16),
        Width::Word => (u32::from_le_bytes(*bytes.first_chunk()?).into(), op::Bits::B32),
        Width::Double => (u64::from_le_bytes(*bytes.first_chunk()?), op::Bits::B64),
    };
    Some(if signed { bits.sign_extend(value) } else { value })
}

fn store(stack: &mut [u8], width: Width, at: usize, value: u64) -> Option<()> {
    match width {
        Width::Byte => put::<1>(stack, at, value),
        Width::Half => put::<2>(stack, at, value),
        Width::Word => put::<4>(stack, at, value),
        Width::Double => put::<8>(stack, at, value),
    }
}

fn put<const N: usize>(stack: &mut [u8], at: usize, value: u64) -> Option<()> {
    let place = stack.get_mut(at..)?.first_chunk_mut::<N>()?;
    *place = *value.to_le_bytes().first_chunk()?;
    Some(())
}

/// The longest program, in instructions: the kernel's bound for unprivileged ones.
pub const MAX_INSTRUCTIONS: usize = 4096;
/// Bytes of a program's stack, below r10.
pub const STACK_BYTES: usize = 512;

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests;

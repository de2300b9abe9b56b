//! Why a program is refused, in words that lead its author to the line.

use super::{MAX_INSTRUCTIONS, STACK_BYTES};

/// Why code is no program that may run. Its author has to change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// There is no instruction.
    #[error("the program is empty")]
    Empty,
    /// The code ends within an instruction.
    #[error("a program of {bytes} bytes, and an instruction has 8")]
    Cut {
        /// How many bytes there are.
        bytes: usize,
    },
    /// There are too many instructions.
    #[error("a program of {given} instructions, and the most is {MAX_INSTRUCTIONS}")]
    TooLong {
        /// How many there are.
        given: usize,
    },
    /// One instruction may not stand where it stands.
    #[error("instruction {at}: {fault}")]
    Instruction {
        /// Which one, counted from 0 as `llvm-objdump -d` does.
        at: usize,
        /// What is wrong with it.
        fault: Fault,
    },
}

/// What is wrong with an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// No instruction of this machine.
    #[error("opcode {0:#04x} is unknown")]
    Opcode(u8),
    /// A field that means nothing here is not 0, or has a value without a meaning.
    #[error("opcode {opcode:#04x} with {given} as its {field}")]
    Field {
        /// The opcode.
        opcode: u8,
        /// Which field: `destination`, `source`, `offset` or `immediate`.
        field: &'static str,
        /// What is in it.
        given: i32,
    },
    /// There is no such register.
    #[error("r{0} does not exist")]
    Register(u8),
    /// The frame pointer cannot be changed.
    #[error("r10 is the frame pointer and cannot be written")]
    FramePointer,
    /// There are no functions to call.
    #[error("calls are not allowed")]
    Call,
    /// There is nobody to share memory with.
    #[error("atomic operations are not allowed")]
    Atomic,
    /// The constant stands for a map, a variable or a function.
    #[error("a reference to a map or a variable, of which there are none")]
    Reference,
    /// The second half of a 64-bit constant is missing, or is not one.
    #[error("the second half of the 64-bit constant is missing")]
    ConstantCut,
    /// A jump back, which could run for ever.
    #[error("a jump back to instruction {0}: only forward jumps are allowed")]
    Backward(i64),
    /// A jump to where there is no instruction.
    #[error("a jump to instruction {0}, which is outside the program")]
    Outside(i64),
    /// A jump into the middle of an instruction.
    #[error("a jump to instruction {0}, which is the second half of a 64-bit constant")]
    IntoConstant(i64),
    /// The program goes on past its last instruction.
    #[error("the program runs past its end without an exit")]
    PastEnd,
    /// No path leads here.
    #[error("no path leads here")]
    Unreachable,
    /// The register is read, and on some path nothing was written to it. Packet loads clear r1 to
    /// r5.
    #[error("r{0} is read before it is written")]
    Uninitialised(u8),
    /// The register holds a number on one path and a pointer, or another pointer, on another.
    #[error("r{0} holds different things on different paths")]
    Mixed(u8),
    /// Something other than copying, or adding a number to a stack pointer, was to be done with a
    /// pointer: its value would get out.
    #[error("r{0} holds a pointer, where a number is needed")]
    Pointer(u8),
    /// A load or store through a number.
    #[error("r{0} holds a number, where a pointer is needed")]
    NotAPointer(u8),
    /// A stack pointer that has been moved far outside the stack.
    #[error("r{register} would point {offset} bytes from the frame pointer")]
    PointerOffset {
        /// Which register.
        register: u8,
        /// Where it would point, relative to r10.
        offset: i64,
    },
    /// A store to something other than the stack.
    #[error("a store through r{0}, which holds the context: only the stack can be written")]
    StoreToContext(u8),
    /// An access that is not wholly inside the stack.
    #[error("{width} bytes at r10{offset:+}, and the stack has {STACK_BYTES} below r10")]
    StackBounds {
        /// The first byte, relative to r10.
        offset: i64,
        /// How many bytes.
        width: u16,
    },
    /// Bytes of the stack are read that on some path nothing was written to.
    #[error("the byte at r10{0:+} is read before it is written")]
    UninitialisedStack(i64),
    /// The context has no such field. Loads from it are of 4 bytes, at multiples of 4.
    #[error("the context has no {width} bytes at {offset} that can be read")]
    ContextBounds {
        /// The first byte.
        offset: i16,
        /// How many bytes.
        width: u16,
    },
    /// A packet load needs the context in r6, where `load_byte` and its kin put it.
    #[error("a packet load needs the context in r6")]
    NoContext,
    /// A packet load from before the message.
    #[error("a packet load at {0}, which is before the message")]
    PacketOffset(i32),
    /// The number divided by is 0.
    #[error("a division by the number 0")]
    DivisionByZero,
    /// The number shifted by is no less than the width.
    #[error("a shift of {bits} bits by {by}")]
    Shift {
        /// Bits of the operand.
        bits: u8,
        /// The number.
        by: i32,
    },
}

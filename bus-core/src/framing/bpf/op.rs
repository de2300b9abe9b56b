//! A verified instruction, in the form that runs, and the arithmetic of it.
//!
//! Invariant: every operand is resolved and in range. A register is one of 16 slots, a jump leads
//! forward to an operation that exists, a place on the stack is an offset from its bottom that
//! with its width lies inside. No operation holds or makes an address, so there is none to leak,
//! and pointers exist only while the verifier looks.
//!
//! The arithmetic is total: shifts take the low bits of their count, division by zero gives 0,
//! a remainder by zero leaves the number, and what overflows wraps (RFC 9669, sections 4.1 and 4.2).

/// A register, r0 to r10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reg(u8);

impl Reg {
    pub(super) const R0: Self = Self(0);

    pub(super) const fn new(number: u8) -> Option<Self> {
        if number < REGISTERS { Some(Self(number)) } else { None }
    }

    pub(super) const fn number(self) -> u8 {
        self.0
    }

    /// Masked, so that an index into 16 slots needs no check.
    pub(super) const fn slot(self) -> usize {
        (self.0 & 15) as usize
    }
}

/// What the machine has: r0 to r10.
pub(super) const REGISTERS: u8 = 11;

/// Bytes of one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Byte,
    Half,
    Word,
    Double,
}

impl Width {
    pub(super) const fn bytes(self) -> u16 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
            Self::Double => 8,
        }
    }
}

/// What a two-operand instruction does to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alu {
    Add,
    Sub,
    Mul,
    Div,
    SignedDiv,
    Or,
    And,
    Lsh,
    Rsh,
    Mod,
    SignedMod,
    Xor,
    Mov,
    Arsh,
}

impl Alu {
    #[inline]
    pub(super) const fn wide(self, a: u64, b: u64) -> u64 {
        let (sa, sb) = (a.cast_signed(), b.cast_signed());
        let count = (b & 63) as u32;
        match self {
            Self::Add => a.wrapping_add(b),
            Self::Sub => a.wrapping_sub(b),
            Self::Mul => a.wrapping_mul(b),
            Self::Div => match a.checked_div(b) {
                Some(quotient) => quotient,
                None => 0,
            },
            Self::SignedDiv if b == 0 => 0,
            Self::SignedDiv => sa.wrapping_div(sb).cast_unsigned(),
            Self::Or => a | b,
            Self::And => a & b,
            Self::Lsh => a << count,
            Self::Rsh => a >> count,
            Self::Mod => match a.checked_rem(b) {
                Some(rest) => rest,
                None => a,
            },
            Self::SignedMod if b == 0 => a,
            Self::SignedMod => sa.wrapping_rem(sb).cast_unsigned(),
            Self::Xor => a ^ b,
            Self::Mov => b,
            Self::Arsh => (sa >> count).cast_unsigned(),
        }
    }

    /// The same on the low halves; the high half of the result is 0.
    #[inline]
    pub(super) const fn narrow(self, a: u64, b: u64) -> u64 {
        let (a, b) = (low_word(a), low_word(b));
        let (sa, sb) = (a.cast_signed(), b.cast_signed());
        let count = b & 31;
        let result = match self {
            Self::Add => a.wrapping_add(b),
            Self::Sub => a.wrapping_sub(b),
            Self::Mul => a.wrapping_mul(b),
            Self::Div => match a.checked_div(b) {
                Some(quotient) => quotient,
                None => 0,
            },
            Self::SignedDiv if b == 0 => 0,
            Self::SignedDiv => sa.wrapping_div(sb).cast_unsigned(),
            Self::Or => a | b,
            Self::And => a & b,
            Self::Lsh => a << count,
            Self::Rsh => a >> count,
            Self::Mod => match a.checked_rem(b) {
                Some(rest) => rest,
                None => a,
            },
            Self::SignedMod if b == 0 => a,
            Self::SignedMod => sa.wrapping_rem(sb).cast_unsigned(),
            Self::Xor => a ^ b,
            Self::Mov => b,
            Self::Arsh => (sa >> count).cast_unsigned(),
        };
        result as u64
    }
}

/// What a one-operand instruction makes of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unary {
    NegWide,
    NegNarrow,
    /// Keeps the low bits: conversion to little-endian, which numbers are in here.
    Low(Bits),
    /// Reverses the low bytes and clears the others.
    Swap(Bits),
    /// Extends the sign of the low bits to 64, or to 32 with the high half 0.
    SignWide(Bits),
    SignNarrow(Bits),
}

/// How many low bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bits {
    B8,
    B16,
    B32,
    B64,
}

impl Bits {
    pub(super) const fn from_count(count: i32) -> Option<Self> {
        match count {
            8 => Some(Self::B8),
            16 => Some(Self::B16),
            32 => Some(Self::B32),
            64 => Some(Self::B64),
            _ => None,
        }
    }

    const fn unused(self) -> u32 {
        match self {
            Self::B8 => 56,
            Self::B16 => 48,
            Self::B32 => 32,
            Self::B64 => 0,
        }
    }

    const fn low(self, value: u64) -> u64 {
        value << self.unused() >> self.unused()
    }

    pub(super) const fn sign_extend(self, value: u64) -> u64 {
        ((value << self.unused()).cast_signed() >> self.unused()).cast_unsigned()
    }
}

impl Unary {
    #[inline]
    pub(super) const fn apply(self, value: u64) -> u64 {
        match self {
            Self::NegWide => value.wrapping_neg(),
            Self::NegNarrow => Bits::B32.low(value.wrapping_neg()),
            Self::Low(bits) => bits.low(value),
            Self::Swap(bits) => value.swap_bytes() >> bits.unused(),
            Self::SignWide(bits) => bits.sign_extend(value),
            Self::SignNarrow(bits) => Bits::B32.low(bits.sign_extend(value)),
        }
    }
}

/// When a conditional jump is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
    Set,
    SignedGt,
    SignedGe,
    SignedLt,
    SignedLe,
}

impl Condition {
    #[inline]
    pub(super) const fn wide(self, a: u64, b: u64) -> bool {
        let (sa, sb) = (a.cast_signed(), b.cast_signed());
        match self {
            Self::Eq => a == b,
            Self::Ne => a != b,
            Self::Gt => a > b,
            Self::Ge => a >= b,
            Self::Lt => a < b,
            Self::Le => a <= b,
            Self::Set => a & b != 0,
            Self::SignedGt => sa > sb,
            Self::SignedGe => sa >= sb,
            Self::SignedLt => sa < sb,
            Self::SignedLe => sa <= sb,
        }
    }

    /// The same on the low halves, whose sign is their own.
    #[inline]
    pub(super) const fn narrow(self, a: u64, b: u64) -> bool {
        self.wide(Bits::B32.sign_extend(a), Bits::B32.sign_extend(b))
    }
}

/// One operation. There is one per instruction slot, so that a jump's target is an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// A pointer was copied or moved, which the verifier has followed; or the second half of a
    /// 64-bit constant.
    Skip,
    Exit,
    Set {
        dst: Reg,
        value: u64,
    },
    WideNumber {
        alu: Alu,
        dst: Reg,
        by: i32,
    },
    WideRegister {
        alu: Alu,
        dst: Reg,
        by: Reg,
    },
    NarrowNumber {
        alu: Alu,
        dst: Reg,
        by: i32,
    },
    NarrowRegister {
        alu: Alu,
        dst: Reg,
        by: Reg,
    },
    Unary {
        unary: Unary,
        dst: Reg,
        of: Reg,
    },
    Goto {
        to: u16,
    },
    IfWideNumber {
        condition: Condition,
        a: Reg,
        b: i32,
        to: u16,
    },
    IfWideRegister {
        condition: Condition,
        a: Reg,
        b: Reg,
        to: u16,
    },
    IfNarrowNumber {
        condition: Condition,
        a: Reg,
        b: i32,
        to: u16,
    },
    IfNarrowRegister {
        condition: Condition,
        a: Reg,
        b: Reg,
        to: u16,
    },
    /// Big-endian bytes of the message into r0.
    Packet {
        width: Width,
        at: u32,
    },
    PacketIndexed {
        width: Width,
        index: Reg,
        plus: i32,
    },
    Context {
        dst: Reg,
        word: u16,
    },
    /// Little-endian, as all memory of this machine; `at` counts from the stack's bottom.
    Load {
        width: Width,
        signed: bool,
        dst: Reg,
        at: u16,
    },
    StoreNumber {
        width: Width,
        at: u16,
        value: i32,
    },
    StoreRegister {
        width: Width,
        at: u16,
        src: Reg,
    },
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
pub(super) const fn low_word(value: u64) -> u32 {
    value as u32
}

/// An immediate as a 64-bit operand.
pub(super) const fn extended(number: i32) -> u64 {
    (number as i64).cast_unsigned()
}

//! One instruction as the kernel's `struct bpf_insn` has it, little-endian, and its opcode's parts.
//!
//! Nothing is checked here: any 8 bytes are an instruction, and the verifier says which ones mean
//! something.

/// The 8 bytes, taken apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instruction {
    pub(super) opcode: u8,
    pub(super) dst: u8,
    pub(super) src: u8,
    pub(super) offset: i16,
    pub(super) number: i32,
}

impl Instruction {
    pub(super) const fn decode(bytes: &[u8; INSTRUCTION_BYTES]) -> Self {
        let [opcode, registers, o0, o1, n0, n1, n2, n3] = *bytes;
        Self {
            opcode,
            dst: registers & 15,
            src: registers >> 4,
            offset: i16::from_le_bytes([o0, o1]),
            number: i32::from_le_bytes([n0, n1, n2, n3]),
        }
    }

    pub(super) const fn class(self) -> u8 {
        self.opcode & 0x07
    }

    /// Whether the second operand is a register rather than a number.
    pub(super) const fn by_register(self) -> bool {
        self.opcode & 0x08 != 0
    }

    /// What an arithmetic or jump instruction does.
    pub(super) const fn code(self) -> u8 {
        self.opcode & 0xf0
    }

    /// Which width a load or store has.
    pub(super) const fn size(self) -> u8 {
        self.opcode & 0x18
    }

    /// How a load or store addresses.
    pub(super) const fn mode(self) -> u8 {
        self.opcode & 0xe0
    }
}

pub(super) const INSTRUCTION_BYTES: usize = 8;

/// A constant of 64 bits, which takes two slots.
pub(super) const LOAD_CONSTANT: u8 = 0x18;

pub(super) mod class {
    pub(in super::super) const LD: u8 = 0;
    pub(in super::super) const LDX: u8 = 1;
    pub(in super::super) const ST: u8 = 2;
    pub(in super::super) const STX: u8 = 3;
    pub(in super::super) const ALU: u8 = 4;
    pub(in super::super) const JMP: u8 = 5;
    pub(in super::super) const ALU64: u8 = 7;
}

pub(super) mod mode {
    pub(in super::super) const ABS: u8 = 0x20;
    pub(in super::super) const IND: u8 = 0x40;
    pub(in super::super) const MEM: u8 = 0x60;
    pub(in super::super) const MEM_SIGNED: u8 = 0x80;
    pub(in super::super) const ATOMIC: u8 = 0xc0;
}

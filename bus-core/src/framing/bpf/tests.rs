//! Tables: what each rule of the verifier refuses, and what each instruction does.

use proptest::prelude::*;

use super::*;

/// One instruction.
fn ins(opcode: u8, dst: u8, src: u8, offset: i16, number: i32) -> Vec<u8> {
    let mut bytes = vec![opcode, src << 4 | dst];
    bytes.extend(offset.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes
}

/// The opcodes that the tables need, by the names of the assembler.
fn mov(dst: u8, number: i32) -> Vec<u8> {
    ins(0xb7, dst, 0, 0, number)
}

fn mov_reg(dst: u8, src: u8) -> Vec<u8> {
    ins(0xbf, dst, src, 0, 0)
}

fn constant(dst: u8, value: u64) -> Vec<u8> {
    let [low, high] = [value, value >> 32].map(|half| op::low_word(half).cast_signed());
    [ins(0x18, dst, 0, 0, low), ins(0, 0, 0, 0, high)].concat()
}

fn exit() -> Vec<u8> {
    ins(0x95, 0, 0, 0, 0)
}

fn run(code: &[Vec<u8>], message: &[u8]) -> Outcome {
    let program = Program::verify(&code.concat(), 1).expect("the program is good");
    let length = u32::try_from(message.len()).expect("messages here are short");
    program.run(Unread::from(message), &[length])
}

/// What an instruction makes of r0 with these values in r0 and r1.
fn computed(instruction: Vec<u8>, a: u64, b: u64) -> u64 {
    match run(&[constant(0, a), constant(1, b), instruction, exit()], &[]) {
        Outcome::Returned(value) => value,
        Outcome::PastEnd => panic!("nothing was loaded"),
    }
}

fn refusal(code: &[Vec<u8>]) -> VerifyError {
    Program::verify(&code.concat(), 1).expect_err("the program is bad")
}

#[test]
fn what_is_no_sequence_of_instructions_is_refused() {
    assert_eq!(refusal(&[]), VerifyError::Empty);
    let cut = refusal(&[mov(0, 0), vec![0x95]]);
    assert_eq!(cut, VerifyError::Cut { bytes: 9 });
    let long = vec![mov(0, 0); MAX_INSTRUCTIONS];
    let given = MAX_INSTRUCTIONS + 1;
    let error = refusal(&[long.concat(), exit()]);
    assert_eq!(error, VerifyError::TooLong { given });
    let longest = [long[1..].concat(), exit()].concat();
    let program = Program::verify(&longest, 0).expect("as long as it may be");
    assert_eq!(program.instructions(), MAX_INSTRUCTIONS);
}

/// Case, program, index of the instruction at fault, fault.
type Refusal = (&'static str, Vec<Vec<u8>>, usize, Fault);

fn field(opcode: u8, field: &'static str, given: i32) -> Fault {
    Fault::Field { opcode, field, given }
}

fn assert_refused(rows: Vec<Refusal>) {
    for (case, code, at, fault) in rows {
        let error = VerifyError::Instruction { at, fault };
        let found = Program::verify(&code.concat(), 1);
        assert_eq!(found.expect_err(case), error, "{case}");
        let text = error.to_string();
        let place = format!("instruction {at}: ");
        assert!(text.starts_with(&place) && text.len() > place.len() + 8, "{text}");
    }
}

#[test]
fn what_is_no_instruction_is_refused() {
    let opcodes = [
        ("load constant of 4 bytes", 0x00),
        ("load constant of 2 bytes", 0x08),
        ("packet load of 8 bytes", 0x38),
        ("indexed packet load of 8 bytes", 0x58),
        ("packet load into memory", 0xa0),
        ("load with the mode of a constant", 0x01),
        ("packet load in the class of loads", 0x21),
        ("signed load of 8 bytes", 0x99),
        ("atomic load", 0xc1),
        ("signed store", 0x82),
        ("atomic store of a number", 0xda),
        ("signed store of a register", 0x83),
        ("arithmetic code 14", 0xe4),
        ("arithmetic code 15", 0xf7),
        ("negation by a register", 0x8f),
        ("byte order, 64-bit, by register", 0xdf),
        ("jump always by a register", 0x0d),
        ("jump code 14", 0xe5),
        ("jump code 15", 0xf6),
        ("exit, 32-bit", 0x96),
        ("exit by a register", 0x9d),
        ("call, 32-bit", 0x86),
    ];
    let mut rows = Vec::new();
    for (case, opcode) in opcodes {
        // The one field that a byte order needs does no harm to the others.
        let number = if opcode == 0xdf { 16 } else { 0 };
        let code = vec![mov(0, 0), ins(opcode, 0, 0, 0, number), exit()];
        rows.push((case, code, 1, Fault::Opcode(opcode)));
    }
    assert_refused(rows);
}

#[test]
fn a_field_that_means_nothing_must_be_zero() {
    let (dst, src, off, imm) = ("destination", "source", "offset", "immediate");
    let rows = [
        ("mov, source", ins(0xb7, 0, 1, 0, 0), src, 1),
        ("mov, offset", ins(0xb7, 0, 0, 1, 0), off, 1),
        ("mov by register, immediate", ins(0xbf, 0, 1, 0, 5), imm, 5),
        ("sign extension from 7 bits", ins(0xbf, 0, 7, 7, 0), off, 7),
        ("32-bit sign extension from 32", ins(0xbc, 0, 7, 32, 0), off, 32),
        ("sign extension from 64 bits", ins(0xbf, 0, 7, 64, 0), off, 64),
        ("add, source", ins(0x07, 0, 2, 0, 0), src, 2),
        ("add, offset", ins(0x07, 0, 0, -1, 0), off, -1),
        ("add by register, immediate", ins(0x0f, 0, 7, 0, 9), imm, 9),
        ("division, offset 2", ins(0x37, 0, 0, 2, 1), off, 2),
        ("shift, offset 1", ins(0x67, 0, 0, 1, 1), off, 1),
        ("negation, source", ins(0x87, 0, 1, 0, 0), src, 1),
        ("negation, offset", ins(0x87, 0, 0, 1, 0), off, 1),
        ("negation, immediate", ins(0x87, 0, 0, 0, 1), imm, 1),
        ("byte order of 8 bits", ins(0xd4, 0, 0, 0, 8), imm, 8),
        ("byte order of 17 bits", ins(0xdc, 0, 0, 0, 17), imm, 17),
        ("byte order, source", ins(0xd4, 0, 1, 0, 16), src, 1),
        ("byte order, offset", ins(0xd4, 0, 0, 1, 16), off, 1),
        ("jump, destination", ins(0x05, 1, 0, 0, 0), dst, 1),
        ("jump, source", ins(0x05, 0, 1, 0, 0), src, 1),
        ("jump, immediate", ins(0x05, 0, 0, 0, 1), imm, 1),
        ("long jump, offset", ins(0x06, 0, 0, 1, 0), off, 1),
        ("condition, source", ins(0x15, 0, 1, 0, 0), src, 1),
        ("condition by register, immediate", ins(0x1d, 0, 7, 0, 1), imm, 1),
        ("exit, destination", ins(0x95, 1, 0, 0, 0), dst, 1),
        ("exit, source", ins(0x95, 0, 1, 0, 0), src, 1),
        ("exit, offset", ins(0x95, 0, 0, 1, 0), off, 1),
        ("exit, immediate", ins(0x95, 0, 0, 0, 1), imm, 1),
        ("packet load, destination", ins(0x20, 1, 0, 0, 0), dst, 1),
        ("packet load, source", ins(0x20, 0, 1, 0, 0), src, 1),
        ("packet load, offset", ins(0x20, 0, 0, 1, 0), off, 1),
        ("indexed packet load, destination", ins(0x40, 1, 7, 0, 0), dst, 1),
        ("load, immediate", ins(0x61, 0, 6, 0, 1), imm, 1),
        ("store of a number, source", ins(0x62, 10, 1, -4, 1), src, 1),
        ("store of a register, immediate", ins(0x63, 10, 0, -4, 1), imm, 1),
        ("constant, offset", [ins(0x18, 0, 0, 1, 0), ins(0, 0, 0, 0, 0)].concat(), off, 1),
    ];
    let good = |bad: Vec<u8>| vec![mov_reg(6, 1), mov(7, 1), mov(0, 1), bad, exit()];
    let fault = |bad: &[u8], name, given| field(bad[0], name, given);
    assert_refused(
        rows.into_iter()
            .map(|(case, bad, name, given)| {
                let fault = fault(&bad, name, given);
                (case, good(bad), 3, fault)
            })
            .collect(),
    );
}

#[test]
fn a_register_must_exist_and_have_been_written() {
    let rows = vec![
        ("r11 is written", vec![mov(11, 0)], 0, Fault::Register(11)),
        ("r15 is read", vec![mov_reg(0, 15)], 0, Fault::Register(15)),
        ("r10 is written", vec![mov(10, 0)], 0, Fault::FramePointer),
        ("r10 is moved", vec![ins(0x07, 10, 0, 0, 8)], 0, Fault::FramePointer),
        ("r10 by a constant", vec![constant(10, 1)], 0, Fault::FramePointer),
        ("exit without a result", vec![exit()], 0, Fault::Uninitialised(0)),
        ("a copy of nothing", vec![mov_reg(0, 2)], 0, Fault::Uninitialised(2)),
        ("nothing is added to", vec![ins(0x07, 3, 0, 0, 1)], 0, Fault::Uninitialised(3)),
        ("nothing is added", vec![mov(0, 0), ins(0x0f, 0, 4, 0, 0)], 1, Fault::Uninitialised(4)),
        ("nothing is negated", vec![ins(0x87, 5, 0, 0, 0)], 0, Fault::Uninitialised(5)),
        ("nothing is swapped", vec![ins(0xdc, 7, 0, 0, 16)], 0, Fault::Uninitialised(7)),
        ("nothing is compared", vec![ins(0x15, 8, 0, 0, 1)], 0, Fault::Uninitialised(8)),
        ("with nothing", vec![mov(0, 0), ins(0x1d, 0, 9, 0, 0)], 1, Fault::Uninitialised(9)),
        ("nothing is stored", vec![ins(0x7b, 10, 2, -8, 0)], 0, Fault::Uninitialised(2)),
        ("a store through nothing", vec![ins(0x72, 2, 0, 0, 1)], 0, Fault::Uninitialised(2)),
        ("a load through nothing", vec![ins(0x61, 0, 3, 0, 0)], 0, Fault::Uninitialised(3)),
        (
            "an index that is nothing",
            vec![mov_reg(6, 1), ins(0x40, 0, 7, 0, 0)],
            1,
            Fault::Uninitialised(7),
        ),
        (
            "written on the path that jumps only",
            vec![mov(0, 0), ins(0x15, 0, 0, 1, 0), mov(2, 1), mov_reg(0, 2), exit()],
            3,
            Fault::Uninitialised(2),
        ),
        (
            "written on the path that goes on only",
            vec![
                mov(0, 0),
                ins(0x15, 0, 0, 2, 0),
                mov(2, 1),
                ins(0x05, 0, 0, 0, 0),
                mov_reg(0, 2),
                exit(),
            ],
            4,
            Fault::Uninitialised(2),
        ),
        (
            "written on one of two jumps to here",
            vec![
                mov(0, 0),
                ins(0x15, 0, 0, 2, 0),
                mov(2, 1),
                ins(0x05, 0, 0, 1, 0),
                ins(0x05, 0, 0, 0, 0),
                mov_reg(0, 2),
                exit(),
            ],
            5,
            Fault::Uninitialised(2),
        ),
        (
            "a number here, a pointer there",
            vec![
                mov(0, 0),
                mov(2, 0),
                ins(0x15, 0, 0, 1, 0),
                mov_reg(2, 10),
                mov_reg(0, 2),
                exit(),
            ],
            4,
            Fault::Mixed(2),
        ),
        (
            "two places on the stack",
            vec![
                mov(0, 0),
                mov_reg(2, 10),
                ins(0x15, 0, 0, 1, 0),
                ins(0x07, 2, 0, 0, -8),
                ins(0x72, 2, 0, -8, 0),
                exit(),
            ],
            4,
            Fault::Mixed(2),
        ),
    ];
    assert_refused(rows);
    for register in 1..=5 {
        let code = vec![
            mov_reg(6, 1),
            mov(register, 1),
            ins(0x20, 0, 0, 0, 0),
            mov_reg(0, register),
            exit(),
        ];
        let fault = Fault::Uninitialised(register);
        assert_refused(vec![("after a packet load", code, 3, fault)]);
    }
}

#[test]
fn jumps_lead_forward_to_instructions_that_exist() {
    let zero = || mov(0, 0);
    let rows = vec![
        ("to itself", vec![ins(0x05, 0, 0, -1, 0)], 0, Fault::Backward(0)),
        ("to the start", vec![zero(), ins(0x05, 0, 0, -2, 0)], 1, Fault::Backward(0)),
        ("before the start", vec![ins(0x05, 0, 0, -9, 0)], 0, Fault::Backward(-8)),
        ("as far back as can be", vec![ins(0x05, 0, 0, i16::MIN, 0)], 0, Fault::Backward(-32767)),
        (
            "a loop",
            vec![zero(), ins(0x07, 0, 0, 0, 1), ins(0xa5, 0, 0, -2, 9), exit()],
            2,
            Fault::Backward(1),
        ),
        (
            "a loop by a register",
            vec![zero(), ins(0x1d, 0, 0, -2, 0), exit()],
            1,
            Fault::Backward(0),
        ),
        ("a 32-bit loop", vec![zero(), ins(0x16, 0, 0, -2, 0), exit()], 1, Fault::Backward(0)),
        ("a long jump back", vec![zero(), ins(0x06, 0, 0, 0, -2)], 1, Fault::Backward(0)),
        (
            "a long jump as far back as can be",
            vec![ins(0x06, 0, 0, 0, i32::MIN)],
            0,
            Fault::Backward(i64::from(i32::MIN) + 1),
        ),
        (
            "back, though no loop",
            vec![ins(0x05, 0, 0, 1, 0), exit(), zero(), ins(0x05, 0, 0, -3, 0)],
            1,
            Fault::Unreachable,
        ),
        (
            "back, though no loop, and reached",
            vec![zero(), ins(0x15, 0, 0, 1, 0), exit(), ins(0x05, 0, 0, -2, 0)],
            3,
            Fault::Backward(2),
        ),
        ("just past the end", vec![zero(), ins(0x05, 0, 0, 1, 0), exit()], 1, Fault::Outside(3)),
        ("as far on as can be", vec![ins(0x05, 0, 0, i16::MAX, 0)], 0, Fault::Outside(32768)),
        (
            "a long jump as far on as can be",
            vec![ins(0x06, 0, 0, 0, i32::MAX)],
            0,
            Fault::Outside(1 << 31),
        ),
        (
            "into a constant",
            vec![zero(), ins(0x15, 0, 0, 1, 0), constant(0, 0), exit()],
            1,
            Fault::IntoConstant(3),
        ),
        ("a conditional jump is last", vec![zero(), ins(0x15, 0, 0, 0, 0)], 1, Fault::Outside(2)),
        ("nothing is last", vec![zero()], 0, Fault::PastEnd),
        ("a constant is last", vec![zero(), constant(0, 1)], 1, Fault::PastEnd),
        ("a packet load is last", vec![mov_reg(6, 1), ins(0x30, 0, 0, 0, 0)], 1, Fault::PastEnd),
        ("no way past an exit, to more", vec![zero(), exit(), zero()], 2, Fault::Unreachable),
        ("no way past an exit", vec![zero(), exit(), exit()], 2, Fault::Unreachable),
        (
            "no way past a jump",
            vec![zero(), ins(0x05, 0, 0, 1, 0), zero(), exit()],
            2,
            Fault::Unreachable,
        ),
    ];
    assert_refused(rows);
}

#[test]
fn a_program_stands_alone() {
    let atomic = vec![mov(0, 0), ins(0x7b, 10, 0, -8, 0), ins(0xdb, 10, 0, -8, 0), exit()];
    let rows = vec![
        ("a helper is called", vec![ins(0x85, 0, 0, 0, 1)], 0, Fault::Call),
        ("a function is called", vec![ins(0x85, 0, 1, 0, 0)], 0, Fault::Call),
        ("a kernel function is called", vec![ins(0x85, 0, 2, 0, 7)], 0, Fault::Call),
        ("a register is called", vec![ins(0x8d, 1, 0, 0, 0)], 0, Fault::Call),
        ("an atomic addition", atomic, 2, Fault::Atomic),
        ("an atomic exchange", vec![ins(0xc3, 10, 0, -4, 0xe1)], 0, Fault::Atomic),
        ("a map", vec![ins(0x18, 1, 1, 0, 5), ins(0, 0, 0, 0, 0)], 0, Fault::Reference),
        ("a variable", vec![ins(0x18, 1, 2, 0, 5), ins(0, 0, 0, 0, 8)], 0, Fault::Reference),
        ("a constant cut by the end", vec![ins(0x18, 0, 0, 0, 5)], 0, Fault::ConstantCut),
        (
            "a constant cut by another",
            vec![ins(0x18, 0, 0, 0, 5), constant(0, 1)],
            0,
            Fault::ConstantCut,
        ),
        ("a constant cut by an exit", vec![ins(0x18, 0, 0, 0, 5), exit()], 0, Fault::ConstantCut),
        (
            "a second half with a register",
            vec![ins(0x18, 0, 0, 0, 5), ins(0, 1, 0, 0, 0)],
            0,
            Fault::ConstantCut,
        ),
        (
            "a second half with an offset",
            vec![ins(0x18, 0, 0, 0, 5), ins(0, 0, 0, 1, 0)],
            0,
            Fault::ConstantCut,
        ),
    ];
    assert_refused(rows);
}

#[test]
fn memory_is_the_stack_and_has_bounds() {
    let bounds = |offset, width| Fault::StackBounds { offset, width };
    let context = |offset, width| Fault::ContextBounds { offset, width };
    let store = |offset| vec![ins(0x7a, 10, 0, offset, 0)];
    let moved = |by| vec![mov_reg(2, 10), ins(0x07, 2, 0, 0, by), ins(0x72, 2, 0, 0, 0)];
    let half_written = vec![ins(0x6a, 10, 0, -8, 1), ins(0x61, 0, 10, -8, 0)];
    let rows = vec![
        ("above the stack", store(0), 0, bounds(0, 8)),
        ("partly above it", store(-7), 0, bounds(-7, 8)),
        ("partly below it", store(-513), 0, bounds(-513, 8)),
        ("far below it", store(i16::MIN), 0, bounds(-32768, 8)),
        ("far above it", store(i16::MAX), 0, bounds(32767, 8)),
        ("a byte above it", vec![ins(0x72, 10, 0, 0, 0)], 0, bounds(0, 1)),
        ("by a moved pointer", moved(-513), 2, bounds(-513, 1)),
        ("by a moved pointer, above", moved(8), 2, bounds(8, 1)),
        (
            "a pointer moved too far",
            vec![mov_reg(2, 10), ins(0x17, 2, 0, 0, i32::MIN)],
            1,
            Fault::PointerOffset { register: 2, offset: 1 << 31 },
        ),
        ("a load above the stack", vec![ins(0x61, 0, 10, 0, 0)], 0, bounds(0, 4)),
        ("a load of nothing", vec![ins(0x71, 0, 10, -1, 0)], 0, Fault::UninitialisedStack(-1)),
        ("a load of half nothing", half_written, 1, Fault::UninitialisedStack(-6)),
        (
            "a load of what only one path wrote",
            vec![
                mov(0, 0),
                ins(0x15, 0, 0, 1, 0),
                ins(0x72, 10, 0, -3, 1),
                ins(0x71, 0, 10, -3, 0),
            ],
            3,
            Fault::UninitialisedStack(-3),
        ),
        ("a store through the context", vec![ins(0x63, 1, 1, 0, 0)], 0, Fault::StoreToContext(1)),
        (
            "a store through a number",
            vec![mov(2, 0), ins(0x62, 2, 0, 0, 0)],
            1,
            Fault::NotAPointer(2),
        ),
        (
            "a load through a number",
            vec![mov(2, 0), ins(0x61, 0, 2, 0, 0)],
            1,
            Fault::NotAPointer(2),
        ),
        ("past the context", vec![ins(0x61, 0, 1, 4, 0)], 0, context(4, 4)),
        ("before the context", vec![ins(0x61, 0, 1, -4, 0)], 0, context(-4, 4)),
        ("beside the field", vec![ins(0x61, 0, 1, 2, 0)], 0, context(2, 4)),
        ("part of the field", vec![ins(0x69, 0, 1, 0, 0)], 0, context(0, 2)),
        ("more than the field", vec![ins(0x79, 0, 1, 0, 0)], 0, context(0, 8)),
        ("the field with its sign", vec![ins(0x81, 0, 1, 0, 0)], 0, context(0, 4)),
    ];
    assert_refused(rows);
}

#[test]
fn pointers_do_not_become_numbers() {
    let with_stack = |last| vec![mov(0, 0), mov_reg(2, 10), last, exit()];
    let rows = vec![
        ("the context is returned", vec![mov_reg(0, 1), exit()], 1, Fault::Pointer(0)),
        ("a stack pointer is returned", vec![mov_reg(0, 10), exit()], 1, Fault::Pointer(0)),
        ("the context is stored", vec![ins(0x7b, 10, 1, -8, 0)], 0, Fault::Pointer(1)),
        ("the context is moved", vec![ins(0x07, 1, 0, 0, 4)], 0, Fault::Pointer(1)),
        ("a pointer is multiplied", with_stack(ins(0x27, 2, 0, 0, 2)), 2, Fault::Pointer(2)),
        ("its low half is moved", with_stack(ins(0x04, 2, 0, 0, 2)), 2, Fault::Pointer(2)),
        ("its low half is copied", with_stack(ins(0xbc, 0, 2, 0, 0)), 2, Fault::Pointer(2)),
        ("its sign is copied", with_stack(ins(0xbf, 0, 2, 8, 0)), 2, Fault::Pointer(2)),
        ("it is negated", with_stack(ins(0x87, 2, 0, 0, 0)), 2, Fault::Pointer(2)),
        ("it is swapped", with_stack(ins(0xdc, 2, 0, 0, 64)), 2, Fault::Pointer(2)),
        (
            "a number is added from a register",
            with_stack(ins(0x0f, 2, 0, 0, 0)),
            2,
            Fault::Pointer(2),
        ),
        ("it is added to a number", with_stack(ins(0x0f, 0, 2, 0, 0)), 2, Fault::Pointer(2)),
        ("it is subtracted from itself", with_stack(ins(0x1f, 2, 2, 0, 0)), 2, Fault::Pointer(2)),
        ("it is compared with a number", with_stack(ins(0x15, 2, 0, 0, 0)), 2, Fault::Pointer(2)),
        ("a number is compared with it", with_stack(ins(0x1d, 0, 2, 0, 0)), 2, Fault::Pointer(2)),
        ("it is an index", vec![mov_reg(6, 1), ins(0x40, 0, 10, 0, 0)], 1, Fault::Pointer(10)),
    ];
    assert_refused(rows);
}

#[test]
fn what_can_only_be_a_mistake_is_refused() {
    let number = |opcode, offset, by| vec![mov(0, 0), ins(opcode, 0, 0, offset, by), exit()];
    let shift = |bits, by| Fault::Shift { bits, by };
    let packet = |opcode, at| vec![mov_reg(6, 1), ins(opcode, 0, 0, 0, at), exit()];
    let rows = vec![
        ("division by 0", number(0x37, 0, 0), 1, Fault::DivisionByZero),
        ("remainder by 0", number(0x97, 0, 0), 1, Fault::DivisionByZero),
        ("signed division by 0", number(0x37, 1, 0), 1, Fault::DivisionByZero),
        ("32-bit remainder by 0", number(0x94, 1, 0), 1, Fault::DivisionByZero),
        ("shift by 64", number(0x67, 0, 64), 1, shift(64, 64)),
        ("32-bit shift by 32", number(0x74, 0, 32), 1, shift(32, 32)),
        ("shift by -1", number(0xc7, 0, -1), 1, shift(64, -1)),
        ("packet load before the message", packet(0x20, -1), 1, Fault::PacketOffset(-1)),
        (
            "packet load from a header of the kernel's",
            packet(0x30, -0x10_0000),
            1,
            Fault::PacketOffset(-0x10_0000),
        ),
        (
            "packet load without the context",
            vec![ins(0x20, 0, 0, 0, 0), exit()],
            0,
            Fault::NoContext,
        ),
        (
            "packet load with a number in r6",
            vec![mov(6, 0), ins(0x30, 0, 0, 0, 0), exit()],
            1,
            Fault::NoContext,
        ),
        (
            "packet load with a stack pointer in r6",
            vec![mov_reg(6, 10), ins(0x30, 0, 0, 0, 0), exit()],
            1,
            Fault::NoContext,
        ),
    ];
    assert_refused(rows);
}

#[test]
fn pointers_may_be_copied_moved_and_used() {
    // r2 = r10 - 600 + 592, and the word there is written and read in pieces.
    let code = [
        mov_reg(2, 10),
        ins(0x07, 2, 0, 0, -600),
        ins(0x17, 2, 0, 0, -592),
        ins(0x7a, 2, 0, 0, -2),
        mov_reg(3, 2),
        ins(0x71, 0, 3, 7, 0),
        ins(0x69, 4, 10, -4, 0),
        ins(0x0f, 0, 4, 0, 0),
        exit(),
    ];
    assert_eq!(run(&code, &[]), Outcome::Returned(0xff + 0xffff));
    let length = [ins(0x61, 0, 1, 0, 0), exit()];
    assert_eq!(run(&length, &[0; 77]), Outcome::Returned(77));
    let copied = [mov_reg(7, 1), ins(0x61, 0, 7, 0, 0), exit()];
    assert_eq!(run(&copied, &[0; 3]), Outcome::Returned(3));
}

#[test]
fn memory_is_little_endian_and_as_wide_as_asked() {
    let value = 0x8182_8384_8586_8788_u64;
    let rows = [
        ("byte", 0x71, 0x88),
        ("half", 0x69, 0x8788),
        ("word", 0x61, 0x8586_8788),
        ("double", 0x79, value),
        ("signed byte", 0x91, 0xffff_ffff_ffff_ff88),
        ("signed half", 0x89, 0xffff_ffff_ffff_8788),
        ("signed word", 0x81, 0xffff_ffff_8586_8788),
    ];
    for (case, opcode, expected) in rows {
        let code =
            [constant(2, value), ins(0x7b, 10, 2, -512, 0), ins(opcode, 0, 10, -512, 0), exit()];
        assert_eq!(run(&code, &[]), Outcome::Returned(expected), "load {case}");
    }
    let rows = [
        ("byte", 0x73, 0xffff_ffff_ffff_ff88_u64),
        ("half", 0x6b, 0xffff_ffff_ffff_8788),
        ("word", 0x63, 0xffff_ffff_8586_8788),
        ("double", 0x7b, value),
    ];
    for (case, opcode, expected) in rows {
        let code = [
            ins(0x7a, 10, 0, -8, -1),
            constant(2, value),
            ins(opcode, 10, 2, -8, 0),
            ins(0x79, 0, 10, -8, 0),
            exit(),
        ];
        assert_eq!(run(&code, &[]), Outcome::Returned(expected), "store {case}");
    }
    for (case, opcode, expected) in [
        ("byte", 0x72, 0xfe_u64),
        ("half", 0x6a, 0xfffe),
        ("word", 0x62, 0xffff_fffe),
        ("double", 0x7a, 0xffff_ffff_ffff_fffe),
    ] {
        let code =
            [ins(0x7a, 10, 0, -8, 0), ins(opcode, 10, 0, -8, -2), ins(0x79, 0, 10, -8, 0), exit()];
        assert_eq!(run(&code, &[]), Outcome::Returned(expected), "number {case}");
    }
}

#[test]
fn arithmetic_wraps_masks_and_divides_by_zero() {
    const MIN: u64 = 1 << 63;
    const MIN32: u64 = 1 << 31;
    const MINUS: u64 = u64::MAX;
    const HIGH: u64 = 0xaaaa_aaaa_0000_0000;
    // Case, 64-bit opcode by register, offset, operands, 64-bit result, 32-bit result.
    let rows = [
        ("add", 0x0f, 0, 2, 3, 5, 5),
        ("add wraps", 0x0f, 0, MINUS, 2, 1, 1),
        ("add across", 0x0f, 0, 0xffff_ffff, 1, 1 << 32, 0),
        ("sub", 0x1f, 0, 3, 5, MINUS - 1, 0xffff_fffe),
        ("mul", 0x2f, 0, 7, 6, 42, 42),
        ("mul wraps", 0x2f, 0, MIN | 3, 3, MIN | 9, 9),
        ("div", 0x3f, 0, 20, 6, 3, 3),
        ("div is unsigned", 0x3f, 0, MINUS, 2, MINUS >> 1, 0x7fff_ffff),
        ("div by 0", 0x3f, 0, 20, 0, 0, 0),
        ("div by a high half", 0x3f, 0, HIGH | 20, HIGH, 1, 0),
        ("signed div", 0x3f, 1, MINUS - 6, 2, MINUS - 2, 0xffff_fffd),
        ("signed div by 0", 0x3f, 1, MINUS, 0, 0, 0),
        ("signed div wraps", 0x3f, 1, MIN, MINUS, MIN, 0),
        ("signed div wraps in 32", 0x3f, 1, MIN32, MINUS, MINUS << 31, MIN32),
        ("or", 0x4f, 0, HIGH | 5, 3, HIGH | 7, 7),
        ("and", 0x5f, 0, HIGH | 5, HIGH | 3, HIGH | 1, 1),
        ("lsh", 0x6f, 0, 3, 33, 3 << 33, 6),
        ("lsh masks", 0x6f, 0, 3, 65, 6, 6),
        ("rsh", 0x7f, 0, MIN, 63, 1, 0),
        ("rsh masks", 0x7f, 0, MIN32 | 4, 64 + 1, MIN32 >> 1 | 2, MIN32 >> 1 | 2),
        ("mod", 0x9f, 0, 20, 6, 2, 2),
        ("mod by 0", 0x9f, 0, HIGH | 20, 0, HIGH | 20, 20),
        ("mod by a high half", 0x9f, 0, HIGH | 20, HIGH, 20, 20),
        ("signed mod", 0x9f, 1, MINUS - 6, 4, MINUS - 2, 0xffff_fffd),
        ("signed mod by 0", 0x9f, 1, MINUS, 0, MINUS, 0xffff_ffff),
        ("signed mod wraps", 0x9f, 1, MIN, MINUS, 0, 0),
        ("signed mod wraps in 32", 0x9f, 1, MIN32, MINUS, 0, 0),
        ("xor", 0xaf, 0, HIGH | 5, 3, HIGH | 6, 6),
        ("mov", 0xbf, 0, 1, HIGH | 9, HIGH | 9, 9),
        ("mov of 8 bits", 0xbf, 8, 1, 0x80, MINUS - 0x7f, 0xffff_ff80),
        ("mov of 16 bits", 0xbf, 16, 1, 0x1_7fff, 0x7fff, 0x7fff),
        ("arsh", 0xcf, 0, MIN, 63, MINUS, 0),
        ("arsh masks", 0xcf, 0, MIN32, 32 + 4, 0, 0xf800_0000),
    ];
    for (case, opcode, offset, a, b, wide, narrow) in rows {
        let result = computed(ins(opcode, 0, 1, offset, 0), a, b);
        assert_eq!(result, wide, "{case}, 64 bits: {result:#x}");
        // The classes differ in the low bits of the opcode only.
        let result = computed(ins(opcode - 3, 0, 1, offset, 0), a, b);
        assert_eq!(result, narrow, "{case}, 32 bits: {result:#x}");
        // And a number gives what a register with it would.
        let Ok(number) = i32::try_from(b.cast_signed()) else {
            continue;
        };
        if offset > 1
            || Program::verify(
                &[mov(0, 0), ins(opcode - 8, 0, 0, offset, number), exit()].concat(),
                0,
            )
            .is_err()
        {
            continue;
        }
        let result = computed(ins(opcode - 8, 0, 0, offset, number), a, 0);
        assert_eq!(result, wide, "{case}, number, 64 bits: {result:#x}");
    }
    let extended = computed(ins(0xbf, 0, 1, 32, 0), 0, MIN32);
    assert_eq!(extended, MINUS << 31, "mov of 32 bits");
    assert_eq!(computed(ins(0x27, 0, 0, 0, -1), 5, 0), MINUS - 4, "numbers keep their sign");
    assert_eq!(computed(ins(0xb4, 0, 0, 0, -1), 5, 0), 0xffff_ffff, "in 32 bits too");
}

#[test]
fn one_operand_is_negated_or_reordered() {
    const VALUE: u64 = 0x8182_8384_8586_8788;
    let rows = [
        ("neg", 0x87, 0, VALUE.wrapping_neg()),
        ("neg of 32", 0x84, 0, 0x7a79_7878),
        ("le16", 0xd4, 16, 0x8788),
        ("le32", 0xd4, 32, 0x8586_8788),
        ("le64", 0xd4, 64, VALUE),
        ("be16", 0xdc, 16, 0x8887),
        ("be32", 0xdc, 32, 0x8887_8685),
        ("be64", 0xdc, 64, 0x8887_8685_8483_8281),
        ("bswap16", 0xd7, 16, 0x8887),
        ("bswap32", 0xd7, 32, 0x8887_8685),
        ("bswap64", 0xd7, 64, 0x8887_8685_8483_8281),
    ];
    for (case, opcode, number, expected) in rows {
        let result = computed(ins(opcode, 0, 0, 0, number), VALUE, 0);
        assert_eq!(result, expected, "{case}: {result:#x}");
    }
    let least = 1 << 63;
    assert_eq!(computed(ins(0x87, 0, 0, 0, 0), least, 0), least, "neg wraps");
}

#[test]
fn conditions_compare_as_their_name_says() {
    const MINUS: u64 = u64::MAX;
    const HIGH: u64 = 1 << 32;
    // Case, 64-bit opcode by register, operands, 64-bit result, 32-bit result.
    let rows = [
        ("jeq", 0x1d, 5, 5, true, true),
        ("jeq, other half", 0x1d, HIGH | 5, 5, false, true),
        ("jne", 0x5d, 5, 5, false, false),
        ("jne, other half", 0x5d, HIGH | 5, 5, true, false),
        ("jgt", 0x2d, 5, 4, true, true),
        ("jgt, equal", 0x2d, 5, 5, false, false),
        ("jgt, unsigned", 0x2d, MINUS, 1, true, true),
        ("jgt, other half", 0x2d, HIGH, 1, true, false),
        ("jge", 0x3d, 5, 5, true, true),
        ("jge, less", 0x3d, 4, 5, false, false),
        ("jlt", 0xad, 4, 5, true, true),
        ("jlt, unsigned", 0xad, 1, MINUS, true, true),
        ("jlt, other half", 0xad, 1, HIGH, true, false),
        ("jle", 0xbd, 5, 5, true, true),
        ("jle, more", 0xbd, 6, 5, false, false),
        ("jset", 0x4d, 6, 3, true, true),
        ("jset, none", 0x4d, 4, 3, false, false),
        ("jset, other half", 0x4d, HIGH, HIGH, true, false),
        ("jsgt", 0x6d, 1, MINUS, true, true),
        ("jsgt, sign in 32", 0x6d, 0x8000_0000, 1, true, false),
        ("jsge", 0x7d, MINUS, MINUS, true, true),
        ("jsge, less", 0x7d, MINUS, 0, false, false),
        ("jslt", 0xcd, MINUS, 0, true, true),
        ("jslt, sign in 32", 0xcd, 0x8000_0000, 1, false, true),
        ("jsle", 0xdd, MINUS, MINUS, true, true),
        ("jsle, more", 0xdd, 0, MINUS, false, false),
    ];
    let taken = |jump: Vec<u8>, a, b| {
        let code = [constant(3, a), constant(4, b), mov(0, 1), jump, mov(0, 0), exit()];
        run(&code, &[]) == Outcome::Returned(1)
    };
    for (case, opcode, a, b, wide, narrow) in rows {
        assert_eq!(taken(ins(opcode, 3, 4, 1, 0), a, b), wide, "{case}");
        assert_eq!(taken(ins(opcode + 1, 3, 4, 1, 0), a, b), narrow, "{case}, 32 bits");
        if let Ok(number) = i32::try_from(b.cast_signed()) {
            let jump = ins(opcode - 8, 3, 0, 1, number);
            assert_eq!(taken(jump, a, 0), wide, "{case}, number");
            let jump = ins(opcode - 7, 3, 0, 1, number);
            assert_eq!(taken(jump, a, 0), narrow, "{case}, number, 32 bits");
        }
    }
    let far = [mov(0, 1), ins(0x06, 0, 0, 0, 1), mov(0, 0), exit()];
    assert_eq!(
        run(&[far[0].clone(), ins(0x15, 0, 0, 1, 2), far[1].clone(), far[2].clone(), exit()], &[]),
        Outcome::Returned(1),
        "a long jump"
    );
}

#[test]
fn packet_loads_are_big_endian_and_end_the_program_past_the_end() {
    let message = [0x81, 2, 3, 4, 5, 6];
    let absolute = |opcode, at| [mov_reg(6, 1), mov(0, 9), ins(opcode, 0, 0, 0, at), exit()];
    let indexed = |opcode, index: u64, plus| {
        [mov_reg(6, 1), constant(7, index), ins(opcode, 0, 7, 0, plus), exit()]
    };
    let found = Outcome::Returned;
    let rows = [
        ("byte", absolute(0x30, 0), found(0x81)),
        ("half", absolute(0x28, 0), found(0x8102)),
        ("word", absolute(0x20, 0), found(0x8102_0304)),
        ("the last word", absolute(0x20, 2), found(0x0304_0506)),
        ("a word past the end", absolute(0x20, 3), Outcome::PastEnd),
        ("the last byte", absolute(0x30, 5), found(6)),
        ("a byte past the end", absolute(0x30, 6), Outcome::PastEnd),
        ("far past the end", absolute(0x30, i32::MAX), Outcome::PastEnd),
        ("indexed", indexed(0x50, 2, 1), found(4)),
        ("indexed back", indexed(0x48, 5, -1), found(0x0506)),
        ("indexed before the message", indexed(0x50, 0, -1), Outcome::PastEnd),
        ("indexed past the end", indexed(0x40, 3, 0), Outcome::PastEnd),
        ("the sum is an int", indexed(0x50, 1 << 32, 1), found(2)),
        ("and may be negative", indexed(0x50, 1 << 31, 0), Outcome::PastEnd),
        ("the sum wraps", indexed(0x50, u64::MAX, 1), found(0x81)),
    ];
    for (case, code, expected) in rows {
        let program = Program::verify(&code.concat(), 0).expect(case);
        for seam in 0..=message.len() {
            let (first, second) = message.split_at(seam);
            let outcome = program.run(Unread::new(first, second), &[]);
            assert_eq!(outcome, expected, "{case}, seam at {seam}");
        }
    }
}

#[test]
fn a_context_that_is_too_short_is_past_the_end() {
    let code = [ins(0x61, 0, 1, 8, 0), exit()].concat();
    let program = Program::verify(&code, 3).expect("three words");
    let empty = Unread::from(&[][..]);
    assert_eq!(program.run(empty, &[1, 2, 3]), Outcome::Returned(3));
    assert_eq!(program.run(empty, &[1, 2]), Outcome::PastEnd);
    assert!(Program::verify(&code, 2).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the bytes are, loading answers; and what is accepted takes no more steps than it
    /// has instructions. Instructions are drawn so that some programs pass.
    #[test]
    fn no_bytes_make_it_panic_or_run_on(
        code in proptest::collection::vec(
            (
                prop_oneof![any::<u8>(), prop::sample::select(COMMON.to_vec())],
                0_u8..12,
                prop_oneof![Just(0_u8), 0..12_u8],
                prop_oneof![Just(0_i16), -9..9_i16, any::<i16>()],
                prop_oneof![Just(0_i32), -9..70_i32, any::<i32>()],
            ),
            1..30,
        ),
        message in proptest::collection::vec(any::<u8>(), 0..20),
        seam in 0_usize..20,
    ) {
        let mut bytes: Vec<u8> = mov(0, 0);
        bytes.extend(mov_reg(6, 1));
        for (opcode, dst, src, offset, number) in code {
            bytes.extend(ins(opcode, dst, src, offset, number));
            // A refusal ends nothing: what was accepted so far is run.
            let whole = [bytes.clone(), exit()].concat();
            let Ok(program) = Program::verify(&whole, 1) else { continue };
            let (first, second) = message.split_at(seam.min(message.len()));
            let mut steps = 0;
            let _ = program.run_counted(Unread::new(first, second), &[7], || steps += 1);
            prop_assert!((1..=program.instructions()).contains(&steps));
        }
    }

    #[test]
    fn random_bytes_are_refused_or_run(code in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(program) = Program::verify(&code, 1) {
            let mut steps = 0;
            let _ = program.run_counted(Unread::from(&code[..]), &[7], || steps += 1);
            prop_assert!(steps <= program.instructions());
        }
    }
}

const COMMON: [u8; 14] =
    [0xb7, 0xbf, 0x07, 0x0f, 0x15, 0x1d, 0x05, 0x30, 0x20, 0x50, 0x7b, 0x79, 0x72, 0x71];

//! Real object files made by clang, and what becomes of them when they are damaged.

use proptest::prelude::*;

use super::*;

const THRIFT: &[u8] = include_bytes!("../../../tests/fixtures/thrift.bpf.o");
const MAP: &[u8] = include_bytes!("../../../tests/fixtures/map.bpf.o");
const TWO: &[u8] = include_bytes!("../../../tests/fixtures/two.bpf.o");

#[test]
fn the_program_of_an_object_file_is_its_section() {
    let expected = [
        [0xbf, 0x16, 0, 0, 0, 0, 0, 0],
        [0x20, 0x00, 0, 0, 0, 0, 0, 0],
        [0x07, 0x00, 0, 0, 4, 0, 0, 0],
        [0x95, 0x00, 0, 0, 0, 0, 0, 0],
    ];
    assert_eq!(section(THRIFT, "socket_kcm"), Ok(expected.as_flattened()));
}

#[test]
fn what_cannot_run_alone_is_refused_with_what_it_refers_to() {
    let relocation = |at, symbol: &str, what| {
        let symbol = symbol.to_owned();
        Err(ObjectError::Relocation { at, symbol, what })
    };
    let rows = [
        ("a map", MAP, "socket_kcm", relocation(5, "counts", "a map")),
        ("a variable", TWO, "socket_kcm/variable", relocation(2, "bias", "a variable")),
        ("a function", TWO, "socket_kcm/function", relocation(3, ".text", "a function")),
        (
            "two functions",
            TWO,
            "socket_kcm",
            Err(ObjectError::SeveralFunctions { section: "socket_kcm".to_owned(), functions: 2 }),
        ),
        ("no code", THRIFT, "license", Err(ObjectError::NotCode("license".to_owned()))),
        ("empty", THRIFT, ".text", Err(ObjectError::NotCode(".text".to_owned()))),
        (
            "another section",
            THRIFT,
            "socket",
            Err(ObjectError::NoSection {
                wanted: "socket".to_owned(),
                found: "socket_kcm".to_owned(),
            }),
        ),
    ];
    for (case, file, name, expected) in rows {
        assert_eq!(section(file, name), expected, "{case}");
    }
    let error = section(MAP, "socket_kcm").unwrap_err().to_string();
    assert_eq!(error, "instruction 5 refers to counts, a map: a program stands alone");
}

#[test]
fn another_kind_of_file_is_refused_by_the_field_that_differs() {
    let changed = |at: usize, to: u8| {
        let mut file = THRIFT.to_vec();
        file[at] = to;
        section(&file, "socket_kcm").map(<[u8]>::to_vec)
    };
    let not = |field, given, expected| Err(ObjectError::NotBpf { field, given, expected });
    assert_eq!(changed(0, 0), Err(ObjectError::NotElf));
    assert_eq!(changed(4, 1), not("class", 1, 2));
    assert_eq!(changed(5, 2), not("byte order", 2, 1), "made by bpfeb");
    assert_eq!(changed(6, 0), not("format version", 0, 1));
    assert_eq!(changed(16, 3), not("type", 3, 1), "a shared object");
    assert_eq!(changed(18, 62), not("machine", 62, 247), "for x86");
    assert_eq!(changed(58, 40), not("section header size", 40, 64));
}

#[test]
fn a_cut_file_is_refused_wherever_it_is_cut() {
    let whole = section(THRIFT, "socket_kcm").unwrap();
    for cut in 0..THRIFT.len() {
        // The table of sections is the last thing in the file.
        let found = section(&THRIFT[..cut], "socket_kcm");
        let expected = match cut {
            0..4 => ObjectError::NotElf,
            4..64 => ObjectError::Damaged("header"),
            _ => ObjectError::Damaged("section table"),
        };
        assert_eq!(found, Err(expected), "cut at {cut}");
    }
    let longer = [THRIFT, &[0; 9]].concat();
    assert_eq!(section(&longer, "socket_kcm"), Ok(whole));
}

#[test]
fn every_byte_changed_to_every_extreme_is_survived() {
    let mut answers = 0;
    for original in [THRIFT, MAP, TWO] {
        let mut file = original.to_vec();
        for at in 0..file.len() {
            for to in [0, 1, 0x7f, 0x80, 0xff] {
                let before = std::mem::replace(&mut file[at], to);
                if let Ok(code) = section(&file, "socket_kcm") {
                    assert!(code.len() <= file.len());
                    answers += 1;
                }
                file[at] = before;
            }
        }
    }
    assert!(answers > 0, "most bytes of a file are not looked at");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_changes_are_survived(
        which in 0_usize..3,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<[u8; 4]>()), 1..9),
        name in prop::sample::select(vec!["socket_kcm", "license", ".text", ""]),
    ) {
        let mut file = [THRIFT, MAP, TWO][which].to_vec();
        for (at, bytes) in changes {
            let at = at.index(file.len() - 4);
            file[at..at + 4].copy_from_slice(&bytes);
        }
        if let Ok(code) = section(&file, name) {
            prop_assert!(!code.is_empty() && code.len() < file.len());
        }
    }
}

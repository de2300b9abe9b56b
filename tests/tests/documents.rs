//! What DESIGN.md says of tests: those that its tables name exist.
//!
//! A name there is the way to a test: folders, file and function as far as they are needed to find it,
//! joined by `/` or `::`, the last of them perhaps cut short by `*`. A file stands for all tests in it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// The rows of a table, as cells without their blanks; the first row is its head.
type Table<'a> = Vec<Vec<&'a str>>;

fn tables(text: &str) -> Vec<Table<'_>> {
    let mut tables = vec![Vec::new()];
    for line in text.lines() {
        match line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) {
            Some(row) => {
                let last: &mut Table<'_> = tables.last_mut().unwrap();
                last.push(row.split('|').map(str::trim).collect());
            }
            None => tables.push(Vec::new()),
        }
    }
    tables.retain(|table| table.len() > 2);
    tables
}

/// What stands in backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Every test of the workspace, and every file of tests, as the way to it.
fn ways() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
    let mut ways = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") {
                add_ways(&root, path, &mut ways);
            }
        }
    }
    ways
}

fn add_ways(root: &Path, path: PathBuf, ways: &mut Vec<String>) {
    let text = fs::read_to_string(&path).unwrap();
    let tests = tests_of(&text);
    if tests.is_empty() && !text.contains("mod ") {
        return;
    }
    let file = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    let module = file.strip_suffix(".rs").unwrap();
    for test in tests {
        ways.push(format!("{module}/{test}"));
        ways.push(format!("{module}/tests/{test}"));
    }
    ways.push(module.to_owned());
    ways.push(file);
}

/// The functions that a line or two before them make tests, and all of a file of properties.
fn tests_of(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_test = |at: usize| {
        let before = &lines[at.saturating_sub(4)..at];
        before.iter().any(|line| line.starts_with("#[") && line.contains("test"))
    };
    let has_properties = text.contains("proptest! {");
    let functions = lines.iter().enumerate().filter_map(|(at, line)| {
        let name = line.strip_prefix("fn ")?.split(['(', '<']).next()?;
        (has_properties || is_test(at)).then_some(name)
    });
    functions.collect()
}

/// Whether the name leads to one of `ways`.
fn leads_somewhere(name: &str, ways: &[String]) -> bool {
    let name = format!("/{}", name.replace("::", "/"));
    ways.iter().any(|way| {
        let way = format!("/{way}");
        match name.strip_suffix('*') {
            // Of the last part only the beginning is given.
            Some(begins) => {
                let mut rests = way.match_indices(begins).map(|(at, _)| &way[at + begins.len()..]);
                rests.any(|rest| !rest.contains('/'))
            }
            // Or a folder of them.
            None => way.ends_with(&name) || way.contains(&format!("{name}/")),
        }
    })
}

#[test]
fn every_test_that_a_table_of_the_design_names_exists() {
    let design = concat!(env!("CARGO_MANIFEST_DIR"), "/../DESIGN.md");
    let design = fs::read_to_string(design).unwrap();
    let ways = ways();
    let (mut named, mut missing) = (0, Vec::new());
    for table in tables(&design) {
        let about_tests = |head: &&str| head.starts_with("test") || head.starts_with("models");
        let columns = table[0].iter().enumerate().filter(|(_, head)| about_tests(head));
        for (column, _) in columns {
            for row in &table[2..] {
                // A command has blanks.
                let cell = row.get(column).copied().unwrap_or_default();
                for name in quoted(cell).filter(|name| !name.contains(' ')) {
                    named += 1;
                    if !leads_somewhere(name, &ways) {
                        missing.push(format!("{name}, of: {}", row[0]));
                    }
                }
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(named > 100, "{named} names");
    for invented in ["documents::every_test_that_is_not", "order::g9_*", "nowhere.rs"] {
        assert!(!leads_somewhere(invented, &ways), "{invented}");
    }
}

#[test]
fn the_table_of_the_zerocopy_document_names_a_test_for_each_rule() {
    let design = concat!(env!("CARGO_MANIFEST_DIR"), "/../DESIGN.md");
    let design = fs::read_to_string(design).unwrap();
    let tables = tables(&design);
    let table = tables.iter().find(|table| table[0][0] == "the rule there").unwrap();
    for row in &table[2..] {
        assert!(row.len() == 3 && quoted(row[2]).count() > 0, "{}", row[0]);
    }
}

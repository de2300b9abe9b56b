//! The program inside the object file that clang makes.
//!
//! Invariant: the section that is handed out is the program, whole and as it will run. An object
//! file may say that some instructions are yet to be changed (relocations: addresses of maps, of
//! variables, of functions elsewhere); a section with any is refused, so what is left needs no
//! linking. Every offset in the file is one that somebody else wrote: each is looked up with
//! bounds, and nothing is allocated but the names in an error.
//!
//! ELF for 64 bits is described in the System V ABI, chapters 4 and 5. A parser of what is needed
//! here is shorter than a dependency's review.

/// What an object file begins with.
pub const MAGIC: &[u8] = b"\x7fELF";

/// Why a file holds no program that can be loaded. Its author has to change it, or how it is
/// compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// Not an ELF file.
    #[error("this is no object file: it does not begin as one")]
    NotElf,
    /// An ELF file, but not one that clang makes for BPF on little-endian machines.
    #[error(
        "an object file with {given} as its {field}, and a BPF program for here has {expected}"
    )]
    NotBpf {
        /// What differs.
        field: &'static str,
        /// What the file says.
        given: u32,
        /// What it would say.
        expected: u32,
    },
    /// Something that the file refers to is not there.
    #[error("the object file is cut or damaged: its {0} is not inside")]
    Damaged(&'static str),
    /// There is no such section; clang puts a function into one by an attribute.
    #[error("no section {wanted} in the object file, which has {found}")]
    NoSection {
        /// The section looked for.
        wanted: String,
        /// The sections with code that there are.
        found: String,
    },
    /// The section is there and holds no code.
    #[error("section {0} holds no instructions")]
    NotCode(String),
    /// More than one function in the section: which is meant?
    #[error("section {section} holds {functions} functions, and a program is one")]
    SeveralFunctions {
        /// The section.
        section: String,
        /// How many functions.
        functions: usize,
    },
    /// An instruction waits for an address.
    #[error("instruction {at} refers to {symbol}, {what}: a program stands alone")]
    Relocation {
        /// Which instruction, counted from 0 in its section.
        at: u64,
        /// What it refers to: a name, or the section of an unnamed variable.
        symbol: String,
        /// What kind of thing that is.
        what: &'static str,
    },
}

/// The code in one section of a BPF object file.
///
/// ```no_run
/// use bus_core::framing::{bpf::Program, object};
///
/// let file = std::fs::read("thrift.bpf.o")?;
/// let program = Program::verify(object::section(&file, "socket_kcm")?, 1)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`ObjectError`]; nothing in a file makes it panic.
pub fn section<'a>(file: &'a [u8], name: &str) -> Result<&'a [u8], ObjectError> {
    let object = Object::parse(file)?;
    let (index, found) = object.find(name)?;
    if found.kind != SHT_PROGBITS || found.flags & SHF_EXECINSTR == 0 || found.size == 0 {
        return Err(ObjectError::NotCode(name.to_owned()));
    }
    object.check_functions(index, name)?;
    object.check_relocations(index)?;
    object.bytes(found, "section of code")
}

/// A file whose header was read.
struct Object<'a> {
    file: &'a [u8],
    /// All section headers, each of [`SECTION_HEADER_BYTES`].
    headers: &'a [[u8; SECTION_HEADER_BYTES]],
    /// The section with the sections' names.
    names: u16,
}

#[derive(Clone, Copy)]
struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    offset: u64,
    size: u64,
    link: u32,
    info: u32,
}

impl Section {
    fn decode(bytes: &[u8; SECTION_HEADER_BYTES]) -> Self {
        Self {
            name: u32_at(bytes, 0),
            kind: u32_at(bytes, 4),
            flags: u64_at(bytes, 8),
            offset: u64_at(bytes, 24),
            size: u64_at(bytes, 32),
            link: u32_at(bytes, 40),
            info: u32_at(bytes, 44),
        }
    }
}

/// What a symbol is and where.
#[derive(Clone, Copy)]
struct Symbol {
    name: u32,
    kind: u8,
    section: u16,
}

impl Symbol {
    fn decode(bytes: &[u8; SYMBOL_BYTES]) -> Self {
        Self { name: u32_at(bytes, 0), kind: bytes[4] & 15, section: u16_at(bytes, 6) }
    }
}

impl<'a> Object<'a> {
    fn parse(file: &'a [u8]) -> Result<Self, ObjectError> {
        if !file.starts_with(MAGIC) {
            return Err(ObjectError::NotElf);
        }
        let header =
            file.first_chunk::<FILE_HEADER_BYTES>().ok_or(ObjectError::Damaged("header"))?;
        let rows = [
            ("class", header[4].into(), 2),
            ("byte order", header[5].into(), 1),
            ("format version", header[6].into(), 1),
            ("type", u16_at(header, 16).into(), ET_REL),
            ("machine", u16_at(header, 18).into(), EM_BPF),
            ("section header size", u16_at(header, 58).into(), 64),
        ];
        for (field, given, expected) in rows {
            if given != expected {
                return Err(ObjectError::NotBpf { field, given, expected });
            }
        }
        let count = u64::from(u16_at(header, 60));
        let table = part(file, u64_at(header, 40), count * SECTION_HEADER_BYTES as u64)
            .ok_or(ObjectError::Damaged("section table"))?;
        Ok(Self { file, headers: table.as_chunks().0, names: u16_at(header, 62) })
    }

    fn sections(&self) -> impl Iterator<Item = Section> {
        self.headers.iter().map(Section::decode)
    }

    fn section(&self, index: u32) -> Option<Section> {
        let index = usize::try_from(index).ok()?;
        self.headers.get(index).map(Section::decode)
    }

    fn bytes(&self, section: Section, what: &'static str) -> Result<&'a [u8], ObjectError> {
        if section.kind == SHT_NOBITS {
            return Ok(&[]);
        }
        part(self.file, section.offset, section.size).ok_or(ObjectError::Damaged(what))
    }

    fn section_name(&self, section: Section) -> Result<&'a [u8], ObjectError> {
        self.text(self.names.into(), section.name)
    }

    /// The text at this offset of a table of names.
    fn text(&self, table: u32, offset: u32) -> Result<&'a [u8], ObjectError> {
        const WHAT: &str = "table of names";
        let table = self.section(table).ok_or(ObjectError::Damaged(WHAT))?;
        let bytes = self.bytes(table, WHAT)?;
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = bytes.get(offset..).ok_or(ObjectError::Damaged(WHAT))?;
        // Else a file of many sections and one endless name would take long to refuse.
        let rest = rest.get(..MAX_NAME_BYTES).unwrap_or(rest);
        let end = rest.iter().position(|&byte| byte == 0);
        rest.get(..end.ok_or(ObjectError::Damaged(WHAT))?).ok_or(ObjectError::Damaged(WHAT))
    }

    fn find(&self, wanted: &str) -> Result<(usize, Section), ObjectError> {
        let mut found = String::new();
        for (index, section) in self.sections().enumerate() {
            let name = self.section_name(section)?;
            if name == wanted.as_bytes() {
                return Ok((index, section));
            }
            if section.flags & SHF_EXECINSTR != 0 && section.size > 0 && found.len() < MAX_TEXT {
                let separator = if found.is_empty() { "" } else { ", " };
                found = found + separator + &printable(name);
            }
        }
        if found.is_empty() {
            "no section with code".clone_into(&mut found);
        }
        let wanted = wanted.to_owned();
        Err(ObjectError::NoSection { wanted, found })
    }

    /// Refuses a section with several functions; one without any symbol is taken as it is.
    fn check_functions(&self, index: usize, name: &str) -> Result<(), ObjectError> {
        let mut functions = 0;
        for table in self.sections().filter(|table| table.kind == SHT_SYMTAB) {
            let (symbols, _) = self.bytes(table, "table of symbols")?.as_chunks();
            functions += symbols
                .iter()
                .map(Symbol::decode)
                .filter(|symbol| symbol.kind == STT_FUNC && usize::from(symbol.section) == index)
                .count();
        }
        if functions > 1 {
            return Err(ObjectError::SeveralFunctions { section: name.to_owned(), functions });
        }
        Ok(())
    }

    fn check_relocations(&self, index: usize) -> Result<(), ObjectError> {
        for table in self.sections() {
            if !matches!(table.kind, SHT_REL | SHT_RELA) || table.info as usize != index {
                continue;
            }
            let entries = self.bytes(table, "table of relocations")?;
            // Both kinds of entry begin with the place and the symbol.
            if let Some(entry) = entries.first_chunk::<16>() {
                return Err(self.relocation(table, entry)?);
            }
        }
        Ok(())
    }

    fn relocation(&self, table: Section, entry: &[u8; 16]) -> Result<ObjectError, ObjectError> {
        const WHAT: &str = "symbol of a relocation";
        let damaged = ObjectError::Damaged(WHAT);
        let at = u64_at(entry, 0) / 8;
        let number = usize::try_from(u64_at(entry, 8) >> 32).unwrap_or(usize::MAX);
        let symbols = self.section(table.link).ok_or(damaged.clone())?;
        let bytes = self.bytes(symbols, WHAT)?.as_chunks::<SYMBOL_BYTES>().0;
        let symbol = Symbol::decode(bytes.get(number).ok_or(damaged)?);
        let home = match self.section(symbol.section.into()) {
            Some(home) if symbol.section != 0 => self.section_name(home)?,
            _ => b"",
        };
        let name = match self.text(symbols.link, symbol.name)? {
            b"" => home,
            name => name,
        };
        let what = match home {
            _ if symbol.kind == STT_FUNC => "a function",
            b"" => "which is defined elsewhere",
            b"maps" | b".maps" => "a map",
            home if home.starts_with(b".text") => "a function",
            _ => "a variable",
        };
        Ok(ObjectError::Relocation { at, symbol: printable(name), what })
    }
}

/// A name from a file, for an error: short and without control characters.
fn printable(name: &[u8]) -> String {
    let name = name.get(..MAX_TEXT).unwrap_or(name);
    let text = String::from_utf8_lossy(name);
    text.replace(|c: char| c.is_control(), "?")
}

/// `size` bytes of the file from `offset` on, if they are inside.
fn part(file: &[u8], offset: u64, size: u64) -> Option<&[u8]> {
    let from = usize::try_from(offset).ok()?;
    let to = from.checked_add(usize::try_from(size).ok()?)?;
    file.get(from..to)
}

fn u16_at<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

fn field<const N: usize, const M: usize>(bytes: &[u8; N], at: usize) -> [u8; M] {
    *bytes[at..].first_chunk().expect("the fields of a header lie inside it")
}

const FILE_HEADER_BYTES: usize = 64;
const SECTION_HEADER_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
/// The longest name that is read, with the byte that ends it.
const MAX_NAME_BYTES: usize = 1024;
/// Bytes of a name that an error repeats.
const MAX_TEXT: usize = 200;

const ET_REL: u32 = 1;
const EM_BPF: u32 = 247;
const SHT_PROGBITS: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_RELA: u32 = 4;
const SHT_NOBITS: u32 = 8;
const SHT_REL: u32 = 9;
const SHF_EXECINSTR: u64 = 4;
const STT_FUNC: u8 = 2;

#[cfg(all(test, not(any(bus_loom, bus_shuttle))))]
mod tests;

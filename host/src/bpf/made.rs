//! Objects of eBPF programs that tests make by hand.

/// An instruction.
pub const fn op(code: u8, registers: u8, offset: i16, imm: i32) -> [u8; 8] {
    let ([a, b], [c, d, e, f]) = (offset.to_le_bytes(), imm.to_le_bytes());
    [code, registers, a, b, c, d, e, f]
}

/// The end of a function.
pub const EXIT: [u8; 8] = op(0x95, 0, 0, 0);
/// A call of what its relocation says.
pub const CALL_0: [u8; 8] = op(0x85, 0x10, 0, -1);

/// A register becomes a number of 64 bits.
pub const fn load(register: u8, number: u64) -> [[u8; 8]; 2] {
    [op(0x18, register, 0, number as i32), op(0, 0, 0, (number >> 32) as i32)]
}

struct Section {
    name: String,
    kind: u32,
    flags: u64,
    bytes: Vec<u8>,
    size: usize,
    /// Offset, kind, symbol.
    relocations: Vec<(u64, u32, String)>,
}

struct Symbol {
    name: String,
    kind: u8,
    section: usize,
    value: u64,
    size: u64,
}

/// An object that is being made. Sections are called by their numbers, from 1; a symbol that is not defined is one of
/// others.
#[derive(Default)]
pub struct Made {
    sections: Vec<Section>,
    symbols: Vec<Symbol>,
}

const PROGBITS: u32 = 1;
const NOBITS: u32 = 8;
const WRITE: u64 = 1;
const ALLOC: u64 = 2;
const EXECUTE: u64 = 4;
const FUNCTION: u8 = 2;

impl Made {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn section(&mut self, name: &str, kind: u32, flags: u64, bytes: &[u8], size: usize) -> usize {
        let (name, bytes, relocations) = (name.into(), bytes.into(), Vec::new());
        self.sections.push(Section { name, kind, flags, bytes, size, relocations });
        self.sections.len()
    }

    /// A section of instructions.
    pub fn code(&mut self, name: &str, code: &[[u8; 8]]) -> usize {
        self.section(name, PROGBITS, ALLOC | EXECUTE, code.as_flattened(), code.len() * 8)
    }

    /// A section of data.
    pub fn data(&mut self, name: &str, bytes: &[u8], writable: bool) -> usize {
        let flags = if writable { ALLOC | WRITE } else { ALLOC };
        self.section(name, PROGBITS, flags, bytes, bytes.len())
    }

    /// A section of zeroes.
    pub fn zeroes(&mut self, name: &str, size: usize) -> usize {
        self.section(name, NOBITS, ALLOC | WRITE, &[], size)
    }

    /// Defines a symbol.
    pub fn symbol(&mut self, name: &str, kind: u8, section: usize, value: u64, size: u64) {
        self.symbols.push(Symbol { name: name.into(), kind, section, value, size });
    }

    /// Defines a function.
    pub fn function(&mut self, name: &str, section: usize, start: u64, size: usize) {
        self.symbol(name, FUNCTION, section, start, size as u64);
    }

    /// Gives a function another size.
    pub fn cut_function(&mut self, name: &str, size: u64) {
        let found = self.symbols.iter_mut().find(|symbol| symbol.name == name);
        found.expect("it is defined").size = size;
    }

    /// Adds a relocation.
    pub fn relocate(&mut self, section: usize, offset: u64, kind: u32, symbol: &str) {
        self.sections[section - 1].relocations.push((offset, kind, symbol.into()));
    }

    /// Changes an instruction's number; sections from 0 here.
    pub fn set_imm(&mut self, section: usize, offset: usize, imm: i32) {
        self.sections[section].bytes[offset + 4..offset + 8].copy_from_slice(&imm.to_le_bytes());
    }

    /// The object.
    pub fn bytes(&self) -> Vec<u8> {
        let mut names = vec![0];
        let mut name = |text: &str| {
            let at = names.len() as u32;
            names.extend(text.bytes().chain([0]));
            at
        };
        let mut listed: Vec<&str> = self.symbols.iter().map(|symbol| symbol.name.as_str()).collect();
        let mut symbols = vec![0; 24];
        for symbol in &self.symbols {
            symbols.extend(name(&symbol.name).to_le_bytes());
            symbols.extend([0x10 | symbol.kind, 0]);
            symbols.extend((symbol.section as u16).to_le_bytes());
            symbols.extend([symbol.value, symbol.size].iter().flat_map(|number| number.to_le_bytes()));
        }
        for (.., wanted) in self.sections.iter().flat_map(|section| &section.relocations) {
            if !listed.contains(&wanted.as_str()) {
                listed.push(wanted);
                symbols.extend(name(wanted).to_le_bytes());
                symbols.extend([0x10, 0].into_iter().chain([0; 18]));
            }
        }

        let count = self.sections.len() as u32;
        // Name, type, flags, bytes, size, link, info, size of an entry.
        let mut sections = vec![(0, 0, 0, vec![], 0, 0, 0, 0)];
        for section in &self.sections {
            let bytes = section.bytes.clone();
            sections.push((name(&section.name), section.kind, section.flags, bytes, section.size, 0, 0, 0));
        }
        let tables = count + 1;
        sections.push((name(".symtab"), 2, 0, symbols.clone(), symbols.len(), tables + 1, 1, 24));
        let strings = sections.len();
        sections.push((name(".strtab"), 3, 0, vec![], 0, 0, 0, 0));
        for (number, section) in (1_u32..).zip(&self.sections) {
            let mut bytes = Vec::new();
            for (offset, kind, wanted) in &section.relocations {
                let symbol = 1 + listed.iter().position(|listed| listed == wanted).unwrap_or(0) as u64;
                bytes.extend(offset.to_le_bytes());
                bytes.extend((symbol << 32 | u64::from(*kind)).to_le_bytes());
            }
            if !bytes.is_empty() {
                let (name, size) = (name(&format!(".rel{}", section.name)), bytes.len());
                sections.push((name, 9, 0, bytes, size, tables, number, 16));
            }
        }
        (sections[strings].4, sections[strings].3) = (names.len(), names);

        let mut file = vec![0; 64];
        let mut headers = Vec::new();
        for (name, kind, flags, bytes, size, link, info, entry) in &sections {
            let at = file.len() as u64;
            file.extend(bytes);
            file.resize(file.len().next_multiple_of(8), 0);
            headers.extend([*name, *kind].iter().flat_map(|number| number.to_le_bytes()));
            headers.extend([*flags, 0, at, *size as u64].iter().flat_map(|number| number.to_le_bytes()));
            headers.extend([*link, *info].iter().flat_map(|number: &u32| number.to_le_bytes()));
            headers.extend([1_u64, *entry].iter().flat_map(|number| number.to_le_bytes()));
        }
        let at = file.len() as u64;
        file.extend(headers);
        file[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        // A relocatable object for eBPF.
        file[16..24].copy_from_slice(&[1, 0, 247, 0, 1, 0, 0, 0]);
        file[40..48].copy_from_slice(&at.to_le_bytes());
        let halves = [64, 0, 0, 64, sections.len() as u16, strings as u16];
        file[52..64].copy_from_slice(&halves.map(u16::to_le_bytes).concat());
        file
    }
}

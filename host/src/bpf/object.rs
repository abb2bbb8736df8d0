//! Reads the relocatable object of the eBPF programs, and links each program with the functions that it calls.
//!
//! The formats: the ELF specification, and Documentation/bpf/llvm_reloc.rst and
//! Documentation/bpf/standardization/instruction-set.rst of the kernel.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use elf::ElfBytes;
use elf::abi::{
    EM_BPF, ET_REL, SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHN_LORESERVE, SHN_UNDEF, SHT_NOBITS, SHT_PROGBITS,
    SHT_REL, SHT_RELA, STT_FUNC,
};
use elf::endian::LittleEndian;
use elf::section::SectionHeader;

/// Bytes of an instruction.
const SIZE: u64 = 8;
/// Most instructions that the kernel takes (`BPF_COMPLEXITY_LIMIT_INSNS`).
const MOST: usize = 1_000_000;

/// A 64-bit number, in two instructions.
const LOAD: u8 = 0x18;
const CALL: u8 = 0x85;
/// `r0 = ` a number.
const MOVE: u8 = 0xb7;

/// Kinds of a [`LOAD`]: `BPF_PSEUDO_MAP_FD`, `BPF_PSEUDO_MAP_VALUE`.
const LOAD_MAP: u8 = 1;
const LOAD_MAP_VALUE: u8 = 2;
/// Kinds of a [`CALL`]: `BPF_PSEUDO_CALL`, `BPF_PSEUDO_KFUNC_CALL`.
const CALL_FUNCTION: u8 = 1;
const CALL_KERNEL: u8 = 2;

/// Relocations: of a number, of a call.
const R_BPF_NONE: u32 = 0;
const R_BPF_64_64: u32 = 1;
const R_BPF_64_32: u32 = 10;

/// What is wrong with an object: no user's fault, as it is part of this program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no ELF file that is understood.
    #[error("the eBPF object cannot be read: {0}")]
    Elf(#[from] elf::ParseError),
    /// It is not what it should be.
    #[error("the eBPF object is wrong: {0}")]
    Wrong(&'static str),
    /// An instruction, or what belongs to it, is not as it should be.
    #[error("the eBPF object is wrong: {what} (section {section}, byte {offset})")]
    At {
        /// What is wrong.
        what: &'static str,
        /// The section's name.
        section: String,
        /// The instruction's place in it.
        offset: u64,
    },
    /// It wants something that nobody knows.
    #[error("the eBPF object wants {0}, which neither this program nor this kernel has")]
    Unknown(String),
}

/// An instruction, as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u8,
    /// Destination in the low half, source in the high one.
    pub registers: u8,
    /// Of memory accesses and jumps.
    pub offset: i16,
    /// A number.
    pub imm: i32,
}
const _: () = assert!(size_of::<Instruction>() as u64 == SIZE);

impl Instruction {
    fn read([code, registers, low, high, imm @ ..]: [u8; 8]) -> Self {
        Self { code, registers, offset: i16::from_le_bytes([low, high]), imm: i32::from_le_bytes(imm) }
    }

    fn source(self) -> u8 {
        self.registers >> 4
    }

    fn with_source(self, source: u8) -> Self {
        Self { registers: self.registers & 0xf | source << 4, ..self }
    }
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A tracepoint, whose arguments are plain numbers.
    RawTracepoint,
    /// A tracepoint, whose arguments have their types.
    TypedTracepoint,
    /// A function's entry.
    Function,
}

/// What the names of programs' sections begin with.
const KINDS: [(&str, Kind); 3] =
    [("raw_tp/", Kind::RawTracepoint), ("tp_btf/", Kind::TypedTracepoint), ("fentry/", Kind::Function)];

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program<'a> {
    /// How it is attached.
    pub kind: Kind,
    /// To what: a tracepoint or a function.
    pub event: &'a str,
    /// What the section's name has after a point: for which kernels it is; empty where it says nothing.
    pub variant: &'a str,
    function: usize,
}

/// What a name is for which the object has no definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(u64),
    /// A map.
    Map(RawFd),
    /// The value of a map that has one.
    MapValue(RawFd),
}

/// What only the loader knows.
pub trait Symbols {
    /// The map that a section of data has become.
    fn data(&self, section: usize) -> Option<RawFd>;
    /// What a name is.
    fn value(&self, name: &str) -> Option<Value>;
    /// The number of a function of the kernel's; `Some(None)` if the program is prepared for a kernel without it.
    fn kernel_function(&self, name: &str) -> Option<Option<u32>>;
}

/// A section of data, which becomes a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data<'a> {
    /// Number of the section.
    pub section: usize,
    /// Its name.
    pub name: &'a str,
    /// Its size in bytes.
    pub size: u64,
    /// What is in it; zeroes if there is nothing.
    pub bytes: &'a [u8],
    /// Whether programs may write to it.
    pub writable: bool,
}

#[derive(Debug)]
enum Content<'a> {
    Code(&'a [u8]),
    Data(Data<'a>),
    Other,
}

#[derive(Debug)]
struct Section<'a> {
    name: &'a str,
    content: Content<'a>,
    /// By the place that they change.
    relocations: BTreeMap<u64, Relocation>,
}

#[derive(Clone, Copy, Debug)]
struct Relocation {
    kind: u32,
    symbol: usize,
}

#[derive(Debug)]
struct Symbol<'a> {
    name: &'a str,
    /// `None` if it is defined elsewhere.
    section: Option<usize>,
    value: u64,
}

#[derive(Clone, Copy, Debug)]
struct Function {
    section: usize,
    start: u64,
    size: u64,
}

/// The object.
#[derive(Debug)]
pub struct Object<'a> {
    sections: Vec<Section<'a>>,
    symbols: Vec<Symbol<'a>>,
    functions: Vec<Function>,
    /// Functions by section and place.
    starts: BTreeMap<(usize, u64), usize>,
    programs: Vec<Program<'a>>,
}

impl<'a> Object<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// If it is not a relocatable object for eBPF.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let file = ElfBytes::<LittleEndian>::minimal_parse(bytes)?;
        if file.ehdr.e_machine != EM_BPF || file.ehdr.e_type != ET_REL {
            return Err(Error::Wrong("it is not a relocatable object for eBPF"));
        }
        let (Some(headers), Some(names)) = file.section_headers_with_strtab()? else {
            return Err(Error::Wrong("it has no sections"));
        };
        let mut sections = Vec::new();
        for (number, header) in headers.iter().enumerate() {
            let name = names.get(header.sh_name as usize)?;
            let content = content(&file, number, name, &header)?;
            sections.push(Section { name, content, relocations: BTreeMap::new() });
        }
        for header in headers.iter() {
            read_relocations(&file, &header, &mut sections)?;
        }
        let mut object = Self {
            sections,
            symbols: Vec::new(),
            functions: Vec::new(),
            starts: BTreeMap::new(),
            programs: Vec::new(),
        };
        object.read_symbols(&file)?;
        object.find_programs()?;
        Ok(object)
    }

    fn read_symbols(&mut self, file: &ElfBytes<'a, LittleEndian>) -> Result<(), Error> {
        let Some((symbols, names)) = file.symbol_table()? else { return Ok(()) };
        for symbol in symbols.iter() {
            let section = match symbol.st_shndx {
                SHN_UNDEF => None,
                // Absolute, common and such have no section; a number beyond the last is none either.
                SHN_LORESERVE.. => Some(usize::MAX),
                section => Some(usize::from(section)),
            };
            if let Some(section) = section
                && symbol.st_symtype() == STT_FUNC
            {
                let function = Function { section, start: symbol.st_value, size: symbol.st_size };
                self.starts.entry((section, function.start)).or_insert(self.functions.len());
                self.functions.push(function);
            }
            let name = names.get(symbol.st_name as usize)?;
            self.symbols.push(Symbol { name, section, value: symbol.st_value });
        }
        Ok(())
    }

    fn find_programs(&mut self) -> Result<(), Error> {
        for (number, section) in self.sections.iter().enumerate() {
            let Content::Code(_) = section.content else { continue };
            let found =
                KINDS.iter().find_map(|&(prefix, kind)| Some((kind, section.name.strip_prefix(prefix)?)));
            let Some((kind, rest)) = found else { continue };
            let (event, variant) = rest.split_once('.').unwrap_or((rest, ""));
            let Some(&function) = self.starts.get(&(number, 0)) else {
                return Err(section.wrong(0, "a program's section does not begin with a function"));
            };
            self.programs.push(Program { kind, event, variant, function });
        }
        Ok(())
    }

    /// All programs, in their order.
    pub fn programs(&self) -> &[Program<'a>] {
        &self.programs
    }

    /// The sections of data that programs refer to, in their order.
    pub fn data(&self) -> impl Iterator<Item = Data<'a>> {
        let referred = |number| {
            let code = self.sections.iter().filter(|section| matches!(section.content, Content::Code(_)));
            code.flat_map(|section| section.relocations.values())
                .filter_map(|relocation| self.symbols.get(relocation.symbol)?.section)
                .any(|section| section == number)
        };
        self.sections.iter().filter_map(move |section| match section.content {
            Content::Data(data) if data.size > 0 && referred(data.section) => Some(data),
            _ => None,
        })
    }

    /// A program's instructions, and those of all functions that it calls, each once.
    ///
    /// # Errors
    /// If the object is damaged, or wants what `symbols` does not know.
    pub fn link(&self, program: &Program<'_>, symbols: &impl Symbols) -> Result<Vec<Instruction>, Error> {
        let mut linker = Linker {
            object: self,
            symbols,
            functions: vec![program.function],
            calls: Vec::new(),
            code: Vec::new(),
        };
        let mut starts = Vec::new();
        while let Some(&function) = linker.functions.get(starts.len()) {
            starts.push(linker.code.len());
            linker.append(function)?;
        }
        for (at, function) in linker.calls {
            let distance =
                starts.get(function).and_then(|&start| i32::try_from(start as i64 - at as i64 - 1).ok());
            let (Some(distance), Some(call)) = (distance, linker.code.get_mut(at)) else {
                return Err(Error::Wrong("a function is too far away"));
            };
            *call = Instruction { imm: distance, ..call.with_source(CALL_FUNCTION) };
        }
        Ok(linker.code)
    }
}

impl Section<'_> {
    fn wrong(&self, offset: u64, what: &'static str) -> Error {
        Error::At { what, section: self.name.into(), offset }
    }
}

fn content<'a>(
    file: &ElfBytes<'a, LittleEndian>,
    section: usize,
    name: &'a str,
    header: &SectionHeader,
) -> Result<Content<'a>, Error> {
    let has = |flag: u32| header.sh_flags & u64::from(flag) != 0;
    let bytes = || -> Result<&'a [u8], Error> {
        match file.section_data(header)? {
            (bytes, None) => Ok(bytes),
            (_, Some(_)) => Err(Error::Wrong("a section is compressed")),
        }
    };
    Ok(match header.sh_type {
        SHT_PROGBITS if has(SHF_EXECINSTR) => Content::Code(bytes()?),
        SHT_PROGBITS | SHT_NOBITS if has(SHF_ALLOC) => Content::Data(Data {
            section,
            name,
            size: header.sh_size,
            bytes: if header.sh_type == SHT_NOBITS { &[] } else { bytes()? },
            writable: has(SHF_WRITE),
        }),
        _ => Content::Other,
    })
}

fn read_relocations(
    file: &ElfBytes<'_, LittleEndian>,
    header: &SectionHeader,
    sections: &mut [Section<'_>],
) -> Result<(), Error> {
    let Some(section) = sections.get_mut(header.sh_info as usize) else { return Ok(()) };
    if matches!(section.content, Content::Other) {
        return Ok(());
    }
    match header.sh_type {
        SHT_REL => {}
        SHT_RELA => return Err(section.wrong(0, "its relocations are of a kind that eBPF has not")),
        _ => return Ok(()),
    }
    for entry in file.section_data_as_rels(header)?.filter(|entry| entry.r_type != R_BPF_NONE) {
        let relocation = Relocation { kind: entry.r_type, symbol: entry.r_sym as usize };
        if section.relocations.insert(entry.r_offset, relocation).is_some() {
            return Err(section.wrong(entry.r_offset, "two relocations of one place"));
        }
    }
    if matches!(section.content, Content::Data(_)) && !section.relocations.is_empty() {
        return Err(section.wrong(0, "data that has addresses"));
    }
    Ok(())
}

/// A program while it is put together.
struct Linker<'o, 'a, S> {
    object: &'o Object<'a>,
    symbols: &'o S,
    /// In their order in `code`.
    functions: Vec<usize>,
    /// Places of calls, and the place in `functions` of what they call.
    calls: Vec<(usize, usize)>,
    code: Vec<Instruction>,
}

impl<S: Symbols> Linker<'_, '_, S> {
    fn append(&mut self, function: usize) -> Result<(), Error> {
        let object = self.object;
        let wrong = Error::Wrong("a function is not where it should be");
        let Some(&Function { section: number, start, size }) = object.functions.get(function) else {
            return Err(wrong);
        };
        let Some((section, Content::Code(bytes))) =
            object.sections.get(number).map(|section| (section, &section.content))
        else {
            return Err(wrong);
        };
        let range = usize::try_from(start)
            .ok()
            .zip(start.checked_add(size).and_then(|end| usize::try_from(end).ok()));
        let body = range.and_then(|(start, end)| bytes.get(start..end));
        let Some((body, [])) = body.map(|body| body.as_chunks::<8>()).filter(|(body, _)| !body.is_empty())
        else {
            return Err(wrong);
        };
        if !start.is_multiple_of(SIZE) || self.code.len() + body.len() > MOST {
            return Err(section.wrong(start, "a function is too long, or between instructions"));
        }
        let mut left =
            body.iter().zip(0_u64..).map(|(&bytes, index)| (start + index * SIZE, Instruction::read(bytes)));
        while let Some((offset, instruction)) = left.next() {
            let relocation = section.relocations.get(&offset).copied();
            match instruction.code {
                LOAD => {
                    let Some((_, second)) = left.next() else {
                        return Err(section.wrong(offset, "half a load of 64 bits"));
                    };
                    let linked = match relocation {
                        Some(relocation) => self.load(section, offset, [instruction, second], relocation)?,
                        None if instruction.source() == 0 => [instruction, second],
                        None => return Err(section.wrong(offset, "a load of something unknown")),
                    };
                    self.code.extend(linked);
                }
                CALL => {
                    let linked = self.call((section, number), offset, instruction, relocation)?;
                    self.code.push(linked);
                }
                _ if relocation.is_some() => {
                    return Err(section.wrong(offset, "a relocation where there is nothing to relocate"));
                }
                _ => self.code.push(instruction),
            }
        }
        Ok(())
    }

    fn load(
        &self,
        section: &Section<'_>,
        offset: u64,
        [first, second]: [Instruction; 2],
        relocation: Relocation,
    ) -> Result<[Instruction; 2], Error> {
        let wrong = |what| section.wrong(offset, what);
        if relocation.kind != R_BPF_64_64 {
            return Err(wrong("a number with a relocation of another kind"));
        }
        let symbol =
            self.object.symbols.get(relocation.symbol).ok_or_else(|| wrong("there is no such symbol"))?;
        let addend = u64::from(first.imm as u32) | u64::from(second.imm as u32) << 32;
        let value = match symbol.section {
            None => self.symbols.value(symbol.name).ok_or_else(|| Error::Unknown(symbol.name.into()))?,
            Some(number) => match self.object.sections.get(number).map(|section| &section.content) {
                Some(Content::Data(_)) => {
                    Value::MapValue(self.symbols.data(number).ok_or_else(|| wrong("data without a map"))?)
                }
                Some(Content::Code(_)) => return Err(wrong("the address of a function")),
                _ => return Err(wrong("the address of something that is not there")),
            },
        };
        let place = i32::try_from(symbol.value.wrapping_add(addend)).ok().filter(|&place| place >= 0);
        let (source, imm, high) = match value {
            Value::Number(number) => {
                let number = number.wrapping_add(addend);
                (0, number as i32, (number >> 32) as i32)
            }
            Value::Map(_) if addend != 0 => return Err(wrong("a place in a map that is not one value")),
            Value::Map(map) => (LOAD_MAP, map, 0),
            Value::MapValue(map) => {
                (LOAD_MAP_VALUE, map, place.ok_or_else(|| wrong("a place beyond its section"))?)
            }
        };
        Ok([Instruction { imm, ..first.with_source(source) }, Instruction { imm: high, ..second }])
    }

    fn call(
        &mut self,
        (section, number): (&Section<'_>, usize),
        offset: u64,
        call: Instruction,
        relocation: Option<Relocation>,
    ) -> Result<Instruction, Error> {
        let wrong = |what| section.wrong(offset, what);
        // Counted in instructions from the symbol, or from the next instruction where there is none.
        let distance = i64::from(call.imm) + 1;
        let at = |base: u64| base.checked_add_signed(distance * SIZE as i64);
        let target = match relocation {
            None => match call.source() {
                // The number of a helper.
                0 => return Ok(call),
                CALL_FUNCTION => at(offset).map(|target| (number, target)),
                _ => return Err(wrong("a call of something unknown")),
            },
            Some(relocation) if relocation.kind == R_BPF_64_32 => {
                let symbol = self.object.symbols.get(relocation.symbol);
                let symbol = symbol.ok_or_else(|| wrong("there is no such symbol"))?;
                match symbol.section {
                    Some(section) => at(symbol.value).map(|target| (section, target)),
                    None => return self.call_kernel(call, symbol.name),
                }
            }
            Some(_) => return Err(wrong("a call with a relocation of another kind")),
        };
        let function = target.and_then(|target| self.object.starts.get(&target).copied());
        let function = function.ok_or_else(|| wrong("a call of something that is no function"))?;
        let known = self.functions.iter().position(|&known| known == function);
        let place = known.unwrap_or_else(|| {
            self.functions.push(function);
            self.functions.len() - 1
        });
        self.calls.push((self.code.len(), place));
        Ok(call)
    }

    fn call_kernel(&self, call: Instruction, name: &str) -> Result<Instruction, Error> {
        let function =
            self.symbols.kernel_function(name).ok_or_else(|| Error::Unknown(format!("{name}()")))?;
        match function.map(i32::try_from) {
            Some(Ok(imm)) => Ok(Instruction { imm, offset: 0, ..call.with_source(CALL_KERNEL) }),
            Some(Err(_)) => Err(Error::Unknown(format!("{name}()"))),
            None => Ok(Instruction { code: MOVE, registers: 0, offset: 0, imm: 0 }),
        }
    }
}

#[cfg(test)]
mod tests;

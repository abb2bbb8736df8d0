//! Writes BTF: kernels of their own for tests, here and in `host`.

extern crate std;

use std::vec::Vec;

/// Length of the header.
const HEADER: u32 = 24;
const STRUCT: u32 = 4;

/// Types and names, in their order.
#[derive(Default)]
pub struct Writer {
    pub types: Vec<u32>,
    pub strings: Vec<u8>,
    /// Strings and types of what this goes on from.
    pub before: (u32, u32),
    pub count: u32,
}

impl Writer {
    /// A kernel's.
    pub fn new() -> Self {
        Self { strings: [0].into(), ..Self::default() }
    }

    /// Those of a module of a kernel.
    pub fn on(kernel: &Self) -> Self {
        Self { before: (kernel.strings.len() as u32, kernel.count), ..Self::default() }
    }

    /// Adds a name; gives its place.
    pub fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.before.0 + self.strings.len() as u32;
        self.strings.extend(name.bytes().chain([0]));
        at
    }

    /// Adds a type; gives its number.
    pub fn add(&mut self, name: &str, kind: u32, count: usize, detail: u32, data: &[u32]) -> u32 {
        let name = self.name(name);
        self.types.extend([name, kind << 24 | count as u32, detail]);
        self.types.extend(data);
        self.count += 1;
        self.before.1 + self.count
    }

    /// Adds a structure or union of members: name, type, offset in bits.
    pub fn members(&mut self, kind: u32, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let data: Vec<u32> =
            members.iter().flat_map(|(name, number, bits)| [self.name(name), *number, *bits]).collect();
        self.add(name, kind, members.len(), size, &data)
    }

    /// Adds a structure.
    pub fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.members(STRUCT, name, size, members)
    }

    /// All of it.
    pub fn bytes(&self) -> Vec<u8> {
        let types = (self.types.len() * 4) as u32;
        let header = [0x01_eb9f, HEADER, 0, types, types, self.strings.len() as u32];
        let words = header.iter().chain(&self.types).flat_map(|word| word.to_le_bytes());
        words.chain(self.strings.iter().copied()).collect()
    }
}

//! What a kernel says of its own structures, in BTF: where a member is, and how large.
//!
//! The format: Documentation/bpf/btf.rst of the kernel. A module's types go on where the kernel's end, and so do
//! its strings. Whatever is not understood is not there: an answer is certain, or there is none.

/// Length of the header's part that is read, and of the fixed part of a type.
const HEADER: usize = 24;
const TYPE: usize = 12;
/// Length of a member of a structure or union, and of a parameter.
const MEMBER: usize = 12;
const PARAMETER: usize = 8;
/// Of so many of a kernel's types, one has its place noted; and how many that may be.
const STRIDE: usize = 2048;
const MARKS: usize = 128;
/// How many typedefs, qualifiers and arrays may be nested.
const DEPTH: u32 = 16;
/// How many types of one name are looked at.
const SAME: usize = 4;
/// How many nameless members may be.
const NAMELESS: u32 = 4;

/// Kinds of types.
mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// Where something is in its structure, and how large it is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// From the beginning of the structure, or of that which the last pointer points to.
    pub offset: u32,
    /// Its size.
    pub size: u32,
}

/// The types of a kernel and of one of its modules.
#[derive(Debug)]
pub struct Types<'a> {
    kernel: Blob<'a>,
    module: Blob<'a>,
    /// Number of the module's first type.
    first: u32,
    /// Where in the kernel's types each [`STRIDE`]th is: they can be found in their order only.
    marks: [u32; MARKS],
}

/// What may have a number that the kernel asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A function.
    Function,
    /// A structure.
    Structure,
    /// Another name of a type.
    Typedef,
}

/// The types of a name.
#[derive(Debug)]
pub struct Root<'a> {
    found: [Option<Type<'a>>; SAME],
    /// Whether there are more than that.
    more: bool,
}

/// The two parts of an expression: a name, and what follows it.
pub fn split(expression: &str) -> Option<(&str, &str)> {
    expression.split_at_checked(expression.find(['.', '(']).unwrap_or(expression.len()))
}

#[derive(Clone, Copy, Debug, Default)]
struct Blob<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
struct Type<'a> {
    name: u32,
    kind: u32,
    /// Whether members have a size in bits.
    bits: bool,
    /// Size in bytes or number of another type, depending on the kind.
    detail: u32,
    /// What follows: members, parameters, an array's numbers.
    data: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

impl<'a> Blob<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        const MAGIC_AND_VERSION: u32 = 0x01_eb9f;
        if word(bytes, 0)? & 0x00ff_ffff != MAGIC_AND_VERSION {
            return None;
        }
        let length = usize::try_from(word(bytes, 4)?).ok().filter(|&length| length >= HEADER)?;
        let body = bytes.get(length..)?;
        let section = |at| {
            let [start, length] = [word(bytes, at)?, word(bytes, at + 4)?].map(|number| number as usize);
            body.get(start..)?.get(..length)
        };
        Some(Self { types: section(8)?, strings: section(16)? })
    }

    fn types(self) -> Walk<'a> {
        Walk(self.types)
    }
}

/// Goes through types, as far as they are understood; what is left is not.
struct Walk<'a>(&'a [u8]);

impl<'a> Iterator for Walk<'a> {
    type Item = Type<'a>;

    fn next(&mut self) -> Option<Type<'a>> {
        let (name, info, detail) = (word(self.0, 0)?, word(self.0, 4)?, word(self.0, 8)?);
        let (kind, count) = (info >> 24 & 0x7f, info as usize & 0x00ff_ffff);
        let length = match kind {
            kind::PTR | kind::FWD | kind::TYPEDEF | kind::VOLATILE | kind::CONST => 0,
            kind::RESTRICT | kind::FUNC | kind::FLOAT | kind::TYPE_TAG => 0,
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION => count * MEMBER,
            kind::ENUM | kind::FUNC_PROTO => count * PARAMETER,
            kind::DATASEC | kind::ENUM64 => count * 12,
            _ => return None,
        };
        let (data, rest) = self.0.get(TYPE..)?.split_at_checked(length)?;
        self.0 = rest;
        Some(Type { name, kind, bits: info >> 31 != 0, detail, data })
    }
}

impl<'a> Types<'a> {
    /// Reads a kernel's BTF and a module's, which is empty for what is built into the kernel.
    pub fn read(kernel: &'a [u8], module: &'a [u8]) -> Option<Self> {
        let kernel = Blob::read(kernel)?;
        let module = if module.is_empty() { Blob::default() } else { Blob::read(module)? };
        let mut walk = kernel.types();
        let mut count = 0_usize;
        let mut marks = [0; MARKS];
        loop {
            if let Some(mark) = marks.get_mut(count / STRIDE).filter(|_| count.is_multiple_of(STRIDE)) {
                *mark = u32::try_from(kernel.types.len() - walk.0.len()).ok()?;
            }
            if walk.next().is_none() {
                break;
            }
            count += 1;
        }
        // A type that is not understood would give wrong numbers to all that follow. Number 0 is `void`.
        if !walk.0.is_empty() {
            return None;
        }
        Some(Self { kernel, module, first: u32::try_from(count).ok()?.checked_add(1)?, marks })
    }

    /// Where that is which a C expression speaks of: a structure's tag, or the name of a function or of a type of
    /// functions, then any number of `.member`, `->member` and `(number of a parameter)`. For example
    /// `vcpu_svm.vmcb->control` or `kvm_arch_vcpu_destroy(0)->vcpu_id`.
    ///
    /// `None` where there is no such thing, or where two of that name differ.
    pub fn place(&self, expression: &str) -> Option<Place> {
        let (name, steps) = split(expression)?;
        self.place_in(&self.root(name), steps)
    }

    /// The value of an enumeration's constant. `None` where there is none of that name, or where two differ.
    pub fn constant(&self, name: &str) -> Option<u32> {
        let mut values = [self.module, self.kernel]
            .into_iter()
            .flat_map(Blob::types)
            .filter(|found| found.kind == kind::ENUM)
            .flat_map(|found| found.data.chunks_exact(PARAMETER))
            .filter(|constant| word(constant, 0).is_some_and(|its_name| self.is_named(its_name, name)))
            .map(|constant| word(constant, 4));
        let first = values.next()??;
        values.all(|value| value == Some(first)).then_some(first)
    }

    /// The number of the one type that is of a kind and has a name: the module's, if it has such a type. `None` where
    /// there is none, or more than one.
    pub fn number_of(&self, kind: Kind, name: &str) -> Option<u32> {
        let kind = match kind {
            Kind::Function => kind::FUNC,
            Kind::Structure => kind::STRUCT,
            Kind::Typedef => kind::TYPEDEF,
        };
        for (blob, first) in [(self.module, self.first), (self.kernel, 1)] {
            let numbered = (first..).zip(blob.types());
            let mut found =
                numbered.filter(|(_, found)| found.kind == kind && self.is_named(found.name, name));
            if let Some((number, _)) = found.next() {
                return found.next().is_none().then_some(number);
            }
        }
        None
    }

    /// Whether a type is the module's own, and not the kernel's.
    pub fn is_of_module(&self, number: u32) -> bool {
        number >= self.first
    }

    /// What an expression may begin with, by its name; found once for many expressions, as this takes longest.
    pub fn root(&self, name: &str) -> Root<'a> {
        let is_root = |kind| matches!(kind, kind::STRUCT | kind::FUNC | kind::TYPEDEF);
        let named = |found: &Type<'a>| is_root(found.kind) && self.is_named(found.name, name);
        let mut root = Root { found: [None; SAME], more: false };
        for blob in [self.module, self.kernel] {
            let mut found = blob.types().filter(named);
            root.found.iter_mut().for_each(|place| *place = found.next());
            root.more = found.next().is_some();
            if root.found.iter().any(Option::is_some) {
                break;
            }
        }
        root
    }

    /// As [`Types::place`], of an expression's second part.
    pub fn place_in(&self, root: &Root<'a>, steps: &str) -> Option<Place> {
        let mut places = root.found.iter().flatten().map(|&found| self.follow(found, steps));
        let first = places.next()??;
        (!root.more && places.all(|place| place == Some(first))).then_some(first)
    }

    fn follow(&self, root: Type<'a>, mut steps: &str) -> Option<Place> {
        let (mut here, mut offset) = (root, 0_u32);
        while !steps.is_empty() {
            let number;
            if let Some(rest) = steps.strip_prefix('(') {
                let (index, rest) = rest.split_once(')')?;
                if here.kind != kind::FUNC {
                    here = self.pointee(here)?;
                } else {
                    here = self.plain(here.detail)?;
                }
                (number, offset, steps) = (parameter(here, index.parse().ok()?)?, 0, rest);
            } else {
                if let Some(rest) = steps.strip_prefix("->") {
                    (here, offset, steps) = (self.pointee(here)?, 0, rest);
                } else {
                    steps = steps.strip_prefix('.')?;
                }
                let end = steps.find(['.', '-', '(']).unwrap_or(steps.len());
                let (name, rest) = steps.split_at_checked(end)?;
                let member = self.member(here, name, NAMELESS)?;
                (number, offset, steps) = (member.0, offset.checked_add(member.1)?, rest);
            }
            here = self.plain(number)?;
        }
        Some(Place { offset, size: self.size(here, DEPTH)? })
    }

    /// The type of a number; `None` for `void`.
    fn get(&self, number: u32) -> Option<Type<'a>> {
        if let Some(index) = number.checked_sub(self.first) {
            return self.module.types().nth(index as usize);
        }
        let index = number.checked_sub(1)? as usize;
        let mark = (index / STRIDE).min(MARKS - 1);
        Walk(self.kernel.types.get(*self.marks.get(mark)? as usize..)?).nth(index - mark * STRIDE)
    }

    /// The type of a number, without its other names and qualifiers.
    fn plain(&self, mut number: u32) -> Option<Type<'a>> {
        for _ in 0..DEPTH {
            let found = self.get(number)?;
            match found.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    number = found.detail;
                }
                _ => return Some(found),
            }
        }
        None
    }

    /// What a pointer, or a type that is one, points to.
    fn pointee(&self, pointer: Type<'a>) -> Option<Type<'a>> {
        let pointer = if pointer.kind == kind::TYPEDEF { self.plain(pointer.detail)? } else { pointer };
        if pointer.kind == kind::PTR { self.plain(pointer.detail) } else { None }
    }

    /// Type and offset in bytes of a member, which may be within one that has no name. A bit field has no place.
    fn member(&self, structure: Type<'a>, name: &str, depth: u32) -> Option<(u32, u32)> {
        if !matches!(structure.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        for member in structure.data.chunks_exact(MEMBER) {
            let (its_name, number, position) = (word(member, 0)?, word(member, 4)?, word(member, 8)?);
            let (bits, width) =
                if structure.bits { (position & 0x00ff_ffff, position >> 24) } else { (position, 0) };
            if self.is_named(its_name, name) {
                return (bits % 8 == 0 && width == 0).then_some((number, bits / 8));
            }
            if its_name == 0 && depth > 0 {
                let inner = self.plain(number)?;
                if let Some((number, offset)) = self.member(inner, name, depth - 1) {
                    return Some((number, offset.checked_add(bits / 8)?));
                }
            }
        }
        None
    }

    /// Size in bytes.
    fn size(&self, of: Type<'a>, depth: u32) -> Option<u32> {
        match of.kind {
            kind::PTR => Some(8),
            kind::ARRAY => {
                let element = self.plain(word(of.data, 0)?)?;
                self.size(element, depth.checked_sub(1)?)?.checked_mul(word(of.data, 8)?)
            }
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FLOAT => {
                Some(of.detail)
            }
            _ => None,
        }
    }

    /// Whether a name is that text.
    fn is_named(&self, name: u32, text: &str) -> bool {
        let name = name as usize;
        let string = match name.checked_sub(self.kernel.strings.len()) {
            Some(name) => self.module.strings.get(name..),
            None => self.kernel.strings.get(name..),
        };
        let rest = string.and_then(|string| string.strip_prefix(text.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// The type of a function's parameter.
fn parameter(function: Type<'_>, index: usize) -> Option<u32> {
    if function.kind != kind::FUNC_PROTO {
        return None;
    }
    word(function.data.chunks_exact(PARAMETER).nth(index)?, 4)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod writer;

//! What the module takes for granted of KVM's structures, proven against the BTF of the kernel that runs.

use core::ffi::CStr;
use core::{ptr, slice};

use exitscope_core::btf::{Place, Root, Types, split};

use crate::ffi::Text;

/// What is where; `struct exitscope_fact` in `shim.h`.
#[repr(C)]
pub struct Fact {
    what: Text,
    offset: u32,
    size: u32,
    /// Where the offset goes that BTF says, if it is not known before.
    found: *mut u32,
}
const _: () = assert!(size_of::<Fact>() == 24);

/// Separates names of which a kernel has one.
const OR: char = '|';
/// Precedes the name of an enumeration's constant, whose value takes the place of an offset.
const CONSTANT: &str = "enum ";

/// How many of the facts hold, from the first on. What BTF says of the next one goes to `found`: size 0 if nothing.
///
/// # Safety
/// `kernel` and `module`, unless that is null, point to as many bytes as said, `facts` to `count` facts with texts that end in a zero; they
/// stay as they are during the call. `found` is writable, and so is what a fact's `found` points to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_proven(
    kernel: *const u8,
    kernel_size: usize,
    module: *const u8,
    module_size: usize,
    facts: *const Fact,
    count: usize,
    found: *mut Fact,
) -> usize {
    // SAFETY: as the caller promises.
    let (kernel, module, facts) = unsafe {
        (
            slice::from_raw_parts(kernel, kernel_size),
            if module.is_null() { &[] } else { slice::from_raw_parts(module, module_size) },
            slice::from_raw_parts(facts, count),
        )
    };
    let types = Types::read(kernel, module);
    let mut last: Option<(&str, Root<'_>)> = None;
    let mut place_of_one = |what: &'static str| {
        let types = types.as_ref()?;
        if let Some(name) = what.strip_prefix(CONSTANT) {
            return types.constant(name).map(|value| Place { offset: value, size: 0 });
        }
        let (name, steps) = split(what)?;
        let known = last.take().filter(|(last, _)| *last == name);
        let (_, root) = last.insert(known.unwrap_or_else(|| (name, types.root(name))));
        types.place_in(root, steps)
    };
    let mut place = |what: &'static str| what.split(OR).find_map(&mut place_of_one);
    for (proven, fact) in facts.iter().enumerate() {
        // SAFETY: the caller's promise.
        let what = unsafe { CStr::from_ptr(fact.what) }.to_str().unwrap_or_default();
        let place = place(what);
        // SAFETY: the caller's promise.
        if let (Some(Place { offset, size }), Some(wanted)) = (place, unsafe { fact.found.as_mut() })
            && size == fact.size
        {
            *wanted = offset;
            continue;
        }
        if place == Some(Place { offset: fact.offset, size: fact.size }) {
            continue;
        }
        let Place { offset, size } = place.unwrap_or(Place { offset: 0, size: 0 });
        // SAFETY: the caller's promise.
        unsafe { found.write(Fact { what: fact.what, offset, size, found: ptr::null_mut() }) };
        return proven;
    }
    count
}

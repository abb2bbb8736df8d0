//! Puts a flat image into guest memory, and says where a vCPU enters it.

use crate::error::Error;
use crate::{layout, vm::write};
use exitscope_abi::flat::LOAD_ADDRESS;
use kvm_bindings::kvm_regs;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap};

/// Copies the image to its place.
pub fn load(memory: &GuestMemoryMmap, image: &[u8]) -> Result<(), Error> {
    let room = (memory.last_addr().raw_value() + 1).saturating_sub(LOAD_ADDRESS);
    let size = image.len() as u64;
    if size == 0 || size > room {
        return Err(Error::FlatImageSize { size, room });
    }
    write(memory, "the flat image", LOAD_ADDRESS, image)
}

/// The registers with which vCPU `id` enters the image.
pub fn registers(id: u32, iterations: u64, batch: u64) -> kvm_regs {
    kvm_regs {
        rip: LOAD_ADDRESS,
        rsp: layout::STACKS + layout::STACK_SIZE * (u64::from(id) + 1),
        rflags: 2,
        rdi: id.into(),
        rsi: iterations,
        rdx: batch,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn images_must_fit() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).expect("memory");
        assert!(matches!(load(&memory, &[]), Err(Error::FlatImageSize { size: 0, .. })));
        let room = 1 << 20;
        assert!(load(&memory, &vec![0x90; room]).is_ok());
        assert!(load(&memory, &vec![0x90; room + 1]).is_err());
        assert_eq!(memory.read_obj::<u8>(GuestAddress(LOAD_ADDRESS)).expect("a byte"), 0x90);
    }

    #[test]
    fn stacks_do_not_overlap() {
        let (first, second) = (registers(0, 1, 2), registers(1, 1, 2));
        assert_eq!(second.rsp - first.rsp, layout::STACK_SIZE);
        assert_eq!((second.rdi, second.rsi, second.rdx), (1, 1, 2));
    }
}

//! Puts flat images into guest memory, and says where each vCPU enters its own.

use crate::FlatWork;
use crate::error::Error;
use crate::{layout, vm::write};
use exitscope_abi::flat::LOAD_ADDRESS;
use kvm_bindings::kvm_regs;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap};

/// From one image to the next: behind each is memory for its guest.
const DISTANCE: u64 = 1 << 20;

/// Copies the images to their places.
pub fn load(memory: &GuestMemoryMmap, works: &[FlatWork]) -> Result<(), Error> {
    let end = memory.last_addr().raw_value() + 1;
    let last = works.len().saturating_sub(1);
    if works.is_empty() {
        return Err(Error::FlatImageSize { size: 0, room: end.saturating_sub(LOAD_ADDRESS) });
    }
    for (index, work) in works.iter().enumerate() {
        let place = address(index);
        let left = end.saturating_sub(place);
        let (size, room) = (work.image.len() as u64, if index < last { left.min(DISTANCE) } else { left });
        if size == 0 || size > room {
            return Err(Error::FlatImageSize { size, room });
        }
        write(memory, "a flat image", place, &work.image)?;
    }
    Ok(())
}

fn address(index: usize) -> u64 {
    LOAD_ADDRESS.saturating_add(DISTANCE.saturating_mul(index as u64))
}

/// The registers with which vCPU `id` enters its image; `iterations` has one number for each image.
pub fn registers(id: u32, iterations: &[u64], batch: u64) -> kvm_regs {
    let index = (id as usize).min(iterations.len().saturating_sub(1));
    let iterations = iterations.get(index).copied().unwrap_or(0);
    kvm_regs {
        rip: address(index),
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
        let load = |sizes: &[usize]| {
            let work = |&size: &usize| FlatWork { image: vec![0x90; size], iterations: 0 };
            load(&memory, &sizes.iter().map(work).collect::<Vec<_>>())
        };
        assert!(matches!(load(&[]), Err(Error::FlatImageSize { size: 0, .. })));
        assert!(matches!(load(&[0]), Err(Error::FlatImageSize { size: 0, .. })));
        let room = 1 << 20;
        assert!(load(&[room]).is_ok());
        assert!(load(&[room + 1]).is_err());
        assert!(load(&[16, 16]).is_err());
        assert_eq!(memory.read_obj::<u8>(GuestAddress(LOAD_ADDRESS)).expect("a byte"), 0x90);
    }

    #[test]
    fn stacks_do_not_overlap() {
        let (first, second) = (registers(0, &[1], 2), registers(1, &[1], 2));
        assert_eq!(second.rsp - first.rsp, layout::STACK_SIZE);
        assert_eq!((second.rdi, second.rsi, second.rdx, second.rip), (1, 1, 2, first.rip));
    }

    #[test]
    fn each_vcpu_enters_its_own_image() {
        let entered = |id| {
            let registers = registers(id, &[10, 20], 0);
            (registers.rip - LOAD_ADDRESS, registers.rsi)
        };
        assert_eq!([entered(0), entered(1), entered(2)], [(0, 10), (DISTANCE, 20), (DISTANCE, 20)]);
    }
}

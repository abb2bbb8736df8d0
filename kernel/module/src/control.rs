//! What an administrator asks of the module through `/dev/exitscope`, besides reading.

use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering::Relaxed;

use exitscope_abi::leaf::Expose;
use exitscope_abi::region::EXPOSE_AS_MODULE;
use exitscope_core::{Table, copy};

use crate::ffi::{self, EINVAL, ENOENT, ENOMEM, ENOSPC, Text};
use crate::registry::{Registry, slots, with_lock};
use crate::slot::{OWNED_WORDS, Slot, VmLocked};
use crate::{cells, setting};

/// Sets whose exits the guest of a VM is told: a number of [`Expose`], or [`EXPOSE_AS_MODULE`]. 0, -EINVAL for another
/// number, or -ENOENT where no live VM has the number `id`.
#[unsafe(no_mangle)]
pub extern "C" fn exitscope_set_policy(id: u64, expose: u32) -> c_int {
    match to_policy(expose) {
        None => -EINVAL,
        Some(expose) if set_where(expose, |locked| locked.id == id) => 0,
        Some(_) => -ENOENT,
    }
}

/// Sets that of the VMs of a process, which has this number in the initial PID namespace: those that it has, and those
/// that it will have. 0, then the reference to `pid` is the module's; else -EINVAL, or -ENOSPC where too many processes
/// have one.
#[unsafe(no_mangle)]
pub extern "C" fn exitscope_set_process_policy(pid: *const c_void, number: u32, expose: u32) -> c_int {
    let Some(expose) = to_policy(expose) else { return -EINVAL };
    // Those that come meanwhile follow it already.
    let Some(ended) = with_lock(|registry| registry.policies.set(pid, expose)) else { return -ENOSPC };
    for pid in ended {
        // SAFETY: a reference that is ours; null is one to nothing.
        unsafe { ffi::exitscope_put_pid(pid) };
    }
    set_where(expose, |locked| cells::vm(locked.cell).is_some_and(|vm| vm.pid.load(Relaxed) == number));
    0
}

/// Whether a policy of this number shows a guest the whole host.
#[unsafe(no_mangle)]
pub extern "C" fn exitscope_shows_host(expose: u32) -> bool {
    to_policy(expose).map(|expose| expose.unwrap_or_else(setting::expose)) == Some(Expose::Host)
}

/// The policy of a number, `None` for what the module's parameter says; no policy for other numbers.
fn to_policy(number: u32) -> Option<Option<Expose>> {
    match number {
        EXPOSE_AS_MODULE => Some(None),
        number => u8::try_from(number).ok().and_then(Expose::from_number).map(Some),
    }
}

/// Sets the parameter `expose`. 0, -EINVAL for an unknown name, or -EPERM.
///
/// # Safety
/// As for a byte slice: `text` points to `length` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_set_expose(text: Text, length: usize, may_show_host: bool) -> c_int {
    // SAFETY: the caller's promise.
    let result = unsafe { setting::set_expose(text, length, may_show_host) };
    // Those that are made meanwhile follow it anyway.
    slots().for_each(|slot| with_lock(|_| slot.follow_policy()));
    result
}

/// Makes what has been counted until now the baseline that readers may subtract. 0, or -ENOMEM. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn exitscope_reset() -> c_int {
    if reset() { 0 } else { -ENOMEM }
}

/// Does the work for every slot that there is, with the lock held anew for each word of its accounts, until it fails.
/// Slots that are made meanwhile are left out. The sum of retired VMs comes last, as what is folded into it has been
/// seen by then.
fn for_each_word(mut work: impl FnMut(&mut Registry, &'static Slot, usize) -> Option<()>) -> Option<()> {
    slots().flat_map(|slot| (0..OWNED_WORDS).map(move |word| (slot, word))).try_for_each(|(slot, word)| {
        // SAFETY: this is a system call, without the lock.
        unsafe { ffi::exitscope_refill() };
        with_lock(|registry| work(registry, slot, word))
    })
}

/// Sets whose exits the guests of some live VMs are told; `None` leaves that to the module's parameter. Whether there
/// are such VMs.
fn set_where(expose: Option<Expose>, wanted: impl Fn(&VmLocked) -> bool) -> bool {
    let set = |slot: &Slot| {
        let vm = slot.vm();
        // SAFETY: the lock is held.
        let locked = unsafe { vm.locked() };
        let is_it = !locked.kvm.is_null() && wanted(locked);
        if is_it && vm.own_policy() != expose {
            vm.set_expose(expose);
        }
        is_it
    };
    slots().filter(|slot| with_lock(|_| set(slot))).count() > 0
}

/// Copies every account to its baseline, a word of a vCPU's accounts after the other, so that interrupts are not off
/// for long. False where memory is short, of which some is left for vCPUs that are new; then nothing has changed for
/// readers. One call at a time.
fn reset() -> bool {
    let mut missing = 0;
    let _ = for_each_word(|_, slot, word| {
        missing += slot.owned_in(word).filter(|&place| !slot.has_baseline(place)).count();
        Some(())
    });
    if !with_lock(|registry| registry.has_room_beside_reserve(missing)) {
        return false;
    }
    // Room comes first: baselines of zero, which change nothing.
    let made = for_each_word(|registry, slot, word| {
        slot.owned_in(word).try_for_each(|place| {
            let has_room = slot.has_baseline(place) || registry.has_room_beside_reserve(1);
            has_room.then(|| registry.baseline(slot, place)).flatten().map(|_| ())
        })
    });
    if made.is_none() {
        return false;
    }
    cells::note_reset();
    let _ = for_each_word(|registry, slot, word| {
        for place in slot.owned_in(word) {
            // An account that had no baseline a moment ago has counted since then only.
            if let (Some(baseline), Some(counters)) = (registry.baseline(slot, place), slot.get(place)) {
                copy(baseline, counters);
            }
        }
        Some(())
    });
    cells::note_reset();
    true
}

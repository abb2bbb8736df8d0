//! What the kernel offers to eBPF programs: its helpers, its maps, and numbers that the loader knows of this kernel.

use core::ffi::c_void;
use core::mem::{MaybeUninit, transmute};

use exitscope_abi::reason::Isa;
use exitscope_abi::region::Counters;

/// A map's symbol; its address is the map.
pub type Map = c_void;

unsafe extern "C" {
    /// The region, see [`exitscope_abi::bpf`].
    pub static exitscope_cells: Counters;
    pub static exitscope_vms: Map;
    pub static exitscope_free: Map;
    pub static exitscope_finished: Map;

    /// A kernel's function since 6.2: memory of the kernel at `address` as a structure of its own, by the number of that
    /// in the kernel's BTF. What is read through it and is not there is 0.
    fn bpf_rdonly_cast(address: u64, structure: u64) -> *const c_void;
}

/// Declares numbers that the loader writes into the programs, so that the verifier knows them, too.
macro_rules! numbers {
    ($($(#[$doc:meta])* $symbol:ident $name:ident;)+) => {
        unsafe extern "C" {
            $(static $symbol: c_void;)+
        }
        $($(#[$doc])* #[inline(always)] pub fn $name() -> u64 {
            // The address is the number; there is nothing at it.
            (&raw const $symbol) as u64
        })+
    };
}

numbers! {
    /// The instruction set, see [`isa`].
    exitscope_isa isa_number;
    /// By what offsets in the region are masked.
    exitscope_cells_mask cells_mask;
    /// Cells of the region.
    exitscope_max_cells max_cells;
    /// Where `struct kvm_vcpu` has its VM.
    exitscope_kvm kvm_at;
    /// And its number in that.
    exitscope_vcpu_id vcpu_id_at;
    /// And KVM's statistics of halts, in ns.
    exitscope_poll_success poll_success_at;
    exitscope_poll_fail poll_fail_at;
    exitscope_halt_wait halt_wait_at;
    /// Where `struct vcpu_svm` has the pointer to its VMCB.
    exitscope_vmcb vmcb_at;
    /// Where it has that of its own guest, which is not the one that runs while a nested guest does.
    exitscope_vmcb01 vmcb01_at;
    /// Where `struct kvm_vcpu` has its flags, one of which says that.
    exitscope_hflags hflags_at;
    /// Where `struct vcpu_vmx` has the reason of the last exit.
    exitscope_exit_reason exit_reason_at;
    /// 1 where the kernel has `bpf_rdonly_cast`, see [`has_cast`].
    exitscope_has_cast has_cast_number;
    /// The kernel's number of `struct bpf_perf_event_data_kern`, which begins with a pointer to a structure that has 64
    /// bits where a VMCB has its exit code.
    exitscope_type_vmcb type_vmcb;
    /// The kernel's number of a structure that begins with 32 bits.
    exitscope_type_word type_word;
}

/// Offset of the exit code in a VMCB (APM vol. 2 appendix B); the loader proves it.
const EXIT_CODE: u64 = 0x70;

/// Declares helpers by their numbers in `<linux/bpf.h>`.
macro_rules! helpers {
    ($($(#[$doc:meta])* $number:literal $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)+) => {
        $($(#[$doc])* #[inline(always)] unsafe fn $name($($argument: $type),*) -> $result {
            // SAFETY: a call of the function with this address is the call of this helper.
            let helper: unsafe extern "C" fn($($type),*) -> $result = unsafe { transmute($number as usize) };
            // SAFETY: the verifier checks the arguments, the caller vouches for their meaning.
            unsafe { helper($($argument),*) }
        })+
    };
}

helpers! {
    1 bpf_map_lookup_elem(map: *const Map, key: *const u64) -> *const c_void;
    2 bpf_map_update_elem(map: *const Map, key: *const u64, value: *const c_void, flags: u64) -> i64;
    3 bpf_map_delete_elem(map: *const Map, key: *const u64) -> i64;
    5 bpf_ktime_get_ns() -> u64;
    14 bpf_get_current_pid_tgid() -> u64;
    87 bpf_map_push_elem(map: *const Map, value: *const u32, flags: u64) -> i64;
    88 bpf_map_pop_elem(map: *const Map, value: *mut u32) -> i64;
    113 bpf_probe_read_kernel(to: *mut c_void, size: u64, from: u64) -> i64;
    183 bpf_get_func_arg(context: *const c_void, number: u64, value: *mut u64) -> i64;
}

/// `BPF_NOEXIST`: a key that is there already is an error.
const NO_EXIST: u64 = 1;

/// A number of which the compiler knows nothing: so it leaves what the verifier must see, such as a mask that makes sure of
/// what the compiler knows already.
#[inline(always)]
pub fn hidden(number: u64) -> u64 {
    let mut number = number;
    // SAFETY: it does nothing.
    unsafe { core::arch::asm!("/* {0} */", inout(reg) number, options(pure, nomem, nostack)) };
    number
}

/// The instruction set.
#[inline(always)]
pub fn isa() -> Isa {
    if isa_number() == Isa::Svm as u64 { Isa::Svm } else { Isa::Vmx }
}

/// Whether the kernel has `bpf_rdonly_cast`.
pub fn has_cast() -> bool {
    // Not "is it 0", which no address can be.
    has_cast_number() == 1
}

/// Time since the start of the machine, in ns: a tick of this source.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no precondition.
    unsafe { bpf_ktime_get_ns() }
}

/// Process and thread that run, in the initial PID namespace.
pub fn process_and_thread() -> (u32, u32) {
    // SAFETY: no precondition.
    let both = unsafe { bpf_get_current_pid_tgid() };
    ((both >> 32) as u32, both as u32)
}

/// The first argument of the function that an `fentry` program is at.
#[inline(always)]
pub fn first_argument(context: *const c_void) -> u64 {
    let mut value = 0;
    // SAFETY: `context` is the program's.
    unsafe { bpf_get_func_arg(context, 0, &mut value) };
    value
}

/// Memory of the kernel; 0 where there is none.
#[inline(always)]
fn read<T: Copy>(address: u64) -> T {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `value` has that size; a `T` is a number, so any bytes are one. A failure leaves zeroes.
    unsafe {
        bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u64, address);
        value.assume_init()
    }
}

/// KVM's VM of a vCPU, and the vCPU's number in it.
pub fn identity(vcpu: u64) -> (u64, u32) {
    (read(vcpu + kvm_at()), read(vcpu + vcpu_id_at()))
}

/// How long a vCPU has been halted in its life.
pub fn halt_stats(vcpu: u64) -> exitscope_core::HaltStats {
    let [success, fail, waited] =
        [poll_success_at(), poll_fail_at(), halt_wait_at()].map(|at| read::<u64>(vcpu + at));
    exitscope_core::HaltStats { polled: success.wrapping_add(fail), waited }
}

/// `struct bpf_perf_event_data_kern`, in as far as it is used.
#[repr(C)]
struct PointerToVmcb {
    vmcb: *const [u64; EXIT_CODE as usize / 8 + 1],
}

/// Why a vCPU left the guest: the basic exit reason (VMX), or the low half of the exit code (SVM). `cast` says whether the
/// kernel has `bpf_rdonly_cast`.
#[inline(always)]
pub fn exit_code(vcpu: u64, isa: Isa, cast: bool) -> u32 {
    // SAFETY: the kernel lets such memory be read whatever is there.
    unsafe {
        match (isa, cast) {
            (Isa::Svm, true) => {
                let pointer: *const PointerToVmcb = bpf_rdonly_cast(vcpu + vmcb_at(), type_vmcb()).cast();
                (&raw const (*(*pointer).vmcb)[EXIT_CODE as usize / 8]).read_volatile() as u32
            }
            (Isa::Svm, false) => read::<u64>(read::<u64>(vcpu + vmcb_at()) + EXIT_CODE) as u32,
            (Isa::Vmx, true) => {
                let reason: *const u32 = bpf_rdonly_cast(vcpu + exit_reason_at(), type_word()).cast();
                reason.read_volatile() & 0xffff
            }
            (Isa::Vmx, false) => read::<u32>(vcpu + exit_reason_at()) & 0xffff,
        }
    }
}

/// HF_GUEST_MASK of the kernels without `bpf_rdonly_cast`: the vCPU runs a nested guest.
const NESTED: u32 = 1 << 5;

/// Where the VMCB of a vCPU's own guest has its exit code.
pub fn exit_code_of_own_guest(vcpu: u64) -> u64 {
    if isa() == Isa::Svm { read::<u64>(vcpu + vmcb01_at()) + EXIT_CODE } else { 0 }
}

/// As [`exit_code`] without a cast, where the verifier knows that `vcpu` is a vCPU: one read less, unless a nested guest
/// runs. `own` is [`exit_code_of_own_guest`].
#[inline(always)]
pub fn exit_code_typed(vcpu: u64, own: u64) -> u32 {
    // SAFETY: the verifier checks that a vCPU has 32 bits there.
    let flags = unsafe { ((vcpu + hflags_at()) as *const u32).read_volatile() };
    let at = if flags & NESTED == 0 { own } else { read::<u64>(vcpu + vmcb_at()) + EXIT_CODE };
    read(at)
}

/// The low half of an address that is a typed pointer for the verifier, which allows no arithmetic with such.
#[inline(always)]
pub fn low_half(pointer: u64) -> u64 {
    let low: u64;
    #[cfg(target_arch = "bpf")]
    // SAFETY: a move between registers.
    unsafe {
        core::arch::asm!("w0 = w1", in("r1") pointer, out("r0") low, options(pure, nomem, nostack))
    };
    #[cfg(not(target_arch = "bpf"))]
    {
        low = pointer as u32 as u64;
    }
    low
}

/// The first of a tracepoint's arguments as a number, also where it is a typed pointer.
pub fn untyped(arguments: *const u64) -> u64 {
    read(arguments as u64)
}

/// A VM in the map of those that live, by KVM's address of it.
#[repr(C)]
pub struct VmEntry {
    /// Its cell.
    pub cell: u32,
    /// Its vCPUs that have an account and live.
    pub vcpus: core::sync::atomic::AtomicU32,
}
const _: () = assert!(size_of::<VmEntry>() == exitscope_abi::bpf::MAPS[0].value as usize);

/// The entry of a VM.
#[inline(always)]
pub fn vm(kvm: u64) -> Option<&'static VmEntry> {
    // SAFETY: the map's values are `VmEntry`s, all zero or what `insert_vm` has put there. They stay for as long as the
    // program runs.
    unsafe { bpf_map_lookup_elem(&raw const exitscope_vms, &kvm).cast::<VmEntry>().as_ref() }
}

/// Makes the entry of a VM. False where there is one already, or no room.
pub fn insert_vm(kvm: u64, entry: VmEntry) -> bool {
    // SAFETY: the map's keys and values are these.
    unsafe { bpf_map_update_elem(&raw const exitscope_vms, &kvm, (&raw const entry).cast(), NO_EXIST) == 0 }
}

/// Forgets a VM.
pub fn remove_vm(kvm: u64) {
    // SAFETY: the map's keys are these.
    unsafe { bpf_map_delete_elem(&raw const exitscope_vms, &kvm) };
}

/// Puts a number into a queue.
pub fn push(queue: *const Map, number: u32) {
    // SAFETY: `queue` is one of the two queues of such numbers.
    unsafe { bpf_map_push_elem(queue, &number, 0) };
}

/// Takes a number out of a queue.
pub fn pop(queue: *const Map) -> Option<u32> {
    let mut number = 0;
    // SAFETY: as above.
    (unsafe { bpf_map_pop_elem(queue, &mut number) } == 0).then_some(number)
}

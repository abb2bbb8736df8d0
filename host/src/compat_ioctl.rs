//! Asks the module's device by 32-bit system calls, as programs of 32 bits do, and by its own.
//!
//! For the tests: both must be answered alike.

use std::arch::asm;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;

use exitscope_abi::control::{Policy, RESET, SET_POLICY, SET_PROCESS_POLICY};
use exitscope_abi::leaf::Expose;

/// Numbers of 32-bit system calls (the kernel's arch/x86/entry/syscalls/syscall_32.tbl).
const EXIT: u32 = 1;
const IOCTL: u32 = 54;
/// No VM of a test has this number, and no process.
const NOBODY: u64 = 4_000_000;

/// What a request was answered: 0 or an errno.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The request.
    pub request: &'static str,
    /// By a 64-bit system call.
    pub by_64_bit: i32,
    /// By a 32-bit one.
    pub by_32_bit: i32,
}

/// Makes requests in both ways, some of the live VM of this number. `None` where the kernel has no 32-bit system calls
/// (CONFIG_IA32_EMULATION, or its parameter `ia32_emulation`).
pub fn ask_both_ways(device: &Path, vm: u64) -> io::Result<Option<Vec<Answers>>> {
    if !has_32_bit_calls()? {
        return Ok(None);
    }
    let (reader, writer) = (File::open(device)?, File::options().read(true).write(true).open(device)?);
    let policy = LowPolicy::map()?;
    let address = policy.address();
    let with = |request: &'static str, file: &File, number, argument| Answers {
        request,
        by_64_bit: ioctl_64(file, number, argument),
        by_32_bit: ioctl_32(file, number, argument),
    };
    let ask = |request, number, argument| {
        policy.set(argument);
        with(request, &writer, number, address)
    };
    let unknown = Policy { expose: 77, ..Policy::new(vm, None) };
    let answers = vec![
        ask("a policy for a VM", SET_POLICY, Policy::new(vm, Some(Expose::Host))),
        ask("the module's policy for it", SET_POLICY, Policy::new(vm, None)),
        ask("a policy for no VM", SET_POLICY, Policy::new(NOBODY, None)),
        ask("no policy", SET_POLICY, unknown),
        ask("a policy for no process", SET_PROCESS_POLICY, Policy::new(NOBODY, None)),
        ask("a reset", RESET, unknown),
        ask("another request", SET_POLICY + 1, unknown),
        with("no address", &writer, SET_POLICY, 0),
        with("a reset by a reader", &reader, RESET, 0),
    ];
    Ok(Some(answers))
}

/// Whether a process that makes a 32-bit system call gets what it asked for: to end, and is not killed.
fn has_32_bit_calls() -> io::Result<bool> {
    // SAFETY: the child makes a system call and nothing else.
    let child = unsafe { libc::fork() };
    match child {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: it ends the child, which has nothing to put in order.
            unsafe {
                call_32(EXIT, 0, 0, 0);
                libc::abort()
            }
        }
        _ => {}
    }
    let mut status = 0;
    // SAFETY: waits for the child, and writes its status.
    if unsafe { libc::waitpid(child, &mut status, 0) } != child {
        return Err(io::Error::last_os_error());
    }
    Ok(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0)
}

/// Makes a 32-bit system call: what it returns.
///
/// # Safety
/// As for the system call of that number with these arguments.
unsafe fn call_32(number: u32, first: u32, second: u32, third: u32) -> i32 {
    let mut result = u64::from(number);
    // SAFETY: the caller's promise as to what it does; it changes RAX, and with some kernels R8 to R11. RBX, which the
    // compiler keeps for itself, is as before afterwards.
    unsafe {
        asm!(
            "xchg rbx, {first}",
            "int 0x80",
            "xchg rbx, {first}",
            first = inout(reg) u64::from(first) => _,
            inout("rax") result,
            in("rcx") u64::from(second),
            in("rdx") u64::from(third),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result as i32
}

fn ioctl_32(file: &File, request: u32, argument: u32) -> i32 {
    // SAFETY: the module's requests read at most a `Policy` from the address, and the kernel checks it.
    -unsafe { call_32(IOCTL, file.as_raw_fd() as u32, request, argument) }
}

fn ioctl_64(file: &File, request: u32, argument: u32) -> i32 {
    // SAFETY: as above.
    match unsafe { libc::syscall(libc::SYS_ioctl, file.as_raw_fd(), request, u64::from(argument)) } {
        0 => 0,
        _ => io::Error::last_os_error().raw_os_error().unwrap_or(-1),
    }
}

/// A policy at an address of 32 bits.
struct LowPolicy(*mut Policy);

impl LowPolicy {
    fn map() -> io::Result<Self> {
        let (rights, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { libc::mmap(ptr::null_mut(), size_of::<Policy>(), rights, kind, -1, 0) };
        if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(base.cast())) }
    }

    fn address(&self) -> u32 {
        // MAP_32BIT's are below 2 GiB.
        self.0.addr() as u32
    }

    fn set(&self, policy: Policy) {
        // SAFETY: a page of ours, of which there are no references.
        unsafe { self.0.write_volatile(policy) };
    }
}

impl Drop for LowPolicy {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody uses it.
        unsafe { libc::munmap(self.0.cast(), size_of::<Policy>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_knows_no_request_refuses_all_in_both_ways() {
        let Some(answers) = ask_both_ways(Path::new("/dev/null"), 1).unwrap() else {
            return println!("skipped: this kernel has no 32-bit system calls");
        };
        assert_eq!(answers.len(), 9);
        for answer in answers {
            assert_eq!((answer.by_64_bit, answer.by_32_bit), (libc::ENOTTY, libc::ENOTTY), "{answer:?}");
        }
    }
}

//! Fuzzes the module's device: random invalid ioctls, mappings, reads, writes and parameters, each of which must fail.
//!
//! For the tests, which then look at the kernel's log.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use exitscope_abi::control::{Policy, RESET, SET_POLICY, SET_PROCESS_POLICY};
use exitscope_abi::region::{MAX_PAGES, PAGE_SIZE};

/// Makes `requests` rounds of random requests. The error names the first that succeeded though it must not.
pub fn fuzz_device(device: &Path, seed: u64, requests: u32) -> io::Result<()> {
    let mut random = Random(seed);
    for number in 0..requests {
        let file = Device::new(device, random.one_of(&[libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR]))?;
        for _ in 0..8 {
            let request = random.below(8);
            let result = match request {
                0 | 1 => file.control(&mut random),
                2 | 3 => file.map(&mut random),
                4 => file.read_or_write(&mut random),
                5 => file.seek(&mut random),
                6 => parameters(&mut random),
                _ => file.others(&mut random),
            };
            if let Err(what) = result {
                return Err(io::Error::other(format!("seed {seed}, request {number}: {what}")));
            }
        }
    }
    Ok(())
}

/// `Err` names a request that succeeded though it must not.
type Verdict = Result<(), String>;

/// Numbers that look random, the same for the same seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A number that is often at or next to a limit.
    fn boundary_value(&mut self) -> u64 {
        let end = (MAX_PAGES * PAGE_SIZE) as u64;
        let around =
            self.one_of(&[0, 1, 4096, end, end - 4096, 1 << 31, 1 << 32, 1 << 47, 1 << 63, u64::MAX]);
        match self.below(4) {
            0 => self.next(),
            1 => around.wrapping_add(self.below(3)).wrapping_sub(1),
            _ => around,
        }
    }
}

struct Device {
    number: libc::c_int,
    flags: libc::c_int,
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: the file is ours, and nobody uses it any more.
        unsafe { libc::close(self.number) };
    }
}

impl Device {
    fn new(path: &Path, flags: libc::c_int) -> io::Result<Self> {
        let mut name = path.as_os_str().as_bytes().to_vec();
        name.push(0);
        // SAFETY: the name ends with a zero.
        let number = unsafe { libc::open(name.as_ptr().cast(), flags | libc::O_CLOEXEC) };
        if number < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { number, flags }) }
    }

    fn is_writable(&self) -> bool {
        self.flags != libc::O_RDONLY
    }

    fn control(&self, random: &mut Random) -> Verdict {
        let known = random.one_of(&[SET_POLICY, SET_PROCESS_POLICY, RESET]);
        let request = match random.below(4) {
            0 => random.next() as u32,
            1 => known ^ 1 << random.below(32),
            _ => known,
        };
        // No VM of the tests has these numbers, and no process.
        let policy = Policy {
            vm: if random.below(8) == 0 { 0 } else { random.next() | 1 << 40 },
            expose: random.boundary_value() as u32,
            reserved: random.below(2) as u32,
        };
        let address = match random.below(3) {
            0 => ptr::from_ref(&policy).addr() as u64,
            _ => random.boundary_value(),
        };
        // SAFETY: the module's requests read at most a `Policy` from the address, and the kernel checks it.
        let result = unsafe { libc::syscall(libc::SYS_ioctl, self.number, request, address) };
        let may_succeed = request == RESET && self.is_writable() || request_of_any_file(request);
        if result == 0 && !may_succeed { Err(format!("ioctl {request:#x} of {address:#x}")) } else { Ok(()) }
    }

    fn map(&self, random: &mut Random) -> Verdict {
        let (length, offset) = (random.boundary_value() as usize, random.boundary_value() & !0xFFF);
        let protection = random.below(8) as libc::c_int;
        let kind =
            random.one_of(&[libc::MAP_SHARED, libc::MAP_PRIVATE, libc::MAP_SHARED | libc::MAP_POPULATE]);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(ptr::null_mut(), length, protection, kind, self.number, offset as libc::off_t)
        };
        if base == libc::MAP_FAILED {
            return Ok(());
        }
        let end = offset.checked_add(length as u64);
        let within = end.is_some_and(|end| end.div_ceil(PAGE_SIZE as u64) <= MAX_PAGES as u64);
        let more = [libc::PROT_WRITE, libc::PROT_EXEC];
        // SAFETY: the mapping is ours; its rights only are changed, which must fail.
        let gained = |right| unsafe { libc::mprotect(base, length, libc::PROT_READ | right) == 0 };
        let too_much = more.iter().any(|right| protection & right != 0 || gained(*right));
        // SAFETY: as above; to grow it must fail.
        let grown = unsafe { libc::mremap(base, length, length + PAGE_SIZE, libc::MREMAP_MAYMOVE) };
        let (base, length) =
            if grown == libc::MAP_FAILED { (base, length) } else { (grown, length + PAGE_SIZE) };
        // SAFETY: the mapping is ours, and nobody uses it.
        unsafe { libc::munmap(base, length) };
        if too_much {
            return Err(format!("a mapping to be written to or executed ({protection}, {kind})"));
        }
        if grown != libc::MAP_FAILED {
            return Err("a mapping that grows".into());
        }
        if within { Ok(()) } else { Err(format!("a mapping of {length:#x} bytes at {offset:#x}")) }
    }

    fn read_or_write(&self, random: &mut Random) -> Verdict {
        let call = random.one_of(&[libc::SYS_read, libc::SYS_write, libc::SYS_pread64, libc::SYS_pwrite64]);
        let mut buffer = [0_u8; 64];
        let address = random.one_of(&[buffer.as_mut_ptr().addr(), 0]);
        // SAFETY: at most as many bytes as the buffer has; an address that is not ours is refused by the kernel.
        let result =
            unsafe { libc::syscall(call, self.number, address, buffer.len(), random.boundary_value()) };
        if result > 0 { Err(format!("system call {call}")) } else { Ok(()) }
    }

    fn seek(&self, random: &mut Random) -> Verdict {
        let (offset, whence) = (random.boundary_value(), random.below(8));
        // SAFETY: changes the file's position only.
        unsafe { libc::syscall(libc::SYS_lseek, self.number, offset, whence) };
        Ok(())
    }

    fn others(&self, random: &mut Random) -> Verdict {
        let length = random.boundary_value();
        // SAFETY: these concern the file only.
        let results = unsafe {
            [
                libc::ftruncate(self.number, length as libc::off_t),
                libc::fallocate(self.number, 0, 0, length as libc::off_t),
                libc::fsync(self.number),
            ]
        };
        if results.contains(&0) { Err(format!("ftruncate, fallocate or fsync: {results:?}")) } else { Ok(()) }
    }
}

/// Requests that the kernel itself answers for any file (FIOCLEX and its kin).
fn request_of_any_file(request: u32) -> bool {
    let request = libc::c_ulong::from(request);
    [libc::FIOCLEX, libc::FIONCLEX, libc::FIONBIO, libc::FIOASYNC].contains(&request)
}

fn parameters(random: &mut Random) -> Verdict {
    let name = random.one_of(&["expose", "layout", "pages"]);
    let length = random.one_of(&[0, 1, 3, 64, 4095, 4096, 5000]);
    let text: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
    match fs::write(format!("/sys/module/exitscope/parameters/{name}"), &text) {
        // Nothing at all is written without a system call.
        Ok(()) if !text.is_empty() => Err(format!("{name} = {text:?}")),
        _ => Ok(()),
    }
}

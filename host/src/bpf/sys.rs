//! bpf(2): maps, programs, what they are attached to, and the kernel's own descriptions of types.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::object::{Instruction, Kind};

/// Commands of bpf(2).
mod command {
    pub const MAP_CREATE: u32 = 0;
    pub const MAP_UPDATE_ELEM: u32 = 2;
    pub const PROG_LOAD: u32 = 5;
    pub const OBJ_PIN: u32 = 6;
    pub const OBJ_GET: u32 = 7;
    pub const OBJ_GET_INFO_BY_FD: u32 = 15;
    pub const RAW_TRACEPOINT_OPEN: u32 = 17;
    pub const BTF_GET_FD_BY_ID: u32 = 19;
    pub const MAP_FREEZE: u32 = 22;
    pub const BTF_GET_NEXT_ID: u32 = 23;
}

/// `BPF_MAP_TYPE_ARRAY`.
pub const ARRAY: u32 = 2;
/// `BPF_F_RDONLY_PROG`: programs may only read it.
pub const READ_ONLY: u32 = 1 << 7;
/// `BPF_F_MMAPABLE`: processes may map it.
pub const MAPPABLE: u32 = 1 << 10;
/// Bytes of a name, and the zero after it.
const NAME: usize = 16;
/// What the names of our maps and programs begin with.
const PREFIX: &str = "exitscope_";
/// Size of the verifier's log at first, and at most.
const LOG: [usize; 2] = [64 << 10, 16 << 20];
/// How often a program is loaded that the kernel has no time for (EAGAIN).
const ATTEMPTS: u32 = 5;

/// Calls bpf(2).
///
/// # Safety
/// `T` is what the kernel expects of `command`, without padding, and all addresses in it are valid for what the command
/// does there.
unsafe fn bpf<T>(command: u32, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: as the caller promises; the kernel reads and writes `attributes` within their size only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            libc::c_long::from(command),
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

/// As [`bpf`], for commands that give a descriptor.
///
/// # Safety
/// As of [`bpf`], and the command gives a descriptor.
unsafe fn open<T>(command: u32, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let descriptor = unsafe { bpf(command, attributes) }?;
    // SAFETY: it is new, and nobody else has it. bpf(2) opens all its descriptors close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn address<T: ?Sized>(of: &T) -> u64 {
    std::ptr::from_ref(of).cast::<()>() as u64
}

/// What bpftool shows for one of ours: our name, and as much as there is room for of the last word of what it is for.
fn name(of: &str) -> [u8; NAME] {
    let word = of.rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    let mut name = [0; NAME];
    let bytes = PREFIX.bytes().chain(word.bytes());
    name[..NAME - 1].iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
    name
}

/// What a map is to be.
#[derive(Clone, Copy, Debug)]
pub struct Map<'a> {
    /// What it is for.
    pub name: &'a str,
    /// Its type.
    pub kind: u32,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Values at most.
    pub entries: u32,
    /// [`READ_ONLY`], [`MAPPABLE`].
    pub flags: u32,
}

impl Map<'_> {
    /// Makes it.
    pub fn create(&self) -> io::Result<OwnedFd> {
        #[repr(C)]
        struct Attributes {
            map_type: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            map_flags: u32,
            inner_map_fd: u32,
            numa_node: u32,
            map_name: [u8; NAME],
        }
        let mut attributes = Attributes {
            map_type: self.kind,
            key_size: self.key,
            value_size: self.value,
            max_entries: self.entries,
            map_flags: self.flags,
            inner_map_fd: 0,
            numa_node: 0,
            map_name: name(self.name),
        };
        // SAFETY: no addresses; the kernel makes a descriptor.
        unsafe { open(command::MAP_CREATE, &mut attributes) }
    }
}

/// Fills the one value of an array; `value` is as long as the map says.
pub fn fill(map: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
    if info::<MapInfo>(map)?.value_size as usize != value.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    #[repr(C)]
    struct Attributes {
        map_fd: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let key = 0_u32;
    let mut attributes = Attributes {
        map_fd: map.as_raw_fd() as u32,
        padding: 0,
        key: address(&key),
        value: address(value),
        flags: 0,
    };
    // SAFETY: an array's key has four bytes, and the value as many as was just checked; both are only read.
    unsafe { bpf(command::MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

/// No process may write to a map any more.
pub fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut descriptor = map.as_raw_fd() as u32;
    // SAFETY: no addresses.
    unsafe { bpf(command::MAP_FREEZE, &mut descriptor) }.map(drop)
}

/// Bytes of the one value of a map that [`open_pinned`] gave.
pub fn value_size(map: BorrowedFd<'_>) -> io::Result<u32> {
    let info: MapInfo = info(map)?;
    if info.kind == ARRAY && info.max_entries == 1 {
        Ok(info.value_size)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// `struct bpf_btf_info`.
#[repr(C)]
#[derive(Default)]
struct TypesInfo {
    btf: u64,
    btf_size: u32,
    id: u32,
    name: u64,
    name_len: u32,
    kernel_btf: u32,
}

/// The beginning of what the kernel tells of an object, all numbers, without addresses that it would write to.
trait Info: Default {}
impl Info for MapInfo {}

fn info<T: Info>(of: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    // SAFETY: an `Info` is numbers, and has no addresses.
    unsafe { read_info(of, &mut info) }.map(|()| info)
}

/// # Safety
/// `T` is without padding, and all addresses in it are valid for what the kernel writes there.
unsafe fn read_info<T>(of: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut attributes = Attributes {
        bpf_fd: of.as_raw_fd() as u32,
        info_len: size_of::<T>() as u32,
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: `info` has the length that is said, and for the rest the caller's promise.
    unsafe { bpf(command::OBJ_GET_INFO_BY_FD, &mut attributes) }.map(drop)
}

/// The types of one of the kernel's modules. The kernel wants CAP_SYS_ADMIN for this.
pub fn types_of(module: &str) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let mut attributes = Attributes { id: 0, next_id: 0, open_flags: 0 };
    let mut last = None;
    loop {
        // SAFETY: no addresses.
        if let Err(error) = unsafe { bpf(command::BTF_GET_NEXT_ID, &mut attributes) } {
            return last.ok_or(error);
        }
        attributes = Attributes { id: attributes.next_id, next_id: 0, open_flags: 0 };
        // SAFETY: no addresses; the kernel makes a descriptor.
        let types = match unsafe { open(command::BTF_GET_FD_BY_ID, &mut attributes.id) } {
            Ok(types) => types,
            // It went away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut name = [0_u8; 64];
        let mut info =
            TypesInfo { name: name.as_mut_ptr() as u64, name_len: name.len() as u32, ..TypesInfo::default() };
        // SAFETY: `name` has room for as many bytes as is said; no types are asked for.
        match unsafe { read_info(types.as_fd(), &mut info) } {
            Ok(()) => {}
            // A longer name than ours.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => continue,
            Err(error) => return Err(error),
        }
        let found = CStr::from_bytes_until_nul(&name).is_ok_and(|name| name.to_bytes() == module.as_bytes());
        // Those of a module that was reloaded may be held by someone: the newest are its own.
        if found && info.kernel_btf != 0 {
            last = Some(types);
        }
    }
}

/// `struct bpf_prog_info` of `<linux/bpf.h>`, without its addresses.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    before: [u64; 26],
    recursion_misses: u64,
}
impl Info for ProgramInfo {}

/// How often a program was not run, as it was running on that CPU already.
pub fn missed(program: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = ProgramInfo::default();
    // SAFETY: nothing is asked for that has an address.
    unsafe { read_info(program, &mut info) }.map(|()| info.recursion_misses)
}

/// What a program is loaded for.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// How it will be attached.
    pub kind: Kind,
    /// What it is attached to: for messages, and the program's name.
    pub event: &'a str,
    /// The number of that in the kernel's types, unless it is found by its name.
    pub number: u32,
    /// The module's types, if the number is in these.
    pub types: Option<BorrowedFd<'a>>,
}

/// Why a program was not loaded.
#[derive(Debug)]
pub struct Refusal {
    /// What the kernel said first.
    pub error: io::Error,
    /// The verifier's words; empty if it had none.
    pub log: String,
}

/// Loads a program. The verifier explains itself only if it refuses, as that takes time.
pub fn load(target: Target<'_>, code: &[Instruction]) -> Result<OwnedFd, Refusal> {
    let error = match load_with_log(target, code, &mut []) {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    let [mut size, most] = LOG;
    let mut log = vec![0; size];
    loop {
        match load_with_log(target, code, &mut log) {
            Ok(program) => return Ok(program),
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size < most => {
                size *= 4;
                log = vec![0; size];
            }
            Err(_) => break,
        }
    }
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    Err(Refusal { error, log: String::from_utf8_lossy(&log[..end]).into_owned() })
}

fn load_with_log(target: Target<'_>, code: &[Instruction], log: &mut [u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; NAME],
        prog_ifindex: u32,
        expected_attach_type: u32,
        prog_btf_fd: u32,
        func_info_rec_size: u32,
        func_info: u64,
        func_info_cnt: u32,
        line_info_rec_size: u32,
        line_info: u64,
        line_info_cnt: u32,
        attach_btf_id: u32,
        attach_btf_obj_fd: u32,
        core_relo_cnt: u32,
    }
    const RAW_TRACEPOINT: u32 = 17;
    const TRACING: u32 = 26;
    // BPF_TRACE_RAW_TP, BPF_TRACE_FENTRY
    let (prog_type, expected_attach_type) = match target.kind {
        Kind::RawTracepoint => (RAW_TRACEPOINT, 0),
        Kind::TypedTracepoint => (TRACING, 23),
        Kind::Function => (TRACING, 24),
    };
    let mut attempts = 1..ATTEMPTS;
    loop {
        let mut attributes = Attributes {
            prog_type,
            insn_cnt: code.len() as u32,
            insns: address(code),
            // What the kernel lets only programs of this licence use.
            license: address(c"GPL".to_bytes_with_nul()),
            log_level: u32::from(!log.is_empty()),
            log_size: log.len() as u32,
            log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            kern_version: 0,
            prog_flags: 0,
            prog_name: name(target.event),
            prog_ifindex: 0,
            expected_attach_type,
            prog_btf_fd: 0,
            func_info_rec_size: 0,
            func_info: 0,
            func_info_cnt: 0,
            line_info_rec_size: 0,
            line_info: 0,
            line_info_cnt: 0,
            attach_btf_id: target.number,
            attach_btf_obj_fd: target.types.map_or(0, |types| types.as_raw_fd() as u32),
            core_relo_cnt: 0,
        };
        // SAFETY: instructions and licence are only read, and are as long as is said, or end in a zero; the log is
        // written within its size. The kernel makes a descriptor.
        match unsafe { open(command::PROG_LOAD, &mut attributes) } {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempts.next().is_some() => {}
            result => return result,
        }
    }
}

/// Attaches a program to what it was loaded for, until the descriptor is closed, and every pin of it gone.
pub fn attach(target: Target<'_>, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        name: u64,
        prog_fd: u32,
        padding: u32,
    }
    let name = CString::new(target.event)?;
    let by_name = target.kind == Kind::RawTracepoint;
    let mut attributes = Attributes {
        name: if by_name { address(name.to_bytes_with_nul()) } else { 0 },
        prog_fd: program.as_raw_fd() as u32,
        padding: 0,
    };
    // SAFETY: the name ends in a zero, and is only read. The kernel makes a descriptor.
    unsafe { open(command::RAW_TRACEPOINT_OPEN, &mut attributes) }
}

#[repr(C)]
struct PathAttributes {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Gives a map or an attachment a name in a bpffs, so that it stays without a process.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PathAttributes {
        pathname: address(path.to_bytes_with_nul()),
        bpf_fd: object.as_raw_fd() as u32,
        file_flags: 0,
    };
    // SAFETY: the path ends in a zero, and is only read.
    unsafe { bpf(command::OBJ_PIN, &mut attributes) }.map(drop)
}

/// Opens what has a name in a bpffs: for reading and writing, as what is opened for reading only cannot be mapped.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes =
        PathAttributes { pathname: address(path.to_bytes_with_nul()), bpf_fd: 0, file_flags: 0 };
    // SAFETY: the path ends in a zero, and is only read. The kernel makes a descriptor.
    unsafe { open(command::OBJ_GET, &mut attributes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_whose_they_are() {
        for (of, expected) in [
            ("exitscope_cells", "exitscope_cells"),
            ("exitscope_finished", "exitscope_finis"),
            ("kvm_exit", "exitscope_exit"),
            ("kvm_arch_vcpu_ioctl_run", "exitscope_run"),
            (".bss", "exitscope_bss"),
            ("", "exitscope_"),
        ] {
            let name = name(of);
            assert_eq!(CStr::from_bytes_until_nul(&name).unwrap().to_str().unwrap(), expected);
        }
    }
}

//! Who counts in the emulated machine: our module, or our eBPF programs, which the agent itself keeps loaded.

use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use exitscope_host::bpf::Bpf;
use exitscope_host::region::{DEVICE, Region};

static LOADED: Mutex<Option<Bpf>> = Mutex::new(None);

fn loaded() -> MutexGuard<'static, Option<Bpf>> {
    LOADED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads the eBPF programs, with a region of so many cells, or unloads them.
pub fn set_bpf(cells: Option<u32>) -> io::Result<()> {
    let mut loaded = loaded();
    *loaded = None;
    *loaded = cells.map(Bpf::load).transpose().map_err(io::Error::other)?;
    Ok(())
}

/// What the eBPF programs count.
pub fn of_bpf() -> io::Result<Region> {
    let loaded = loaded();
    let bpf = loaded.as_ref().ok_or_else(|| io::Error::other("no eBPF programs are loaded"))?;
    bpf.region().map_err(io::Error::other)
}

/// What the module counts, or without it the eBPF programs.
pub fn open() -> io::Result<Region> {
    if loaded().is_some() && !Path::new(DEVICE).exists() {
        return of_bpf();
    }
    Region::open(Path::new(DEVICE)).map_err(io::Error::other)
}

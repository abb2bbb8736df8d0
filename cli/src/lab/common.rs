//! What the commands of `exitscope lab` share: their options' values, the lab itself, files written whole.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::parts::series::Series;
use exitscope_lab::progress::Progress;
use exitscope_lab::runs::report::{GuestKind, Vmm};
use exitscope_lab::runs::session::Lab;

use crate::output::Usage;

/// The values of an option, by name.
pub fn names<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str) -> PossibleValuesParser {
    PossibleValuesParser::new(all.iter().map(|&member| name(member)))
}

/// The lab of a vendor and a kernel, by their names.
pub fn prepare(vendor: &str, kernel: &str, out: &Path, progress: &mut Progress) -> anyhow::Result<Lab> {
    let known = Vendor::ALL.into_iter().find(|known| known.name() == vendor);
    let vendor = known.with_context(|| format!("unknown vendor {vendor}"))?;
    Ok(Lab::prepare(vendor, series(kernel)?, &program()?, out, progress)?)
}

fn series(name: &str) -> anyhow::Result<Series> {
    let series = Series::ALL.into_iter().find(|series| series.name() == name);
    series.with_context(|| format!("unknown kernel {name}"))
}

/// The guest, and what runs it; some of both do not fit each other.
pub fn guest_and_vmm(guest: &str, vmm: Option<&str>) -> Result<(GuestKind, Vmm), Usage> {
    match (guest, vmm) {
        ("tiny", Some("qemu")) => Err(Usage(
            "--guest tiny has no operating system and needs --vmm exitscope: for --vmm qemu, use --guest linux or debian".into(),
        )),
        ("debian", Some("exitscope")) => Err(Usage(
            "--guest debian needs the disk and firmware of --vmm qemu: leave --vmm out, or use --guest linux".into(),
        )),
        ("debian", _) => Ok((GuestKind::Debian, Vmm::Qemu)),
        ("tiny", _) => Ok((GuestKind::Tiny, Vmm::Exitscope)),
        (_, Some("qemu")) => Ok((GuestKind::Linux, Vmm::Qemu)),
        _ => Ok((GuestKind::Linux, Vmm::Exitscope)),
    }
}

/// This very program, which runs in the emulated machine too.
pub fn program() -> anyhow::Result<PathBuf> {
    env::current_exe().context("cannot find this program's own file")
}

/// Writes a file in one step, so that no half of it is ever seen.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let unfinished = path.with_extension("tmp");
    let written = fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, path));
    written
        .inspect_err(|_| drop(fs::remove_file(&unfinished)))
        .with_context(|| format!("cannot write {}", path.display()))
}

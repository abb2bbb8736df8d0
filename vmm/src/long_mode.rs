//! The state of a vCPU that starts in 64-bit mode: GDT, page tables, segments and control registers.
//!
//! Bits are those of the SDM vol. 3: control registers in chapter 2, descriptors in chapter 3, paging in chapter 4.

use crate::layout::{self, PAGE_TABLE_PAGES};
use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};

/// Selector of the code segment, as Linux' boot protocol asks for it (`__BOOT_CS`).
pub const CODE: u16 = 0x10;
/// Selector of the data segment (`__BOOT_DS`).
pub const DATA: u16 = 0x18;
/// Selector of the task segment, two GDT slots long; VMX demands one in TR.
const TASK: u16 = 0x20;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// EFER's bit that enables 64-bit mode.
pub const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// CR0 and CR4 in 64-bit mode.
pub const CR0: u64 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
/// See [`CR0`].
pub const CR4: u64 = CR4_PAE;
/// Limit of the [`gdt`].
pub const GDT_LIMIT: u16 = 6 * 8 - 1;

/// Page tables for address `base` that map the first 4 GiB one to one with pages of 2 MiB.
///
/// Accessed and dirty bits are set already, so that walking the tables never writes to them.
pub fn page_tables(base: u64) -> Vec<u64> {
    let page = |number: u64| base + number * 0x1000;
    let table = PRESENT | WRITABLE | ACCESSED;
    let mut tables = vec![0; PAGE_TABLE_PAGES * 512];
    tables[0] = page(1) | table;
    for gib in 0..4 {
        tables[512 + gib] = page(2 + gib as u64) | table;
    }
    for (number, entry) in tables[2 * 512..].iter_mut().enumerate() {
        *entry = (number as u64) << 21 | table | DIRTY | LARGE;
    }
    tables
}

/// The GDT: empty, unused, code, data, and a task segment of two slots.
pub fn gdt() -> [u64; 6] {
    [0, 0, descriptor(&code()), descriptor(&data()), descriptor(&task()), 0]
}

/// Sets segments, control registers and EFER for 64-bit mode at CPL 0 with the tables at their places.
pub fn set(sregs: &mut kvm_sregs) {
    sregs.cs = code();
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data(), data(), data(), data(), data());
    sregs.tr = task();
    sregs.gdt = kvm_dtable { base: layout::GDT, limit: GDT_LIMIT, ..Default::default() };
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = CR0;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 = CR4;
    sregs.efer = EFER_LME | EFER_LMA;
}

fn code() -> kvm_segment {
    kvm_segment { selector: CODE, type_: 0xb, l: 1, ..flat_segment() }
}

fn data() -> kvm_segment {
    kvm_segment { selector: DATA, type_: 0x3, db: 1, ..flat_segment() }
}

fn task() -> kvm_segment {
    kvm_segment { selector: TASK, type_: 0xb, s: 0, g: 0, limit: 0x67, ..flat_segment() }
}

fn flat_segment() -> kvm_segment {
    kvm_segment { base: 0, limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() }
}

/// A segment as the (low) eight bytes that the GDT holds for it.
fn descriptor(segment: &kvm_segment) -> u64 {
    let base = segment.base;
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.avl)
        | u64::from(segment.l) << 1
        | u64::from(segment.db) << 2
        | u64::from(segment.g) << 3;
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tables as the processor does.
    fn translate(tables: &[u64], base: u64, address: u64) -> Option<u64> {
        let entry = |table: u64, shift: u64| {
            let index = (table - base) / 8 + (address >> shift & 511);
            Some(tables[usize::try_from(index).ok()?]).filter(|entry| entry & PRESENT != 0)
        };
        let pdpt = entry(base, 39)? & !0xfff;
        let directory = entry(pdpt, 30)? & !0xfff;
        let page = entry(directory, 21)?;
        assert_eq!(page & (LARGE | WRITABLE | DIRTY | ACCESSED), LARGE | WRITABLE | DIRTY | ACCESSED);
        Some((page & !0x1f_ffff) + (address & 0x1f_ffff))
    }

    #[test]
    fn the_first_4_gib_are_mapped_one_to_one_and_nothing_else() {
        let tables = page_tables(0x2000);
        for address in [0, 0x1234, 0x10_0000, 0x1f_ffff, 0x20_0000, 0x3fff_ffff, 0xd000_0000, 0xffff_ffff] {
            assert_eq!(translate(&tables, 0x2000, address), Some(address), "{address:#x}");
        }
        assert_eq!(translate(&tables, 0x2000, 0x1_0000_0000), None);
        assert_eq!(translate(&tables, 0x2000, 0x80_0000_0000), None);
    }

    #[test]
    fn descriptors_are_the_usual_ones() {
        let usual = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0];
        assert_eq!(gdt(), usual);
    }

    #[test]
    fn selectors_lead_to_their_descriptors() {
        let gdt = gdt();
        for segment in [code(), data(), task()] {
            assert_eq!(gdt[usize::from(segment.selector / 8)], descriptor(&segment));
        }
    }
}

//! A region as its programs find it: the header, the description of all fields, and the sum of retired VMs.

use std::sync::atomic::Ordering::{Relaxed, Release};

use exitscope_abi::bpf::RETIRED_CELLS;
use exitscope_abi::reason::Isa;
use exitscope_abi::region::{
    CELL_SIZE, Counters, EXPOSE_AS_MODULE, FIELDS, FIELDS_PER_CELL, Head, Header, MAGIC, Schema, VERSION,
    VcpuCell, VmCell, kind, state,
};

use crate::region::view;

/// A tick is a nanosecond.
const KHZ: u32 = 1_000_000;

/// Cells that are in use before the first exit, the header's with them.
pub const FIRST: usize = 1 + FIELDS.len().div_ceil(FIELDS_PER_CELL) + RETIRED_CELLS as usize;

/// Fills in cells that are all zero, [`FIRST`] at least; the programs add others as they need them.
pub fn start(cells: &[Counters], isa: Isa) {
    let Some((first, rest)) = cells.split_first().filter(|(_, rest)| rest.len() + 1 >= FIRST) else { return };
    let header: &Header = view(first);
    header.version.store(VERSION, Relaxed);
    header.cell_size.store(CELL_SIZE as u32, Relaxed);
    header.cells.store(FIRST as u32, Relaxed);
    header.tsc_khz.store(KHZ, Relaxed);
    header.isa.store(isa as u32, Relaxed);
    header.max_cells.store(cells.len() as u32, Relaxed);
    header.used_cells.store(FIRST as u32 - 1, Relaxed);
    header.schema.store(1, Relaxed);

    let (schema, rest) = rest.split_at(FIELDS.len().div_ceil(FIELDS_PER_CELL));
    header.schema_cells.store(schema.len() as u32, Relaxed);
    for (cell, fields) in schema.iter().zip(FIELDS.chunks(FIELDS_PER_CELL)) {
        let schema: &Schema = view(cell);
        let words = fields.iter().flat_map(|field| field.words());
        schema.fields.iter().flatten().zip(words).for_each(|(place, word)| place.store(word, Relaxed));
        begin(&schema.head, kind::SCHEMA, state::LIVE, 0);
    }

    let [vm, vcpu, overflow, ..] = rest else { return };
    let number = 1 + schema.len() as u32;
    let sum: &VmCell = view(vm);
    sum.expose.store(EXPOSE_AS_MODULE, Relaxed);
    begin(&sum.head, kind::VM, state::RETIRED, 0);
    begin(&view::<VcpuCell>(vcpu).head, kind::VCPU, state::RETIRED, number);
    overflow.min.store(u64::MAX, Relaxed);
    begin(&overflow.head, kind::OVERFLOW, state::LIVE, number + 1);
    header.magic.store(MAGIC, Release);
}

fn begin(head: &Head, kind: u16, state: u16, owner: u32) {
    head.state.store(state, Relaxed);
    head.owner.store(owner, Relaxed);
    head.kind.store(kind, Release);
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::region::Region;

    #[test]
    fn the_reader_finds_a_region_without_exits() {
        let cells: Vec<Counters> = (0..64).map(|_| Counters::default()).collect();
        for cell in &cells {
            cell.head.kind.store(kind::FREE, Relaxed);
            cell.min.store(0, Relaxed);
        }
        start(&cells, Isa::Svm);
        // SAFETY: the cells are that long, without padding, and nobody writes to them.
        let bytes = unsafe { slice::from_raw_parts(cells.as_ptr().cast::<u8>(), cells.len() * CELL_SIZE) };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let region = Region::open(file.path()).unwrap();
        let snapshot = region.snapshot();
        assert_eq!(snapshot.isa, Some(Isa::Svm));
        assert_eq!((snapshot.clock.khz, snapshot.max_cells), (KHZ, 64));
        assert_eq!(snapshot.used_cells as usize, FIRST - 1);
        assert!(snapshot.vms().is_empty() && region.live_vms().is_empty() && region.exits() == 0);
        let fields: Vec<String> = region.fields().into_iter().map(|field| field.name).collect();
        assert_eq!(fields, FIELDS.iter().map(|field| field.name).collect::<Vec<_>>());
    }

    #[test]
    fn the_sum_of_retired_vms_is_where_the_programs_look_for_it() {
        let cells: Vec<Counters> = (0..FIRST).map(|_| Counters::default()).collect();
        start(&cells, Isa::Vmx);
        let header: &Header = view(&cells[0]);
        let vm = (header.schema.load(Relaxed) + header.schema_cells.load(Relaxed)) as usize;
        let heads: Vec<_> = cells[vm..]
            .iter()
            .map(|cell| {
                let Head { kind, state, owner, .. } = &cell.head;
                (kind.load(Relaxed), state.load(Relaxed), owner.load(Relaxed))
            })
            .collect();
        let number = vm as u32;
        let expected = [
            (kind::VM, state::RETIRED, 0),
            (kind::VCPU, state::RETIRED, number),
            (kind::OVERFLOW, state::LIVE, number + 1),
        ];
        assert_eq!(heads, expected);
        assert_eq!(cells[vm + 2].min.load(Relaxed), u64::MAX);
    }
}

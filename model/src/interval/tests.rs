//! Intervals of any history of a host add up to the difference of its ends.

use std::collections::BTreeMap;

use exitscope_abi::region::{BUCKETS, bucket};
use proptest::prelude::*;

use super::*;
use crate::OVERFLOW;

/// A plain model of a host: what every vCPU of every VM has shown, and the sum of the VMs that were retired.
#[derive(Clone, Debug, Default)]
struct Host {
    vms: BTreeMap<u64, Guest>,
    retired: BTreeMap<u64, Tally>,
    last_id: u64,
    now: u64,
    began: u64,
}

#[derive(Clone, Debug, Default)]
struct Guest {
    finished: bool,
    vcpus: BTreeMap<u32, BTreeMap<u64, Tally>>,
}

/// What may happen between two snapshots.
#[derive(Clone, Debug)]
enum Event {
    Come,
    Exit {
        vm: usize,
        vcpu: u32,
        code: u64,
        ticks: u64,
        halted: bool,
    },
    Untimed {
        vm: usize,
        vcpu: u32,
        code: u64,
    },
    /// Time is told apart that was counted before, as a reader may find it in between.
    Apart {
        vm: usize,
        vcpu: u32,
        code: u64,
    },
    End {
        vm: usize,
    },
    Retire,
    Snapshot,
}

const CODES: [u64; 4] = [0x72, 0x78, 0x7b, 0x2_0000];

fn event() -> impl Strategy<Value = Event> {
    let code = prop::sample::select(CODES.to_vec());
    let ticks = prop_oneof![0..2_000_u64, 0..1_u64 << 40];
    prop_oneof![
        2 => Just(Event::Come),
        8 => (0..6_usize, 0..3_u32, code.clone(), ticks, any::<bool>())
            .prop_map(|(vm, vcpu, code, ticks, halted)| Event::Exit { vm, vcpu, code, ticks, halted }),
        2 => (0..6_usize, 0..3_u32, code.clone())
            .prop_map(|(vm, vcpu, code)| Event::Untimed { vm, vcpu, code }),
        1 => (0..6_usize, 0..3_u32, code).prop_map(|(vm, vcpu, code)| Event::Apart { vm, vcpu, code }),
        2 => (0..6_usize).prop_map(|vm| Event::End { vm }),
        1 => Just(Event::Retire),
        4 => Just(Event::Snapshot),
    ]
}

impl Host {
    fn tally(&mut self, vm: usize, vcpu: u32, code: u64) -> Option<&mut Tally> {
        let live: Vec<u64> = self.vms.iter().filter(|(_, vm)| !vm.finished).map(|(&id, _)| id).collect();
        let id = live.get(vm % live.len().max(1))?;
        let guest = self.vms.get_mut(id)?;
        // Near their end, so that counters wrap.
        let fresh = || Tally { exits: u64::MAX - 1, cycles: u64::MAX - 500, ..Tally::default() };
        Some(guest.vcpus.entry(vcpu).or_default().entry(code).or_insert_with(fresh))
    }

    fn happen(&mut self, event: &Event) {
        self.now += 1;
        match *event {
            Event::Come => {
                self.last_id += 1;
                self.vms.insert(self.last_id, Guest::default());
            }
            Event::Exit { vm, vcpu, code, ticks, halted } => {
                if let Some(tally) = self.tally(vm, vcpu, code) {
                    tally.exits = tally.exits.wrapping_add(1);
                    tally.cycles = tally.cycles.wrapping_add(ticks);
                    let part = if halted { &mut tally.halted } else { &mut tally.user };
                    *part = part.wrapping_add(ticks / 2);
                    tally.polled = tally.polled.wrapping_add(ticks / 8);
                    tally.min = tally.min.min(ticks);
                    tally.max = tally.max.max(ticks);
                    tally.histogram[bucket(ticks)] += 1;
                }
            }
            Event::Untimed { vm, vcpu, code } => {
                if let Some(tally) = self.tally(vm, vcpu, code) {
                    tally.exits = tally.exits.wrapping_add(1);
                }
            }
            Event::Apart { vm, vcpu, code } => {
                if let Some(tally) = self.tally(vm, vcpu, code) {
                    tally.user = tally.user.wrapping_add(3);
                }
            }
            Event::End { vm } => {
                let ids: Vec<u64> = self.vms.keys().copied().collect();
                if let Some(guest) = ids.get(vm).and_then(|id| self.vms.get_mut(id)) {
                    guest.finished = true;
                }
            }
            Event::Retire => {
                let oldest = self.vms.iter().find(|(_, vm)| vm.finished).map(|(&id, _)| id);
                let Some(guest) = oldest.and_then(|id| self.vms.remove(&id)) else { return };
                for (code, tally) in guest.vcpus.into_values().flatten() {
                    let code = if code == 0x2_0000 { OVERFLOW } else { code };
                    self.retired.entry(code).or_default().merge(&tally);
                }
            }
            Event::Snapshot => {}
        }
    }

    fn snapshot(&self) -> Snapshot {
        let mut accounts = Accounts::default();
        if !self.retired.is_empty() {
            accounts.begin_vm(RETIRED, 0, true, None);
            accounts.begin_vcpu(0, 0, 0, 0);
            self.retired.iter().for_each(|(&code, tally)| push(&mut accounts, code, tally));
        }
        for (&id, guest) in &self.vms {
            accounts.begin_vm(id, 100 + id as u32, guest.finished, None);
            for (&vcpu, reasons) in &guest.vcpus {
                accounts.begin_vcpu(vcpu, 0, u64::from(vcpu), 0);
                reasons.iter().for_each(|(&code, tally)| push(&mut accounts, code, tally));
            }
        }
        let at = Moment { monotonic_ns: self.now, wall_ns: self.now };
        Snapshot { at: Some(at), began: self.began, isa: Some(Isa::Svm), accounts, ..Snapshot::default() }
    }
}

/// A sum without its extremes, which are bounds only.
type Sums = (u64, u64, u64, u64, u64, [u64; BUCKETS]);

fn sums(accounts: &Accounts, vm: impl Fn(u64) -> bool) -> BTreeMap<u64, Sums> {
    let mut tallies: BTreeMap<u64, Tally> = BTreeMap::new();
    for (entry, _, account) in accounts.iter().filter(|(entry, ..)| vm(entry.id)) {
        let code =
            if entry.id == RETIRED { retired_code(Some(Isa::Svm), account.code) } else { account.code };
        tallies.entry(code).or_default().add(accounts, account);
    }
    let plain = |t: Tally| (t.exits, t.cycles, t.user, t.polled, t.halted, t.histogram);
    let mut plain: BTreeMap<u64, Sums> =
        tallies.into_iter().map(|(code, tally)| (code, plain(tally))).collect();
    plain.retain(|_, sums| *sums != (0, 0, 0, 0, 0, [0; BUCKETS]));
    plain
}

fn add(into: &mut BTreeMap<u64, Sums>, more: BTreeMap<u64, Sums>) {
    for (code, more) in more {
        let sum = into.entry(code).or_insert((0, 0, 0, 0, 0, [0; BUCKETS]));
        sum.0 = sum.0.wrapping_add(more.0);
        sum.1 = sum.1.wrapping_add(more.1);
        sum.2 = sum.2.wrapping_add(more.2);
        sum.3 = sum.3.wrapping_add(more.3);
        sum.4 = sum.4.wrapping_add(more.4);
        sum.5.iter_mut().zip(more.5).for_each(|(mine, theirs)| *mine = mine.wrapping_add(theirs));
    }
    into.retain(|_, sums| *sums != (0, 0, 0, 0, 0, [0; BUCKETS]));
}

/// Codes as the sum of retired VMs has them: in all, a code without a name may have moved there.
fn coarse(sums: BTreeMap<u64, Sums>) -> BTreeMap<u64, Sums> {
    let mut all = BTreeMap::new();
    for (code, sum) in sums {
        add(&mut all, BTreeMap::from([(retired_code(Some(Isa::Svm), code), sum)]));
    }
    all
}

proptest! {
    #[test]
    fn intervals_add_up_to_the_difference_of_the_ends(events in prop::collection::vec(event(), 1..120)) {
        let mut host = Host { began: 7, ..Host::default() };
        let mut snapshots = vec![host.snapshot()];
        for event in &events {
            host.happen(event);
            if matches!(event, Event::Snapshot) {
                snapshots.push(host.snapshot());
            }
        }
        snapshots.push(host.snapshot());
        let pieces: Vec<Interval> = snapshots.windows(2).map(|pair| Interval::between(&pair[0], &pair[1])).collect();
        let whole = Interval::between(&snapshots[0], &snapshots[snapshots.len() - 1]);
        let sum_of = |vm: &dyn Fn(u64) -> bool| {
            let mut sum = BTreeMap::new();
            pieces.iter().for_each(|piece| add(&mut sum, sums(&piece.accounts, vm)));
            sum
        };
        for vm in whole.accounts.vms().iter().map(|vm| vm.id).filter(|&id| id != RETIRED) {
            prop_assert_eq!(sum_of(&|id| id == vm), sums(&whole.accounts, |id| id == vm), "VM {}", vm);
        }
        prop_assert_eq!(coarse(sum_of(&|_| true)), coarse(sums(&whole.accounts, |_| true)));
        let all = Accounts::sum(pieces.iter().map(|piece| &piece.accounts));
        prop_assert_eq!(coarse(sums(&all, |_| true)), coarse(sums(&whole.accounts, |_| true)));
        prop_assert_eq!(pieces.iter().filter_map(Interval::ns).sum::<u64>(), whole.ns().unwrap());
    }

    #[test]
    fn extremes_are_bounds_of_what_came(ticks in prop::collection::vec(0..1_u64 << 40, 1..20), at in 0..20_usize) {
        let mut host = Host { began: 7, ..Host::default() };
        host.happen(&Event::Come);
        let exit = |ticks| Event::Exit { vm: 0, vcpu: 0, code: 0x72, ticks, halted: false };
        let at = at.min(ticks.len() - 1);
        ticks[..at].iter().for_each(|&ticks| host.happen(&exit(ticks)));
        let before = host.snapshot();
        ticks[at..].iter().for_each(|&ticks| host.happen(&exit(ticks)));
        let interval = Interval::between(&before, &host.snapshot());
        let (.., account) = interval.accounts.iter().next().unwrap();
        prop_assert!(account.min <= *ticks[at..].iter().min().unwrap());
        prop_assert!(account.max >= *ticks[at..].iter().max().unwrap());
    }
}

#[test]
fn a_source_that_began_anew_counts_from_there() {
    let mut host = Host { began: 7, ..Host::default() };
    host.happen(&Event::Come);
    host.happen(&Event::Untimed { vm: 0, vcpu: 0, code: 0x72 });
    let before = host.snapshot();
    let again = Host { began: 9, ..host };
    let interval = Interval::between(&before, &again.snapshot());
    assert!(interval.restarted);
    assert_eq!(interval.accounts.exits(), again.snapshot().accounts.exits());
}

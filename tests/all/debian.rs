//! Guests with firmware under stock QEMU, and among them a whole Debian.

use exitscope_abi::leaf::{Expose, Layout};
use exitscope_lab::runs::report::{GuestKind, Options, Source, Vmm};
use exitscope_lab::runs::session::Setup;
use exitscope_model::{Phase, Report};
use exitscope_tests::{Transcript, exits, report, sums_are_totals};

const CPUID: u32 = 0x72;

fn booted(name: &str, guest: GuestKind) -> (Report, Transcript) {
    let setup = Setup { name: name.into(), ..Setup::default() };
    let (layout, expose) = (Layout::Classic, Expose::Vm);
    report(&Options { setup, source: Source::Module, guest, vmm: Vmm::Qemu, vcpus: 1, layout, expose })
}

fn names(phases: &[Phase]) -> Vec<&str> {
    phases.iter().map(|phase| phase.name.as_str()).collect()
}

/// What the guest read and the phases fit what was counted.
fn fits(report: &Report) {
    sums_are_totals(&report.vms);
    let [vm] = &report.vms[..] else { panic!("{} VMs", report.vms.len()) };
    assert_eq!(vm.total(), report.total);

    let read = report.guest.as_ref().unwrap();
    assert!(read.total.exits > 0 && read.total.exits < report.total.exits, "{:?}", read.total);
    // Every reason was read after the total, and the host's last look came after both.
    let sum: u64 = read.reasons.iter().map(|reason| reason.exits).sum();
    assert!(sum >= read.total.exits && sum < report.total.exits, "{sum}");
    let (cpuids, counted) = (exits(&read.reasons, CPUID), exits(&report.reasons, CPUID));
    assert!(cpuids > 500 && cpuids <= counted, "{cpuids} of {counted}");

    let (first, last) = (report.timeline.first().unwrap(), report.timeline.last().unwrap());
    assert_eq!((first.t_ms, first.exits, last.exits), (0, 0, report.total.exits));
    assert_eq!(report.phases.iter().map(|phase| phase.exits).sum::<u64>(), report.total.exits);
    assert!(report.phases.iter().all(|phase| phase.exits > 0 && phase.start_ms <= phase.end_ms));
    assert!(report.phases.windows(2).all(|pair| pair[0].end_ms == pair[1].start_ms));
    let (begin, end) = (report.phases.first().unwrap(), report.phases.last().unwrap());
    assert_eq!((begin.start_ms, end.end_ms), (0, last.t_ms));
}

#[test]
fn debian_boots_and_reads_its_exits() {
    let (report, transcript) = booted("debian", GuestKind::Debian);
    fits(&report);
    assert_eq!(names(&report.phases), ["firmware", "kernel", "initramfs", "userspace", "shutdown"]);
    assert!(report.total.exits > 20_000, "{:?}", report.total);
    // The leaves were read at the end of userspace, before the shutdown.
    let until =
        |name: &str| report.phases.iter().take_while(|phase| phase.name != name).map(|p| p.exits).sum();
    let read = report.guest.as_ref().unwrap().total.exits;
    assert!((until("userspace")..until("shutdown")).contains(&read), "{read}: {:?}", report.phases);

    // Debian's own tool reads the total too, a little later: EAX of exitscope's own leaf.
    let [_, cpuid] = transcript.guest("guest-nested").outputs else { panic!("not two commands") };
    let eax = cpuid.stdout.split("eax=0x").nth(1).and_then(|rest| rest.get(..8));
    let eax = u64::from_str_radix(eax.unwrap_or_default(), 16).unwrap_or_else(|_| panic!("{cpuid:?}"));
    assert!(eax > read && eax < report.total.exits, "{eax:#x}");
}

#[test]
fn linux_boots_under_qemu_too() {
    let (report, _) = booted("qemu", GuestKind::Linux);
    fits(&report);
    assert_eq!(names(&report.phases), ["firmware", "kernel", "initramfs", "shutdown"]);
}

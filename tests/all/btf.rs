//! What the kernel's BTF says is believed, and nothing else: a kernel that does not say it, or says otherwise, is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use exitscope_core::btf::{Place, Types};
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::{Insert, Step};
use exitscope_lab::parts::series::Series;
use exitscope_lab::runs::session::Setup;
use exitscope_tests::{Lane, console, exits, flat, guests, insert, lab, machine_with, refused, remove};

fn objcopy(arguments: &[&str], files: &[&Path]) {
    let output = Command::new("objcopy").args(arguments).args(files).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The BTF of a kernel or of a module.
fn btf_of(file: &Path) -> Vec<u8> {
    let section = tempfile::NamedTempFile::new().unwrap();
    let dump = format!("--dump-section=.BTF={}", section.path().display());
    objcopy(&[&dump], &[file, Path::new("/dev/null")]);
    fs::read(section.path()).unwrap()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Where the structure of that name, which only the module has, begins in its BTF.
fn structure(kernel: &[u8], module: &[u8], name: &str) -> usize {
    const HEADER: usize = 24;
    let strings = word(module, 4) as usize + word(module, 16) as usize;
    let text = format!("\0{name}\0");
    let own = module[strings..].windows(text.len()).position(|window| window == text.as_bytes()).unwrap() + 1;
    let name = word(kernel, 20) + u32::try_from(own).unwrap();
    let is_it = |at: &usize| word(module, *at) == name && word(module, at + 4) >> 24 & 0x7f == 4;
    (HEADER..strings).step_by(4).find(is_it).unwrap()
}

/// The module's BTF with the pointer to the VMCB where what follows it is.
fn moved(kernel: &[u8], module: &[u8]) -> Vec<u8> {
    let member = |number: usize| structure(kernel, module, "vcpu_svm") + 12 + 12 * number + 8;
    let mut bytes = module.to_vec();
    bytes.copy_within(member(2)..member(2) + 4, member(1));
    bytes
}

#[test]
fn stock_kernels_say_where_everything_is() {
    for series in Series::STOCK {
        let lab = lab(Lane { vendor: Vendor::Amd, series });
        let kernel = btf_of(lab.boot_image());
        let [kvm, svm] = ["kvm", "kvm_amd"].map(|name| btf_of(lab.module(name).unwrap()));
        let types = Types::read(&kernel, &kvm).unwrap();
        let vcpu = types.place("kvm_vcpu").unwrap();
        assert_eq!(
            types.place("btf_trace_kvm_exit(1)->vcpu_id"),
            types.place("kvm_vcpu.vcpu_id"),
            "{series}"
        );
        assert_eq!(types.place("btf_trace_kvm_exit(2)->vcpu_id"), None, "{series}");

        let types = Types::read(&kernel, &svm).unwrap();
        assert_eq!(types.place("vcpu_svm.vcpu"), Some(vcpu), "{series}");
        let vmcb = Place { offset: vcpu.size.next_multiple_of(8), size: 8 };
        assert_eq!(types.place("vcpu_svm.vmcb"), Some(vmcb), "{series}");
        let code = types.place("vcpu_svm.vmcb->control.exit_code").unwrap();
        assert_eq!(code.offset, 0x70, "{series}");
    }
}

#[test]
fn mutilated_btf_of_a_stock_kernel_is_not_believed() {
    let lab = lab(Vendor::Amd);
    let kernel = btf_of(lab.boot_image());
    let svm = btf_of(lab.module("kvm_amd").unwrap());
    let place = |module: &[u8]| Types::read(&kernel, module)?.place("vcpu_svm.vmcb");
    let right = place(&svm).unwrap();

    assert_eq!(place(&moved(&kernel, &svm)), Some(Place { offset: right.offset + 8, ..right }));
    let mut renamed = svm.clone();
    let at = structure(&kernel, &svm, "vcpu_svm");
    renamed[at] ^= 1;
    assert_eq!(place(&renamed), None);
    for length in (1..svm.len()).step_by(997) {
        assert_eq!(place(&svm[..length]), None, "{length}");
    }
    // Damage anywhere: whatever it makes of the module's types, it ends.
    for at in (0..svm.len()).step_by(61) {
        let mut damaged = svm.clone();
        damaged[at] ^= 0x55;
        place(&damaged);
    }
}

#[test]
fn a_kernel_that_does_not_say_where_things_are_is_refused() {
    let lab = lab(Vendor::Amd);
    let directory = tempfile::tempdir().unwrap();
    let [kvm, svm] = ["kvm", "kvm_amd"].map(|name| lab.module(name).unwrap());
    let file = |name: &str| directory.path().join(name);
    objcopy(&["--remove-section=.BTF"], &[kvm, &file("kvm-bare.ko")]);
    objcopy(&["--remove-section=.BTF"], &[svm, &file("svm-bare.ko")]);
    fs::write(file("moved.btf"), moved(&btf_of(lab.boot_image()), &btf_of(svm))).unwrap();
    let update = format!("--update-section=.BTF={}", file("moved.btf").display());
    objcopy(&[&update], &[svm, &file("svm-moved.ko")]);
    let names = ["kvm-bare.ko", "svm-bare.ko", "svm-moved.ko"];
    let files: Vec<(String, PathBuf)> = names.map(|name| (format!("/{name}"), file(name))).into();

    let load = |path: &str| Step::Insert(Insert { path: path.into(), parameters: String::new() });
    let unload = |name: &str| Step::Remove { name: name.into() };
    let snapshot = |label: &str| Step::Snapshot { label: label.into() };
    let steps = vec![
        // KVM's part for the vendor is there, and tells nothing or something else.
        unload("kvm_amd"),
        load("/svm-bare.ko"),
        refused("svm bare", insert("")),
        unload("kvm_amd"),
        load("/svm-moved.ko"),
        refused("svm moved", insert("")),
        unload("kvm_amd"),
        // It comes later, so that our module is there already: guests run, and nothing is believed of them.
        insert(""),
        load("/svm-moved.ko"),
        guests(vec![flat("moved", "cpuid", 100, 1)]),
        unload("kvm_amd"),
        load("/svm-bare.ko"),
        guests(vec![flat("bare", "cpuid", 100, 1)]),
        unload("kvm_amd"),
        snapshot("none"),
        // The right one comes.
        load("/modules/kvm_amd.ko"),
        guests(vec![flat("frame", "cpuid", 0, 1)]),
        guests(vec![flat("right", "cpuid", 1_000, 1)]),
        snapshot("right"),
        remove(),
        unload("kvm_amd"),
        unload("kvm"),
        load("/kvm-bare.ko"),
        load("/modules/kvm_amd.ko"),
        refused("kvm bare", insert("")),
    ];
    let setup = Setup { name: "btf".into(), files, ..Setup::default() };
    let transcript = machine_with(Vendor::Amd, setup, steps);

    for (label, hints) in [
        ("svm bare", ["no /sys/kernel/btf/kvm_amd", "what its vCPUs are like"]),
        ("svm moved", ["vcpu_svm.vmcb at byte", "build it for this kernel"]),
        ("kvm bare", ["no /sys/kernel/btf/kvm,", "struct kvm_vcpu"]),
    ] {
        let why = transcript.refusal(label);
        assert!(hints.iter().all(|hint| why.contains(hint)), "{label}: {why}");
    }
    assert!(transcript.snapshot("none").is_empty());
    let cpuids = |guest| exits(&transcript.vm("right", guest).vcpus[0].reasons, 0x72);
    assert_eq!(cpuids("right") - cpuids("frame"), 1_000);
    let console = console(Vendor::Amd, "btf");
    assert_eq!(console.matches("exits of its guests are not counted").count(), 2);
}

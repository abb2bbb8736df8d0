//! `exitscope vmm`: the micro-VMM as a command.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use exitscope_abi::reason::Isa;
use exitscope_guest::workload::Workload;
use exitscope_vmm::{Config, FlatWork, LINUX_CMDLINE, Payload};

use crate::output::Usage;

/// Options of `exitscope vmm`.
#[derive(clap::Args)]
pub struct Args {
    /// Linux kernel to boot (bzImage or vmlinux)
    #[arg(long, required_unless_present = "workload", conflicts_with = "workload")]
    kernel: Option<PathBuf>,
    /// Its initramfs
    #[arg(long, requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Its command line
    #[arg(long, default_value = LINUX_CMDLINE)]
    cmdline: String,
    /// Workload to run instead: cpuid, leaf, leaves, rdmsr, wrmsr, pio, pio-in, mmio, hlt, hypercall, or on AMD nested; several,
    /// separated by commas, are those of the first vCPU, the second, and so on
    #[arg(long, value_delimiter = ',')]
    workload: Vec<String>,
    /// Exits of the workload's kind, on each vCPU, or for each workload
    #[arg(long, value_delimiter = ',', default_value = "100000")]
    iterations: Vec<u64>,
    /// Time the workload in batches of so many exits and report the fastest; 0 does not time it
    #[arg(long, default_value_t = 0)]
    batch: u64,
    /// Number of vCPUs
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// Guest memory in MiB
    #[arg(long, default_value_t = 256)]
    memory: u64,
    /// Stop the guest after so many seconds
    #[arg(long)]
    timeout: Option<u64>,
    /// Write what the vCPUs reported to this file, as JSON
    #[arg(long)]
    outcome: Option<PathBuf>,
    /// Keep the VM when its guest has ended, until stdin is closed
    #[arg(long)]
    linger: bool,
    /// Sleep so many µs when the guest writes to port 0x80, as workload pio does
    #[arg(long, value_name = "US", default_value_t = 0)]
    port_delay_us: u64,
    /// Have the kernel halt the vCPUs of a workload, and end halts once in so many µs
    #[arg(long, value_name = "US", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "kernel")]
    halt_us: Option<u64>,
    /// What the VM is called, which tools read from this command line
    #[arg(long)]
    name: Option<String>,
}

/// Runs a VM to its end; its console is our stdout.
pub fn run(args: Args) -> anyhow::Result<()> {
    let payload = match args.kernel {
        Some(kernel) => Payload::Linux { kernel, initrd: args.initrd, cmdline: args.cmdline },
        None => Payload::Flat { works: works(&args.workload, &args.iterations)?, batch: args.batch },
    };
    let config = Config {
        memory_mib: args.memory,
        vcpus: args.vcpus,
        payload,
        timeout: args.timeout.map(Duration::from_secs),
        port_delay: Duration::from_micros(args.port_delay_us),
        halt: args.halt_us.map(Duration::from_micros),
        ..Config::default()
    };
    let (outcome, done) = exitscope_vmm::run(&config, io::stdout(), |outcome| {
        if let Some(path) = &args.outcome {
            let reports: Vec<&[u64]> = outcome.vcpus.iter().map(|vcpu| vcpu.reports.as_slice()).collect();
            fs::write(path, serde_json::to_vec(&reports)?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        if args.linger {
            io::copy(&mut io::stdin(), &mut io::sink()).context("cannot read stdin")?;
        }
        anyhow::Ok(())
    })?;
    done?;
    match outcome.status {
        0 => Ok(()),
        status => bail!("the guest ended with status {status}"),
    }
}

/// What each vCPU does: a workload each, with its number of iterations or the last one's.
fn works(names: &[String], iterations: &[u64]) -> anyhow::Result<Vec<FlatWork>> {
    if iterations.len() > names.len().max(1) {
        bail!(Usage(format!(
            "there are {} numbers of iterations for {} workloads",
            iterations.len(),
            names.len()
        )));
    }
    let mut works = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let Some(workload) = Workload::from_name(name) else {
            let known: Vec<&str> = Workload::ALL.iter().map(|workload| workload.name()).collect();
            bail!(Usage(format!("unknown workload {name}: want one of {}", known.join(", "))));
        };
        let isa = isa()?;
        let Some(image) = workload.image(isa) else {
            bail!(Usage(format!("workload {name} is not for {}: choose another", isa.name())));
        };
        let iterations = iterations.get(index).or(iterations.last()).copied().unwrap_or(0);
        works.push(FlatWork { image: image.to_vec(), iterations });
    }
    Ok(works)
}

/// The instruction set that KVM runs guests with here.
pub fn isa() -> anyhow::Result<Isa> {
    let info = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    match (has("svm"), has("vmx")) {
        (true, _) => Ok(Isa::Svm),
        (_, true) => Ok(Isa::Vmx),
        _ => bail!("this CPU has neither SVM nor VMX: try `exitscope lab run`, which emulates one"),
    }
}

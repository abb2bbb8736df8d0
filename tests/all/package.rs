//! The DKMS package: the same bytes each time, and all in it that the module is built from.

use std::fs;
use std::path::Path;
use std::process::Command;

use exitscope_lab::parts::cache::Cache;
use exitscope_lab::parts::kernel;
use exitscope_lab::parts::series::Series;
use exitscope_lab::progress::Progress;
use exitscope_tests::root;

/// Runs a command to its end, and gives what it wrote.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Builds the package in a directory; the path of it.
fn build(directory: &Path) -> String {
    run(Command::new(root().join("kernel/dkms/build")).arg(directory)).trim_end().into()
}

#[test]
fn the_package_is_the_same_each_time_and_builds_the_module() {
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| build(&directory.path().join(name)));
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());

    let unpacked = directory.path().join("unpacked");
    run(Command::new("dpkg-deb").args(["-x".as_ref(), Path::new(&first), &unpacked]));
    let version = run(Command::new("dpkg-deb").args(["-f", &first, "Version"]));
    let version = version.trim_end();

    // Where DKMS has a copy of the sources when it builds, and what it then does by dkms.conf.
    let dkms_tree = directory.path().join("dkms");
    let copy = dkms_tree.join("exitscope").join(version);
    fs::create_dir_all(&copy).unwrap();
    fs::rename(unpacked.join("usr/src").join(format!("exitscope-{version}")), copy.join("build")).unwrap();
    let kernel = kernel::resolve(Series::V6_12, &Cache::open().unwrap(), &mut Progress::new()).unwrap();
    let as_dkms = r#"set -e
        . ./dkms.conf
        # A machine that builds exitscope may have another Rust than Debian's.
        ${MAKE[0]/KERNEL_RUSTC=\/usr\/bin\/rustc/} >make.log 2>&1 || { cat make.log >&2; exit 1; }
        modinfo -F version "${BUILT_MODULE_LOCATION[0]}/${BUILT_MODULE_NAME[0]}.ko""#;
    let mut dkms = Command::new("bash");
    dkms.args(["-c", as_dkms]).current_dir(copy.join("build"));
    dkms.env("dkms_tree", &dkms_tree).env("kernel_source_dir", &kernel.build);
    assert_eq!(run(&mut dkms).trim_end(), version);
}

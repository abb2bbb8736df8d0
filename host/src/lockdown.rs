//! Whether this machine loads only kernel modules whose signer it knows, which a missing module may be due to.

use std::fs;
use std::path::Path;

/// The firmware's variable that tells of Secure Boot: four bytes of attributes, then 0 or 1.
const SECURE_BOOT: &str = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// What to do on the machine whose root directory is `root` when our module is not loaded.
pub fn advice(root: &Path) -> String {
    let load = "load the module first (`sudo modprobe exitscope`, or `make module` and `sudo insmod`)";
    match reason(root) {
        None => load.into(),
        Some(reason) => format!(
            "{load}; {reason}, so a module is refused unless the key that signed it is enrolled: docs/install.md \
             says how"
        ),
    }
}

/// The levels of lockdown, the present one in brackets; empty where there are none.
pub(crate) fn level(root: &Path) -> String {
    let text = fs::read(root.join("sys/kernel/security/lockdown")).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

/// Why modules need a signer that the machine knows; `None` where they do not, or nothing tells.
pub(crate) fn reason(root: &Path) -> Option<&'static str> {
    let read = |path: &str| fs::read(root.join(path)).unwrap_or_default();
    let lockdown = level(root);
    if lockdown.contains('[') && !lockdown.contains("[none]") {
        Some("this kernel is locked down")
    } else if read("sys/module/module/parameters/sig_enforce").starts_with(b"Y") {
        Some("this kernel enforces signatures of modules")
    } else if read(SECURE_BOOT).get(4) == Some(&1) {
        Some("Secure Boot is on")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKDOWN: &str = "sys/kernel/security/lockdown";
    const ENFORCE: &str = "sys/module/module/parameters/sig_enforce";

    /// On a machine with these files, the reason is this.
    fn check(files: &[(&str, &[u8])], expected: Option<&str>) {
        let root = tempfile::tempdir().unwrap();
        for (path, contents) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        assert_eq!(reason(root.path()), expected, "{files:?}");
    }

    #[test]
    fn each_sign_of_it_is_known() {
        check(&[], None);
        check(&[(LOCKDOWN, b"[none] integrity confidentiality\n"), (ENFORCE, b"N\n")], None);
        for level in [&b"none [integrity] confidentiality\n"[..], b"none integrity [confidentiality]\n"] {
            check(&[(LOCKDOWN, level)], Some("this kernel is locked down"));
        }
        check(&[(ENFORCE, b"Y\n")], Some("this kernel enforces signatures of modules"));
        check(&[(SECURE_BOOT, &[6, 0, 0, 0, 1])], Some("Secure Boot is on"));
        check(&[(SECURE_BOOT, &[6, 0, 0, 0, 0])], None);
        check(&[(SECURE_BOOT, &[1])], None);
    }

    #[test]
    fn the_advice_says_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        assert!(advice(root.path()).ends_with("`sudo insmod`)"));
        let enforce = root.path().join(ENFORCE);
        fs::create_dir_all(enforce.parent().unwrap()).unwrap();
        fs::write(enforce, "Y\n").unwrap();
        assert!(advice(root.path()).ends_with("docs/install.md says how"));
    }
}

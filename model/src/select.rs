//! What a user asks for: which VMs, vCPUs and reasons, the same for every tool.

use std::collections::BTreeMap;

use exitscope_abi::reason::Isa;

use crate::OVERFLOW;
use crate::accounts::{RETIRED, VmEntry};

/// The name of every VM that has one, by [`VmEntry::id`].
pub type Names = BTreeMap<u64, String>;

/// Which VMs, vCPUs and reasons; what is empty selects all.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// VMs, each by number, name or process.
    pub vms: Vec<VmKey>,
    /// KVM's ids of vCPUs.
    pub vcpus: Vec<u32>,
    /// Codes of exit reasons.
    pub codes: Vec<u64>,
}

/// What a VM is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmKey {
    /// The source's number: `id:3`.
    Id(u64),
    /// The process that created it: `pid:4711`.
    Pid(u32),
    /// Its name, whole: `name:web`.
    Name(String),
    /// Any of these, where only one VM fits: `3`, `web`.
    Any(String),
}

impl VmKey {
    /// Reads what stands on a command line; `None` where a prefix is followed by no number.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            Some(("id", number)) => number.parse().ok().map(Self::Id),
            Some(("pid", number)) => number.parse().ok().map(Self::Pid),
            Some(("name", name)) => Some(Self::Name(name.into())),
            _ => Some(Self::Any(text.into())),
        }
    }

    /// Whether it means one of these VMs.
    pub fn fits_any(&self, vms: &[VmEntry], names: &Names) -> bool {
        vms.iter().any(|vm| fits(self, vm, names))
    }
}

/// Why a selection cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    /// Several VMs are called so.
    #[error("`{key}` is {}: say {}", .meanings.join(" and "), .choices.join(" or "))]
    Ambiguous {
        /// What was asked for.
        key: String,
        /// What it may mean, in words.
        meanings: Vec<String>,
        /// What to say instead.
        choices: Vec<String>,
    },
}

impl Selection {
    /// Whether it selects everything.
    pub fn is_all(&self) -> bool {
        self.vms.is_empty() && self.vcpus.is_empty() && self.codes.is_empty()
    }

    /// Whether a VM is selected.
    pub fn has_vm(&self, vm: &VmEntry, names: &Names) -> bool {
        self.vms.is_empty() || self.vms.iter().any(|key| fits(key, vm, names))
    }

    /// Whether a vCPU of a selected VM is. The sum of retired VMs has none.
    pub fn has_vcpu(&self, vm: &VmEntry, id: u32) -> bool {
        self.vcpus.is_empty() || (vm.id != RETIRED && self.vcpus.contains(&id))
    }

    /// Whether a reason is selected.
    pub fn has_code(&self, code: u64) -> bool {
        self.codes.is_empty() || self.codes.contains(&code)
    }

    /// Checks that no key means VMs of different kinds among these: a number that is one VM's and another's process.
    ///
    /// # Errors
    /// When one does.
    pub fn check(&self, vms: &[VmEntry], names: &Names) -> Result<(), Unclear> {
        for key in &self.vms {
            let VmKey::Any(text) = key else { continue };
            let of = |key: VmKey| {
                vms.iter().filter(|vm| fits(&key, vm, names)).map(|vm| vm.id).collect::<Vec<_>>()
            };
            let number = text.parse().ok();
            let kinds = [
                ("id", "the number of one VM", number.map(|id| of(VmKey::Id(id))).unwrap_or_default()),
                (
                    "pid",
                    "the process of one",
                    text.parse().map(|pid| of(VmKey::Pid(pid))).unwrap_or_default(),
                ),
                ("name", "the name of one", of(VmKey::Name(text.clone()))),
            ];
            let told: Vec<_> = kinds.iter().filter(|(.., vms)| !vms.is_empty()).collect();
            if told.iter().any(|(.., vms)| *vms != told[0].2) {
                return Err(Unclear::Ambiguous {
                    key: text.clone(),
                    meanings: told.iter().map(|(_, meaning, _)| (*meaning).to_owned()).collect(),
                    choices: told.iter().map(|(prefix, ..)| format!("{prefix}:{text}")).collect(),
                });
            }
        }
        Ok(())
    }

    /// Has each key that may mean several things mean what it means for these VMs, so that it does not mean another
    /// thing when others have come. What fits none of them stays open.
    pub fn bind(&mut self, vms: &[VmEntry], names: &Names) {
        for key in &mut self.vms {
            let VmKey::Any(text) = key else { continue };
            let meanings = [
                text.parse().ok().map(VmKey::Id),
                text.parse().ok().map(VmKey::Pid),
                Some(VmKey::Name(text.clone())),
            ];
            let meant = meanings.into_iter().flatten().find(|key| key.fits_any(vms, names));
            if let Some(meant) = meant {
                *key = meant;
            }
        }
    }
}

impl std::fmt::Display for VmKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => write!(f, "id:{id}"),
            Self::Pid(pid) => write!(f, "pid:{pid}"),
            Self::Name(name) => write!(f, "name:{name}"),
            Self::Any(text) => f.write_str(text),
        }
    }
}

fn fits(key: &VmKey, vm: &VmEntry, names: &Names) -> bool {
    let named = |name: &str| names.get(&vm.id).is_some_and(|known| known == name);
    match key {
        VmKey::Id(id) => vm.id == *id && vm.id != RETIRED,
        VmKey::Pid(pid) => vm.pid == *pid && vm.id != RETIRED,
        VmKey::Name(name) => named(name),
        VmKey::Any(text) if text == "retired" => vm.id == RETIRED,
        VmKey::Any(text) => {
            let number = text.parse::<u64>().ok();
            let is = |value: u64| vm.id != RETIRED && number == Some(value);
            is(vm.id) || is(vm.pid.into()) || named(text)
        }
    }
}

/// The codes that a number or a name stands for, in any of these instruction sets; none when it is no reason's.
pub fn codes(text: &str, isas: &[Isa]) -> Vec<u64> {
    if text.eq_ignore_ascii_case("OVERFLOW") {
        return vec![OVERFLOW];
    }
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    match number {
        Some(number) => vec![number],
        None => isas.iter().filter_map(|isa| isa.by_name(text)).map(|reason| reason.code.into()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::Accounts;

    fn vms() -> Accounts {
        let mut accounts = Accounts::default();
        accounts.begin_vm(RETIRED, 0, true, None);
        for (id, pid) in [(1, 23), (2, 123), (23, 500), (24, 500)] {
            accounts.begin_vm(id, pid, false, None);
        }
        accounts
    }

    fn found(key: &str) -> Vec<u64> {
        let names = Names::from([(1, "web".into()), (2, "web-2".into()), (24, "0".into())]);
        let selection = Selection { vms: vec![VmKey::parse(key).unwrap()], ..Selection::default() };
        vms().vms().iter().filter(|vm| selection.has_vm(vm, &names)).map(|vm| vm.id).collect()
    }

    #[test]
    fn a_vm_is_found_by_the_whole_of_what_it_is_called() {
        assert_eq!(found("web"), [1]);
        assert_eq!(found("name:web-2"), [2]);
        assert_eq!(found("we"), [0; 0]);
        assert_eq!(found("123"), [2]);
        assert_eq!(found("12"), [0; 0]);
        assert_eq!(found("pid:23"), [1]);
        assert_eq!(found("id:23"), [23]);
        assert_eq!(found("pid:500"), [23, 24]);
        assert_eq!(found("0"), [24]);
        assert_eq!(found("retired"), [RETIRED]);
        assert_eq!(VmKey::parse("pid:x"), None);
    }

    #[test]
    fn what_may_mean_two_things_is_told() {
        let accounts = vms();
        let check = |key: &str| {
            let selection = Selection { vms: vec![VmKey::parse(key).unwrap()], ..Selection::default() };
            selection.check(accounts.vms(), &Names::new()).map_err(|unclear| unclear.to_string())
        };
        assert_eq!(
            check("23").unwrap_err(),
            "`23` is the number of one VM and the process of one: say id:23 or pid:23"
        );
        assert_eq!([check("pid:23"), check("500"), check("nobody")], [Ok(()), Ok(()), Ok(())]);
    }

    #[test]
    fn reasons_are_numbers_or_names() {
        assert_eq!(codes("0x72", &[Isa::Svm]), [0x72]);
        assert_eq!(codes("cpuid", &Isa::ALL).len(), 2);
        assert_eq!(codes("overflow", &[Isa::Svm]), [OVERFLOW]);
        assert_eq!(codes("CPUIDs", &Isa::ALL), [0; 0]);
    }
}

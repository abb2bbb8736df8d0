//! What works on a machine and what does not, as in the JSON schema `exitscope-doctor/1`.

use serde::{Deserialize, Serialize};

/// The schema's name and version.
pub const SCHEMA: &str = "exitscope-doctor/1";

/// [`Diagnosis::sources`]: the module's device can be read.
pub const MODULE: &str = "module";
/// [`Diagnosis::sources`]: this machine is a guest, and its host's exitscope answers CPUID.
pub const GUEST: &str = "guest";

/// Every check of one machine: one JSON document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// [`SCHEMA`].
    pub schema: String,
    /// Whether there is at least one source.
    pub works: bool,
    /// The sources of exits that this user can read here: [`MODULE`], [`GUEST`].
    pub sources: Vec<String>,
    /// All checks, always the same ones; causes come before what follows from them.
    pub checks: Vec<Check>,
}

/// One property of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Name of the check, the same on every machine.
    pub name: String,
    /// How it ended.
    pub result: Verdict,
    /// What is so on this machine.
    pub found: String,
    /// What to do about it; `None` where nothing is to be done.
    pub advice: Option<String>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing to do.
    Ok,
    /// No source depends on it, or not yet.
    Warn,
    /// A source on this host needs it, and it is not so.
    Fail,
    /// It could not be read.
    Unknown,
}

impl Diagnosis {
    /// The diagnosis that these checks and working sources make.
    pub fn new(sources: Vec<String>, checks: Vec<Check>) -> Self {
        Self { schema: SCHEMA.into(), works: !sources.is_empty(), sources, checks }
    }
}

impl Check {
    /// A check without advice.
    pub fn new(name: &str, result: Verdict, found: impl Into<String>) -> Self {
        Self { name: name.into(), result, found: found.into(), advice: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

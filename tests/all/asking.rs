//! One Linux guest that asks under every layout and policy, since its boot takes longer than all it asks: the host changes
//! what the leaves say once the guest has asked all it wants to know, and the guest goes on once they say so.

use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::{AWAIT, Guest, Output, Step};
use exitscope_tests::{Transcript, insert, linux, while_running};

use crate::{leaves, policy};

/// The guest's name.
pub const GUEST: &str = "asking";

/// What the guest asks while the leaves say something.
pub struct Phase {
    /// What brings that about.
    pub change: Vec<Step>,
    /// What they then say: names of a layout and of a policy. They have not said so in the phase before.
    pub says: String,
    /// The guest's commands.
    pub commands: Vec<String>,
    /// Another guest that runs meanwhile.
    pub beside: Option<Guest>,
    /// Names a snapshot of the host's when the guest has asked.
    pub snapshot: Option<&'static str>,
}

/// All layouts, then all policies, and at last no module at all: the parts of [`leaves`] and of [`policy`], in this order.
pub fn steps(vendor: Vendor) -> Vec<Step> {
    let (mut commands, mut meanwhile) = (Vec::new(), Vec::new());
    for phase in leaves::phases(vendor).into_iter().chain(policy::phases(vendor)) {
        commands.push(format!("{AWAIT} {}", phase.says));
        commands.extend(phase.commands);
        let ask = [phase.change, vec![Step::await_told(GUEST, commands.len())]].concat();
        match phase.beside {
            Some(guest) => meanwhile.push(while_running(vec![guest], ask)),
            None => meanwhile.extend(ask),
        }
        meanwhile.extend(phase.snapshot.map(|label| Step::Snapshot { label: label.into() }));
    }
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    // Another layout than the first that is asked for.
    vec![insert("layout=reordered"), while_running(vec![linux(GUEST, &commands)], meanwhile)]
}

/// What the commands of a phase gave: those of [`leaves`] come first, then those of [`policy`].
pub fn answers(transcript: &Transcript, phase: usize) -> &[Output] {
    let is_wait = |output: &Output| output.command[0] == AWAIT;
    let outputs = transcript.guest(GUEST).outputs;
    assert!(
        outputs.iter().filter(|output| is_wait(output)).all(|wait| wait.status == Some(0)),
        "{outputs:?}"
    );
    outputs.split(is_wait).nth(phase + 1).unwrap_or_else(|| panic!("there is no phase {phase}: {outputs:?}"))
}

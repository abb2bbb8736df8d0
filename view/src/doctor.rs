//! Shows a person what works on a machine, what does not, and what to do first.

use exitscope_model::doctor::{Check, Diagnosis, GUEST, MODULE, Verdict};

/// A line for each check, its advice below it (once, if several have the same), and one sentence at the end.
pub fn text(diagnosis: &Diagnosis) -> String {
    let width = diagnosis.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    let mut given: Vec<&str> = Vec::new();
    for Check { name, result, found, advice } in &diagnosis.checks {
        text += format!("{:<4}  {name:<width$}  {found}", word(*result)).trim_end();
        text.push('\n');
        if let Some(advice) = advice.as_deref().filter(|advice| !given.contains(advice)) {
            given.push(advice);
            text += &format!("{:indent$}-> {advice}\n", "", indent = 4 + 2 + width + 2);
        }
    }
    format!("{text}\n{}\n", conclusion(diagnosis))
}

fn word(result: Verdict) -> &'static str {
    match result {
        Verdict::Ok => "ok",
        Verdict::Warn => "warn",
        Verdict::Fail => "fail",
        Verdict::Unknown => "?",
    }
}

/// Which source works, or what to do first.
fn conclusion(diagnosis: &Diagnosis) -> String {
    let has = |source: &str| diagnosis.sources.iter().any(|known| known == source);
    match (has(MODULE), has(GUEST)) {
        (true, true) => {
            "The module works (`exitscope stat`), and so do the leaves of the host (`exitscope guest`)."
                .into()
        }
        (true, false) => "The module works: `exitscope stat` shows which exits come.".into(),
        (false, true) => "The host's exitscope answers: `exitscope guest` shows this guest's exits.".into(),
        (false, false) => match first_advice(diagnosis) {
            Some(advice) => format!("No source works yet. First: {advice}."),
            None => "No source works here, and nothing tells why.".into(),
        },
    }
}

/// The advice of the first check that fails; what could not be read comes after that.
fn first_advice(diagnosis: &Diagnosis) -> Option<&str> {
    [Verdict::Fail, Verdict::Unknown].iter().find_map(|&result| {
        let mut checks = diagnosis.checks.iter().filter(|check| check.result == result);
        checks.find_map(|check| check.advice.as_deref())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnosis(sources: &[&str]) -> Diagnosis {
        let checks = vec![
            Check::new("cpu", Verdict::Ok, "AMD, SVM"),
            Check::new("tracefs", Verdict::Unknown, "/sys/kernel/tracing: permission denied")
                .advise("be root"),
            Check::new("module", Verdict::Fail, "not loaded").advise("load it"),
            Check::new("device", Verdict::Fail, "missing"),
        ];
        Diagnosis::new(sources.iter().map(ToString::to_string).collect(), checks)
    }

    #[test]
    fn lines_are_aligned_and_advice_stands_below_its_line() {
        let expected = "\
ok    cpu      AMD, SVM
?     tracefs  /sys/kernel/tracing: permission denied
               -> be root
fail  module   not loaded
               -> load it
fail  device   missing

No source works yet. First: load it.
";
        assert_eq!(text(&diagnosis(&[])), expected);
    }

    #[test]
    fn the_same_advice_is_given_once() {
        let check = |name| Check::new(name, Verdict::Unknown, "").advise("mount /sys");
        let both = Diagnosis::new(Vec::new(), vec![check("kvm"), check("btf")]);
        assert_eq!(text(&both).matches("-> mount /sys").count(), 1);
    }

    #[test]
    fn the_last_sentence_names_what_works() {
        let last = |sources: &[&str]| conclusion(&diagnosis(sources));
        assert!(last(&[MODULE]).starts_with("The module works: "));
        assert!(last(&[GUEST]).starts_with("The host's exitscope answers: `exitscope guest`"));
        assert!(last(&[MODULE, GUEST]).contains("`exitscope guest`"));
        let nothing = conclusion(&Diagnosis::new(Vec::new(), Vec::new()));
        assert_eq!(nothing, "No source works here, and nothing tells why.");
    }

    #[test]
    fn what_is_unknown_comes_after_what_fails() {
        let mut diagnosis = diagnosis(&[]);
        diagnosis.checks.retain(|check| check.name != "module");
        assert_eq!(conclusion(&diagnosis), "No source works yet. First: be root.");
    }
}

//! Tests of the emulator's handling: with shell scripts in the machine's place, and with the real one.

use std::fs;
use std::os::unix::net::UnixStream;

use super::machine::parse_version;
use super::*;

/// What a fake emulator wrote to its stdin, stderr and console is handled as the real one's.
fn fake(script: &str, deadline: Duration) -> (tempfile::TempDir, Running) {
    let directory = tempfile::tempdir().unwrap();
    let console_log = directory.path().join("console.log");
    let (channel, theirs) = UnixStream::pair().unwrap();
    let stderr = tempfile::tempfile().unwrap();
    let child = Command::new("sh")
        .args(["-c", script])
        .env("CONSOLE", &console_log)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(stderr.try_clone().unwrap())
        .spawn()
        .unwrap();
    let running = Running {
        process: Process { child, status: None },
        channel: channel.into(),
        pending: Vec::new(),
        scanned: 0,
        stderr,
        emulator: Emulator { path: "fake".into(), version: (7, 2, 0) },
        console_log,
        started: Instant::now(),
        deadline,
        phase: "boots".into(),
        link: Link::Port,
        decoder: Decoder::default(),
        _files: vec![],
    };
    (directory, running)
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn lines_come_one_by_one_and_then_the_end() {
    let (_directory, mut machine) = fake("printf 'one\\ntw' >&0; sleep 0.05; printf 'o\\n\\nlast' >&0", LONG);
    for expected in ["one", "two", "", "last"] {
        assert_eq!(machine.next_line().unwrap().as_deref(), Some(expected));
    }
    assert_eq!(machine.next_line().unwrap(), None);
    assert_eq!(machine.next_line().unwrap(), None);
    machine.finish().unwrap();
}

#[test]
fn the_deadline_stops_the_machine_and_shows_its_console() {
    let script = "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo \"line $i\"; done > $CONSOLE; exec sleep 60";
    let (_directory, mut machine) = fake(script, Duration::from_millis(300));
    machine.phase("boots the guest");
    let error = machine.next_line().unwrap_err();
    assert!(machine.process.status.is_some(), "it still runs");
    let Error::TimedOut { phase, console, .. } = &error else { panic!("{error:?}") };
    assert_eq!((phase.as_str(), console.tail.len()), ("boots the guest", TAIL_LINES));
    let text = error.to_string();
    assert!(
        text.starts_with("the emulated machine was stopped after 0 s, while it boots the guest\n"),
        "{text}"
    );
    assert!(text.contains("console.log):\n  line 6\n") && text.ends_with("\n  line 20"), "{text}");
}

#[test]
fn a_machine_that_stands_still_is_stopped() {
    let (_directory, mut machine) = fake("exec sleep 60", LONG);
    let error = machine.next_line().unwrap_err();
    assert!(matches!(error, Error::Hung { .. }), "{error}");
    assert!(machine.process.status.is_some(), "it still runs");
}

#[test]
fn an_emulator_that_fails_is_quoted() {
    let (_directory, machine) = fake("echo 'no such device' >&2; exit 1", LONG);
    let text = machine.finish().unwrap_err().to_string();
    assert!(
        text.starts_with("the emulator ended (exit status: 1), while the machine boots\n  no such device\n"),
        "{text}"
    );
    let (_directory, machine) = fake("echo 'invalid accelerator tcg' >&2; exit 1", LONG);
    assert!(matches!(machine.finish().unwrap_err(), Error::EmulatorUnfit { .. }));
}

#[test]
fn a_panic_of_the_kernel_is_an_error() {
    let (_directory, machine) =
        fake("echo '[    1.5] Kernel panic - not syncing: No working init found.' > $CONSOLE", LONG);
    let error = machine.finish().unwrap_err();
    assert!(
        matches!(&error, Error::Panicked { message, .. } if message == "No working init found."),
        "{error}"
    );
}

#[test]
fn bytes_that_are_no_text_are_an_error() {
    let (_directory, mut machine) = fake("printf '\\377\\n' >&0", LONG);
    assert!(matches!(machine.next_line().unwrap_err(), Error::Channel { .. }));
}

#[test]
fn dropping_it_ends_it() {
    let (_directory, machine) = fake("exec sleep 60", LONG);
    let process = PathBuf::from(format!("/proc/{}", machine.process.child.id()));
    assert!(process.exists());
    drop(machine);
    assert!(!process.exists());
}

#[test]
fn versions_are_read() {
    let cases = [
        ("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", Some((7, 2, 22))),
        ("10.0.2 (Debian 1:10.0.2+ds-2)", Some((10, 0, 2))),
        ("9.1", Some((9, 1, 0))),
        ("11.0.0-rc2", Some((11, 0, 0))),
        ("2.7\n      Built from SVN snapshot", Some((2, 7, 0))),
        ("bochs 2.7", None),
        ("", None),
    ];
    for (line, expected) in cases {
        assert_eq!(parse_version(line), expected, "{line}");
    }
}

#[test]
fn the_console_is_shown_without_escape_sequences() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "\u{1b}[2J\u{1b}[1;1HSeaBIOS\r\n\r\n[ 0.1]\tok\u{7}\r\n").unwrap();
    assert_eq!(console_lines(file.path()), ["SeaBIOS", "[ 0.1] ok"]);
    assert!(console_lines(Path::new("/nowhere")).is_empty());
}

#[test]
fn the_real_emulator_refuses_a_kernel_that_is_none() {
    if let Err(error) = probe(Vendor::Amd) {
        println!("skipped: {error}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    fs::write(file("kernel"), "no kernel").unwrap();
    fs::write(file("initrd"), "").unwrap();
    let machine = Machine {
        deadline: LONG,
        ..Machine::new(Vendor::Amd, file("kernel"), file("initrd"), file("console"))
    };
    let error = machine.start().unwrap().finish().unwrap_err();
    assert!(matches!(&error, Error::EmulatorFailed { stderr, .. } if !stderr.is_empty()), "{error}");
}

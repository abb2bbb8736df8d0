//! What all commands write with, and the error of a wrong usage.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The command line asks for something that does not exist; exit status 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Where output goes.
pub enum Out {
    /// To stdout.
    Stdout,
    /// To this file.
    File(PathBuf, File),
}

impl Out {
    /// To a file, which is made or emptied, or to stdout.
    pub fn open(file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = file else { return Ok(Self::Stdout) };
        let file = File::create(path).with_context(|| cannot_write(path))?;
        Ok(Self::File(path.into(), file))
    }

    /// Writes a text.
    pub fn print(&mut self, text: &str) -> anyhow::Result<()> {
        match self {
            Self::Stdout => print(text),
            Self::File(path, file) => file.write_all(text.as_bytes()).with_context(|| cannot_write(path)),
        }
    }

    /// Writes one JSON document, on one line or as people read it.
    pub fn print_json(&mut self, value: &impl serde::Serialize, on_one_line: bool) -> anyhow::Result<()> {
        let text =
            if on_one_line { serde_json::to_string(value) } else { serde_json::to_string_pretty(value) };
        self.print(&format!("{}\n", text?))
    }
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

/// Says something on stderr, after the program's name. That nobody listens is no reason to end.
pub fn tell(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "exitscope: {text}");
}

/// Writes to stdout, with errors instead of panics.
pub fn print(text: &str) -> anyhow::Result<()> {
    Ok(io::stdout().lock().write_all(text.as_bytes())?)
}

/// Writes one JSON document to stdout.
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    Out::Stdout.print_json(value, false)
}

/// An error and its causes, without those that the text before has already told.
pub fn explain(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .reduce(|text, cause| match text.contains(&cause) {
            true => text,
            false => format!("{text}: {cause}"),
        })
        .unwrap_or_default()
}

/// Whether an error is that nobody reads our output any more.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|io| io.kind() == ErrorKind::BrokenPipe)
}

//! Files below a root directory, of which each may be missing, unreadable or odd.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The most that is read of a file, in bytes: more than the types of a whole kernel take.
const MOST: u64 = 64 << 20;

/// Why something could not be read.
#[derive(Debug)]
pub(super) enum Absence {
    /// It is not there.
    Missing(String),
    /// It is there, or may be.
    Unreadable(String, String),
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(path) => write!(f, "there is no {path}"),
            Self::Unreadable(path, why) => write!(f, "cannot read {path}: {why}"),
        }
    }
}

impl Absence {
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
    }
}

/// Files below a root directory; paths are relative to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree<'a>(&'a Path);

impl<'a> Tree<'a> {
    pub(super) fn new(root: &'a Path) -> Self {
        Self(root)
    }

    pub(super) fn root(&self) -> &'a Path {
        self.0
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// Whether something is there, of whatever kind.
    pub(super) fn find(&self, path: &str) -> Result<fs::Metadata, Absence> {
        fs::metadata(self.path(path)).map_err(|error| absence(path, &error))
    }

    /// Whether something is there for certain.
    pub(super) fn has(&self, path: &str) -> bool {
        self.find(path).is_ok()
    }

    /// A file's contents.
    pub(super) fn bytes(&self, path: &str) -> Result<Vec<u8>, Absence> {
        // What is no file may never end, or wait for someone who writes.
        if !self.find(path)?.is_file() {
            return Err(Absence::Unreadable(named(path), "it is no file".into()));
        }
        let mut bytes = Vec::new();
        let read = File::open(self.path(path)).and_then(|file| file.take(MOST).read_to_end(&mut bytes));
        read.map_err(|error| absence(path, &error))?;
        Ok(bytes)
    }

    /// A file's contents as text, without white space at its ends.
    pub(super) fn text(&self, path: &str) -> Result<String, Absence> {
        Ok(String::from_utf8_lossy(&self.bytes(path)?).trim().to_owned())
    }

    /// What a directory has, in order; nothing if it cannot be read.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names
    }
}

fn absence(path: &str, error: &io::Error) -> Absence {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Absence::Missing(named(path)),
        _ => Absence::Unreadable(named(path), error.to_string()),
    }
}

fn named(path: &str) -> String {
    format!("/{path}")
}

//! A directory of things that are slow to make, each made once, whole, and found again by a hash of its inputs.
//!
//! An entry is built in a temporary sibling and renamed when it is complete, under a lock of its own, so a
//! half-written entry is never seen, two builders of the same entry do the work once, and what a killed
//! builder left behind is removed by the next one.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::error::Error;

/// How many entries of a kind are kept, however old they are.
const KEPT: usize = 8;
/// An entry used more recently than this is kept in any case: somebody may be using it.
const MIN_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The cache directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The user's cache: `$EXITSCOPE_CACHE`, else `$XDG_CACHE_HOME/exitscope`, else `~/.cache/exitscope`.
    pub fn open() -> Result<Self, Error> {
        Self::at(directory(|name| std::env::var_os(name)).ok_or(Error::NoCacheDirectory)?)
    }

    /// A cache in a directory of the caller's choice.
    pub fn at(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = root.into();
        match fs::create_dir_all(&root)
            .and_then(|()| rustix::fs::access(&root, rustix::fs::Access::WRITE_OK).map_err(io::Error::from))
        {
            Ok(()) => Ok(Self { root }),
            Err(source) => Err(Error::CacheUnusable { path: root, source }),
        }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The entry of that kind and key: a directory, which `build` fills if there is none yet.
    ///
    /// `kind` is a short file name such as `vmlinux`. `build` gets an empty directory; what it leaves there
    /// becomes the entry when it returns `Ok`, and is removed when it does not.
    pub fn entry(
        &self,
        kind: &str,
        key: Key,
        build: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<PathBuf, Error> {
        let (name, needed) = key.finish();
        let directory = self.root.join(kind);
        let entry = directory.join(&name);
        if entry.is_dir() {
            touch(&entry);
            return Ok(entry);
        }
        fs::create_dir_all(&directory)
            .map_err(|e| self.failed(&entry, needed, 0, unusable(&directory)(e)))?;
        let lock = Lock::take(&directory, &name).map_err(|e| self.failed(&entry, needed, 0, e))?;
        if entry.is_dir() {
            touch(&entry);
            return Ok(entry);
        }
        sweep(&directory);
        let unfinished = directory.join(format!(".{name}.tmp"));
        let built = self.build(&unfinished, &entry, needed, build);
        drop(lock);
        built?;
        prune(&directory, KEPT, MIN_AGE);
        Ok(entry)
    }

    fn build(
        &self,
        unfinished: &Path,
        entry: &Path,
        needed: Option<u64>,
        build: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // We hold the lock, so whatever is there was left by a builder that died.
        remove(unfinished);
        let free = free_space(&self.root);
        if let (Some(needed), Some(free)) = (needed, free)
            && free < needed
        {
            return Err(Error::DiskFull { path: entry.into(), written: 0, free, needed: Some(needed) });
        }
        let result = fs::create_dir(unfinished)
            .map_err(unusable(unfinished))
            .and_then(|()| build(unfinished))
            .and_then(|()| fs::rename(unfinished, entry).map_err(Error::io("complete", entry)));
        result.map_err(|error| {
            let written = tree_size(unfinished);
            remove(unfinished);
            self.failed(entry, needed, written, error)
        })
    }

    /// Says that the disk is full where that is why `error` came about.
    fn failed(&self, entry: &Path, needed: Option<u64>, written: u64, error: Error) -> Error {
        if !error.is_disk_full() {
            return error;
        }
        let free = free_space(&self.root).unwrap_or(0);
        Error::DiskFull { path: entry.into(), written, free, needed }
    }
}

fn directory(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("EXITSCOPE_CACHE")
        .or_else(|| Some(absolute("XDG_CACHE_HOME")?.join("exitscope")))
        .or_else(|| Some(absolute("HOME")?.join(".cache/exitscope")))
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::CacheUnusable { path, source }
}

/// What an entry is made from. Two keys are equal when the same inputs were added in the same order.
#[derive(Debug, Clone)]
#[must_use]
pub struct Key {
    hash: Sha256,
    needed: Option<u64>,
}

impl Key {
    /// A key. `recipe` names how the entry is made: change it when the making changes.
    pub fn new(recipe: &str) -> Self {
        Self { hash: Sha256::new(), needed: None }.bytes(recipe.as_bytes())
    }

    /// Adds a text.
    pub fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    /// Adds bytes.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.hash.update((bytes.len() as u64).to_le_bytes());
        self.hash.update(bytes);
        self
    }

    /// Adds a file by its identity (path, inode, size, time of its last change), without reading it.
    pub fn file(self, path: &Path) -> Result<Self, Error> {
        let data = fs::metadata(path).map_err(Error::io("read", path))?;
        let numbers = [data.dev(), data.ino(), data.size(), data.mtime() as u64, data.mtime_nsec() as u64];
        Ok(numbers
            .into_iter()
            .fold(self.bytes(path.as_os_str().as_encoded_bytes()), |key, n| key.bytes(&n.to_le_bytes())))
    }

    /// Says how many bytes the entry takes, so that a full disk is known before anything is written.
    /// This is no part of the key's identity.
    pub fn needs(mut self, bytes: u64) -> Self {
        self.needed = Some(bytes);
        self
    }

    fn finish(self) -> (String, Option<u64>) {
        let name = self.hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        (name, self.needed)
    }
}

/// A lock on the name of an entry. Its file goes when the lock does.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(directory: &Path, name: &str) -> Result<Self, Error> {
        let path = directory.join(format!(".{name}.lock"));
        loop {
            let file = File::create(&path).map_err(unusable(&path))?;
            file.lock().map_err(Error::io("lock", &path))?;
            // The holder before us removed the file: what we locked is no longer what others find.
            if is_same_file(&path, &file) {
                return Ok(Self { path, _file: file });
            }
        }
    }

    /// The lock of a builder that is no longer there; `None` if it is.
    fn take_over(path: &Path) -> Option<Self> {
        let file = File::create(path).ok()?;
        match file.try_lock() {
            Ok(()) if is_same_file(path, &file) => Some(Self { path: path.into(), _file: file }),
            Ok(()) | Err(TryLockError::WouldBlock | TryLockError::Error(_)) => None,
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed before it is released, so that nobody locks a file that is about to go.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_same_file(path: &Path, file: &File) -> bool {
    match (fs::metadata(path), file.metadata()) {
        (Ok(found), Ok(held)) => found.ino() == held.ino() && found.dev() == held.dev(),
        _ => false,
    }
}

/// Removes what builders of other entries left behind when they were killed.
fn sweep(directory: &Path) {
    for path in children(directory) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some(entry) = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"))
            && let Some(_lock) = Lock::take_over(&directory.join(format!(".{entry}.lock")))
        {
            remove(&path);
        }
    }
}

/// Removes the entries that have not been used for longest.
fn prune(directory: &Path, kept: usize, min_age: Duration) {
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let mut entries: Vec<(SystemTime, PathBuf)> = children(directory)
        .filter(|path| !hidden(path))
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    entries.sort_by(|a, b| b.cmp(a));
    for (used, path) in entries.into_iter().skip(kept) {
        if used.elapsed().is_ok_and(|age| age >= min_age) {
            // First out of sight, so that no half-removed entry is found.
            let gone = path.with_file_name(format!(".gone-{}", std::process::id()));
            if fs::rename(&path, &gone).is_ok() {
                remove(&gone);
            }
        }
    }
}

fn children(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|child| child.path())
}

/// Marks an entry as used now. That it may fail on a read-only cache does not matter.
fn touch(entry: &Path) {
    if let Ok(directory) = File::open(entry) {
        let _ = directory.set_modified(SystemTime::now());
    }
}

fn remove(path: &Path) {
    let _ = fs::remove_dir_all(path);
}

/// Bytes that a user may still write on the file system of `path`.
pub(crate) fn free_space(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

fn tree_size(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => children(path).map(|child| tree_size(&child)).sum(),
        Ok(data) => data.len(),
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().join("cache")).unwrap();
        (directory, cache)
    }

    fn write(text: &'static str) -> impl FnOnce(&Path) -> Result<(), Error> {
        move |directory| fs::write(directory.join("file"), text).map_err(Error::io("write", directory))
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            children(directory).map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_directory_comes_from_the_first_variable_that_is_set() {
        type Case<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>);
        let cases: [Case; 6] = [
            (&[("EXITSCOPE_CACHE", "/e"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], Some("/e")),
            (&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], Some("/x/exitscope")),
            (&[("XDG_CACHE_HOME", "not/absolute"), ("HOME", "/h")], Some("/h/.cache/exitscope")),
            (&[("XDG_CACHE_HOME", ""), ("HOME", "/h")], Some("/h/.cache/exitscope")),
            (&[("HOME", "")], None),
            (&[], None),
        ];
        for (variables, expected) in cases {
            let found = directory(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()));
            assert_eq!(found.as_deref(), expected.map(Path::new), "{variables:?}");
        }
    }

    #[test]
    fn an_entry_is_built_once() {
        let (_directory, cache) = cache();
        let first = cache.entry("kind", Key::new("v1").text("a"), write("one")).unwrap();
        let second = cache.entry("kind", Key::new("v1").text("a"), |_| panic!("built twice")).unwrap();
        let other = cache.entry("kind", Key::new("v1").text("b"), write("two")).unwrap();
        assert_eq!(first, second);
        assert_ne!(first, other);
        assert_eq!(fs::read_to_string(first.join("file")).unwrap(), "one");
        assert!(names(&cache.root().join("kind")).iter().all(|name| !name.starts_with('.')));
    }

    #[test]
    fn a_failed_build_leaves_nothing() {
        let (_directory, cache) = cache();
        let error = cache
            .entry("kind", Key::new("v1"), |directory| {
                fs::write(directory.join("half"), "x").unwrap();
                Err(Error::NoCacheDirectory)
            })
            .unwrap_err();
        assert!(matches!(error, Error::NoCacheDirectory));
        assert!(names(&cache.root().join("kind")).is_empty());
    }

    #[test]
    fn leftovers_of_killed_builders_go_and_those_at_work_stay() {
        let (_directory, cache) = cache();
        let kind = cache.root().join("kind");
        fs::create_dir_all(kind.join(".dead.tmp/deep")).unwrap();
        fs::write(kind.join(".dead.lock"), "").unwrap();
        fs::create_dir_all(kind.join(".live.tmp")).unwrap();
        let live = Lock::take(&kind, "live").unwrap();
        let (own, _) = Key::new("v1").finish();
        fs::create_dir_all(kind.join(format!(".{own}.tmp/deep"))).unwrap();
        cache.entry("kind", Key::new("v1"), write("whole")).unwrap();
        assert_eq!(names(&kind), [".live.lock", ".live.tmp", &own]);
        drop(live);
    }

    #[test]
    fn concurrent_builders_do_the_work_once() {
        let (_directory, cache) = cache();
        let builds = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let build = |directory: &Path| {
                        builds.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(20));
                        write("whole")(directory)
                    };
                    let entry = cache.entry("kind", Key::new("v1"), build).unwrap();
                    assert_eq!(fs::read_to_string(entry.join("file")).unwrap(), "whole");
                });
            }
        });
        assert_eq!(builds.into_inner(), 1);
    }

    #[test]
    fn a_full_disk_names_the_entry_and_the_space() {
        let (_directory, cache) = cache();
        let full = |_: &Path| {
            Err(Error::Io { what: "write", path: "/f".into(), source: io::ErrorKind::StorageFull.into() })
        };
        let error = cache.entry("kind", Key::new("v1").needs(5 << 20), full).unwrap_err().to_string();
        assert!(error.contains("the disk is full") && error.contains("/kind/"), "{error}");
        assert!(error.contains("was discarded; it needs 5.0 MiB") && error.contains("is free"), "{error}");
        assert!(names(&cache.root().join("kind")).is_empty());
    }

    #[test]
    fn an_entry_larger_than_the_disk_is_not_begun() {
        let (_directory, cache) = cache();
        let error = cache.entry("kind", Key::new("v1").needs(1 << 60), |_| panic!("begun")).unwrap_err();
        assert!(matches!(error, Error::DiskFull { needed: Some(_), written: 0, .. }));
    }

    #[test]
    fn an_unusable_directory_names_the_variables() {
        let error = Cache::at("/proc/nowhere/cache").unwrap_err().to_string();
        assert!(error.contains("EXITSCOPE_CACHE") && error.contains("/proc/nowhere/cache"), "{error}");
    }

    #[test]
    fn only_the_oldest_entries_are_pruned() {
        let (_directory, cache) = cache();
        let kind = cache.root().join("kind");
        for (name, age) in [("new", 1), ("middle", 2_000), ("old", 3_000), ("oldest", 4_000)] {
            fs::create_dir_all(kind.join(name)).unwrap();
            let used = SystemTime::now() - Duration::from_secs(age);
            File::open(kind.join(name)).unwrap().set_modified(used).unwrap();
        }
        prune(&kind, 2, Duration::from_secs(3_500));
        assert_eq!(names(&kind), ["middle", "new", "old"]);
    }
}

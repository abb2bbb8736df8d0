//! Finds the interpreter and the shared libraries of a dynamically linked program, without running it.

use std::fs;
use std::path::{Path, PathBuf};

use elf::ElfBytes;
use elf::abi::{DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_STRTAB, PT_INTERP, PT_LOAD};
use elf::endian::LittleEndian;

use crate::error::Error;

/// Where Debian's loader for x86-64 looks without a configuration file.
const DIRECTORIES: [&str; 6] =
    ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];

/// What a program or library asks its loader for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Dynamic {
    interpreter: Option<String>,
    libraries: Vec<String>,
    directories: Vec<String>,
}

/// The files that `program` needs to run, besides itself: its interpreter and all libraries.
pub(crate) fn needed_by(program: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files: Vec<PathBuf> = Vec::new();
    let wants = dynamic(program)?;
    files.extend(wants.interpreter.as_ref().map(PathBuf::from));
    let mut open = vec![(program.to_owned(), wants)];
    while let Some((path, wants)) = open.pop() {
        for library in &wants.libraries {
            let found = find(&path, library, &wants.directories)?;
            // The interpreter is also a library; it is the same file under two names.
            let known = |file: &PathBuf| file.file_name() == found.file_name();
            if !files.iter().any(known) {
                open.push((found.clone(), dynamic(&found)?));
                files.push(found);
            }
        }
    }
    Ok(files)
}

/// Whether a file is an ELF program that another must load.
pub(crate) fn has_interpreter(path: &Path) -> Result<bool, Error> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    Ok(parse(&bytes, path).is_ok_and(|wants| wants.interpreter.is_some()))
}

fn find(needed_by: &Path, library: &str, directories: &[String]) -> Result<PathBuf, Error> {
    let searched = || directories.iter().map(String::as_str).chain(DIRECTORIES);
    searched().map(|directory| Path::new(directory).join(library)).find(|path| path.is_file()).ok_or_else(
        || Error::LibraryMissing {
            path: needed_by.into(),
            library: library.into(),
            searched: searched().map(str::to_owned).collect(),
        },
    )
}

fn dynamic(path: &Path) -> Result<Dynamic, Error> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    parse(&bytes, path).map_err(|reason| Error::Elf { path: path.into(), reason: reason.to_string() })
}

fn parse(bytes: &[u8], path: &Path) -> Result<Dynamic, elf::ParseError> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(bytes)?;
    let mut wants = Dynamic::default();
    let segments: Vec<_> = file.segments().into_iter().flatten().collect();
    for segment in segments.iter().filter(|segment| segment.p_type == PT_INTERP) {
        let text = String::from_utf8_lossy(file.segment_data(segment)?);
        wants.interpreter = Some(text.trim_end_matches('\0').to_owned());
    }
    let dynamic: Vec<_> = file.dynamic()?.into_iter().flatten().collect();
    let Some(table) = dynamic.iter().find(|entry| entry.d_tag == DT_STRTAB) else { return Ok(wants) };
    // The table is given by its address in memory: the segment that is loaded there has it.
    let address = table.d_ptr();
    let offset = segments
        .iter()
        .filter(|segment| segment.p_type == PT_LOAD)
        .find(|segment| {
            (segment.p_vaddr..segment.p_vaddr.saturating_add(segment.p_filesz)).contains(&address)
        })
        .map_or(address, |segment| segment.p_offset.saturating_add(address - segment.p_vaddr));
    let string = |at: u64| {
        let start = usize::try_from(offset.saturating_add(at)).ok()?;
        let text = bytes.get(start..)?.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    let origin = path.parent().unwrap_or(Path::new("/")).to_string_lossy();
    for entry in &dynamic {
        match entry.d_tag {
            DT_NEEDED => wants.libraries.extend(string(entry.d_val())),
            DT_RPATH | DT_RUNPATH => {
                let list = string(entry.d_val()).unwrap_or_default().replace("$ORIGIN", &origin);
                wants.directories.extend(list.split(':').map(str::to_owned));
            }
            _ => {}
        }
    }
    Ok(wants)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_needs_its_loader_and_libc() {
        let files = needed_by(Path::new("/bin/ls")).unwrap();
        let has = |start: &str| {
            files.iter().any(|file| file.file_name().unwrap().to_str().unwrap().starts_with(start))
        };
        assert!(has("ld-linux") && has("libc.so.6") && has("libselinux"), "{files:?}");
        let mut names: Vec<_> = files.iter().map(|file| file.file_name()).collect();
        names.dedup();
        assert_eq!(names.len(), files.len());
    }

    #[test]
    fn what_is_no_program_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "#!/bin/sh\n").unwrap();
        let error = needed_by(file.path()).unwrap_err().to_string();
        assert!(error.contains("as an ELF program"), "{error}");
    }

    #[test]
    fn a_missing_library_names_who_needs_it() {
        let error = find(Path::new("/usr/bin/tool"), "libnone.so.1", &["/opt".into()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/usr/bin/tool needs the library libnone.so.1, which is in none of /opt, /lib/x86_64-linux-gnu, /usr/lib/x86_64-linux-gnu, /lib64, /usr/lib64, /lib, /usr/lib"
        );
    }
}

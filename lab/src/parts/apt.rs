//! apt as on a machine that has no package at all: it resolves and downloads, for a normal user, and installs nothing.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::parts::tool::{self, APT_CACHE, APT_GET, Tool};

/// The keys that Debian signs its package lists with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt with files of its own in a directory.
#[derive(Debug)]
pub(crate) struct Apt {
    options: Vec<String>,
    archives: PathBuf,
}

impl Apt {
    /// The one that knows what this machine's knows. `work` is empty, and can be removed afterwards.
    pub fn of_machine(work: &Path) -> Result<Self, Error> {
        let [status, archives] = ["status", "archives"].map(|name| work.join(name));
        make(&archives.join("partial"))?;
        fs::write(&status, "").map_err(Error::io("write", &status))?;
        let options = vec![
            format!("Dir::State::status={}", status.display()),
            format!("Dir::Cache={}", work.display()),
            format!("Dir::Cache::archives={}", archives.display()),
            "APT::Install-Recommends=0".into(),
            "APT::Sandbox::User=root".into(),
            "Debug::NoLocking=1".into(),
            "Acquire::http::Timeout=10".into(),
        ];
        Ok(Self { options, archives })
    }

    /// The one that knows another release of Debian, from the mirror that this machine gets its packages from.
    pub fn of_suite(suite: &str, work: &Path) -> Result<Self, Error> {
        let format = ["indextargets", "--format", "$(ORIGIN)\t$(LABEL)\t$(REPO_URI)"];
        let indexes = tool::output_of_query(APT_GET.command()?.args(format))?;
        let mirror = mirror(&indexes).ok_or(Error::NoMirror)?;
        let mut apt = Self::of_machine(work)?;
        let [sources, lists] = ["suite.sources", "lists"].map(|name| work.join(name));
        make(&lists.join("partial"))?;
        let signed_by =
            if Path::new(KEYRING).is_file() { format!("Signed-By: {KEYRING}\n") } else { String::new() };
        let text = format!("Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n{signed_by}");
        fs::write(&sources, text).map_err(Error::io("write", &sources))?;
        apt.options.extend([
            format!("Dir::Etc::SourceList={}", sources.display()),
            "Dir::Etc::SourceParts=/dev/null".into(),
            "Dir::Etc::Preferences=/dev/null".into(),
            "Dir::Etc::PreferencesParts=/dev/null".into(),
            format!("Dir::State::lists={}", lists.display()),
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            "APT::Update::Error-Mode=any".into(),
        ]);
        let what = format!("the package lists of Debian {suite} from {mirror}");
        apt.get(&["update"], &what)?;
        Ok(apt)
    }

    /// Runs apt-get, which is to download `what`; packages come into [`Apt::packages`].
    pub fn get(&self, arguments: &[&str], what: &str) -> Result<(), Error> {
        let mut command = self.command(APT_GET)?;
        command.args(["-q", "-y"]).args(arguments).current_dir(&self.archives);
        tool::output(&mut command).map(drop).map_err(|error| tool::not_downloaded(error, what))
    }

    /// What apt-cache says.
    pub fn query(&self, arguments: &[&str]) -> Result<String, Error> {
        tool::output_of_query(self.command(APT_CACHE)?.args(arguments))
    }

    /// Where the packages are that were downloaded.
    pub fn packages(&self) -> &Path {
        &self.archives
    }

    fn command(&self, tool: Tool) -> Result<std::process::Command, Error> {
        let mut command = tool.command()?;
        command.args(self.options.iter().flat_map(|option| ["-o", option]));
        Ok(command)
    }
}

/// The address of Debian's archive, from lines of an index's origin, label and address.
fn mirror(indexes: &str) -> Option<&str> {
    indexes.lines().find_map(|line| line.strip_prefix("Debian\tDebian\t"))
}

fn make(directory: &Path) -> Result<(), Error> {
    fs::create_dir_all(directory).map_err(Error::io("make", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_debian_itself() {
        let indexes = "Debian\tDebian-Security\thttp://mirror/security/\n\
                       other\tDebian\thttp://elsewhere/\n\
                       Debian\tDebian\thttp://mirror/debian/\n\
                       Debian\tDebian\thttp://mirror/more/\n";
        assert_eq!(mirror(indexes), Some("http://mirror/debian/"));
        assert_eq!(mirror("$(ORIGIN)\t$(LABEL)\thttp://mirror/\n"), None);
    }
}

//! What an account's units need from outside, in `/run`: files of root's that are there before systemd is asked for anything.
//!
//! A unit's name can hold the account's uid and nothing else. So that one template does for all accounts, what has the account's name or share
//! in it is reached through its directory, which root owns and only the account may enter:
//!
//! - `home-on-share`, a link to where the home is, and `home`, a link to where the account sees it. The units bind the one to the
//!   other; systemd follows links on both sides.
//! - `env`, the environment of all that the account runs, and `php.env`, which PHP that is.
//!
//! A drop-in for each unit would say the same, but for each new drop-in systemd reads the names of all units and drop-ins again, and a
//! node has thousands of accounts. For that reason limits are a drop-in of their own only where they are not the common ones, which
//! all slices of accounts get by one drop-in for their common prefix (systemd.unit(5)).

use anyhow::Context;
use phalanx_model::share::{HOMES, mount_point};
use phalanx_model::{Account, Limits, Name, Uid};
use phalanx_plan::account::home;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where accounts' directories are.
const RUN: &str = "/run/phalanx/account";
/// Where drop-ins of this boot are.
const UNITS: &str = "/run/systemd/system";
/// The name of drop-ins with limits. It sorts behind those that `systemctl set-property` leaves, so that it decides.
const LIMITS: &str = "limits.conf";

/// What came of writing an account's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// They are what they were.
    AsBefore,
    /// They are its first ones other than the common ones: systemd finds them when it loads the slice.
    First,
    /// They were others. systemd may know the slice by those, and has to be told.
    Changed,
}

/// Where things are: elsewhere in tests.
#[derive(Debug)]
pub struct Places {
    run: PathBuf,
    units: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { run: RUN.into(), units: UNITS.into() }
    }
}

impl Places {
    /// Writes the limits that accounts have unless they have others. To be done before the first of them is woken.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write_common_limits(&self) -> anyhow::Result<()> {
        write_if_other(&self.limits_of("phalanx-account-.slice"), &limits_drop_in(&Limits::default())).map(drop)
    }

    /// Makes all that the account's units need.
    ///
    /// # Errors
    /// A file can't be read or written.
    pub fn prepare(&self, account: &Account, share: &Name) -> anyhow::Result<Limited> {
        let directory = self.directory(account.uid);
        make_directory(&directory, account.uid).with_context(|| format!("making {}", directory.display()))?;
        self.fill(account, share)?;
        self.write_limits(account)
    }

    fn fill(&self, account: &Account, share: &Name) -> anyhow::Result<()> {
        let directory = self.directory(account.uid);
        let home = home(&account.name);
        for (name, to) in [("home-on-share", home_on(share, &account.name)), ("home", home.into())] {
            let link = directory.join(name);
            link_if_other(&link, &to).with_context(|| format!("making the link {}", link.display()))?;
        }
        write_if_other(&directory.join("env"), &env(account))?;
        self.write_php(account)
    }

    /// Writes which PHP the account has.
    ///
    /// # Errors
    /// The file can't be read or written.
    pub fn write_php(&self, account: &Account) -> anyhow::Result<()> {
        let path = self.directory(account.uid).join("php.env");
        write_if_other(&path, &format!("PHP_VERSION={}\n", account.php)).map(drop)
    }

    /// Writes the limits that an account's slice has from now on.
    ///
    /// # Errors
    /// The file can't be read or written.
    pub fn write_limits(&self, account: &Account) -> anyhow::Result<Limited> {
        let path = self.limits_of(&slice(account.uid));
        if account.limits == Limits::default() && !path.exists() {
            return Ok(Limited::AsBefore);
        }
        Ok(match write_if_other(&path, &limits_drop_in(&account.limits))? {
            Written::Not => Limited::AsBefore,
            Written::New => Limited::First,
            Written::Over => Limited::Changed,
        })
    }

    /// Whether the door to the account's PHP is there.
    pub fn has_php_socket(&self, uid: Uid) -> bool {
        self.directory(uid).join("php.sock").exists()
    }

    fn directory(&self, uid: Uid) -> PathBuf {
        self.run.join(uid.to_string())
    }

    fn limits_of(&self, slice: &str) -> PathBuf {
        self.units.join(format!("{slice}.d")).join(LIMITS)
    }
}

/// The slice of an account: all that it runs.
pub fn slice(uid: Uid) -> String {
    format!("phalanx-account-{uid}.slice")
}

/// Where a home is on a share.
pub fn home_on(share: &Name, account: &Name) -> PathBuf {
    Path::new(&mount_point(share)).join(HOMES).join(account.as_str())
}

/// What an account may use, as properties of its slice (systemd.resource-control(5)).
pub fn properties(limits: &Limits) -> [String; 5] {
    let Limits { cpu_percent, memory_mib, processes, io_weight } = limits;
    [
        format!("CPUQuota={cpu_percent}%"),
        format!("MemoryMax={memory_mib}M"),
        // What does not fit is ended, not swapped: swapping would slow the neighbours.
        "MemorySwapMax=0".to_owned(),
        format!("TasksMax={processes}"),
        format!("IOWeight={io_weight}"),
    ]
}

fn limits_drop_in(limits: &Limits) -> String {
    format!("[Slice]\n{}\n", properties(limits).join("\n"))
}

/// Names are of `a-z`, `0-9` and `-`, so that nothing here can mean anything else to systemd.
fn env(account: &Account) -> String {
    let (name, home) = (&account.name, home(&account.name));
    format!("HOME={home}\nUSER={name}\nLOGNAME={name}\nTMPDIR={home}/tmp\n")
}

/// Root's, and only the account may enter: it can use what is in there, but put nothing in its place.
fn make_directory(path: &Path, uid: Uid) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    std::os::unix::fs::chown(path, None, Some(uid.get()))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o750))
}

/// What came of [`write_if_other`].
#[derive(Debug, PartialEq, Eq)]
enum Written {
    /// It had this content.
    Not,
    /// There was none.
    New,
    /// It had another content.
    Over,
}

/// Writes a file unless it has this content.
fn write_if_other(path: &Path, content: &str) -> anyhow::Result<Written> {
    let written = match std::fs::read_to_string(path) {
        Ok(text) if text == content => return Ok(Written::Not),
        Ok(_) => Written::Over,
        Err(error) if error.kind() == ErrorKind::NotFound => Written::New,
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let write = || {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let beside = path.with_extension("new");
        std::fs::write(&beside, content)?;
        std::fs::rename(&beside, path)
    };
    write().with_context(|| format!("writing {}", path.display()))?;
    Ok(written)
}

/// Makes a link unless it leads there.
fn link_if_other(path: &Path, to: &Path) -> std::io::Result<()> {
    match std::fs::read_link(path) {
        Ok(leads) if leads == to => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => return std::os::unix::fs::symlink(to, path),
        Ok(_) => {}
        Err(error) => return Err(error),
    }
    let beside = path.with_extension("new");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(to, &beside)?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{read_link, read_to_string};

    fn places() -> (tempfile::TempDir, Places) {
        let root = tempfile::tempdir().expect("a directory");
        let places = Places { run: root.path().join("account"), units: root.path().join("units") };
        (root, places)
    }

    fn account() -> Account {
        crate::launcher::tests::account(Uid::FIRST)
    }

    #[test]
    fn the_links_and_the_environment_lead_home_and_follow_a_move() {
        let (_root, places) = places();
        let account = account();
        let directory = places.directory(account.uid);
        std::fs::create_dir_all(&directory).expect("made");
        let link = |name: &str| read_link(directory.join(name)).expect("a link");
        for share in ["web", "web", "other"] {
            places.fill(&account, &share.parse().expect("a name")).expect("filled");
            assert_eq!(link("home-on-share"), Path::new("/srv/phalanx").join(share).join("home/alice"));
            assert_eq!(link("home"), Path::new("/home/alice"));
        }
        let env = read_to_string(directory.join("env")).expect("there");
        assert_eq!(env, "HOME=/home/alice\nUSER=alice\nLOGNAME=alice\nTMPDIR=/home/alice/tmp\n");
        assert!(!places.units.exists(), "an account with the common limits needs nothing from systemd");
        assert!(!places.has_php_socket(account.uid));
    }

    #[test]
    fn limits_are_written_where_they_are_not_the_common_ones_and_where_they_once_were() {
        let (_root, places) = places();
        places.write_common_limits().expect("written");
        let common = read_to_string(places.units.join("phalanx-account-.slice.d/limits.conf")).expect("there");
        assert!(common.starts_with("[Slice]\nCPUQuota=") && common.contains("\nMemorySwapMax=0\n"), "{common}");
        let mut account = account();
        let path = places.limits_of(&slice(account.uid));
        let write = |account: &Account| places.write_limits(account).expect("written");
        assert_eq!(write(&account), Limited::AsBefore);
        assert!(!path.exists());
        account.limits.processes += 1;
        assert_eq!((write(&account), write(&account)), (Limited::First, Limited::AsBefore));
        account.limits.processes += 1;
        assert_eq!(write(&account), Limited::Changed);
        account.limits = Limits::default();
        assert_eq!((write(&account), write(&account)), (Limited::Changed, Limited::AsBefore));
        assert_eq!(read_to_string(&path).expect("there"), common);
    }
}

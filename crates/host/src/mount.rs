//! Mounts: seen in `/proc/self/mountinfo`, made and taken away by mount(8) and umount(8) as child processes.
//!
//! Nothing here touches a path on a share: a server that hangs would take this process with it. A mount or umount that does not end
//! in time is killed and left.

use crate::atomic::{FileError, failed};
use crate::command::{self, CommandError};
use phalanx_plan::spec::{MountSource, MountSpec};
use phalanx_plan::steps::observed::SeenMount;
use phalanx_plan::steps::shares::{SEAL, source_text};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// How long a mount or umount may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Attributes are believed for three seconds at most, absent names never, so that a new file is seen on all nodes soon. `hard`: a write
/// that was begun is finished when the server is back; an error in its midst would be a customer's data lost. The guard keeps
/// requests away from a node whose share hangs, and processes that wait can be killed. `retry=0`: mount(8) does not wait for a server;
/// the next round tries again.
const NFS_OPTIONS: &str =
    "vers=4.2,proto=tcp,hard,timeo=100,retrans=2,retry=0,actimeo=3,lookupcache=positive,nosuid,nodev";

/// A queue has one user, so what is known of it may be believed; who has it is a file whose opening asks the server (close-to-open).
const NFS_OPTIONS_OF_QUEUES: &str =
    "vers=4.2,proto=tcp,hard,timeo=100,retrans=2,retry=0,lookupcache=positive,nosuid,nodev";

/// All mounts of this process's mount namespace.
///
/// # Errors
/// `/proc` can't be read.
pub fn observe() -> Result<Vec<SeenMount>, FileError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(failed(path, "reading"))?;
    Ok(text.lines().filter_map(parse_line).collect())
}

/// One line (proc_pid_mountinfo(5)): `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw`.
fn parse_line(line: &str) -> Option<SeenMount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(2);
    let (device, root, mount_point, options) = (left.next()?, left.next()?, left.next()?, left.next()?);
    let mut right = right.split(' ');
    let (fs_type, source) = (right.next()?, right.next()?);
    Some(SeenMount {
        device: device.to_owned(),
        root: unescape(root),
        mount_point: unescape(mount_point),
        fs_type: fs_type.to_owned(),
        source: unescape(source),
        read_only: options.split(',').any(|option| option == "ro"),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

/// Makes the mount point and covers it with an empty read-only file system.
///
/// # Errors
/// The directory can't be made, or mount(8)'s words.
pub async fn seal(mount_point: &str) -> Result<(), MountError> {
    fs::create_dir_all(mount_point).map_err(failed(Path::new(mount_point), "making the mount point"))?;
    let args = ["-t", "tmpfs", "-o", "ro,nosuid,nodev,noexec,size=4k,nr_inodes=2,mode=0555", SEAL, mount_point];
    Ok(command::succeed("mount", &args, LIMIT).await.map(drop)?)
}

/// Mounts a share over its sealed mount point.
///
/// # Errors
/// mount(8)'s words, or it hangs.
pub async fn mount(spec: &MountSpec) -> Result<(), MountError> {
    let at = spec.mount_point();
    let source = source_text(&spec.source);
    match &spec.source {
        MountSource::Local(_) => {
            // Private: what is later mounted over the source, or taken away here, stays where it was done.
            command::succeed("mount", &["--bind", "--make-private", &source, &at], LIMIT).await?;
            command::succeed("mount", &["-o", "remount,bind,nosuid,nodev", &at], LIMIT).await?;
        }
        MountSource::Nfs { .. } => {
            let options = if spec.queue_of.is_some() { NFS_OPTIONS_OF_QUEUES } else { NFS_OPTIONS };
            command::succeed("mount", &["-t", "nfs4", "-o", options, &source, &at], LIMIT).await?;
        }
    }
    Ok(())
}

/// Mounts a directory of this machine's own disk onto itself.
///
/// # Errors
/// mount(8)'s words.
pub async fn bind_onto_itself(directory: &str) -> Result<(), MountError> {
    Ok(command::succeed("mount", &["--bind", "--make-private", directory, directory], LIMIT).await.map(drop)?)
}

/// Takes away the upper mount of a mount point. It vanishes from the tree at once; what still uses it keeps it until it ends.
///
/// # Errors
/// umount(8)'s words, or it hangs.
pub async fn unmount(mount_point: &str) -> Result<(), MountError> {
    Ok(command::succeed("umount", &["--lazy", "--no-canonicalize", mount_point], LIMIT).await.map(drop)?)
}

/// Takes away all mounts of a mount point.
///
/// # Errors
/// umount(8)'s words, or it hangs.
pub async fn unmount_all(mount_point: &str) -> Result<(), MountError> {
    const STACKED_MAX: usize = 32;
    for _ in 0..STACKED_MAX {
        if !observe()?.iter().any(|seen| seen.mount_point == mount_point) {
            break;
        }
        unmount(mount_point).await?;
    }
    Ok(())
}

/// Why a mount could not be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A program's words.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The mount point.
    #[error(transparent)]
    File(#[from] FileError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_understood() {
        let seen = parse_line(
            r"36 35 98:0 /mnt\0401 /srv/phalanx/web ro,noatime master:1 - nfs4 10.9.0.31:/srv/nas rw,errors=continue",
        );
        let seen = seen.expect("a line of the manual");
        assert_eq!((seen.device.as_str(), seen.root.as_str(), seen.read_only), ("98:0", "/mnt 1", true));
        assert_eq!((seen.fs_type.as_str(), seen.source.as_str()), ("nfs4", "10.9.0.31:/srv/nas"));
        assert!(!observe().expect("this machine has mounts").is_empty());
    }
}

//! Generations of a node's configuration files on disk.
//!
//! `generations/N/` holds the files of generation N, some in directories, and their manifest; it appears whole, by one rename, and is never
//! written again. Its name says who may read a file ([`Readers`]).
//! `live` is a symbolic link to one of them, replaced by one rename.

use crate::atomic::{self, Access, FileError, failed, group_id};
use phalanx_plan::render::{Files, Readers};
use phalanx_plan::steps::generations::{FileDigests, file_digests, sha256_hex};
use phalanx_plan::steps::observed::SeenGeneration;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The manifest's name: file → SHA-256.
const MANIFEST: &str = ".manifest.json";
/// The group that phalanx-proxy runs as.
const PROXY_GROUP: &str = "phalanx-proxy";
/// The most of one file that is read, in bytes.
const FILE_LEN_MAX: u64 = 64 << 20;

/// Where generations are kept.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// All generations and what is in the live one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// The live one's number.
    pub live: Option<u64>,
    /// The complete ones.
    pub generations: BTreeMap<u64, SeenGeneration>,
    /// The live one's files.
    pub live_files: Files,
}

impl Store {
    /// The store below `root`, which is `/var/lib/phalanx` on a host.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The directory of a generation.
    pub fn directory(&self, generation: u64) -> PathBuf {
        self.root.join("generations").join(generation.to_string())
    }

    /// Looks at all generations.
    ///
    /// # Errors
    /// The store can't be read. A single damaged generation is no error: it is seen as not intact.
    pub fn observe(&self) -> Result<Seen, FileError> {
        let live = fs::read_link(self.live()).ok().and_then(|to| to.file_name()?.to_str()?.parse().ok());
        let mut seen = Seen { live, ..Seen::default() };
        let directory = self.root.join("generations");
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(seen),
            Err(error) => return Err(failed(&directory, "listing")(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed(&directory, "listing"))?;
            let Some(generation) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Some(manifest) = read_manifest(&entry.path())? else { continue };
            let mut files = Files::new();
            read_files(&entry.path(), "", &mut files)?;
            let intact = file_digests(&files) == manifest;
            if live == Some(generation) {
                seen.live_files = files;
            }
            seen.generations.insert(generation, SeenGeneration { files: manifest, intact });
        }
        Ok(seen)
    }

    /// Writes a generation: into a directory of another name, synced, then renamed.
    ///
    /// # Errors
    /// A file can't be written, or the number is taken.
    pub fn stage(&self, generation: u64, files: &Files) -> Result<(), FileError> {
        let (place, staging) = (self.directory(generation), self.root.join("generations").join(".staging"));
        atomic::remove(&staging)?;
        fs::create_dir_all(&staging).map_err(failed(&staging, "making the directory"))?;
        for (name, content) in files {
            let path = staging.join(name);
            let directory = path.parent().unwrap_or(&staging);
            fs::create_dir_all(directory).map_err(failed(directory, "making the directory"))?;
            let access = match Readers::of(name) {
                Readers::All => Access::PUBLIC,
                // Where there is no such group nobody but root can be meant.
                Readers::Proxy => match group_id(PROXY_GROUP)? {
                    None => Access::SECRET,
                    group => Access { group, mode: 0o640 },
                },
                Readers::Root => Access::SECRET,
            };
            atomic::write(&path, content.as_bytes(), access)?;
        }
        let manifest = serde_json::to_vec_pretty(&file_digests(files)).expect("a map of texts is JSON");
        atomic::write(&staging.join(MANIFEST), &manifest, Access::PUBLIC)?;
        if place.exists() {
            // Its manifest does not fit its content, or it would have been used as it is.
            atomic::remove(&place)?;
        }
        fs::rename(&staging, &place).map_err(failed(&place, "renaming into place"))?;
        atomic::sync_directory_of(&place)
    }

    /// Makes a generation the live one.
    ///
    /// # Errors
    /// It is missing, or the link can't be replaced.
    pub fn switch(&self, generation: u64) -> Result<(), FileError> {
        let directory = self.directory(generation);
        fs::metadata(directory.join(MANIFEST)).map_err(failed(&directory, "looking for the generation's manifest"))?;
        atomic::link(&self.live(), &format!("generations/{generation}"))
    }

    /// Removes a generation.
    ///
    /// # Errors
    /// It can't be removed.
    pub fn remove(&self, generation: u64) -> Result<(), FileError> {
        atomic::remove(&self.directory(generation))
    }

    fn live(&self) -> PathBuf {
        self.root.join("live")
    }
}

fn read_manifest(directory: &Path) -> Result<Option<FileDigests>, FileError> {
    let path = directory.join(MANIFEST);
    let Some(bytes) = atomic::read(&path)? else { return Ok(None) };
    Ok(serde_json::from_slice(&bytes).ok())
}

/// The most directories within each other: what is deeper was put there by hand.
const DEPTH_MAX: usize = 3;

/// Reads all files of `directory`, under names that begin with `prefix`.
fn read_files(directory: &Path, prefix: &str, files: &mut Files) -> Result<(), FileError> {
    for entry in fs::read_dir(directory).map_err(failed(directory, "listing"))? {
        let entry = entry.map_err(failed(directory, "listing"))?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let metadata = entry.metadata().map_err(failed(&entry.path(), "looking at it"))?;
        if name == MANIFEST {
            continue;
        }
        if metadata.is_dir() && name.split('/').count() < DEPTH_MAX {
            read_files(&entry.path(), &format!("{name}/"), files)?;
            continue;
        }
        let content = if metadata.is_file() && metadata.len() <= FILE_LEN_MAX {
            let bytes = fs::read(entry.path()).map_err(failed(&entry.path(), "reading"))?;
            String::from_utf8(bytes).unwrap_or_else(|e| format!("(not text: {})", sha256_hex(e.as_bytes())))
        } else {
            "(no plain file)".to_owned()
        };
        files.insert(name, content);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_appears_whole_and_a_hand_edit_is_seen() {
        let root = tempfile::tempdir().expect("a directory");
        let store = Store::new(root.path());
        assert_eq!(store.observe().expect("an empty store"), Seen::default());
        let files = Files::from([("proxy.json".to_owned(), "{}\n".to_owned())]);
        store.stage(1, &files).expect("staged");
        assert_eq!(store.observe().expect("seen").live, None);
        store.switch(1).expect("switched");
        let seen = store.observe().expect("seen");
        assert_eq!((seen.live, &seen.live_files, seen.generations[&1].intact), (Some(1), &files, true));

        fs::write(root.path().join("live/proxy.json"), "edited").expect("written");
        assert!(!store.observe().expect("seen").generations[&1].intact);
        fs::write(root.path().join("live/proxy.json"), "{}\n").expect("written");
        fs::write(root.path().join("live/foreign"), "").expect("written");
        assert!(!store.observe().expect("seen").generations[&1].intact);
    }

    #[test]
    fn files_lie_in_directories_and_secrets_are_roots_alone() {
        let root = tempfile::tempdir().expect("a directory");
        let store = Store::new(root.path());
        let file = |name: &str| (name.to_owned(), "x\n".to_owned());
        let files = Files::from(
            ["postfix/main.cf", "rspamd/local.d/secret-redis.conf", "secret-srs", "proxy-secret-x"].map(file),
        );
        store.stage(1, &files).expect("staged");
        store.switch(1).expect("switched");
        assert_eq!(store.observe().expect("seen").live_files, files);
        let mode = |name: &str| {
            let metadata = fs::metadata(store.directory(1).join(name)).expect("it is there");
            std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777
        };
        let of_proxy = if group_id(PROXY_GROUP).expect("readable").is_some() { 0o640 } else { 0o600 };
        let names = ["postfix/main.cf", "proxy-secret-x", "rspamd/local.d/secret-redis.conf", "secret-srs"];
        assert_eq!(names.map(mode), [0o644, of_proxy, 0o600, 0o600]);
        fs::write(root.path().join("live/postfix/foreign"), "").expect("written");
        assert!(!store.observe().expect("seen").generations[&1].intact);
    }

    #[test]
    fn what_is_not_complete_is_not_seen_and_not_switched_to() {
        let root = tempfile::tempdir().expect("a directory");
        let store = Store::new(root.path());
        fs::create_dir_all(store.directory(7)).expect("made");
        assert!(store.observe().expect("seen").generations.is_empty());
        assert!(store.switch(7).is_err());
    }
}

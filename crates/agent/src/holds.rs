//! May this node use a right now? What daemons that only one node may run ask before they start (`phalanx holds RIGHT`).
//!
//! The node's own configuration says what it may; the share says whether it still may ([`phalanx_plan::rights`]). Neither panel nor agent
//! is asked. A share that hangs hangs this, and so the daemon does not start; systemd's time limit ends it.

use anyhow::{Context, bail};
use phalanx_model::Right;
use phalanx_plan::rights::{FILE, RightsConfig, verdict};
use phalanx_plan::steps::desired::LIVE;
use std::path::{Path, PathBuf};

/// Which right is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// The queue that this node fills.
    OwnQueue,
    /// This one.
    Right(Right),
}

impl std::str::FromStr for Question {
    type Err = phalanx_model::Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "own-queue" { Ok(Self::OwnQueue) } else { text.parse().map(Self::Right) }
    }
}

/// The live file that says what this node may do.
pub fn config() -> PathBuf {
    Path::new(LIVE).join(FILE)
}

/// Answers by success.
///
/// # Errors
/// Why the right must not be used, in words for a person.
pub fn holds(config: &Path, question: &Question) -> anyhow::Result<()> {
    let text = std::fs::read(config).with_context(|| format!("reading {}", config.display()))?;
    let known: RightsConfig =
        serde_json::from_slice(&text).with_context(|| format!("{} can't be understood", config.display()))?;
    let is_own = *question == Question::OwnQueue;
    let right = match question {
        Question::OwnQueue => &known.own_queue,
        Question::Right(right) => right,
    };
    let Some(expected) = known.rights.get(right) else {
        // A queue of this node's own disk can be nobody else's.
        if is_own && known.own_queue_is_local {
            return Ok(());
        }
        bail!("this node does not have {right}, by its configuration");
    };
    let seen = phalanx_host::rights::read(Path::new(&expected.file)).context("the share can't be asked")?;
    match verdict(expected, seen.as_ref()) {
        None => Ok(()),
        Some(why) => bail!("{why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_plan::rights::{Expected, Held};
    use std::collections::BTreeMap;

    #[test]
    fn the_share_has_the_last_word() {
        let directory = tempfile::tempdir().expect("a directory");
        let (config, file) = (directory.path().join("rights.json"), directory.path().join("holder"));
        let name = |text: &str| text.parse().expect("a name");
        let own = Right::Queue(name("mail1"));
        let held = |holder: &str, number| Held {
            cluster: name("mail"),
            right: own.clone(),
            holder: name(holder),
            number,
            is_void: false,
        };
        let expected = Expected { file: file.to_string_lossy().into_owned(), held: held("mail1", 3) };
        let mut known = RightsConfig {
            own_queue: own.clone(),
            own_queue_is_local: false,
            rights: BTreeMap::from([(own.clone(), expected)]),
        };
        let ask = |known: &RightsConfig, question: &Question| {
            std::fs::write(&config, serde_json::to_vec(known).expect("plain data")).expect("written");
            holds(&config, question).map_err(|error| format!("{error:#}"))
        };
        let why = ask(&known, &Question::OwnQueue).expect_err("the share says nothing");
        assert!(why.contains("not there yet"), "{why}");
        std::fs::write(&file, held("mail2", 4).to_bytes()).expect("written");
        let why = ask(&known, &Question::OwnQueue).expect_err("another node has it");
        assert!(why.contains("belongs to mail2 by now"), "{why}");
        std::fs::write(&file, held("mail1", 3).to_bytes()).expect("written");
        assert_eq!(ask(&known, &Question::OwnQueue), Ok(()));
        assert_eq!(ask(&known, &Question::Right(own.clone())), Ok(()));
        assert!(ask(&known, &Question::Right(Right::Mailboxes)).is_err());
        known.rights.clear();
        assert!(ask(&known, &Question::OwnQueue).is_err());
        known.own_queue_is_local = true;
        assert_eq!(ask(&known, &Question::OwnQueue), Ok(()));
        assert!(holds(&directory.path().join("none"), &Question::OwnQueue).is_err());
    }
}

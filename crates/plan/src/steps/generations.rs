//! Which generation of files shall be live, and the steps that make it so.

use super::{Desired, Drift, Marks, Observed, Plan, Step, diff};
use crate::render::{Files, Readers};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// How many generations are kept to go back to.
pub const KEPT_MAX: usize = 10;

/// The SHA-256 of each file, in hexadecimal digits.
pub type FileDigests = BTreeMap<String, String>;

/// The generation that shall be live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its number.
    pub generation: u64,
    /// Its files' digests.
    pub files: FileDigests,
}

/// SHA-256 in hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digests of `files`.
pub fn file_digests(files: &Files) -> FileDigests {
    files.iter().map(|(name, content)| (name.clone(), sha256_hex(content.as_bytes()))).collect()
}

/// What tells a set of files from others.
pub fn digest(files: &FileDigests) -> String {
    let lines: String = files.iter().map(|(name, digest)| format!("{name} {digest}\n")).collect();
    sha256_hex(lines.as_bytes())
}

/// What tells the files named `names` from others; a file that is not there counts as such. A name that ends with a slash means all files
/// of that directory.
pub fn digest_of(files: &FileDigests, names: &[&str]) -> String {
    let wanted = |name: &str| names.iter().any(|wanted| is_of(name, wanted));
    digest(&files.iter().filter(|(name, _)| wanted(name)).map(|(n, d)| (n.clone(), d.clone())).collect())
}

/// Whether the file `name` is `wanted`, or lies in the directory `wanted`, which then ends with a slash.
pub(super) fn is_of(name: &str, wanted: &str) -> bool {
    if wanted.ends_with('/') { name.starts_with(wanted) } else { name == wanted }
}

/// Plans the steps up to the switch and says what will be live after them; none where nothing is or can be.
pub(super) fn plan_generation(
    desired: &Desired,
    observed: &Observed,
    marks: &Marks,
    plan: &mut Plan,
) -> Option<Target> {
    if desired.files.is_empty() {
        return None;
    }
    let target = choose(desired, observed, marks, plan)?;
    let is_staged = observed.generations.get(&target.generation).is_some_and(|seen| seen.intact);
    if !is_staged {
        plan.step(Step::Stage { generation: target.generation, files: desired.files.clone() });
    }
    if observed.live != Some(target.generation) {
        plan.step(Step::Validate { generation: target.generation });
        plan.step(Step::Switch { generation: target.generation });
    }
    if marks.verified != Some(target.generation)
        && let Some(proof) = &desired.proof
    {
        let back_to = marks.verified.filter(|last| observed.generations.get(last).is_some_and(|seen| seen.intact));
        plan.step(Step::Verify { generation: target.generation, by: proof.clone(), back_to });
    }
    plan_removal(observed, marks, target.generation, plan);
    Some(target)
}

fn choose(desired: &Desired, observed: &Observed, marks: &Marks, plan: &mut Plan) -> Option<Target> {
    let wanted = file_digests(&desired.files);
    let wanted_digest = digest(&wanted);
    note_hand_edits(desired, &wanted, observed, plan);
    let existing = |generation: u64| {
        let seen = observed.generations.get(&generation).filter(|seen| seen.intact)?;
        Some(Target { generation, files: seen.files.clone() }).filter(|t| marks.refusal(&digest(&t.files)).is_none())
    };
    if let Some(pin) = marks.pinned.as_ref().filter(|pin| pin.instead_of == wanted_digest) {
        if let Some(target) = existing(pin.generation) {
            return Some(target);
        }
        plan.waiting.push(format!(
            "generation {} was asked for, but it is damaged, gone or refused; the one for the spec is used",
            pin.generation
        ));
    }
    if let Some(why) = marks.refusal(&wanted_digest) {
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        plan.waiting.push(format!("the new configuration was refused, the last good one stays: {why}"));
        let stay = observed.live.and_then(existing);
        return marks.verified.and_then(existing).or(stay);
    }
    let same = |generation: &u64| observed.generations[generation].files == wanted;
    let live = observed.live.filter(|live| observed.generations.contains_key(live)).filter(same).and_then(existing);
    live.or_else(|| observed.generations.keys().copied().rev().filter(same).find_map(existing)).or_else(|| {
        let last = observed.generations.keys().next_back().copied().max(observed.live).unwrap_or(0);
        Some(Target { generation: last + 1, files: wanted })
    })
}

/// The live generation's files that are not what they were when they were written, or are not there any more.
pub(super) fn edited_by_hand(observed: &Observed) -> Vec<(&str, &str)> {
    let seen = observed.live.and_then(|live| observed.generations.get(&live)).filter(|seen| !seen.intact);
    let was = seen.into_iter().flat_map(|seen| &seen.files);
    let is_other = |name: &String, digest: &String| {
        observed.live_files.get(name).is_none_or(|content| sha256_hex(content.as_bytes()) != *digest)
    };
    was.filter(|(name, digest)| is_other(name, digest)).map(|(name, digest)| (name.as_str(), digest.as_str())).collect()
}

fn note_hand_edits(desired: &Desired, wanted: &FileDigests, observed: &Observed, plan: &mut Plan) {
    let Some(live) = observed.live else { return };
    let Some(seen) = observed.generations.get(&live).filter(|seen| !seen.intact) else { return };
    for (name, digest) in edited_by_hand(observed) {
        let now = observed.live_files.get(name).map_or("", String::as_str);
        let is_known = wanted.get(name).is_some_and(|wanted| wanted == digest);
        let was = desired.files.get(name).filter(|_| is_known).map_or("", String::as_str);
        let what = format!("the live file {name} of generation {live} was changed by hand");
        // Events are read by more people than secrets are.
        let diff = match Readers::of(name) {
            Readers::All => diff::lines(was, now),
            Readers::Proxy | Readers::Root => "what a secret file holds is not shown\n".to_owned(),
        };
        plan.drift.push(Drift { what, diff });
    }
    for name in observed.live_files.keys().filter(|name| !seen.files.contains_key(*name)) {
        plan.drifted(format!("a foreign file {name} lies in the live generation {live}"), format!("+{name}\n"));
    }
}

fn plan_removal(observed: &Observed, marks: &Marks, target: u64, plan: &mut Plan) {
    let needed = [Some(target), observed.live, marks.verified, marks.pinned.as_ref().map(|pin| pin.generation)];
    let new = usize::from(!observed.generations.contains_key(&target));
    let over = (observed.generations.len() + new).saturating_sub(KEPT_MAX);
    let old = observed.generations.keys().copied().filter(|generation| !needed.contains(&Some(*generation)));
    for generation in old.take(over) {
        plan.step(Step::RemoveGeneration { generation });
    }
}

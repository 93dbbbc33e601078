//! What is on the nodes' disks, and what was merged of it. A line is known by node, segment and offset: `web1 BOOT-N OFFSET`.

use anyhow::{Context, Result, ensure};
use phalanx_lab::figure::{Figure, NODES};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A site, and what its line is known by.
pub type Known = (String, String);

/// Prints, of all segments: `L site segment offset` for each whole line of a request, `C segment` for each that was cut off.
const SEGMENTS: &str = r##"cd /var/log/phalanx/access && for file in *.log; do LC_ALL=C awk -v name="${file%.log}" '
    /^[0-9]/ { print "L", $2, name, at + 0 }
    { at += length($0) + 1; last = $0 }
    END { print (last == "# end" ? "E" : "O"), name }' "$file"; tail -c 1 "$file" | od -An -c | grep -q '\\n' || echo "T ${file%.log}"; done"##;

/// What the nodes' disks have.
#[derive(Debug, Default)]
pub struct OnDisk {
    pub lines: HashSet<Known>,
    /// Segments that have a successor and no end: `web1 BOOT-N`.
    pub cut_off: BTreeSet<String>,
}

impl OnDisk {
    pub fn read(figure: &Figure) -> Result<Self> {
        let mut found = Self::default();
        for node in NODES {
            let text = figure.host(node).text(SEGMENTS)?;
            let (mut open, mut torn) = (Vec::new(), BTreeSet::new());
            let mut last: HashMap<&str, Known> = HashMap::new();
            for line in text.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                match words[..] {
                    ["L", site, name, at] => {
                        let known = (site.to_owned(), format!("{node} {name} {at}"));
                        last.insert(name, known.clone());
                        found.lines.insert(known);
                    }
                    ["O", name] => open.push(name),
                    ["T", name] => drop(torn.insert(name)),
                    ["E", _] => {}
                    _ => anyhow::bail!("{line:?}"),
                }
            }
            // The last line of a file that does not end with one is a part of a line.
            for name in torn {
                found.lines.remove(last.get(name).context("a torn segment without a line")?);
            }
            let number = |name: &str| name.rsplit('-').next().and_then(|number| number.parse::<u64>().ok());
            let present = open.iter().filter_map(|name| number(name)).max();
            let cut = open.iter().filter(|name| number(name) < present).map(|name| format!("{node} {name}"));
            found.cut_off.extend(cut);
        }
        Ok(found)
    }
}

/// What the merged logs have.
#[derive(Debug, Default)]
pub struct Merged {
    pub lines: Vec<Known>,
    set: HashSet<Known>,
    /// Lines in late blocks.
    pub late: usize,
    marks: BTreeMap<String, Vec<String>>,
    disorder: Vec<String>,
}

impl Merged {
    pub fn read(figure: &Figure) -> Result<Self> {
        let mut merged = Self::default();
        for (account, site) in super::SITES {
            let text = figure.host("nas").text(&format!("cat /srv/nas/web/home/{account}/logs/{site}/access.log*"))?;
            merged.add(site, &text)?;
        }
        let text = figure.host("nas").text("cat /srv/nas/web/.phalanx-logs/cluster/access.log")?;
        let marks = text.lines().filter(|line| line.starts_with("# gap: ")).map(str::to_owned).collect();
        merged.marks.insert("-".to_owned(), marks);
        merged.set = merged.lines.iter().cloned().collect();
        Ok(merged)
    }

    fn add(&mut self, site: &str, text: &str) -> Result<()> {
        let (mut is_late, mut last) = (false, "");
        for line in text.lines() {
            if line.starts_with("# gap: ") {
                self.marks.entry(site.to_owned()).or_default().push(line.to_owned());
            } else if line.starts_with("# late: ") {
                is_late = true;
            } else if line == "# end of late block" {
                is_late = false;
            } else {
                let words: Vec<&str> = line.rsplitn(5, ' ').collect();
                let [offset, segment, node, time, _] = words[..] else { anyhow::bail!("{line:?}") };
                self.lines.push((site.to_owned(), format!("{node} {segment} {offset}")));
                self.late += usize::from(is_late);
                // All have as many digits.
                if !is_late && time < last {
                    self.disorder.push(line.to_owned());
                }
                last = if is_late { last } else { time };
            }
        }
        ensure!(!is_late, "a late block without end in the log of {site}");
        Ok(())
    }

    pub fn has(&self, line: &Known) -> bool {
        self.set.contains(line)
    }

    /// Marks of a segment that was cut off, in the log of a site, or in the cluster's (`-`).
    pub fn marks(&self, site: &str, cut: &str) -> usize {
        let Some((node, segment)) = cut.split_once(' ') else { return 0 };
        let Some((boot, number)) = segment.rsplit_once('-') else { return 0 };
        let mark = format!("# gap: {node} stopped uncleanly (boot {boot}, segment {number});");
        self.marks.get(site).into_iter().flatten().filter(|line| line.starts_with(&mark)).count()
    }

    pub fn is_once_and_in_order(&self) -> Result<()> {
        ensure!(self.set.len() == self.lines.len(), "{} lines are there twice", self.lines.len() - self.set.len());
        ensure!(
            self.disorder.is_empty(),
            "{} lines are out of order: {:?}",
            self.disorder.len(),
            self.disorder.first()
        );
        Ok(())
    }
}

/// The requests of each site that the panel has counted.
pub fn counted(figure: &Figure) -> Result<BTreeMap<String, u64>> {
    let list = figure.json("traffic")?;
    let mut counted = BTreeMap::new();
    for row in list["items"].as_array().context("no list")? {
        let (site, requests) =
            (row["site"].as_str().context("no site")?, row["requests"].as_u64().context("no count")?);
        *counted.entry(site.to_owned()).or_insert(0) += requests;
    }
    Ok(counted)
}

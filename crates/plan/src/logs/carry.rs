//! Carrying a batch out: lines go to their logs while they are gathered, each log to where the journal says, and the state follows when all are there.

use super::batch::{Counted, JOURNAL, Journal, Log, Output, STATE, State, gap, late_block, of_stranger, traffic_file};
use super::merge::{Gathered, Input, Medium, SiteLines, sites_of};
use super::rotate;
use super::round::{Outcome, RoundError, Storage};
use super::stream::Stream;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// The cluster's log among the outputs.
const CLUSTER: usize = 0;

/// A batch under way.
pub struct Carrying<'s, S> {
    storage: &'s mut S,
    stream: Stream,
    now_us: u64,
    journal: Journal,
    /// Whether the journal lasts as it is.
    is_kept: bool,
    /// Each output's bytes so far.
    written: Vec<u64>,
    /// The outputs of sites by name, and of the batch's sites in their order.
    by_site: HashMap<String, usize>,
    places: Vec<usize>,
    /// Logs that take no more, and why.
    refused: BTreeMap<usize, String>,
}

impl<S: Storage> Medium for Carrying<'_, S> {
    type Error = RoundError<S::Error>;

    fn read(&mut self, input: &Input, offset: u64, len: usize, into: &mut Vec<u8>) -> Result<(), Self::Error> {
        Ok(self.storage.read(input, offset, len, into)?)
    }

    fn take(&mut self, all: &[SiteLines], these: Range<usize>) -> Result<(), Self::Error> {
        self.know(all)?;
        self.keep()?;
        for (index, lines) in these.clone().zip(&all[these]) {
            self.put_of(index, &lines.site, &lines.ordered)?;
        }
        Ok(())
    }
}

impl<'s, S: Storage> Carrying<'s, S> {
    /// A batch that nothing was done of yet, or that was interrupted.
    pub fn new(storage: &'s mut S, stream: Stream, journal: Journal, is_new: bool, now_us: u64) -> Self {
        let mut by_site: HashMap<String, usize> = HashMap::new();
        by_site.extend(journal.outputs.iter().map(|output| output.log.name().to_owned()).zip(0..));
        by_site.extend(journal.strangers.iter().map(|site| (site.clone(), CLUSTER)));
        let refused = journal.outputs.iter().enumerate();
        let refused = refused.filter_map(|(place, output)| Some((place, output.refused.clone()?))).collect();
        let written = vec![0; journal.outputs.len()];
        Self { storage, stream, now_us, journal, is_kept: !is_new, written, by_site, places: vec![], refused }
    }

    /// What is written down of it.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Writes what is left of the batch, what it counted, and then the state. `cut` are the segments that were cut off.
    ///
    /// # Errors
    /// The storage's.
    pub fn finish(mut self, gathered: Gathered, after: &State, cut: &[Input]) -> Result<Outcome, RoundError<S::Error>> {
        let sites = &gathered.sites;
        // Notes and gaps go there, whether or not there are lines.
        self.place_of("-")?;
        self.know(sites)?;
        let gaps = self.gaps(cut)?;
        for site in gaps.iter().flat_map(|gap| &gap.sites) {
            self.place_of(site)?;
        }
        self.keep()?;
        for (index, lines) in sites.iter().enumerate() {
            self.put_of(index, &lines.site, &lines.ordered)?;
            self.put_of(index, &lines.site, &late_block(lines))?;
        }
        for Gap { mark, sites } in &gaps {
            for site in sites {
                let place = self.place_of(site)?;
                if place != CLUSTER {
                    self.put(place, mark.as_bytes())?;
                }
            }
            self.put(CLUSTER, mark.as_bytes())?;
        }
        self.put(CLUSTER, &gathered.notes)?;
        let late = self.storage.settle()?;
        let counted = Counted::of(sites);
        if !counted.sites.is_empty() {
            write(self.storage, &traffic_file(after.number), &counted)?;
        }
        write(self.storage, STATE, after)?;
        let refused = self.refused.iter().map(|(place, why)| (self.journal.outputs[*place].log.clone(), why.clone()));
        let refused = refused.chain(late).map(|(log, why)| (log.name().to_owned(), why)).collect();
        Ok(Outcome {
            lines: gathered.lines,
            refused,
            gaps: gaps.into_iter().map(|gap| gap.mark).collect(),
            has_more: gathered.is_full,
            closes_us: self.journal.limits.closes_us,
            number: after.number,
        })
    }

    /// Finds the places of all these sites.
    fn know(&mut self, sites: &[SiteLines]) -> Result<(), RoundError<S::Error>> {
        for lines in &sites[self.places.len()..] {
            let place = self.place_of(&lines.site)?;
            self.places.push(place);
        }
        Ok(())
    }

    /// Where a site's lines go; what is new of that is not kept yet.
    fn place_of(&mut self, site: &str) -> Result<usize, RoundError<S::Error>> {
        if self.journal.outputs.is_empty() {
            self.begin_log(Log::Cluster)?;
        }
        if site == "-" || !self.stream.is_by_site() {
            return Ok(CLUSTER);
        }
        if let Some(place) = self.by_site.get(site) {
            return Ok(*place);
        }
        let place = match self.storage.owner(site)? {
            Some((account, uid)) => self.begin_log(Log::Site { site: site.to_owned(), account, uid })?,
            None => {
                self.journal.strangers.insert(site.to_owned());
                self.is_kept = false;
                CLUSTER
            }
        };
        self.by_site.insert(site.to_owned(), place);
        Ok(place)
    }

    /// Adds a log to the outputs, as it is now.
    fn begin_log(&mut self, log: Log) -> Result<usize, RoundError<S::Error>> {
        let looked = match self.storage.look(&log)? {
            Ok(seen) if rotate::is_due(seen, self.now_us) => {
                let others = self.storage.beside(&log)?;
                others.map(|others| (0, Some(rotate::name(self.stream.file(), seen, &others))))
            }
            looked => looked.map(|seen| (seen.len, None)),
        };
        let place = self.journal.outputs.len();
        self.journal.outputs.push(match looked {
            Ok((base, aside)) => Output { log, base, aside, refused: None },
            Err(why) => {
                self.refused.insert(place, why.clone());
                Output { log, base: 0, aside: None, refused: Some(why) }
            }
        });
        self.written.push(0);
        self.is_kept = false;
        Ok(place)
    }

    /// Makes the journal last as it is.
    fn keep(&mut self) -> Result<(), RoundError<S::Error>> {
        if !self.is_kept {
            write(self.storage, JOURNAL, &self.journal)?;
            self.is_kept = true;
        }
        Ok(())
    }

    /// Writes text of the batch's site of this number.
    fn put_of(&mut self, index: usize, site: &str, text: &[u8]) -> Result<(), RoundError<S::Error>> {
        match self.places[index] {
            CLUSTER if self.stream.is_by_site() => self.put(CLUSTER, &of_stranger(site, text)),
            place => self.put(place, text),
        }
    }

    fn put(&mut self, place: usize, text: &[u8]) -> Result<(), RoundError<S::Error>> {
        if text.is_empty() || self.refused.contains_key(&place) {
            return Ok(());
        }
        let Output { log, base, aside, refused: _ } = &self.journal.outputs[place];
        let mut done = Ok(());
        if let Some(aside) = aside
            && self.written[place] == 0
        {
            done = self.storage.move_aside(log, aside)?;
        }
        if done.is_ok() {
            done = self.storage.write(log, base + self.written[place], text)?;
        }
        match done {
            Ok(()) => self.written[place] += text.len() as u64,
            Err(why) => drop(self.refused.insert(place, why)),
        }
        Ok(())
    }

    fn gaps(&mut self, cut: &[Input]) -> Result<Vec<Gap>, RoundError<S::Error>> {
        let mut gaps = Vec::new();
        for cut in cut {
            let (sites, last_us) = sites_of(cut, self)?;
            gaps.push(Gap { mark: gap(cut, last_us), sites });
        }
        Ok(gaps)
    }
}

/// What is told of a segment that was cut off, and to whose logs.
struct Gap {
    mark: String,
    sites: BTreeSet<String>,
}

fn write<S: Storage>(storage: &mut S, file: &str, value: &impl serde::Serialize) -> Result<(), RoundError<S::Error>> {
    let text = serde_json::to_vec(value).expect("plain data with text keys");
    Ok(storage.set(file, &text)?)
}

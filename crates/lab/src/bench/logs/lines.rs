//! Segments as the proxies of a few nodes write them: the same bytes at each call.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::sum::Sum;

/// A proxy begins a new segment when one is so long.
const SEGMENT_LEN: u64 = 64 << 20;
const BEGIN_US: u64 = 1_700_000_000_000_000;
/// Half a year of lines at the longest, so that all are of the past.
const STEP_US_MAX: u64 = 4_000;
const PATHS: [&str; 6] = [
    "/",
    "/wp-content/themes/field/assets/css/style.min.css?ver=",
    "/shop/product/oak-table-with-drawers-",
    "/images/2023/11/header-image-large-",
    "/api/v2/orders?sort=-created_at&page=",
    "/blog/2023/11/why-the-second-cup-of-coffee-tastes-different-",
];
const AGENTS: [&str; 6] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/119.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.1 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/119.0",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/119.0.0.0 Mobile Safari/537.36",
    "curl/8.4.0",
];
const STATUSES: [u16; 8] = [200, 200, 200, 200, 200, 304, 301, 404];

/// What is written.
#[derive(Debug)]
pub struct Shape<'s> {
    /// The nodes' names.
    pub nodes: &'s [&'s str],
    /// So many sites; the second has half the lines of the first, the third a third, and so on.
    pub sites: u32,
    /// So many bytes in all, and no more than a line beyond.
    pub bytes: u64,
}

/// What was written.
#[derive(Debug, Default)]
pub struct Written {
    /// Each node's segments: in order.
    pub segments: Vec<(String, Vec<Segment>)>,
    /// Bytes in all.
    pub bytes: u64,
    /// All lines, as a merger that changes nothing leaves them.
    pub plain: Sum,
    /// The same, as Phalanx leaves them: where each stood is told at its end.
    pub placed: Sum,
}

/// A segment that was closed.
#[derive(Debug, Clone)]
pub struct Segment {
    /// Its name.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Its length.
    pub len: u64,
}

/// The name of a site.
pub fn site(number: u32) -> String {
    format!("www.site-{number}.example")
}

/// Writes the segments, those of each node into a directory of its name below `folder`.
pub fn write(folder: &Path, shape: &Shape<'_>) -> Result<Written> {
    let mut written = Written::default();
    let sites: Vec<String> = (0..shape.sites).map(site).collect();
    let mut popularity = Vec::new();
    for number in 0..shape.sites {
        popularity.push(popularity.last().copied().unwrap_or(0) + 1_000_000 / u64::from(number + 1));
    }
    let visits = popularity.last().copied().context("there are sites")?;
    let mut nodes =
        shape.nodes.iter().zip(1..).map(|(name, n)| Node::new(folder, name, n)).collect::<Result<Vec<_>>>()?;
    let (mut dice, mut at_us, mut line) = (Dice(7), BEGIN_US, String::new());
    while written.bytes + nodes.iter().map(|node| node.len).sum::<u64>() < shape.bytes {
        at_us += dice.roll(STEP_US_MAX);
        let visit = dice.roll(visits);
        let site = &sites[popularity.partition_point(|upto| *upto <= visit)];
        let chosen = dice.roll(nodes.len() as u64) as usize;
        let node = &mut nodes[chosen];
        line.clear();
        let merged_from = request(&mut line, &mut dice, at_us, site, &node.name);
        let merged = &line.as_bytes()[merged_from..];
        let place = format!(" {}-{} {}", node.boot, node.number, node.len);
        written.plain.add(&[site.as_bytes(), merged]);
        written.placed.add(&[site.as_bytes(), merged, place.as_bytes()]);
        line.push('\n');
        node.put(&line)?;
        if node.len >= SEGMENT_LEN {
            written.bytes += node.close()?;
            node.begin()?;
        }
    }
    for mut node in nodes {
        written.bytes += node.close()?;
        written.segments.push((node.name, node.closed));
    }
    Ok(written)
}

/// Appends a line without its end; returns where that begins which a site's log gets.
fn request(line: &mut String, dice: &mut Dice, at_us: u64, site: &str, node: &str) -> usize {
    let pick = |dice: &mut Dice, all: &[&'static str]| all[dice.roll(all.len() as u64) as usize];
    let time = format!("{}.{:06}", at_us / 1_000_000, at_us % 1_000_000);
    let (sent, received, took_us) = (200 + dice.roll(60_000), 90 + dice.roll(900), 150 + dice.roll(80_000));
    line.push_str(&format!("{time} {site} {sent} {received} "));
    let merged_from = line.len();
    let client = dice.roll(1 << 24);
    let (path, page) = (pick(dice, &PATHS), dice.roll(5_000));
    let referer = if dice.roll(3) == 0 { "-".to_owned() } else { format!("https://{site}{}", pick(dice, &PATHS)) };
    let (agent, status) = (pick(dice, &AGENTS), STATUSES[dice.roll(8) as usize]);
    let second = at_us / 1_000_000 - BEGIN_US / 1_000_000 + 22 * 3_600 + 13 * 60 + 20;
    let (day, hour, minute, second) = (14 + second / 86_400, second / 3_600 % 24, second / 60 % 60, second % 60);
    write!(
        line,
        "198.{}.{}.{} - - [{day:02}/Nov/2023:{hour:02}:{minute:02}:{second:02} +0000] \"GET {path}{page} HTTP/1.1\" {status} {sent} \"{referer}\" \"{agent}\" {received} {took_us} {time} {node}",
        client >> 16,
        client >> 8 & 255,
        client & 255,
    )
    .expect("a String takes all that is written");
    merged_from
}

/// A node, and the segment that it writes.
struct Node {
    name: String,
    boot: String,
    folder: PathBuf,
    number: u32,
    file: BufWriter<File>,
    len: u64,
    closed: Vec<Segment>,
}

impl Node {
    fn new(folder: &Path, name: &str, boot: u32) -> Result<Self> {
        let (folder, boot) = (folder.join(name), format!("{boot:032x}"));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let file = create(&folder, &boot, 1)?;
        let mut node = Self { name: name.to_owned(), boot, folder, number: 1, file, len: 0, closed: Vec::new() };
        node.head()?;
        Ok(node)
    }

    fn head(&mut self) -> Result<()> {
        self.put(&format!("# segment {} of {}, begun some time\n", segment(&self.boot, self.number), self.name))
    }

    fn put(&mut self, text: &str) -> Result<()> {
        self.file.write_all(text.as_bytes()).context("cannot write a segment")?;
        self.len += text.len() as u64;
        Ok(())
    }

    fn close(&mut self) -> Result<u64> {
        self.put("# end\n")?;
        self.file.flush().context("cannot write a segment")?;
        let name = segment(&self.boot, self.number);
        self.closed.push(Segment { path: self.folder.join(&name), name, len: self.len });
        Ok(std::mem::take(&mut self.len))
    }

    fn begin(&mut self) -> Result<()> {
        self.number += 1;
        self.file = create(&self.folder, &self.boot, self.number)?;
        self.head()
    }
}

fn segment(boot: &str, number: u32) -> String {
    format!("{boot}-{number}.log")
}

fn create(folder: &Path, boot: &str, number: u32) -> Result<BufWriter<File>> {
    let path = folder.join(segment(boot, number));
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(BufWriter::with_capacity(1 << 20, file))
}

/// Steele, Lea and Flood's SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }
}

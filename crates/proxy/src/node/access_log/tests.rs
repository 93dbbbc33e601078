//! Lines, and the segments that they go into.

use super::*;
use phalanx_plan::logs::line;
use std::path::PathBuf;

const BOOT: &str = "9f1c2a00-0000-4000-8000-00000000000a";

fn entry<'a>(target: &'a str, user_agent: &'a [u8]) -> Entry<'a> {
    Entry {
        site: Some("www.example.org"),
        client: Ipv4Addr::new(198, 51, 100, 7),
        request: Some(("GET", target, "HTTP/1.1")),
        status: 200,
        sent_bytes: 512,
        received_bytes: 80,
        duration: Duration::from_millis(3),
        referer: b"",
        user_agent,
    }
}

fn segment(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("9f1c2a0000004000800000000000000a-{number}.log"))
}

fn start(directory: &Path) -> AccessLog {
    AccessLog::start(directory, "web1", BOOT).expect("started")
}

#[test]
fn a_line_has_no_way_out_of_its_quotes_and_the_merger_reads_it() {
    let mut gathered = Gathered::default();
    let completed = UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_042);
    Body::of(&entry("/a?b", b"x\" 200 \\\n\xff\x7f")).finish(&mut gathered, completed, "web1");
    let merged = "198.51.100.7 - - [14/Nov/2023:22:13:20 +0000] \"GET /a?b HTTP/1.1\" 200 512 \"\" \
                  \"x\\x22 200 \\x5c\\x0a\\xff\\x7f\" 80 3000 1700000000.000042 web1";
    assert_eq!(gathered.lines, format!("1700000000.000042 www.example.org 512 80 {merged}\n"));
    let read = line::parse(gathered.lines.trim_end().as_bytes()).expect("a line");
    assert_eq!((read.at_us, read.sent, read.received), (1_700_000_000_000_042, 512, 80));
    assert_eq!(read.merged, merged.as_bytes());
}

#[test]
fn a_start_begins_a_segment_and_an_end_closes_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let logs = directory.path().join("access");
    for _ in 0..2 {
        let log = start(&logs);
        log.write(&entry("/one", b""));
        assert!(log.close(Duration::from_secs(10)));
    }
    let first = std::fs::read_to_string(segment(&logs, 1)).expect("the first");
    let lines: Vec<&str> = first.lines().collect();
    assert!(lines[0].starts_with("# segment 9f1c2a0000004000800000000000000a-1.log of web1, begun 20"), "{first}");
    assert!(lines.len() == 3 && lines[1].contains("\"GET /one HTTP/1.1\"") && lines[2] == "# end", "{first}");
    assert!(segment(&logs, 2).exists() && !segment(&logs, 3).exists());
}

#[test]
fn lines_gather_in_order_and_the_last_one_is_written_at_the_end() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let log = start(directory.path());
    // More than is enough, so that some are written early.
    for number in 0..4_000 {
        log.write(&entry(&format!("/{number}/"), b"a browser"));
    }
    assert!(log.close(Duration::from_secs(10)));
    log.write(&entry("/late/", b""));
    let text = std::fs::read_to_string(segment(directory.path(), 1)).expect("written");
    assert!(text.len() > BYTES_ENOUGH);
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let in_order = |(number, line): (usize, &&str)| line.contains(&format!("/{number}/"));
    assert!(lines.len() == 4_000 && lines.iter().enumerate().all(in_order));
    let times: Vec<_> = lines.iter().map(|line| line::parse(line.as_bytes()).expect("a line").at_us).collect();
    assert!(times.is_sorted());
    assert_eq!(log.lost(), 1, "the late one");
}

#[test]
fn what_gathers_is_bounded_and_what_is_lost_is_told() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let logs = directory.path().join("access");
    // Nobody can write there, like to a disk that fails.
    std::fs::write(&logs, "").expect("a file in the directory's place");
    let log = start(&logs);
    for _ in 0..3 {
        log.write(&entry("/", b""));
    }
    for _ in 0..500 {
        if log.lost() == 3 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(log.lost(), 3);
    std::fs::remove_file(&logs).expect("removed");
    std::thread::sleep(Duration::from_millis(1_200));
    log.write(&entry("/", b""));
    assert!(log.close(Duration::from_secs(10)));
    let text = std::fs::read_to_string(segment(&logs, 1)).expect("it can be written again");
    assert!(text.contains("\n# 3 lines lost\n"), "{text}");
    let long = "x".repeat(BYTES_ENOUGH);
    let shared = Shared::default();
    let log = AccessLog { shared: Arc::new(shared), node: "web1".to_owned() };
    // Nobody takes these.
    for _ in 0..2 * BYTES_MAX / long.len() {
        log.write(&entry(&long, b""));
    }
    assert!(log.shared.lock().lines.len() <= BYTES_MAX && log.lost() >= (BYTES_MAX / long.len()) as u64);
    assert!(!log.close(Duration::ZERO), "it hangs");
}

//! wrk as a load: as many requests as there is room for, over a bounded number of connections, for a bounded time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::Host;

/// A load.
#[derive(Debug, Clone, Copy)]
pub struct Wrk<'a> {
    /// Where to connect to: ADDRESS:PORT.
    pub target: &'a str,
    /// The Host header.
    pub host_name: &'a str,
    /// The path.
    pub path: &'a str,
    /// Connections at a time.
    pub connections: u32,
    /// Whether each request has a connection of its own.
    pub close: bool,
    /// How long.
    pub seconds: u32,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Answers.
    pub requests: f64,
    /// Answers a second.
    pub requests_per_s: f64,
    /// The median of the time from sending a request to its whole answer, in milliseconds.
    pub p50_ms: f64,
    /// The 99th percentile of the same.
    pub p99_ms: f64,
    /// Requests without an answer, or with one that was no success.
    pub failed: f64,
}

/// The part of the requests that may fail before a rate means nothing.
const FAILED_MAX: f64 = 0.001;

impl Wrk<'_> {
    /// Runs the load on a host that is a client.
    ///
    /// # Errors
    /// wrk failed, or more than one in a thousand requests did: then its rate means nothing.
    pub fn run(&self, client: &Host<'_>) -> Result<Outcome> {
        let Self { target, host_name, path, connections, close, seconds } = self;
        let close = if *close { "-H 'Connection: close'" } else { "" };
        let line = format!(
            "wrk --latency -t 1 -c {connections} -d {seconds}s -H 'Host: {host_name}' {close} 'http://{target}{path}'"
        );
        let text = client.run_for(Duration::from_secs(u64::from(*seconds) + 20), &line)?.text()?;
        parse(&text).with_context(|| format!("`{line}` on {}", client.name()))
    }
}

fn parse(text: &str) -> Result<Outcome> {
    let line = |start: &str| text.lines().map(str::trim).find_map(|line| Some(line.strip_prefix(start)?.trim()));
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")).map(|(count, _)| count);
    let what = || format!("not wrk's words: {text}");
    let requests: f64 = requests.with_context(what)?.parse()?;
    let refused: f64 = line("Non-2xx or 3xx responses:").map_or(Ok(0.0), str::parse)?;
    let broken = line("Socket errors:").into_iter().flat_map(|errors| errors.split([' ', ',']));
    let failed = refused + broken.filter_map(|word| word.parse::<f64>().ok()).sum::<f64>();
    ensure!(failed <= requests * FAILED_MAX, "{failed} of {requests} requests failed: {text}");
    Ok(Outcome {
        requests,
        failed,
        requests_per_s: line("Requests/sec:").with_context(what)?.parse()?,
        p50_ms: milliseconds(line("50%").with_context(what)?)?,
        p99_ms: milliseconds(line("99%").with_context(what)?)?,
    })
}

fn milliseconds(text: &str) -> Result<f64> {
    let (number, factor) = [("us", 1e-3), ("ms", 1.0), ("m", 60e3), ("s", 1e3)]
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))
        .with_context(|| format!("not a time: {text:?}"))?;
    Ok(number.parse::<f64>().with_context(|| format!("not a time: {text:?}"))? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &str = "Running 5s test @ http://10.9.0.11/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.35ms    1.04ms  22.81ms   86.74%
    Req/Sec    12.80k     1.20k   15.10k    70.00%
  Latency Distribution
     50%  812.00us
     75%    1.75ms
     90%    2.61ms
     99%    1.02s
  63700 requests in 5.00s, 18.20MB read
Requests/sec:  12738.71
Transfer/sec:      3.64MB
";

    #[test]
    fn words_are_understood() {
        let outcome = parse(WORDS).unwrap();
        assert_eq!(
            outcome,
            Outcome { requests: 63700.0, requests_per_s: 12738.71, p50_ms: 0.812, p99_ms: 1020.0, failed: 0.0 }
        );
    }

    #[test]
    fn a_rate_of_failures_is_none() {
        let few = "  Non-2xx or 3xx responses: 3\n  Socket errors: connect 0, read 2, write 0, timeout 1";
        assert_eq!(parse(&format!("{WORDS}{few}")).unwrap().failed, 6.0);
        assert!(parse(&format!("{WORDS}  Non-2xx or 3xx responses: 64")).is_err());
        assert!(parse("").is_err());
    }
}

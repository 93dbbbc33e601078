//! The relay without sockets: bytes in, bytes and decisions out.

use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;

const ORIGIN: Origin = Origin { peer: Ipv4Addr::new(198, 51, 100, 7), is_forwarder: false };

/// What an upstream answers to each request in turn.
struct Script {
    client: Vec<u8>,
    /// The upstream's bytes for each request, and whether it closes afterwards.
    answers: Vec<(Vec<u8>, bool)>,
}

/// All that happened on one client connection.
#[derive(Debug, Default, PartialEq, Eq)]
struct Transcript {
    to_client: Vec<u8>,
    to_upstream: Vec<u8>,
    outcomes: Vec<(u16, bool, bool)>,
    failure: Option<String>,
}

/// Runs a whole connection; `sizes` are the sizes of the pieces in which bytes move.
fn run(script: &Script, sizes: &[usize]) -> Transcript {
    let mut relay = Relay::new(HeadLimits { bytes_max: 1_024, fields_max: 20 });
    let mut transcript = Transcript::default();
    let mut sizes = sizes.iter().copied().cycle();
    let mut size = move || sizes.next().unwrap_or(1).max(1);
    let mut client = &script.client[..];
    let mut answers = script.answers.iter();
    loop {
        let request = loop {
            match relay.next_request() {
                Ok(Some(request)) => break request,
                Ok(None) if relay.client_is_gone() => return transcript,
                Ok(None) => give(&mut relay, Peer::Client, &mut client, size(), true).expect("no exchange"),
                Err(reject) => {
                    transcript.failure = Some(format!("{} {}", reject.status, reject.why));
                    return transcript;
                }
            }
        };
        let Some((answer, closes)) = answers.next() else {
            relay.answer(Answer { status: 404, content_type: "text/plain", body: "no\n" }, Some(&request));
            transcript.to_client.extend_from_slice(&relay.pending(Peer::Client).concat());
            relay.sent(Peer::Client, relay.pending(Peer::Client).concat().len()).expect("sent");
            let outcome = relay.finish().expect("finished");
            transcript.outcomes.push((outcome.status, outcome.keep_client, outcome.keep_upstream));
            if outcome.keep_client { continue } else { return transcript }
        };
        relay.forward(&request, ORIGIN);
        match exchange(&mut relay, &mut client, answer, *closes, &mut size, &mut transcript) {
            Ok(outcome) => {
                transcript.outcomes.push((outcome.status, outcome.keep_client, outcome.keep_upstream));
                if !outcome.keep_client {
                    return transcript;
                }
            }
            Err(failure) => {
                transcript.failure = Some(failure.to_string());
                return transcript;
            }
        }
    }
}

fn exchange(
    relay: &mut Relay,
    client: &mut &[u8],
    mut answer: &[u8],
    closes: bool,
    size: &mut impl FnMut() -> usize,
    transcript: &mut Transcript,
) -> Result<Outcome, Failure> {
    for _ in 0..100_000 {
        take(relay, Peer::Upstream, size(), &mut transcript.to_upstream)?;
        take(relay, Peer::Client, size(), &mut transcript.to_client)?;
        if let Some(outcome) = relay.finish() {
            return Ok(outcome);
        }
        if relay.wants(Peer::Client) && !client.is_empty() {
            give(relay, Peer::Client, client, size(), false)?;
        }
        // The upstream answers once it has the whole request, as far as it will come.
        let idle = relay.pending(Peer::Upstream).iter().all(|part| part.is_empty());
        if relay.wants(Peer::Upstream) && idle && (client.is_empty() || relay.waiting() == Waiting::ForUpstream) {
            give(relay, Peer::Upstream, &mut answer, size(), closes)?;
        }
    }
    panic!("the exchange never ends: {relay:?}");
}

fn give(relay: &mut Relay, peer: Peer, bytes: &mut &[u8], size: usize, ends: bool) -> Result<(), Failure> {
    if bytes.is_empty() && !ends {
        return Ok(());
    }
    let space = relay.space(peer);
    let count = size.min(space.len()).min(bytes.len());
    space[..count].copy_from_slice(&bytes[..count]);
    *bytes = &bytes[count..];
    relay.received(peer, count)
}

fn take(relay: &mut Relay, peer: Peer, size: usize, into: &mut Vec<u8>) -> Result<(), Failure> {
    let all = relay.pending(peer).concat();
    let count = size.min(all.len());
    into.extend_from_slice(&all[..count]);
    if count > 0 { relay.sent(peer, count) } else { Ok(()) }
}

fn script(client: &str, answers: &[(&str, bool)]) -> Script {
    let answers = answers.iter().map(|(answer, closes)| (answer.as_bytes().to_vec(), *closes)).collect();
    Script { client: client.as_bytes().to_vec(), answers }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("ASCII")
}

#[test]
fn pipelined_requests_are_served_in_order() {
    let script = script(
        "GET /1 HTTP/1.1\r\nHost: a.b\r\n\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a.b\r\nContent-Length: 3\r\n\r\nabc\
         GET /3 HTTP/1.1\r\nHost: a.b\r\n\r\n",
        &[
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n", false),
        ],
    );
    let transcript = run(&script, &[4_096]);
    assert_eq!(transcript.outcomes, [(200, true, true), (200, true, true), (404, true, false)]);
    let out = text(&transcript.to_client);
    let (one, two, no) = (out.find("one"), out.find("3\r\ntwo\r\n0\r\n\r\n"), out.find("no\n"));
    assert!(one.is_some() && one < two && two < no, "{out}");
    assert!(text(&transcript.to_upstream).ends_with("\r\n\r\nabc"));
}

#[test]
fn what_an_upstream_sends_past_its_response_goes_nowhere() {
    let script = script(
        "GET /1 HTTP/1.1\r\nHost: a.b\r\n\r\nGET /2 HTTP/1.1\r\nHost: a.b\r\n\r\n",
        &[("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", false)],
    );
    let transcript = run(&script, &[4_096]);
    assert_eq!(transcript.outcomes[0], (200, true, false), "the upstream's connection is not used again");
    assert!(!text(&transcript.to_client).contains("evil"));
}

#[test]
fn a_response_without_a_length_ends_with_its_connection() {
    let script = script("GET / HTTP/1.1\r\nHost: a.b\r\n\r\n", &[("HTTP/1.1 200 OK\r\n\r\nall of it", true)]);
    let transcript = run(&script, &[7]);
    assert_eq!(transcript.outcomes, [(200, false, false)]);
    assert_eq!(text(&transcript.to_client), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it");
}

#[test]
fn failures_are_told_apart() {
    let get = "GET / HTTP/1.1\r\nHost: a.b\r\n\r\n";
    for (client, answer, failure) in [
        (get, "", Failure::NoResponse.to_string()),
        (get, "HTTP/1.1 200", Failure::Truncated.to_string()),
        (get, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", Failure::Truncated.to_string()),
        (get, "SSH-2.0-x\r\n\r\n", "the response is not valid: its head is malformed".into()),
        (
            "POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "",
            "the body is not well chunked: a chunk's size is missing".into(),
        ),
        ("GET / HTTP/1.1\nHost: a.b\n\n", "", "400 a line does not end with CRLF".into()),
    ] {
        let transcript = run(&script(client, &[(answer, true)]), &[4_096]);
        assert_eq!(transcript.failure, Some(failure), "{client:?} {answer:?}");
    }
}

#[test]
fn expect_continue_passes_through() {
    let script = script(
        "POST / HTTP/1.1\r\nHost: a.b\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
        &[("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", false)],
    );
    let transcript = run(&script, &[4_096]);
    let expected =
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert_eq!(text(&transcript.to_client), expected);
    assert_eq!(transcript.outcomes, [(403, false, false)], "the body never came, so nothing can follow it");
}

#[test]
fn a_request_can_be_replayed_until_its_body_leaves() {
    let mut relay = Relay::new(HeadLimits::default());
    let mut bytes = &b"PUT / HTTP/1.1\r\nHost: a.b\r\nContent-Length: 3\r\n\r\nabc"[..];
    give(&mut relay, Peer::Client, &mut bytes, 1_000, false).expect("fine");
    let request = relay.next_request().expect("fine").expect("complete");
    relay.forward(&request, ORIGIN);
    relay.sent(Peer::Upstream, 0).expect("fine");
    let first = relay.pending(Peer::Upstream).concat();
    let head = relay.pending(Peer::Upstream)[0].len();
    relay.sent(Peer::Upstream, head).expect("fine");
    assert!(relay.can_replay());
    relay.forward(&request, ORIGIN);
    relay.sent(Peer::Upstream, 0).expect("fine");
    assert_eq!(relay.pending(Peer::Upstream).concat(), first);
    relay.sent(Peer::Upstream, head + 1).expect("fine");
    assert!(!relay.can_replay());
}

#[test]
fn a_tunnel_carries_bytes_both_ways_until_both_ends_have_ended() {
    let mut relay = Relay::new(HeadLimits::default());
    let mut bytes = &b"GET / HTTP/1.1\r\nHost: a.b\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nearly"[..];
    give(&mut relay, Peer::Client, &mut bytes, 1_000, false).expect("fine");
    let request = relay.next_request().expect("fine").expect("complete");
    relay.forward(&request, ORIGIN);
    let head = relay.pending(Peer::Upstream).concat().len();
    relay.sent(Peer::Upstream, head).expect("fine");
    let mut bytes = &b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello"[..];
    give(&mut relay, Peer::Upstream, &mut bytes, 1_000, false).expect("fine");
    assert_eq!(relay.waiting(), Waiting::InTunnel);
    assert_eq!(relay.pending(Peer::Upstream).concat(), b"early");
    assert!(relay.pending(Peer::Client).concat().ends_with(b"\r\n\r\nhello"));
    relay.received(Peer::Client, 0).expect("fine");
    assert!(!relay.should_end(Peer::Upstream), "there is still something to write");
    relay.sent(Peer::Upstream, 5).expect("fine");
    assert!(relay.should_end(Peer::Upstream) && !relay.should_end(Peer::Client));
    relay.sent(Peer::Client, relay.pending(Peer::Client).concat().len()).expect("fine");
    assert_eq!(relay.finish(), None);
    relay.received(Peer::Upstream, 0).expect("fine");
    let outcome = relay.finish().expect("both have ended");
    assert_eq!((outcome.status, outcome.keep_client, outcome.keep_upstream), (101, false, false));
}

/// One request with its answer, both well-formed.
fn pair() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let body = prop::collection::vec(any::<u8>(), 0..3_000);
    (body.clone(), body, any::<bool>(), any::<bool>(), 0usize..3).prop_map(
        |(sent, got, chunks_up, chunks_down, interims)| {
            let mut request = b"POST /x HTTP/1.1\r\nHost: a.b\r\n".to_vec();
            request.extend_from_slice(&framed(&sent, chunks_up));
            let mut answer = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(interims);
            answer.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
            answer.extend_from_slice(&framed(&got, chunks_down));
            (request, answer)
        },
    )
}

fn framed(body: &[u8], chunked: bool) -> Vec<u8> {
    if !chunked {
        return [format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat();
    }
    let mut wire = b"Transfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(700) {
        wire.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
        wire.extend_from_slice(chunk);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"0\r\nX-Sum: 1\r\n\r\n");
    wire
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the bytes arrive and leave, the same goes out on both sides, whole.
    #[test]
    fn pieces_do_not_matter(
        pairs in prop::collection::vec(pair(), 1..4),
        sizes in prop::collection::vec(1usize..400, 1..20),
    ) {
        let script = Script {
            client: pairs.iter().flat_map(|(request, _)| request.clone()).collect(),
            answers: pairs.iter().map(|(_, answer)| (answer.clone(), false)).collect(),
        };
        let whole = run(&script, &[100_000]);
        prop_assert_eq!(&whole.failure, &None);
        prop_assert_eq!(whole.outcomes.len(), pairs.len());
        prop_assert!(whole.outcomes.iter().all(|outcome| *outcome == (200, true, true)));
        prop_assert_eq!(run(&script, &sizes), whole);
    }

    /// No bytes from either side make it panic, loop or hold more than its buffers.
    #[test]
    fn hostile_bytes_end_in_an_outcome_or_a_failure(
        client in prop::collection::vec(any::<u8>(), 0..300),
        answer in prop::collection::vec(any::<u8>(), 0..300),
        cut in 0usize..60,
        sizes in prop::collection::vec(1usize..50, 1..8),
    ) {
        let head = b"POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: chunked\r\n\r\n";
        let good = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let client = [&head[..head.len() - cut.min(2)], &client].concat();
        let answer = [&good[..good.len().saturating_sub(cut)], &answer].concat();
        run(&Script { client, answers: vec![(answer, true)] }, &sizes);
    }
}

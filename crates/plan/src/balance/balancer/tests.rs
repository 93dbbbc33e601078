//! Choices of a balancer over time, and what holds whatever happens.

use super::*;
use proptest::prelude::*;

const EXTERNAL: &str = "192.0.2.1:80";

fn config(nodes: &[(u8, bool)]) -> BalancerConfig {
    let backends = nodes.iter().enumerate().map(|(index, (weight, drained))| BackendSpec {
        server: format!("web{}", index + 1).parse().expect("a name"),
        target: target(index),
        score: score(index),
        weight: *weight,
        drained: *drained,
    });
    let service = ServiceSpec {
        external: EXTERNAL.parse().expect("an address"),
        cluster: "web".parse().expect("a name"),
        check: CheckKind::Http,
        backends: backends.collect(),
    };
    BalancerConfig {
        services: vec![service],
        internal_networks: BTreeSet::new(),
        probes: BTreeMap::new(),
        check: CheckSettings::default(),
        status: "status.json".into(),
    }
}

fn target(index: usize) -> SocketAddrV4 {
    format!("10.9.0.{}:80", 11 + index).parse().expect("an address")
}

fn score(index: usize) -> SocketAddrV4 {
    format!("10.9.0.{}:342", 11 + index).parse().expect("an address")
}

fn balancer(nodes: &[(u8, bool)]) -> Balancer {
    let mut balancer = Balancer::default();
    balancer.configure(&config(nodes));
    balancer
}

fn down() -> CheckResult {
    CheckResult::Unreachable("no answer within 1200 ms".into())
}

/// The turns as node numbers, from 1.
fn turns(balancer: &mut Balancer, now_ms: u64) -> Option<Vec<u8>> {
    let decision = balancer.decide(now_ms)?;
    let turns = decision.services.into_values().next().expect("one service");
    Some(turns.iter().map(|turn| turn.ip().octets()[3] - 10).collect())
}

fn check_twice(balancer: &mut Balancer, index: usize, result: CheckResult, now_ms: u64) {
    balancer.checked(target(index), result.clone(), now_ms);
    balancer.checked(target(index), result, now_ms);
}

#[test]
fn a_start_waits_for_a_verdict_on_every_node() {
    let mut balancer = balancer(&[(10, false), (10, false)]);
    assert_eq!(turns(&mut balancer, 0), None);
    balancer.checked(target(0), CheckResult::Passed, 1);
    assert_eq!(turns(&mut balancer, 1), None);
    balancer.checked(target(1), down(), 2);
    assert_eq!(turns(&mut balancer, 2), Some(vec![1]));
}

#[test]
fn weights_load_death_and_return() {
    let mut balancer = balancer(&[(30, false), (10, false)]);
    check_twice(&mut balancer, 0, CheckResult::Passed, 0);
    check_twice(&mut balancer, 1, CheckResult::Passed, 0);
    assert_eq!(turns(&mut balancer, 0), Some(vec![1, 1, 2, 1]));
    balancer.scored(score(0), 30, 1_000);
    assert_eq!(turns(&mut balancer, 1_000).map(|turns| turns.len()), Some(19), "30 × 30 % to 10 is 9:10");
    balancer.scored(score(0), 0, 2_000);
    assert_eq!(turns(&mut balancer, 2_000), Some(vec![2]));
    balancer.scored(score(1), 0, 2_000);
    assert_eq!(turns(&mut balancer, 2_000), Some(vec![1, 1, 2, 1]), "all are overloaded: the flag is ignored");
    check_twice(&mut balancer, 0, down(), 3_000);
    assert_eq!(turns(&mut balancer, 3_000), Some(vec![2]), "overloaded is better than dead");
    check_twice(&mut balancer, 1, down(), 4_000);
    assert_eq!(turns(&mut balancer, 4_000), Some(vec![2]), "all checks fail: the last choice stays");
    check_twice(&mut balancer, 0, CheckResult::Passed, 5_000);
    assert_eq!(turns(&mut balancer, 20_000), Some(vec![1]), "scores that are no longer served count as idle");
}

#[test]
fn events_tell_each_change_once() {
    let mut balancer = balancer(&[(10, false)]);
    let event = balancer.checked(target(0), CheckResult::Passed, 0).expect("the first verdict");
    assert_eq!((event.up, event.text.as_str()), (true, "web1 (10.9.0.11:80) is up"));
    assert_eq!(balancer.checked(target(0), down(), 0), None);
    let event = balancer.checked(target(0), down(), 0).expect("down");
    assert_eq!(event.text, "web1 (10.9.0.11:80) is down: no answer within 1200 ms");
    assert_eq!(balancer.checked(target(0), down(), 0), None);
    assert_eq!(balancer.checked(target(7), down(), 0), None, "a target that is no longer configured");
}

#[test]
fn drained_nodes_get_nothing_even_when_all_are_drained() {
    let mut balancer = balancer(&[(10, false), (10, false)]);
    check_twice(&mut balancer, 0, CheckResult::Passed, 0);
    check_twice(&mut balancer, 1, CheckResult::Passed, 0);
    balancer.decide(0);
    balancer.configure(&config(&[(10, true), (10, false)]));
    assert_eq!(turns(&mut balancer, 1), Some(vec![2]));
    balancer.configure(&config(&[(10, true), (10, true)]));
    assert_eq!(turns(&mut balancer, 2), Some(vec![]));
    assert!(balancer.reports(None).iter().all(|report| report.state == BackendState::Drained));
}

#[test]
fn a_node_that_joins_gets_its_turn_after_its_first_check() {
    let mut balancer = balancer(&[(10, false)]);
    balancer.checked(target(0), CheckResult::Passed, 0);
    assert_eq!(turns(&mut balancer, 0), Some(vec![1]));
    balancer.configure(&config(&[(10, false), (10, false)]));
    assert_eq!(turns(&mut balancer, 1), Some(vec![1]), "others serve on while it is unknown");
    balancer.checked(target(1), CheckResult::Passed, 2);
    assert_eq!(turns(&mut balancer, 2), Some(vec![1, 2]));
}

#[test]
fn flows_of_a_lost_node_are_ended_once_and_those_of_a_refusing_one_are_not() {
    let mut balancer = balancer(&[(10, false), (10, false), (10, false)]);
    for index in 0..3 {
        balancer.checked(target(index), CheckResult::Passed, 0);
    }
    check_twice(&mut balancer, 0, down(), 1_000);
    check_twice(&mut balancer, 1, CheckResult::Refused("the share is absent".into()), 1_000);
    balancer.decide(1_000);
    assert_eq!(balancer.flows_to_end(5_999), []);
    let ended = balancer.flows_to_end(6_000);
    assert_eq!(ended, [FlowsToEnd { external: EXTERNAL.parse().expect("an address"), target: target(0) }]);
    assert_eq!(balancer.flows_to_end(60_000), []);
}

#[test]
fn attempts_to_reach_a_lost_node_are_ended_from_its_loss_until_its_flows_are() {
    let mut balancer = balancer(&[(10, false), (10, false), (10, false)]);
    for index in 0..3 {
        balancer.checked(target(index), CheckResult::Passed, 0);
    }
    balancer.decide(0);
    assert_eq!(balancer.attempts_to_end(), []);
    check_twice(&mut balancer, 0, down(), 1_000);
    check_twice(&mut balancer, 1, CheckResult::Refused("the share is absent".into()), 1_000);
    assert_eq!(balancer.attempts_to_end(), [], "the kernel still sends connections there");
    balancer.decide(1_000);
    let lost = FlowsToEnd { external: EXTERNAL.parse().expect("an address"), target: target(0) };
    assert_eq!(balancer.attempts_to_end(), [lost]);
    assert_eq!(balancer.flows_to_end(6_000), [lost]);
    assert_eq!(balancer.attempts_to_end(), []);
}

#[test]
fn reports_say_state_share_and_flows() {
    let mut balancer = balancer(&[(10, false), (10, false)]);
    balancer.checked(target(0), CheckResult::Passed, 0);
    balancer.checked(target(1), CheckResult::Refused("guard: the share hangs".into()), 0);
    balancer.decide(0);
    let external: SocketAddrV4 = EXTERNAL.parse().expect("an address");
    let reports = balancer.reports(Some(&BTreeMap::from([((external, target(0)), 7)])));
    assert_eq!((reports[0].state, reports[0].share_percent, reports[0].flows), (BackendState::Up, 100.0, Some(7)));
    assert_eq!((reports[1].state, reports[1].why.as_str()), (BackendState::Down, "guard: the share hangs"));
    assert_eq!(reports[1].flows, Some(0));
}

#[derive(Debug, Clone)]
enum Step {
    Check(usize, bool),
    Score(usize, u8),
    Drain(usize, bool),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0usize..4, any::<bool>()).prop_map(|(node, passed)| Step::Check(node, passed)),
        (0usize..4, 0u8..=100).prop_map(|(node, percent)| Step::Score(node, percent)),
        (0usize..4, any::<bool>()).prop_map(|(node, drained)| Step::Drain(node, drained)),
        (0u64..3_000).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever happens: no turn for a drained node; none for one that is down or overloaded while another could take it; and a
    /// turn for somebody as long as anyone is offered.
    #[test]
    fn the_choice_is_always_sound(steps in prop::collection::vec(step(), 1..120)) {
        let mut nodes = [(10u8, false); 4];
        let mut balancer = balancer(&nodes);
        let mut now = 0;
        for step in steps {
            match step {
                Step::Check(node, passed) => {
                    balancer.checked(target(node), if passed { CheckResult::Passed } else { down() }, now);
                }
                Step::Score(node, percent) => balancer.scored(score(node), percent, now),
                Step::Drain(node, drained) => {
                    nodes[node].1 = drained;
                    balancer.configure(&config(&nodes));
                }
                Step::Wait(ms) => now += ms,
            }
            let Some(chosen) = turns(&mut balancer, now) else { continue };
            let reports = balancer.reports(None);
            let states: Vec<BackendState> = reports.iter().map(|report| report.state).collect();
            let has = |state| states.contains(&state);
            for turn in &chosen {
                let state = states[usize::from(*turn) - 1];
                prop_assert_ne!(state, BackendState::Drained);
                prop_assert!(state != BackendState::Down || !(has(BackendState::Up) || has(BackendState::Overloaded)));
                prop_assert!(state != BackendState::Overloaded || !has(BackendState::Up));
            }
            prop_assert_eq!(chosen.is_empty(), nodes.iter().all(|(_, drained)| *drained));
            let sum: f32 = reports.iter().map(|report| report.share_percent).sum();
            prop_assert!(chosen.is_empty() || (sum - 100.0).abs() < 0.01);
        }
    }
}

#[test]
fn who_takes_mail_sends_as_the_same_address_up_or_down() {
    let mut config = config(&[(10, false), (10, true)]);
    let mut balancer = Balancer::default();
    balancer.configure(&config);
    balancer.checked(target(0), CheckResult::Passed, 0);
    let decision = balancer.decide(0).expect("decided");
    assert_eq!(decision.outgoing, BTreeMap::new(), "web nodes are not translated");
    config.services[0].check = CheckKind::Mail(MailProtocol::Smtp);
    let mut other = config.services[0].clone();
    other.external = "192.0.2.9:25".parse().expect("an address");
    config.services.push(other);
    balancer.configure(&config);
    assert_eq!(balancer.targets().next(), Some((target(0), CheckKind::Mail(MailProtocol::Smtp))));
    check_twice(&mut balancer, 0, down(), 1);
    let decision = balancer.decide(1).expect("decided");
    let external: Ipv4Addr = "192.0.2.1".parse().expect("an address");
    assert_eq!(decision.outgoing, BTreeMap::from([(*target(0).ip(), external), (*target(1).ip(), external)]));
}

/// Two nodes with IMAP in TLS, and a probe mailbox.
fn mail_config() -> BalancerConfig {
    let mut config = config(&[(10, false), (10, false)]);
    config.services[0].check = CheckKind::Mail(MailProtocol::Imaps);
    let probe = Probe { password: "00ff".into(), certificate_pem: "a certificate".into() };
    config.probes.insert("web".parse().expect("a name"), probe);
    config
}

#[test]
fn who_answers_and_lets_nobody_in_gets_nothing_new_and_keeps_its_flows() {
    let mut balancer = Balancer::default();
    balancer.configure(&mail_config());
    assert_eq!(
        balancer.logins().map(|(target, protocol, _)| (target, protocol)).next(),
        Some((target(0), MailProtocol::Imaps))
    );
    check_twice(&mut balancer, 0, CheckResult::Passed, 0);
    check_twice(&mut balancer, 1, CheckResult::Passed, 0);
    assert_eq!(turns(&mut balancer, 0), Some(vec![1, 2]), "nobody waits for the first login");
    let refused = || CheckResult::Refused("IMAP answer to LOGIN was b NO [UNAVAILABLE]".into());
    assert_eq!(balancer.logged_in(target(1), CheckResult::Passed, 0), None);
    assert_eq!(balancer.logged_in(target(1), refused(), 1), None, "one failure says little");
    let event = balancer.logged_in(target(1), refused(), 2).expect("an event");
    assert_eq!(event.text, "web2 (10.9.0.12:80) is down: IMAP answer to LOGIN was b NO [UNAVAILABLE]");
    assert_eq!(turns(&mut balancer, 3), Some(vec![1]));
    assert_eq!(balancer.checked(target(1), CheckResult::Passed, 4), None, "its checks speak of something else");
    assert_eq!((turns(&mut balancer, 4), balancer.reports(None)[1].state), (Some(vec![1]), BackendState::Down));
    assert_eq!(balancer.flows_to_end(60_000), []);
    // Nor when nothing comes of a login in time: it answers its checks.
    let event = balancer.logged_in(target(1), down(), 5);
    assert_eq!((event, balancer.attempts_to_end()), (None, vec![]));
    // No answer at all is told, and is stronger.
    balancer.checked(target(1), down(), 6);
    let event = balancer.checked(target(1), down(), 7).expect("an event");
    assert!(event.text.ends_with("no answer within 1200 ms") && balancer.attempts_to_end().len() == 1, "{event:?}");
    check_twice(&mut balancer, 1, CheckResult::Passed, 8);
    assert_eq!(balancer.logged_in(target(1), CheckResult::Passed, 9), None);
    assert!(balancer.logged_in(target(1), CheckResult::Passed, 10).is_some_and(|event| event.up));
    assert_eq!(turns(&mut balancer, 11), Some(vec![1, 2]));
}

#[test]
fn where_nobody_lets_anybody_in_the_last_choice_stays() {
    let mut balancer = Balancer::default();
    balancer.configure(&mail_config());
    for index in [0, 1] {
        check_twice(&mut balancer, index, CheckResult::Passed, 0);
    }
    assert_eq!(turns(&mut balancer, 0), Some(vec![1, 2]));
    let all_refuse = |balancer: &mut Balancer, now_ms| {
        for index in [0, 1, 0, 1] {
            balancer.logged_in(target(index), CheckResult::Refused("no".into()), now_ms);
        }
    };
    // At the beginning the mailbox may not be there yet; for a minute nothing is said of it.
    all_refuse(&mut balancer, 1);
    all_refuse(&mut balancer, 60_000);
    assert!(balancer.reports(None).iter().all(|report| report.state == BackendState::Up));
    all_refuse(&mut balancer, 60_001);
    assert_eq!(turns(&mut balancer, 60_001), Some(vec![1, 2]));
    assert!(balancer.reports(None).iter().all(|report| report.state == BackendState::Down && report.why == "no"));
    // The mailbox has moved, and has another password: it begins anew.
    let mut moved = mail_config();
    moved.probes.values_mut().for_each(|probe| probe.password = "11".into());
    balancer.configure(&moved);
    assert!(balancer.reports(None).iter().all(|report| report.state == BackendState::Up));
    all_refuse(&mut balancer, 60_002);
    assert!(balancer.reports(None).iter().all(|report| report.state == BackendState::Up));
    all_refuse(&mut balancer, 200_000);
    // Without a probe mailbox nothing is known of logins.
    balancer.configure(&BalancerConfig { probes: BTreeMap::new(), ..mail_config() });
    assert!(balancer.reports(None).iter().all(|report| report.state == BackendState::Up));
    assert_eq!(balancer.logins().count(), 0);
}

//! Each rule refused by name, and a property: whatever is tried, the fleet keeps its invariants.

use super::*;
use crate::cluster::MailService;
use crate::share::Marker;
use crate::{Grant, ShareKind};
use proptest::prelude::*;

fn name(text: &str) -> Name {
    text.parse().expect("a valid name")
}

fn server(text: &str, kind: ClusterKind, last: u8) -> Server {
    Server::new(name(text), kind, format!("10.9.0.{last}/24").parse().expect("an address"))
}

fn cluster(text: &str, kind: ClusterKind, master: &str) -> Cluster {
    let mail = (kind == ClusterKind::Mail)
        .then(|| MailService { host_name: "mail.example.net".parse().expect("a host name") });
    Cluster { mail, ..Cluster::new(name(text), kind, name(master)) }
}

fn address(port: u16) -> ExternalAddress {
    ExternalAddress {
        external: format!("198.51.100.10:{port}").parse().expect("an address"),
        balancer: name("lb"),
        cluster: name("web"),
        port: 80,
        internal: BTreeMap::new(),
    }
}

/// Figure 1: a balancer, two web nodes and a NAS.
fn figure_1() -> Fleet {
    let mut fleet = Fleet::default();
    for server in [
        server("lb1", ClusterKind::Balancer, 1),
        server("web1", ClusterKind::Web, 11),
        server("web2", ClusterKind::Web, 12),
        server("nas1", ClusterKind::Nas, 20),
        server("mail1", ClusterKind::Mail, 31),
    ] {
        fleet.apply(FleetChange::AddServer { server }).expect("a new server");
    }
    for cluster in [cluster("lb", ClusterKind::Balancer, "lb1"), cluster("nas", ClusterKind::Nas, "nas1")] {
        fleet.apply(FleetChange::AddCluster { cluster }).expect("a new cluster");
    }
    let share = Share {
        name: name("content"),
        kind: ShareKind::Local,
        nas: Some(name("nas")),
        path: "/srv/nas/web".parse().expect("a path"),
        marker: Marker::from_bits(7),
    };
    fleet.apply(FleetChange::AddShare { share }).expect("a new share");
    let web = Cluster { share: Some(name("content")), ..cluster("web", ClusterKind::Web, "web1") };
    fleet.apply(FleetChange::AddCluster { cluster: web }).expect("a new cluster");
    let slave = FleetChange::AddSlave { cluster: name("web"), server: name("web2"), settings: NodeSettings::default() };
    fleet.apply(slave).expect("a new slave");
    fleet.apply(FleetChange::AddAddress { address: address(80) }).expect("a new address");
    fleet
        .apply(FleetChange::AddLogicalServer { name: name("www"), server: name("web1") })
        .expect("a new logical server");
    fleet
}

#[track_caller]
fn refused(change: FleetChange, rule: Rule) {
    let mut fleet = figure_1();
    let refusal = fleet.apply(change).expect_err("the change breaks a rule");
    assert_eq!(refusal.rule, rule, "{refusal}");
    assert!(!refusal.hint.is_empty());
    assert_eq!(fleet, figure_1(), "a refused change changes nothing");
}

#[test]
fn a_slave_holds_no_logical_server() {
    refused(FleetChange::AddLogicalServer { name: name("w2"), server: name("web2") }, Rule::SlaveHoldsNoLogicalServer);
}

#[test]
fn a_slave_shares_its_masters_kind() {
    let change =
        FleetChange::AddSlave { cluster: name("web"), server: name("mail1"), settings: NodeSettings::default() };
    refused(change, Rule::SlaveSharesMastersKind);
}

#[test]
fn a_master_with_slaves_stays() {
    refused(FleetChange::RemoveServer { name: name("web1") }, Rule::MasterWithSlavesStays);
    refused(FleetChange::RemoveCluster { name: name("web") }, Rule::MasterWithSlavesStays);
    refused(FleetChange::RemoveSlave { cluster: name("web"), server: name("web1") }, Rule::MasterWithSlavesStays);
}

#[test]
fn what_is_in_use_stays() {
    refused(FleetChange::RemoveServer { name: name("web2") }, Rule::InUseIsNotRemoved);
    refused(FleetChange::RemoveShare { name: name("content") }, Rule::InUseIsNotRemoved);
    let path = || "/srv/nas/other".parse().expect("a path");
    let moved = FleetChange::MoveShare { name: name("content"), nas: Some(name("nas")), path: path() };
    refused(moved, Rule::InUseIsNotRemoved);
    refused(FleetChange::RemoveCluster { name: name("lb") }, Rule::InUseIsNotRemoved);
    refused(FleetChange::RemoveCluster { name: name("nas") }, Rule::InUseIsNotRemoved);
    refused(FleetChange::RemoveLogicalServer { name: name("www"), accounts: 3 }, Rule::InUseIsNotRemoved);
}

#[test]
fn an_external_address_has_one_user() {
    refused(FleetChange::AddAddress { address: address(80) }, Rule::ExternalAddressHasOneUser);
}

#[test]
fn addresses_map_to_nodes_that_have_them() {
    let with = |server: &str, ip: &str| ExternalAddress {
        internal: BTreeMap::from([(name(server), ip.parse().expect("an address"))]),
        ..address(8080)
    };
    refused(FleetChange::AddAddress { address: with("nas1", "10.9.0.99") }, Rule::ReferenceExists);
    refused(FleetChange::AddAddress { address: with("web1", "10.9.0.12") }, Rule::InternalAddressHasOneServer);
    refused(FleetChange::AddAddress { address: with("web1", "127.0.0.1") }, Rule::ValueInRange);
    refused(
        FleetChange::AddAddress { address: ExternalAddress { balancer: name("web"), ..address(81) } },
        Rule::KindsFit,
    );
    refused(
        FleetChange::AddAddress { address: ExternalAddress { cluster: name("nas"), ..address(81) } },
        Rule::KindsFit,
    );
}

#[test]
fn names_and_memberships_are_unique() {
    refused(FleetChange::AddServer { server: server("web1", ClusterKind::Web, 99) }, Rule::NameIsUnique);
    refused(FleetChange::AddServer { server: server("web9", ClusterKind::Web, 11) }, Rule::InternalAddressHasOneServer);
    refused(
        FleetChange::AddCluster { cluster: cluster("web-b", ClusterKind::Web, "web2") },
        Rule::ServerBelongsToOneCluster,
    );
    refused(FleetChange::AddCluster { cluster: cluster("mail", ClusterKind::Web, "mail1") }, Rule::KindsFit);
}

#[test]
fn directives_together_have_a_bound() {
    let with = |lines: usize| FleetChange::ChangeCluster {
        cluster: Cluster {
            httpd_directives: vec!["# ".repeat(500); lines],
            ..figure_1().clusters[&name("web")].clone()
        },
    };
    let lines_max = Cluster::DIRECTIVES_LEN_MAX / 1_001;
    figure_1().apply(with(lines_max)).expect("as many as are allowed");
    refused(with(lines_max + 1), Rule::ValueInRange);
}

#[test]
fn removing_in_order_empties_the_fleet() {
    let mut fleet = figure_1();
    for change in [
        FleetChange::RemoveLogicalServer { name: name("www"), accounts: 0 },
        FleetChange::RemoveAddress { external: address(80).external },
        FleetChange::RemoveSlave { cluster: name("web"), server: name("web2") },
        FleetChange::RemoveCluster { name: name("web") },
        FleetChange::RemoveShare { name: name("content") },
        FleetChange::RemoveCluster { name: name("nas") },
        FleetChange::RemoveCluster { name: name("lb") },
    ] {
        fleet.apply(change).expect("nothing uses it any more");
    }
    for server in ["lb1", "web1", "web2", "nas1", "mail1"] {
        fleet.apply(FleetChange::RemoveServer { name: name(server) }).expect("nothing uses it any more");
    }
    assert_eq!(fleet, Fleet::default());
}

/// What holds in every fleet, stated apart from the code that keeps it.
fn check_invariants(fleet: &Fleet) {
    for cluster in fleet.clusters.values() {
        for (node, _, _) in cluster.nodes() {
            assert_eq!(fleet.servers[node].kind, cluster.kind, "{node} in {}", cluster.name);
            assert_eq!(
                fleet.clusters.values().filter(|c| c.role_of(node).is_some()).count(),
                1,
                "{node} is in one cluster"
            );
        }
        assert!(!cluster.slaves.contains_key(&cluster.master), "a master is no slave of its own");
        assert!(cluster.share.as_ref().is_none_or(|share| fleet.shares.contains_key(share)));
    }
    for address in fleet.addresses.values() {
        assert_eq!(fleet.clusters[&address.balancer].kind, ClusterKind::Balancer);
        let cluster = &fleet.clusters[&address.cluster];
        assert!(address.internal.keys().all(|server| cluster.role_of(server).is_some()));
    }
    for logical in fleet.logical_servers.values() {
        assert_eq!(fleet.clusters[&logical.cluster].kind, logical.kind);
    }
    for share in fleet.shares.values() {
        assert!(share.nas.as_ref().is_none_or(|nas| fleet.clusters[nas].kind == ClusterKind::Nas));
    }
    let mut addresses: Vec<_> = fleet.servers.values().map(|s| s.address.ip).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), fleet.servers.len(), "internal addresses are unique");
}

fn any_kind() -> impl Strategy<Value = ClusterKind> {
    prop_oneof![Just(ClusterKind::Web), Just(ClusterKind::Mail), Just(ClusterKind::Nas), Just(ClusterKind::Balancer)]
}

fn any_name() -> impl Strategy<Value = Name> {
    "[a-e]".prop_map(|text| name(&text))
}

fn any_change() -> impl Strategy<Value = FleetChange> {
    let share = (any_name(), proptest::option::of(any_name()), any::<u8>()).prop_map(|(share, nas, path)| Share {
        name: share,
        kind: if nas.is_some() { ShareKind::NfsManaged } else { ShareKind::Local },
        nas,
        path: format!("/srv/nas/{path}").parse().expect("a path"),
        marker: Marker::from_bits(1),
    });
    let address = (any_name(), any_name(), 80u16..83, proptest::collection::btree_map(any_name(), 1u8..9, 0..2))
        .prop_map(|(balancer, cluster, port, internal)| ExternalAddress {
            balancer,
            cluster,
            internal: internal
                .into_iter()
                .map(|(s, last)| (s, format!("10.9.0.{last}").parse().expect("an address")))
                .collect(),
            ..address(port)
        });
    prop_oneof![
        4 => (any_name(), any_kind(), 1u8..9).prop_map(|(n, k, a)| FleetChange::AddServer { server: server(n.as_str(), k, a) }),
        1 => (any_name(), any_kind(), 1u8..9).prop_map(|(n, k, a)| FleetChange::ChangeServer { server: server(n.as_str(), k, a) }),
        1 => any_name().prop_map(|name| FleetChange::RemoveServer { name }),
        4 => (any_name(), any_kind(), any_name(), proptest::option::of(any_name())).prop_map(|(n, k, m, share)| {
            FleetChange::AddCluster { cluster: Cluster { share, ..cluster(n.as_str(), k, m.as_str()) } }
        }),
        1 => any_name().prop_map(|name| FleetChange::RemoveCluster { name }),
        3 => (any_name(), any_name()).prop_map(|(cluster, server)| {
            FleetChange::AddSlave { cluster, server, settings: NodeSettings::default() }
        }),
        1 => (any_name(), any_name()).prop_map(|(cluster, server)| FleetChange::RemoveSlave { cluster, server }),
        2 => share.prop_map(|share| FleetChange::AddShare { share }),
        1 => any_name().prop_map(|name| FleetChange::RemoveShare { name }),
        1 => (any_name(), proptest::option::of(any_name()))
            .prop_map(|(name, nas)| FleetChange::MoveShare { name, nas, path: "/srv/moved".parse().expect("a path") }),
        2 => address.prop_map(|address| FleetChange::AddAddress { address }),
        2 => (any_name(), any_name()).prop_map(|(name, server)| FleetChange::AddLogicalServer { name, server }),
        1 => any_name().prop_map(|name| FleetChange::RemoveLogicalServer { name, accounts: 0 }),
    ]
}

proptest! {
    #[test]
    fn whatever_is_tried_the_invariants_hold(changes in proptest::collection::vec(any_change(), 1..60)) {
        let mut fleet = Fleet::default();
        for change in changes {
            let before = fleet.clone();
            if fleet.apply(change).is_err() {
                prop_assert_eq!(&fleet, &before, "a refused change changes nothing");
            }
            check_invariants(&fleet);
        }
    }
}

/// Figure 1 with a mail cluster of two.
fn with_mail() -> Fleet {
    let mut fleet = figure_1();
    let mail = Cluster { share: Some(name("content")), ..cluster("mail", ClusterKind::Mail, "mail1") };
    fleet.apply(FleetChange::AddCluster { cluster: mail }).expect("a new cluster");
    fleet.apply(FleetChange::AddServer { server: server("mail2", ClusterKind::Mail, 32) }).expect("a new server");
    let slave =
        FleetChange::AddSlave { cluster: name("mail"), server: name("mail2"), settings: NodeSettings::default() };
    fleet.apply(slave).expect("a new slave");
    fleet
}

fn ask(to: &str) -> FleetChange {
    FleetChange::AskGrant { cluster: name("mail"), right: Right::Mailboxes, to: name(to) }
}

fn pass(number: u64) -> FleetChange {
    FleetChange::PassGrant { cluster: name("mail"), right: Right::Mailboxes, number, proof: Proof::Released }
}

#[test]
fn mailboxes_move_by_proof_and_queues_belong_to_who_filled_them() {
    let mut fleet = with_mail();
    let grants = |fleet: &Fleet| fleet.clusters["mail"].grants.clone();
    assert_eq!(grants(&fleet)[&Right::Mailboxes], Grant::first(name("mail1")));
    assert_eq!(grants(&fleet)[&Right::Queue(name("mail2"))], Grant::first(name("mail2")));
    assert_eq!(fleet.apply(pass(1)).expect_err("nobody asked").rule, Rule::GrantMovesByProof);
    fleet.apply(ask("mail2")).expect("asked");
    assert_eq!(fleet.apply(pass(7)).expect_err("another number").rule, Rule::GrantMovesByProof);
    let leave = FleetChange::RemoveSlave { cluster: name("mail"), server: name("mail2") };
    assert_eq!(fleet.apply(leave.clone()).expect_err("it gets the mailboxes").rule, Rule::InUseIsNotRemoved);
    fleet.apply(pass(1)).expect("released");
    assert!(
        grants(&fleet)[&Right::Mailboxes].is_usable_by(&name("mail2")) && grants(&fleet)[&Right::Mailboxes].number == 2
    );
    assert_eq!(fleet.apply(leave.clone()).expect_err("it has the mailboxes").rule, Rule::InUseIsNotRemoved);
    fleet.apply(ask("mail1")).expect("asked");
    fleet.apply(pass(2)).expect("released");
    let refused = fleet.apply(leave.clone()).expect_err("its queue may hold mail");
    assert!(refused.hint.contains("phalanx queue adopt mail2"), "{refused:?}");
    fleet.apply(ask_queue("mail1")).expect("asked");
    fleet.apply(pass_queue(1, Proof::Released)).expect("released");
    fleet.apply(leave).expect("nothing holds it");
    let back =
        FleetChange::AddSlave { cluster: name("mail"), server: name("mail2"), settings: NodeSettings::default() };
    fleet.apply(back).expect("it comes back");
    let queue = grants(&fleet)[&Right::Queue(name("mail2"))].clone();
    assert!(
        queue.holder == name("mail1") && queue.moving_to == Some(name("mail2")),
        "it comes back by a release: {queue:?}"
    );
    assert_eq!(fleet.apply(ask("web1")).expect_err("no node").rule, Rule::ReferenceExists);
}

fn ask_queue(to: &str) -> FleetChange {
    FleetChange::AskGrant { cluster: name("mail"), right: Right::Queue(name("mail2")), to: name(to) }
}

fn pass_queue(number: u64, proof: Proof) -> FleetChange {
    FleetChange::PassGrant { cluster: name("mail"), right: Right::Queue(name("mail2")), number, proof }
}

#[test]
fn what_a_fenced_server_had_moves_and_comes_home_when_it_is_back() {
    let mut fleet = with_mail();
    let queue = |fleet: &Fleet| fleet.clusters["mail"].grants[&Right::Queue(name("mail2"))].clone();
    let fence = FleetChange::Fence { server: name("mail2") };
    fleet.apply(ask_queue("mail1")).expect("asked");
    assert_eq!(fleet.apply(fence.clone()).expect_err("it was not begun").rule, Rule::GrantMovesByProof);
    fleet.apply(FleetChange::BeginFence { server: name("mail2"), boot: None }).expect("begun");
    let refused = fleet.apply(pass_queue(1, Proof::Fenced)).expect_err("nobody has seen it off");
    assert!(refused.rule == Rule::GrantMovesByProof && refused.hint.contains("server fence mail2"), "{refused:?}");
    // A fence that failed: what it has it may use again, under a number that is later than what was told meanwhile.
    fleet.apply(FleetChange::Unfence { server: name("mail2") }).expect("taken back");
    assert!(queue(&fleet).number == 2 && queue(&fleet).holder == name("mail2"));
    fleet.apply(FleetChange::BeginFence { server: name("mail2"), boot: None }).expect("begun");
    fleet.apply(fence).expect("fenced");
    fleet.apply(pass_queue(2, Proof::Fenced)).expect("it moves");
    assert!(queue(&fleet).is_usable_by(&name("mail1")) && queue(&fleet).number == 3);
    for ask in [ask("mail2"), ask_queue("mail2")] {
        assert_eq!(fleet.apply(ask).expect_err("it is fenced").rule, Rule::GrantMovesByProof);
    }
    // A change of the server does not end the fence.
    let server = Server { fenced: None, ..fleet.servers["mail2"].clone() };
    fleet.apply(FleetChange::ChangeServer { server }).expect("changed");
    assert!(fleet.servers["mail2"].fenced.is_some());
    fleet.apply(FleetChange::Unfence { server: name("mail2") }).expect("back");
    assert_eq!(queue(&fleet).moving_to, Some(name("mail2")), "mail1 lets go of it first");
    fleet.apply(pass_queue(3, Proof::Released)).expect("released");
    assert!(queue(&fleet).is_usable_by(&name("mail2")) && queue(&fleet).number == 4);
    assert!(fleet.apply(FleetChange::Unfence { server: name("nobody") }).is_err());
}

#[test]
fn a_mail_cluster_has_a_name_and_serves_mail() {
    let mut fleet = with_mail();
    let nameless = Cluster { mail: None, ..fleet.clusters["mail"].clone() };
    assert_eq!(
        fleet.apply(FleetChange::ChangeCluster { cluster: nameless }).expect_err("no name").rule,
        Rule::KindsFit
    );
    let web = Cluster { mail: fleet.clusters["mail"].mail.clone(), ..fleet.clusters["web"].clone() };
    assert_eq!(
        fleet.apply(FleetChange::ChangeCluster { cluster: web }).expect_err("no mail there").rule,
        Rule::KindsFit
    );
    let http = ExternalAddress { cluster: name("mail"), ..address(8080) };
    assert_eq!(
        fleet.apply(FleetChange::AddAddress { address: http }).expect_err("no port of mail").rule,
        Rule::KindsFit
    );
    let smtp = ExternalAddress { cluster: name("mail"), port: 25, ..address(25) };
    fleet.apply(FleetChange::AddAddress { address: smtp }).expect("SMTP");
}

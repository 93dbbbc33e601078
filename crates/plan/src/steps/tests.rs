//! Plans against a simple model of a host: what each step does to what is seen.

use super::network::SeenAddress;
use super::observed::{SeenGeneration, SeenMount, SeenShare, SeenUnit};
use super::shares::{MOUNTS, SEAL, source_text};
use super::*;
use crate::rights::{Held, KeptRight};
use crate::spec::{BalancerSpec, KeptShare, MountSource, NasSpec, NodeSpec, ServiceSpec, WebSpec, Work};
use generations::file_digests;
use phalanx_model::Right;
use phalanx_model::cluster::Role;
use phalanx_model::share::Marker;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

/// A host that does what it is told, and its agent's marks.
#[derive(Debug, Clone)]
struct Host {
    observed: Observed,
    marks: Marks,
}

impl Host {
    fn new() -> Self {
        let root = SeenMount {
            device: "8:1".into(),
            root: "/".into(),
            mount_point: "/".into(),
            fs_type: "ext4".into(),
            source: "/dev/vda1".into(),
            read_only: false,
        };
        let main = SeenAddress { device: "eth1".into(), ip: ip("10.9.0.11"), prefix_len: 24, ours: false };
        let observed =
            Observed { boot_id: "boot-1".into(), mounts: vec![root], addresses: vec![main], ..Observed::default() };
        Self { observed, marks: Marks::default() }
    }

    /// What can be seen with `desired` in mind.
    fn observe(&self, desired: &Desired) -> Observed {
        let mut observed = self.observed.clone();
        for share in &desired.kept_shares {
            observed.kept_shares.entry(share.share.clone()).or_insert(SeenShare::Unmarked);
        }
        observed.sysctls.retain(|key, _| desired.sysctls.contains_key(key));
        observed
    }

    fn plan(&self, desired: &Desired) -> Plan {
        plan(desired, &self.observe(desired), &self.marks)
    }

    /// Does a step; `is_marked` says whether the agent lives to write the mark.
    fn apply(&mut self, step: &Step, is_marked: bool) {
        self.change(step);
        if is_marked {
            self.marks.record(step);
            if let Step::LoadTable { .. } = step {
                self.marks.table = self.observed.table.clone();
            }
        }
    }

    fn change(&mut self, step: &Step) {
        let seen = &mut self.observed;
        match step {
            Step::KeepShare(share) => {
                seen.kept_shares.insert(share.share.clone(), SeenShare::Marked(share.marker.as_str().into()));
            }
            Step::TellRights { path, rights } => {
                let share = path.as_str().rsplit('/').next().expect("a last part").parse().expect("a name");
                seen.rights.insert(share, rights.iter().map(|kept| kept.held.clone()).collect());
            }
            Step::BindQueue { directory } => {
                seen.mounts.push(mounted("8:1", directory, directory, "ext4", "/dev/vda1", false));
            }
            Step::Unmount { mount_point } => {
                if let Some(at) = seen.mounts.iter().rposition(|mount| mount.mount_point == *mount_point) {
                    seen.mounts.remove(at);
                }
            }
            Step::SealMountPoint { mount_point } => {
                seen.mounts.push(mounted("0:50", "/", mount_point, "tmpfs", SEAL, true))
            }
            Step::Mount(spec) => {
                let (at, source) = (spec.mount_point(), source_text(&spec.source));
                seen.mounts.push(match &spec.source {
                    MountSource::Local(path) => mounted("8:1", path.as_str(), &at, "ext4", "/dev/vda1", false),
                    MountSource::Nfs { .. } => mounted("0:60", "/", &at, "nfs4", &source, false),
                });
            }
            Step::RemoveMount { mount_point } => seen.mounts.retain(|mount| mount.mount_point != *mount_point),
            Step::SetSysctl { key, value } => {
                seen.sysctls.insert(key.clone(), value.clone());
            }
            Step::AddAddress { address, device } => seen.addresses.push(SeenAddress {
                device: device.clone(),
                ip: address.ip,
                prefix_len: address.prefix_len,
                ours: true,
            }),
            Step::RemoveAddress { address, .. } => seen.addresses.retain(|seen| seen.ip != address.ip),
            Step::SetRoute(Route { table, via }) => {
                seen.tables.insert(*table, *via);
            }
            Step::RemoveRoute(Route { table, .. }) => {
                seen.tables.remove(table);
            }
            Step::AddRule(rule) => {
                seen.rules.insert(*rule);
            }
            Step::RemoveRule(rule) => {
                seen.rules.remove(rule);
            }
            Step::Stage { generation, files } => {
                seen.generations.insert(*generation, SeenGeneration { files: file_digests(files), intact: true });
            }
            Step::Switch { generation } => {
                assert!(seen.generations.contains_key(generation), "only what is there can be switched to");
                seen.live = Some(*generation);
            }
            Step::RemoveGeneration { generation } => {
                assert_ne!(seen.live, Some(*generation), "the live generation is never removed");
                seen.generations.remove(generation);
            }
            Step::Link { at, to } => {
                seen.links.insert(at.clone(), to.clone());
            }
            Step::Unlink { at } => {
                seen.links.remove(at);
            }
            Step::LoadTable { .. } => seen.table = Some("table inet phalanx_accounts".into()),
            Step::RemoveTable => seen.table = None,
            Step::RemoveTranslation => seen.translates = false,
            Step::Start { unit, .. } => {
                assert!(seen.live.is_some(), "a unit is started when its files are live");
                seen.units.insert(*unit, SeenUnit { active: true, enabled: true, ..SeenUnit::default() });
                seen.translates |= *unit == Unit::Balancer;
            }
            Step::Stop { unit } => {
                seen.units.insert(*unit, SeenUnit::default());
            }
            Step::EndAccounts => seen.accounts_awake = 0,
            Step::Validate { .. }
            | Step::Export { .. }
            | Step::Reload { .. }
            | Step::ReloadAccounts { .. }
            | Step::Verify { .. }
            | Step::Unexport => {}
        }
    }

    /// Plans and applies until nothing is left; panics when that takes too long.
    fn converge(&mut self, desired: &Desired) {
        for _ in 0..4 {
            let plan = self.plan(desired);
            if plan.steps.is_empty() {
                assert_eq!(plan.waiting, Vec::<String>::new());
                let observed = self.observe(desired);
                self.marks.settle(desired, &observed);
                return;
            }
            plan.steps.iter().for_each(|step| self.apply(step, true));
        }
        panic!("no end: {:#?}", self.plan(desired).steps);
    }
}

fn mounted(device: &str, root: &str, at: &str, fs_type: &str, source: &str, read_only: bool) -> SeenMount {
    let [device, root, mount_point, fs_type, source] = [device, root, at, fs_type, source].map(str::to_owned);
    SeenMount { device, root, mount_point, fs_type, source, read_only }
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().expect("an address")
}

fn share_mount(share: &str, source: MountSource, keeps_homes: bool) -> MountSpec {
    MountSpec { share: share.parse().expect("a name"), queue_of: None, marker: marker(share), source, keeps_homes }
}

fn kept_right(holder: &str, number: u64) -> KeptRight {
    let name = |text: &str| text.parse().expect("a name");
    let held = Held {
        cluster: name("mail"),
        right: Right::Queue(name("mail1")),
        holder: name(holder),
        number,
        is_void: false,
    };
    KeptRight { held, address: Some(ip("10.9.0.41")) }
}

fn marker(share: &str) -> Marker {
    Marker::from_bits(share.bytes().fold(7, |bits, byte| bits * 31 + u128::from(byte)))
}

fn node(work: Work) -> NodeSpec {
    NodeSpec {
        server: "web1".parse().expect("a name"),
        role: Role::Master,
        address: "10.9.0.11/24".parse().expect("an address"),
        certificate: None,
        peers: BTreeMap::new(),
        work,
    }
}

fn web(share: Option<MountSpec>) -> WebSpec {
    WebSpec {
        share,
        listen: BTreeSet::from(["10.9.0.11:80".parse().expect("a place")]),
        extra_addresses: BTreeSet::new(),
        reply_routes: BTreeMap::new(),
        balancers: BTreeSet::new(),
        httpd_directives: vec![],
        logs: Default::default(),
    }
}

fn local(path: &str) -> MountSource {
    MountSource::Local(path.parse().expect("a path"))
}

fn nfs(server: &str) -> MountSource {
    MountSource::Nfs { server: ip(server), path: "/srv/nas/web".parse().expect("a path") }
}

fn figure_1_web() -> Desired {
    let mut spec = web(Some(share_mount("content", local("/srv/nas/web"), false)));
    spec.extra_addresses.insert("10.9.0.51/24".parse().expect("an address"));
    spec.reply_routes.insert(ip("10.9.0.51"), ip("10.9.0.2"));
    Desired::of(Some(&node(Work::Web(spec))))
}

fn balancer(externals: impl Iterator<Item = Ipv4Addr>) -> BalancerSpec {
    let service = |ip| ServiceSpec {
        external: SocketAddrV4::new(ip, 80),
        cluster: "web".parse().expect("a name"),
        check: crate::spec::CheckKind::Http,
        backends: vec![],
    };
    BalancerSpec {
        services: externals.map(service).collect(),
        internal_networks: BTreeSet::new(),
        probes: BTreeMap::new(),
    }
}

fn arbitrary_spec() -> impl Strategy<Value = Option<NodeSpec>> {
    let source = prop_oneof![
        Just(local("/srv/nas/web")),
        Just(local("/srv/other")),
        Just(nfs("10.9.0.31")),
        Just(nfs("10.9.0.32"))
    ];
    let mount = (prop_oneof![Just("content"), Just("more")], source, any::<bool>())
        .prop_map(|(share, source, keeps_homes)| share_mount(share, source, keeps_homes));
    let addresses = proptest::collection::btree_map(50_u8..54, 2_u8..5, 0..3);
    let web = (proptest::option::of(mount), addresses, proptest::collection::vec("[a-z]{1,8} on", 0..2)).prop_map(
        |(share, addresses, httpd_directives)| {
            let mut spec = WebSpec { httpd_directives, ..web(share) };
            for (own, balancer) in addresses {
                let own = Ipv4Addr::new(10, 9, 0, own);
                spec.extra_addresses.insert(format!("{own}/24").parse().expect("an address"));
                spec.reply_routes.insert(own, Ipv4Addr::new(10, 9, 0, balancer));
            }
            Work::Web(spec)
        },
    );
    let nas = proptest::collection::btree_map(prop_oneof![Just("content"), Just("more")], any::<bool>(), 0..3)
        .prop_map(|shares| {
            let keep = |(share, over_nfs): (&str, bool)| KeptShare {
                share: share.parse().expect("a name"),
                marker: marker(share),
                path: format!("/srv/nas/{share}").parse().expect("a path"),
                rights: vec![kept_right("mail1", 1)],
                nfs_clients: if over_nfs { BTreeSet::from([ip("10.9.0.11")]) } else { BTreeSet::new() },
            };
            Work::Nas(NasSpec { shares: shares.into_iter().map(keep).collect() })
        });
    let balancer = proptest::collection::btree_set(10_u8..13, 0..3)
        .prop_map(|externals| Work::Balancer(balancer(externals.into_iter().map(|n| Ipv4Addr::new(198, 51, 100, n)))));
    proptest::option::weighted(
        0.85,
        prop_oneof![4 => web, 1 => nas, 1 => balancer, 1 => Just(Work::Mail(None))].prop_map(node),
    )
}

proptest! {
    /// Idempotence: planning on the state that a plan leads to gives nothing, through any sequence of specs.
    #[test]
    fn what_was_applied_needs_nothing_more(specs in proptest::collection::vec(arbitrary_spec(), 1..5)) {
        let mut host = Host::new();
        for spec in &specs {
            let desired = Desired::of(spec.as_ref());
            host.plan(&desired).steps.iter().for_each(|step| host.apply(step, true));
            let again = host.plan(&desired);
            prop_assert!(again.converged(), "{again:#?}");
        }
        let nothing = Desired::of(None);
        host.converge(&nothing);
        let left: Vec<_> = host.observed.mounts.iter().filter(|m| m.mount_point.starts_with(MOUNTS)).collect();
        prop_assert!(!host.observed.mounts.iter().any(|mount| mount.mount_point.contains("/queues/")));
        prop_assert!(left.is_empty() && host.observed.rules.is_empty() && host.observed.tables.is_empty(), "{left:?}");
        prop_assert!(host.observed.addresses.iter().all(|address| !address.ours));
        prop_assert!(!host.observed.translates);
    }

    #[test]
    fn steps_stand_in_the_order_of_their_phases(specs in proptest::collection::vec(arbitrary_spec(), 1..4)) {
        let mut host = Host::new();
        for spec in &specs {
            let desired = Desired::of(spec.as_ref());
            let plan = host.plan(&desired);
            prop_assert!(plan.steps.is_sorted_by_key(Step::phase), "{:?}", plan.steps);
            plan.steps.iter().for_each(|step| host.apply(step, true));
        }
    }

    /// A crash before any step, or after its effect and before its mark: the next plan leads to the same end.
    #[test]
    fn a_crash_at_any_step_converges(from in arbitrary_spec(), to in arbitrary_spec(), at in 0_usize..40, is_marked in any::<bool>()) {
        let mut host = Host::new();
        host.converge(&Desired::of(from.as_ref()));
        let desired = Desired::of(to.as_ref());
        let mut undisturbed = host.clone();
        undisturbed.converge(&desired);

        let plan = host.plan(&desired);
        let at = at % (plan.steps.len() + 1);
        plan.steps[..at].iter().for_each(|step| host.apply(step, true));
        if let Some(step) = plan.steps.get(at) {
            host.apply(step, is_marked);
        }
        host.converge(&desired);
        prop_assert_eq!(host.observed.live_digest(), undisturbed.observed.live_digest());
        prop_assert_eq!(&host.observed.mounts, &undisturbed.observed.mounts);
        prop_assert_eq!(&host.observed.units, &undisturbed.observed.units);
        prop_assert_eq!(&host.observed.rules, &undisturbed.observed.rules);
    }
}

impl Observed {
    fn live_digest(&self) -> Option<String> {
        Some(generations::digest(&self.generations.get(&self.live?)?.files))
    }
}

fn names(plan: &Plan) -> Vec<&'static str> {
    plan.steps.iter().map(Step::name).collect()
}

#[test]
fn a_balancer_takes_the_external_addresses_that_no_interface_has() {
    let mut host = Host::new();
    let outside = |ip_: &str, ours| SeenAddress { device: "eth0".into(), ip: ip(ip_), prefix_len: 24, ours };
    host.observed.addresses.push(outside("198.51.100.10", false));
    let externals = ["198.51.100.10", "198.51.100.11", "203.0.113.1"].map(ip);
    let added = |role| {
        let spec = NodeSpec { role, ..node(Work::Balancer(balancer(externals.into_iter()))) };
        let steps = host.plan(&Desired::of(Some(&spec))).steps;
        let added = steps.into_iter().filter_map(|step| match step {
            Step::AddAddress { address, device } => Some(format!("{address} {device}")),
            _ => None,
        });
        added.collect::<Vec<_>>()
    };
    assert_eq!(added(Role::Master), ["198.51.100.11/32 eth0", "203.0.113.1/32 eth1"]);
    assert_eq!(added(Role::Slave), Vec::<String>::new());
}

#[test]
fn a_fresh_web_node_is_set_up_in_order() {
    let plan = Host::new().plan(&figure_1_web());
    assert_eq!(
        names(&plan),
        [
            "seal-mount-point",
            "mount",
            "set-sysctl",
            "add-address",
            "set-route",
            "add-rule",
            "add-rule",
            "stage",
            "validate",
            "switch",
            "link",
            "load-table",
            "reload-accounts",
            "start",
            "start",
            "start",
            "start",
            "verify",
        ]
    );
    assert!(plan.drift.is_empty(), "what was never there is no drift");
}

#[test]
fn a_node_that_leaves_its_cluster_stops_daemons_before_it_takes_away_what_they_stand_on() {
    let mut host = Host::new();
    host.converge(&figure_1_web());
    host.observed.accounts_awake = 3;
    let plan = host.plan(&Desired::of(None));
    assert_eq!(
        names(&plan),
        [
            "stop",
            "stop",
            "stop",
            "stop",
            "end-accounts",
            "unlink",
            "remove-table",
            "remove-mount",
            "remove-rule",
            "remove-rule",
            "remove-route",
            "remove-address",
        ]
    );
    assert!(matches!(plan.steps[0], Step::Stop { unit: Unit::Proxy }), "nothing new comes in first");
}

#[test]
fn a_change_of_one_file_reloads_its_reader_alone() {
    let mut host = Host::new();
    host.converge(&figure_1_web());
    let mut desired = figure_1_web();
    desired.files.insert("guard.json".into(), "{\"shares\":[]}\n".into());
    let plan = host.plan(&desired);
    assert_eq!(names(&plan), ["stage", "validate", "switch", "reload", "verify"]);
    assert!(matches!(plan.steps[3], Step::Reload { unit: Unit::Guard, .. }));
}

#[test]
fn what_the_checker_refused_is_not_tried_again_and_never_goes_live() {
    let mut host = Host::new();
    host.converge(&figure_1_web());
    let mut desired = figure_1_web();
    desired.files.insert("httpd-common.conf".into(), "Bogus on\n".into());
    let plan = host.plan(&desired);
    host.apply(&plan.steps[0], true);
    let refused = generations::digest(&file_digests(&desired.files));
    host.marks.refuse(refused, "Syntax error on line 1 of httpd-common.conf".into());
    let plan = host.plan(&desired);
    assert_eq!(names(&plan), Vec::<&str>::new());
    assert!(plan.waiting[0].contains("line 1 of httpd-common.conf"), "{:?}", plan.waiting);
    host.converge(&figure_1_web());
    assert_eq!(host.observed.live, Some(1));
}

#[test]
fn what_does_not_work_once_live_goes_back_to_the_last_good_one() {
    let mut host = Host::new();
    host.converge(&figure_1_web());
    let mut desired = figure_1_web();
    desired.files.insert("proxy.json".into(), "{}\n".into());
    let plan = host.plan(&desired);
    plan.steps.iter().take_while(|step| step.phase() < Phase::Verify).for_each(|step| host.apply(step, true));
    assert_eq!(host.observed.live, Some(2));
    host.marks.refuse(generations::digest(&file_digests(&desired.files)), "no answer".into());
    let plan = host.plan(&desired);
    assert_eq!(names(&plan), ["validate", "switch", "reload"]);
    plan.steps.iter().for_each(|step| host.apply(step, true));
    assert_eq!(host.observed.live, Some(1));
    assert!(host.plan(&desired).steps.is_empty());
}

#[test]
fn a_pin_holds_until_the_spec_changes() {
    let mut host = Host::new();
    host.converge(&figure_1_web());
    let mut second = figure_1_web();
    second.files.insert("guard.json".into(), "{}\n".into());
    host.converge(&second);
    let instead_of = generations::digest(&file_digests(&second.files));
    host.marks.pinned = Some(marks::Pin { generation: 1, instead_of });
    host.converge(&second);
    assert_eq!(host.observed.live, Some(1));
    let mut third = figure_1_web();
    third.files.insert("guard.json".into(), "{ }\n".into());
    host.converge(&third);
    assert_eq!(host.observed.live, Some(3));
}

#[test]
fn drift_is_told_as_a_diff_and_mended() {
    let desired = figure_1_web();
    let mut host = Host::new();
    host.converge(&desired);
    let live = host.observed.live.expect("live");
    host.observed.generations.get_mut(&live).expect("there").intact = false;
    host.observed.live_files = desired.files.clone();
    host.observed.live_files.insert("guard.json".into(), "edited\n".into());
    host.observed.table = Some("table inet phalanx_accounts { drop; }".into());
    host.observed.mounts.pop();
    host.observed.addresses.retain(|address| !address.ours);
    host.observed.rules.pop_first();
    host.observed.units.insert(Unit::Launcher, SeenUnit::default());
    let drift = host.plan(&desired).drift;
    let told: Vec<&str> = drift.iter().map(|drift| drift.what.as_str()).collect();
    for part in ["guard.json", "nftables", "mount of share", "10.9.0.51/24", "routing rule", "phalanx-launcher.service"]
    {
        assert!(told.iter().any(|what| what.contains(part)), "{part}: {told:?}");
    }
    assert!(drift.iter().all(|drift| drift.diff.lines().any(|line| line.starts_with(['-', '+']))), "{drift:#?}");
    let reloads =
        |unit| host.plan(&desired).steps.iter().any(|s| matches!(s, Step::Reload { unit: u, .. } if *u == unit));
    assert!(reloads(Unit::Guard), "it may have read the edited file");
    assert!(!reloads(Unit::Proxy), "it has not read it");
    host.converge(&desired);
    assert_eq!(host.observed.live, Some(live + 1), "a damaged generation is replaced, not written into");
}

#[test]
fn a_share_whose_marker_vanished_is_not_made_anew() {
    let spec = node(Work::Web(web(Some(share_mount("content", local("/srv/nas/web"), true)))));
    let desired = Desired::of(Some(&spec));
    let mut host = Host::new();
    host.converge(&desired);
    for (seen, word) in
        [(SeenShare::Unmarked, "its disk mounted"), (SeenShare::Marked("ff".into()), "another share's marker")]
    {
        host.observed.kept_shares.insert("content".parse().expect("a name"), seen);
        let plan = host.plan(&desired);
        assert!(plan.steps.is_empty() && plan.waiting[0].contains(word), "{plan:#?}");
    }
}

#[test]
fn ten_generations_are_kept() {
    let mut host = Host::new();
    for number in 0..25 {
        let mut desired = figure_1_web();
        desired.files.insert("guard.json".into(), format!("{number}\n"));
        host.converge(&desired);
    }
    assert_eq!(host.observed.generations.keys().copied().collect::<Vec<_>>(), (16..=25).collect::<Vec<_>>());
}

/// Who keeps a share has it tell what came later, never what came before.
#[test]
fn rights_are_told_before_they_are_used_and_never_taken_back() {
    let spec = |holder: &str, number| {
        let share = KeptShare {
            share: "letters".parse().expect("a name"),
            marker: marker("letters"),
            path: "/srv/nas/letters".parse().expect("a path"),
            nfs_clients: BTreeSet::new(),
            rights: vec![kept_right(holder, number)],
        };
        Desired::of(Some(&node(Work::Nas(NasSpec { shares: vec![share] }))))
    };
    let mut host = Host::new();
    host.converge(&spec("mail1", 1));
    host.converge(&spec("mail2", 2));
    let told = host.observed.rights.values().flatten().next().expect("told");
    assert_eq!((told.holder.as_str(), told.number), ("mail2", 2));
    for (holder, number) in [("mail1", 1), ("mail1", 2)] {
        let plan = host.plan(&spec(holder, number));
        assert!(
            plan.steps.is_empty() && plan.waiting.iter().any(|why| why.contains("mail2 under number 2")),
            "{plan:?}"
        );
    }
}

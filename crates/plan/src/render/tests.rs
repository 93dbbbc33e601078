//! Goldens of a generation's files.

use super::*;
use crate::rights::{Held, KeptRight};
use crate::spec::{KeptShare, NasSpec};
use expect_test::expect;
use phalanx_model::Right;
use phalanx_model::cluster::Role;
use phalanx_model::share::Marker;

fn node(work: Work) -> NodeSpec {
    NodeSpec {
        server: "nas1".parse().expect("a name"),
        role: Role::Master,
        address: "10.9.0.31/24".parse().expect("an address"),
        certificate: None,
        peers: BTreeMap::new(),
        work,
    }
}

#[test]
fn a_nas_exports_to_its_clients_alone() {
    let queue = |of: &str, holder: &str, address: Option<&str>| {
        let name = |text: &str| text.parse().expect("a name");
        let right = Right::Queue(name(of));
        let held = Held { cluster: name("mail"), right, holder: name(holder), number: 1, is_void: false };
        KeptRight { held, address: address.map(|address| address.parse().expect("an address")) }
    };
    let share = |name: &str, clients: &[&str]| KeptShare {
        rights: match name {
            "web" => vec![queue("mail1", "mail2", Some("10.9.0.12")), queue("mail3", "mail3", None)],
            _ => vec![],
        },
        share: name.parse().expect("a name"),
        marker: Marker::from_bits(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        path: format!("/srv/nas/{name}").parse().expect("a path"),
        nfs_clients: clients.iter().map(|client| client.parse().expect("an address")).collect(),
    };
    let work = Work::Nas(NasSpec { shares: vec![share("web", &["10.9.0.11", "10.9.0.12"]), share("here", &[])] });
    expect![[r##"
        # Made by Phalanx from the shares of this nas cluster. Changes by hand are taken back.
        # share web
        "/srv/nas/web" 10.9.0.11(rw,sync,no_subtree_check,root_squash,sec=sys,fsid=01234567-89ab-cdef-0123-456789abcdef) 10.9.0.12(rw,sync,no_subtree_check,root_squash,sec=sys,fsid=01234567-89ab-cdef-0123-456789abcdef)
        # the queue of mail1, run by mail2
        "/srv/nas/web/.phalanx/queues/mail1" 10.9.0.12(rw,sync,no_subtree_check,no_root_squash,sec=sys,fsid=3dceabf7-8920-fa09-d07a-428e17173cfb)
    "##]]
    .assert_eq(&files(&node(work.clone()))["exports"]);
    expect![[r#"
        # Made by Phalanx. Changes by hand are taken back.
        [nfsd]
        grace-time=10
        lease-time=10
        vers3=n
        vers4=y
        vers4.2=y
    "#]]
    .assert_eq(&files(&node(work))["nfs.conf"]);
}

#[test]
fn a_web_node_has_all_that_its_daemons_read() {
    let web = WebSpec {
        share: None,
        listen: std::collections::BTreeSet::from(["10.9.0.11:80".parse().expect("a place")]),
        extra_addresses: Default::default(),
        reply_routes: Default::default(),
        balancers: Default::default(),
        httpd_directives: vec![],
        logs: Default::default(),
    };
    let files = files(&node(Work::Web(web)));
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["accounts.nft", "guard.json", "httpd-common.conf", "launcher.json", "logs.json", "proxy.json", "sysctl.conf"]
    );
    assert_eq!(files["sysctl.conf"], "net.ipv4.ip_unprivileged_port_start = 1024\n");
    let proxy: ProxyConfig = serde_json::from_str(&files["proxy.json"]).expect("what was written can be read");
    assert_eq!(proxy.problems(), Vec::<String>::new());
    expect![[r#"
        {
          "shares": [],
          "keeps_mail_lookups": false
        }
    "#]]
    .assert_eq(&files["guard.json"]);
}

#[test]
fn a_balancer_forwards() {
    let work = Work::Balancer(crate::spec::BalancerSpec {
        services: vec![],
        internal_networks: Default::default(),
        probes: Default::default(),
    });
    expect![[r#"
        net.ipv4.ip_forward = 1
    "#]]
    .assert_eq(&files(&node(work))["sysctl.conf"]);
}

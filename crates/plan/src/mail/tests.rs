//! Goldens of what mail daemons read, and what shall hold of it whatever the names are.

use super::*;
use crate::spec::mail::{HolderSpec, MailSecrets, MailboxesSpec, QueueSpec};
use crate::spec::{LogsSpec, MountSource, MountSpec, Work};
use expect_test::expect_file;
use phalanx_model::Name;
use phalanx_model::cluster::Role;
use phalanx_model::mail::MailProtocol;
use phalanx_model::share::Marker;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, last)
}

fn mail(holder: Option<u8>) -> MailSpec {
    let name = |text: &str| text.parse::<Name>().expect("a name");
    let queue = |of: &str, number| {
        let source = MountSource::Local(format!("/srv/nas/mail/.phalanx/queues/{of}").parse().expect("a path"));
        let share = name("letters");
        let (queue_of, marker) = (Some(name(of)), Marker::from_bits(7));
        let mount = Some(MountSpec { share, queue_of, marker, source, keeps_homes: false });
        (name(of), QueueSpec { number, mount })
    };
    MailSpec {
        logs: LogsSpec::default(),
        cluster: name("mail"),
        host_name: "mail.example.net".parse().expect("a host name"),
        share: Some(MountSpec {
            share: name("letters"),
            queue_of: None,
            marker: Marker::from_bits(7),
            source: MountSource::Local("/srv/nas/mail".parse().expect("a path")),
            keeps_homes: false,
        }),
        listen: MailProtocol::ALL.map(|protocol| (SocketAddrV4::new(ip(41), protocol.port()), protocol)).into(),
        extra_addresses: BTreeSet::new(),
        reply_routes: BTreeMap::from([(ip(41), ip(1))]),
        send_from: ip(41),
        balancers: BTreeSet::from([ip(1)]),
        nodes: BTreeSet::from([ip(41), ip(42)]),
        mailboxes: MailboxesSpec {
            holder: holder.map(|last| HolderSpec {
                server: format!("mail{}", last - 40).parse().expect("a name"),
                address: ip(last),
            }),
            number: 3,
        },
        queues: BTreeMap::from([queue("mail1", 1), queue("mail3", 4)]),
        all_queues: ["mail1", "mail2", "mail3"].map(name).into(),
        kept_rights: vec![],
        master: ip(41),
        secrets: MailSecrets {
            seed: "5eed".repeat(16),
            tls_chain_pem: "a chain\n".into(),
            tls_key_pem: "a key\n".into(),
        },
    }
}

fn node(mail: &MailSpec) -> NodeSpec {
    NodeSpec {
        server: "mail1".parse().expect("a name"),
        role: Role::Master,
        address: "10.9.0.41/24".parse().expect("an address"),
        certificate: None,
        peers: BTreeMap::new(),
        work: Work::Mail(Some(Box::new(mail.clone()))),
    }
}

fn rendered(holder: Option<u8>) -> Files {
    let mail = mail(holder);
    files(&node(&mail), &mail)
}

#[test]
fn the_holder_reads_this() {
    let files = rendered(Some(41));
    expect_file!["golden/main.cf"].assert_eq(&files["postfix/main.cf"]);
    expect_file!["golden/master.cf"].assert_eq(&files["postfix/master.cf"]);
    expect_file!["golden/adopted-main.cf"].assert_eq(&files["adopted/mail3/main.cf"]);
    expect_file!["golden/adopted-master.cf"].assert_eq(&files["adopted/mail3/master.cf"]);
    expect_file!["golden/mailboxes.conf"].assert_eq(&files["mailboxes.conf"]);
    expect_file!["golden/logins.conf"].assert_eq(&files["logins.conf"]);
    expect_file!["golden/logins-sql.conf"].assert_eq(&files["logins-sql.conf"]);
    expect_file!["golden/mail.json"].assert_eq(&files["mail.json"]);
    let filter: String = (files.iter().filter(|(name, _)| name.starts_with("rspamd/") && !name.contains("secret-")))
        .map(|(name, text)| format!("==> {name}\n{text}\n"))
        .collect();
    expect_file!["golden/rspamd"].assert_eq(&filter);
}

#[test]
fn only_the_holder_can_open_mailboxes() {
    assert!(rendered(Some(41)).contains_key(dovecot::MAILBOXES_FILE));
    for other in [Some(42), None] {
        assert!(!rendered(other).contains_key(dovecot::MAILBOXES_FILE), "{other:?}");
    }
    let config = |holder| {
        let mail = mail(holder);
        router::MailConfig::new(&node(&mail), &mail)
    };
    assert!(config(Some(42)).hops.is_empty() && config(None).hops.is_empty());
    assert!(config(Some(42)).ways.iter().all(|way| way.to.is_some_and(|to| *to.ip() == ip(42))));
    assert!(config(None).ways.iter().all(|way| way.to.is_none()), "while they move, nobody is asked");
}

#[test]
fn secrets_are_only_in_files_that_root_alone_reads() {
    let spec = mail(Some(41));
    let secrets = [
        spec.secrets.seed.clone(),
        spec.secrets.tls_key_pem.clone(),
        spec.secrets.for_use("redis"),
        spec.secrets.for_use("srs"),
    ];
    for (name, text) in rendered(Some(41)) {
        let is_secret = name.rsplit('/').next().is_some_and(|last| last.starts_with("secret-"));
        assert!(is_secret || secrets.iter().all(|secret| !text.contains(secret.trim_end())), "{name}");
    }
    let shown = format!("{spec:?}");
    assert!(secrets.iter().all(|secret| !shown.contains(secret.trim_end())), "{shown}");
    let other = MailSpec { secrets: MailSecrets { seed: "other".into(), ..spec.secrets.clone() }, ..spec.clone() };
    assert_ne!(format!("{other:?}"), shown, "another secret is another state");
}

#[test]
fn every_port_on_the_loopback_has_one_user() {
    let ports = [
        port::DOVECOT_IMAP,
        port::DOVECOT_IMAPS,
        port::DOVECOT_POP3,
        port::DOVECOT_POP3S,
        port::DOVECOT_SIEVE,
        port::DOVECOT_LMTP,
        port::DOVECOT_QUOTA,
        port::LOCAL_LMTP,
        port::LOCAL_QUOTA,
        port::FORWARDED,
        port::FROM_MAILBOXES,
        port::SRS_FORWARD,
        port::SRS_REVERSE,
        port::FILTER,
        port::FILTER_CONTROL,
    ];
    assert_eq!(BTreeSet::from(ports).len(), ports.len());
}

#[test]
fn mailboxes_are_released_when_nothing_may_open_one() {
    use crate::steps::observed::SeenUnit;
    let seen = |openers: u32, unit: Option<(bool, bool)>| Observed {
        mailbox_openers: openers,
        units: unit
            .map(|(active, enabled)| (Unit::Mailboxes, SeenUnit { active, enabled, ..SeenUnit::default() }))
            .into_iter()
            .collect(),
        ..Observed::default()
    };
    let says =
        |holder: Option<u8>, seen: &Observed| released(Some(&node(&mail(holder))), seen).contains(&Right::Mailboxes);
    let still = seen(0, Some((false, false)));
    for other in [Some(42), None] {
        assert!(says(other, &still) && says(other, &seen(0, None)));
        for busy in
            [seen(1, None), seen(0, Some((true, true))), seen(0, Some((false, true))), seen(2, Some((false, false)))]
        {
            assert!(!says(other, &busy), "{busy:?}");
        }
    }
    assert!(!says(Some(41), &still), "the holder has not let go of what it shall have");
    assert!(released(None, &still).is_empty(), "a machine that knows no spec says nothing");
}

#[test]
fn who_shall_not_open_mailboxes_is_made_to_stop() {
    use crate::steps::{Desired, Marks, Step, plan};
    let stops = |holder: Option<u8>, openers: u32| {
        let desired = Desired::of(Some(&node(&mail(holder))));
        let observed = Observed { mailbox_openers: openers, ..Observed::default() };
        plan(&desired, &observed, &Marks::default()).steps.contains(&Step::Stop { unit: Unit::Mailboxes })
    };
    assert!(stops(Some(42), 1) && stops(None, 1), "also what no unit of ours has started");
    assert!(!stops(Some(42), 0) && !stops(Some(41), 1));
}

#[test]
fn what_ends_by_itself_is_named_and_who_is_in_its_way() {
    use crate::steps::observed::SeenUnit;
    use crate::steps::{Desired, Marks, plan};
    let desired = Desired::of(Some(&node(&mail(Some(42)))));
    let told = |unsteady: bool, rival: &str| -> Vec<String> {
        let units = BTreeMap::from([(Unit::Filter, SeenUnit { active: true, enabled: true, unsteady })]);
        let rivals = BTreeSet::from([rival.to_owned()]);
        let waiting = plan(&desired, &Observed { units, rivals, ..Observed::default() }, &Marks::default()).waiting;
        waiting.into_iter().filter(|why| why.contains("ends by itself")).collect()
    };
    assert!(told(false, "rspamd.service").is_empty());
    let (named, unknown) = (told(true, "rspamd.service"), told(true, "postsrsd.service"));
    assert!(named.len() == 1 && named[0].contains("`systemctl disable --now rspamd.service`"), "{named:?}");
    assert!(unknown.len() == 1 && unknown[0].contains("`journalctl -u phalanx-filter.service`"), "{unknown:?}");
}

#[test]
fn a_queue_is_released_when_nothing_of_this_node_can_touch_it() {
    use crate::steps::observed::{SeenMount, SeenUnit};
    let still = Observed::default();
    let says = |seen: &Observed| -> Vec<String> {
        released(Some(&node(&mail(Some(42)))), seen).iter().map(Right::to_string).collect()
    };
    assert_eq!(says(&still), ["mailboxes", "queue-mail2"], "not those that it runs: mail1's and mail3's");
    let mount = SeenMount {
        device: "0:44".into(),
        root: "/mail/.phalanx/queues/mail2".into(),
        mount_point: "/srv/phalanx/queue@mail2".into(),
        fs_type: "nfs4".into(),
        source: "10.9.0.20:/srv/nas/mail/.phalanx/queues/mail2".into(),
        read_only: false,
    };
    let mounted = Observed { mounts: vec![mount], ..Observed::default() };
    let used = Observed { queue_users: BTreeSet::from(["mail2".parse().expect("a name")]), ..Observed::default() };
    assert!([mounted, used].iter().all(|seen| says(seen) == ["mailboxes"]));
    // Its own queue, which another node shall have: also the unit must be at an end.
    let mut away = mail(Some(42));
    away.queues.clear();
    let says = |active: bool| {
        let units = BTreeMap::from([(Unit::Postfix, SeenUnit { active, enabled: false, ..SeenUnit::default() })]);
        released(Some(&node(&away)), &Observed { units, ..Observed::default() })
    };
    let own = Right::Queue("mail1".parse().expect("a name"));
    assert!(says(false).contains(&own) && !says(true).contains(&own));
}

#[test]
fn a_queue_that_is_still_used_keeps_its_mount() {
    use crate::steps::observed::SeenMount;
    use crate::steps::{Desired, Marks, Step, plan};
    let at = "/srv/phalanx/queue@mail2";
    let mount = SeenMount {
        device: "0:44".into(),
        root: "/".into(),
        mount_point: at.into(),
        fs_type: "nfs4".into(),
        source: "x".into(),
        read_only: false,
    };
    let desired = Desired::of(Some(&node(&mail(Some(41)))));
    let plan_with = |users: &[&str]| {
        let queue_users = users.iter().map(|user| user.parse().expect("a name")).collect();
        plan(&desired, &Observed { mounts: vec![mount.clone()], queue_users, ..Observed::default() }, &Marks::default())
    };
    let unmounts = |plan: &crate::steps::Plan| plan.steps.contains(&Step::RemoveMount { mount_point: at.into() });
    assert!(unmounts(&plan_with(&["mail1"])));
    let busy = plan_with(&["mail2"]);
    assert!(!unmounts(&busy) && busy.waiting.iter().any(|why| why.contains("still works in the queue of mail2")));
}

#[test]
fn a_node_without_its_own_queue_takes_no_mail() {
    use crate::steps::Desired;
    let mut away = mail(Some(41));
    away.queues.remove("mail1");
    let files = files(&node(&away), &away);
    assert!(!files.contains_key("postfix/main.cf") && files.contains_key("adopted/mail3/main.cf"));
    let units = Desired::of(Some(&node(&away))).units;
    assert!(!units.contains(&Unit::Postfix) && units.contains(&Unit::AdoptedQueues) && units.contains(&Unit::Logins));
    let inet = |text: &str| text.lines().any(|line| line.contains(" inet "));
    assert!(!inet(&files["adopted/mail3/master.cf"]), "an adopted queue has no entrance");
}

#[test]
fn the_probe_mailbox_is_the_holders_and_has_another_password_after_each_move() {
    use super::probe::{self, Probe, ProbeLogin};
    use crate::render;
    use crate::spec::BalancerSpec;
    let spec = mail(Some(41));
    let login = ProbeLogin::of(&node(&spec), &spec).expect("the holder knows it");
    assert_eq!((login.home.as_str(), login.networks.as_str()), ("/srv/phalanx/letters/mail/probe_mail", "10.9.0.1/32"));
    let known = Probe::new(&spec.secrets, spec.mailboxes.number);
    let proof = crate::steps::generations::sha256_hex(known.password.as_bytes());
    assert_eq!(login.password, format!("{{SHA256.HEX}}{proof}"), "the balancer's password is the one that holds");
    let moved = Probe::new(&spec.secrets, spec.mailboxes.number + 1);
    assert_ne!(moved.password, known.password);
    assert_ne!(format!("{moved:?}"), format!("{known:?}"), "another password is another state");
    assert!(!format!("{known:?}").contains(&known.password));
    for other in [mail(Some(42)), mail(None), MailSpec { balancers: BTreeSet::new(), ..mail(Some(41)) }] {
        assert_eq!(ProbeLogin::of(&node(&other), &other), None);
    }
    let probes = BTreeMap::from([("mail".parse().expect("a name"), known.clone())]);
    let work = Work::Balancer(BalancerSpec { services: vec![], internal_networks: BTreeSet::new(), probes });
    for (name, text) in render::files(&NodeSpec { work, ..node(&spec) }) {
        assert_eq!(text.contains(&known.password), name == probe::FILE, "{name}");
    }
    assert_eq!(render::Readers::of(probe::FILE), render::Readers::Proxy);
}

//! A panel with made-up nodes that report made-up load, to look at the page: `cargo run -p phalanx-panel --example seeded [trouble]`.
//! It prints the page's address and runs until it is interrupted.

use anyhow::Result;
use phalanx_model::queue::QueueCount;
use phalanx_model::{Limits, Name, Site};
use phalanx_panel::live::Live;
use phalanx_panel::store::{Actor, Role, Store};
use phalanx_panel::{Panel, api, ca, link};
use phalanx_plan::report::{BackendReport, BackendState, Load, NodeEvent, QueueState, Report, Severity};
use serde_json::from_value;
use serde_json::json;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

#[tokio::main]
async fn main() -> Result<()> {
    let trouble = std::env::args().nth(1).as_deref() == Some("trouble");
    let dir = std::env::temp_dir().join(format!("phalanx-seeded-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let store = Store::open(&dir.join("panel.sqlite"), true).await?;
    let token = seed(&store, trouble).await?;
    let (certificate, key) = ca::generate()?;
    let (_stopper, stopping) = tokio::sync::watch::channel(false);
    let panel = Panel {
        store,
        live: Arc::new(Live::default()),
        ca: Arc::new(ca::Ca::load(&certificate, &key)?),
        fencing: Arc::default(),
        streams: Arc::default(),
        link_address: Arc::new(link::LinkAddress::new(None, Ipv4Addr::LOCALHOST.into(), 7400)?),
        stopping,
    };
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("http://{}/#token={token}", listener.local_addr()?);
    tokio::spawn(report(panel.clone(), trouble));
    axum::serve(listener, api::router(panel)).await?;
    Ok(())
}

const HTTP: &str = "198.51.100.10:80";
const SMTP: &str = "198.51.100.25:25";
const IMAP: &str = "198.51.100.25:143";

fn name(text: &str) -> Name {
    text.parse().expect("a valid name")
}

async fn seed(store: &Store, trouble: bool) -> Result<String> {
    let mut write = store.write(&Actor::panel()).await?;
    let token = write.add_token(&name("admin"), Role::Admin).await?;
    let mut changes = Vec::new();
    let mut servers = vec![
        ("lb1", "balancer", 1),
        ("web1", "web", 11),
        ("web2", "web", 12),
        ("web3", "web", 13),
        ("nas1", "nas", 20),
        ("mail1", "mail", 31),
        ("mail2", "mail", 32),
    ];
    if trouble {
        servers.push(("web4", "web", 14));
    }
    for (server, kind, last) in &servers {
        changes.push(json!({ "change": "add-server", "server": { "name": server, "kind": kind, "address": format!("10.9.0.{last}/24") } }));
    }
    changes.extend([
        json!({ "change": "add-cluster", "cluster": { "name": "lb", "kind": "balancer", "master": "lb1" } }),
        json!({ "change": "add-cluster", "cluster": { "name": "nas", "kind": "nas", "master": "nas1" } }),
        json!({ "change": "add-share", "share": { "name": "content", "kind": "local", "nas": "nas", "path": "/srv/nas/web", "marker": "0".repeat(32) } }),
        json!({ "change": "add-cluster", "cluster": { "name": "web", "kind": "web", "master": "web1", "share": "content" } }),
        json!({ "change": "add-address", "address": { "external": HTTP, "balancer": "lb", "cluster": "web", "port": 80 } }),
        json!({ "change": "add-logical-server", "name": "www", "server": "web1" }),
        json!({ "change": "add-share", "share": { "name": "letters", "kind": "local", "nas": "nas", "path": "/srv/nas/mail", "marker": "1".repeat(32) } }),
        json!({ "change": "add-cluster", "cluster": { "name": "mail", "kind": "mail", "master": "mail1", "share": "letters", "mail": { "host_name": "mail.example.net" }, "grants": { "mailboxes": { "number": 4, "holder": "mail1" } } } }),
        json!({ "change": "add-slave", "cluster": "mail", "server": "mail2", "settings": {} }),
        json!({ "change": "add-address", "address": { "external": SMTP, "balancer": "lb", "cluster": "mail", "port": 25 } }),
        json!({ "change": "add-address", "address": { "external": IMAP, "balancer": "lb", "cluster": "mail", "port": 143 } }),
    ]);
    for (server, ..) in servers.iter().filter(|(server, kind, _)| *kind == "web" && *server != "web1") {
        let settings = json!({ "drained": *server == "web4" });
        changes.push(json!({ "change": "add-slave", "cluster": "web", "server": server, "settings": settings }));
    }
    for change in changes {
        write.apply(from_value(change)?)?;
    }
    for n in 0..42 {
        let account = name(&format!("customer{n}"));
        write.add_account(account.clone(), name("www"), None, Limits::default(), Default::default()).await?;
        for host in [format!("www.customer{n}.example"), format!("shop.customer{n}.example")] {
            let host: phalanx_model::HostName = host.parse()?;
            let document_root = Site::document_root_default(&host);
            write.add_site(Site { name: host, aliases: vec![], account: account.clone(), document_root }).await?;
        }
    }
    write.commit().await?;
    Ok(token)
}

/// Reports as the nodes' masters would send them, each second.
async fn report(panel: Panel, trouble: bool) -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let happened = [
        (900, "web1", Severity::Info, "agent", "web1 has joined", ""),
        (860, "web2", Severity::Info, "agent", "web2 has joined through its master web1", ""),
        (600, "web1", Severity::Info, "generation", "generation 7 is live: 3 files changed", ""),
        (
            300,
            "web2",
            Severity::Warning,
            "drift",
            "/etc/sysctl.d/phalanx.conf was changed by hand and is mended",
            "-net.ipv4.ip_forward = 0\n+net.ipv4.ip_forward = 1",
        ),
        (
            40,
            "lb1",
            Severity::Error,
            "backend",
            "web3 gets no new connections: no answer to the health check within 1 s",
            "",
        ),
    ];
    for (number, (ago, server, severity, topic, text, detail)) in
        happened.into_iter().enumerate().take(if trouble { 5 } else { 4 })
    {
        let (topic, text, detail) = (topic.to_owned(), text.to_owned(), detail.to_owned());
        let event = NodeEvent { number: number as u64 + 1, at_unix_s: now - ago, severity, topic, text, detail };
        panel.store.keep_events(&name(server), &[event]).await?;
    }
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    for tick in 0_u64.. {
        ticks.tick().await;
        let wave = 1.0 + (tick as f32 / 7.0).sin() * 0.25;
        let node = |score: u8, rate: f32, in_service: bool| Report {
            version: "0.1.0".into(),
            generation: 7,
            converged: true,
            in_service,
            load: Load {
                score_percent: score,
                cpu_pressure_percent: f32::from(100 - score) / 3.0,
                requests_total: 10_000 + tick * 100,
                requests_per_second: rate * wave,
                accounts_awake: 12,
                connections: 80,
                ..Load::default()
            },
            ..Report::default()
        };
        let idle =
            |score: u8| Report { load: Load { score_percent: score, ..Load::default() }, ..node(score, 0.0, false) };
        let backend_of = |service: &str, server: &str, state, why: &str, share: f32| BackendReport {
            service: service.parse().expect("an address"),
            server: name(server),
            state,
            why: why.into(),
            share_percent: share,
            flows: Some((share * 4.0) as u32),
        };
        let backend = |server: &str, state, why: &str, share: f32| backend_of(HTTP, server, state, why, share);
        use BackendState::{Down, Drained, Overloaded, Up};
        let mut backends = if trouble {
            vec![
                backend("web1", Up, "", 72.0),
                backend("web2", Overloaded, "its load score is 0", 28.0),
                backend("web3", Down, "no answer to the health check within 1 s", 0.0),
                backend("web4", Drained, "drained", 0.0),
            ]
        } else {
            vec![backend("web1", Up, "", 36.0), backend("web2", Up, "", 41.0), backend("web3", Up, "", 23.0)]
        };
        let refuses =
            if trouble { (Down, "it lets nobody in: NO [AUTHENTICATIONFAILED]", 0.0) } else { (Up, "", 48.0) };
        backends.extend([
            backend_of(SMTP, "mail1", Up, "", 52.0),
            backend_of(SMTP, "mail2", Up, "", 48.0),
            backend_of(IMAP, "mail1", Up, "", 52.0),
            backend_of(IMAP, "mail2", refuses.0, refuses.1, refuses.2),
        ]);
        let mail = |server: &str, queues: &[(&str, u64, u64)]| {
            let state = |(of, messages, held): &(&str, u64, u64)| QueueState {
                of: name(of),
                count: Some(QueueCount { messages: *messages, held: *held }),
            };
            let queues = queues.iter().map(state).collect();
            (name(server), Report { in_service: true, queues, ..idle(93) })
        };
        let web = |server: &str, report| (name(server), report);
        let nodes = match trouble {
            true => vec![
                web("web1", node(61, 410.0, true)),
                web("web2", node(4, 160.0, true)),
                web("web4", node(99, 0.0, true)),
            ],
            false => vec![
                web("web1", node(88, 214.0, true)),
                web("web2", node(92, 247.0, true)),
                web("web3", node(47, 139.0, true)),
            ],
        };
        for (master, reports) in [
            ("web1", nodes),
            ("lb1", vec![(name("lb1"), Report { backends, ..idle(97) })]),
            ("nas1", vec![(name("nas1"), idle(90))]),
            ("mail1", vec![mail("mail1", &[("mail1", 3, 0), ("mail3", 1_204, 17)]), mail("mail2", &[("mail2", 0, 0)])]),
        ] {
            if !panel.live.is_connected(&name(master)) {
                // The receiver is kept by nobody: these links are told nothing.
                let _told = panel.live.connect(&name(master));
            }
            panel.live.on_reports(&name(master), reports);
        }
    }
    Ok(())
}

//! One account can neither read nor run as another: tried by code and by `.htaccess` on a node, as a customer would who wants to.
//!
//! The probe tries everything twice, on what is the attacker's own and on what is the neighbour's, and the first must succeed: what
//! can't fail proves nothing. The neighbour is careless: what it has is readable for all, so that only the walls between accounts count.

use anyhow::{Context, Result, ensure};
use phalanx_lab::figure::{Figure, LOGICAL};
use phalanx_lab::load::Load;
use phalanx_lab::{Host, eventually};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::time::Duration;

const NODE: &str = "web1";
const SECRET: &str = "the secret of bob";
const PROBE: &str = include_str!("isolation/probe.php");
const VICTIM: &str = include_str!("isolation/victim.php");
const TRICKS: &str = include_str!("isolation/tricks.conf");
/// Where accounts' httpds listen.
const PORT: u16 = 808;
/// Where agents listen: for slaves, and for balancers.
const AGENT: u16 = 341;
const SCORE: u16 = 342;

/// An account as others see it.
struct Party {
    name: &'static str,
    site: String,
    uid: u32,
    ip: Ipv4Addr,
}

/// Eve attacks, Bob is attacked; both live on one node.
struct Scene {
    figure: Figure,
    eve: Party,
    bob: Party,
}

impl Scene {
    fn up() -> Result<Self> {
        let figure = Figure::up()?;
        let id = "<?php echo 'RAN-AS ', posix_getuid();";
        figure.site("eve", "eve.example.org", &[("id.php", id), ("index.html", "page of eve")])?;
        figure.site(
            "bob",
            "bob.example.org",
            &[("id.php", &VICTIM.replace("@SECRET@", SECRET)), ("index.html", "page of bob")],
        )?;
        figure.put("eve", "private.txt", "own secret")?;
        figure.put("bob", "private.txt", SECRET)?;
        figure.host("nas").text("chmod -R o+rX /srv/nas/web/home/bob")?;
        let scene = Self { eve: party(&figure, "eve")?, bob: party(&figure, "bob")?, figure };
        for party in [&scene.bob, &scene.eve] {
            eventually(Duration::from_secs(10), "an answer of each account", || {
                let answer = scene.figure.get_from(NODE, &party.site, "/id.php")?;
                ensure!(answer.body == format!("RAN-AS {}", party.uid), "{answer:?}");
                Ok(())
            })?;
        }
        Ok(scene)
    }

    fn node(&self) -> Host<'_> {
        self.figure.host(NODE)
    }

    /// Runs a script of shell on the NAS as Eve, in her document root.
    fn as_eve_on_nas(&self, script: &str) -> Result<String> {
        let id = self.eve.uid.to_string();
        let root = format!("/srv/nas/web/home/eve/sites/{}", self.eve.site);
        let words = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "env", "-C", &root, "sh", "-eu"];
        self.figure.host("nas").exec(&words, script.as_bytes())?.text()
    }

    fn bob_answers(&self) -> Result<()> {
        let answer = self.figure.get_from(NODE, &self.bob.site, "/")?;
        ensure!(answer.status == 200 && answer.body == "page of bob", "{answer:?}");
        Ok(())
    }
}

fn party(figure: &Figure, name: &'static str) -> Result<Party> {
    let uid = figure.json(&format!("account show {name}"))?["uid"].as_u64().context("the account has a uid")?;
    let uid = u32::try_from(uid)?;
    let ip = Ipv4Addr::from_bits(Ipv4Addr::new(127, 64, 0, 0).to_bits() + (uid - 1_900_000_000));
    Ok(Party { name, site: format!("{name}.example.org"), uid, ip })
}

/// Services of the machine that are nobody's business, and one that is for all: the resolver.
const SERVICES: &str = "for listen in TCP4-LISTEN:3306 UDP4-LISTEN:3306 TCP6-LISTEN:3306,ipv6only=1 UDP4-LISTEN:53,bind=127.0.0.1; do \
    socat $listen,fork EXEC:cat & done; wait";

/// Lets the probe run as Eve's PHP and tells what it could reach that is not Eve's.
fn code_reaches(scene: &Scene) -> Result<()> {
    let Scene { figure, eve, bob } = scene;
    let _services = scene.node().spawn(SERVICES)?;
    let pids =
        |which: &str| scene.node().text(&format!("ps -e -o uid=,pid=,comm= | awk '{which} {{print $2}}' | paste -sd,"));
    let text = PROBE
        .replace("@OWN@", eve.name)
        .replace("@OWN_UID@", &eve.uid.to_string())
        .replace("@OWN_IP@", &eve.ip.to_string())
        .replace("@OWN_HTTPDS@", &pids(&format!("$1 == {} && $3 == \"apache2\"", eve.uid))?)
        .replace("@OTHER@", bob.name)
        .replace("@OTHER_UID@", &bob.uid.to_string())
        .replace("@OTHER_IP@", &bob.ip.to_string())
        .replace("@OTHER_PIDS@", &pids(&format!("$1 != {}", eve.uid))?)
        .replace("@NODE@", &figure.address(NODE)?)
        .replace("@RESOLVER@", "127.0.0.1:53")
        .replace("@PORT@", &PORT.to_string());
    figure.put(eve.name, &format!("sites/{}/probe.php", eve.site), &text)?;
    let address = figure.address(NODE)?;
    let line = format!("curl -sS -m 50 -H 'Host: {}' http://{address}/probe.php", eve.site);
    let answer = figure.host("lb").text(&line)?;
    let report: Value = serde_json::from_str(&answer).with_context(|| format!("the probe wrote {answer:?}"))?;
    let tries = report.as_object().context("the report has tries")?;
    ensure!(tries.len() >= 20, "{report:#}");
    for (name, seen) in tries {
        ensure!(!seen["own"].is_null(), "the probe can't even {name} what is its own: {report:#}");
        ensure!(seen["other"].is_null(), "{name}: code of one account reached {:#}", seen["other"]);
    }
    println!("{} ways of code lead nowhere", tries.len());
    scene.bob_answers()
}

/// What makes a directory for a trick: scripts, pages, and links to whatever there is to find.
const TRICK_BASE: &str = r#"mkdir -p base && cd base
echo '<?php echo "RAN-AS ", posix_getuid();' > id.php
echo '<?php echo "another script";' > another.php
echo 'a page' > page.html
echo '<!--#include file="/home/bob/private.txt" --><!--#exec cmd="cat /srv/phalanx/content/home/bob/private.txt" -->' | tee page.shtml > include.html
printf '#!/bin/sh\necho Content-Type: text/plain; echo; echo A PROGRAM $((1 + 1)) RAN; cat /home/bob/private.txt\n' > run.cgi && chmod 755 run.cgi
printf 'Status: 200\n\nas it is' > run.asis
ln -sfn /home/bob home; ln -sfn /srv/phalanx/content/home/bob share; ln -sfn /etc etc; ln -sfn /var/lib/phalanx/directory state; ln -sfn /home/eve mine
cd ..
"#;

/// A trick: what it is called, what is asked for, the `.htaccess`.
fn tricks(scene: &Scene) -> Vec<(String, String, String)> {
    let text = TRICKS
        .replace("@OTHER@", scene.bob.name)
        .replace("@OTHER_UID@", &scene.bob.uid.to_string())
        .replace("@OTHER_IP@", &scene.bob.ip.to_string())
        .replace("@SITE@", &scene.bob.site)
        .replace("@PORT@", &PORT.to_string());
    let blocks = text.split("\n### ").skip(1);
    blocks
        .map(|block| {
            let (title, rules) = block.split_once('\n').unwrap_or((block, ""));
            let (path, what) = title.split_once(' ').unwrap_or((title, ""));
            (what.to_owned(), path.replace("@@", ""), rules.to_owned())
        })
        .collect()
}

/// That the tricks bite: the same directives on what is Eve's own, and what must come of them.
fn controls(scene: &Scene) -> Vec<((String, String, String), String)> {
    let ran = format!("RAN-AS {}", scene.eve.uid);
    let own = [
        ("id.php", "SetHandler \"proxy:unix:/run/phalanx/account/php.sock|fcgi://localhost\"\n", ran.as_str()),
        ("page.html", "RewriteEngine On\nRewriteRule page.html id.php [L]\n", &ran),
        (
            "id.php",
            "RewriteEngine On\nRewriteRule id.php - [H=proxy:unix:/run/phalanx/account/php.sock|fcgi://localhost]\n",
            &ran,
        ),
        ("missing", "ErrorDocument 404 \"words of our own\"\n", "words of our own"),
        ("mine/private.txt", "Options +FollowSymLinks\n", "own secret"),
        ("page.html", "Header always set X-Own \"header of our own\"\n", "header of our own"),
        ("run.asis", "SetHandler send-as-is\n", "as it is"),
    ];
    let control = |(path, rules, expected): (&str, &str, &str)| {
        ((format!("our own {path}"), path.to_owned(), rules.to_owned()), expected.to_owned())
    };
    own.into_iter().map(control).collect()
}

/// Writes each trick into a directory of its own and asks for it; returns the answers with their headers.
fn played(scene: &Scene, tricks: &[(String, String, String)]) -> Result<Vec<String>> {
    let mut script = TRICK_BASE.to_owned();
    let address = scene.figure.address(NODE)?;
    let mut ask = String::new();
    for (number, (_, path, rules)) in tricks.iter().enumerate() {
        script += &format!(
            "rm -rf t{number}; cp -a base t{number}\ncat > t{number}/.htaccess <<'END-OF-TRICK'\n{rules}\nEND-OF-TRICK\n"
        );
        ask += &format!(
            "curl -si -m 10 -H 'Host: {}' 'http://{address}/t{number}/{path}'; printf '\\036'\n",
            scene.eve.site
        );
    }
    scene.as_eve_on_nas(&script)?;
    let text = scene.figure.host("lb").exec(&["sh"], ask.as_bytes())?.stdout;
    let mut answers: Vec<String> = text.split('\u{1e}').map(str::to_owned).collect();
    answers.pop();
    ensure!(answers.len() == tricks.len(), "{} answers to {} tricks: {text}", answers.len(), tricks.len());
    Ok(answers)
}

fn htaccess_reaches(scene: &Scene) -> Result<()> {
    let (mine, expected): (Vec<_>, Vec<_>) = controls(scene).into_iter().unzip();
    for ((answer, wanted), (what, _, rules)) in played(scene, &mine)?.iter().zip(expected).zip(&mine) {
        ensure!(answer.contains(&wanted), "{what}: the trick does not bite: {rules}{answer}");
    }
    let tricks = tricks(scene);
    ensure!(tricks.len() >= 45, "{} tricks", tricks.len());
    let forbidden = [SECRET, &format!("RAN-AS {}", scene.bob.uid), "root:", "SQLite format", "A PROGRAM 2 RAN"];
    for (answer, (what, path, rules)) in played(scene, &tricks)?.iter().zip(&tricks) {
        let leak = forbidden.iter().find(|text| answer.contains(**text));
        ensure!(leak.is_none(), "{what}: {path} with\n{rules}gave {leak:?}:\n{answer}");
        ensure!(answer.starts_with("HTTP/1.1 "), "{what}: no answer: {answer:?}");
    }
    println!("{} tricks of .htaccess lead nowhere", tricks.len());
    scene.bob_answers()
}

/// Eve swaps a directory for a symlink to Bob's, again and again, while the NAS's agent makes document roots below it.
fn agent_follows_no_link(scene: &Scene) -> Result<()> {
    let before =
        scene.figure.host("nas").text("find /srv/nas/web/home/bob -printf '%p %u %m %y\\n' | grep -v /logs/ | sort")?;
    let swap = "while sleep 0.001; do rm -rf race; ln -sfn ../../../bob/sites race; rm -f race; mkdir -p race; done";
    let id = scene.eve.uid.to_string();
    let root = format!("/srv/nas/web/home/eve/sites/{}", scene.eve.site);
    let line = format!("cd {root} && exec timeout 20 setpriv --reuid {id} --regid {id} --clear-groups sh -c '{swap}'");
    let racing = scene.figure.host("nas").spawn(&line)?;
    for number in 0..20 {
        let body = serde_json::json!({"name": format!("race{number}.example.org"), "account": "eve",
            "document_root": format!("sites/{}/race/deep{number}", scene.eve.site)});
        let (status, answer) = scene.figure.api("POST", "/sites", Some(&body))?;
        ensure!(status == 201, "{status} {answer}");
    }
    std::thread::sleep(Duration::from_secs(2));
    drop(racing);
    let after =
        scene.figure.host("nas").text("find /srv/nas/web/home/bob -printf '%p %u %m %y\\n' | grep -v /logs/ | sort")?;
    ensure!(before == after, "root followed a customer's symlink:\n{before}\n{after}");
    scene.bob_answers()
}

/// Eve swaps the target of a link between a page of hers and Bob's secret while the link is asked for as a static page.
fn static_pages_show_no_swapped_target(scene: &Scene) -> Result<()> {
    const OWN: &str = "a page of eve";
    let eve = &scene.eve;
    scene.figure.put(eve.name, &format!("sites/{}/own.txt", eve.site), OWN)?;
    let swap = "while sleep 0.001; do for to in ../../../bob/private.txt /srv/phalanx/content/home/bob/private.txt own.txt; do \
                ln -sfn $to swapped; done; done";
    let line = format!(
        "cd /srv/nas/web/home/eve/sites/{} && exec timeout 60 setpriv --reuid {uid} --regid {uid} --clear-groups sh -c '{swap}'",
        eve.site,
        uid = eve.uid
    );
    let racing = scene.figure.host("nas").spawn(&line)?;
    let address = scene.figure.address(NODE)?;
    let ask =
        format!("for n in $(seq 500); do curl -s -m 5 -H 'Host: {}' http://{address}/swapped; echo; done", eve.site);
    let answers = scene.figure.host("lb").text(&ask)?;
    drop(racing);
    ensure!(answers.contains(OWN), "the link never led to Eve's own page: {answers}");
    ensure!(!answers.contains(SECRET), "a static page showed Bob's secret");
    scene.bob_answers()
}

/// Connects or binds, and says whether it could.
const PORT_SCRIPT: &str = r#"<?php
ini_set('display_errors', '0');
$at = "tcp://{$_GET['at']}";
echo ($_GET['do'] === 'bind' ? stream_socket_server($at) : stream_socket_client($at, $number, $why, 2)) ? 'done' : 'not done';"#;

/// Agents' ports: accounts neither reach them nor, while the agent is not there, hold them.
fn agents_are_out_of_reach(scene: &Scene) -> Result<()> {
    let (node, eve) = (scene.node(), &scene.eve);
    scene.figure.put(eve.name, &format!("sites/{}/port.php", eve.site), PORT_SCRIPT)?;
    let eve_does = |what: &str, at: &str| -> Result<bool> {
        let answer = scene.figure.get_from(NODE, &eve.site, &format!("/port.php?do={what}&at={at}"))?;
        ensure!(["done", "not done"].contains(&answer.body.as_str()), "{answer:?}");
        Ok(answer.body == "done")
    };
    let (own, other) = (scene.figure.address(NODE)?, scene.figure.address("web2")?);
    ensure!(eve_does("connect", &format!("{own}:80"))? && eve_does("bind", &format!("{}:9000", eve.ip))?);
    for at in [format!("{own}:{AGENT}"), format!("{own}:{SCORE}"), format!("{other}:{SCORE}")] {
        let line = format!("socat -u OPEN:/dev/null TCP4:{at},connect-timeout=2");
        node.text(&line).with_context(|| format!("root can't reach {at} either"))?;
        ensure!(!eve_does("connect", &at)?, "Eve reached {at}");
    }
    node.text("systemctl stop phalanx-agent")?;
    for (ip, port) in [(own.as_str(), AGENT), (&own, SCORE), ("0.0.0.0", AGENT)] {
        ensure!(!eve_does("bind", &format!("{ip}:{port}"))?, "Eve holds {ip}:{port}");
        let free = format!("python3 -c 'import socket; socket.create_server((\"{ip}\", {port}))'");
        node.text(&free).with_context(|| format!("{ip}:{port} was not free"))?;
    }
    node.text("systemctl start phalanx-agent")?;
    scene.figure.settled(&["web1", "web2"])
}

/// While an account sleeps, somebody with Eve's uid listens on its address. She needs a privilege for it that no account has; if she had
/// it, she would be ended, it would be reported, and the account would answer.
fn squatters_are_ended(scene: &Scene) -> Result<()> {
    let eve = scene.eve.uid;
    scene.figure.site("carol", "carol.example.org", &[("index.html", "page of carol")])?;
    let sleeper = party(&scene.figure, "carol")?;
    let code = format!(
        "import socket, time\ns = socket.socket()\ns.bind((\"{}\", {PORT}))\ns.listen()\nprint(\"held\", flush=True)\ntime.sleep(60)",
        sleeper.ip
    );
    let caps = "--inh-caps=+net_bind_service --ambient-caps=+net_bind_service";
    let line = format!("exec setpriv --reuid {eve} --regid {eve} --clear-groups {caps} python3 -c '{code}'");
    let since = scene.node().text("date +%s")?;
    let mut squatter = scene.node().spawn(&line)?;
    eventually(Duration::from_secs(5), "a squatter", || {
        ensure!(squatter.stdout().contains("held"), "{} {}", squatter.stdout(), squatter.stderr());
        Ok(())
    })?;
    eventually(Duration::from_secs(20), "the sleeper's own answer", || {
        let answer = scene.figure.get_from(NODE, &sleeper.site, "/")?;
        ensure!(answer.status == 200 && answer.body == "page of carol", "{answer:?}");
        Ok(())
    })?;
    ensure!(!squatter.is_running()?, "the squatter lives");
    let journal = scene.node().text(&format!("journalctl -q -u phalanx-launcher --since @{since} --output=cat"))?;
    let report = format!("account {eve} held the address of account {}", sleeper.uid);
    ensure!(journal.contains(&report), "not reported: {journal}");
    Ok(())
}

#[test]
fn isolation() -> Result<()> {
    let scene = Scene::up()?;
    code_reaches(&scene)?;
    agents_are_out_of_reach(&scene)?;
    // From here on Eve's PHP is what her own tricks have made of it.
    htaccess_reaches(&scene)?;
    agent_follows_no_link(&scene)?;
    static_pages_show_no_swapped_target(&scene)?;
    squatters_are_ended(&scene)
}

/// What a hog takes, and the line of shell that shows that it does: on its node, with its uid in `$uid`.
struct Hog {
    what: &'static str,
    code: &'static str,
    measure: &'static str,
    at_least: u64,
}

const HOGS: [Hog; 3] = [
    Hog {
        what: "a fork bomb",
        code: "<?php shell_exec('perl -e \"while (1) { defined fork or select undef, undef, undef, 0.01 }\"');",
        measure: "systemctl show --value -p TasksCurrent phalanx-account-$uid.slice",
        at_least: 110,
    },
    Hog {
        what: "a memory hog",
        code: "<?php shell_exec('timeout -s KILL 12 sh -c \"while :; do perl /home/eve/hog.pl; done\"');",
        measure: "systemctl show --value -p MemoryCurrent phalanx-account-$uid.slice",
        at_least: 150 << 20,
    },
    Hog {
        what: "a busy loop",
        code: "<?php shell_exec('for i in 1 2 3 4 5 6 7 8; do timeout -s KILL 10 sh -c \"while :; do :; done\" & done; wait');",
        // Time of CPU of what lives, in hundredths of a second.
        measure: "pgrep -U $uid | sed 's|.*|/proc/&/stat|' | xargs cat 2>/dev/null | awk '{ sum += $14 + $15 } END { print sum + 0 }'",
        at_least: 200,
    },
];

/// The longest that one of Bob's answers may take while Eve hogs.
const PATIENCE_US: u64 = 3_000_000;

fn hogged(scene: &Scene, hog: &Hog) -> Result<()> {
    let Hog { what, code, measure, at_least } = hog;
    let uid = scene.eve.uid;
    scene.figure.put(
        "eve",
        "hog.pl",
        "while (1) { push @a, chr(65 + @a % 26) x 4e6; select undef, undef, undef, 0.05 }",
    )?;
    // A name of its own for each: the node may hold what was read of another for a while.
    let script = format!("{}.php", what.replace(' ', "-"));
    scene.figure.put("eve", &format!("sites/{}/{script}", scene.eve.site), code)?;
    let address = scene.figure.address(NODE)?;
    let hogs = scene.figure.host("lb").spawn(&format!(
        "for i in 1 2 3; do curl -sS --fail -m 15 -H 'Host: {}' http://{address}/{script} & done; wait",
        scene.eve.site
    ))?;
    let mut load = Load::new(format!("{address}:80").parse()?, &scene.bob.site, "/id.php", 8);
    load.rate = 10;
    let running = load.start(&scene.figure.host("lb"))?;
    eventually(Duration::from_secs(10), &format!("{what} that takes what it can get"), || {
        let taken: u64 = scene.node().text(&format!("uid={uid}; {measure}"))?.parse()?;
        ensure!(taken >= *at_least, "it takes {taken} of {at_least}; {}", hogs.stderr());
        Ok(())
    })?;
    let records = running.finish()?;
    drop(hogs);
    let bad: Vec<_> = records.iter().filter(|r| !r.ok() || r.took_us > PATIENCE_US).collect();
    ensure!(
        records.len() >= 50 && bad.is_empty(),
        "{what}: {} of {} answers of Bob's, such as {:?}",
        bad.len(),
        records.len(),
        bad.first()
    );
    let mut times: Vec<u64> = records.iter().map(|record| record.took_us).collect();
    times.sort_unstable();
    println!(
        "under {what} of Eve's Bob answers in {} ms at the median, {} ms at most",
        times[times.len() / 2] / 1_000,
        times[times.len() - 1] / 1_000
    );
    // Requests for it may still wait at the socket of Eve's PHP; they shall not begin it again.
    scene.as_eve_on_nas(&format!("rm {script}"))?;
    eventually(Duration::from_secs(10), "the end of all that Eve runs", || {
        scene
            .node()
            .text(&format!("systemctl kill --signal=KILL phalanx-account-{uid}.slice; ! pgrep -U {uid}"))
            .map(drop)
    })
}

#[test]
fn isolation_of_hogs() -> Result<()> {
    let scene = Scene::up()?;
    let limits = scene.figure.json("account show eve")?["limits"].clone();
    ensure!(limits["processes"] == 128 && limits["cpu_percent"] == 100, "{LOGICAL}: {limits}");
    for hog in &HOGS {
        hogged(&scene, hog)?;
        scene.bob_answers()?;
        // systemd may have given up Eve's PHP while there was no process left for it; the launcher opens its socket again.
        eventually(Duration::from_secs(25), "Eve's recovery", || {
            let answer = scene.figure.get_from(NODE, &scene.eve.site, "/id.php")?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        })?;
    }
    Ok(())
}

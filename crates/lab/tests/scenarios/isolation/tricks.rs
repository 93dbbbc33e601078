//! What Eve may try by `.htaccess`: the tricks of `tricks.conf`, aimed at her own things and at Bob's.
//!
//! Each must give exactly what is written down for it. An answer of 500 proves nothing by itself: a typing error gives the same.

use super::{NODE, PORT, SECRET, Scene};
use anyhow::{Context, Result, ensure};

const TRICKS: &str = include_str!("tricks.conf");

/// Makes the directory of a trick: scripts, pages, and links to whatever there is to find.
const TRICK_BASE: &str = r#"mkdir -p base && cd base
echo '<?php echo "RAN-AS ", posix_getuid();' | tee id.php > id.script
echo '<?php echo "another script";' > another.php
echo 'a page' > page.html
echo '<!--#include file="/home/bob/private.txt" --><!--#exec cmd="cat /srv/phalanx/content/home/bob/private.txt" -->' | tee page.shtml > include.html
printf '#!/bin/sh\necho Content-Type: text/plain; echo; echo A PROGRAM $((1 + 1)) RAN; cat /home/bob/private.txt\n' > run.cgi && chmod 755 run.cgi
ln -sfn /home/bob to-bob; ln -sfn /home/eve to-eve; ln -sfn /srv/phalanx/content/home/bob share-of-bob; ln -sfn /etc etc; ln -sfn /var/lib/phalanx state
for who in eve bob; do printf 'URI: to-%s/private.txt\nContent-Type: text/plain\n' $who > $who.map; done
cd ..
"#;

/// What each of the two has in its home for tricks to find, by path and content. The password is "open".
const BAIT: [(&str, &str); 4] = [
    ("passwords", "thief:{SHA}X8fji//gDKRq3YkUVGSi6vdZ1cI=\n"),
    ("groups", "thieves: thief\n"),
    ("letter.asis", "Status: 200\n\nas it is"),
    ("sites/@NAME@.example.org/another.php", "<?php echo 'another script';"),
];

/// Whose things a trick is aimed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    Own,
    Other,
}

/// A trick that is aimed at somebody.
#[derive(Debug)]
struct Trick {
    what: String,
    aim: Aim,
    path: String,
    rules: String,
    status: String,
    /// What must be seen in the answer or in a log.
    seen: String,
}

/// What came of it.
struct Played {
    answer: String,
    logs: String,
}

/// Plays all tricks.
pub fn lead_nowhere(scene: &Scene) -> Result<()> {
    for name in [scene.eve.name, scene.bob.name] {
        for (path, content) in BAIT {
            scene.figure.put(name, &path.replace("@NAME@", name), content)?;
        }
    }
    scene.bob_is_careless()?;
    let tricks = tricks(scene)?;
    let count = |aim| tricks.iter().filter(|trick| trick.aim == aim).count();
    ensure!(count(Aim::Other) >= 67 && count(Aim::Own) >= 62, "{} and {}", count(Aim::Other), count(Aim::Own));
    can_be_found(scene)?;
    let played = play(scene, &tricks)?;
    let wrong: Vec<String> = tricks
        .iter()
        .zip(&played)
        .filter_map(|(trick, played)| trick.check(scene, played).err())
        .map(|e| format!("{e:#}"))
        .collect();
    ensure!(wrong.is_empty(), "{} of {} tricks:\n{}", wrong.len(), tricks.len(), wrong.join("\n\n"));
    // Otherwise Bob's things may have been out of reach because they were gone.
    can_be_found(scene)?;
    println!("{} tricks of .htaccess lead nowhere", count(Aim::Other));
    scene.bob_answers()
}

/// What tricks look for is there, for root and, as far as it is Bob's, for Eve's uid outside of the walls.
fn can_be_found(scene: &Scene) -> Result<()> {
    let (eve, bob) = (scene.eve.uid, &scene.bob);
    let script = format!(
        "cd /srv/phalanx/content/home/bob
        setpriv --reuid {eve} --regid {eve} --clear-groups cat private.txt passwords groups letter.asis sites/{}/another.php
        test -S /run/phalanx/account/{}/php.sock; test -S /run/phalanx/launcher/launcher.sock
        test -s /etc/shadow; test -s /var/lib/phalanx/directory/directory.sqlite
        for at in {}:{PORT} {}:341; do socat -u OPEN:/dev/null TCP4:$at,connect-timeout=2; done",
        bob.site,
        bob.uid,
        bob.ip,
        scene.figure.address(NODE)?
    );
    let text = scene.node().exec(&["sh", "-eu", "-c", &script], b"")?.text().context("what tricks look for")?;
    ensure!(text.contains(SECRET), "{text}");
    Ok(())
}

fn tricks(scene: &Scene) -> Result<Vec<Trick>> {
    let mut tricks = Vec::new();
    for block in TRICKS.split("\n### ").skip(1) {
        for aim in [Aim::Own, Aim::Other] {
            let block = aimed(scene, block, aim, &format!("/t{}", tricks.len()))?;
            let mut lines = block.lines();
            let title = lines.next().unwrap_or_default();
            let (path, what) = title.split_once(' ').with_context(|| format!("{title:?} is no title"))?;
            let (expected, rules): (Vec<&str>, Vec<&str>) =
                lines.partition(|line| ["own ", "other ", "both "].iter().any(|who| line.starts_with(who)));
            let who = if aim == Aim::Own { "own " } else { "other " };
            let mine = expected.iter().find_map(|line| line.strip_prefix(who).or_else(|| line.strip_prefix("both ")));
            let Some(mine) = mine else {
                ensure!(aim == Aim::Own, "{what}: what must come of it?");
                continue;
            };
            let (status, seen) = mine.split_once(' ').with_context(|| format!("{what}: nothing must be seen?"))?;
            ensure!(!seen.is_empty() && !rules.is_empty(), "{what}: {block}");
            let (what, path, rules) = (what.to_owned(), path.replace("@@", ""), rules.join("\n"));
            tricks.push(Trick { what, aim, path, rules, status: status.to_owned(), seen: seen.to_owned() });
        }
    }
    Ok(tricks)
}

fn aimed(scene: &Scene, text: &str, aim: Aim, here: &str) -> Result<String> {
    let (party, socket, home, passwords, state) = match aim {
        Aim::Own => {
            let socket = "/run/phalanx/account/php.sock".to_owned();
            (&scene.eve, socket, "/home/eve".to_owned(), "passwd", "live/httpd-common.conf")
        }
        Aim::Other => {
            let socket = format!("/run/phalanx/account/{}/php.sock", scene.bob.uid);
            (&scene.bob, socket, "/srv/phalanx/content/home/bob".to_owned(), "shadow", "directory/directory.sqlite")
        }
    };
    let text = text
        .replace("@NAME@", party.name)
        .replace("@UID@", &party.uid.to_string())
        .replace("@IP@", &party.ip.to_string())
        .replace("@SITE@", &party.site)
        .replace("@SOCKET@", &socket)
        .replace("@HOME@", &home)
        .replace("@PASSWORDS@", passwords)
        .replace("@STATE@", state)
        .replace("@OWN_UID@", &scene.eve.uid.to_string())
        .replace("@NODE@", &scene.figure.address(NODE)?)
        .replace("@PORT@", &PORT.to_string())
        .replace("@HERE@", here);
    Ok(text)
}

/// Writes each trick into a directory of its own and asks for it on the node, so that what the logs say of it is at hand.
fn play(scene: &Scene, tricks: &[Trick]) -> Result<Vec<Played>> {
    let mut script = TRICK_BASE.to_owned();
    let (address, eve) = (scene.figure.address(NODE)?, &scene.eve);
    let mut ask = format!(
        "log() {{ journalctl --sync; journalctl --quiet -u 'phalanx-httpd*@{0}.service' -u phalanx-php@{0}.service \"$@\"; }}\n",
        eve.uid
    );
    for (number, Trick { path, rules, .. }) in tricks.iter().enumerate() {
        script += &format!(
            "rm -rf t{number}; cp -a base t{number}\ncat > t{number}/.htaccess <<'END-OF-TRICK'\n{rules}\nEND-OF-TRICK\n"
        );
        ask += &format!(
            "at=$(log --lines=1 --show-cursor --output=cat | sed -n 's/^-- cursor: //p')
            curl -si -m 10 -u thief:open -H 'Host: {}' 'http://{address}/t{number}/{path}'; printf '\\036'
            log --after-cursor=\"$at\" --output=cat; printf '\\036'\n",
            eve.site
        );
        // php-fpm keeps for later requests what one of them brought of settings: those are Eve's own.
        if rules.contains("PHP_") {
            ask += &format!("systemctl restart phalanx-php@{}.service\n", eve.uid);
        }
    }
    scene.as_eve_on_nas(&script)?;
    let text = scene.node().exec(&["sh"], ask.as_bytes())?.stdout;
    let parts: Vec<&str> = text.split('\u{1e}').collect();
    let (pairs, rest) = parts.as_chunks::<2>();
    ensure!(pairs.len() == tricks.len() && rest == [""], "{} answers to {} tricks: {text}", pairs.len(), tricks.len());
    Ok(pairs.iter().map(|[answer, logs]| Played { answer: (*answer).to_owned(), logs: (*logs).to_owned() }).collect())
}

impl Trick {
    fn check(&self, scene: &Scene, Played { answer, logs }: &Played) -> Result<()> {
        let Self { what, aim, path, rules, status, seen } = self;
        let shown = || format!("{what} ({aim:?}): {path} with\n{rules}\ngave:\n{answer}\nand in the logs:\n{logs}");
        let right = answer.starts_with(&format!("HTTP/1.1 {status} "));
        ensure!(right && (answer.contains(seen) || logs.contains(seen)), "wanted {status} and {seen:?}: {}", shown());
        let forbidden =
            [SECRET, &format!("RAN-AS {}", scene.bob.uid), "root:x:", "root:*:", "SQLite format", "A PROGRAM 2 RAN"];
        let leak = forbidden.iter().find(|text| *aim == Aim::Other && answer.contains(**text));
        ensure!(leak.is_none(), "{leak:?} leaked: {}", shown());
        Ok(())
    }
}

//! Each rule of the model, tried through the API and through the command line: refused by its name, with a way out, and nothing changed.

use anyhow::{Context, Result, ensure};
use phalanx_lab::eventually;
use phalanx_lab::figure::{EXTERNAL, Figure, LOGICAL};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// What must be refused: the rule, the request (method, path, body) and, where the command line can say the same, the command.
struct Attempt {
    rule: &'static str,
    request: (&'static str, String, Option<Value>),
    command: Option<String>,
}

fn attempt(rule: &'static str, method: &'static str, path: &str, body: Option<Value>, command: &str) -> Attempt {
    let command = (!command.is_empty()).then(|| command.to_owned());
    Attempt { rule, request: (method, path.to_owned(), body), command }
}

/// The original's five rules.
fn rules_of_the_original() -> Vec<Attempt> {
    let (slave, kind) = ("slave-holds-no-logical-server", "slave-shares-masters-kind");
    let (stays, used) = ("master-with-slaves-stays", "in-use-is-not-removed");
    let external = "external-address-has-one-user";
    let post = |rule, path: &str, body: Value, command: &str| attempt(rule, "POST", path, Some(body), command);
    let delete = |rule, path: &str, command: &str| attempt(rule, "DELETE", path, None, command);
    vec![
        post(
            slave,
            "/logical-servers",
            json!({"name": "www2", "server": "web2"}),
            "logical-server add www2 --server web2",
        ),
        post(kind, "/clusters/web/slaves", json!({"server": "post"}), "cluster add-slave web post"),
        post(kind, "/clusters/web/slaves", json!({"server": "disk"}), "cluster add-slave web disk"),
        delete(stays, "/clusters/web", "cluster remove web"),
        delete(stays, "/servers/web1", "server remove web1"),
        delete(stays, "/clusters/web/slaves/web1", "cluster remove-slave web web1"),
        delete(stays, "/clusters/web/slaves/web1?force=true", "cluster remove-slave web web1 --force"),
        delete(used, "/servers/web2", "server remove web2"),
        delete(used, "/servers/nas", "server remove nas"),
        delete(used, "/servers/lb", "server remove lb"),
        delete(used, "/clusters/storage", "cluster remove storage"),
        delete(used, "/clusters/front", "cluster remove front"),
        delete(used, "/shares/content", "share remove content"),
        delete(used, &format!("/logical-servers/{LOGICAL}"), &format!("logical-server remove {LOGICAL}")),
        delete(used, "/accounts/ada", "account remove ada"),
        attempt(used, "PATCH", "/clusters/web", Some(json!({"share": null})), "cluster change web --no-share"),
        post(
            external,
            "/addresses",
            json!({"external": format!("{EXTERNAL}:80"), "balancer": "front", "cluster": "mail"}),
            &format!("address add {EXTERNAL}:80 --balancer front --cluster mail"),
        ),
    ]
}

/// The rules that keep names, references and kinds straight.
fn rules_of_reference() -> Vec<Attempt> {
    let (unique, exists) = ("name-is-unique", "reference-exists");
    let (one_server, one_cluster) = ("internal-address-has-one-server", "server-belongs-to-one-cluster");
    let (fit, last) = ("kinds-fit", "last-node-stays");
    let post = |rule, path: &str, body: Value, command: &str| attempt(rule, "POST", path, Some(body), command);
    let patch = |rule, path: &str, body: Value, command: &str| attempt(rule, "PATCH", path, Some(body), command);
    let server = |name: &str, address: &str| json!({"name": name, "kind": "web", "address": address});
    let address = |external: &str, balancer: &str, cluster: &str| json!({"external": external, "balancer": balancer, "cluster": cluster});
    vec![
        post(unique, "/servers", server("web1", "10.9.0.99/24"), "server add web1 --kind web --address 10.9.0.99/24"),
        post(
            unique,
            "/clusters",
            json!({"name": "web", "kind": "nas", "master": "disk"}),
            "cluster add web --kind nas --master disk",
        ),
        post(
            unique,
            "/shares",
            json!({"name": "content", "kind": "local", "nas": "storage", "path": "/srv/nas/other"}),
            "share add content --kind local --nas storage --path /srv/nas/other",
        ),
        post(
            unique,
            "/shares",
            json!({"name": "twin", "kind": "local", "nas": "storage", "path": "/srv/nas/web"}),
            "share add twin --kind local --nas storage --path /srv/nas/web",
        ),
        post(
            unique,
            "/logical-servers",
            json!({"name": LOGICAL, "server": "web1"}),
            &format!("logical-server add {LOGICAL} --server web1"),
        ),
        post(
            unique,
            "/accounts",
            json!({"name": "ada", "logical_server": LOGICAL}),
            &format!("account add ada --logical-server {LOGICAL}"),
        ),
        post(
            unique,
            "/sites",
            json!({"name": "ada.example.org", "account": "ada"}),
            "site add ada.example.org --account ada",
        ),
        post(
            unique,
            "/sites",
            json!({"name": "alias.example.org", "account": "ada"}),
            "site add alias.example.org --account ada",
        ),
        post(
            unique,
            "/sites",
            json!({"name": "new.example.org", "account": "ada", "aliases": ["ada.example.org"]}),
            "site add new.example.org --account ada --alias ada.example.org",
        ),
        post(
            one_server,
            "/servers",
            server("twin", "10.9.0.11/24"),
            "server add twin --kind web --address 10.9.0.11/24",
        ),
        patch(
            one_server,
            "/servers/web2",
            json!({"address": "10.9.0.11/24"}),
            "server change web2 --address 10.9.0.11/24",
        ),
        patch(
            one_server,
            &format!("/addresses/{EXTERNAL}:80"),
            json!({"internal": {"web1": "10.9.0.20"}}),
            &format!("address change {EXTERNAL}:80 --internal web1=10.9.0.20"),
        ),
        post(one_cluster, "/clusters/web/slaves", json!({"server": "web2"}), "cluster add-slave web web2"),
        post(
            one_cluster,
            "/clusters",
            json!({"name": "second", "kind": "web", "master": "web2"}),
            "cluster add second --kind web --master web2",
        ),
        post(
            exists,
            "/clusters",
            json!({"name": "second", "kind": "web", "master": "nobody"}),
            "cluster add second --kind web --master nobody",
        ),
        post(exists, "/clusters/web/slaves", json!({"server": "nobody"}), "cluster add-slave web nobody"),
        post(
            exists,
            "/accounts",
            json!({"name": "bob", "logical_server": "nowhere"}),
            "account add bob --logical-server nowhere",
        ),
        post(
            exists,
            "/sites",
            json!({"name": "bob.example.org", "account": "bob"}),
            "site add bob.example.org --account bob",
        ),
        post(
            exists,
            "/addresses",
            address("198.51.100.11:80", "front", "nowhere"),
            "address add 198.51.100.11:80 --balancer front --cluster nowhere",
        ),
        post(
            exists,
            "/logical-servers",
            json!({"name": "post", "server": "post"}),
            "logical-server add post --server post",
        ),
        patch(exists, "/clusters/mail", json!({"share": "nowhere"}), "cluster change mail --share nowhere"),
        post(
            fit,
            "/clusters",
            json!({"name": "second", "kind": "web", "master": "disk"}),
            "cluster add second --kind web --master disk",
        ),
        post(
            fit,
            "/logical-servers",
            json!({"name": "files", "server": "nas"}),
            "logical-server add files --server nas",
        ),
        post(
            fit,
            "/addresses",
            address("198.51.100.11:80", "web", "web"),
            "address add 198.51.100.11:80 --balancer web --cluster web",
        ),
        post(
            fit,
            "/addresses",
            address("198.51.100.11:80", "front", "storage"),
            "address add 198.51.100.11:80 --balancer front --cluster storage",
        ),
        patch(fit, "/clusters/storage", json!({"share": "content"}), "cluster change storage --share content"),
        patch(last, "/clusters/web/nodes/web2", json!({"drained": true}), "cluster drain web web2"),
        attempt(last, "DELETE", "/clusters/web/slaves/web2", None, "cluster remove-slave web web2"),
    ]
}

/// Values out of their range. The command line knows some ranges by itself; those are a wrong use, not a refusal.
fn rules_of_range() -> Vec<Attempt> {
    let range = "value-in-range";
    let address = |external: &str, port: u16| {
        Some(json!({"external": external, "balancer": "front", "cluster": "web", "port": port}))
    };
    vec![
        attempt(range, "PATCH", "/clusters/web/nodes/web1", Some(json!({"weight": 0})), ""),
        attempt(range, "PATCH", "/clusters/web/nodes/web1", Some(json!({"weight": 101})), ""),
        attempt(range, "POST", "/addresses", address("198.51.100.11:0", 80), ""),
        attempt(range, "POST", "/addresses", address("198.51.100.11:80", 0), ""),
        attempt(
            range,
            "POST",
            "/addresses",
            address("127.0.0.1:80", 80),
            "address add 127.0.0.1:80 --balancer front --cluster web --port 80",
        ),
        attempt(
            range,
            "POST",
            "/addresses",
            address("224.0.0.1:80", 80),
            "address add 224.0.0.1:80 --balancer front --cluster web --port 80",
        ),
        attempt(
            range,
            "PATCH",
            "/clusters/web",
            Some(json!({"httpd_directives": [format!("# {}", "x".repeat(1_000))]})),
            "cluster change web --httpd-directives-file /run/long.conf",
        ),
    ]
}

/// All that the panel keeps, without what it saw of the servers.
fn world(figure: &Figure) -> Result<Value> {
    let mut all = serde_json::Map::new();
    for list in ["servers", "clusters", "shares", "addresses", "logical-servers", "accounts", "sites"] {
        let (status, mut answer) = figure.api("GET", &format!("/{list}"), None)?;
        ensure!(status == 200, "{list}: {status} {answer}");
        for item in answer["items"].as_array_mut().context("a list has items")? {
            item.as_object_mut().context("an item is an object")?.remove("state");
        }
        all.insert(list.to_owned(), answer);
    }
    Ok(Value::Object(all))
}

fn refused_by_the_api(figure: &Figure, attempt: &Attempt) -> Result<()> {
    let (method, path, body) = &attempt.request;
    let (status, problem) = figure.api(method, path, body.as_ref())?;
    let seen = format!("{method} {path} {body:?} gave {status} {problem}");
    ensure!(status == 409 && problem["rule"] == attempt.rule, "the rule is {}, but {seen}", attempt.rule);
    let kind = problem["type"].as_str().unwrap_or_default();
    ensure!(kind.ends_with(&format!("/problems/{}", attempt.rule)) && problem["status"] == 409, "{seen}");
    for words in ["title", "detail", "hint"] {
        ensure!(problem[words].as_str().is_some_and(|text| text.len() > 5), "no {words}: {seen}");
    }
    Ok(())
}

fn refused_by_the_command(figure: &Figure, attempt: &Attempt) -> Result<()> {
    let Some(command) = &attempt.command else { return Ok(()) };
    let output = figure.host("cp").run(&format!("phalanx {command}"))?;
    let says = |line: &str| output.stderr.lines().any(|seen| seen.starts_with(line) && seen.len() > line.len());
    let names_it = output.stderr.lines().any(|line| line == format!("rule: {}", attempt.rule));
    ensure!(
        output.status == 1 && output.stdout.is_empty() && names_it && says("error: ") && says("hint: "),
        "`phalanx {command}` was to be refused by {}: {output:?}",
        attempt.rule
    );
    Ok(())
}

#[test]
fn rules() -> Result<()> {
    let figure = Figure::up()?;
    for line in [
        "server add post --kind mail --address 10.9.0.40/24",
        "server add pillar --kind mail --address 10.9.0.42/24",
        "server add disk --kind nas --address 10.9.0.41/24",
        "cluster add mail --kind mail --master pillar",
        &format!("account add ada --logical-server {LOGICAL}"),
        "site add ada.example.org --account ada --alias alias.example.org",
    ] {
        figure.phalanx(line)?;
    }
    // Not before the panel knows that web2 serves.
    eventually(Duration::from_secs(10), "the drain of web1", || figure.phalanx("cluster drain web web1"))?;
    figure.host("cp").text("printf '# %01000d\\n' 0 > /run/long.conf")?;
    let before = world(&figure)?;

    let attempts: Vec<_> =
        [rules_of_the_original(), rules_of_reference(), rules_of_range()].into_iter().flatten().collect();
    let tries = attempts
        .iter()
        .flat_map(|attempt| [refused_by_the_api(&figure, attempt), refused_by_the_command(&figure, attempt)]);
    let wrong: Vec<String> = tries.filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(wrong.is_empty(), "{} tries went wrong:\n{}", wrong.len(), wrong.join("\n"));
    let rules: BTreeSet<_> = attempts.iter().map(|attempt| attempt.rule).collect();
    ensure!(rules.len() == 12, "every rule of the model was tried: {rules:?}");
    println!("{} attempts against {} rules were refused", attempts.len(), rules.len());

    let after = world(&figure)?;
    ensure!(before == after, "a refused change left something:\n{before:#}\n{after:#}");
    // The tries can fail: a person who says it twice is heard.
    figure.phalanx("cluster drain web web2 --anyway")?;
    ensure!(world(&figure)? != before);
    Ok(())
}

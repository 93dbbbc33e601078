//! The attempts: for each rule, what breaks it, as a request and as a command.

use phalanx_lab::figure::{EXTERNAL, LOGICAL};
use serde_json::{Value, json};

/// What must be refused.
pub struct Attempt {
    /// By which rule.
    pub rule: &'static str,
    /// The method, the path and the body.
    pub request: (&'static str, String, Option<Value>),
    /// The same on the command line.
    pub command: Command,
}

/// What the command line does with the same attempt.
pub enum Command {
    /// The panel refuses it, by the same rule.
    Refused(String),
    /// The command line knows better and does not ask the panel; what it says has these words.
    Misused(String, &'static str),
}

/// What the code would refuse, but nobody can ask for.
pub struct Unsayable {
    /// The rule of the place that stays behind.
    pub rule: &'static str,
    /// How its words begin.
    pub words: &'static str,
    /// Who tries gets this status, and a problem with these words in it.
    pub request: (&'static str, &'static str, Value, u16, &'static str),
    /// The same on the command line, its status, and the words it has for it.
    pub command: (&'static str, i32, &'static str),
}

fn attempt(rule: &'static str, method: &'static str, path: &str, body: Option<Value>, command: &str) -> Attempt {
    Attempt { rule, request: (method, path.to_owned(), body), command: Command::Refused(command.to_owned()) }
}

fn misuse(mut attempt: Attempt, command: &str, words: &'static str) -> Attempt {
    attempt.command = Command::Misused(command.to_owned(), words);
    attempt
}

/// All attempts.
pub fn attempts() -> Vec<Attempt> {
    let all = [rules_of_the_original(), rules_of_reference(), rules_of_kind(), rules_of_mail(), rules_of_range()];
    all.into_iter().flatten().collect()
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
        attempt(
            used,
            "PATCH",
            "/shares/content",
            Some(json!({"path": "/srv/nas/other"})),
            "share change content --path /srv/nas/other",
        ),
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

/// References and kinds, where they are set by other ways.
fn rules_of_kind() -> Vec<Attempt> {
    let (fit, exists, unique) = ("kinds-fit", "reference-exists", "name-is-unique");
    let (one_server, used) = ("internal-address-has-one-server", "in-use-is-not-removed");
    let post = |rule, path: &str, body: Value, command: &str| attempt(rule, "POST", path, Some(body), command);
    let internal = |rule, internal: Value, options: &str| {
        let body = json!({"external": "198.51.100.11:80", "balancer": "front", "cluster": "web", "internal": internal});
        let command = format!("address add 198.51.100.11:80 --balancer front --cluster web {options}");
        attempt(rule, "POST", "/addresses", Some(body), &command)
    };
    vec![
        misuse(
            post(exists, "/shares", json!({"name": "lost", "kind": "nfs-managed", "path": "/srv/nas/lost"}), ""),
            "share add lost --kind nfs-managed --path /srv/nas/lost",
            "--nas <CLUSTER>",
        ),
        post(
            exists,
            "/shares",
            json!({"name": "lost", "kind": "nfs-managed", "nas": "nowhere", "path": "/srv/nas/lost"}),
            "share add lost --kind nfs-managed --nas nowhere --path /srv/nas/lost",
        ),
        post(
            fit,
            "/shares",
            json!({"name": "lost", "kind": "local", "nas": "web", "path": "/srv/nas/lost"}),
            "share add lost --kind local --nas web --path /srv/nas/lost",
        ),
        post(
            exists,
            "/logical-servers",
            json!({"name": "letters", "server": "pillar"}),
            "logical-server add letters --server pillar",
        ),
        internal(exists, json!({"disk": "10.9.0.51"}), "--internal disk=10.9.0.51"),
        internal("value-in-range", json!({"web1": "127.0.0.1"}), "--internal web1=127.0.0.1"),
        internal("value-in-range", json!({"web1": "224.0.0.1"}), "--internal web1=224.0.0.1"),
        internal(
            one_server,
            json!({"web1": "10.9.0.51", "web2": "10.9.0.51"}),
            "--internal web1=10.9.0.51 --internal web2=10.9.0.51",
        ),
        internal(one_server, json!({"web1": "10.9.0.12"}), "--internal web1=10.9.0.12"),
        post(exists, "/servers/disk/rollback", json!({"generation": 1}), "server rollback disk 1"),
        attempt(exists, "POST", "/servers/disk/reconcile", None, "server reconcile disk"),
        post(
            "php-is-installed",
            "/accounts",
            json!({"name": "bob", "logical_server": LOGICAL, "php": "9.9"}),
            &format!("account add bob --logical-server {LOGICAL} --php 9.9"),
        ),
        attempt(
            "php-is-installed",
            "PATCH",
            "/accounts/ada",
            Some(json!({"php": "9.9"})),
            "account change ada --php 9.9",
        ),
        post(unique, "/tokens", json!({"name": "admin", "role": "admin"}), "token add admin"),
        attempt(used, "DELETE", "/tokens/admin", None, "token remove admin"),
    ]
}

/// Mail clusters with what only one node may do, and what is placed on them.
fn rules_of_mail() -> Vec<Attempt> {
    let (fit, exists, unique, used) = ("kinds-fit", "reference-exists", "name-is-unique", "in-use-is-not-removed");
    let post = |rule, path: &str, body: Value, command: &str| attempt(rule, "POST", path, Some(body), command);
    let delete = |path: &str, command: &str| attempt(used, "DELETE", path, None, command);
    let grant = |cluster: &str, right: &str, to: &str| {
        let command = format!("cluster move-grant {cluster} {right} --to {to}");
        post(exists, &format!("/clusters/{cluster}/grants/{right}/move"), json!({ "to": to }), &command)
    };
    let domain = |rule, name: &str, account: &str, logical: &str| {
        let command = format!("mail-domain add {name} --account {account} --logical-server {logical}");
        post(rule, "/mail-domains", json!({"name": name, "account": account, "logical_server": logical}), &command)
    };
    let mailbox = |rule, address: &str| {
        let command = format!("mailbox add {address} --password-file /run/password");
        post(rule, "/mailboxes", json!({"address": address, "password": "correct horse"}), &command)
    };
    let alias = |rule, source: &str| {
        let command = format!("alias add {source} --to a@example.org");
        post(rule, "/aliases", json!({"source": source, "targets": ["a@example.org"]}), &command)
    };
    vec![
        post(
            fit,
            "/clusters",
            json!({"name": "second", "kind": "mail", "master": "post"}),
            "cluster add second --kind mail --master post",
        ),
        attempt(
            fit,
            "PATCH",
            "/clusters/web",
            Some(json!({"mail_name": "mail.example.net"})),
            "cluster change web --mail-name mail.example.net",
        ),
        post(
            fit,
            "/addresses",
            json!({"external": "198.51.100.12:80", "balancer": "front", "cluster": "mail"}),
            "address add 198.51.100.12:80 --balancer front --cluster mail",
        ),
        grant("web", "mailboxes", "web1"),
        grant("storage", "mailboxes", "nas"),
        grant("couriers", "mailboxes", "post"),
        post(
            "grant-moves-by-proof",
            "/clusters/couriers/grants/mailboxes/move",
            json!({ "to": "sick" }),
            "cluster move-grant couriers mailboxes --to sick",
        ),
        post(
            "grant-moves-by-proof",
            "/clusters/web/grants/logs/move",
            json!({ "to": "web2" }),
            "cluster move-grant web logs --to web2",
        ),
        delete("/clusters/couriers/slaves/runner", "cluster remove-slave couriers runner"),
        domain(unique, "bea.example.org", "bea", "mailroom"),
        domain(unique, "mail.example.net", "bea", "mailroom"),
        attempt(
            unique,
            "PATCH",
            "/clusters/mail",
            Some(json!({"mail_name": "bea.example.org"})),
            "cluster change mail --mail-name bea.example.org",
        ),
        domain(exists, "new.example.org", "nobody", "mailroom"),
        domain(exists, "new.example.org", "bea", "nowhere"),
        domain(fit, "new.example.org", "bea", LOGICAL),
        mailbox(unique, "info@bea.example.org"),
        mailbox(exists, "info@new.example.org"),
        alias(unique, "sales@bea.example.org"),
        alias(exists, "@new.example.org"),
        delete("/mail-domains/bea.example.org", "mail-domain remove bea.example.org"),
        delete("/accounts/bea", "account remove bea"),
        delete("/accounts/bea?sites=true", "account remove bea --with-sites"),
        delete("/logical-servers/mailroom", "logical-server remove mailroom"),
    ]
}

/// Values out of their range. The command line knows some ranges by itself.
fn rules_of_range() -> Vec<Attempt> {
    let range = "value-in-range";
    let address = |external: &str, port: u16| {
        let body = json!({"external": external, "balancer": "front", "cluster": "web", "port": port});
        let command = format!("address add {external} --balancer front --cluster web --port {port}");
        attempt(range, "POST", "/addresses", Some(body), &command)
    };
    let weight = |weight: u8| {
        let body = json!({ "weight": weight });
        let attempt = attempt(range, "PATCH", "/clusters/web/nodes/web1", Some(body), "");
        misuse(attempt, &format!("cluster weight web web1 {weight}"), "is not in 1..=100")
    };
    let slave = |weight: u8| {
        let body = json!({"server": "spare", "weight": weight});
        let attempt = attempt(range, "POST", "/clusters/web/slaves", Some(body), "");
        misuse(attempt, &format!("cluster add-slave web spare --weight {weight}"), "is not in 1..=100")
    };
    let directives = |lines: usize, letters: usize, file: &str| {
        let body = json!({"httpd_directives": vec![format!("# {}", "x".repeat(letters)); lines]});
        let command = format!("cluster change web --httpd-directives-file {file}");
        attempt(range, "PATCH", "/clusters/web", Some(body), &command)
    };
    let long = format!("/srv/nas/{}", "x".repeat(200));
    vec![
        attempt(
            range,
            "POST",
            "/shares",
            Some(json!({"name": "long", "kind": "local", "path": long})),
            &format!("share add long --kind local --path {long}"),
        ),
        weight(0),
        weight(101),
        slave(0),
        slave(101),
        address("198.51.100.11:0", 80),
        address("198.51.100.11:80", 0),
        address("127.0.0.1:80", 80),
        address("224.0.0.1:80", 80),
        directives(1, 1_000, "/run/long.conf"),
        directives(20, 900, "/run/many.conf"),
    ]
}

/// One account more than there are uids, which the panel's host has been made to believe.
pub fn beyond_the_last_uid() -> Attempt {
    let body = json!({"name": "late", "logical_server": LOGICAL});
    let command = format!("account add late --logical-server {LOGICAL}");
    attempt("value-in-range", "POST", "/accounts", Some(body), &command)
}

/// What the model refuses and nobody can ask for, since a request has no field for it or another rule comes first.
pub fn unsayable() -> Vec<Unsayable> {
    let unknown = "unknown field";
    vec![
        Unsayable {
            rule: "kinds-fit",
            words: "server {} is of kind {} and can't become",
            request: ("PATCH", "/servers/spare", json!({"kind": "mail"}), 422, unknown),
            command: ("server change spare --kind mail", 2, "unexpected argument '--kind'"),
        },
        Unsayable {
            rule: "value-in-range",
            words: "cluster {} can't be made with slaves in it",
            request: (
                "POST",
                "/clusters",
                json!({"name": "second", "kind": "web", "master": "spare", "slaves": {"web2": {}}}),
                422,
                unknown,
            ),
            command: ("cluster add second --kind web --master spare --slave web2", 2, "unexpected argument '--slave'"),
        },
        Unsayable {
            rule: "kinds-fit",
            words: "kind, master and slaves of cluster",
            request: ("PATCH", "/clusters/web", json!({"master": "web2"}), 422, unknown),
            command: ("cluster change web --master web2", 2, "unexpected argument '--master'"),
        },
        Unsayable {
            rule: "external-address-has-one-user",
            words: "{} belongs to balancer",
            request: ("PATCH", "/addresses/198.51.100.10:80", json!({"cluster": "mail"}), 422, unknown),
            command: ("address change 198.51.100.10:80 --cluster mail", 2, "unexpected argument '--cluster'"),
        },
        Unsayable {
            rule: "grant-moves-by-proof",
            words: "server {}, which has {right} of cluster {cluster}, is not fenced",
            request: (
                "POST",
                "/queues/runner/adopt",
                json!({"to": "courier", "confirmation": "I think so"}),
                409,
                "nobody has said that it is off",
            ),
            command: ("queue adopt runner --to courier --confirm 'I think so'", 1, "nobody has said that it is off"),
        },
        Unsayable {
            rule: "grant-moves-by-proof",
            words: "the fence of server {server} was not begun",
            request: (
                "POST",
                "/servers/runner/fence",
                json!({"confirmation": "I think so"}),
                409,
                "nobody has said that it is off",
            ),
            command: ("server fence runner --confirm 'I think so'", 1, "nobody has said that it is off"),
        },
        // That a holder is at an end is said by itself, or by who fenced it.
        Unsayable {
            rule: "grant-moves-by-proof",
            words: "{right} of cluster {cluster} stay with {}; nobody asked",
            request: (
                "POST",
                "/clusters/couriers/grants/mailboxes/move",
                json!({"to": "runner", "proof": "fenced"}),
                422,
                unknown,
            ),
            command: (
                "cluster move-grant couriers mailboxes --to runner --proof fenced",
                2,
                "unexpected argument '--proof'",
            ),
        },
        // The share of a cluster with logical servers can't be taken away, so that none is ever missing.
        Unsayable {
            rule: "reference-exists",
            words: "the cluster of logical server {logical_server} has no share",
            request: ("PATCH", "/clusters/web", json!({"share": null}), 409, "whose content lies on its share"),
            command: ("cluster change web --no-share", 1, "whose content lies on its share"),
        },
    ]
}

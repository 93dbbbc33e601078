//! The command line as a whole: help texts, parsing, and that every option is documented.

use super::*;
use expect_test::{Expect, expect};

fn help(path: &[&str]) -> String {
    let mut command = Cli::command().term_width(110);
    command.build();
    for name in path {
        command = command.find_subcommand(name).expect("a command").clone();
    }
    command.render_help().to_string()
}

#[track_caller]
fn check_help(path: &[&str], expected: Expect) {
    expected.assert_eq(&help(path));
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_first_help_shows_the_way() {
    check_help(
        &[],
        expect![[r#"
            A group of Linux machines that behaves as one web or mail hosting server

            Usage: phalanx [OPTIONS] <COMMAND>

            Commands:
              status          Everything at a glance: balancers, nodes, shares and what is wrong
              events          What happened on the nodes
              server          Physical servers: the machines that run the agent
              cluster         Clusters: a master and its slaves that behave as one server
              share           Shares: the storage that all nodes of a cluster mount
              address         External addresses, and who takes and serves them
              logical-server  Logical servers: the services that customers are placed on
              account         Accounts: customers' spaces with uid and limits
              site            Web sites of accounts
              mail-domain     Domains that mail is taken for, and what belongs into the DNS for them
              mailbox         Mailboxes of mail domains
              alias           Addresses whose mail goes elsewhere
              queue           Mail queues: what waits, and which node delivers it
              mail            Mail clusters' logs, and the way of a message through them
              token           Tokens for the API
              audit           Who changed what, and when
              traffic         Requests, messages and bytes of sites and mail domains by day
              completions     Print a completion script for a shell
              help            Print this message or the help of the given subcommand(s)

            Options:
              -h, --help     Print help
              -V, --version  Print version

            Global options:
                  --panel <URL>        The panel's address [env: PHALANX_PANEL] [default: http://127.0.0.1:8080]
                  --token-file <FILE>  Read the API token from this file
                  --json               Print the API's JSON

            The way to a first site:
              phalanx server add web1 --kind web --address 10.9.0.11/24
              phalanx share add content --kind local --path /srv/content
              phalanx cluster add web --kind web --master web1 --share content
              phalanx server token web1                 prints the command to run on web1
              phalanx logical-server add www --server web1
              phalanx account add alice --logical-server www
              phalanx site add www.example.org --account alice
              phalanx status

            Daemons, which systemd starts (each has --help):
              phalanx panel init | run                  the control panel
              phalanx agent join | run                  the agent on each machine
              phalanx launcher, guard, logs             an agent's helpers on web nodes

            The API token is read from --token-file, else PHALANX_TOKEN, else /var/lib/phalanx/panel/admin.token.
            Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the panel is out of reach.
        "#]],
    );
}

#[test]
fn nouns_have_verbs() {
    check_help(
        &["cluster"],
        expect![[r#"
            Clusters: a master and its slaves that behave as one server

            Usage: phalanx cluster [OPTIONS] <COMMAND>

            Commands:
              add           Make a cluster of one: its master
              list          List the clusters
              show          Show one in full
              change        Change a cluster's share, httpd directives or mail name
              remove        Dissolve a cluster that has no slaves
              add-slave     Make a server a slave of a cluster
              remove-slave  Take a slave out of its cluster, after it was drained
              drain         Give a node no new connections; those it has go on
              undrain       Give a drained node new connections again; one that is leaving stays
              weight        Set a node's part of the traffic relative to the other nodes
              move-grant    Let a right that one node alone has go to another node, as soon as its holder is at an end
                            with it
              help          Print this message or the help of the given subcommand(s)

            Options:
              -h, --help  Print help

            Global options:
                  --panel <URL>        The panel's address [env: PHALANX_PANEL] [default: http://127.0.0.1:8080]
                  --token-file <FILE>  Read the API token from this file
                  --json               Print the API's JSON
        "#]],
    );
    check_help(
        &["cluster", "remove-slave"],
        expect![[r#"
            Take a slave out of its cluster, after it was drained

            Usage: phalanx cluster remove-slave [OPTIONS] <CLUSTER> <SERVER>

            Arguments:
              <CLUSTER>  The cluster
              <SERVER>   The slave

            Options:
                  --deadline <DEADLINE>  How long its connections may take to end, such as 30s or 5m [default: 30s]
                  --force                Do not drain: remove it at once
                  --anyway               Also if it is the last node in service
              -h, --help                 Print help

            Global options:
                  --panel <URL>        The panel's address [env: PHALANX_PANEL] [default: http://127.0.0.1:8080]
                  --token-file <FILE>  Read the API token from this file
                  --json               Print the API's JSON

            The panel goes on with it when this command is broken off, and after it was started anew.
            Until the slave has left, `phalanx cluster undrain` takes it back.

            Examples:
              phalanx cluster remove-slave web web2                  wait up to 30 s for its connections to end
              phalanx cluster remove-slave web web2 --deadline 5m
              phalanx cluster remove-slave web web2 --force          at once: its connections are cut
        "#]],
    );
    check_help(
        &["account", "change"],
        expect![[r#"
        Change an account's limits, PHP or state

        Usage: phalanx account change [OPTIONS] <NAME>

        Arguments:
          <NAME>  The account

        Options:
              --php <VERSION>  Which PHP runs its scripts, such as 8.2
              --suspend        Stop serving its sites
              --resume         Serve its sites again
          -h, --help           Print help

        Limits on each node:
              --cpu-percent <N>  CPU time in percent of one core, 5 to 6400
              --memory-mib <N>   Memory in MiB, 64 to 1048576
              --processes <N>    Processes and threads, 32 to 32768
              --io-weight <N>    Part of disk I/O relative to other accounts, 1 to 1000

        Global options:
              --panel <URL>        The panel's address [env: PHALANX_PANEL] [default: http://127.0.0.1:8080]
              --token-file <FILE>  Read the API token from this file
              --json               Print the API's JSON

        Examples:
          phalanx account change alice --memory-mib 1024
          phalanx account change alice --suspend          its sites are answered with 503
    "#]],
    );
}

/// Each command that a person types says what it is for.
#[test]
fn every_command_has_a_description() {
    fn visit(command: &clap::Command, path: &str) {
        assert!(command.get_about().is_some(), "{path} has no description");
        for argument in command.get_arguments().filter(|a| !matches!(a.get_id().as_str(), "help" | "version")) {
            assert!(argument.get_help().is_some(), "{path} {} has no help", argument.get_id());
        }
        for inner in command.get_subcommands() {
            visit(inner, &format!("{path} {}", inner.get_name()));
        }
    }
    visit(&Cli::command(), "phalanx");
}

#[test]
fn wrong_usage_is_explained() {
    for (line, words) in [
        ("phalanx server add Web1 --kind web --address 10.9.0.11/24", "begin with a letter a-z"),
        ("phalanx server add web1 --kind web --address 10.9.0.11", "prefix length"),
        ("phalanx server add web1 --kind wbe --address 10.9.0.11/24", "possible values: web, mail"),
        ("phalanx share add s --kind nfs-managed --path /srv/x", "--nas"),
        ("phalanx share add s --kind local --path /etc/x", "belongs to the system"),
        ("phalanx site add localhost --account alice", "single label"),
        ("phalanx cluster weight web web1 300", "1..=100"),
        ("phalanx account change alice --suspend --resume", "cannot be used with"),
        ("phalanx cluster remove-slave web web2 --deadline 1d", "30s, 5m or 1h"),
        ("phalanx address show 198.51.100.10", "invalid"),
    ] {
        let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(words), "{line}: {error}");
    }
}

#[test]
fn no_option_takes_a_token() {
    let error = Cli::try_parse_from(["phalanx", "status", "--token", "phxapi_x"]).expect_err("no such option");
    assert_eq!(error.exit_code(), 2);
}

/// systemd starts the daemons without options.
#[test]
fn daemons_need_no_options() {
    for line in ["phalanx panel init", "phalanx panel run", "phalanx agent run", "phalanx launcher", "phalanx guard"] {
        assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
    }
    assert!(Cli::try_parse_from("phalanx guard --probe /srv/x --marker 00 --number 7".split(' ')).is_ok());
    assert!(Cli::try_parse_from("phalanx guard --probe /srv/x --marker 00".split(' ')).is_err());
}

/// The manual names each command and each of its options.
#[test]
fn the_manual_is_complete() {
    fn visit(command: &clap::Command, path: &str, manual: &str) {
        for option in command.get_arguments().filter(|a| !a.is_hide_set()).filter_map(clap::Arg::get_long) {
            assert!(manual.contains(&format!("--{option}")), "the manual lacks {path} --{option}");
        }
        let inner: Vec<&clap::Command> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
        assert!(!inner.is_empty() || manual.contains(path), "the manual lacks `{path}`");
        for command in inner {
            visit(command, &format!("{path} {}", command.get_name()), manual);
        }
    }
    let manual = [
        include_str!("../../../docs/man/phalanx.1.md"),
        include_str!("../../../docs/man/phalanx-panel.8.md"),
        include_str!("../../../docs/man/phalanx-agent.8.md"),
    ];
    visit(&Cli::command(), "phalanx", &manual.concat());
}

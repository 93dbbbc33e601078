//! What the probe tries to reach from Eve's PHP: her own things, each of which it must reach, and others', none of which it may.
//!
//! Each of the others' comes with a proof, a line of shell that succeeds as root on the node only if the thing is there and could be reached but
//! for the walls between accounts: a target that does not exist would be out of reach of everybody, and show nothing.

use super::reach::Try;
use super::{AGENT, PORT, Party, SCORE, SECRET, Scene};
use anyhow::{Result, ensure};

/// Keys of shared memory and message queues: the neighbour's, as `victim.php` has it, and the probe's own.
const BOBS_KEY: u32 = 0x5050;
const OWN_KEY: u32 = 0x5051;

/// Something of others', as the probe calls it, and its proof.
pub struct Target {
    pub name: String,
    pub proof: String,
}

/// The processes of an account on the node.
pub struct Pids {
    /// The master: its children come and go.
    php: String,
    httpd: Vec<String>,
}

impl Pids {
    pub fn of(scene: &Scene, party: &Party) -> Result<Self> {
        let find = |what: &str| scene.node().text(&format!("pgrep -U {} {what}", party.uid));
        let httpd = find("apache2")?.lines().map(str::to_owned).collect();
        Ok(Self { php: find("--oldest php-fpm")?, httpd })
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.php).chain(&self.httpd)
    }
}

/// What the targets are made of.
pub struct Targets<'a> {
    pub scene: &'a Scene<'a>,
    pub address: &'a str,
    pub eves: Pids,
    pub bobs: Pids,
    /// A segment of the node's access log.
    pub segment: String,
}

/// The roads to an account's home that are open to itself.
fn own_roads(name: &str) -> Vec<String> {
    [
        "/home",
        "/home/eve/..",
        "/proc/self/root/home",
        "/proc/thread-self/root/home",
        "/proc/self/cwd/../../..",
        "/run/phalanx/account/home/..",
    ]
    .map(|road| format!("{road}/{name}"))
    .into()
}

/// A path that root can read.
fn readable<P: Into<String>>(path: P) -> Target {
    let name = path.into();
    Target { proof: format!("head -c 1 {name} | wc -c | grep -qx 1"), name }
}

/// A directory in which root sees something.
fn listed<P: Into<String>>(path: P) -> Target {
    let name = path.into();
    Target { proof: format!("ls -A {name} | grep -q ."), name }
}

/// A path below which root finds something.
fn present<P: Into<String>>(path: P) -> Target {
    let name = path.into();
    Target { proof: format!("test -e {name}"), name }
}

/// A new file that root can make.
fn makeable<P: Into<String>>(path: P) -> Target {
    let name = path.into();
    Target { proof: format!("! test -e {name} && touch {name} && rm {name}"), name }
}

/// A socket of either kind that root can connect to. `name` begins with a null character where it is an abstract one.
fn connectable<P: Into<String>>(path: P) -> Target {
    const CONNECT: &str = r#"import socket, sys
for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
    try: socket.socket(socket.AF_UNIX, kind).connect(sys.argv[1].replace("@", "\0")); sys.exit(0)
    except OSError: pass
sys.exit(1)"#;
    let name = path.into();
    Target { proof: format!("python3 -c '{CONNECT}' {}", name.replace('\0', "@")), name }
}

fn tcp(at: impl Into<String>) -> Target {
    let name = at.into();
    let socat = if name.starts_with('[') { "TCP6" } else { "TCP4" };
    Target { proof: format!("socat -u OPEN:/dev/null {socat}:{name},connect-timeout=2"), name }
}

fn udp(at: impl Into<String>) -> Target {
    let name = at.into();
    let socat = if name.starts_with('[') { "UDP6" } else { "UDP4" };
    Target { proof: format!("echo hello | socat -t 1 - {socat}:{name} | grep -qx hello"), name }
}

/// A port that root can hold, since nobody does.
fn free(ip: &str, port: u16) -> Target {
    let (family, name) =
        if ip.contains(':') { ("AF_INET6", format!("[{ip}]:{port}")) } else { ("AF_INET", format!("{ip}:{port}")) };
    let code = format!("import socket; socket.create_server((\"{ip}\", {port}), family=socket.{family})");
    Target { name, proof: format!("python3 -c '{code}'") }
}

/// A line of shell that does for root, with a /tmp of its own, what it must not do for an account: it writes something.
fn powerful(line: impl Into<String>) -> Target {
    let name = line.into();
    let inside = format!("mount -t tmpfs none /tmp; {name}").replace('\'', r"'\''");
    Target { proof: format!("unshare --mount sh -c '{inside}' | grep -q ."), name }
}

impl Targets<'_> {
    /// All ways, each with its targets.
    pub fn tries(&self) -> Result<Vec<Try>> {
        let own_files: Vec<String> = own_roads("eve").iter().map(|road| format!("{road}/private.txt")).collect();
        let read = |name, more: &[&str]| Try {
            name,
            own: own_files.iter().cloned().chain(more.iter().map(|path| (*path).to_owned())).collect(),
            other: self.files(),
        };
        let mut by_path = read("read by path", &["/tmp/mine", "/dev/shm/mine", "/var/tmp/mine", "/proc/self/limits"]);
        by_path.other.extend(
            ["/tmp/neighbour", "/dev/shm/neighbour", "/var/tmp/neighbour"].map(|path| self.seen_by_bob(path, path)),
        );
        by_path.other.extend(self.tables()?);
        let mut tries =
            vec![by_path, read("read by wrapper", &[]), read("read by command", &[]), read("read by symlink", &[])];
        tries.extend([self.race(), self.see()]);
        tries.extend(["list", "list by command"].map(|name| self.list(name)));
        tries.extend(["write", "write by command"].map(|name| self.write(name)));
        tries.extend(self.ports());
        tries.extend(self.processes());
        let key = |name, what: &str| Try {
            name,
            own: vec![OWN_KEY.to_string()],
            other: vec![self.seen_by_bob(&BOBS_KEY.to_string(), what)],
        };
        tries.extend([key("shared memory", "shared memory"), key("message queue", "message queue"), self.commands()]);
        Ok(tries)
    }

    /// The roads to Bob's home: open to root, or open to Eve if it were hers.
    fn bobs_home(&self, below: &str, real: fn(String) -> Target) -> Vec<Target> {
        let content = "/srv/phalanx/content/home/bob";
        let mut open = vec![content.to_owned(), "/srv/nas/web/home/bob".to_owned(), format!("/proc/1/root{content}")];
        for pid in self.bobs.all() {
            open.extend(["root", "cwd"].map(|road| format!("/proc/{pid}/{road}/home/bob")));
        }
        let open = open.into_iter().map(|road| real(format!("{road}{below}")));
        // Bob is so careless that outside of the walls Eve's uid would do.
        let uid = self.scene.eve.uid;
        let proof = format!(
            "setpriv --reuid {uid} --regid {uid} --clear-groups sh -c '{}'",
            real(format!("{content}{below}")).proof
        );
        let like_own =
            own_roads("bob").into_iter().map(|road| Target { name: format!("{road}{below}"), proof: proof.clone() });
        open.chain(like_own).collect()
    }

    /// What Bob's own page reads of `look`, which is his secret.
    fn seen_by_bob(&self, name: &str, look: &str) -> Target {
        let line = format!(
            "curl -sS -m 4 -G --data-urlencode 'look={look}' -H 'Host: {}' http://{}/id.php | grep -qF '{SECRET}'",
            self.scene.bob.site, self.address
        );
        Target { name: name.to_owned(), proof: line }
    }

    fn files(&self) -> Vec<Target> {
        let uid = self.scene.bob.uid;
        let mut files = self.bobs_home("/private.txt", readable::<String>);
        let of_the_node = [
            "/etc/shadow",
            "/root/.bashrc",
            "/var/lib/phalanx/agent/key.pem",
            "/var/lib/phalanx/agent/spec.json",
            "/var/lib/phalanx/directory/directory.sqlite",
            "/run/phalanx/guard/content.json",
            "/run/phalanx/proxy/status.json",
            "/run/phalanx/logs/status.json",
            "/srv/phalanx/content/.phalanx-logs/state.json",
            "/srv/phalanx/content/.phalanx-share",
        ];
        files.extend(of_the_node.map(readable));
        files.push(readable(self.segment.clone()));
        files.extend(
            ["httpd.conf", "php-fpm.conf"].map(|name| readable(format!("/var/lib/phalanx/accounts/{uid}/{name}"))),
        );
        files.extend(["php.env", "env"].map(|name| readable(format!("/run/phalanx/account/{uid}/{name}"))));
        files.extend(self.bobs.all().map(|pid| readable(format!("/proc/{pid}/root/run/phalanx/config/httpd.conf"))));
        files.push(readable(format!("/proc/{}/root/tmp/neighbour", self.bobs.php)));
        files
    }

    /// Who talks to whom on this machine.
    fn tables(&self) -> Result<Vec<Target>> {
        let names = "for table in /proc/self/net/*; do test -f $table && test -n \"$(head -c 1 $table)\" && basename $table; done; true";
        let text = self.scene.node().text(names)?;
        let names: Vec<&str> = text.lines().collect();
        for name in ["tcp", "tcp6", "udp", "unix", "route", "arp"] {
            ensure!(names.contains(&name), "no table of {name} among {names:?}");
        }
        let roads = |name: &str| {
            ["/proc/self/net", "/proc/thread-self/net", "/proc/net"].map(|road| readable(format!("{road}/{name}")))
        };
        Ok(names.into_iter().flat_map(roads).collect())
    }

    fn race(&self) -> Try {
        let files = ["/srv/phalanx/content/home/bob/private.txt", "/etc/shadow", "/var/lib/phalanx/agent/key.pem"];
        let mut other: Vec<Target> = files.map(readable).into();
        other.extend(
            self.bobs_home("/private.txt", readable::<String>)
                .into_iter()
                .filter(|road| road.name.starts_with("/home/")),
        );
        Try { name: "symlink race", own: vec!["/home/eve/private.txt".to_owned()], other }
    }

    fn list(&self, name: &'static str) -> Try {
        let mut own = own_roads("eve");
        own.extend(["/proc/self", "/proc/self/net", "/var/lib/phalanx/live"].map(str::to_owned));
        let mut other = self.bobs_home("", listed::<String>);
        other.extend(
            [
                "/srv",
                "/srv/phalanx",
                "/srv/phalanx/content/home",
                "/root",
                "/var/log",
                "/run/phalanx/launcher",
                "/run/phalanx/guard",
                "/run/phalanx/root",
                "/run/systemd/units",
                "/var/lib/phalanx/accounts",
                "/var/lib/phalanx/agent",
                "/var/lib/phalanx/directory",
                "/sys",
                "/sys/fs/cgroup",
                "/proc/sys",
                "/proc/1",
                "/proc/1/root",
            ]
            .map(listed),
        );
        other.extend(self.bobs.all().map(|pid| listed(format!("/proc/{pid}/root/home"))));
        Try { name, own, other }
    }

    fn write(&self, name: &'static str) -> Try {
        let own: Vec<_> = own_roads("eve").into_iter().map(|road| format!("{road}/written")).collect();
        let mut other = self.bobs_home("/open/written", makeable::<String>);
        let uid = self.scene.eve.uid;
        // In Eve's own view of the node there is what root may change and she may not.
        let php = &self.eves.php;
        let of_hers =
            |path: &str| Target { name: path.to_owned(), proof: present(format!("/proc/{php}/root{path}")).proof };
        other.extend(
            [
                "/run/phalanx/config/httpd.conf",
                "/run/phalanx/account/php.env",
                "/run/phalanx/account/env",
                "/var/lib/phalanx/live/httpd-common.conf",
                "/bin/sh",
                "/etc/passwd",
            ]
            .map(of_hers),
        );
        other.extend(
            ["/etc/new", "/usr/bin/new", "/opt/new", "/home/new", "/new", "/run/new", "/var/lib/phalanx/new"]
                .map(makeable),
        );
        let beside_her_socket = makeable(format!("/run/phalanx/account/{uid}/new"));
        other.push(Target { name: "/run/phalanx/account/new".to_owned(), ..beside_her_socket });
        other.push(readable("/proc/sys/kernel/core_pattern"));
        Try { name, own, other }
    }

    /// Sockets, and whether there is anything at a path at all.
    fn see(&self) -> Try {
        let mut other: Vec<Target> =
            self.sockets().into_iter().filter(|socket| !socket.name.starts_with('\0')).collect();
        other.extend(
            ["/srv/phalanx", "/root/.bashrc", "/var/lib/phalanx/agent/key.pem", "/proc/1", "/proc/sys"].map(present),
        );
        other.extend(self.bobs_home("", present::<String>));
        other.extend(self.bobs_home("/private.txt", present::<String>));
        let own = own_roads("eve").into_iter().chain(["/run/phalanx/account/php.sock".to_owned()]).collect();
        Try { name: "see", own, other }
    }

    fn sockets(&self) -> Vec<Target> {
        let bob = self.scene.bob.uid;
        let mut sockets = vec![
            connectable(format!("/run/phalanx/account/{bob}/php.sock")),
            connectable(format!("/proc/1/root/run/phalanx/account/{bob}/php.sock")),
        ];
        sockets.extend(
            [
                "/run/phalanx/launcher/launcher.sock",
                "/run/systemd/private",
                "/run/systemd/notify",
                "/run/systemd/journal/socket",
                "/run/systemd/journal/stdout",
                "/run/dbus/system_bus_socket",
                "\0neighbour",
            ]
            .map(connectable),
        );
        sockets
            .extend(self.bobs.all().map(|pid| connectable(format!("/proc/{pid}/root/run/phalanx/account/php.sock"))));
        sockets
    }

    fn ports(&self) -> [Try; 4] {
        let (node, eve, bob) = (self.address, self.scene.eve.ip, self.scene.bob.ip);
        let tcp_ports = [
            format!("{bob}:{PORT}"),
            format!("{bob}:9001"),
            "127.0.0.1:3306".to_owned(),
            "[::1]:3306".to_owned(),
            format!("{node}:3306"),
            format!("{node}:{AGENT}"),
            format!("{node}:{SCORE}"),
        ];
        let udp_ports = ["127.0.0.1:3306".to_owned(), "[::1]:3306".to_owned(), format!("{node}:3306")];
        // It never answers, but Bob says what he hears.
        let deaf =
            Target { name: format!("{bob}:9002"), proof: format!("echo from root | socat -u - UDP4:{bob}:9002") };
        let bob = bob.to_string();
        let free_ports = [
            free(&bob, 81),
            free("127.64.0.9", PORT),
            free("127.0.0.1", 81),
            free("0.0.0.0", 81),
            free("::", 81),
            free(node, 81),
        ];
        [
            Try { name: "unix socket", own: vec!["a pair".to_owned()], other: self.sockets() },
            Try {
                name: "tcp",
                own: vec![format!("{eve}:{PORT}"), format!("{node}:80")],
                other: tcp_ports.map(tcp).into(),
            },
            Try {
                name: "udp",
                own: vec!["127.0.0.1:53".to_owned()],
                other: udp_ports.map(udp).into_iter().chain([deaf]).collect(),
            },
            Try { name: "bind", own: vec![format!("{eve}:9000")], other: free_ports.into() },
        ]
    }

    fn processes(&self) -> [Try; 4] {
        let others = |proof: fn(&str) -> String| -> Vec<Target> {
            let pids = ["1".to_owned()].into_iter().chain(self.bobs.all().cloned());
            pids.map(|pid| Target { proof: proof(&pid), name: pid }).collect()
        };
        let own = || vec![self.eves.php.clone()];
        let lives = |pid: &str| format!("kill -0 {pid}");
        let has_memory = |pid: &str| format!(": <> /proc/{pid}/mem");
        let mut memory = others(has_memory);
        // It may bind the account's port, which the code of its sites may not.
        memory.extend(self.eves.httpd.iter().map(|pid| Target { name: pid.clone(), proof: has_memory(pid) }));
        [
            Try { name: "signal", own: own(), other: others(lives) },
            Try {
                name: "see a process",
                own: own(),
                other: others(|pid| present(format!("/proc/{pid}/status")).proof),
            },
            Try {
                name: "look at a process",
                own: own(),
                other: others(|pid| readable(format!("/proc/{pid}/maps")).proof),
            },
            Try { name: "memory of a process", own: own(), other: memory },
        ]
    }

    /// Privileges and doors of the kernel, as other programs use them.
    fn commands(&self) -> Try {
        let bob = self.scene.bob.uid;
        let lines = [
            "unshare --user --map-root-user id",
            "unshare --mount id",
            "nsenter --target 1 --all id",
            "mkdir -p /tmp/m && mount -t tmpfs none /tmp/m && echo mounted",
            "setpriv --reuid 0 --clear-groups id",
            "su -c id",
            "chroot / id",
            "mknod /tmp/disk b 8 0 && echo made",
            "cp /bin/sh /tmp/sh && chmod 4755 /tmp/sh && echo set",
            "nft list ruleset",
            "systemctl list-units",
            "dmesg",
        ];
        let mut other: Vec<Target> = lines.map(powerful).into();
        other.push(powerful(format!("setpriv --reuid {bob} --clear-groups id")));
        // Calls, by number (x86-64) and arguments. One that is forbidden gives EPERM whatever its arguments are; one that is not may
        // find fault with them.
        let call = |call: &str| format!("perl -e '$r = syscall({call}); print \"done\" if $r >= 0 || $! != 1'");
        let httpd = self.bobs.httpd.first().map(String::as_str).unwrap_or_default();
        let calls = [
            ("ptrace", format!("101, 0x4206, {httpd}, 0, 0")),
            ("keyctl", "250, 0, 0".to_owned()),
            ("add_key", "248, 0, 0, 0, 0, 0".to_owned()),
            ("bpf", "321, 0, 0, 0".to_owned()),
            ("io_uring_setup", "425, 1, 0".to_owned()),
            ("userfaultfd", "323, 0".to_owned()),
            ("perf_event_open", "298, 0, 0, 0, 0, 0".to_owned()),
            ("unshare", "272, 0x10000000".to_owned()),
        ];
        other.extend(calls.map(|(name, numbers)| powerful(format!("{} # {name}", call(&numbers)))));
        let sockets = [("netlink", "16, 3, 0"), ("packet", "17, 3, 768"), ("raw", "2, 3, 1")];
        other.extend(
            sockets.map(|(name, numbers)| powerful(format!("perl -e 'socket(S, {numbers}) and print \"{name}\"'"))),
        );
        Try { name: "command", own: vec!["id -u".to_owned(), call("39")], other }
    }
}

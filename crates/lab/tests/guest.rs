//! Guests with a real kernel: a NAS serves NFS 4.2 to two web nodes; its power is cut and comes back. Needs root, and
//! builds kernel and image at its first run.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use phalanx_lab::guest::kernel::Kernel;
use phalanx_lab::guest::{Guest, GuestSpec, disk};
use phalanx_lab::protocol::Action;
use phalanx_lab::{Options, Pace, eventually as eventually_on, image, scenario};

const LIMIT: Duration = Duration::from_secs(60);

/// A network namespace with a bridge. It lives as long as this value, or the test's process.
struct Switch {
    holder: Child,
}

impl Switch {
    fn new() -> Result<Switch> {
        let script = "ip link add lan type bridge && ip addr add 10.9.0.1/24 dev lan && ip link set lan up && echo up && read -r _";
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting unshare")?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().context("no pipe")?).read_line(&mut line)?;
        ensure!(line == "up\n", "the bridge did not come up");
        Ok(Switch { holder })
    }

    fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // Closing its standard input ends it; a failure to reap it would show as a hanging test.
        drop(self.holder.stdin.take());
        let _status = self.holder.wait();
    }
}

/// Runs a command that must succeed and returns what it wrote.
fn ok(guest: &Guest, command: &str) -> Result<String> {
    let output = guest.run(command, LIMIT)?;
    ensure!(output.success(), "{}: {command}: {output:?}", guest.spec().name);
    Ok(output.stdout)
}

/// Repeats a command until it succeeds.
fn eventually(guest: &Guest, command: &str) -> Result<String> {
    let start = Instant::now();
    loop {
        let output = guest.run(command, LIMIT)?;
        if output.success() {
            return Ok(output.stdout);
        }
        ensure!(start.elapsed() < LIMIT, "{}: never: {command}: {output:?}", guest.spec().name);
        thread::sleep(Duration::from_millis(200));
    }
}

/// The processes whose command line names a path.
fn processes_naming(path: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        // A process may end while it is looked at.
        let line = fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&*path.to_string_lossy()) {
            found.push(line);
        }
    }
    Ok(found)
}

/// A directory for this process's guests; those of processes that are no more are removed.
fn fresh_directory(cache: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix("guest-test-") else { continue };
        if !Path::new("/proc").join(pid).exists() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    let run = cache.join(format!("guest-test-{}", std::process::id()));
    fs::create_dir(&run)?;
    Ok(run)
}

fn commands_report_and_are_bounded(web: &Guest) -> Result<()> {
    let output = web.run("echo out; echo err >&2; exit 7", LIMIT)?;
    assert_eq!((output.status, output.stdout.as_str(), output.stderr.as_str()), (7, "out\n", "err\n"));
    let error = web.run("echo begun; sleep 600", Duration::from_secs(2)).unwrap_err();
    assert!(format!("{error:#}").contains("begun"), "{error:#}");
    eventually(web, "! pgrep -x sleep")?;
    assert_eq!(web.run("kill -KILL $$", LIMIT)?.status, 137);
    assert_eq!(ok(web, "head -c 3000000 /dev/zero | tr '\\0' x")?.len(), 3_000_000);

    web.freeze()?;
    assert!(web.run("true", Duration::from_secs(1)).is_err(), "a frozen guest answered");
    web.thaw()?;
    ok(web, "true")?;
    Ok(())
}

fn units_are_limited_by_cgroup_v2(web: &Guest) -> Result<()> {
    assert_eq!(ok(web, "stat -f -c %T /sys/fs/cgroup")?.trim(), "cgroup2fs");
    let hog = "systemd-run --wait -q -p MemoryMax=32M -p MemorySwapMax=0 sh -c 'head -c 100000000 /dev/zero | tail'";
    ensure!(!web.run(hog, LIMIT)?.success(), "a unit used more than its MemoryMax");
    let forks = "systemd-run --wait -q --pipe -p TasksMax=5 sh -c \
                 'i=0; while [ $i -lt 20 ]; do sleep 1 & i=$((i+1)); done; wait' 2>&1";
    ensure!(web.run(forks, LIMIT)?.stdout.contains("annot fork"), "a unit started more than its TasksMax");
    let busy = "systemd-run --wait -q --pipe -p CPUQuota=10% sh -c \
                'i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; \
                 sed -n s/nr_throttled.//p /sys/fs/cgroup/$(cut -d: -f3 /proc/self/cgroup)/cpu.stat'";
    let throttled: u32 = ok(web, busy)?.trim().parse()?;
    ensure!(throttled > 0, "a busy loop was not slowed by its CPUQuota");
    Ok(())
}

fn accounts_are_kept_apart_by_nftables(web: &Guest) -> Result<()> {
    let rules = "table inet t {\n chain o {\n type filter hook output priority 0;\n \
                 oifname lo meta skuid 33 tcp dport 7777 counter reject with tcp reset\n }\n}\n";
    ok(web, &format!("printf '{rules}' | nft -f -"))?;
    ok(web, "systemd-run -q --unit listener php -S 127.0.0.1:7777")?;
    let connect = "php -r 'exit(@fsockopen(\"127.0.0.1\", 7777) ? 0 : 3);'";
    eventually(web, connect)?;
    assert_eq!(web.run(&format!("setpriv --reuid 33 --clear-groups {connect}"), LIMIT)?.status, 3);
    ok(web, "nft flush ruleset; systemctl stop listener")?;
    Ok(())
}

/// What an administrator sets up once on a NAS; a power cut must not take it away again.
fn set_up_nas(nas: &Guest) -> Result<()> {
    ok(
        nas,
        "set -e; mkdir -p /srv/nas; echo 'LABEL=data /srv/nas ext4 nofail 0 0' >>/etc/fstab
         systemctl daemon-reload; mount /srv/nas; mkdir /srv/nas/www; echo from-nas >/srv/nas/www/id
         echo '/srv/nas 10.9.0.0/24(rw,sync,no_root_squash,fsid=0,no_subtree_check)' >/etc/exports
         printf '[nfsd]\\ngrace-time=10\\nlease-time=10\\nvers3=n\\nthreads=4\\n' >/etc/nfs.conf.d/lab.conf
         systemctl enable -q nfs-server; systemctl restart nfs-server; exportfs -v; sync",
    )
    .map(drop)
}

const WRITER: &str = "i=0; while :; do i=$((i+1)); flock /var/www/html/lock sh -c \"echo $i >>/var/www/html/$(hostname)\"; sleep 0.05; done";

fn power_cut_of_the_nas_is_ridden_out(nas: &mut Guest, [one, two]: [&Guest; 2]) -> Result<()> {
    for web in [one, two] {
        ok(web, "mkdir -p /var/www/html; mount -t nfs4 -o vers=4.2,hard 10.9.0.42:/www /var/www/html")?;
        assert_eq!(ok(web, "cat /var/www/html/id")?, "from-nas\n");
        assert!(ok(web, "findmnt -no OPTIONS /var/www/html")?.contains("vers=4.2"));
    }
    ok(one, "systemd-run -q --unit holder flock /var/www/html/held sleep 600")?;
    eventually(two, "! flock -n /var/www/html/held true")?;
    ok(one, "systemctl stop holder")?;
    eventually(two, "flock -n /var/www/html/held true")?;

    for web in [one, two] {
        fs::write(web.spec().dir.join("mail/writer"), WRITER)?;
        ok(web, "systemd-run -q --unit writer sh /run/phalanx-lab/mail/writer")?;
    }
    eventually(nas, "[ $(wc -l </srv/nas/www/web1) -ge 20 ] && [ $(wc -l </srv/nas/www/web2) -ge 20 ]")?;
    let boot_id = ok(nas, "cat /proc/sys/kernel/random/boot_id")?;
    nas.kill()?;
    ensure!(!nas.is_running() && nas.run("true", LIMIT).is_err(), "the NAS answers without power");
    nas.boot_again()?;
    assert_ne!(ok(nas, "cat /proc/sys/kernel/random/boot_id")?, boot_id);
    eventually(nas, "mountpoint -q /srv/nas")?;
    let lines: u32 = ok(nas, "wc -l </srv/nas/www/web1")?.trim().parse()?;
    for name in ["web1", "web2"] {
        eventually(nas, &format!("[ $(wc -l </srv/nas/www/{name}) -ge {} ]", lines + 40))?;
        // Each line that a node was told is written is there, once and in order.
        ok(nas, &format!("awk '$1 != NR {{ exit 1 }}' /srv/nas/www/{name}"))?;
    }
    Ok(())
}

#[test]
fn nas_and_web_guests() -> Result<()> {
    let cache = phalanx_lab::paths::built();
    let kernel = Kernel::obtain(&cache)?;
    let image = disk::root_image(&cache, &[image::base()?], &kernel)?;
    let run = fresh_directory(&cache)?;
    let data = run.join("data.ext4");
    disk::data_disk(&data, 256)?;

    let switch = Switch::new()?;
    let boot = |number: u8, name: &str, data_disk: Option<PathBuf>| {
        Guest::boot(&GuestSpec {
            name: name.to_owned(),
            port: format!("{name}-eth0"),
            address: (Ipv4Addr::new(10, 9, 0, number), 24),
            gateway: Some(Ipv4Addr::new(10, 9, 0, 1)),
            memory_mib: 384,
            netns: Some(switch.netns()),
            bridge: "lan".to_owned(),
            kernel: kernel.clone(),
            image: image.clone(),
            groups: Vec::new(),
            data_disk,
            dir: run.join(name),
        })
    };
    let start = Instant::now();
    let (nas, one, two) = thread::scope(|scope| {
        let nas = scope.spawn(|| boot(42, "nas", Some(data.clone())));
        let one = scope.spawn(|| boot(43, "web1", None));
        let two = scope.spawn(|| boot(44, "web2", None));
        (nas.join(), one.join(), two.join())
    });
    // The threads do not panic; a panic there is this test's failure too.
    let (mut nas, one, two) = (nas.unwrap()?, one.unwrap()?, two.unwrap()?);
    println!("{}: three shells after {:.1?}", kernel.about()?, start.elapsed());
    for guest in [&nas, &one, &two] {
        println!("{} is {} after {:.1?}", guest.spec().name, guest.wait_until_up(LIMIT)?, start.elapsed());
    }

    commands_report_and_are_bounded(&one)?;
    units_are_limited_by_cgroup_v2(&one)?;
    accounts_are_kept_apart_by_nftables(&one)?;
    set_up_nas(&nas)?;
    power_cut_of_the_nas_is_ridden_out(&mut nas, [&one, &two])?;

    drop((nas, one, two));
    let left = processes_naming(&run)?;
    ensure!(left.is_empty(), "still running: {left:?}");
    fs::remove_dir_all(&run)?;
    println!("done after {:.1?}", start.elapsed());
    Ok(())
}

#[test]
fn guests_are_hosts_of_a_topology() -> Result<()> {
    scenario(&Options::bare("figure-1-nfs"), |lab| {
        let (lb, nas, web) = (lab.host("lb")?, lab.host("nas")?, lab.host("web1")?);
        assert_eq!(
            web.text("hostname; cat /etc/hostname; ping -c 1 -W 2 cp >/dev/null && echo reached")?,
            "web1\nweb1\nreached"
        );
        let bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        web.write_file("/var/tmp/a b/c", &bytes)?;
        assert_eq!(web.exec(&["tail", "-c", "2", "/var/tmp/a b/c"], b"")?.stdout, "\u{fffd}\u{fffd}");
        assert_eq!(web.exec(&["tr", "a-z", "A-Z"], b"in")?.text()?, "IN");
        let background = web.spawn("sleep 1; echo done; exit 3")?;
        let output = background.wait(LIMIT)?;
        assert_eq!((output.status, &*output.stdout), (3, "done\n"));

        let answers = |is: bool| {
            eventually_on(LIMIT, "the answer to a ping", || {
                ensure!(lb.run("ping -c 1 -W 1 web1")?.success() == is, "it should be {is}");
                Ok(())
            })
        };
        for (hurt, mend) in [(Action::Cut, Action::Heal), (Action::Freeze, Action::Thaw), (Action::Kill, Action::Boot)]
        {
            web.act(hurt)?;
            answers(false)?;
            web.act(mend)?;
            answers(true)?;
        }

        let work = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let took = || -> Result<Duration> {
            let begin = Instant::now();
            web.text(work)?;
            Ok(begin.elapsed())
        };
        let free = took()?;
        web.pace(Pace::Percent(2))?;
        let paced = took()?;
        ensure!(paced > 2 * free, "{free:?} at full pace, {paced:?} at 2 %");
        web.pace(Pace::Max)?;

        nas.text("echo kept >/srv/nas/synced; sync; echo gone >/srv/nas/cached")?;
        nas.kill()?;
        assert!(nas.text("true").is_err(), "a dead guest ran a command");
        nas.boot()?;
        assert_eq!(nas.text("cat /srv/nas/synced; cat /srv/nas/cached 2>/dev/null || true")?, "kept");
        let states: Vec<_> = lab.status()?.into_iter().map(|host| host.state).collect();
        assert_eq!(states, ["running"; 6]);
        let journal = fs::read_to_string(lab.journals()?.join("web1.journal"))?;
        ensure!(journal.contains("systemd"), "the journal of a guest is {journal:?}");
        Ok(())
    })
}

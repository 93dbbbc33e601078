//! The lab itself: that it does to hosts what it says, and leaves nothing behind.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use phalanx_lab::{Host, Lab, Options, Pace, eventually, names, scenario};

const SECOND: Duration = Duration::from_secs(1);

/// Whether a neighbour gets an answer to a ping within a second.
fn answers_ping(from: &Host<'_>, address: &str) -> Result<bool> {
    Ok(from.run(&format!("ping -c 1 -W 1 {address}"))?.success())
}

#[test]
fn commands_run_in_hosts() -> Result<()> {
    scenario(&Options::bare("pair"), |lab| {
        let one = lab.host("one")?;
        assert_eq!(one.text("hostname; cat /etc/hostname")?, "one\none");
        assert_eq!(one.text("cat /proc/1/comm; ps -e | wc -l | awk '$1 < 30 { print \"alone\" }'")?, "systemd\nalone");
        assert_eq!(one.text("ping -c 1 -W 1 nas > /dev/null && echo reached")?, "reached");
        let output = one.run("echo out; echo err >&2; exit 3")?;
        assert_eq!((output.status, &*output.stdout, &*output.stderr), (3, "out\n", "err\n"));

        let bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        one.write_file("/var/tmp/a b/c", &bytes)?;
        assert_eq!(
            one.text("stat -c '%s %a %U' '/var/tmp/a b/c'; tail -c 1 '/var/tmp/a b/c' | od -An -tu1")?,
            "1048576 644 root\n 255"
        );
        one.write_file("/var/tmp/empty", b"")?;
        assert_eq!(one.text("stat -c %s /var/tmp/empty")?, "0");

        let begin = Instant::now();
        let error = one.run_for(SECOND, "echo before; sleep 60").unwrap_err();
        assert!(begin.elapsed() < 10 * SECOND);
        assert!(format!("{error:#}").contains("did not end within 1s; it said: before"), "{error:#}");
        assert_eq!(one.text("pgrep -c sleep || true")?, "0", "what ran too long was not killed");

        let mut background = one.spawn("echo started; exec sleep 60")?;
        eventually(5 * SECOND, "output of a background command", || {
            ensure!(background.stdout() == "started\n", "it wrote {:?}", background.stdout());
            Ok(())
        })?;
        assert!(background.is_running()?);
        assert_eq!(background.stop(5 * SECOND)?.status, 128 + 2);
        Ok(())
    })
}

#[test]
fn a_unit_has_limits_and_a_host_a_pace() -> Result<()> {
    scenario(&Options::bare("pair"), |lab| {
        let one = lab.host("one")?;
        let hog = "systemd-run -q --wait -p MemoryMax=30M -p MemorySwapMax=0 bash -o pipefail -c 'head -c 200M /dev/zero | tail | wc -c'";
        assert!(!one.run(hog)?.success(), "a unit used more memory than its limit");

        // What a loop costs in CPU time tells how long it must take at a tenth of one CPU, on any machine.
        let work = "bash -c 'for ((i = 0; i < 300000; i++)); do :; done; read a b rest < /proc/$$/schedstat; echo $a'";
        let measure = || -> Result<(Duration, Duration)> {
            let begin = Instant::now();
            let cpu: u64 = one.text(work)?.parse()?;
            Ok((Duration::from_nanos(cpu), begin.elapsed()))
        };
        one.pace(Pace::Percent(10))?;
        let (cpu, wall) = measure()?;
        assert!(wall > 5 * cpu, "{cpu:?} of CPU time took {wall:?} at 10 % of a CPU");
        let quota = one.text("systemd-run -q --unit=half -p CPUQuota=5% sleep 60 && cat /sys/fs/cgroup/cpu/system.slice/half.service/cpu.cfs_quota_us")?;
        one.pace(Pace::Percent(1))?;
        one.pace(Pace::Max)?;
        let same = one.text("cat /sys/fs/cgroup/cpu/system.slice/half.service/cpu.cfs_quota_us")?;
        assert_eq!((&*quota, &*same), ("5000", "5000"), "a unit's own limit was not given back");
        let (cpu, wall) = measure()?;
        assert!(wall < 5 * cpu + SECOND, "{cpu:?} of CPU time took {wall:?} at full pace");
        Ok(())
    })
}

#[test]
fn hosts_freeze_are_cut_off_and_die() -> Result<()> {
    scenario(&Options::bare("pair"), |lab| {
        let (one, nas) = (lab.host("one")?, lab.host("nas")?);
        let clock = one.spawn("while :; do echo tick; sleep 0.05; done")?;
        let ticks = || clock.stdout().lines().count();
        let more_than = |count: usize| {
            eventually(5 * SECOND, "a tick", || {
                ensure!(ticks() > count, "{} ticks", ticks());
                Ok(())
            })
        };
        more_than(0)?;

        one.freeze()?;
        let frozen = ticks();
        assert!(answers_ping(&nas, "10.9.0.11")?, "the kernel of a frozen host answers");
        assert!(one.run_for(SECOND, "true").is_err(), "a frozen host ran a command");
        assert!(ticks() <= frozen + 1, "a frozen host went on");
        one.thaw()?;
        more_than(frozen + 1)?;

        one.cut()?;
        assert!(!answers_ping(&nas, "10.9.0.11")?, "a host that is cut off answers");
        let cut = ticks();
        more_than(cut)?;
        one.heal()?;
        eventually(5 * SECOND, "a ping after the cut", || {
            ensure!(answers_ping(&nas, "10.9.0.11")?, "no answer");
            Ok(())
        })?;

        one.text("echo kept > /var/tmp/disk; echo gone > /run/memory; sync")?;
        let boot_id = one.text("cat /proc/sys/kernel/random/boot_id")?;
        one.freeze()?;
        one.kill()?;
        assert!(!answers_ping(&nas, "10.9.0.11")?, "a dead host answers");
        assert!(format!("{:#}", one.run("true").unwrap_err()).contains("not running"));
        assert!(one.kill().is_err(), "a dead host was killed");
        assert_eq!(lab.status()?[0].state, "killed");
        one.boot()?;
        assert_eq!(one.text("cat /var/tmp/disk; ls /run/memory 2> /dev/null || echo fresh")?, "kept\nfresh");
        assert_ne!(one.text("cat /proc/sys/kernel/random/boot_id")?, boot_id);
        assert!(answers_ping(&nas, "10.9.0.11")?);
        assert!(
            one.text("journalctl --no-pager --list-boots | wc -l")?.parse::<u32>()? >= 2,
            "the journal is not kept"
        );
        Ok(())
    })
}

#[test]
fn storage_is_shared_and_can_hang_and_vanish() -> Result<()> {
    scenario(&Options::bare("pair"), |lab| {
        let (one, nas) = (lab.host("one")?, lab.host("nas")?);
        nas.text("mkdir /srv/nas/home && chown 1234:1234 /srv/nas/home && chmod 700 /srv/nas/home")?;
        let write = "setpriv --reuid 1234 --regid 1234 --clear-groups sh -c 'echo x > /srv/nas/home/file'";
        one.text(write)?;
        assert_eq!(nas.text("stat -c '%u %g' /srv/nas/home/file; cat /srv/nas/home/file")?, "1234 1234\nx");
        let stranger = write.replace("1234", "1235");
        assert!(!one.run(&stranger)?.success(), "a stranger wrote into a home");
        nas.text("echo changed > /srv/nas/home/file")?;
        assert_eq!(one.text("cat /srv/nas/home/file")?, "changed", "an old answer was kept");

        let holder = nas.spawn("exec flock /srv/nas/lock sh -c 'echo locked; exec sleep 60'")?;
        eventually(5 * SECOND, "a lock", || {
            ensure!(holder.stdout() == "locked\n", "not held");
            Ok(())
        })?;
        assert!(!one.run("flock -n /srv/nas/lock true")?.success(), "a lock of another host was not seen");
        drop(holder);
        eventually(5 * SECOND, "the end of a lock", || one.text("flock -n /srv/nas/lock true"))?;

        one.hang_storage()?;
        assert!(one.run_for(SECOND, "cat /srv/nas/home/file").is_err(), "hung storage answered");
        assert_eq!(nas.text("cat /srv/nas/home/file")?, "changed", "the storage of another host hung, too");
        let waiting = one.spawn("cat /srv/nas/home/file")?;
        one.release_storage()?;
        assert_eq!(waiting.wait(5 * SECOND)?.text()?, "changed");

        one.lose_storage()?;
        assert_eq!(one.text("mountpoint -q /srv/nas || ls /srv/nas | wc -l")?, "0");
        one.return_storage()?;
        assert_eq!(one.text("cat /srv/nas/home/file")?, "changed");

        // A host that waits for its storage can lose power, and finds the storage again.
        one.hang_storage()?;
        let _waiting = one.spawn("cat /srv/nas/home/file")?;
        one.kill()?;
        one.boot()?;
        assert_eq!(one.text("cat /srv/nas/home/file")?, "changed");
        Ok(())
    })
}

#[test]
fn a_port_of_a_host_is_reachable_from_the_machine() -> Result<()> {
    scenario(&Options::bare("pair"), |lab| {
        let one = lab.host("one")?;
        let _server = one.spawn("exec socat TCP-LISTEN:8080,bind=127.0.0.1,reuseaddr,fork EXEC:'sed s/^/echo-/'")?;
        let address = one.forward(8080, 0)?;
        let answer = eventually(5 * SECOND, "an answer through the forwarder", || {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(b"hello\n")?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(!answer.is_empty(), "the connection was closed");
            Ok(answer)
        })?;
        assert_eq!(answer, "echo-hello\n");
        Ok(())
    })
}

#[test]
fn labs_stand_beside_each_other_and_leave_nothing() -> Result<()> {
    let first = Lab::up(&Options::bare("pair"))?;
    let second = Lab::up(&Options::bare("pair"))?;
    assert_ne!(first.name(), second.name());
    first.host("one")?.text("echo first > /srv/nas/whose; sync")?;
    assert!(!second.host("one")?.run("test -e /srv/nas/whose")?.success(), "labs share their storage");
    let journals = first.journals()?;
    let journal = fs::read_to_string(journals.join("one.journal"))?;
    assert!(journal.contains("systemd"), "the journal of a host is not there: {journal:?}");
    fs::remove_dir_all(journals)?;
    let (first_name, second_name) = (first.name().to_owned(), second.name().to_owned());
    drop(first);
    assert_eq!(traces(&first_name)?, Vec::<String>::new());
    assert_eq!(second.host("one")?.text("echo still here")?, "still here");
    second.host("one")?.freeze()?;
    second.down()?;
    assert_eq!(traces(&second_name)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_lab_ends_with_its_process_even_if_that_is_killed() -> Result<()> {
    let name = format!("k{}", std::process::id());
    let mut process = Command::new(env!("CARGO_BIN_EXE_phalanx-lab"))
        .args(["up", "pair", "--bare", "--name", &name])
        .stdout(Stdio::piped())
        .spawn()?;
    let output = process.stdout.take().context("no output")?;
    let up = BufReader::new(output).lines().map_while(Result::ok).any(|line| line.contains("Ctrl-C"));
    assert!(up, "the lab did not come up");
    let lab = Lab::find(&name)?;
    assert!(names()?.contains(&name));
    // The hardest case: what is frozen, and what waits for storage, must go as well.
    lab.host("one")?.hang_storage()?;
    let _waiting = lab.host("one")?.spawn("cat /srv/nas/file")?;
    lab.host("one")?.freeze()?;
    process.kill()?;
    process.wait()?;
    eventually(10 * SECOND, "the end of the lab", || {
        let traces = traces(&name)?;
        ensure!(traces.is_empty(), "there are still {traces:?}");
        Ok(())
    })
}

#[test]
fn a_lab_whose_supervisor_is_killed_is_gone_and_swept_up() -> Result<()> {
    let lab =
        Lab::up(&Options { detached: true, name: Some(format!("s{}", std::process::id())), ..Options::bare("pair") })?;
    let name = lab.name().to_owned();
    lab.host("one")?.freeze()?;
    for pid in processes_of(&name)? {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if command.contains("supervise") && !command.starts_with("unshare") && !command.contains("/unshare") {
            rustix::process::kill_process(
                rustix::process::Pid::from_raw(pid).context("no pid")?,
                rustix::process::Signal::KILL,
            )?;
        }
    }
    eventually(10 * SECOND, "the end of all processes", || {
        let processes = processes_of(&name)?;
        ensure!(processes.is_empty(), "there are still {processes:?}");
        Ok(())
    })?;
    assert!(!names()?.contains(&name));
    assert!(Lab::find(&name).is_err());
    eventually(10 * SECOND, "that nothing is left", || {
        let traces = traces(&name)?;
        ensure!(traces.is_empty(), "there are still {traces:?}");
        Ok(())
    })
}

/// What is there of a lab on the machine: processes, control groups, files, mounts.
fn traces(name: &str) -> Result<Vec<String>> {
    let mut traces: Vec<_> = processes_of(name)?.into_iter().map(|pid| format!("process {pid}")).collect();
    for hierarchy in ["", "unified", "cpu", "cpuacct", "memory", "pids", "blkio", "systemd"] {
        for entry in fs::read_dir(Path::new("/sys/fs/cgroup").join(hierarchy)).into_iter().flatten() {
            let path = entry?.path();
            if path.to_string_lossy().contains(&format!("/lab-{name}.")) {
                traces.push(path.display().to_string());
            }
        }
    }
    let run = phalanx_lab::paths::runs().join(name);
    if run.exists() {
        traces.push(run.display().to_string());
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    traces.extend(mounts.lines().filter(|line| line.contains(&format!("/run/{name}/"))).map(String::from));
    Ok(traces)
}

/// The processes of a lab: those whose control group or command line has its name.
fn processes_of(name: &str) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that ends while it is looked at is not there.
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let cgroup = String::from_utf8_lossy(&read("cgroup")).contains(&format!("/lab-{name}."));
        let command = String::from_utf8_lossy(&read("cmdline")).contains(&format!("/run/{name}/"))
            || String::from_utf8_lossy(&read("cmdline")).contains(&format!("--name\0{name}\0--run"));
        // A dead command whose caller (this test) has not asked for its status yet is not the lab's.
        let dead = String::from_utf8_lossy(&read("status")).contains("State:\tZ");
        if (cgroup || command) && !dead {
            pids.push(pid);
        }
    }
    Ok(pids)
}

//! Guests: machines with a Linux kernel of their own (User Mode Linux), for what the kernel below the lab does not
//! have: an NFS server and client, quotas, cgroup v2. Everything comes from Debian's packages.
//!
//! [`kernel::Kernel`] is fetched once, [`disk::root_image`] makes a root image of the lab's base and the product's layer,
//! and a [`Guest`] boots a copy-on-write view of it, with its network card on a bridge. [`Guest::run`] executes a command
//! in it without touching that network, so a test may cut the network and still look inside.
//!
//! Invariants:
//! - Nothing of the lab runs in a guest: its command line is systemd's own debug shell on a serial line
//!   (`systemd.debug_shell=`), and commands, output and status pass through a directory mounted by hostfs.
//! - A guest never outlives the [`Guest`] value, nor the lab's process: it is alone in a PID namespace whose first process
//!   ends when the pipe from the lab closes, however the lab ended.
//! - [`Guest::kill`] is a power cut: what the guest had not synced is lost, the disks stay as they were.
//! - Each wait has a limit.
//!
//! It does not configure what a guest is for; that is done in it by the product, or by commands.

pub mod disk;
pub mod kernel;
pub(crate) mod machine;
mod shell;

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::network::hardware_address;
use crate::{Output, paths, tools};
use kernel::Kernel;
pub use shell::Shell;

/// How long a guest may take until its command line answers. It takes 3 s on an idle machine.
const SHELL_LIMIT: Duration = Duration::from_secs(120);

/// How long the configuration of a guest's network card may take.
const NETWORK_LIMIT: Duration = Duration::from_secs(30);

/// The name of the file in a guest's directory that has the messages of its kernel and systemd.
pub(crate) const CONSOLE: &str = "console.log";

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// Its host name: of `a-z`, `0-9` and `-`.
    pub name: String,
    /// The name of its tap device at the bridge, at most 15 characters. Taking it from the bridge cuts the guest's cable.
    pub port: String,
    /// Its address and the length of the network's prefix, set on its card `eth0`.
    pub address: (Ipv4Addr, u8),
    /// Where its default route points.
    pub gateway: Option<Ipv4Addr>,
    /// Its memory. A web node wants 384; the machine gives only what is touched.
    pub memory_mib: u32,
    /// The network namespace of the bridge, as a path to bind (`/run/netns/NAME`); `None` for the caller's own.
    pub netns: Option<PathBuf>,
    /// The bridge that its tap device joins.
    pub bridge: String,
    /// The kernel to boot.
    pub kernel: Kernel,
    /// The root image, as [`disk::root_image`] made it. It is never written.
    pub image: PathBuf,
    /// Control groups that all its processes are in, by the files that take a process's number.
    pub groups: Vec<PathBuf>,
    /// A second disk (`/dev/ubdb`), as [`disk::data_disk`] made it.
    pub data_disk: Option<PathBuf>,
    /// Where the guest keeps its copy-on-write disk, its command line and its logs; made if missing.
    pub dir: PathBuf,
}

/// A guest, running or not. Dropping it ends the guest and removes its tap device; its directory stays for a look.
#[derive(Debug)]
pub struct Guest {
    spec: GuestSpec,
    running: Option<Running>,
}

/// The processes of a running guest.
#[derive(Debug)]
struct Running {
    /// The launcher outside of the guest's PID namespace. Its standard input is the pipe whose end ends the guest.
    launcher: Mutex<Child>,
}

/// The kernel and the root image that a lab's guests boot, of these layers (the uppermost first), from the lab's own cache; what is
/// missing is made.
///
/// # Errors
/// As [`Kernel::obtain`] and [`disk::root_image`].
pub fn provide(layers: &[PathBuf]) -> Result<(Kernel, PathBuf)> {
    let cache = paths::built();
    let kernel = Kernel::obtain(&cache)?;
    let image = disk::root_image(&cache, layers, &kernel)?;
    Ok((kernel, image))
}

impl Guest {
    /// Boots a guest from a fresh copy of its image and waits until its command line answers and its network is set.
    /// Its services may still be starting: see [`Guest::wait_until_up`].
    ///
    /// # Errors
    /// A bad name, a missing tool, or a guest that does not answer within two minutes; the text names its log.
    pub fn boot(spec: &GuestSpec) -> Result<Guest> {
        validate(spec)?;
        fs::create_dir_all(&spec.dir).with_context(|| format!("creating {}", spec.dir.display()))?;
        remove_if_there(&spec.cow())?;
        let mut guest = Guest { spec: spec.clone(), running: None };
        guest.add_tap()?;
        guest.boot_again()?;
        Ok(guest)
    }

    /// Boots the guest from the disks that it had when it was killed, under a new boot id. Does nothing if it runs.
    ///
    /// # Errors
    /// As [`Guest::boot`].
    pub fn boot_again(&mut self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        // One that went off by itself is still to be cleared away.
        self.kill()?;
        let shell = self.shell();
        shell.prepare()?;
        let running = self.running.insert(Running { launcher: Mutex::new(launch(&self.spec, &shell)?) });
        let outcome = shell.await_answer(SHELL_LIMIT, || running.ended());
        let outcome = outcome.and_then(|()| self.configure_network());
        if outcome.is_err() {
            self.kill()?;
        }
        outcome.with_context(|| format!("booting guest {} (see {})", self.spec.name, self.spec.console().display()))
    }

    /// Runs a shell command as root and waits for it. What it leaves running in the background stays. Several threads may
    /// run commands at once.
    ///
    /// # Errors
    /// If the command does not end within `limit` (it is then killed), or the guest is off or ends. A status other than
    /// 0 is not an error here: see [`Output::success`].
    pub fn run(&self, command: &str, limit: Duration) -> Result<Output> {
        self.running()?;
        let outcome = self.shell().run(command, b"", limit);
        outcome.with_context(|| format!("guest {}: {command}", self.spec.name))
    }

    /// The guest's shell, for other processes and with standard input.
    pub fn shell(&self) -> Shell {
        Shell::of(&self.spec.dir)
    }

    /// Waits until systemd has finished starting, and returns its state: `running`, or `degraded` if a unit failed.
    ///
    /// # Errors
    /// If that takes longer than `limit`.
    pub fn wait_until_up(&self, limit: Duration) -> Result<String> {
        let output = self.run("systemctl is-system-running --wait", limit)?;
        Ok(output.stdout.trim().to_owned())
    }

    /// Cuts the guest's power: all its processes are gone when this returns. Does nothing if it is off.
    ///
    /// # Errors
    /// If the kernel refuses the signal.
    pub fn kill(&mut self) -> Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        let mut launcher = running.launcher();
        // The first process of the PID namespace takes all others with it, and the launcher ends after it.
        if let Some(first) = children(launcher.id())?.first() {
            kill_process(*first, Signal::KILL).context("killing the guest")?;
        } else {
            launcher.kill().context("killing the guest's launcher")?;
        }
        launcher.wait().context("waiting for the guest's end")?;
        Ok(())
    }

    /// Stops the guest as a whole, kernel included: it answers nothing, not even a ping, until [`Guest::thaw`].
    ///
    /// # Errors
    /// If the guest is off.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a frozen guest go on where it was.
    ///
    /// # Errors
    /// If the guest is off.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Whether the guest has a running kernel.
    pub fn is_running(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.ended().is_ok())
    }

    /// Whether the guest was given power and not taken it since, even if it has ended by itself.
    pub(crate) fn has_power(&self) -> bool {
        self.running.is_some()
    }

    /// What the guest was made from.
    pub fn spec(&self) -> &GuestSpec {
        &self.spec
    }

    fn running(&self) -> Result<&Running> {
        self.running.as_ref().with_context(|| format!("guest {} is off", self.spec.name))
    }

    /// Signals the guest's kernel process. Its user processes act on the world through it alone.
    fn signal(&self, signal: Signal) -> Result<()> {
        let Some(first) = children(self.running()?.launcher().id())?.first().copied() else {
            bail!("guest {} has ended", self.spec.name);
        };
        let binary = fs::canonicalize(self.spec.kernel.binary())?;
        for pid in children(first.as_raw_nonzero().get().unsigned_abs())? {
            if fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).is_ok_and(|exe| exe == binary) {
                return kill_process(pid, signal).context("signalling the guest");
            }
        }
        bail!("guest {} has ended", self.spec.name)
    }

    /// Gives the guest's card the name and address that a machine's own network configuration would.
    fn configure_network(&self) -> Result<()> {
        let (address, prefix) = self.spec.address;
        let mut script = format!(
            "set -e; ip link set vec0 name eth0 address {}; ip address replace {address}/{prefix} dev eth0; ip link set eth0 up",
            hardware_address(address)
        );
        if let Some(gateway) = self.spec.gateway {
            script += &format!("; ip route replace default via {gateway}");
        }
        let output = self.run(&script, NETWORK_LIMIT)?;
        ensure!(output.success(), "configuring the network failed: {}", output.stderr);
        Ok(())
    }

    fn add_tap(&self) -> Result<()> {
        let GuestSpec { name, port, bridge, .. } = &self.spec;
        let script = r#"ip tuntap add "$1" mode tap && ip link set "$1" master "$2" up"#;
        let mut sh = in_netns(self.spec.netns.as_deref(), "sh")?;
        finish(sh.args(["-c", script, "tap", port, bridge]))
            .with_context(|| format!("cannot attach guest {name} to bridge {bridge}"))
    }

    fn remove_tap(&self) -> Result<()> {
        finish(in_netns(self.spec.netns.as_deref(), "ip")?.args(["link", "delete", &self.spec.port]))
    }
}

impl Running {
    fn launcher(&self) -> MutexGuard<'_, Child> {
        // A thread that panicked with the lock has left the child as it was.
        self.launcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error if the guest's launcher is no more.
    fn ended(&self) -> Result<()> {
        if let Some(status) = self.launcher().try_wait().context("looking at the guest's launcher")? {
            bail!("the guest has ended ({status})");
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let outcome = self.kill().and_then(|()| self.remove_tap());
        if let Err(error) = outcome {
            eprintln!("guest {}: cleaning up: {error:#}", self.spec.name);
        }
    }
}

impl GuestSpec {
    /// The guest's own changes to its root image.
    fn cow(&self) -> PathBuf {
        self.dir.join("root.cow")
    }

    /// Where the kernel's and systemd's messages of the last boot are.
    pub fn console(&self) -> PathBuf {
        self.dir.join(CONSOLE)
    }
}

/// Starts a guest's kernel in a PID namespace of its own, with the shell's line as descriptor 3.
fn launch(spec: &GuestSpec, shell: &Shell) -> Result<Child> {
    // The kernel ends with the pipe on descriptor 4, and the first process of the namespace with the kernel.
    const FIRST_PROCESS: &str = r#"line=$1; shift; exec 4<&0 </dev/null
        "$@" 3<>"$line" 4<&- & kernel=$!
        { read -r _ <&4; kill -KILL "$kernel"; } &
        wait "$kernel""#;
    let console =
        File::options().create(true).append(true).open(spec.console()).context("cannot open the console log")?;
    let terminal = File::create(spec.dir.join("shell.log")).context("cannot make the log of the shell")?;
    let entries: Vec<_> = spec.groups.iter().map(|entry| entry.display().to_string()).collect();
    let join = format!("for entry in {}; do echo $$ > $entry || exit 125; done; exec \"$@\"", entries.join(" "));
    in_netns(spec.netns.as_deref(), "sh")?
        .args(["-c", &join, "launch", "unshare"])
        .args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c", FIRST_PROCESS, "sh"])
        .arg(shell.line())
        .arg(spec.kernel.binary())
        .args(kernel_arguments(spec))
        // The guest's memory is a file; it belongs into memory.
        .env("TMPDIR", "/dev/shm")
        .stdin(Stdio::piped())
        .stdout(console)
        .stderr(terminal)
        .spawn()
        .context("cannot start unshare")
}

fn kernel_arguments(spec: &GuestSpec) -> Vec<String> {
    let GuestSpec { name, port, memory_mib, kernel, image, data_disk, dir, .. } = spec;
    let mut arguments = vec![
        format!("mem={memory_mib}M"),
        format!("umid={name}"),
        format!("uml_dir={}", dir.display()),
        format!("hostfs={}", dir.display()),
        format!("ubd0={},{}", spec.cow().display(), image.display()),
        "root=/dev/ubda".to_owned(),
        "rw".to_owned(),
        "con=null".to_owned(),
        "con0=null,fd:1".to_owned(),
        "ssl=null".to_owned(),
        "ssl0=fd:3,fd:2".to_owned(),
        format!("vec0:transport=tap,ifname={port},depth=128,gro=1"),
        format!("systemd.hostname={name}"),
        "systemd.debug_shell=ttyS0".to_owned(),
    ];
    arguments.extend(kernel.arguments().iter().cloned());
    arguments.extend(data_disk.iter().map(|disk| format!("ubd1={}", disk.display())));
    arguments
}

fn validate(spec: &GuestSpec) -> Result<()> {
    for (name, length_max) in [(&spec.name, 63), (&spec.port, 15)] {
        let letters = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        ensure!(
            letters && (1..=length_max).contains(&name.len()) && !name.starts_with('-'),
            "{name:?} can't name a guest or its port: use 1 to {length_max} of a-z, 0-9 and '-'"
        );
    }
    for path in [Some(&spec.dir), Some(&spec.image), spec.data_disk.as_ref()].into_iter().flatten() {
        let text = path.to_str().unwrap_or(",");
        let bad = |letter: char| letter.is_whitespace() || letter == ',' || letter == ':' || letter == '\'';
        ensure!(
            path.is_absolute() && !text.contains(bad),
            "{}: a guest's paths are absolute, without blanks, commas, colons and quotes (they become kernel arguments)",
            path.display()
        );
    }
    let tun = fs::metadata("/dev/net/tun").is_ok_and(|meta| meta.file_type().is_char_device());
    ensure!(tun, "/dev/net/tun is missing: guests need tap devices (modprobe tun, or mknod /dev/net/tun c 10 200)");
    Ok(())
}

/// A command to be executed in a network namespace.
fn in_netns(netns: Option<&Path>, program: &str) -> Result<Command> {
    let Some(netns) = netns else { return tools::command(program) };
    let mut command = tools::command("nsenter")?;
    command.arg(format!("--net={}", netns.display())).arg(program);
    Ok(command)
}

/// Runs a command to its end; what it wrote to its standard error becomes the error's text.
fn finish(command: &mut Command) -> Result<()> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", tools::shown(command)))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}` failed with {}: {}", tools::shown(command), output.status, words.trim());
    Ok(())
}

/// The children of a process, oldest first; none if the process is no more.
fn children(parent: u32) -> Result<Vec<Pid>> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let list = match fs::read_to_string(&path) {
        Ok(list) => list,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {path}")),
    };
    Ok(list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect())
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Sleeps between two looks at something, growing from 2 to 50 ms, until a deadline.
struct Pace {
    deadline: Instant,
    pause: Duration,
}

impl Pace {
    fn until(limit: Duration) -> Pace {
        Pace { deadline: Instant::now() + limit, pause: Duration::from_millis(2) }
    }

    /// Sleeps; `false` once the deadline has passed.
    fn wait(&mut self) -> bool {
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(Duration::from_millis(50));
        Instant::now() < self.deadline
    }
}

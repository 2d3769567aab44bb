//! A head and a machine in namespaces of their own, a cable between them, the service on the head.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use wiglaf_link::Channel;
use wiglaf_linux::namespace::{NamespaceFlags, setns};
use wiglaf_wire::boot::{
    AddressService, BootInterface, BootMachine, BootSettings, FromBoot, Mac, Stage, ToBoot,
};

pub(crate) const HEAD: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
pub(crate) const ITS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 17);
pub(crate) const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
pub(crate) const HTTP_PORT: u16 = 8069;
/// Nothing here takes a tenth of this.
const WAIT: Duration = Duration::from_secs(20);

pub(crate) struct Scene {
    name: String,
    pub(crate) directory: tempfile::TempDir,
    service: Option<Child>,
    pub(crate) head: Option<Channel<FromBoot, ToBoot>>,
    cable: Option<Running>,
}

impl Scene {
    /// The machine's end of the cable is `eth0`, the head's is `wire`; `other` is another cable of
    /// the head's, to `eth1` of the same machine.
    pub(crate) fn new() -> Scene {
        let scene = Scene::empty();
        let (head, machine) = (scene.head_name(), scene.machine_name());
        ip(&format!(
            "link add wire netns {head} type veth peer name eth0 netns {machine}"
        ));
        scene.furnish();
        scene
    }

    /// The cable loses one packet in fifty. `None`: such a cable can't be had here.
    pub(crate) fn lossy() -> Option<Scene> {
        let mut scene = Scene::empty();
        let (near, far) = (format!("{}a", scene.name), format!("{}b", scene.name));
        let mut cable = Command::new("python3")
            .args(["-c", include_str!("lossy.py"), &near, &far])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut said = String::new();
        let mut output = BufReader::new(cable.stdout.take().expect("its output"));
        output.read_line(&mut said).expect("its output");
        scene.cable = Some(Running(cable));
        if said.trim() != "ready" {
            return None;
        }
        let (head, machine) = (scene.head_name(), scene.machine_name());
        ip(&format!("link set {near} netns {head} name wire"));
        ip(&format!("link set {far} netns {machine} name eth0"));
        scene.furnish();
        Some(scene)
    }

    fn empty() -> Scene {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let scene = Scene {
            name: format!("wgb{}x{number}", std::process::id()),
            directory: tempfile::tempdir().expect("a directory"),
            service: None,
            head: None,
            cable: None,
        };
        ip(&format!("netns add {}", scene.head_name()));
        ip(&format!("netns add {}", scene.machine_name()));
        scene
    }

    /// Addresses and files.
    fn furnish(&self) {
        let (head, machine) = (self.head_name(), self.machine_name());
        for line in [
            format!("link add other netns {head} type veth peer name eth1 netns {machine}"),
            format!("-n {head} address add {HEAD}/24 dev wire"),
            format!("-n {head} address add 10.8.0.1/24 dev other"),
            format!("-n {machine} link set eth0 address {MAC}"),
            format!("-n {machine} link set lo up"),
            format!("-n {head} link set lo up"),
            format!("-n {head} link set wire up"),
            format!("-n {head} link set other up"),
            format!("-n {machine} link set eth0 up"),
            format!("-n {machine} link set eth1 up"),
        ] {
            ip(&line);
        }
        let path = self.path("");
        let image = path.join("images/default-1");
        std::fs::create_dir_all(&image).expect("a directory");
        std::fs::create_dir(path.join("loaders")).expect("a directory");
        std::fs::write(image.join("kernel"), pattern(3_000_001)).expect("a kernel");
        std::fs::write(image.join("initramfs"), pattern(100_000)).expect("an initramfs");
        for (loader, length) in [("undionly.kpxe", 70_000), ("snponly.efi", 512 << 10)] {
            std::fs::write(path.join("loaders").join(loader), pattern(length)).expect("a loader");
        }
        // As a head's state is.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&path, mode).expect("a mode");
    }

    /// With the service running and its settings in force.
    pub(crate) fn serving(settings: BootSettings) -> Scene {
        let mut scene = Scene::new();
        scene.serve(settings);
        scene
    }

    /// Starts the service, and waits until it answers.
    pub(crate) fn serve(&mut self, settings: BootSettings) {
        self.start();
        self.configure(settings);
        self.wait(|message| matches!(message, FromBoot::Ready { .. }));
    }

    fn head_name(&self) -> String {
        format!("{}h", self.name)
    }

    fn machine_name(&self) -> String {
        format!("{}m", self.name)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn start(&mut self) {
        // By no name of a file: another build may have replaced that.
        let program = format!("/proc/{}/exe", std::process::id());
        let service = Command::new("ip")
            .args(["netns", "exec", &self.head_name()])
            .arg(program)
            .arg(super::SERVE)
            .args(["boot.sock", "images", "loaders"].map(|name| self.path(name)))
            .spawn();
        self.service = Some(service.expect("the service"));
        self.dial();
    }

    /// Another head takes over.
    pub(crate) fn dial(&mut self) {
        let path = self.path("boot.sock");
        let socket = until(|| UnixStream::connect(&path).ok());
        self.head = Some(Channel::new(socket.into()).expect("a channel"));
    }

    pub(crate) fn pid(&self) -> u32 {
        self.service.as_ref().expect("a service").id()
    }

    /// Without any chance to tidy up.
    pub(crate) fn kill(&mut self) {
        if let Some(mut service) = self.service.take() {
            service.kill().expect("kill");
            service.wait().expect("its end");
        }
    }

    /// Asks it to end.
    pub(crate) fn end(&mut self) {
        self.tell(&ToBoot::End);
        let status = self.service.take().expect("a service").wait();
        assert!(status.expect("its end").success());
    }

    pub(crate) fn configure(&mut self, settings: BootSettings) {
        self.tell(&ToBoot::Settings(settings));
    }

    fn tell(&mut self, message: &ToBoot) {
        let head = self.head.as_mut().expect("a head");
        head.queue(message, Vec::new()).expect("a message");
        head.wait_flushed().expect("a message");
    }

    /// The next message that is meant; the others before it are dropped.
    pub(crate) fn wait(&mut self, is_meant: impl Fn(&FromBoot) -> bool) -> FromBoot {
        let deadline = Instant::now() + WAIT;
        let mut others = Vec::new();
        loop {
            assert!(Instant::now() < deadline, "only {others:?}");
            match self.next(Duration::from_millis(100)) {
                Some(message) if is_meant(&message) => return message,
                Some(message) => others.push(message),
                None => {}
            }
        }
    }

    pub(crate) fn wait_stage(&mut self, mac: Mac, stage: Stage) {
        self.wait(|message| {
            matches!(message, FromBoot::Seen(seen) if seen.mac == mac && seen.stage == stage)
        });
    }

    /// A message, if one comes so soon.
    pub(crate) fn next(&mut self, within: Duration) -> Option<FromBoot> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let head = self.head.as_mut().expect("a head");
        if let Some(message) = head.next_message().expect("a message") {
            return Some(message);
        }
        let time = Timespec::try_from(within).expect("a short time");
        let ready = poll(&mut [PollFd::new(head, PollFlags::IN)], Some(&time)).expect("poll");
        if ready > 0 {
            head.receive().expect("the service");
        }
        head.next_message().expect("a message")
    }

    /// A command on the machine.
    pub(crate) fn on_machine(&self, line: &str) -> Output {
        self.on(&self.machine_name(), line)
    }

    /// Likewise, with arguments that have spaces in them.
    pub(crate) fn on_machine_with(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new("ip")
            .args(["netns", "exec", &self.machine_name(), program])
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .output()
            .expect(program)
    }

    pub(crate) fn on_head(&self, line: &str) -> Output {
        self.on(&self.head_name(), line)
    }

    fn on(&self, namespace: &str, line: &str) -> Output {
        Command::new("ip")
            .args(["netns", "exec", namespace])
            .args(line.split_whitespace())
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .output()
            .expect(line)
    }

    /// A command that goes on running there.
    pub(crate) fn beside(&self, line: &str) -> Running {
        let child = Command::new("ip")
            .args(["netns", "exec", &self.machine_name()])
            .args(line.split_whitespace())
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Running(child.expect(line))
    }

    /// Some code on the machine.
    pub(crate) fn inside<T: Send>(&self, code: impl FnOnce() -> T + Send) -> T {
        within(&self.machine_name(), code)
    }

    pub(crate) fn inside_head<T: Send>(&self, code: impl FnOnce() -> T + Send) -> T {
        within(&self.head_name(), code)
    }

    /// The machine has its address.
    pub(crate) fn give_address(&self, address: Ipv4Addr) {
        let machine = self.machine_name();
        ip(&format!("-n {machine} address add {address}/24 dev eth0"));
    }

    pub(crate) fn set_mac(&self, mac: Mac) {
        let machine = self.machine_name();
        ip(&format!("-n {machine} link set eth0 down"));
        ip(&format!("-n {machine} link set eth0 address {mac}"));
        ip(&format!("-n {machine} link set eth0 up"));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.kill();
        self.cable = None;
        for name in [self.head_name(), self.machine_name()] {
            ip(&format!("netns delete {name}"));
        }
    }
}

/// Killed when it is not needed any more.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn within<T: Send>(namespace: &str, code: impl FnOnce() -> T + Send) -> T {
    let path = Path::new("/run/netns").join(namespace);
    let file = std::fs::File::open(path).expect("a namespace");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let fd = std::os::fd::AsFd::as_fd(&file);
            setns(fd, NamespaceFlags::empty()).expect("the namespace");
            code()
        });
        thread.join().expect("what is done there")
    })
}

pub(crate) fn settings() -> BootSettings {
    BootSettings {
        interfaces: vec![BootInterface {
            name: "wire".to_owned(),
            address: HEAD,
            prefix: 24,
            service: AddressService::Full,
            unknown: (Ipv4Addr::new(10, 9, 0, 200), Ipv4Addr::new(10, 9, 0, 203)),
            gateway: None,
        }],
        head_port: 7494,
        http_port: HTTP_PORT,
        cluster: "test".to_owned(),
        machines: vec![BootMachine {
            mac: MAC,
            name: "n7".to_owned(),
            address: ITS,
            image: "default-1".to_owned(),
            arguments: String::new(),
        }],
    }
}

/// Where another server gives the addresses.
pub(crate) fn proxy() -> BootSettings {
    let mut settings = settings();
    settings.interfaces[0].service = AddressService::Proxy;
    settings
}

/// Bytes of which no two stretches are the same.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let words = 0_u32..;
    let bytes = words.flat_map(|word| word.wrapping_mul(2_654_435_761).to_be_bytes());
    bytes.take(length).collect()
}

/// Until there is something.
pub(crate) fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ip(line: &str) {
    let status = Command::new("ip").args(line.split_whitespace()).status();
    assert!(status.expect("ip").success(), "ip {line}");
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

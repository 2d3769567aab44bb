//! The system's init becomes PID 1, in the system's root; we go on as its child, in ours.

use std::ffi::CStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_move};
use rustix::pipe::{PipeFlags, pipe_with};
use wiglaf_linux::namespace::{NamespaceFlags, unshare};
use wiglaf_linux::process::{Fork, fork, kill, set_process_title, wait_any_child};
use wiglaf_wire::agent::PowerAction;

use super::{System, particulars};
use crate::init::journal::Journal;
use crate::init::network::Home;

/// A title that begins so keeps systemd from killing us before the end (systemd, "Root Storage
/// Daemons").
const TITLE: &str = "@wiglaf: init";
const FIRST: &str = "/proc/1/comm";
const SYSTEMD: &str = "systemd";
/// What systemd executes at the end of a machine; the kernel cuts the name.
const SYSTEMD_END: &str = "systemd-shutdow";
/// glibc's SIGRTMIN; from here systemd counts.
const SIGRTMIN: i32 = 34;

const SAFE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// What systems expect from whoever started them.
const PLACES: [(&str, &str, MountFlags, &CStr); 4] = [
    ("proc", "proc", SAFE, c""),
    ("sys", "sysfs", SAFE, c""),
    ("dev", "devtmpfs", MountFlags::NOSUID, c"mode=0755"),
    (
        "run",
        "tmpfs",
        MountFlags::NOSUID.union(MountFlags::NODEV),
        c"mode=0755,size=20%",
    ),
];

impl System {
    /// Gives the machine to the system's init, if there is one. Returns in the process that goes
    /// on beside it, or in PID 1 if nothing has come of it.
    ///
    /// The caller has one thread.
    pub(in crate::init) fn hand_over(&mut self, home: &Home, journal: &mut Journal) {
        let Some(init) = self.init.clone() else {
            return;
        };
        self.furnish(home, journal);
        if let Err(errno) = self.leave(&init, journal) {
            journal.say(format_args!(
                "can't go on beside the system's init: {errno}; the machine stays ours, and its \
                 init does not run"
            ));
            self.init = None;
        }
    }

    fn furnish(&self, home: &Home, journal: &mut Journal) {
        for (name, kind, flags, data) in PLACES {
            if let Err(errno) = mount(kind, self.root.join(name), kind, flags, data) {
                journal.say(format_args!("can't mount the system's /{name}: {errno}"));
            }
        }
        if let Err(error) = particulars::keep_card(&self.root.join("run"), home) {
            journal.say(format_args!(
                "can't tell the system that its network card is taken care of: {error}"
            ));
        }
    }

    fn leave(&self, init: &Path, journal: &mut Journal) -> Result<(), Errno> {
        // What the system mounts later tasks may want to see.
        mount_change(&self.root, MountPropagationFlags::SHARED)?;
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        match fork()? {
            Fork::Child => {
                drop(reader);
                // The kernel's own threads share PID 1's root, so it is us who leave.
                let left = unshare(NamespaceFlags::NEWNS).and_then(|()| {
                    let slaves = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
                    mount_change("/", slaves)
                });
                if left.is_err() {
                    std::process::exit(1);
                }
                let _ = set_process_title(TITLE);
                // PID 1 waits for this.
                let _ = fs::File::from(writer).write_all(b"+");
                Ok(())
            }
            Fork::Parent { pid, .. } => {
                drop(writer);
                let mut word = [0];
                if fs::File::from(reader).read_exact(&mut word).is_err() {
                    let _ = wiglaf_linux::process::wait(pid, false);
                    return Err(Errno::CHILD);
                }
                journal.say(format_args!("{} has the machine now", init.display()));
                self.become_init(init, journal)
            }
        }
    }

    fn become_init(&self, init: &Path, journal: &mut Journal) -> ! {
        let enter = || {
            rustix::process::chdir(&self.root)?;
            mount_move(".", "/")?;
            rustix::process::chroot(".")?;
            rustix::process::chdir("/")
        };
        let why = match enter() {
            Ok(()) => {
                // Its own limits and signals it sets itself; the mask and SIGPIPE are as usual.
                let mut command = Command::new(init);
                command.args(std::env::args_os().skip(1)).exec().to_string()
            }
            Err(errno) => errno.to_string(),
        };
        journal.say(format_args!(
            "{} can't have the machine: {why}. The node goes on without it",
            init.display()
        ));
        // Else the kernel would panic; and somebody has to reap.
        loop {
            if wait_any_child(false).is_err() {
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        }
    }

    /// Asks the system's init to end the machine in its own way.
    pub(in crate::init) fn ask_init(&self, action: PowerAction) -> Result<(), Errno> {
        if first_process().as_deref() == Some(SYSTEMD) {
            return kill(1, SIGRTMIN + systemd_signal(action));
        }
        let program = match action {
            PowerAction::Reboot => "reboot",
            PowerAction::Halt => "halt",
            PowerAction::PowerOff => "poweroff",
            // Others do not know how.
            PowerAction::Kexec => return Err(Errno::NOSYS),
        };
        match fork()? {
            Fork::Child => {
                let entered =
                    rustix::process::chroot(&self.root).and_then(|()| rustix::process::chdir("/"));
                if entered.is_ok() {
                    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
                    let _ = Command::new(program).env("PATH", path).exec();
                }
                std::process::exit(127)
            }
            Fork::Parent { .. } => Ok(()),
        }
    }
}

/// Whether the system is about to end the machine, so that nothing should be started any more.
pub(in crate::init) fn is_ending() -> bool {
    first_process().as_deref() == Some(SYSTEMD_END)
}

fn first_process() -> Option<String> {
    Some(fs::read_to_string(FIRST).ok()?.trim_end().to_owned())
}

/// systemd(1), "Signals".
fn systemd_signal(action: PowerAction) -> i32 {
    match action {
        PowerAction::Halt => 3,
        PowerAction::PowerOff => 4,
        PowerAction::Reboot => 5,
        PowerAction::Kexec => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_asked_by_the_signals_of_its_manual() {
        assert_eq!(SIGRTMIN + systemd_signal(PowerAction::Reboot), 39);
        assert_eq!(SIGRTMIN + systemd_signal(PowerAction::PowerOff), 38);
        assert!(!is_ending());
        assert!(SYSTEMD_END.len() == 15 && "systemd-shutdown".starts_with(SYSTEMD_END));
    }
}

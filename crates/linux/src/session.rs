//! Starts a process on a terminal, with job control.
//!
//! The kernel drops the stop signals of a terminal for a group that nobody in its session looks
//! after (POSIX, orphaned process groups): nobody could continue it. So the process gets a
//! parent in its own session, the *leader*, which does what a login shell would and no more: it
//! reports stops, continues and the end of the process, and passes the terminal's hang-up on.
//! Then Ctrl-Z, SIGTTIN, SIGTTOU and SIGTSTP are the kernel's own business.
//!
//! The leader is a fork of the caller, which may have several threads: it makes raw system calls
//! only and never allocates. It never executes anything either, so it keeps the capabilities
//! that choosing a PID takes. It blocks all signals: only SIGKILL ends it before its time.

use crate::arch::{self, CloneArgs, checked, int, raw};
use crate::process::{ArgumentArea, ChildChange, ChildState, ExitStatus, Usage, wait4};
use crate::signal::SignalSet;
use crate::spawn::{
    self, Context, Membership, SpawnError, SpawnRequest, Stage, clone_error, reap_failed, step,
};
use crate::vfork;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What `ps` shows of a leader.
const TITLE: &str = "wiglaf: session";
/// A leader whose process is no longer its child has nothing left to do.
const LEADER_LOST: i32 = 1;
/// Where the leader keeps its only descriptor.
const REPORTS: usize = 0;

/// The leader of a running process's session, its parent.
#[derive(Debug)]
pub struct Leader {
    /// Its PID in the caller's namespace.
    pub pid: i32,
    /// Readable once it has ended; what it leaves has another parent by then.
    pub pidfd: OwnedFd,
    reports: OwnedFd,
}

/// What a leader says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Report {
    /// Nothing at present.
    Nothing,
    /// Its child was stopped, was continued or has ended.
    Changed(ChildChange),
    /// Nothing any more.
    Over,
}

impl Leader {
    /// The next report; does not wait.
    pub fn report(&self) -> Result<Report, Errno> {
        let mut record = Record::default();
        match read(&self.reports, &mut record) {
            Ok(false) => Ok(Report::Over),
            Ok(true) => Ok(record.change().map_or(Report::Nothing, Report::Changed)),
            Err(Errno::AGAIN) => Ok(Report::Nothing),
            Err(errno) => Err(errno),
        }
    }
}

/// Readable when there are reports, and when it is over.
impl AsFd for Leader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reports.as_fd()
    }
}

/// As [`spawn::spawn`], but the process is a leader's child, and its group the foreground of the
/// terminal, which is this one of its standard descriptors. It must have a chosen PID. The
/// leader returns to the UTS namespace `home` when the process runs. It is a child of the caller
/// and to be reaped by it.
pub fn spawn(
    request: &SpawnRequest<'_>,
    terminal: usize,
    home: BorrowedFd<'_>,
) -> Result<Leader, SpawnError> {
    let failed = |errno| SpawnError::Clone { errno };
    let (reports, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    let stdio = request.stdio.map(|fd| fd.as_raw_fd());
    let mut kept = [-1; 8];
    let others = [request.mount_ns, request.root, request.cgroup, Some(home)];
    let others = others.into_iter().flatten().map(|fd| fd.as_raw_fd());
    let all = stdio.into_iter().chain(others).chain([writer.as_raw_fd()]);
    kept.iter_mut().zip(all).for_each(|(place, fd)| *place = fd);
    kept.sort_unstable();
    let plan = Plan {
        request,
        terminal: *stdio.get(terminal).ok_or(SpawnError::Clone {
            errno: Errno::INVAL,
        })?,
        home: home.as_raw_fd(),
        writer: writer.as_raw_fd(),
        kept,
        stack: vfork::own_stack().map_err(failed)?,
        title: ArgumentArea::find().ok(),
    };
    let mut context = Context::new(request, Membership::Foreground { terminal });
    let (pid, pidfd) = fork(&plan, &mut context).map_err(failed)?;
    drop(writer);
    let mut first = Record::default();
    let outcome = match read(&reports, &mut first) {
        Ok(true) => first.outcome(request),
        Ok(false) | Err(_) => Err(SpawnError::Leader),
    };
    if let Err(error) = outcome {
        reap_failed(pid);
        return Err(error);
    }
    rustix::io::ioctl_fionbio(&reports, true).map_err(failed)?;
    Ok(Leader {
        pid,
        pidfd,
        reports,
    })
}

fn fork(plan: &Plan<'_, '_>, context: &mut Context<'_, '_>) -> Result<(i32, OwnedFd), Errno> {
    let mut pidfd: i32 = -1;
    let args = CloneArgs {
        flags: libc::CLONE_PIDFD.cast_unsigned() as u64,
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        exit_signal: libc::SIGCHLD.cast_unsigned().into(),
        ..CloneArgs::default()
    };
    let clone = [
        (&raw const args).expose_provenance(),
        size_of::<CloneArgs>(),
    ];
    // The leader keeps this mask.
    let _blocked = vfork::Blocked::all();
    // SAFETY: without CLONE_VM and with no stack named, this is a fork: the child goes on with
    // a copy of this very stack. It never returns from `lead`, which makes raw system calls only.
    match unsafe { checked(libc::SYS_clone3, clone) }? {
        0 => lead(plan, context),
        // SAFETY: CLONE_PIDFD stored a descriptor that nothing else knows of.
        pid => Ok((arch::pid_from(pid), unsafe {
            OwnedFd::from_raw_fd(std::ptr::read_volatile(&raw const pidfd))
        })),
    }
}

/// What the leader is told. Everything is allocated before the fork.
struct Plan<'r, 'a> {
    request: &'r SpawnRequest<'a>,
    terminal: i32,
    home: i32,
    writer: i32,
    /// All descriptors that it needs, ascending; −1 where there is none.
    kept: [i32; 8],
    stack: *mut c_void,
    title: Option<ArgumentArea>,
}

/// The leader's life.
fn lead(plan: &Plan<'_, '_>, context: &mut Context<'_, '_>) -> ! {
    let pid = match start(plan, context) {
        Ok(pid) => pid,
        Err(failure) => {
            // A caller that is gone needs to be told nothing.
            let _ = failure.send(plan.writer);
            spawn::exit(LEADER_LOST)
        }
    };
    // SAFETY: no pointer is passed; the descriptors are this fork's own. It does no harm if the
    // namespace can't be left: the leader then passes for one of the process's descendants.
    unsafe {
        raw(libc::SYS_setns, [int(plan.home), int(libc::CLONE_NEWUTS)]);
        if plan.writer != 0 {
            raw(libc::SYS_dup3, [int(plan.writer), REPORTS, 0]);
        }
        raw(libc::SYS_close_range, [REPORTS + 1, u32::MAX as usize, 0]);
    }
    let _ = Record::started().send(0);
    watch(pid)
}

fn start(plan: &Plan<'_, '_>, context: &mut Context<'_, '_>) -> Result<i32, Record> {
    let failed = |(stage, errno)| Record::failed(stage, errno);
    if let Some(area) = plan.title {
        area.write(TITLE);
    }
    // SAFETY: the name is a C string, and the rest changes this fork alone.
    unsafe {
        let name = c"wiglaf".as_ptr().expose_provenance();
        raw(libc::SYS_prctl, [int(libc::PR_SET_NAME), name, 0, 0, 0]);
        // What the caller holds open would stay open as long as the process runs.
        keep_only(&plan.kept);
        spawn::set_signals(SignalSet::EMPTY, SignalSet::ALL).map_err(failed)?;
        step(Stage::Session, libc::SYS_setsid, []).map_err(failed)?;
        spawn::take_terminal(int(plan.terminal)).map_err(failed)?;
    }
    let options = spawn::options(plan.request);
    let context: *mut Context<'_, '_> = context;
    // SAFETY: the stack is that of the thread that forked, signals are blocked, `child` makes
    // raw system calls only and the context outlives the call.
    let (pid, pidfd) = unsafe { vfork::run_on(plan.stack, &options, spawn::child, context.cast()) }
        .map_err(Record::not_cloned)?;
    // SAFETY: the child no longer shares our memory; the descriptor is closed once.
    match unsafe {
        raw(libc::SYS_close, [int(pidfd)]);
        spawn::failure(context)
    } {
        None => Ok(pid),
        Some(failure) => {
            reap_failed(pid);
            Err(failed(failure))
        }
    }
}

/// Closes all but these descriptors, which ascend.
///
/// # Safety
/// Only in a fork that uses no others.
unsafe fn keep_only(kept: &[i32]) {
    let mut next = 0;
    for &fd in kept {
        if fd > next {
            // SAFETY: the caller's promise.
            unsafe { raw(libc::SYS_close_range, [int(next), int(fd - 1), 0]) };
        }
        if fd >= next {
            next = fd + 1;
        }
    }
    // SAFETY: as above.
    unsafe { raw(libc::SYS_close_range, [int(next), u32::MAX as usize, 0]) };
}

/// Reports what happens to the process, and ends with it.
fn watch(pid: i32) -> ! {
    let awaited = SignalSet::EMPTY
        .with(libc::SIGCHLD)
        .with(libc::SIGHUP)
        .bits();
    let options = libc::__WALL | libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED;
    loop {
        loop {
            match wait4(pid, options) {
                Ok(Some(change)) => {
                    let _ = Record::of(&change).send(0);
                    if let ChildState::Ended(_) = change.state {
                        spawn::exit(0);
                    }
                }
                Ok(None) => break,
                Err(_) => spawn::exit(LEADER_LOST),
            }
        }
        let args = [
            (&raw const awaited).expose_provenance(),
            0,
            0,
            size_of::<u64>(),
        ];
        // SAFETY: the kernel reads one set of eight bytes.
        let signal = unsafe { raw(libc::SYS_rt_sigtimedwait, args) };
        if signal == libc::SIGHUP as isize {
            // The kernel tells of a hang-up only the leader, which a program on a terminal
            // usually is. When the leader ends, it tells the foreground, too.
            for signal in [libc::SIGHUP, libc::SIGCONT] {
                // SAFETY: no pointer is passed.
                unsafe { raw(libc::SYS_kill, [int(pid), int(signal)]) };
            }
        }
    }
}

/// A report as it goes through the pipe: at once, as it is shorter than `PIPE_BUF`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Record {
    kind: u32,
    /// A stage's number, a status or a signal.
    detail: i32,
    /// An errno or, in a change, the PID.
    number: i32,
    core: u32,
    usage: [u64; 9],
}

impl Record {
    const STARTED: u32 = 1;
    const NOT_CLONED: u32 = 2;
    const FAILED: u32 = 3;
    const STOPPED: u32 = 4;
    const CONTINUED: u32 = 5;
    const EXITED: u32 = 6;
    const SIGNALED: u32 = 7;

    fn started() -> Record {
        Record {
            kind: Record::STARTED,
            ..Record::default()
        }
    }

    fn not_cloned(errno: Errno) -> Record {
        Record {
            kind: Record::NOT_CLONED,
            number: errno.raw_os_error(),
            ..Record::default()
        }
    }

    fn failed(stage: Stage, errno: Errno) -> Record {
        let kind = Record::FAILED;
        Record {
            kind,
            detail: stage as i32,
            number: errno.raw_os_error(),
            ..Record::default()
        }
    }

    fn of(change: &ChildChange) -> Record {
        let (kind, detail, core) = match change.state {
            ChildState::Stopped(signal) => (Record::STOPPED, signal, false),
            ChildState::Continued => (Record::CONTINUED, 0, false),
            ChildState::Ended(ExitStatus::Exited(code)) => (Record::EXITED, code, false),
            ChildState::Ended(ExitStatus::Signaled { signal, core }) => {
                (Record::SIGNALED, signal, core)
            }
        };
        let usage = &change.usage;
        Record {
            kind,
            detail,
            number: change.pid,
            core: core.into(),
            usage: [
                usage.user_us,
                usage.system_us,
                usage.max_rss_kb,
                usage.minor_faults,
                usage.major_faults,
                usage.blocks_in,
                usage.blocks_out,
                usage.voluntary_switches,
                usage.involuntary_switches,
            ],
        }
    }

    fn outcome(&self, request: &SpawnRequest<'_>) -> Result<(), SpawnError> {
        let errno = || Errno::from_raw_os_error(self.number);
        match self.kind {
            Record::STARTED => Ok(()),
            Record::NOT_CLONED => Err(clone_error(request, errno())),
            _ => {
                let errno = errno();
                let stage = usize::try_from(self.detail).ok();
                let stage = stage.and_then(|number| Stage::ALL.get(number)).copied();
                Err(stage.map_or(SpawnError::Leader, |stage| SpawnError::Child {
                    stage,
                    errno,
                }))
            }
        }
    }

    fn change(&self) -> Option<ChildChange> {
        let state = match self.kind {
            Record::STOPPED => ChildState::Stopped(self.detail),
            Record::CONTINUED => ChildState::Continued,
            Record::EXITED => ChildState::Ended(ExitStatus::Exited(self.detail)),
            Record::SIGNALED => {
                let (signal, core) = (self.detail, self.core != 0);
                ChildState::Ended(ExitStatus::Signaled { signal, core })
            }
            _ => return None,
        };
        let [
            user_us,
            system_us,
            max_rss_kb,
            minor_faults,
            major_faults,
            rest @ ..,
        ] = self.usage;
        let [
            blocks_in,
            blocks_out,
            voluntary_switches,
            involuntary_switches,
        ] = rest;
        let usage = Usage {
            user_us,
            system_us,
            max_rss_kb,
            minor_faults,
            major_faults,
            blocks_in,
            blocks_out,
            voluntary_switches,
            involuntary_switches,
        };
        Some(ChildChange {
            pid: self.number,
            state,
            usage,
        })
    }

    /// Only in the leader, to which the descriptor belongs.
    fn send(&self, writer: i32) -> Result<(), Errno> {
        let address = std::ptr::from_ref(self).expose_provenance();
        // SAFETY: the kernel reads one record, which has no padding.
        unsafe { checked(libc::SYS_write, [int(writer), address, size_of::<Record>()]) }.map(|_| ())
    }
}

/// Reads one record; `false` at the end.
fn read(reports: &OwnedFd, record: &mut Record) -> Result<bool, Errno> {
    let address = std::ptr::from_mut(record).expose_provenance();
    loop {
        let args = [int(reports.as_raw_fd()), address, size_of::<Record>()];
        // SAFETY: the kernel writes one record at most, and every bit pattern is a valid one.
        match unsafe { checked(libc::SYS_read, args) } {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(read) => return Ok(read == size_of::<Record>()),
        }
    }
}

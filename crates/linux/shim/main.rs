//! The shim: what stands in the place of a shell or a compiler while `wiglaf make` runs.
//!
//! It asks the broker what is to become of the command that it was started for: it executes the
//! real program here, or waits while the command runs on a node and ends as that ended. Its
//! arguments, environment, descriptors and signal actions are those of the command; it changes
//! none of them. Without a broker it executes the real program. The packets are described in
//! `src/shim.rs`.
#![no_std]
#![no_main]

mod calls;
#[path = "../bare/sys.rs"]
mod sys;

use calls::{Place, Received};
use sys::{POLLIN, Poll};

/// Where the broker listens and the real programs lie; written into each build's copy.
static PLACE: Place = Place::MARKED;

const VERSION: u8 = 1;
const STDIO: usize = 3;
const STDERR: usize = 2;

const NOT_FOUND: usize = 127;
const NOT_EXECUTED: usize = 126;
const ENOENT: isize = 2;
const LOST: &[u8] =
    b"wiglaf: this program stands for another one, which can't be executed from here\n";

/// HUP, INT, QUIT, USR1, USR2, TERM: what the broker passes on.
const PASSED_ON: u64 = set(1) | set(2) | set(3) | set(10) | set(12) | set(15);

const fn set(signal: usize) -> u64 {
    1 << (signal - 1)
}

/// Called by `_start` with the initial stack: argc, argv, null, environment.
#[unsafe(no_mangle)]
unsafe extern "C" fn program_main(stack: *const usize) -> ! {
    // SAFETY: so the kernel lays the stack out.
    let (argv, environment) = unsafe {
        let argv = stack.add(1);
        (argv as usize, argv.add(*stack + 1) as usize)
    };
    let command = Command { argv, environment };
    if let Some(socket) = ask() {
        Waiting {
            socket,
            signals: None,
        }
        .obey(&command);
    }
    command.run_by_path()
}

/// Connects and passes the standard descriptors; `None` where there is no broker.
#[inline(never)]
fn ask() -> Option<usize> {
    let socket = calls::socket()?;
    if !calls::connect(socket, &PLACE) {
        return None;
    }
    // The lowest free number is given out: one above them says that all three are open.
    let mut passed = [0_u32; STDIO];
    let mut count = 0;
    let mut mask = 0;
    let mut fd = 0;
    while fd < STDIO {
        if socket >= STDIO || fd < socket || fd > socket && calls::is_open(fd) {
            if let Some(place) = passed.get_mut(count) {
                *place = fd as u32;
            }
            count += 1;
            mask |= 1 << fd;
        }
        fd += 1;
    }
    let number = (socket as u32).to_le_bytes();
    let [n0, n1, n2, n3] = number;
    let packet = [b'C', VERSION, mask, n0, n1, n2, n3];
    calls::send(socket, &packet, &passed, count).then_some(socket)
}

struct Command {
    argv: usize,
    environment: usize,
}

impl Command {
    /// By the descriptor that the broker opened, outside our mounts: `/proc/self/exe` is then
    /// the program's own path, by which compilers find their files.
    fn run(&self, program: usize) {
        calls::execute(program, c"".as_ptr() as usize, self, true);
    }

    fn run_by_path(&self) -> ! {
        let result = calls::execute_beside(&PLACE, self);
        sys::write_all(STDERR, LOST.as_ptr(), LOST.len());
        sys::exit(if result == -ENOENT {
            NOT_FOUND
        } else {
            NOT_EXECUTED
        })
    }
}

struct Waiting {
    socket: usize,
    /// While the command runs elsewhere: where signals are read, and the mask before.
    signals: Option<(isize, u64)>,
}

impl Waiting {
    /// Does what the broker says; returns if the real program is to be executed by its path.
    fn obey(&mut self, command: &Command) {
        loop {
            if let Some((signals, _)) = self.signals {
                let mut polled = [
                    Poll::new(self.socket as i32, POLLIN),
                    Poll::new(signals as i32, POLLIN),
                ];
                if sys::poll(&mut polled, None) <= 0 {
                    continue;
                }
                let [socket, signal] = polled;
                if signal.happened != 0 {
                    self.pass_on(signals as usize);
                }
                if socket.happened == 0 {
                    continue;
                }
            }
            let Received {
                what,
                number,
                program,
            } = calls::receive(self.socket);
            let number = usize::from(number);
            match what {
                b'W' => self.wait(),
                b'X' => sys::exit(number),
                b'K' => die(number),
                b'L' => {
                    self.restore();
                    if let Some(program) = program {
                        command.run(program);
                    }
                    return;
                }
                // The broker is gone, or not of our time.
                _ => return self.restore(),
            }
        }
    }

    fn wait(&mut self) {
        if self.signals.is_none() {
            let before = sys::change_mask(sys::SIG_BLOCK, PASSED_ON);
            self.signals = Some((calls::signals(PASSED_ON), before));
        }
    }

    fn restore(&mut self) {
        if let Some((_, before)) = self.signals.take() {
            sys::change_mask(sys::SIG_SETMASK, before);
        }
    }

    fn pass_on(&self, signals: usize) {
        if let Some((signal, by_kernel)) = calls::next_signal(signals) {
            let packet = [b'S', signal, u8::from(by_kernel)];
            calls::send(self.socket, &packet, &[0; STDIO], 0);
        }
    }
}

/// As the command did. No core: it would be ours.
fn die(signal: usize) -> ! {
    calls::never_dump();
    sys::default(signal);
    sys::change_mask(sys::SIG_UNBLOCK, set(signal & 63));
    sys::kill_self(signal);
    sys::exit(128 + signal)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::exit(NOT_EXECUTED)
}

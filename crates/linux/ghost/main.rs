//! The ghost: what stands on the head for a process that runs on a node.
//!
//! It has no C library, no heap and no static data, so that thousands of them cost little: one
//! page of code and the stack that every process has. It does what its keeper says through
//! descriptor 3 and, if told to, carries what is typed at its terminal to descriptor 4.
//! The messages are described in `src/ghost.rs`, which also sets the descriptors up.
#![no_std]
#![no_main]

#[path = "../bare/sys.rs"]
mod sys;
mod terminal;

use core::mem::MaybeUninit;
use sys::{POLLERR, POLLIN, POLLOUT, Poll};
use terminal::Terminal;

const STDIN: usize = 0;
const STDERR: usize = 2;
const CONTROL: usize = 3;
const STDIN_PIPE: usize = 4;

/// How long a terminal that is not ours is left alone before it is looked at again.
const BACKGROUND_POLL_MS: u32 = 200;
/// The largest message; the rest of a longer one is cut off.
const MAX_MESSAGE: usize = 1024;
/// What a pipe that is ready takes at once (`PIPE_BUF`), so that writing never blocks.
const CHUNK: usize = 4096;
/// When the cluster failed, not the program.
const CLUSTER_FAILED: usize = 125;

const MODE_PUMP: u8 = 1;
const MODE_RAW: u8 = 2;

/// Called by `_start` with the initial stack: argc, argv, null, environment.
#[unsafe(no_mangle)]
unsafe extern "C" fn program_main(stack: *const *const u8) -> ! {
    // SAFETY: the kernel puts argv behind argc, null-terminated.
    unsafe { sys::set_name(basename(*stack.add(1))) };
    sys::close(1);
    sys::close_from(STDIN_PIPE + 1);
    for signal in 1..=sys::LAST_SIGNAL {
        sys::catch(signal);
    }
    sys::unblock_all();
    Ghost {
        terminal: Terminal::new(),
        pumping: false,
        pipe_ready: false,
    }
    .run()
}

/// What follows the last slash; the same pointer if there is none, or no argument at all.
unsafe fn basename(path: *const u8) -> *const u8 {
    let mut base = path;
    let mut at = path;
    // SAFETY: the argument is a C string or null.
    unsafe {
        while !at.is_null() && *at != 0 {
            if *at == b'/' && *at.add(1) != 0 {
                base = at.add(1);
            }
            at = at.add(1);
        }
    }
    base
}

struct Ghost {
    terminal: Terminal,
    pumping: bool,
    /// The pipe has room for one chunk. As we alone write to it, that stays so until we do.
    pipe_ready: bool,
}

impl Ghost {
    fn run(&mut self) -> ! {
        loop {
            let foreground = terminal::in_foreground();
            if foreground {
                self.terminal.assert_raw();
            }
            // At most one other descriptor is waited for: input is not asked for before it can
            // be passed on, or a full pipe would make us spin.
            let (fd, events, timeout) = match (self.pumping, self.pipe_ready, foreground) {
                (false, _, true) => (-1, 0, None),
                (false, _, false) if !self.terminal.wants_raw() => (-1, 0, None),
                (true, false, _) => (STDIN_PIPE as i32, POLLOUT, None),
                (true, true, true) => (STDIN as i32, POLLIN, None),
                _ => (-1, 0, Some(BACKGROUND_POLL_MS)),
            };
            let pipe = if self.pumping { STDIN_PIPE as i32 } else { -1 };
            let mut polled = [
                Poll::new(CONTROL as i32, POLLIN),
                Poll::new(fd, events),
                Poll::new(pipe, 0),
            ];
            // A signal interrupts this; its handler does nothing and we look again.
            if sys::poll(&mut polled, timeout) <= 0 {
                continue;
            }
            let [control, other, pipe] = polled;
            if control.happened != 0 {
                self.obey();
            }
            if !self.pumping {
                continue;
            }
            if pipe.happened & POLLERR != 0 {
                // The reader is gone: what is typed from now on is not for us.
                self.stop_pumping();
            } else if other.happened != 0 {
                if !self.pipe_ready {
                    self.pipe_ready = true;
                } else if fd == STDIN as i32 && terminal::in_foreground() {
                    self.pump();
                }
            }
        }
    }

    /// Carries one chunk.
    #[inline(never)]
    fn pump(&mut self) {
        let mut chunk = MaybeUninit::<[u8; CHUNK]>::uninit();
        let bytes: *mut u8 = chunk.as_mut_ptr().cast();
        let read = sys::read(STDIN, bytes, CHUNK);
        if read == -sys::EINTR || read == -sys::EAGAIN {
            return;
        }
        self.pipe_ready = false;
        if read <= 0 || !sys::write_all(STDIN_PIPE, bytes, read as usize) {
            self.stop_pumping();
        }
    }

    fn stop_pumping(&mut self) {
        sys::close(STDIN_PIPE);
        self.pumping = false;
    }

    /// Reads one message and does it.
    #[inline(never)]
    fn obey(&mut self) {
        let mut message = MaybeUninit::<[u8; MAX_MESSAGE]>::uninit();
        let bytes: *mut u8 = message.as_mut_ptr().cast();
        let length = sys::read(CONTROL, bytes, MAX_MESSAGE);
        if length == -sys::EINTR || length == -sys::EAGAIN {
            return;
        }
        if length <= 0 {
            self.terminal.restore();
            // The deputy, which has lost its keeper too, tells the user why.
            sys::exit(CLUSTER_FAILED);
        }
        // SAFETY: the kernel wrote `length` bytes.
        let (what, text) = unsafe { (*bytes, bytes.add(1)) };
        let argument = if length > 1 {
            // SAFETY: as above.
            unsafe { *text }
        } else {
            0
        };
        let number = usize::from(argument);
        match what {
            b'M' => {
                self.pumping = argument & MODE_PUMP != 0;
                if !self.pumping {
                    sys::close(STDIN_PIPE);
                }
                self.terminal.want_raw(argument & MODE_RAW != 0);
            }
            b'X' => {
                self.terminal.restore();
                sys::exit(number);
            }
            b'D' => {
                self.terminal.restore();
                sys::default(number);
                sys::kill_self(number);
                sys::exit(128 + number);
            }
            b'T' => {
                self.terminal.restore();
                sys::default(number);
                sys::kill_self(number);
                // Continued. SIGSTOP can't be caught, so that this changes nothing for it.
                sys::catch(number);
            }
            b'E' => {
                sys::write_all(STDERR, text, length as usize - 1);
            }
            b'R' => self.terminal.forget_raw(),
            _ => {}
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::exit(CLUSTER_FAILED)
}

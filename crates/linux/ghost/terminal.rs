//! The terminal at descriptor 0, while it is ours.

use crate::sys;

/// `struct termios` as `TCGETS` fills it in.
#[repr(C)]
#[derive(Clone, Copy)]
struct Termios {
    input: u32,
    output: u32,
    control: u32,
    local: u32,
    line: u8,
    characters: [u8; 19],
}

const TCGETS: usize = 0x5401;
const TCSETS: usize = 0x5402;
const TIOCGPGRP: usize = 0x540f;
const ENOTTY: isize = 25;

/// IGNBRK BRKINT PARMRK ISTRIP INLCR IGNCR ICRNL IXON.
const NOT_IN_RAW_INPUT: u32 = 0o1 | 0o2 | 0o10 | 0o40 | 0o100 | 0o200 | 0o400 | 0o2000;
/// OPOST.
const NOT_IN_RAW_OUTPUT: u32 = 0o1;
/// ECHO ECHONL ICANON ISIG IEXTEN.
const NOT_IN_RAW_LOCAL: u32 = 0o10 | 0o100 | 0o2 | 0o1 | 0o100_000;
/// CSIZE PARENB.
const NOT_IN_RAW_CONTROL: u32 = 0o60 | 0o400;
const CS8: u32 = 0o60;
const VTIME: usize = 5;
const VMIN: usize = 6;

pub(crate) struct Terminal {
    wanted: bool,
    raw: bool,
    saved: bool,
    settings: Termios,
}

impl Terminal {
    pub(crate) fn new() -> Terminal {
        Terminal {
            wanted: false,
            raw: false,
            saved: false,
            settings: Termios {
                input: 0,
                output: 0,
                control: 0,
                local: 0,
                line: 0,
                characters: [0; 19],
            },
        }
    }

    pub(crate) fn wants_raw(&self) -> bool {
        self.wanted && !self.raw
    }

    pub(crate) fn want_raw(&mut self, wanted: bool) {
        if !wanted {
            self.restore();
        }
        self.wanted = wanted;
    }

    /// Somebody else has changed the settings: raw mode has to be set anew, and what was
    /// saved before it stays what is restored.
    pub(crate) fn forget_raw(&mut self) {
        self.raw = false;
    }

    /// Sets raw mode if it is wanted and not set. Only in the foreground: from the background
    /// the kernel would stop us.
    pub(crate) fn assert_raw(&mut self) {
        if !self.wants_raw() {
            return;
        }
        if !self.saved {
            if sys::ioctl(0, TCGETS, &raw mut self.settings as usize) != 0 {
                self.wanted = false;
                return;
            }
            self.saved = true;
        }
        let mut raw = self.settings;
        raw.input &= !NOT_IN_RAW_INPUT;
        raw.output &= !NOT_IN_RAW_OUTPUT;
        raw.local &= !NOT_IN_RAW_LOCAL;
        raw.control = raw.control & !NOT_IN_RAW_CONTROL | CS8;
        raw.characters[VMIN] = 1;
        raw.characters[VTIME] = 0;
        self.raw = sys::ioctl(0, TCSETS, &raw const raw as usize) == 0;
    }

    /// Puts the settings back if they are changed and the terminal is still ours; the next raw
    /// mode saves anew what it finds.
    pub(crate) fn restore(&mut self) {
        if self.saved && in_foreground() {
            sys::ioctl(0, TCSETS, &raw const self.settings as usize);
        }
        self.saved = false;
        self.raw = false;
    }
}

/// Whether descriptor 0 may be read: a terminal's foreground is us, or it is no terminal.
pub(crate) fn in_foreground() -> bool {
    let mut group = 0_i32;
    let result = sys::ioctl(0, TIOCGPGRP, &raw mut group as usize);
    // SAFETY: a local that the kernel may have written.
    result == -ENOTTY
        || result == 0 && unsafe { (&raw const group).read_volatile() } == sys::group()
}

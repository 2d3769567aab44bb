//! The programs.

use super::{Build, Difference, Input, Source};

/// What most of them have in common.
const PLAIN: Input = Input {
    name: "",
    about: "",
    source: Source::Own,
    packages: &["gcc", "libc6-dev", "make"],
    folder: "",
    prepare: None,
    build: Build::Make(&[]),
    needs_cargo: false,
    differences: &[],
};

const LINUX_PACKAGES: &[&str] = &[
    "bc",
    "bison",
    "flex",
    "gcc",
    "libc6-dev",
    "libelf-dev",
    "libssl-dev",
    "make",
];

pub(super) const INPUTS: &[Input] = &[
    Input {
        name: "redis-deps",
        about: "the libraries that come with redis: recursive make",
        source: Source::Debian("redis"),
        folder: "deps",
        build: Build::Make(&["hiredis", "linenoise", "lua", "hdr_histogram"]),
        ..PLAIN
    },
    Input {
        name: "redis",
        about: "redis-server with its libraries",
        source: Source::Debian("redis"),
        build: Build::Make(&["MALLOC=libc", "redis-server"]),
        ..PLAIN
    },
    Input {
        name: "lua",
        about: "Lua 5.4: one flat Makefile",
        source: Source::Debian("lua5.4"),
        packages: &["gcc", "g++", "libc6-dev", "libtool-bin", "make"],
        // What Debian's rules do before they call its Makefile.
        prepare: Some("echo '#define DEB_HOST_MULTIARCH \"here\"' > src/lua5.4-deb-multiarch.h"),
        // Its Makefile links one library by two rules, which must not run at once.
        build: Build::Shell(
            "V='LIBTOOL=libtool DEB_HOST_MULTIARCH=here' && \
             make -j$JOBS -C src $V SYSCFLAGS=-DLUA_USE_LINUX o && make $V linux",
        ),
        ..PLAIN
    },
    Input {
        name: "zlib",
        about: "zlib: a configure script of its own",
        source: Source::Debian("zlib"),
        prepare: Some("./configure"),
        differences: &[Difference {
            files: "configure.log",
            reason: "the time, and a process' number",
        }],
        ..PLAIN
    },
    Input {
        name: "busybox",
        about: "busybox, allnoconfig: kbuild in small",
        source: Source::Debian("busybox"),
        prepare: Some("make allnoconfig"),
        ..PLAIN
    },
    Input {
        name: "hello",
        about: "GNU hello: autotools, with configure over the cluster as well",
        source: Source::Debian("hello"),
        build: Build::Shell("./configure && make -j$JOBS"),
        differences: &[Difference {
            files: "config.log",
            reason: "the names of the compiler's temporary files",
        }],
        ..PLAIN
    },
    Input {
        name: "zopfli",
        about: "zopfli: C and C++ by cmake and ninja",
        source: Source::Debian("zopfli"),
        packages: &["cmake", "g++", "gcc", "libc6-dev", "make", "ninja-build"],
        prepare: Some("cmake -G Ninja -B build -D CMAKE_BUILD_TYPE=Release ."),
        build: Build::Shell("ninja -C build -j$JOBS"),
        differences: &[
            Difference {
                files: "build/.ninja_*",
                reason: "when each file was made, and how long that took",
            },
            Difference {
                files: "build/CMakeFiles/CMake*.log",
                reason: "random names of folders for trials",
            },
        ],
        ..PLAIN
    },
    Input {
        name: "wiglaf",
        about: "a crate of this workspace and what it depends on, by cargo",
        source: Source::Own,
        build: Build::Shell(
            "CARGO_INCREMENTAL=0 cargo build --offline --locked -j$JOBS -p wiglaf-wire",
        ),
        needs_cargo: true,
        differences: &[
            Difference {
                files: "target/.rustc_info.json",
                reason: "a table in no order",
            },
            Difference {
                files: "target/*/.fingerprint/*/dep-lib-*",
                reason: "a table in no order",
            },
        ],
        ..PLAIN
    },
    Input {
        name: "emacs",
        about: "emacs without windows: C, then much Lisp, each file by itself",
        source: Source::Debian("emacs"),
        packages: &["autoconf", "gcc", "libc6-dev", "make", "libncurses-dev"],
        // Debian's source has no manuals, without which configure wants what would make them.
        prepare: Some(
            "mkdir info && touch info/emacs && ./autogen.sh autoconf && \
             ./configure --without-all --without-x --with-gnutls=no",
        ),
        build: Build::Make(&["lisp"]),
        differences: &[
            Difference {
                files: "src/*.pdmp",
                reason: "a dumped memory, with the times of its making",
            },
            Difference {
                files: "lisp/loaddefs.el*",
                reason: "in the order in which files were finished",
            },
            Difference {
                files: "lisp/vc/ediff-mult.elc",
                reason: "macros of files that are compiled at the same time",
            },
            Difference {
                files: "lisp/emacs-lisp/eieio-custom.elc",
                reason: "larger if eieio-core is compiled after it, here as on nodes",
            },
            Difference {
                files: "config.log",
                reason: "random names of trials",
            },
            Difference {
                files: "autom4te.cache/requests",
                reason: "a table in no order",
            },
        ],
        ..PLAIN
    },
    Input {
        name: "linux",
        about: "Linux 6.1, tinyconfig",
        source: Source::Linux,
        packages: LINUX_PACKAGES,
        prepare: Some("make -C \"$SOURCE\" O=\"$PWD\" tinyconfig"),
        ..PLAIN
    },
    Input {
        name: "linux-lib",
        about: "the lib folder of the same: 80 objects, none of which takes long",
        source: Source::Linux,
        packages: LINUX_PACKAGES,
        prepare: Some("make -C \"$SOURCE\" O=\"$PWD\" tinyconfig && make prepare"),
        build: Build::Make(&["lib/"]),
        ..PLAIN
    },
];

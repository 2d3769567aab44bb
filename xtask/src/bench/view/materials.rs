//! What the work needs: a C file, a repository, a large file, an archive.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::inputs::linux_source;
use crate::run;

pub(super) const BIG_BYTES: u64 = 500 << 20;
/// Files of noise, and how long each is.
pub(super) const SEVERAL: u32 = 64;
pub(super) const SEVERAL_BYTES: u64 = 1 << 20;
const REPOSITORY_FOLDERS: u32 = 230;
const FILES_PER_FOLDER: u32 = 20;
pub(super) const REPOSITORY_FILES: u32 = REPOSITORY_FOLDERS * FILES_PER_FOLDER;
const C_FUNCTIONS: u32 = 100;
const SOURCE_PACKAGE: &str = "linux-source-6.1";
const SOURCE_FOLDERS: &[&str] = &["kernel", "lib", "mm"];
const GENERATED_FILES: u32 = 1300;
/// Those of libc6-dev and gcc that go together; what they include comes on top.
const HEADERS: &str = "aio alloca ar argp argz arpa/ftp arpa/inet arpa/nameser arpa/telnet \
    arpa/tftp assert byteswap complex cpio crypt ctype dirent dlfcn elf endian envz err errno \
    error execinfo fcntl features fenv fmtmsg fnmatch fstab fts ftw gconv getopt glob \
    gnu-versions grp gshadow iconv ifaddrs inttypes langinfo lastlog libgen libintl limits link \
    locale malloc math mcheck memory mntent monetary mqueue nl_types nss obstack paths poll \
    printf pthread pty pwd regex resolv sched search semaphore setjmp shadow signal spawn stab \
    stdarg stdalign stdatomic stdbool stddef stdint stdio stdio_ext stdlib stdnoreturn string \
    strings syscall sysexits syslog tar termios tgmath thread_db threads time ttyent uchar \
    ucontext ulimit unistd utime utmp utmpx values wait wchar wctype wordexp iso646 float";

pub(super) struct Materials {
    /// One folder for all that is only read, and one for each contender.
    pub(super) dir: PathBuf,
    pub(super) headers: usize,
    pub(super) include_lines: usize,
    /// What the archive is.
    pub(super) archive: String,
    pub(super) archive_entries: usize,
}

impl Materials {
    pub(super) fn make(dir: &Path, store: &Path, contenders: &[&str]) -> Result<Materials> {
        println!("making what is to be worked on");
        fs::create_dir_all(store)?;
        let headers = write_c_file(dir)?;
        write_noise(&dir.join("big"), BIG_BYTES)?;
        let (archive, archive_entries) = write_archive(dir, store)?;
        let repository = dir.join("repository");
        make_repository(&repository)?;
        for name in contenders {
            let own = dir.join(name);
            fs::create_dir(&own)?;
            let mut copy = Command::new("cp");
            run::output(copy.arg("-a").arg(&repository).arg(own.join("repository")))?;
            // The index knows the files by their numbers.
            git(&own.join("repository"), &["status", "--porcelain"])?;
        }
        let list = shell("ls -lR /usr/include | wc -l", dir)?;
        Ok(Materials {
            dir: dir.to_owned(),
            headers,
            include_lines: list.trim().parse()?,
            archive,
            archive_entries,
        })
    }
}

/// The less that is read after a restart.
pub(super) fn make_few(dir: &Path, contenders: &[&str]) -> Result<()> {
    fs::write(
        dir.join("one.c"),
        "#include <stdio.h>\nint main(void) { return puts(\"done\") < 0; }\n",
    )?;
    shell("gcc -c one.c -o one.o", dir)?;
    let several = dir.join("several");
    fs::create_dir(&several)?;
    for number in 0..SEVERAL {
        write_noise(&several.join(format!("noise{number}")), SEVERAL_BYTES)?;
    }
    for name in contenders {
        fs::create_dir(dir.join(name))?;
    }
    Ok(())
}

/// Says how many headers it includes.
fn write_c_file(dir: &Path) -> Result<usize> {
    let mut text = "#define _GNU_SOURCE\n".to_owned();
    for name in HEADERS.split_whitespace() {
        text.push_str(&format!(
            "#if __has_include(<{name}.h>)\n#include <{name}.h>\n#endif\n"
        ));
    }
    for number in 0..C_FUNCTIONS {
        text.push_str(&format!(
            "int work_{number}(const char *text, int count)\n{{\n    int sum = {number};\n    \
             for (int i = 0; i < count; i++) {{\n        if (isalpha((unsigned char)text[i]))\n            \
             sum += text[i] * {};\n        else\n            sum ^= i << {};\n    }}\n    \
             return sum;\n}}\n",
            number + 3,
            number % 7,
        ));
    }
    fs::write(dir.join("many.c"), text)?;
    shell("gcc -O2 -c many.c -o many.o", dir)?;
    let count = shell(
        "gcc -H -fsyntax-only many.c 2>&1 | sed -n 's/^\\.* \\(\\/.*\\)/\\1/p' | sort -u | wc -l",
        dir,
    )?;
    Ok(count.trim().parse()?)
}

/// Of what can't be compressed.
fn write_noise(path: &Path, bytes: u64) -> Result<()> {
    let mut random = fs::File::open("/dev/urandom")?.take(bytes);
    std::io::copy(&mut random, &mut fs::File::create(path)?)?;
    Ok(())
}

/// A part of Linux' source, or files of our own making where the package can't be had.
fn write_archive(dir: &Path, store: &Path) -> Result<(String, usize)> {
    let kept = store.join(format!("{SOURCE_PACKAGE}-part.tar"));
    let about = match fetch_archive(store, &kept) {
        Ok(()) => {
            fs::copy(&kept, dir.join("source.tar"))?;
            format!("{} of {SOURCE_PACKAGE}", SOURCE_FOLDERS.join(", "))
        }
        Err(error) => {
            generate_archive(dir)?;
            format!("generated files of 1 to 8 kB, as {SOURCE_PACKAGE} can't be had ({error:#})")
        }
    };
    let entries = shell("tar -tf source.tar | wc -l", dir)?;
    Ok((about, entries.trim().parse()?))
}

fn fetch_archive(store: &Path, kept: &Path) -> Result<()> {
    if kept.exists() {
        return Ok(());
    }
    let source = linux_source(&store.with_file_name("inputs").join("sources"))?;
    let script = format!(
        "set -e; tar -cf part.tar -C {} {}; mv part.tar {}",
        source.with_file_name("").display(),
        SOURCE_FOLDERS
            .iter()
            .map(|folder| format!("{SOURCE_PACKAGE}/{folder}"))
            .collect::<Vec<_>>()
            .join(" "),
        kept.display(),
    );
    shell(&script, store).map(|_| ())
}

fn generate_archive(dir: &Path) -> Result<()> {
    let top = dir.join("source");
    for number in 0..GENERATED_FILES {
        let folder = top.join(format!("d{}", number / 40));
        fs::create_dir_all(&folder)?;
        let line = format!("line {number} of generated text\n");
        let text = line.repeat(40 * (1 + number as usize % 8));
        fs::write(folder.join(format!("f{number}.c")), text)?;
    }
    shell("tar -cf source.tar source && rm -r source", dir).map(|_| ())
}

/// A commit, and one change since.
fn make_repository(dir: &Path) -> Result<()> {
    for folder in 0..REPOSITORY_FOLDERS {
        let path = dir.join(format!("part{}/d{folder}", folder % 10));
        fs::create_dir_all(&path)?;
        for file in 0..FILES_PER_FOLDER {
            let text = format!("{folder} {file}\n").repeat(50 + file as usize * 20);
            fs::write(path.join(format!("file{file}.txt")), text)?;
        }
    }
    git(dir, &["init", "--quiet"])?;
    git(dir, &["add", "."])?;
    let author = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"];
    git(
        dir,
        &[&author[..], &["commit", "--quiet", "-m", "files"]].concat(),
    )?;
    fs::write(dir.join("part0/d0/file0.txt"), "changed\n")?;
    Ok(())
}

fn git(dir: &Path, args: &[&str]) -> Result<()> {
    let mut command = Command::new("/usr/bin/git");
    command.env("HOME", dir).current_dir(dir).args(args);
    run::output(&mut command).map(|_| ())
}

fn shell(script: &str, dir: &Path) -> Result<String> {
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir)
        .env("LC_ALL", "C")
        .output()
        .context("sh")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

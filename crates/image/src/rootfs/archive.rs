//! A tar archive goes straight into the squashfs: its owners, devices and attributes never have to
//! be made here, so nobody need be root for it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use super::{MAKE, RootfsError, finish, make, not_started};

const BUFFER_BYTES: usize = 256 << 10;
/// Where a tar archive says that it is one (POSIX.1-1988, ustar).
const MAGIC_AT: usize = 257;
const MAGIC: &[u8] = b"ustar";
const BLOCK: usize = 512;

/// Packs it.
pub(super) fn pack(path: &Path, file: &Path) -> Result<(), RootfsError> {
    let read = |source| RootfsError::Read {
        path: path.to_owned(),
        source,
    };
    let mut tar = open(path).map_err(read)?;
    let mut first = vec![0; BLOCK];
    let is_tar = tar.read_exact(&mut first).is_ok() && first[MAGIC_AT..].starts_with(MAGIC);
    if !is_tar {
        return Err(RootfsError::Neither(path.to_owned()));
    }
    let mut command = make("-".as_ref(), file);
    // What an archive says of its root is not taken.
    command.args(["-tar", "-xattrs", "-root-mode", "0755"]);
    command.args(["-root-uid", "0", "-root-gid", "0"]);
    // So that the root's time can be set.
    command.arg("-noI");
    command.stdin(Stdio::piped());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = (command.spawn()).map_err(|error| not_started(MAKE, &error))?;
    let Some(mut pipe) = child.stdin.take() else {
        return Err(RootfsError::Neither(path.to_owned()));
    };
    let (output, copied) = thread::scope(|scope| {
        // It may have more to say than a pipe holds.
        let worker = scope.spawn(move || {
            let copied = io::copy(&mut first.as_slice().chain(tar), &mut pipe);
            // What follows an archive's end it does not want.
            drop(pipe);
            copied
        });
        let output = child.wait_with_output();
        let copied = worker.join();
        (
            output,
            copied.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    });
    finish(MAKE, output.map_err(|error| not_started(MAKE, &error))?)?;
    match copied {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(read(error)),
        _ => {}
    }
    set_root_time(file).map_err(|source| RootfsError::Read {
        path: file.to_owned(),
        source,
    })
}

/// mksquashfs 4.5 gives the root of what came as an archive the time of its making, whatever it is
/// asked for, so the same archive would not make the same bytes. (Documentation/filesystems/
/// squashfs.rst; the inodes are not compressed.)
fn set_root_time(file: &Path) -> io::Result<()> {
    const SUPERBLOCK: usize = 96;
    const METADATA: u64 = 8192;
    const IS_PLAIN: u16 = 0x8000;
    const TIME: u64 = 8;
    let disk = OpenOptions::new().read(true).write(true).open(file)?;
    let mut superblock = [0; SUPERBLOCK];
    disk.read_exact_at(&mut superblock, 0)?;
    let number = |at: usize| {
        let bytes = superblock[at..].first_chunk().copied();
        u64::from_le_bytes(bytes.unwrap_or_default())
    };
    let (root, table) = (number(32), number(64));
    let first = table + (root >> 16);
    for byte in 0..4 {
        // Each block begins with its length.
        let at = (root & 0xffff) + TIME + byte;
        let block = first + at / METADATA * (METADATA + 2);
        let mut length = [0; 2];
        disk.read_exact_at(&mut length, block)?;
        if u16::from_le_bytes(length) & IS_PLAIN == 0 {
            return Err(io::Error::other("its inodes are compressed"));
        }
        disk.write_all_at(&[0], block + 2 + at % METADATA)?;
    }
    Ok(())
}

/// Its bytes, uncompressed by what they begin with.
fn open(path: &Path) -> io::Result<Box<dyn Read + Send>> {
    let mut file = BufReader::with_capacity(BUFFER_BYTES, File::open(path)?);
    let head = file.fill_buf()?;
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(file))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
        _ => Box::new(file),
    })
}

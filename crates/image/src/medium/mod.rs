//! Media for machines that can't start from the network: a CD, a stick, a disk.
//!
//! It is one layout for all of them: an ISO 9660 file system that is a disk with a partition
//! table, too. A BIOS starts GRUB from it as a CD or as a disk, UEFI from the small FAT file
//! system within it. Either way GRUB seeks the file system with the marker, and starts the
//! image's kernel from there. The same image and the same words give the same bytes.

mod disk;
mod offer;
#[cfg(test)]
mod tests;
mod tools;

use std::fs::{self, File as Disk};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use crate::store::{INITRAMFS, Images, KERNEL, Manifest, StoreError};

pub use disk::{Device, DiskError, Progress};
pub use offer::Offered;
use tools::{Efi, Program};
pub use tools::{MediumTools, ToolError};

/// What media are for.
const ARCH: &str = "x86_64";
/// Bytes that the kernel takes of a command line (COMMAND_LINE_SIZE of x86), with the 0.
const MAX_COMMAND_LINE: usize = 2048;
const VOLUME: &str = "WIGLAF";
/// FAT's serial number, where others have the time.
const SERIAL: &str = "57494721";
/// All times on a medium: 1980, as FAT knows no earlier one.
const EPOCH: &str = "315532800";
/// FAT's own tables and slack, beside the files.
const FAT_SPARE_BYTES: u64 = 512 << 10;
const MIB: u64 = 1 << 20;
/// GRUB's part that the menu's file is read by.
const MODULES: [&str; 12] = [
    "configfile",
    "echo",
    "iso9660",
    "linux",
    "normal",
    "part_gpt",
    "part_msdos",
    "reboot",
    "search",
    "search_fs_file",
    "sleep",
    "test",
];
/// How long a key is waited for before it starts.
const KEY_WAIT_S: u32 = 2;
/// How long what went wrong is shown before the machine starts anew.
const SHOW_S: u32 = 30;
const COPY_BYTES: usize = 256 << 10;
/// Folders of that name that others may have left.
const NAMES: u32 = 100;
const MARKER_DIGITS: usize = 16;

/// What a medium is to start.
#[derive(Clone, Debug)]
pub struct Medium<'a> {
    /// The image, which is on it.
    pub image: &'a Manifest,
    /// The kernel's command line.
    pub arguments: String,
}

/// A medium can't be made.
#[derive(Debug, thiserror::Error)]
pub enum MediumError {
    /// The image is for others.
    #[error("{image} is for {arch}; media are for x86_64 machines only")]
    Arch {
        /// Which.
        image: String,
        /// For whom.
        arch: String,
    },
    /// The command line is too long, or has what GRUB would not take as it stands.
    #[error("the kernel's command line can't be used: {0}")]
    Arguments(&'static str),
    /// A file of the image is not what was built.
    #[error("{path} is damaged: it does not have the digest that it was built with")]
    Damaged {
        /// Which.
        path: PathBuf,
    },
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else has that name.
    #[error("{0} is there already, and is not a file")]
    NotAFile(PathBuf),
    /// A program that is needed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// What it is written to.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There is no place for it among the images.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl MediumError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            MediumError::Arch { .. } => {
                Some("start other machines from the network: `wiglaf boot enable`".into())
            }
            MediumError::Arguments(_) => {
                Some("see [boot] in the configuration, and --arguments".into())
            }
            MediumError::Damaged { .. } => {
                Some("remove the image, and build it again: `wiglaf image build`".into())
            }
            MediumError::Tool(error) => error.hint(),
            MediumError::Disk(error) => error.hint(),
            MediumError::NotAFile(_) => {
                Some("name a new file; for a disk, it is --usb rather than --iso".into())
            }
            MediumError::Store(StoreError::Disk { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("images are made by who made the cluster, mostly root: use sudo".into())
            }
            MediumError::File { .. } | MediumError::Store(_) => None,
        }
    }
}

impl Medium<'_> {
    /// Writes it to a new file, which takes its name only when it is whole.
    ///
    /// # Errors
    /// The image is damaged or for others, a program fails, or the disk is full.
    pub fn write(
        &self,
        images: &Images,
        tools: &MediumTools,
        file: &Path,
    ) -> Result<u64, MediumError> {
        // A device would be replaced rather than written to.
        if fs::metadata(file).is_ok_and(|data| !data.is_file()) {
            return Err(MediumError::NotAFile(file.to_owned()));
        }
        let name = file.file_name().ok_or_else(|| MediumError::File {
            path: file.to_owned(),
            source: io::ErrorKind::InvalidFilename.into(),
        })?;
        // A program that takes it may take a name for an option.
        let dir = match file.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let dir = fs::canonicalize(dir).map_err(failed(dir))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".new-{}", std::process::id()));
        let (new, mut out) = Unnamed::make(dir.join(hidden))?;
        // The programs that make it take names, and others may write to that directory.
        let place = Workplace::make()?;
        let whole = place.0.join("medium.iso");
        self.put_together(images, tools, &place, &whole)?;
        let mut whole = Disk::open(&whole).map_err(failed(&whole))?;
        let size = io::copy(&mut whole, &mut out).map_err(failed(&new.0))?;
        out.sync_all().map_err(failed(&new.0))?;
        let place = dir.join(name);
        fs::rename(&new.0, &place).map_err(failed(&place))?;
        Ok(size)
    }

    /// Writes it to a disk, when it is whole, and compares.
    ///
    /// # Errors
    /// As [`Medium::write`], and if the disk is too small or fails.
    pub fn write_disk(
        &self,
        images: &Images,
        tools: &MediumTools,
        device: &mut Device,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<u64, MediumError> {
        let place = Workplace::make()?;
        let whole = place.0.join("medium.iso");
        self.put_together(images, tools, &place, &whole)?;
        Ok(device.write(&whole, tell)?)
    }

    fn put_together(
        &self,
        images: &Images,
        tools: &MediumTools,
        place: &Workplace,
        out: &Path,
    ) -> Result<(), MediumError> {
        if self.image.arch != ARCH {
            return Err(MediumError::Arch {
                image: self.image.id.clone(),
                arch: self.image.arch.clone(),
            });
        }
        check_arguments(&self.arguments)?;
        let folder = images.dir().join(&self.image.id);
        let kernel = folder.join(KERNEL);
        let initramfs = folder.join(INITRAMFS);
        check_digest(&kernel, &self.image.kernel.sha256)?;
        check_digest(&initramfs, &self.image.initramfs.sha256)?;

        let menu = menu(&self.image.id, &self.arguments);
        let marker = format!("medium-{}", &sha256(menu.as_bytes())[..MARKER_DIGITS]);
        let menu = place.put("grub.cfg", &menu)?;
        let first = place.put("first.cfg", &first_words(&marker))?;
        let empty = place.put("marker", "")?;
        let bios = place.0.join("bios.img");
        tools.run(
            Program::Mkimage,
            grub("i386-pc-eltorito", &tools.bios, &first, &bios).args(["biosdisk"]),
        )?;
        let efi = self.efi_files(tools, place, &first)?;
        let fat = place.0.join("efi.img");
        put_fat(tools, &fat, &efi)?;

        let mut files: Vec<(String, &Path)> = vec![
            ("/wiglaf/kernel".into(), &kernel),
            ("/wiglaf/initramfs".into(), &initramfs),
            ("/wiglaf/grub.cfg".into(), &menu),
            ("/wiglaf/bios.img".into(), &bios),
            ("/wiglaf/efi.img".into(), &fat),
            (format!("/wiglaf/{marker}"), &empty),
        ];
        if matches!(tools.efi, Efi::Signed { .. }) {
            // Where Debian's GRUB for CDs looks.
            files.push(("/boot/grub/grub.cfg".into(), &first));
        }
        put_iso(tools, out, &files)
    }

    /// What UEFI starts, by where it looks for it.
    fn efi_files(
        &self,
        tools: &MediumTools,
        place: &Workplace,
        first: &Path,
    ) -> Result<Vec<(&'static str, PathBuf)>, MediumError> {
        Ok(match &tools.efi {
            Efi::Unsigned { modules } => {
                let program = place.0.join("bootx64.efi");
                tools.run(
                    Program::Mkimage,
                    // The kernel's screen is the one that GRUB has found.
                    grub("x86_64-efi", modules, first, &program)
                        .args(["fat", "efi_gop", "efi_uga"]),
                )?;
                vec![("/EFI/BOOT/BOOTX64.EFI", program)]
            }
            Efi::Signed { shim, grub } => vec![
                ("/EFI/BOOT/BOOTX64.EFI", shim.clone()),
                ("/EFI/BOOT/GRUBX64.EFI", grub.clone()),
                ("/EFI/BOOT/grub.cfg", first.to_owned()),
                ("/boot/grub/grub.cfg", first.to_owned()),
            ],
        })
    }
}

/// The command that makes GRUB's first part; modules may be added.
fn grub(format: &str, modules: &Path, first: &Path, out: &Path) -> Arguments {
    Arguments::default()
        .args(["-O", format, "-p", "/wiglaf", "-d"])
        .path(modules)
        .args(["-c"])
        .path(first)
        .args(["-o"])
        .path(out)
        .args(MODULES)
}

fn put_fat(
    tools: &MediumTools,
    fat: &Path,
    files: &[(&'static str, PathBuf)],
) -> Result<(), MediumError> {
    let mut size = FAT_SPARE_BYTES;
    for (_, path) in files {
        size += fs::metadata(path).map_err(failed(path))?.len();
    }
    let disk = Disk::create(fat).map_err(failed(fat))?;
    disk.set_len(size.next_multiple_of(MIB))
        .map_err(failed(fat))?;
    let on = || Arguments::default().args(["-i"]).path(fat);
    tools.run(
        Program::Mformat,
        on().args(["-v", VOLUME, "-N", SERIAL, "::"]),
    )?;
    let mut folders: Vec<String> = Vec::new();
    for (name, _) in files {
        let parents = name.match_indices('/').skip(1).map(|(at, _)| &name[..at]);
        for folder in parents.map(|folder| format!("::{folder}")) {
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
    }
    tools.run(Program::Mmd, on().args(folders.iter().map(String::as_str)))?;
    for (name, path) in files {
        let to = format!("::{name}");
        tools.run(Program::Mcopy, on().path(path).args([to.as_str()]))?;
    }
    Ok(())
}

fn put_iso(tools: &MediumTools, out: &Path, files: &[(String, &Path)]) -> Result<(), MediumError> {
    let dates = format!("={EPOCH}");
    let mut words = Arguments::default()
        .args(["-no_rc", "-as", "mkisofs", "-quiet", "-o"])
        .path(out)
        .args(["-r", "-V", VOLUME, "--set_all_file_dates", &dates])
        .args(["-b", "wiglaf/bios.img", "-no-emul-boot"])
        .args(["-boot-load-size", "4", "-boot-info-table"])
        .args(["--grub2-boot-info", "--grub2-mbr"])
        .path(&tools.bios.join("boot_hybrid.img"))
        // Some firmware starts only from disks with an active partition.
        .args(["--mbr-force-bootable", "--protective-msdos-label"])
        .args(["--efi-boot", "wiglaf/efi.img", "-efi-boot-part"])
        .args(["--efi-boot-image", "-graft-points"]);
    for (name, path) in files {
        words = words.graft(name, path);
    }
    tools.run(Program::Xorriso, words)?;
    Ok(())
}

/// Words for a program.
#[derive(Debug, Default)]
struct Arguments(Vec<std::ffi::OsString>);

impl Arguments {
    fn args<'a>(mut self, words: impl IntoIterator<Item = &'a str>) -> Arguments {
        self.0.extend(words.into_iter().map(Into::into));
        self
    }

    fn path(mut self, path: &Path) -> Arguments {
        self.0.push(path.into());
        self
    }

    /// xorriso's `NAME=FILE`, where both signs of that grammar may be in a file's name.
    fn graft(mut self, name: &str, path: &Path) -> Arguments {
        let path = path.to_string_lossy().replace('\\', "\\\\");
        self.0
            .push(format!("{name}={}", path.replace('=', "\\=")).into());
        self
    }
}

/// GRUB's first words: where the rest is.
fn first_words(marker: &str) -> String {
    format!(
        "search --no-floppy --file --set=root /wiglaf/{marker}\n\
         set prefix=($root)/wiglaf\n\
         configfile ($root)/wiglaf/grub.cfg\n"
    )
}

/// Nobody sits there, so it starts by itself, and starts anew if that fails.
fn menu(image: &str, arguments: &str) -> String {
    let entry = |title: &str, arguments: &str| {
        format!(
            "menuentry '{title}' {{\n\
             \x20 echo 'Wiglaf: loading {image}'\n\
             \x20 linux /wiglaf/kernel {arguments}\n\
             \x20 initrd /wiglaf/initramfs\n\
             \x20 boot\n\
             \x20 echo 'Wiglaf: that failed; starting anew in {SHOW_S} s'\n\
             \x20 sleep {SHOW_S}\n\
             \x20 reboot\n\
             }}\n"
        )
    };
    let quiet = entry(&format!("Wiglaf: {image}"), arguments);
    let debug = entry(
        &format!("Wiglaf: {image}, with all that the kernel says"),
        &format!("{arguments} wiglaf.debug"),
    );
    format!(
        "set default=0\n\
         set timeout={KEY_WAIT_S}\n\
         set timeout_style=hidden\n\
         if [ $grub_platform = pc ]; then set gfxpayload=text; fi\n\
         {quiet}{debug}"
    )
}

fn check_arguments(text: &str) -> Result<(), MediumError> {
    let refuse = |why| Err(MediumError::Arguments(why));
    if text.len() + " wiglaf.debug".len() >= MAX_COMMAND_LINE {
        return refuse("it is longer than 2,000 characters");
    }
    // What GRUB's language gives a meaning to (its manual, chapter 6).
    if text
        .bytes()
        .any(|byte| b"'\"\\$;{}|&<>()#`".contains(&byte))
    {
        return refuse("quotes, brackets and the like are not for it");
    }
    if text
        .bytes()
        .any(|byte| !(byte.is_ascii_graphic() || byte == b' '))
    {
        return refuse("it has characters that no keyboard writes");
    }
    Ok(())
}

fn check_digest(path: &Path, sha256: &str) -> Result<(), MediumError> {
    use io::Read;
    let mut file = Disk::open(path).map_err(failed(path))?;
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = file.read(&mut buffer).map_err(failed(path))?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    if hex(hash.finish().as_ref()) == sha256 {
        return Ok(());
    }
    Err(MediumError::Damaged {
        path: path.to_owned(),
    })
}

fn sha256(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A folder for what is only needed on the way.
struct Workplace(PathBuf);

impl Workplace {
    fn make() -> Result<Workplace, MediumError> {
        let mut builder = fs::DirBuilder::new();
        // It fails if somebody else has made it.
        builder.mode(0o700);
        let name = format!("wiglaf-medium-{}", std::process::id());
        let mut tried = 0;
        loop {
            let path = std::env::temp_dir().join(format!("{name}.{tried}"));
            match builder.create(&path) {
                Ok(()) => return Ok(Workplace(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tried < NAMES => {
                    tried += 1;
                }
                Err(source) => return Err(failed(&path)(source)),
            }
        }
    }

    fn put(&self, name: &str, text: &str) -> Result<PathBuf, MediumError> {
        let path = self.0.join(name);
        fs::write(&path, text).map_err(failed(&path))?;
        Ok(path)
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file that has not got its name yet; gone if it does not get it.
struct Unnamed(PathBuf);

impl Unnamed {
    /// Nobody else's: what has the name already is removed, not followed.
    fn make(path: PathBuf) -> Result<(Unnamed, Disk), MediumError> {
        let _ = fs::remove_file(&path);
        let file = Disk::create_new(&path).map_err(failed(&path))?;
        Ok((Unnamed(path), file))
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        // Mostly it has been renamed.
        let _ = fs::remove_file(&self.0);
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> MediumError + '_ {
    |source| MediumError::File {
        path: path.to_owned(),
        source,
    }
}

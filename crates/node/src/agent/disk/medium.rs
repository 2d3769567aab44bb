//! A medium is written to a disk, so that the machine starts from it.

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddrV4;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ring::digest::{Context, SHA256};
use rustix::fs::{Advice, fadvise};
use wiglaf_linux::disk::reread_partitions;
use wiglaf_wire::disk::{DiskAnswer, DiskMedium, DiskStep, DiskVerdict, MediumFile};

use super::look::{self, Seen};
use super::work::{Failed, Ground, SETTLE, exclusive, wipe_ends, within};
use crate::disk::MIB;
use crate::disk::layout::size;
use crate::disk::medium::{Obstacle, may_write};
use crate::init::fetch;

const CHUNK_BYTES: usize = 1 << 20;
/// What a medium's tables count in.
const SECTOR_BYTES: u32 = 512;
/// So much may wait in memory for a slow disk.
const UNWRITTEN_BYTES: u64 = 8 << 20;

impl Ground {
    /// Writes it, or says whether it would be.
    pub(super) fn write(&mut self, medium: &DiskMedium) -> DiskAnswer {
        let seen = look::disks(&self.in_use()).into_iter();
        let seen = seen.filter(|seen| seen.disk.is_called(&medium.device));
        let (device, verdict, text) = match seen.collect::<Vec<_>>().as_slice() {
            [] => {
                let text = format!(
                    "it has no disk {}, or no driver for it: `wiglaf image build --disk` puts them \
                     into the image",
                    medium.device
                );
                (medium.device.clone(), DiskVerdict::Refused, text)
            }
            [seen] => {
                let (verdict, text) = self.write_to(seen, medium);
                (seen.disk.device.clone(), verdict, text)
            }
            _ => {
                let text = format!("several disks are called {}", medium.device);
                (medium.device.clone(), DiskVerdict::Refused, text)
            }
        };
        let device = Some(device);
        DiskAnswer {
            steps: vec![DiskStep {
                device,
                verdict,
                text,
            }],
            ..DiskAnswer::default()
        }
    }

    fn write_to(&self, seen: &Seen, medium: &DiskMedium) -> (DiskVerdict, String) {
        let bytes = medium.file.as_ref().map_or(0, |file| file.bytes);
        let what = [seen.model.as_str(), &size(seen.disk.bytes)];
        let what = what.into_iter().filter(|word| !word.is_empty());
        let what = what.collect::<Vec<_>>().join(", ");
        if seen.sector_bytes != SECTOR_BYTES {
            let text = format!(
                "its sectors are of {} bytes, and media are made for {SECTOR_BYTES}",
                seen.sector_bytes
            );
            return (DiskVerdict::Refused, text);
        }
        let lost = match may_write(&seen.disk, bytes, medium.overwrite, &self.cluster) {
            Ok(lost) => lost,
            Err(Obstacle::Firm(why)) => return (DiskVerdict::Refused, why),
            Err(Obstacle::Data(why)) => {
                let text = format!("{why}; to lose all that is on it: --overwrite");
                return (DiskVerdict::Refused, text);
            }
        };
        let Some(boot) = self.boot else {
            let text = "it does not know where the head's boot service is".to_owned();
            return (DiskVerdict::Refused, text);
        };
        let Some(file) = &medium.file else {
            let text = match lost {
                Some(lost) => format!("{what}: {lost}, which is lost"),
                None => what,
            };
            return (DiskVerdict::Planned, text);
        };
        match self.put(seen, file, boot) {
            Ok(()) => (DiskVerdict::Done, what),
            Err(why) => (DiskVerdict::Failed, why),
        }
    }

    /// Neither the old content nor a part of the new one starts a machine: what does is written
    /// last, when all that came is what was sent.
    fn put(&self, seen: &Seen, file: &MediumFile, boot: SocketAddrV4) -> Result<(), Failed> {
        let disk = exclusive(Path::new(&seen.disk.device))?;
        self.is_as_planned(&disk, seen)?;
        let unwritten = |error: io::Error| format!("it can't be written: {error}");
        let mut sink = Sink {
            disk: &disk,
            disk_bytes: seen.disk.bytes,
            first: Vec::new(),
            at: 0,
            synced: 0,
            hash: Context::new(&SHA256),
            failure: None,
        };
        let fetched = fetch(
            boot,
            &format!("/medium/{}", file.number),
            file.bytes,
            &mut sink,
        );
        if let Some(error) = sink.failure {
            return Err(unwritten(error));
        }
        fetched.map_err(|error| format!("the medium can't be fetched: {error}"))?;
        if sink.at != file.bytes || sink.hash.finish().as_ref() != file.sha256 {
            return Err("the medium came damaged: it does not have its digest".into());
        }
        disk.sync_all()
            .and_then(|()| disk.write_all_at(&sink.first, 0))
            .and_then(|()| disk.sync_all())
            .map_err(unwritten)?;
        let unread = |error: io::Error| format!("it can't be read back: {error}");
        if digest_of(&disk, file.bytes).map_err(unread)? != file.sha256 {
            // It would start something, but nobody knows what.
            let wiped = wipe_ends(&disk, 0, seen.disk.bytes);
            wiped.and_then(|()| disk.sync_all()).map_err(unwritten)?;
            return Err("it does not hold what was written: it is broken".into());
        }
        // For whoever looks next; the medium is there without it, too.
        let _ = within(SETTLE, || reread_partitions(&disk));
        Ok(())
    }
}

/// What the disk itself has.
fn digest_of(disk: &File, bytes: u64) -> io::Result<[u8; 32]> {
    // What the kernel remembers would say nothing of the disk.
    fadvise(disk, 0, None, Advice::DontNeed)?;
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < bytes {
        let left = usize::try_from(bytes - at).unwrap_or(usize::MAX);
        let chunk = &mut buffer[..left.min(CHUNK_BYTES)];
        disk.read_exact_at(chunk, at)?;
        hash.update(chunk);
        at += chunk.len() as u64;
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(hash.finish().as_ref());
    Ok(digest)
}

/// Puts what comes in its place, but keeps what makes it start.
struct Sink<'a> {
    disk: &'a File,
    disk_bytes: u64,
    first: Vec<u8>,
    at: u64,
    synced: u64,
    hash: Context,
    /// The disk's word, which is not the wire's.
    failure: Option<io::Error>,
}

impl Sink<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.synced == 0 {
            // Not sooner: what can't be fetched must not cost what was there.
            wipe_ends(self.disk, 0, self.disk_bytes)?;
            self.disk.sync_all()?;
            self.synced = self.at;
        }
        self.disk.write_all_at(bytes, self.at)?;
        let end = self.at + bytes.len() as u64;
        if end - self.synced >= UNWRITTEN_BYTES {
            self.disk.sync_data()?;
            self.synced = end;
        }
        Ok(())
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = match usize::try_from(MIB.saturating_sub(self.at)) {
            Ok(0) | Err(_) => {
                if let Err(error) = self.put(bytes) {
                    self.failure = Some(error);
                    return Err(io::ErrorKind::Other.into());
                }
                bytes
            }
            Ok(room) => {
                let bytes = &bytes[..bytes.len().min(room)];
                self.first.extend_from_slice(bytes);
                bytes
            }
        };
        self.hash.update(bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::net::{Ipv4Addr, TcpListener};
    use std::path::PathBuf;
    use std::thread;

    use super::super::super::kept::SharedStore;
    use super::*;
    use crate::disk::Cluster;
    use crate::disk::content::Content;
    use crate::disk::plan::{Disk, Use};
    use crate::disk::table::Found;

    const DISK_BYTES: u64 = 6 << 20;
    const OLD: u8 = 0x5a;

    /// Serves one request.
    fn service(status: &'static str, body: Vec<u8>) -> SocketAddrV4 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut request = [0; 1024];
            let read = stream.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /medium/7 HTTP/1.1\r\n"));
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).unwrap();
            // It may not want all of it.
            let _ = stream.write_all(&body);
        });
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
    }

    /// A file in the place of a disk that holds data.
    fn disk(dir: &Path) -> (Seen, PathBuf) {
        let path = dir.join("disk");
        fs::write(&path, vec![OLD; usize::try_from(DISK_BYTES).unwrap()]).unwrap();
        let disk = Disk {
            device: path.to_string_lossy().into_owned(),
            identities: Vec::new(),
            bytes: DISK_BYTES,
            is_removable: false,
            is_external: false,
            is_read_only: false,
            content: Content::Unknown,
            table: Found::None,
            parts: Vec::new(),
            use_: Use::Nobody,
        };
        let seen = Seen {
            disk,
            model: String::new(),
            sector_bytes: SECTOR_BYTES,
            sequence: None,
        };
        (seen, path)
    }

    fn medium() -> Vec<u8> {
        (0..3_500_000_u32).map(|at| (at % 251) as u8 | 1).collect()
    }

    fn file_of(bytes: &[u8]) -> MediumFile {
        let digest = ring::digest::digest(&SHA256, bytes);
        MediumFile {
            number: 7,
            bytes: bytes.len() as u64,
            sha256: digest.as_ref().try_into().unwrap(),
        }
    }

    fn ground() -> Ground {
        Ground::new(
            Cluster::new(&[7; 32]),
            None,
            PathBuf::from("/nowhere"),
            SharedStore::default(),
        )
    }

    #[test]
    fn a_medium_is_on_the_disk_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (seen, path) = disk(dir.path());
        let medium = medium();
        let boot = service("200 OK", medium.clone());
        ground().put(&seen, &file_of(&medium), boot).unwrap();
        let disk = fs::read(&path).unwrap();
        assert!(disk.starts_with(&medium));
        // What there was of an old table at its end.
        assert!(disk[disk.len() - (1 << 20)..].iter().all(|byte| *byte == 0));
        assert_eq!(disk.len() as u64, DISK_BYTES);
    }

    #[test]
    fn what_does_not_come_whole_starts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let medium = medium();
        let mut other = medium.clone();
        other[3_000_000] ^= 2;
        for sent in [other, medium[..2_000_000].to_vec()] {
            let (seen, path) = disk(dir.path());
            let boot = service("200 OK", sent);
            let why = ground().put(&seen, &file_of(&medium), boot).unwrap_err();
            assert!(why.contains("damaged"), "{why}");
            let disk = fs::read(&path).unwrap();
            assert!(disk[..1 << 20].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn what_does_not_come_at_all_costs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (seen, path) = disk(dir.path());
        let boot = service("404 Not Found", Vec::new());
        let why = ground().put(&seen, &file_of(b"medium"), boot).unwrap_err();
        assert!(why.contains("can't be fetched"), "{why}");
        assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == OLD));
        // Nor if it is another disk than the one that was looked at.
        fs::write(&path, vec![0; usize::try_from(DISK_BYTES).unwrap()]).unwrap();
        let boot = service("200 OK", medium());
        let why = ground().put(&seen, &file_of(&medium()), boot).unwrap_err();
        assert!(why.contains("changed meanwhile"), "{why}");
        assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
    }
}

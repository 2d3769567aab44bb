//! How an initramfs travels, and how modules and firmware lie on a disk.

use std::io::{self, Read, Write};
use std::path::Path;

use liblzma::stream::{Check, Filters, LzmaOptions, PRESET_EXTREME, Stream};
use serde::{Deserialize, Serialize};

/// What unpacking needs in memory beside the data, on machines with 112 MB. A larger one saves a
/// five-hundredth.
const XZ_WINDOW: u32 = 4 << 20;
/// What little data needs of it.
const LEAST_XZ_WINDOW: u32 = 64 << 10;
const XZ_LEVEL: u32 = 9;
const ZSTD_LEVEL: i32 = 19;

/// How an initramfs is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// The smallest.
    Xz,
    /// About a tenth larger; unpacked in a tenth of the time.
    Zstd,
    /// Not at all.
    None,
}

impl Compression {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Xz => "xz",
            Compression::Zstd => "zstd",
            Compression::None => "none",
        }
    }
}

/// What the kernel's own decoder for xz can undo. It knows no check but CRC32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// Calls' targets become absolute before they are compressed.
    X86,
    Other,
}

/// Compresses what is written to it.
pub(crate) enum Encoder<W: Write> {
    Xz(Box<liblzma::write::XzEncoder<W>>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
    None(W),
}

impl<W: Write> Encoder<W> {
    /// For about so many bytes.
    pub(crate) fn new(
        method: Compression,
        code: Code,
        size: u64,
        out: W,
    ) -> io::Result<Encoder<W>> {
        Ok(match method {
            Compression::None => Encoder::None(out),
            Compression::Zstd => Encoder::Zstd(zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?),
            Compression::Xz => {
                let mut options = LzmaOptions::new_preset(XZ_LEVEL | PRESET_EXTREME)?;
                let window = u32::try_from(size).unwrap_or(XZ_WINDOW);
                options.dict_size(window.clamp(LEAST_XZ_WINDOW, XZ_WINDOW));
                let mut filters = Filters::new();
                if code == Code::X86 {
                    // Its instructions lie anywhere; measured, this is best for them.
                    options.literal_context_bits(4).position_bits(0);
                    filters.x86();
                }
                filters.lzma2(&options);
                let stream = Stream::new_stream_encoder(&filters, Check::Crc32)?;
                let encoder = liblzma::write::XzEncoder::new_stream(out, stream);
                Encoder::Xz(Box::new(encoder))
            }
        })
    }

    pub(crate) fn finish(self) -> io::Result<W> {
        match self {
            Encoder::Xz(encoder) => encoder.finish(),
            Encoder::Zstd(encoder) => encoder.finish(),
            Encoder::None(out) => Ok(out),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Encoder::Xz(encoder) => encoder.write(bytes),
            Encoder::Zstd(encoder) => encoder.write(bytes),
            Encoder::None(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Encoder::Xz(encoder) => encoder.flush(),
            Encoder::Zstd(encoder) => encoder.flush(),
            Encoder::None(out) => out.flush(),
        }
    }
}

/// Endings of compressed files that can be read.
pub(crate) const ENDINGS: [&str; 3] = ["", ".xz", ".zst"];

/// Reads a file, uncompressed as its name says.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = std::fs::read(path)?;
    let ending = path.extension().and_then(|ending| ending.to_str());
    match ending {
        Some("xz") => {
            let mut plain = Vec::new();
            liblzma::read::XzDecoder::new_multi_decoder(&bytes[..]).read_to_end(&mut plain)?;
            Ok(plain)
        }
        Some("zst") => zstd::stream::decode_all(&bytes[..]),
        Some("gz") => Err(io::Error::other(
            "files compressed by gzip can't be read; unpack it beside itself with `gunzip -k`",
        )),
        _ => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_compressed_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        let all = [
            (Compression::Xz, "a.xz"),
            (Compression::Zstd, "a.zst"),
            (Compression::None, "a"),
        ];
        for (method, name) in all {
            for code in [Code::X86, Code::Other] {
                let mut encoder = Encoder::new(method, code, 800_000, Vec::new()).unwrap();
                encoder.write_all(&data).unwrap();
                let path = dir.path().join(name);
                std::fs::write(&path, encoder.finish().unwrap()).unwrap();
                assert_eq!(read(&path).unwrap(), data, "{name}");
            }
        }
    }

    #[test]
    fn gzip_is_refused_with_a_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e1000.ko.gz");
        std::fs::write(&path, [0x1f, 0x8b]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("gunzip"));
    }
}

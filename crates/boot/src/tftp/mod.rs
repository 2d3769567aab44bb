//! TFTP, as far as boot ROMs need it: reading, in octets, of a few files that are named in
//! advance (RFC 1350, 2347, 2348, 2349, 7440).

mod packet;
mod transfer;

pub use packet::{Code, Packet, Request, Wrong, error, parse};
pub use transfer::{Outcome, Transfer};

/// The network boot programs that are served, if they are there. What DHCP names is among them.
pub const LOADERS: [&str; 11] = [
    "undionly.kpxe",
    "undionly.kkpxe",
    "ipxe.pxe",
    "snponly.efi",
    "ipxe.efi",
    "snponly-i386.efi",
    "ipxe-i386.efi",
    "snponly-arm64.efi",
    "ipxe-arm64.efi",
    "snponly-arm32.efi",
    "ipxe-arm32.efi",
];

/// What stands in for a program that is not there: they do the same with other drivers.
const INSTEAD: [(&str, &str); 5] = [
    ("snponly.efi", "ipxe.efi"),
    ("ipxe.efi", "snponly.efi"),
    ("undionly.kpxe", "ipxe.pxe"),
    ("ipxe.pxe", "undionly.kpxe"),
    ("snponly-arm64.efi", "ipxe-arm64.efi"),
];

/// The program that a request means. Names are compared, never followed: no request reaches
/// another file.
pub fn loader_named(name: &str) -> Option<&'static str> {
    let name = name.trim_start_matches(['/', '\\']);
    let name = name
        .strip_prefix("boot")
        .map_or(name, |rest| rest.strip_prefix(['/', '\\']).unwrap_or(name));
    LOADERS.into_iter().find(|loader| *loader == name)
}

/// What to look for, in this order, when a program is asked for.
pub fn candidates(loader: &'static str) -> impl Iterator<Item = &'static str> {
    let instead = INSTEAD.into_iter().filter(move |(name, _)| *name == loader);
    std::iter::once(loader).chain(instead.map(|(_, instead)| instead))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loaders_are_files() {
        for name in [
            "undionly.kpxe",
            "/undionly.kpxe",
            "boot/undionly.kpxe",
            "/boot/undionly.kpxe",
            "\\boot\\undionly.kpxe",
        ] {
            assert_eq!(loader_named(name), Some("undionly.kpxe"), "{name}");
        }
        for name in [
            "",
            "/",
            "../undionly.kpxe",
            "boot/../undionly.kpxe",
            "/etc/passwd",
            "undionly.kpxe/",
            "bootundionly.kpxe",
            "UNDIONLY.KPXE",
        ] {
            assert_eq!(loader_named(name), None, "{name}");
        }
    }

    #[test]
    fn another_program_stands_in() {
        let found: Vec<_> = candidates("snponly.efi").collect();
        assert_eq!(found, ["snponly.efi", "ipxe.efi"]);
        let found: Vec<_> = candidates("undionly.kkpxe").collect();
        assert_eq!(found, ["undionly.kkpxe"]);
    }
}

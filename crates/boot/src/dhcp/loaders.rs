//! Which network boot program a machine's firmware is told to fetch.

use std::collections::BTreeSet;

use super::client::Architecture;

/// The boot programs that there are.
#[derive(Clone, Debug)]
pub(super) struct Loaders(BTreeSet<String>);

impl Default for Loaders {
    /// What every installation has; others have to be told.
    fn default() -> Loaders {
        Loaders(["undionly.kpxe", "snponly.efi"].map(str::to_owned).into())
    }
}

impl Loaders {
    pub(super) fn new(files: impl IntoIterator<Item = String>) -> Loaders {
        Loaders(files.into_iter().collect())
    }

    /// The one for an architecture.
    pub(super) fn of(&self, architecture: Architecture) -> Option<&'static str> {
        let wanted = candidates(architecture);
        wanted.iter().copied().find(|file| self.0.contains(*file))
    }
}

/// Names, the best first: those that use the firmware's own driver run on every card that the
/// firmware could start from.
pub(super) fn candidates(architecture: Architecture) -> &'static [&'static str] {
    match architecture {
        Architecture::Bios => &["undionly.kpxe", "undionly.kkpxe", "ipxe.pxe"],
        Architecture::UefiX64 => &["snponly.efi", "ipxe.efi"],
        Architecture::UefiIa32 => &["snponly-i386.efi", "ipxe-i386.efi"],
        Architecture::UefiArm64 => &["snponly-arm64.efi", "ipxe-arm64.efi"],
        Architecture::UefiArm32 => &["snponly-arm32.efi", "ipxe-arm32.efi"],
        Architecture::Other => &[],
    }
}

//! What a module says of itself.

/// The strings of its `.modinfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Info {
    /// Must be loaded before.
    pub(crate) depends: Vec<String>,
    /// Should be loaded before, if they are there: modules or what others answer to.
    pub(crate) before: Vec<String>,
    /// Should be loaded after.
    pub(crate) after: Vec<String>,
    /// What it answers to.
    pub(crate) aliases: Vec<String>,
    /// Files that it asks for.
    pub(crate) firmware: Vec<String>,
}

impl Info {
    pub(crate) fn parse(section: &[u8]) -> Info {
        let mut info = Info::default();
        for entry in section.split(|byte| *byte == 0) {
            let Ok(entry) = std::str::from_utf8(entry) else {
                continue;
            };
            match entry.split_once('=') {
                Some(("depends", names)) => {
                    let names = names.split(',').filter(|name| !name.is_empty());
                    info.depends.extend(names.map(plain));
                }
                Some(("softdep", text)) => info.soft(text),
                Some(("alias", alias)) => info.aliases.push(alias.to_owned()),
                Some(("firmware", file)) => info.firmware.push(file.to_owned()),
                _ => {}
            }
        }
        info
    }

    fn soft(&mut self, text: &str) {
        let mut is_after = None;
        for word in text.split_whitespace() {
            match (word, is_after) {
                ("pre:", _) => is_after = Some(false),
                ("post:", _) => is_after = Some(true),
                (name, Some(false)) => self.before.push(plain(name)),
                (name, Some(true)) => self.after.push(plain(name)),
                (_, None) => {}
            }
        }
    }
}

/// A module's name has underscores, its file's may have hyphens.
pub(crate) fn plain(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_sorted_out() {
        let section = b"license=GPL\0depends=mii,crc-ccitt\0softdep=pre: realtek crypto-x post: y\0\0alias=pci:v1\0alias=a=b\0firmware=rtl_nic/a.fw\0depends=\0vermagic=6.1 SMP\0\xff\xfe=1";
        assert_eq!(
            Info::parse(section),
            Info {
                depends: vec!["mii".into(), "crc_ccitt".into()],
                before: vec!["realtek".into(), "crypto_x".into()],
                after: vec!["y".into()],
                aliases: vec!["pci:v1".into(), "a=b".into()],
                firmware: vec!["rtl_nic/a.fw".into()],
            }
        );
    }
}

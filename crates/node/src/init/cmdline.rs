//! What the kernel's command line says to us.

use std::net::SocketAddrV4;

use wiglaf_wire::boot::Mac;

/// Our words of it; all of them may be missing, and what makes no sense is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CommandLine {
    /// The card that the machine was booted by, as PXELINUX and iPXE name it.
    pub(super) boot_card: Option<Mac>,
    /// Where the head listens, for machines that did not get it by DHCP.
    pub(super) head: Option<SocketAddrV4>,
    /// Where its boot service is, for the same.
    pub(super) boot: Option<SocketAddrV4>,
    /// The image of the medium that the machine was started from; it may be older than the head's.
    pub(super) medium: Option<String>,
    /// Whether the console shows all that the kernel says.
    pub(super) is_debug: bool,
}

impl CommandLine {
    pub(super) fn parse(text: &str) -> CommandLine {
        let mut line = CommandLine::default();
        for word in text.split_ascii_whitespace() {
            match word.split_once('=') {
                // The number before it is the hardware's type: Ethernet.
                Some(("BOOTIF", value)) => {
                    let mac = value.strip_prefix("01-").unwrap_or(value);
                    line.boot_card = mac.parse().ok();
                }
                Some(("wiglaf.head", value)) => line.head = value.parse().ok(),
                Some(("wiglaf.boot", value)) => line.boot = value.parse().ok(),
                Some(("wiglaf.medium", value)) => line.medium = Some(value.to_owned()),
                None if word == "wiglaf.debug" => line.is_debug = true,
                _ => {}
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_words_are_found_among_others() {
        let line = CommandLine::parse(
            "initrd=initramfs console=ttyS0 BOOTIF=01-52-54-00-12-34-56 wiglaf.head=10.7.0.1:7494 \
             quiet wiglaf.debug wiglaf.boot=10.7.0.1:7480 wiglaf.medium=default-0123\n",
        );
        assert_eq!(line.boot_card, Some(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56])));
        assert_eq!(line.head, Some("10.7.0.1:7494".parse().unwrap()));
        assert_eq!(line.boot, Some("10.7.0.1:7480".parse().unwrap()));
        assert_eq!(line.medium.as_deref(), Some("default-0123"));
        assert!(line.is_debug);
    }

    #[test]
    fn nonsense_is_as_nothing() {
        let line = CommandLine::parse("BOOTIF=eth0 wiglaf.head=head wiglaf.debugger=1 = ==");
        assert_eq!(line, CommandLine::default());
        let colons = CommandLine::parse("BOOTIF=52:54:00:12:34:56");
        assert!(colons.boot_card.is_some());
    }
}

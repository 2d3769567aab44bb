//! The service beside another DHCP server: that gives the addresses, we say what to boot
//! (PXE 2.1, section 2.2.3); and the boot server at port 4011.
//!
//! Only machines that were adopted are told. On such a wire are other people's, which start from
//! their disks when nobody answers.

use std::net::{Ipv4Addr, SocketAddrV4};

use wiglaf_wire::boot::Stage;

use super::client::{Fetch, Kind};
use super::options::code;
use super::reply::{self, Message};
use super::server::{Asked, Server};
use super::{CLIENT_PORT, Destination, Effect};

impl Server {
    pub(super) fn proxy(&mut self, asked: &Asked, out: &mut Vec<Effect>) {
        if asked.is_running_agent() && Message::of(asked.packet) != Some(Message::Inform) {
            return;
        }
        let is_agent = asked.is_ours && asked.client.kind == Kind::Agent;
        // What else starts here has an administrator of its own.
        if !asked.boots() && !asked.is_ours {
            return;
        }
        match Message::of(asked.packet) {
            Some(Message::Discover) => {
                if asked.is_ours && (asked.boots() || is_agent) {
                    let mut offer =
                        reply::answer(&asked.network, asked.packet, Some(Message::Offer));
                    if self.add_boot(asked, &mut offer, out) {
                        Server::send(asked, &offer, out);
                    }
                }
                self.see(asked, Stage::Asked, None, out);
            }
            // The other server's to answer; it tells us where the machine will be.
            Some(Message::Request) => {
                let address = asked.packet.options.address(code::REQUESTED);
                let address = address.or(reply::own_address(asked.packet));
                let address = address.filter(|address| asked.network.is_giveable(*address));
                self.see(asked, Stage::Addressed, address, out);
            }
            Some(Message::Inform) if asked.is_ours && (asked.boots() || is_agent) => {
                let own = reply::own_address(asked.packet).unwrap_or(*asked.from.ip());
                if !asked.network.is_giveable(own) {
                    return;
                }
                let mut ack = reply::answer(&asked.network, asked.packet, Some(Message::Ack));
                ack.client = own;
                if self.add_boot(asked, &mut ack, out) {
                    Server::send(asked, &ack, out);
                }
                if !asked.is_running() {
                    self.see(asked, Stage::Addressed, Some(own), out);
                }
            }
            _ => {}
        }
    }

    /// Firmware that was told of us asks again at port 4011, from the address that it has by now.
    pub(super) fn boot_server(&mut self, asked: &Asked, out: &mut Vec<Effect>) {
        let is_pxe = matches!(
            asked.client.kind,
            Kind::Firmware(Fetch::Tftp, _) | Kind::Ipxe
        );
        let is_question = matches!(
            Message::of(asked.packet),
            Some(Message::Discover | Message::Request | Message::Inform)
        );
        if !is_pxe || !is_question {
            return;
        }
        if !asked.is_ours {
            self.see(asked, Stage::Asked, None, out);
            return;
        }
        let mut ack = reply::answer(&asked.network, asked.packet, Some(Message::Ack));
        if !self.add_boot(asked, &mut ack, out) {
            return;
        }
        reply::add_boot_server(&mut ack, asked.packet);
        let own = reply::own_address(asked.packet);
        let own = own.filter(|address| asked.network.is_giveable(*address));
        let to = match (asked.from.ip(), own) {
            (&Ipv4Addr::UNSPECIFIED, None) => Destination::Broadcast,
            (&Ipv4Addr::UNSPECIFIED, Some(own)) => {
                Destination::Address(SocketAddrV4::new(own, CLIENT_PORT))
            }
            _ => Destination::Address(asked.from),
        };
        out.push(Effect::Send {
            interface: asked.interface,
            to,
            bytes: reply::emit(&ack, asked.packet),
        });
        let address = own.or(Some(*asked.from.ip()).filter(|ip| !ip.is_unspecified()));
        self.see(asked, Stage::Addressed, address, out);
    }
}

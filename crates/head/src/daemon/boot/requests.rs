//! What commands want of machines that boot.

use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};

use wiglaf_linux::interface;
use wiglaf_linux::raw_socket::bind_to_device;
use wiglaf_wire::agent::{PowerAction, ToAgent};
use wiglaf_wire::boot::{BootInterface, BootRequest, BootStatus, Mac};
use wiglaf_wire::client::Reply;

use super::super::{Daemon, now_ms};
use super::now;
use crate::jobs::Caller;
use crate::machines::Now;
use crate::node_table::Presence;
use crate::placement::{Refusal, resolve};
use crate::reactor::refuse;

/// Longest adoption window.
const MAX_WINDOW_MS: u64 = 24 * 3_600_000;
/// The discard port, which wake-on-LAN packets are sent to by custom.
const WAKE_PORT: u16 = 9;

impl Daemon {
    /// A request about machines.
    pub(in crate::daemon) fn boot_request(&mut self, caller: &Caller, request: BootRequest) {
        let is_question = matches!(request, BootRequest::Status | BootRequest::Machines);
        let outcome = if is_question || self.reactor.is_admin(&caller.credential) {
            self.try_boot_request(caller, request)
        } else {
            Err(Refusal::new(
                "only root and the cluster's administrators may change how machines boot",
                "use sudo, or ask an administrator",
            ))
        };
        match outcome {
            Ok(Some(reply)) => self.reply(caller.client, &reply, Vec::new()),
            Ok(None) => {}
            Err(refusal) => self.reply(caller.client, &refuse(refusal), Vec::new()),
        }
    }

    fn try_boot_request(
        &mut self,
        caller: &Caller,
        request: BootRequest,
    ) -> Result<Option<Reply>, Refusal> {
        let reply = match request {
            BootRequest::Status => Reply::Boot(self.boot_status()),
            BootRequest::Machines => {
                let mut list = self.boot.machines.list();
                // Who knows a code that nobody has compared yet could forge a key for it.
                if !self.reactor.is_admin(&caller.credential) {
                    list.iter_mut().for_each(|machine| machine.code = None);
                }
                Reply::Machines(list)
            }
            BootRequest::Enable {
                interface,
                sets_address,
            } => {
                let served = self.boot.machines.enable(interface, sets_address)?.clone();
                self.store.put_interface(&served).map_err(stored)?;
                self.keep_machines()?;
                self.arrange_boot();
                Reply::Boot(self.boot_status())
            }
            BootRequest::Disable { interface } => {
                if !self.boot.machines.disable(&interface) {
                    return Err(Refusal::new(
                        format!("{interface} is not served"),
                        "`wiglaf boot status` shows what is",
                    ));
                }
                self.store.drop_interface(&interface).map_err(stored)?;
                self.arrange_boot();
                Reply::Boot(self.boot_status())
            }
            BootRequest::Adopt { mac, name } => {
                self.adopt(mac, name)?;
                Reply::Machines(vec![self.boot.machines.info(mac)])
            }
            BootRequest::AdoptAll { window_ms } => {
                let window_ms = window_ms.min(MAX_WINDOW_MS);
                let from = now();
                let until = (window_ms > 0).then(|| Now {
                    ms: from.ms + window_ms,
                    wall_s: from.wall_s + i64::try_from(window_ms / 1000).unwrap_or(0),
                });
                self.boot.machines.adopt_all(until);
                Reply::Boot(self.boot_status())
            }
            BootRequest::Approve { machine, code } => {
                let machine = self.boot.machines.approve(&machine, &code)?.clone();
                self.store.put_machine(&machine).map_err(stored)?;
                Reply::Machines(vec![self.boot.machines.info(machine.mac)])
            }
            BootRequest::Forget { machine } => {
                let machine = self.boot.machines.find(&machine)?.clone();
                let node = self.reactor.nodes().by_name(&machine.name);
                if node.is_some_and(|node| node.presence != Presence::Absent) {
                    return Err(Refusal::new(
                        format!("{} is connected, or has been until now", machine.name),
                        format!("`wiglaf node poweroff {}` first", machine.name),
                    ));
                }
                self.boot.machines.forget(&machine.name)?;
                self.store.drop_machine(machine.mac).map_err(stored)?;
                self.arrange_boot();
                Reply::Done
            }
            BootRequest::UseImage { image, nodes } => {
                self.use_image(&image, nodes.as_deref())?;
                Reply::Done
            }
            BootRequest::Power { nodes, action } => {
                self.power(&nodes, action)?;
                Reply::Done
            }
            BootRequest::Wake { nodes } => {
                self.wake(&nodes)?;
                Reply::Done
            }
            BootRequest::Gateway { outer } => {
                if let Some(outer) = &outer
                    && interface::address(outer).is_err()
                {
                    return Err(Refusal::new(
                        format!("there is no network interface {outer}"),
                        "`ip link` shows them",
                    ));
                }
                let before = self.boot.machines.outer().map(String::from);
                self.boot.machines.lead_outward(outer)?;
                if let Err(text) = self.arrange_gateway() {
                    self.boot.machines.lead_outward(before)?;
                    let hint = "then `wiglaf net gateway enable` again";
                    return Err(Refusal::new(text, hint));
                }
                self.store
                    .put_outer(self.boot.machines.outer())
                    .map_err(stored)?;
                self.arrange_boot();
                Reply::Boot(self.boot_status())
            }
            BootRequest::Log { machine } => {
                let name = self.boot.machines.find(&machine)?.name.clone();
                let file = File::open(self.node_log(&name)).map_err(|_| {
                    Refusal::new(
                        format!("{name} has said nothing yet"),
                        format!("`wiglaf node why {name}` tells how far it is"),
                    )
                })?;
                self.reply(caller.client, &Reply::NodeLog, vec![file.into()]);
                return Ok(None);
            }
        };
        Ok(Some(reply))
    }

    fn boot_status(&self) -> BootStatus {
        let machines = &self.boot.machines;
        BootStatus {
            interfaces: machines
                .served()
                .map(|served| served.interface.clone())
                .collect(),
            is_serving: self.boot.channel.is_some(),
            http: self.boot.http.clone(),
            image: machines.image().map(String::from),
            gateway: machines.outer().map(String::from),
            adopts_until_s: machines
                .adopts_until()
                .filter(|until| until.ms > now_ms())
                .map(|until| until.wall_s),
            problems: self.boot.problems.iter().cloned().collect(),
        }
    }

    pub(super) fn adopt(&mut self, mac: Mac, name: Option<String>) -> Result<(), Refusal> {
        let name = name.unwrap_or_else(|| {
            let machines = &self.boot.machines;
            self.reactor
                .nodes()
                .free_name_but(|name| machines.find(name).is_ok())
        });
        if let Some(node) = self.reactor.nodes().by_name(&name)
            && (node.is_virtual || node.presence != Presence::Absent)
        {
            return Err(Refusal::new(
                format!("{name} is a node already that did not boot from the network"),
                "leave --as out for the next free name",
            ));
        }
        let machine = self.boot.machines.adopt(mac, &name)?.clone();
        let enrolled = self.reactor.nodes_mut().enrol(&name);
        let node = match enrolled {
            Ok(node) => node.clone(),
            Err(full) => {
                self.boot.machines.forget(&name)?;
                let hint = "give it the name of a node that is gone: --as NAME";
                return Err(Refusal::new(full.to_string(), hint));
            }
        };
        self.store.put_machine(&machine).map_err(stored)?;
        self.store.put_node(&node).map_err(stored)?;
        self.mark_booting(&name);
        self.arrange_boot();
        Ok(())
    }

    fn keep_machines(&self) -> Result<(), Refusal> {
        for machine in self.boot.machines.known() {
            self.store.put_machine(machine).map_err(stored)?;
        }
        Ok(())
    }

    fn use_image(&mut self, image: &str, nodes: Option<&str>) -> Result<(), Refusal> {
        let is_plain = !image.is_empty() && !image.starts_with('.') && !image.contains('/');
        if !is_plain || !self.layout.images().join(image).join("kernel").is_file() {
            return Err(Refusal::new(
                format!("there is no image {image}"),
                "`wiglaf image list` shows them; `wiglaf image build` makes one",
            ));
        }
        let names = match nodes {
            None => None,
            Some(nodes) => {
                let ids = resolve(self.reactor.nodes(), nodes)?;
                Some(
                    ids.into_iter()
                        .map(|id| self.reactor.nodes().name(id))
                        .collect::<Vec<_>>(),
                )
            }
        };
        let changed = self.boot.machines.use_image(image, names.as_deref());
        if names.is_none() {
            self.store.put_image(image).map_err(stored)?;
        }
        for machine in &changed {
            self.store.put_machine(machine).map_err(stored)?;
        }
        self.arrange_boot();
        Ok(())
    }

    fn power(&mut self, nodes: &str, action: PowerAction) -> Result<(), Refusal> {
        let ids = resolve(self.reactor.nodes(), nodes)?;
        for id in &ids {
            let name = self.reactor.nodes().name(*id);
            if self.boot.machines.find(&name).is_err() {
                return Err(Refusal::new(
                    format!("{name} did not boot from the network: its own system decides"),
                    "`wiglaf nodes` shows which nodes there are",
                ));
            }
            if !self.agents.contains_key(id) {
                return Err(Refusal::new(
                    format!("{name} is not connected"),
                    format!(
                        "`wiglaf node why {name}` tells how far it is, `wiglaf node wake {name}` switches it on"
                    ),
                ));
            }
        }
        for id in ids {
            self.tell_agent(id, &ToAgent::Power { action });
        }
        Ok(())
    }

    /// Wake-on-LAN: six bytes 0xff and the address sixteen times (AMD, Magic Packet Technology).
    fn wake(&mut self, nodes: &str) -> Result<(), Refusal> {
        let ids = resolve(self.reactor.nodes(), nodes)?;
        for id in ids {
            let name = self.reactor.nodes().name(id);
            let mac = self.boot.machines.find(&name)?.mac;
            let mut packet = vec![0xff; 6];
            (0..16).for_each(|_| packet.extend_from_slice(&mac.0));
            let seen = self.boot.machines.info(mac).interface;
            let served = self.boot.machines.served().map(|served| &served.interface);
            let wires: Vec<_> = served
                .filter(|wire| seen.as_ref().is_none_or(|seen| *seen == wire.name))
                .cloned()
                .collect();
            for wire in wires {
                send_on(&wire, &packet).map_err(|error| {
                    Refusal::new(
                        format!("{name} can't be woken by {}: {error}", wire.name),
                        "`ip link` shows whether the interface is up",
                    )
                })?;
            }
        }
        Ok(())
    }
}

fn stored(error: crate::store::StoreError) -> Refusal {
    Refusal::new(error.to_string(), "is the disk full?")
}

fn send_on(wire: &BootInterface, packet: &[u8]) -> std::io::Result<()> {
    let socket = UdpSocket::bind((wire.address, 0))?;
    bind_to_device(&socket, &wire.name)?;
    socket.set_broadcast(true)?;
    socket.send_to(packet, (Ipv4Addr::BROADCAST, WAKE_PORT))?;
    Ok(())
}

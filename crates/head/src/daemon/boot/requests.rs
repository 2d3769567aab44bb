//! What commands want of machines that boot.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;

use wiglaf_linux::interface;
use wiglaf_linux::raw_socket::bind_to_device;
use wiglaf_wire::agent::{PowerAction, ToAgent};
use wiglaf_wire::boot::{BootInterface, BootRequest, BootStatus, Mac, Switch, Whom};
use wiglaf_wire::client::Reply;
use wiglaf_wire::id::NodeId;
use wiglaf_wire::nodeset::is_node_name;

use super::super::Daemon;
use super::super::power::Target;
use super::now;
use crate::jobs::{Caller, ClientId};
use crate::machines::NamePattern;
use crate::node_table::{MAX_NODES, Node, Presence};
use crate::placement::{Refusal, resolve};
use crate::reactor::refuse;

/// What node sets call by itself.
const RESERVED_GROUPS: [&str; 2] = ["all", "up"];
/// The discard port, which wake-on-LAN packets are sent to by custom.
const WAKE_PORT: u16 = 9;

impl Daemon {
    /// A request about machines.
    pub(in crate::daemon) fn boot_request(&mut self, caller: &Caller, request: BootRequest) {
        self.heed_configuration();
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
            BootRequest::AdoptAll {
                window_ms,
                names,
                is_ordered,
            } => {
                let names = names
                    .map(NamePattern::try_from)
                    .transpose()
                    .map_err(|error| {
                        Refusal::new(error.to_string(), "for example: --as n%d, or leave it out")
                    })?;
                let machines = &mut self.boot.machines;
                if window_ms > 0 {
                    machines.adopt_all(now(), window_ms, names, is_ordered);
                } else {
                    machines.adopt_no_more();
                }
                self.keep_window().map_err(stored)?;
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
                if node.is_some_and(|node| self.presence_of(node) != Presence::Absent) {
                    return Err(Refusal::new(
                        format!("{} is connected, or has been until now", machine.name),
                        format!("`wiglaf node poweroff {}` first", machine.name),
                    ));
                }
                // It may run all the same, behind a cable that is out.
                if let Some(id) = node.map(|node| node.id) {
                    self.store.put_certificate(id, &[]).map_err(stored)?;
                }
                self.boot.machines.forget(&machine.name)?;
                self.store.drop_machine(machine.mac).map_err(stored)?;
                self.mark_booting(&machine.name);
                self.arrange_boot();
                Reply::Done
            }
            BootRequest::UseImage { image, whom } => {
                match image {
                    Some(image) => self.use_image(&image, whom)?,
                    None => self.use_no_image(whom)?,
                }
                Reply::Done
            }
            BootRequest::Remove { nodes } => {
                self.remove_nodes(&nodes)?;
                Reply::Done
            }
            BootRequest::Group {
                nodes,
                group,
                is_in,
            } => {
                self.group_nodes(&nodes, &group, is_in)?;
                Reply::Done
            }
            BootRequest::Switch { nodes, switch } => {
                let ids = resolve(self.reactor.nodes(), &nodes)?;
                self.switch_nodes(caller.client, switch, &ids)?;
                return Ok(None);
            }
            BootRequest::Power { nodes, action } => {
                self.power(&nodes, action)?;
                Reply::Done
            }
            BootRequest::Wake { nodes } => {
                if self.has_switch(Switch::On)? {
                    let ids = resolve(self.reactor.nodes(), &nodes)?;
                    self.switch_nodes(caller.client, Switch::On, &ids)?;
                    return Ok(None);
                }
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
            silent: self.boot.silent.clone(),
            image: machines.image().map(String::from),
            group_images: machines.group_images(),
            gateway: machines.outer().map(String::from),
            adopts_until_s: machines.window(now()).map(|window| window.until.wall_s),
            adopts_after: machines.waited_for(now()).map(String::from),
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
        self.keep_window().map_err(stored)?;
        self.mark_booting(&name);
        self.arrange_boot();
        Ok(())
    }

    /// Adopts a machine that a rule or a window is for.
    pub(super) fn adopt_by_rule(
        &mut self,
        mac: Mac,
        names: Option<&NamePattern>,
        image: Option<&str>,
    ) -> Result<(), Refusal> {
        let is_free = |name: &String| {
            self.reactor.nodes().by_name(name).is_none() && self.boot.machines.find(name).is_err()
        };
        let name = match names {
            None => None,
            Some(names) => Some(
                (1..=MAX_NODES)
                    .map(|number| names.name(number))
                    .find(is_free)
                    .ok_or_else(|| {
                        Refusal::new(
                            format!("{mac} is not adopted: all names like {names} are given"),
                            "`wiglaf node remove` gives some back",
                        )
                    })?,
            ),
        };
        self.adopt(mac, name)?;
        let Some(wanted) = image else {
            return Ok(());
        };
        let name = self.boot.machines.find(&mac.to_string())?.name.clone();
        match newest_image(&self.layout.images(), wanted) {
            Some(image) => self.use_image(&image, Whom::Nodes(name)),
            None => Err(Refusal::new(
                format!(
                    "{name} was adopted, but there is no image {wanted}, which it is to boot; it \
                     boots what all do: `wiglaf image build --name {wanted}`, then `wiglaf image \
                     use {wanted} --nodes {name}`"
                ),
                "",
            )),
        }
    }

    fn keep_machines(&self) -> Result<(), Refusal> {
        for machine in self.boot.machines.known() {
            self.store.put_machine(machine).map_err(stored)?;
        }
        Ok(())
    }

    fn use_image(&mut self, image: &str, whom: Whom) -> Result<(), Refusal> {
        if !is_image(&self.layout.images(), image) {
            return Err(Refusal::new(
                format!("there is no image {image}"),
                "`wiglaf image list` shows them; `wiglaf image build` makes one",
            ));
        }
        let machines = &mut self.boot.machines;
        match whom {
            Whom::All => {
                machines.use_image(image);
                self.store.put_image(image).map_err(stored)?;
            }
            Whom::Group(group) => {
                is_group(&group)?;
                machines.use_group_image(&group, image);
                self.store.put_group_image(&group, image).map_err(stored)?;
            }
            Whom::Nodes(nodes) => self.use_image_for(Some(image), &nodes)?,
        }
        self.arrange_boot();
        Ok(())
    }

    /// Takes back what was said of some.
    fn use_no_image(&mut self, whom: Whom) -> Result<(), Refusal> {
        match whom {
            Whom::All => {
                return Err(Refusal::new(
                    "machines have to boot something",
                    "name a group or nodes, or another image: `wiglaf image list` shows them",
                ));
            }
            Whom::Group(group) => {
                if !self.boot.machines.drop_group_image(&group) {
                    return Err(Refusal::new(
                        format!("no image was chosen for the group {group}"),
                        "`wiglaf boot status` shows the groups with images",
                    ));
                }
                self.store.drop_group_image(&group).map_err(stored)?;
            }
            Whom::Nodes(nodes) => self.use_image_for(None, &nodes)?,
        }
        self.arrange_boot();
        Ok(())
    }

    fn use_image_for(&mut self, image: Option<&str>, nodes: &str) -> Result<(), Refusal> {
        let ids = resolve(self.reactor.nodes(), nodes)?;
        let name = |id| self.reactor.nodes().name(id);
        let names: Vec<_> = ids.into_iter().map(name).collect();
        for machine in self.boot.machines.use_image_for(image, &names) {
            self.store.put_machine(&machine).map_err(stored)?;
        }
        Ok(())
    }

    /// As the node table has it; but what an earlier head left without a keeper to tell of it may
    /// live until this head is older than a lease (P4).
    fn presence_of(&self, node: &Node) -> Presence {
        let policy = self.reactor.policy();
        let over_ms = self.began_ms + policy.lease_ms + policy.margin_ms;
        match node.presence {
            Presence::Absent if node.may_live && now().ms < over_ms => Presence::Silent,
            presence => presence,
        }
    }

    /// Forgets nodes for good: all or none.
    fn remove_nodes(&mut self, nodes: &str) -> Result<(), Refusal> {
        let ids = resolve(self.reactor.nodes(), nodes)?;
        let policy = self.reactor.policy();
        for id in &ids {
            let Some(node) = self.reactor.nodes().get(*id) else {
                continue;
            };
            let name = &node.name;
            match self.presence_of(node) {
                Presence::Absent if node.tasks.is_empty() => {}
                Presence::Absent => {
                    return Err(Refusal::new(
                        format!("the end of what ran on {name} is still being told"),
                        "try again in a moment: `wiglaf jobs` shows what there is",
                    ));
                }
                Presence::Connected => {
                    let hint = match node.is_virtual {
                        true => "virtual nodes end with the cluster: `wiglaf down`".into(),
                        false => format!(
                            "switch it off first (`wiglaf node poweroff {name}`), or end its agent"
                        ),
                    };
                    return Err(Refusal::new(format!("{name} is connected"), hint));
                }
                // Its block of PIDs is another's then: nothing with one of them may live (P1, P4).
                Presence::Silent => {
                    return Err(Refusal::new(
                        format!("what runs on {name} may still be alive until its lease is over"),
                        format!(
                            "try again when `wiglaf nodes` shows it as down and the head has run \
                             for {} s",
                            (policy.lease_ms + policy.margin_ms).div_ceil(1000)
                        ),
                    ));
                }
            }
        }
        for id in ids {
            let name = self.reactor.nodes().name(id);
            if let Ok(machine) = self.boot.machines.forget(&name) {
                self.store.drop_machine(machine.mac).map_err(stored)?;
            }
            self.store.drop_node(id).map_err(stored)?;
            self.reactor.nodes_mut().remove(id);
        }
        self.arrange_boot();
        Ok(())
    }

    fn group_nodes(&mut self, nodes: &str, group: &str, is_in: bool) -> Result<(), Refusal> {
        is_group(group)?;
        for id in resolve(self.reactor.nodes(), nodes)? {
            let Some(node) = self.reactor.nodes_mut().get_mut(id) else {
                continue;
            };
            if is_in {
                node.groups.insert(group.to_owned());
            } else {
                node.groups.remove(group);
            }
            let node = node.clone();
            self.store.put_groups(&node).map_err(stored)?;
        }
        self.arrange_boot();
        Ok(())
    }

    fn switch_nodes(
        &mut self,
        client: ClientId,
        switch: Switch,
        ids: &[NodeId],
    ) -> Result<(), Refusal> {
        let nodes = self.reactor.nodes();
        let target = |id: &NodeId| {
            let node = nodes.get(*id)?;
            if node.is_virtual {
                return Some(Err(Refusal::new(
                    format!("{} is no machine but a part of this one", node.name),
                    "`wiglaf down` ends the virtual nodes",
                )));
            }
            let machine = self.boot.machines.find(&node.name).ok();
            let life = machine.map(|machine| self.boot.machines.info(machine.mac));
            // The node's own words: nothing but an address goes to a program that root runs.
            let told = node.machine.address.parse::<IpAddr>().ok();
            Some(Ok(Target {
                node: *id,
                name: node.name.clone(),
                mac: machine.map(|machine| machine.mac.to_string()),
                address: life
                    .and_then(|life| life.address)
                    .map(IpAddr::V4)
                    .or(told)
                    .map(|address| address.to_string()),
                incarnation: node.incarnation,
            }))
        };
        let targets = ids.iter().filter_map(target).collect::<Result<_, _>>()?;
        self.switch(client, switch, targets)
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

/// Whether there is such an image.
fn is_image(images: &Path, id: &str) -> bool {
    let is_plain = !id.is_empty() && !id.starts_with('.') && !id.contains('/');
    is_plain && images.join(id).join("kernel").is_file()
}

/// The image with this ID, or the newest with this name: `NAME-` and hexadecimal digits.
fn newest_image(images: &Path, wanted: &str) -> Option<String> {
    if is_image(images, wanted) {
        return Some(wanted.to_owned());
    }
    let entries = std::fs::read_dir(images).ok()?.flatten();
    let named = entries.filter_map(|entry| {
        let id = entry.file_name().into_string().ok()?;
        let digits = id.strip_prefix(wanted)?.strip_prefix('-')?;
        let is_one = digits.bytes().all(|byte| byte.is_ascii_hexdigit()) && is_image(images, &id);
        let made = entry.metadata().ok()?.modified().ok()?;
        is_one.then_some((made, id))
    });
    named.max().map(|(_, id)| id)
}

/// A group's name is a word that means nothing else in node sets.
fn is_group(name: &str) -> Result<(), Refusal> {
    if is_node_name(name) && !RESERVED_GROUPS.contains(&name) {
        return Ok(());
    }
    Err(Refusal::new(
        format!("{name:?} can't be a group's name"),
        "letters, digits, - and . are allowed; all and up have a meaning already",
    ))
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

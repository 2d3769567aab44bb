//! Nodes' own disks: what a command wants of them goes to their agents with the layout, which is
//! read anew each time, since whoever changes it wants to see at once what that would do.

use std::collections::BTreeMap;

use wiglaf_wire::client::NodeState;
use wiglaf_wire::disk::{DiskAction, DiskOrder, DiskRequest, DiskRule, MAX_DISK_RULES};

use super::{Daemon, now_ms};
use crate::config::{DiskConfig, EXAMPLE_DISK};
use crate::jobs::Caller;
use crate::placement::Refusal;
use crate::reactor::refuse;

impl Daemon {
    pub(super) fn disk_request(&mut self, caller: &Caller, request: &DiskRequest) {
        if let Err(refusal) = self.ask_disks(caller, request) {
            self.reply(caller.client, &refuse(refusal), Vec::new());
        }
    }

    fn ask_disks(&mut self, caller: &Caller, request: &DiskRequest) -> Result<(), Refusal> {
        // Who may not ask hears nothing of the configuration either.
        let nodes: Vec<_> = self.reactor.disk_nodes(caller, request)?;
        let layout = match request.action {
            DiskAction::Show | DiskAction::Write(_) => Vec::new(),
            DiskAction::Plan | DiskAction::Apply => self.layout_of_disks()?,
        };
        let mut orders = BTreeMap::new();
        for (id, name) in nodes {
            let rules = self.rules(&layout, &name)?;
            let named = request.erase.iter().filter(|(node, _)| *node == name);
            let erase = named.map(|(_, device)| device.clone()).collect();
            let order = match &request.action {
                DiskAction::Show => DiskOrder::Look,
                DiskAction::Write(medium) => DiskOrder::Write(medium.clone()),
                DiskAction::Plan => DiskOrder::Plan { rules, erase },
                DiskAction::Apply => DiskOrder::Apply { rules, erase },
            };
            orders.insert(id, order);
        }
        let effects = self.reactor.order_disks(now_ms(), caller.client, orders);
        for effect in effects {
            self.carry_out(effect);
        }
        Ok(())
    }

    fn layout_of_disks(&self) -> Result<Vec<DiskConfig>, Refusal> {
        let path = self.layout.config_file();
        let config = self.configured()?;
        if config.disk.is_empty() {
            return Err(Refusal::new(
                format!("{} says nothing of nodes' disks", path.display()),
                format!(
                    "add what they are for, and try again (`wiglaf disk show` lists them); for \
                     example:\n\n{EXAMPLE_DISK}"
                ),
            ));
        }
        Ok(config.disk)
    }

    /// What the layout wants of one node.
    fn rules(&self, layout: &[DiskConfig], node: &str) -> Result<Vec<DiskRule>, Refusal> {
        let members = |group: &str| {
            let nodes = self.reactor.nodes().iter();
            let inside = nodes.filter(|node| match group {
                "all" => true,
                "up" => node.state() == NodeState::Up,
                group => node.groups.contains(group),
            });
            let names: Vec<_> = inside.map(|node| node.name.clone()).collect();
            (!names.is_empty()).then_some(names)
        };
        let path = self.layout.config_file();
        let mut rules = Vec::new();
        for entry in layout {
            let rule = entry.rule(node, &members).map_err(|error| {
                Refusal::new(
                    format!("{}: nodes of a [[disk]]: {error}", path.display()),
                    "put that right, and try again",
                )
            })?;
            rules.extend(rule);
        }
        if rules.len() > MAX_DISK_RULES {
            return Err(Refusal::new(
                format!(
                    "{} has more than {MAX_DISK_RULES} entries for {node}",
                    path.display()
                ),
                "one for each of its disks is enough",
            ));
        }
        Ok(rules)
    }
}

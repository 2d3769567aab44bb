//! One line about a machine: how far it is, what that means, what to do.

use wiglaf_wire::boot::{MachineInfo, Stage};
use wiglaf_wire::client::NodeState;

use crate::output;

/// A stage that has lasted longer than this is one that a machine is stuck at.
const PATIENCE_S: i64 = 30;
/// Kernels take longer on slow machines.
const KERNEL_PATIENCE_S: i64 = 90;

/// Who has fetched its boot program so often without running it does not do so by accident.
const SURE_LOADS: u32 = 2;

/// `now_s` and the machine's times are seconds since the Epoch.
pub(super) fn line(machine: &MachineInfo, state: Option<NodeState>, now_s: i64) -> String {
    let mac = machine.mac;
    let Some(name) = &machine.name else {
        return format!("{mac} is known to nobody: `wiglaf node adopt {mac}` makes it a node");
    };
    match state {
        Some(NodeState::Up) => return format!("{name} is up"),
        Some(NodeState::Suspect) => {
            return format!(
                "{name} has fallen silent: its power, its cable, or a kernel that has stopped; \
                 what ran there is given up when its lease is over"
            );
        }
        Some(state @ (NodeState::Drain | NodeState::Unavailable | NodeState::Error)) => {
            return format!(
                "{name} is connected, and {} because somebody set that: `wiglaf node resume {name}`",
                state.name()
            );
        }
        _ => {}
    }
    if machine.image.is_none() {
        return format!(
            "there is no image that {name} could boot: `wiglaf image build` on the head"
        );
    }
    let (Some(stage), Some(since)) = (machine.stage, machine.stage_s) else {
        return format!(
            "{name} ({mac}) has not been seen since the head was started: switch it on (`wiglaf \
             node wake {name}`), and set it to boot from the network before its disk"
        );
    };
    if let Some(refusal) = &machine.refusal {
        return format!("{name} asked to join and was refused: {refusal}");
    }
    let age = now_s.saturating_sub(since);
    let is_uefi = machine
        .client
        .as_deref()
        .is_some_and(|client| client.contains("UEFI"));
    if is_uefi && stage <= Stage::Loader && machine.fruitless_loads >= SURE_LOADS {
        return format!(
            "{name} has fetched iPXE {} times and not started it: Secure Boot refuses what is not \
             signed; switch Secure Boot off in the firmware's setup",
            machine.fruitless_loads
        );
    }
    let patience = match stage {
        Stage::Initramfs | Stage::Kernel => KERNEL_PATIENCE_S,
        _ => PATIENCE_S,
    };
    let is_stuck = age > patience;
    let ago = output::ago(since);
    let (what, remedy) = match stage {
        Stage::Asked => (
            "asked for an address",
            "it did not take ours: another DHCP server may have answered first (`wiglaf boot \
             status` says if one was seen), or the cable loses packets",
        ),
        Stage::Addressed => (
            "has its address and should fetch its boot program",
            "it has not asked for one: its firmware is not set to boot from the network, or a \
             firewall on the head drops UDP port 69 (TFTP)",
        ),
        Stage::Loader if is_uefi => (
            "fetched iPXE",
            "its firmware did not start it: Secure Boot refuses what is not signed; switch Secure \
             Boot off in the firmware's setup",
        ),
        Stage::Loader => (
            "fetched iPXE",
            "it has not asked for its script since: iPXE may not know the network card; see its \
             screen",
        ),
        Stage::Script => (
            "was told what to boot",
            "it has not fetched the kernel: a firewall on the head may drop TCP port 7495 (HTTP)",
        ),
        Stage::Kernel | Stage::Initramfs => (
            "fetched its kernel and starts it",
            "nothing was heard since: the kernel may have no driver for the network card \
             (`wiglaf image build --module NAME`), too little memory, or another processor than \
             the head's; see its screen",
        ),
        Stage::Init => (
            "runs our /init and brings itself up",
            "it has not asked to join: `wiglaf node log` shows what it said",
        ),
        Stage::AwaitsApproval => {
            let code = machine.code.as_deref().unwrap_or("CODE");
            return format!(
                "{name} waits for somebody to compare the code on its console: if it shows {code}, \
                 `wiglaf node approve {name} {code}`"
            );
        }
        Stage::Joining => (
            "has its certificate and joins",
            "it has not come: `wiglaf node log` shows what it said",
        ),
        Stage::Up => (
            "was up",
            "it has gone since: its power, or `wiglaf node log` shows what it said",
        ),
    };
    if is_stuck {
        format!("{name} {what} {ago}; {remedy}")
    } else {
        format!("{name} {what} {ago}; wait a little")
    }
}

#[cfg(test)]
mod tests {
    use wiglaf_wire::boot::Mac;

    use super::*;

    fn machine(stage: Option<Stage>) -> MachineInfo {
        MachineInfo {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            name: Some("n7".into()),
            address: None,
            interface: None,
            client: Some("PXE UEFI x86_64".into()),
            stage,
            stage_s: stage.map(|_| 1_000),
            first_s: None,
            image: Some("default-1".into()),
            is_approved: true,
            code: None,
            refusal: None,
            fruitless_loads: 0,
        }
    }

    #[test]
    fn firmware_that_goes_round_and_round_is_told_from_one_that_has_just_begun() {
        // By PXE and by HTTP.
        for client in ["PXE UEFI x86_64", "HTTP UEFI x86_64"] {
            let mut refusing = machine(Some(Stage::Asked));
            refusing.client = Some(client.into());
            refusing.fruitless_loads = 1;
            assert!(!line(&refusing, None, 1_001).contains("Secure Boot"));
            refusing.fruitless_loads = 2;
            assert!(line(&refusing, None, 1_001).contains("2 times and not started it: Secure"));
        }
        // BIOS has none.
        let mut old = machine(Some(Stage::Asked));
        old.client = Some("PXE BIOS".into());
        old.fruitless_loads = 9;
        assert!(!line(&old, None, 2_000).contains("Secure Boot"));
    }

    #[test]
    fn each_stage_has_its_own_remedy_once_it_has_lasted() {
        let stages = [
            (Stage::Asked, "another DHCP server"),
            (Stage::Loader, "Secure Boot"),
            (Stage::Initramfs, "driver"),
            (Stage::Init, "wiglaf node log"),
        ];
        for (stage, remedy) in stages {
            let late = line(&machine(Some(stage)), Some(NodeState::Boot), 2_000);
            assert!(late.contains(remedy), "{late}");
            let soon = line(&machine(Some(stage)), Some(NodeState::Boot), 1_005);
            assert!(soon.contains("wait a little"), "{soon}");
        }
    }

    #[test]
    fn what_stands_in_the_way_comes_first() {
        let mut without = machine(Some(Stage::Script));
        without.image = None;
        assert!(line(&without, None, 1_001).contains("image build"));
        assert!(line(&machine(None), None, 0).contains("switch it on"));
        assert_eq!(
            line(&machine(Some(Stage::Up)), Some(NodeState::Up), 0),
            "n7 is up"
        );
        let mut waiting = machine(Some(Stage::AwaitsApproval));
        waiting.code = Some("1234-5678".into());
        assert!(line(&waiting, None, 1_001).contains("approve n7 1234-5678"));
    }
}

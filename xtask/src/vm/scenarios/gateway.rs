//! A node reaches the outer network through the head, and nobody reaches it from there; and
//! a machine that is off is woken.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::parts::{join, soon};
use crate::run;
use crate::vm::guest::{Firmware, Guest, Plan};
use crate::vm::head::Head;
use crate::vm::stage::Stage;
use crate::vm::wire::Wire;

/// For measurements between networks (RFC 2544).
const HEAD_OUTSIDE: &str = "198.18.77.1";
const OUTSIDER: &str = "198.18.77.2";
const OUTER: &str = "out0";
const SERVICE: u16 = 8080;
/// A node asks every 30 s.
const HEARD: Duration = Duration::from_secs(90);
const END: Duration = Duration::from_secs(60);
/// Says to each who connects by which address he came.
const GREETER: &str = "
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
while True:
    peer, address = listener.accept()
    peer.sendall(address[0].encode())
    peer.close()
";
/// Waits for a datagram of wake-on-LAN on the wire itself, and says what it holds.
const SLEEPER: &str = "
import socket, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
link.bind((sys.argv[1], 0))
print('asleep', flush=True)
while True:
    frame = link.recv(2000)
    at = frame.find(b'\\xff' * 6, 14)
    if at > 0 and frame[23] == 17:
        print(frame[at:].hex(), flush=True)
        break
";

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn gateway(stage: &Stage<'_>) -> Result<()> {
    let head = Head::found(stage)?;
    let outer = Wire::lay(OUTER, Some(&format!("{HEAD_OUTSIDE}/24")))?;
    outer.address(&format!("{OUTSIDER}/24"))?;
    run::output(
        outer
            .command("ip")
            .args(["route", "add", "10.77.0.0/24", "via", HEAD_OUTSIDE]),
    )?;
    let port = SERVICE.to_string();
    let mut greeter = outer.command("python3");
    greeter.args(["-c", GREETER, OUTSIDER, &port]);
    let _greeter = Running(greeter.spawn().context("python3")?);
    let guest = stage.guest(&head.wire, Plan::new("guest", Firmware::BiosIpxe))?;
    join(&head, &guest, "n1", 1)?;

    let ask = format!("exec 3<>/dev/tcp/{OUTSIDER}/{SERVICE} && cat <&3");
    let ask = ["timeout", "3", "bash", "-c", &ask];
    ensure!(head.on_node("n1", &ask).is_err(), "it leads outward anyhow");
    stage.say("n1 does not reach the outer network");

    head.admin(&["net", "gateway", "enable", "--outer", OUTER])?;
    let greeted = soon("the outer network", HEARD, || {
        Ok(head.on_node("n1", &ask).ok())
    })?;
    ensure!(greeted == HEAD_OUTSIDE, "it was seen as {greeted}");
    stage.say("now it does, and is seen there as the head");

    // What listens on the node can be reached from the head, and from nowhere else.
    let there = ["python3", "-c", GREETER, "10.77.0.2", &port];
    let words = [&["run", "-w", "n1", "--detach", "--"][..], &there].concat();
    let folder = head.users_folder("served")?;
    ensure!(head.user(&folder, &words)?.status.success());
    let knock = format!("exec 3<>/dev/tcp/10.77.0.2/{SERVICE} && cat <&3");
    let knock = ["3", "bash", "-c", &knock];
    soon("what listens on n1", HEARD, || {
        Ok(run::output(Command::new("timeout").args(knock).stderr(Stdio::null())).ok())
    })?;
    let inward = run::output(outer.command("timeout").args(knock).stderr(Stdio::null()));
    ensure!(inward.is_err(), "the outer network reaches n1: {inward:?}");
    stage.say("nobody reaches it from there");

    head.admin(&["net", "gateway", "disable"])?;
    ensure!(head.on_node("n1", &ask).is_err(), "it still leads outward");
    let inward = run::output(outer.command("timeout").args(knock).stderr(Stdio::null()));
    ensure!(inward.is_err(), "the outer network reaches n1: {inward:?}");
    let forwards = fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?;
    ensure!(forwards.trim() == "0", "the kernel forwards: {forwards}");
    stage.say("disabled, all is as it was before");
    wakes(stage, &head, &guest)
}

fn wakes(stage: &Stage<'_>, head: &Head<'_>, guest: &Guest<'_>) -> Result<()> {
    head.admin(&["node", "poweroff", "n1"])?;
    guest.wait_for_end(END)?;
    let heard = stage.dir.join("woken");
    let mut sleeper = head.wire.command("python3");
    sleeper.args(["-c", SLEEPER, head.wire.bridge()]);
    let sleeper = sleeper.stdout(fs::File::create(&heard)?).spawn()?;
    let _sleeper = Running(sleeper);
    let said = || Ok(Some(fs::read_to_string(&heard)?).filter(|text| !text.is_empty()));
    soon("the one who sleeps", HEARD, said)?;
    head.admin(&["node", "wake", "n1"])?;
    let expected = format!("ffffffffffff{}", guest.plan.mac.replace(':', "").repeat(16));
    soon("the packet", HEARD, || {
        Ok(said()?.filter(|text| text.contains(&expected)))
    })?;
    stage.say("`node wake` puts its packet on the wire of a machine that is off");
    Ok(())
}

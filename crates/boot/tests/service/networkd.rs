//! systemd-networkd, as servers have it: by itself, without systemd.

use std::time::{Duration, Instant};

use wiglaf_wire::boot::{FromBoot, Stage};

use super::Test;
use super::scene::{ITS, MAC, Running, Scene, settings, text, until};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "networkd_gets_the_machines_address",
        needs: &["systemd-networkd", "unshare"],
        run: networkd_gets_the_machines_address,
    },
    Test {
        name: "networkd_gets_the_address_again_after_a_crash",
        needs: &["systemd-networkd", "unshare"],
        run: networkd_gets_the_address_again_after_a_crash,
    },
];

const BIND: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

/// What its administrators write to have it ask in another way: by default it gives a DUID for
/// its identity, and wants its answers sent to the address that it does not have yet.
const WAYS: [&str; 4] = [
    "",
    "ClientIdentifier=mac",
    "RequestBroadcast=yes",
    "Anonymize=yes",
];

/// Starts it on the machine. Where /sys can't be written to, it takes interfaces as they are
/// rather than wait for udev.
fn networkd(scene: &Scene, way: &str) -> Running {
    let log = scene.path("log");
    let script = format!(
        "set -e\n\
         mount --make-rprivate /\n\
         mount -t tmpfs tmpfs /run\n\
         mount -o remount,bind,ro /sys\n\
         mkdir -p /run/systemd/network\n\
         cat >/run/systemd/network/10-eth0.network <<END\n\
         [Match]\nName=eth0\n\
         [Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n\
         [DHCPv4]\n{way}\n\
         END\n\
         export SYSTEMD_LOG_LEVEL=debug SYSTEMD_LOG_TARGET=console\n\
         export PATH=/usr/lib/systemd:/lib/systemd\n\
         exec systemd-networkd >>{log} 2>&1\n",
        log = log.display()
    );
    std::fs::write(scene.path("networkd.sh"), script).expect("a script");
    scene.beside("unshare --mount sh networkd.sh")
}

fn wait_bound(scene: &Scene) {
    let deadline = Instant::now() + BIND;
    loop {
        let shown = scene.on_machine("ip -4 -oneline address show dev eth0");
        if text(&shown.stdout).contains(&format!("{ITS}/24")) {
            return;
        }
        assert!(Instant::now() < deadline, "{}", log_of(scene));
        std::thread::sleep(POLL);
    }
}

fn log_of(scene: &Scene) -> String {
    std::fs::read_to_string(scene.path("log")).unwrap_or_default()
}

fn networkd_gets_the_machines_address() {
    for way in WAYS {
        let mut scene = Scene::serving(settings());
        let client = networkd(&scene, way);
        wait_bound(&scene);
        drop(client);
        scene.wait_stage(MAC, Stage::Addressed);
        let log = log_of(&scene);
        assert!(
            log.contains(&format!("DHCPv4 address {ITS}/24")),
            "{way}: {log}"
        );
        assert!(!log.contains("NAK"), "{way}: {log}");
        scene.end();
    }
}

/// The machine has its address still, and its client knows of none; then of one, and the
/// service knows of nothing.
fn networkd_gets_the_address_again_after_a_crash() {
    let mut scene = Scene::serving(settings());
    drop(networkd(&scene, ""));
    let client = networkd(&scene, "");
    wait_bound(&scene);
    drop(client);
    scene.kill();
    scene.start();
    scene.configure(settings());
    scene.wait(|message| matches!(message, FromBoot::Ready { .. }));
    let bound = |scene: &Scene| log_of(scene).matches(" acquired from ").count();
    let before = bound(&scene);
    let _client = networkd(&scene, "");
    until(|| (bound(&scene) > before).then_some(()));
    scene.wait_stage(MAC, Stage::Addressed);
    wait_bound(&scene);
}

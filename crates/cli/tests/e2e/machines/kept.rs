//! What a machine has read of the head's files outlives its agent, on a disk of its own.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Pair, token_file};
use crate::cluster::{ALICE, BOB, User, output_of, text, wait_for};

/// Pieces of 64 KiB, and one that is shorter.
const BYTES: usize = (40 << 16) + 9000;

struct Scene {
    pair: Pair,
    /// The far machine's disk.
    disk: PathBuf,
    file: PathBuf,
    data: Vec<u8>,
}

impl Scene {
    fn start() -> Option<Scene> {
        let mut pair = Pair::start("")?;
        pair.end_agent();
        let disk = pair.cluster.dir.join("disk");
        fs::create_dir(&disk).unwrap();
        let file = pair.cluster.dir.join("data");
        // Nothing compresses it, and no two pieces are the same.
        let mut state = 1_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        };
        let data = (0..BYTES).map(|_| next()).collect();
        let mut scene = Scene {
            pair,
            disk,
            file,
            data,
        };
        scene.write();
        scene.start_agent();
        Some(scene)
    }

    fn write(&self) {
        fs::write(&self.file, &self.data).unwrap();
        fs::set_permissions(&self.file, fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn start_agent(&mut self) {
        let cluster = &self.pair.cluster;
        let token = token_file(cluster, "token", &cluster.ok(&["node", "token"]));
        let log = fs::File::create(cluster.dir.join("agent.log")).unwrap();
        let mut command = self.pair.machine.agent_command(&token);
        command.arg("--keep").arg(&self.disk);
        self.pair.agent = command.stderr(log).spawn().unwrap();
        self.pair.wait_for_state("up");
    }

    fn restart_agent(&mut self) {
        self.pair.end_agent();
        self.pair.wait_for_state("down");
        self.start_agent();
    }

    /// Reads the file there, and looks that it is what it is here.
    fn read_as(&self, user: User) {
        let script = format!("cat {}", self.file.display());
        let run = ["run", "-w", "far", "sh", "-c", &script];
        let output = output_of(self.pair.cluster.command_as(user, &run));
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(output.stdout == self.data, "other bytes than the head has");
    }

    /// Bytes that came by the network, and from the disk, for a user.
    fn counts(&self, uid: u32) -> (u64, u64) {
        let views = self.pair.cluster.json(&["view", "status", "--json"]);
        let views = views.as_array().unwrap();
        let view = views.iter().find(|view| view["uid"] == uid).unwrap();
        let count = |name: &str| view.get(name).and_then(Value::as_u64).unwrap();
        (count("bytes_read"), count("bytes_kept"))
    }

    fn store(&self) -> PathBuf {
        self.disk.join(".wiglaf-kept")
    }

    fn wait_until_kept(&self) {
        let size = || sizes(&self.store());
        wait_for(
            "the disk",
            || size() > BYTES as u64,
            || format!("{} bytes are kept", size()),
        );
    }
}

fn sizes(store: &Path) -> u64 {
    let entries = fs::read_dir(store).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| Some(entry.metadata().ok()?.size()));
    sizes.sum()
}

#[test]
fn what_was_read_is_not_sent_again_after_a_restart() {
    let Some(mut scene) = Scene::start() else {
        return;
    };
    scene.read_as(ALICE);
    let (read, kept) = scene.counts(54321);
    assert!(read > BYTES as u64, "{read}");
    assert!(kept < BYTES as u64 / 10, "{kept}");
    scene.wait_until_kept();
    let mode = fs::metadata(scene.store()).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o700);

    scene.restart_agent();
    scene.read_as(ALICE);
    let (read, kept) = scene.counts(54321);
    assert!(kept >= BYTES as u64 - 100_000, "{kept}");
    assert!(read < BYTES as u64 / 2, "{read}");

    // What has changed meanwhile, and only that, is sent.
    scene.pair.end_agent();
    scene.pair.wait_for_state("down");
    scene.data[100_000] ^= 1;
    scene.data.extend_from_slice(b"and more");
    scene.write();
    scene.start_agent();
    scene.read_as(ALICE);
    let (_, kept) = scene.counts(54321);
    assert!(kept >= BYTES as u64 - 300_000, "{kept}");
    // And what changes while it is known.
    scene.data[1_000_000] ^= 1;
    scene.write();
    scene.read_as(ALICE);
}

/// A deputy names what it wants by its digest: whoever could have it name what he may not read
/// would be given it.
#[test]
fn s3_what_one_user_has_read_is_not_given_to_another() {
    let Some(mut scene) = Scene::start() else {
        return;
    };
    scene.read_as(ALICE);
    scene.wait_until_kept();
    scene.restart_agent();
    scene.read_as(BOB);
    let (read, kept) = scene.counts(54322);
    assert!(read > BYTES as u64, "{read}");
    assert!(kept < BYTES as u64 / 10, "{kept}");
}

#[test]
fn a_damaged_disk_is_as_good_as_none() {
    let Some(mut scene) = Scene::start() else {
        return;
    };
    scene.read_as(ALICE);
    scene.wait_until_kept();
    scene.pair.end_agent();
    scene.pair.wait_for_state("down");
    for entry in fs::read_dir(scene.store()).unwrap().flatten() {
        let file = fs::File::options().write(true).open(entry.path()).unwrap();
        let size = entry.metadata().unwrap().size();
        // Somewhere in every third piece.
        for at in (5000..size).step_by(3 << 16) {
            file.write_all_at(b"rust never sleeps", at).unwrap();
        }
    }
    scene.start_agent();
    scene.read_as(ALICE);
    let (read, _) = scene.counts(54321);
    assert!(read > BYTES as u64 / 4, "{read}");
}

#[test]
fn a_disk_that_is_not_the_agents_own_is_not_used() {
    let Some(mut scene) = Scene::start() else {
        return;
    };
    scene.pair.end_agent();
    scene.pair.wait_for_state("down");
    fs::remove_dir_all(scene.store()).unwrap();
    let elsewhere = scene.pair.cluster.dir.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, scene.store()).unwrap();
    scene.start_agent();
    scene.read_as(ALICE);
    let log = || fs::read_to_string(scene.pair.cluster.dir.join("agent.log")).unwrap_or_default();
    wait_for(
        "its complaint",
        || log().contains("what it reads of the head's files is not kept"),
        log,
    );
    assert_eq!(fs::read_dir(elsewhere).unwrap().count(), 0);
}

//! `/tmp` of a command's own, and nothing half-written of one whose node has died.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Output;

use wiglaf_linux::process::kill;

use crate::cluster::{ALICE, Cluster, text, wait_for};

const SIGKILL: i32 = 9;
const ROOM: &str = "100k";

/// A directory of the head's `/tmp` that is in nobody's way, and where nobody works.
fn place(cluster: &Cluster, name: &str) -> PathBuf {
    let place = cluster.dir.with_extension(name);
    fs::create_dir(&place).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o777)).unwrap();
    place
}

fn private(cluster: &Cluster, script: &str) -> Output {
    let args = [
        "run",
        "-w",
        "n1",
        "--chdir",
        "/",
        "--private-tmp",
        "sh",
        "-c",
        script,
    ];
    cluster.wiglaf(&args)
}

fn ok(cluster: &Cluster, script: &str) -> String {
    let output = private(cluster, script);
    assert!(
        output.status.success(),
        "{script}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn bytes_written(cluster: &Cluster) -> u64 {
    let views = cluster.json(&["view", "status", "--json"]);
    let text = views.to_string();
    let counts = text.split("\"bytes_written\":").skip(1);
    counts
        .map(|rest| {
            rest.split([',', '}'])
                .next()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        })
        .sum()
}

#[test]
fn what_is_removed_again_never_reaches_the_head() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let most = 1 << 20;
    let script = format!("head -c {most} /dev/zero >/tmp/wgscratch && rm /tmp/wgscratch");
    ok(&cluster, &script);
    assert_eq!(bytes_written(&cluster), 0);
    let plain = ["run", "-w", "n1", "--chdir", "/", "sh", "-c", &script];
    cluster.ok(&plain);
    assert!(bytes_written(&cluster) >= most);
    cluster.down();
}

#[test]
fn what_is_left_arrives_before_the_end_is_told() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let place = place(&cluster, "left");
    fs::write(place.join("changed"), "old\n").unwrap();
    fs::write(place.join("removed"), "old\n").unwrap();
    fs::create_dir(place.join("anew")).unwrap();
    fs::write(place.join("anew/old"), "old\n").unwrap();
    let inode = fs::metadata(place.join("changed")).unwrap().ino();
    std::thread::sleep(std::time::Duration::from_millis(50));
    let at = place.display();
    ok(
        &cluster,
        &format!(
            "cd {at}; umask 027; echo new >>changed; rm -r removed anew; mkdir anew; echo x >anew/x
             mkdir -p a/b; echo one >a/one; ln a/one a/two; ln -s one a/link; mkfifo a/fifo
             chmod 2751 a/b; touch -d @1000000000 a/one; truncate -s 5M a/holes; mv a/two a/three
             printf '#!/bin/sh\\necho ran' >a/program; chmod 755 a/program; a/program >out
             d=$(mktemp -d); test -d $d; rmdir $d"
        ),
    );
    let read = |name: &str| fs::read_to_string(place.join(name)).unwrap();
    let look = |name: &str| fs::symlink_metadata(place.join(name)).unwrap();
    assert_eq!(read("changed"), "old\nnew\n");
    assert_eq!(look("changed").ino(), inode);
    assert!(!place.join("removed").exists() && !place.join("anew/old").exists());
    assert_eq!(
        (read("anew/x"), read("out")),
        ("x\n".into(), "ran\n".into())
    );
    assert_eq!(look("a/one").ino(), look("a/three").ino());
    assert_eq!(
        (look("a/one").mtime(), look("a/one").mode()),
        (1_000_000_000, 0o100_640)
    );
    assert_eq!(look("a/b").mode() & 0o7777, 0o2751);
    assert!(look("a/fifo").file_type().is_fifo());
    assert_eq!(
        fs::read_link(place.join("a/link")).unwrap(),
        PathBuf::from("one")
    );
    assert_eq!(
        (look("a/holes").len(), look("a/holes").blocks()),
        (5 << 20, 0)
    );
    fs::remove_dir_all(&place).unwrap();
    cluster.down();
}

#[test]
fn each_command_sees_what_was_there_when_it_began() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let place = place(&cluster, "fresh");
    let look = format!("cat {}/file || echo none", place.display());
    assert_eq!(ok(&cluster, &look), "none\n");
    for round in ["1\n", "2\n", "3\n"] {
        // By rename, so that it is another file.
        fs::write(place.join("next"), round).unwrap();
        fs::rename(place.join("next"), place.join("file")).unwrap();
        assert_eq!(ok(&cluster, &look), round);
    }
    fs::remove_file(place.join("file")).unwrap();
    assert_eq!(ok(&cluster, &look), "none\n");
    // Where it works is the head's.
    let at = place.display().to_string();
    let run = [
        "run",
        "-w",
        "n1",
        "--chdir",
        &at,
        "--private-tmp",
        "sh",
        "-c",
    ];
    let mut child = cluster.spawn(&[&run[..], &["echo now >here; sleep 60"]].concat());
    wait_for(
        "the file to be seen",
        || place.join("here").exists(),
        String::new,
    );
    child.kill().unwrap();
    child.wait().unwrap();
    fs::remove_dir_all(&place).unwrap();
    cluster.down();
}

#[test]
fn what_does_not_fit_fails_the_command_and_is_named() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let place = place(&cluster, "full");
    let at = place.display().to_string();
    let mounted = cluster.script(&format!("mount -t tmpfs -o size={ROOM} wgfull {at}"));
    assert!(mounted.status.success());
    let output = private(&cluster, &format!("head -c 1000000 /dev/zero >{at}/big"));
    cluster.script(&format!("umount -l {at}"));
    assert_eq!(output.status.code(), Some(125));
    let told = text(&output.stderr);
    assert!(told.contains(&format!("{at}/big")), "{told}");
    fs::remove_dir(&place).unwrap();
    cluster.down();
}

#[test]
fn it_is_the_users_own() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let place = place(&cluster, "user");
    let script = format!(
        "cd /; wiglaf run -w n1 --private-tmp sh -c 'umask 077; echo x >{}/mine'",
        place.display()
    );
    let output = cluster.script_as(ALICE, &script);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mine = fs::metadata(place.join("mine")).unwrap();
    let crate::cluster::User::Id(alice) = ALICE else {
        unreachable!("she has a number")
    };
    assert_eq!(
        (mine.uid(), mine.gid(), mine.mode() & 0o777),
        (alice, alice, 0o600)
    );
    fs::remove_dir_all(&place).unwrap();
    cluster.down();
}

#[test]
fn what_a_dead_node_has_made_is_removed() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let place = place(&cluster, "undo");
    fs::write(place.join("before"), "old").unwrap();
    fs::write(place.join("replaced"), "old").unwrap();
    let script = "echo half >object; mkdir dir; echo x >dir/x; ln object link; ln -s object sym
         echo t >t.tmp; mv t.tmp t.done; echo r >r.tmp; mv r.tmp replaced; echo new >before
         echo o >other; mkdir shared; echo y >shared/y; touch ready; sleep 100";
    let at = place.display().to_string();
    let run = [
        "run", "-w", "n2", "--chdir", &at, "--undo", "sh", "-c", script,
    ];
    let child = cluster.spawn(&run);
    wait_for("the files", || place.join("ready").exists(), String::new);
    // Others' files, though where the task's were, stay.
    fs::remove_file(place.join("other")).unwrap();
    fs::write(place.join("other"), "head").unwrap();
    fs::write(place.join("shared/head"), "head").unwrap();
    kill(cluster.agent("n2"), SIGKILL).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    // At once: whoever hears of the end may try again.
    let mut left: Vec<_> = fs::read_dir(&place)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["before", "other", "replaced", "shared"]);
    assert_eq!(fs::read_to_string(place.join("other")).unwrap(), "head");
    assert!(!place.join("shared/y").exists() && place.join("shared/head").exists());
    // What a command makes that ends by itself stays, whatever its exit code.
    let run = [
        "run",
        "-w",
        "n1",
        "--chdir",
        &at,
        "--undo",
        "sh",
        "-c",
        "echo x >kept; exit 3",
    ];
    assert_eq!(cluster.wiglaf(&run).status.code(), Some(3));
    assert!(place.join("kept").exists());
    fs::remove_dir_all(&place).unwrap();
    cluster.down();
}

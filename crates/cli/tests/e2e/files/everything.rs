//! Everything programs do with files on one machine (issue of V4): `programs/checks.py`.

use crate::cluster::{ALICE, BOB, User, output_of, text};
use crate::files::{At, Ground, on_both_grounds};

on_both_grounds! {
    everything_programs_do_as_root(1),
    everything_programs_do_as_a_user(1),
    v4_users_are_kept_apart(1),
}

fn everything_programs_do_as_root(ground: &Ground) {
    check(ground, User::Root);
}

fn everything_programs_do_as_a_user(ground: &Ground) {
    check(ground, ALICE);
}

fn check(ground: &Ground, user: User) {
    let work = ground.open_directory("work");
    let script = ground.program("checks.py");
    let output = output_of(ground.command_as(user, At::Node(1), &["python3", &script, &work]));
    let said = text(&output.stdout);
    assert!(
        output.status.success(),
        "{}\n{said}{}",
        output.status,
        text(&output.stderr)
    );
    // Neither a runner that finds no checks nor a stream that is cut off looks like success.
    assert!(
        said.lines().filter(|line| line.starts_with("ok ")).count() > 35,
        "{said}"
    );
    assert!(said.contains("ok many_at_once"), "{said}");
}

fn v4_users_are_kept_apart(ground: &Ground) {
    let work = ground.open_directory("work");
    let node = At::Node(1);
    ground.sh(
        At::Head,
        &format!("chmod 1777 {work}; echo root >{work}/roots; chmod 600 {work}/roots"),
    );
    let as_user = |user, script: &str| {
        let output = ground.run_as(user, node, &["sh", "-c", script]);
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let refused = |user, script: &str, why: &str| {
        let (code, out, err) = as_user(user, script);
        assert!(
            code != Some(0) && err.contains(why),
            "{script}: {code:?} {out} {err}"
        );
    };
    let allowed = |user, script: &str| {
        let (code, out, err) = as_user(user, script);
        assert_eq!(code, Some(0), "{script}: {out} {err}");
        out
    };
    allowed(
        ALICE,
        &format!("cd {work}; umask 077; echo hers >alice; stat -c '%u %g %a' alice"),
    );
    assert_eq!(
        ground.sh(At::Head, &format!("stat -c '%u %g %a' {work}/alice")),
        "54321 54321 600\n"
    );
    // Nobody else reads it, whether or not it is in the node's memory.
    refused(BOB, &format!("cat {work}/alice"), "Permission denied");
    assert_eq!(allowed(ALICE, &format!("cat {work}/alice")), "hers\n");
    refused(BOB, &format!("cat {work}/alice"), "Permission denied");
    refused(ALICE, &format!("cat {work}/roots"), "Permission denied");
    assert_eq!(
        allowed(User::Root, &format!("cat {work}/roots {work}/alice")),
        "root\nhers\n"
    );
    // The directory is sticky.
    refused(BOB, &format!("rm -f {work}/alice"), "not permitted");
    refused(
        BOB,
        &format!("mv {work}/alice {work}/bobs"),
        "not permitted",
    );
    refused(BOB, &format!("chmod 666 {work}/alice"), "not permitted");
    // An ACL lets him in, and out again.
    allowed(ALICE, &format!("setfacl -m u:54322:r {work}/alice"));
    assert_eq!(allowed(BOB, &format!("cat {work}/alice")), "hers\n");
    refused(BOB, &format!("echo x >>{work}/alice"), "Permission denied");
    allowed(ALICE, &format!("setfacl -b {work}/alice"));
    refused(BOB, &format!("cat {work}/alice"), "Permission denied");
    // What the head grants and takes away holds for the next command.
    for (mode, may) in [("644", true), ("600", false), ("604", true), ("600", false)] {
        ground.sh(At::Head, &format!("chmod {mode} {work}/alice"));
        if may {
            assert_eq!(allowed(BOB, &format!("cat {work}/alice")), "hers\n");
        } else {
            refused(BOB, &format!("cat {work}/alice"), "Permission denied");
        }
    }
    // A set-uid program acts as its owner, a set-gid directory gives its group on.
    ground.sh(
        At::Head,
        &format!(
            "cp /bin/id {work}/who; chown 54322:54322 {work}/who; chmod 4755 {work}/who; \
                  mkdir {work}/group; chgrp 54399 {work}/group; chmod 2777 {work}/group"
        ),
    );
    assert_eq!(allowed(ALICE, &format!("{work}/who -u")), "54322\n");
    assert_eq!(
        allowed(
            ALICE,
            &format!("cd {work}/group; echo >x; mkdir y; stat -c '%g %a' x y")
        ),
        "54399 644\n54399 2755\n"
    );
}

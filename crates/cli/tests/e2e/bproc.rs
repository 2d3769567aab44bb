//! The commands of BProc.

use std::process::Output;

use crate::cluster::{Cluster, text, wiglaf};

fn script(cluster: &Cluster, script: &str) -> Output {
    let bin = cluster.dir.join("bin");
    if !bin.exists() {
        std::fs::create_dir(&bin).unwrap();
        for name in ["bpsh", "bpstat", "bpctl", "bpcp"] {
            std::os::unix::fs::symlink(wiglaf(), bin.join(name)).unwrap();
        }
    }
    cluster.script(&format!("PATH=$WIGLAF_DIR/bin:$PATH; {script}"))
}

#[test]
fn bpsh_runs_on_numbered_nodes() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let out = |line: &str| text(&script(&cluster, line).stdout);
    assert_eq!(out("bpsh 1 hostname"), "n1\n");
    assert_eq!(out("bpsh -p 1,2 hostname | sort"), "  1: n1\n  2: n2\n");
    assert_eq!(out("bpsh -a -s hostname"), "n1\nn2\n");
    let dashes = "-".repeat(69);
    assert_eq!(
        out("bpsh -a -d hostname"),
        format!("1\t{dashes}\nn1\n2\t{dashes}\nn2\n")
    );
    assert_eq!(out("bpsh -1 uname -n"), out("uname -n"));
    assert_eq!(out("echo x | bpsh -a -p cat | sort"), "  1: x\n  2: x\n");
    assert_eq!(out("echo x | bpsh -n 1 cat"), "");
    assert_eq!(out("bpsh -N 1 echo x"), "");
    assert_eq!(out("bpsh -O /run/o 2 echo y; bpsh -I /run/o 2 cat"), "y\n");
    assert_eq!(
        script(&cluster, "bpsh 1 sh -c 'exit 9'").status.code(),
        Some(9)
    );
    assert_eq!(
        script(&cluster, "bpsh 1 sh -c 'kill -9 $$'; exit $?")
            .status
            .code(),
        Some(255)
    );
    assert_eq!(script(&cluster, "bpsh 7 true").status.code(), Some(255));
}

#[test]
fn bpstat_and_bpctl_show_and_change_nodes() {
    let Some(cluster) = Cluster::start(3) else {
        return;
    };
    let out = |line: &str| text(&script(&cluster, line).stdout);
    assert_eq!(out("bpstat -t allup"), "3\n");
    assert_eq!(out("bpstat -n 1-2"), "1\n2\n");
    let table = out("bpstat");
    assert!(
        table.contains("1-3 ") && table.contains("---x--x--x"),
        "{table}"
    );
    out("bpctl -S 2 -m 0100 -u 54321 -s unavailable");
    let table = out("bpstat 2");
    assert!(table.contains("unavailable  ---x------ 54321"), "{table}");
    assert_eq!(out("bpstat -s 1-3"), "up\nunavailable\nup\n");
    let listed = out("bpsh 3 sleep 100 & sleep 0.5; bpstat -p; kill $!; wait");
    assert!(listed.lines().any(|line| line.ends_with("\t3")), "{listed}");
    assert_eq!(
        out("echo z > $WIGLAF_DIR/z; bpcp $WIGLAF_DIR/z 1:/run/z; bpsh 1 cat /run/z"),
        "z\n"
    );
}

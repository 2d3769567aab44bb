use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

/// Unpacks an archive and runs a program in it; needs root.
fn run_inside(archive: Archive, program: &[&str]) -> Option<std::process::Output> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can change its root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    crate::cpio::tests::unpack(archive, dir.path());
    let mut command = Command::new(find_program(Path::new("chroot")).unwrap());
    command.arg(dir.path()).args(program).env_clear();
    Some(command.output().unwrap())
}

fn text(output: &std::process::Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_program_runs_where_there_is_nothing_else() {
    let mut archive = Archive::new();
    Include::new(&mut archive).program(Path::new("id")).unwrap();
    let id = find_program(Path::new("id")).unwrap();
    if let Some(output) = run_inside(archive, &[id.to_str().unwrap(), "-un"]) {
        // The name comes by a library that nothing but nsswitch.conf leads to, or by the file.
        assert_eq!(text(&output), "root");
    }
}

#[test]
fn a_script_brings_its_interpreter() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("hello");
    fs::write(&script, "#!/usr/bin/env sh\necho hello\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let link = dir.path().join("link");
    symlink("hello", &link).unwrap();
    let mut archive = Archive::new();
    Include::new(&mut archive).program(&link).unwrap();
    assert!(archive.contains(&script));
    let output = run_inside(archive, &["/usr/bin/env", link.to_str().unwrap()]);
    if let Some(output) = output {
        assert_eq!(text(&output), "hello");
    }
}

#[test]
fn a_python_program_brings_what_it_imports() {
    if find_program(Path::new("python3")).is_err() {
        println!("SKIPPED: no python3");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("shapes");
    fs::create_dir(&package).unwrap();
    fs::write(package.join("__init__.py"), "from . import square\n").unwrap();
    fs::write(package.join("square.py"), "import ctypes, zlib\nSIDE = 4\n").unwrap();
    fs::write(package.join("only_by_c.py"), "").unwrap();
    let script = dir.path().join("area");
    let code = "#!/usr/bin/env python3\nimport hashlib, json, socket, shapes.square\n\
                print(json.dumps(shapes.square.SIDE ** 2))\n";
    fs::write(&script, code).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut archive = Archive::new();
    Include::new(&mut archive).program(&script).unwrap();
    assert!(archive.contains(&package.join("only_by_c.py")));
    let python = find_program(Path::new("python3")).unwrap();
    let program = [python.to_str().unwrap(), script.to_str().unwrap()];
    if let Some(output) = run_inside(archive, &program) {
        assert_eq!(text(&output), "16");
    }
}

#[test]
fn what_is_missing_is_named_with_who_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    symlink("link", &link).unwrap();
    let dangling = dir.path().join("dangling");
    symlink("nowhere", &dangling).unwrap();
    let include = |path: &Path| {
        let mut archive = Archive::new();
        let result = Include::new(&mut archive).program(path);
        result.unwrap_err().to_string()
    };
    assert!(include(&link).ends_with("too many symbolic links"));
    assert!(include(&dangling).contains("No such file"));
    assert!(include(Path::new("/proc/self/status")).contains("can't be included"));
    assert_eq!(
        include(Path::new("no-such-program-as-this")),
        "there is no program no-such-program-as-this in PATH"
    );
    let script = dir.path().join("script");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    let error = include(&script);
    assert!(
        error.ends_with("script is run by /no/such/interpreter, which is not on this machine"),
        "{error}"
    );
}

#[test]
fn what_a_directory_only_happens_to_hold_may_lack_things() {
    let dir = tempfile::tempdir().unwrap();
    let tools = dir.path().join("tools");
    fs::create_dir(&tools).unwrap();
    fs::write(tools.join("old"), "#!/no/such/interpreter\n").unwrap();
    fs::write(tools.join("data"), "x").unwrap();
    fs::hard_link(tools.join("data"), tools.join("same")).unwrap();
    let mut archive = Archive::new();
    let mut include = Include::new(&mut archive);
    include.program(&tools).unwrap();
    assert_eq!(include.warnings.len(), 1);
    assert!(
        ["old", "data", "same"]
            .iter()
            .all(|name| archive.contains(&tools.join(name)))
    );
}

#[test]
fn another_users_rights_do_not_become_roots() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can give files away");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, "x").unwrap();
    let mode = |uid, gid| {
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
        mode_for_root(&fs::metadata(&path).unwrap())
    };
    assert_eq!(mode(0, 0), 0o6755);
    assert_eq!(mode(1, 0), 0o2755);
    assert_eq!(mode(1, 1), 0o755);
}

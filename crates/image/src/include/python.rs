//! What Python programs import, as their own interpreter finds it.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::IncludeError;

/// Prints the directories of the standard library: one entry a line, without what only tests,
/// graphical programs and the building of extensions need.
const STANDARD: &str = r#"
import os, sysconfig
skip = {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data",
        "site-packages", "dist-packages", "__pycache__"}
for top in sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}):
    for name in sorted(os.listdir(top)):
        if name not in skip and not name.startswith("config-"):
            print(os.path.join(top, name))
"#;

/// Prints what a program imports from elsewhere: a package as a whole, since its C code imports
/// more than its Python code shows; and the directory where wheels keep its libraries.
const IMPORTS: &str = r#"
import modulefinder, os, sys, sysconfig
script = sys.argv[1]
sys.path[0] = os.path.dirname(script)
finder = modulefinder.ModuleFinder(sys.path)
finder.run_script(script)
standard = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))
site = tuple(os.path.join(top, name) + os.sep for top in standard for name in ("site-packages", "dist-packages"))
found = set()
for name, module in finder.modules.items():
    path = module.__file__
    if name == "__main__" or not path or path.startswith(standard) and not path.startswith(site):
        continue
    top = name.split(".")[0]
    package = finder.modules.get(top)
    if package is not None and package.__path__ and package.__file__:
        directory = os.path.dirname(package.__file__)
        found.add(directory)
        libraries = os.path.join(os.path.dirname(directory), top + ".libs")
        if os.path.isdir(libraries):
            found.add(libraries)
    else:
        found.add(path)
for path in sorted(found):
    print(os.path.abspath(path))
"#;

/// Whether it is CPython, by its file's name: `python3.11`.
pub(super) fn is_interpreter(real: &Path) -> bool {
    let name = real.file_name().and_then(|name| name.to_str());
    let version = name.and_then(|name| name.strip_prefix("python"));
    version.is_some_and(|version| {
        version.starts_with('3') && version.chars().all(|c| c.is_ascii_digit() || c == '.')
    })
}

/// The files and directories of its standard library.
pub(super) fn standard_library(interpreter: &Path) -> Result<Vec<PathBuf>, IncludeError> {
    run(interpreter, STANDARD, interpreter)
}

/// The files and directories that a program imports from elsewhere.
pub(super) fn imports(interpreter: &Path, program: &Path) -> Result<Vec<PathBuf>, IncludeError> {
    run(interpreter, IMPORTS, program)
}

fn run(interpreter: &Path, code: &str, program: &Path) -> Result<Vec<PathBuf>, IncludeError> {
    let failed = |reason: String| IncludeError::Python {
        program: program.to_owned(),
        interpreter: interpreter.to_owned(),
        reason,
    };
    let output = Command::new(interpreter)
        .args(["-s", "-B", "-c", code])
        .arg(program)
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let last = words.trim_end().lines().last().unwrap_or("no reason");
        return Err(failed(last.to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_known_by_name() {
        for name in ["/usr/bin/python3", "/usr/bin/python3.11"] {
            assert!(is_interpreter(Path::new(name)), "{name}");
        }
        for name in [
            "/usr/bin/python3-config",
            "/usr/bin/perl",
            "/usr/bin/python2.7",
        ] {
            assert!(!is_interpreter(Path::new(name)), "{name}");
        }
    }
}

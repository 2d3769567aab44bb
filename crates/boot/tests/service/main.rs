//! The whole service as a process, in network namespaces, against the clients that people have.
//! Not under the standard harness: the service is this program, started again.

mod addresses;
mod fetching;
mod guarding;
mod naming;
mod networkd;
mod scene;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use wiglaf_boot::service::{ServiceConfig, prepare};

/// One test. It may say why it is skipped.
struct Test {
    name: &'static str,
    /// Programs that it can't do without.
    needs: &'static [&'static str],
    run: fn(),
}

/// As which the service runs.
const ACCOUNT: u32 = 64_194;
const SERVE: &str = "--serve";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, serve, socket, images, loaders] = arguments.as_slice()
        && serve == SERVE
    {
        let config = ServiceConfig {
            socket: socket.into(),
            images: images.into(),
            loaders: vec![loaders.into()],
            account: (ACCOUNT, ACCOUNT),
        };
        let served = prepare(config).and_then(|service| service.run());
        return match served {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say(&format!("the service: {error}"));
                ExitCode::FAILURE
            }
        };
    }
    let filter = arguments.iter().skip(1).find(|arg| !arg.starts_with('-'));
    let (mut passed, mut failed) = (0, 0);
    let tests = [
        addresses::TESTS,
        networkd::TESTS,
        fetching::TESTS,
        guarding::TESTS,
        naming::TESTS,
    ];
    for test in tests.into_iter().flatten() {
        if filter.is_some_and(|filter| !test.name.contains(filter.as_str())) {
            continue;
        }
        let outcome = match why_not(test) {
            Some(reason) => {
                say(&format!("SKIPPED: {}: {reason}", test.name));
                passed += 1;
                continue;
            }
            None => std::panic::catch_unwind(test.run),
        };
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        passed += usize::from(outcome.is_ok());
        failed += usize::from(outcome.is_err());
        say(&format!("test {} ... {word}", test.name));
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    say(&format!(
        "test result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured"
    ));
    ExitCode::from(u8::from(failed != 0))
}

fn why_not(test: &Test) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    let missing = |name: &&&str| find(name).is_none();
    let missing = ["ip"].iter().chain(test.needs).find(missing)?;
    Some(format!("{missing} is not installed"))
}

fn find(program: &str) -> Option<PathBuf> {
    [
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
        "/usr/lib/systemd",
        "/lib/systemd",
    ]
    .iter()
    .map(|directory| PathBuf::from(directory).join(program))
    .find(|path| path.exists())
}

fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("standard output");
}

//! Benchmarks by name. Each is a module here with a row in [`BENCHES`].

use anyhow::{Result, bail};

mod boot;
pub(crate) mod ground;
mod launch;
mod make;
mod view;

struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "boot",
        about: "DHCP beside dnsmasq and Kea, a flood, and a storm of machines beside nginx",
        run: boot::run,
    },
    Bench {
        name: "launch",
        about: "what a launch, its streams and a thousand ghosts cost, beside Hydra, ssh and xargs",
        run: launch::run,
    },
    Bench {
        name: "make",
        about: "real builds by make, Wiglaf, distcc and icecream; slow nodes; a node's death",
        run: make::run,
    },
    Bench {
        name: "view",
        about: "the same work through the view, sshfs and outrun, over 1 Gb/s with 0.3 ms",
        run: view::run,
    },
];

/// What benchmarks start of themselves.
const PARTS: &[Bench] = &[
    Bench {
        name: ground::sweeper::NAME,
        about: "clears up after a benchmark",
        run: ground::sweeper::run,
    },
    Bench {
        name: boot::client::NAME,
        about: "fetches what many machines boot",
        run: boot::client::run,
    },
    Bench {
        name: view::delay::NAME,
        about: "holds back the packets of a cable",
        run: view::delay::run,
    },
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which benchmark
    name: String,
    /// What the benchmark takes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut all = BENCHES.iter().chain(PARTS);
    match all.find(|bench| bench.name == args.name) {
        Some(bench) => (bench.run)(&args.args),
        None => bail!(
            "no benchmark is called `{}`; {}",
            args.name,
            existing(BENCHES)
        ),
    }
}

fn existing(benches: &[Bench]) -> String {
    if benches.is_empty() {
        return "there is none yet".to_owned();
    }
    let mut text = "there are:".to_owned();
    for bench in benches {
        text.push_str(&format!("\n  {:12} {}", bench.name, bench.about));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_told_what_exists() {
        let args = Args {
            name: "no-such-bench".to_owned(),
            args: Vec::new(),
        };
        let error = run(&args).expect_err("no benchmark has this name");
        assert!(error.to_string().contains("`no-such-bench`"));
        let bench = Bench {
            name: "launch",
            about: "what a launch costs",
            run: |_| Ok(()),
        };
        assert!((bench.run)(&[]).is_ok());
        assert_eq!(
            existing(&[bench]),
            "there are:\n  launch       what a launch costs"
        );
    }
}

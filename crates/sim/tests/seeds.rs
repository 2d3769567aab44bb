//! Many seeds, each a cluster's life. `WIGLAF_SIM_SEED=N` runs one, `WIGLAF_SIM_SEEDS=N` that many;
//! with `WIGLAF_SIM_GO_ON=1` all violations are listed instead of the first being told in full.
#![forbid(unsafe_code)]

use wiglaf_sim::{Mistake, Profile, Setup, Summary, Violation, run};

/// Seeds of a run without wishes: a few seconds.
const SEEDS: u64 = 1_000;
/// A mistake has to show itself within these.
const SEEDS_FOR_A_MISTAKE: u64 = 2_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

fn sweep(setup: &Setup) -> Summary {
    let seeds = match number("WIGLAF_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("WIGLAF_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let mut all = Summary::default();
    let mut broken = Vec::new();
    let goes_on = number("WIGLAF_SIM_GO_ON").is_some();
    for seed in seeds {
        match run(seed, setup) {
            Ok(one) => {
                all.steps += one.steps;
                all.tasks += one.tasks;
                all.own_ends += one.own_ends;
                all.failed += one.failed;
                all.head_crashes += one.head_crashes;
                all.leases_lost += one.leases_lost;
            }
            Err(violation) if goes_on => {
                broken.push(format!(
                    "{seed} {} {}",
                    violation.invariant, violation.message
                ));
            }
            Err(violation) => panic!("\n{violation}"),
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
    all
}

#[test]
fn nothing_is_lost_when_only_the_head_dies_and_partitions_are_short() {
    let all = sweep(&Setup::new(Profile::Gentle));
    println!("{all:?}");
    assert_eq!(all.failed, 0, "P4: {all:?}");
}

#[test]
fn the_invariants_hold_whatever_fails() {
    println!("{:?}", sweep(&Setup::new(Profile::Rough)));
}

/// The first violation of this invariant that a mistake leads to.
fn found(mistake: Mistake, invariant: &str) -> Violation {
    let setup = Setup::new(Profile::Rough).with(mistake);
    let mut violations = (0..SEEDS_FOR_A_MISTAKE).filter_map(|seed| run(seed, &setup).err());
    let first = violations.find(|violation| violation.invariant == invariant);
    *first.expect("the simulator does not find this mistake")
}

#[test]
fn a_head_that_miscounts_leases_is_found_out() {
    let violation = found(Mistake::ShortLease(8_000), "P4");
    assert!(
        violation.message.contains("is called over and lives"),
        "{violation}"
    );
    assert!(!violation.trace.is_empty());
    let again = run(
        violation.seed,
        &Setup::new(Profile::Rough).with(Mistake::ShortLease(8_000)),
    );
    assert_eq!(
        again.unwrap_err().to_string(),
        violation.to_string(),
        "a seed is a run"
    );
}

#[test]
fn tasks_that_outlive_their_lease_are_found_out() {
    let violation = found(Mistake::Immortal, "P4");
    assert!(violation.message.contains("lives"), "{violation}");
}

#[test]
fn a_ghost_that_is_reaped_before_its_task_is_over_is_found_out() {
    let violation = found(Mistake::EagerKeeper, "P1");
    assert!(
        violation.message.contains("reaped on the head and lives"),
        "{violation}"
    );
}

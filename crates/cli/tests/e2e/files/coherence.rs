//! V1, V2 and V3: random steps on the head and on nodes, and what is seen elsewhere, compared
//! with a model after every step.

use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::cluster::text;
use crate::files::ground::{Place, difference};
use crate::files::model::{Dice, LISTING, Model};
use crate::files::{At, Ground, on_both_grounds};

on_both_grounds! {
    v1_a_launch_sees_every_change(3),
    v2_what_a_command_did_is_on_the_head(3),
    v3_a_change_is_soon_seen_by_who_runs_already(3),
    v3_nobody_goes_back_in_time(3),
}

const LAUNCHES: usize = 150;
const COMMANDS: usize = 60;
const STEPS: usize = 1500;
const VERSIONS: usize = 400;
/// Files that are open at a time.
const HELD: usize = 6;

fn v1_a_launch_sees_every_change(ground: &Ground) {
    let (top, mut model, mut dice) = begin(ground, "v1");
    let mut places: Vec<Place> = ground.everywhere().map(|at| ground.place(at)).collect();
    let mut number = 0;
    for _ in 0..LAUNCHES {
        for _ in 0..=dice.roll(4) {
            // Mostly the head's, without a node's knowing. A node that is to do a step must have
            // seen what came before: a launch there is how it is made to.
            let who = if dice.once_in(3) { 1 + dice.roll(3) } else { 0 };
            if who > 0 {
                ground.ok(places[who].at(), &["true"]);
            }
            number += 1;
            take(&mut places[who], &mut model, &mut dice, &top, number);
        }
        let node = places[1 + dice.roll(3)].at();
        assert_listing(ground, node, &top, &model, number);
    }
}

fn v2_what_a_command_did_is_on_the_head(ground: &Ground) {
    let (top, mut model, mut dice) = begin(ground, "v2");
    let mut head = ground.place(At::Head);
    let programs = ground.path("programs");
    for number in 0..COMMANDS {
        let node = At::Node(1 + u32::try_from(dice.roll(3)).unwrap());
        let mut steps = String::new();
        for more in 0..=dice.roll(3) {
            let step = model.propose(&mut dice, number * 10 + more);
            let expected = model.apply(&step).err().unwrap_or(0);
            steps += &format!(
                "try:\n {}\n done = 0\nexcept OSError as e:\n done = e.errno\n\
                 assert done == {expected}, (done, {expected})\n",
                step.code(&top)
            );
        }
        let script = format!(
            "import sys\nsys.path.insert(0, '{programs}')\nfrom place import *\n{steps}os._exit(7)"
        );
        let output = ground.run(node, &["python3", "-c", &script]);
        assert_eq!(
            output.status.code(),
            Some(7),
            "{steps}{}",
            text(&output.stderr)
        );
        assert_tree(&mut head, &top, &model, &steps);
        let other = At::Node(1 + u32::try_from(dice.roll(3)).unwrap());
        assert_listing(ground, other, &top, &model, number);
    }
}

/// An open file: who has it, under which name, and the model's number of it.
struct Held {
    who: usize,
    name: String,
    inode: usize,
}

fn v3_a_change_is_soon_seen_by_who_runs_already(ground: &Ground) {
    let (top, mut model, mut dice) = begin(ground, "v3");
    let mut places: Vec<Place> = ground.everywhere().map(|at| ground.place(at)).collect();
    let mut held: Vec<Held> = Vec::new();
    let mut slowest = Duration::ZERO;
    for number in 0..STEPS {
        let who = dice.roll(places.len());
        slowest = slowest.max(settle(&mut places[who], &top, &model));
        match dice.roll(8) {
            0 => open(&mut held, &mut places, who, &model, &mut dice, &top, number),
            1 if !held.is_empty() => {
                let one = held.swap_remove(dice.roll(held.len()));
                let place = &mut places[one.who];
                // What others did to it is seen through an open file too, though its name be gone.
                let seen = format!(
                    "[os.fstat(kept['{0}']).st_nlink, os.pread(kept['{0}'], 1 << 24, 0).decode('latin-1')]",
                    one.name
                );
                slowest = slowest.max(place.until(&seen, &model.held(one.inode)));
                if dice.once_in(2) {
                    let text = format!("({number})");
                    let offset = dice.roll(5000);
                    // Pipelined until it is closed.
                    place.ask(&format!(
                        "os.pwrite(kept['{}'], b'{text}', {offset})",
                        one.name
                    ));
                    model.write_held(one.inode, offset, &text);
                }
                place.ask(&format!("closed('{}')", one.name));
            }
            _ => {
                let step = loop {
                    let step = model.propose(&mut dice, number);
                    // Memory is not shared between machines (V5).
                    if !matches!(step, crate::files::model::Step::MappedPatch(..))
                        || held.is_empty()
                    {
                        break step;
                    }
                };
                let outcome = places[who].attempt(&step.code(&top)).map(|_| ());
                assert_eq!(
                    outcome,
                    model.apply(&step),
                    "{number}: {step:?} at {:?}",
                    places[who].at()
                );
            }
        }
        // At once where it was done and on the head, soon elsewhere.
        let what = format!("step {number} at {:?}", places[who].at());
        if dice.once_in(3) {
            assert_tree(&mut places[who], &top, &model, &what);
        }
        if dice.once_in(2) {
            assert_tree(&mut places[0], &top, &model, &what);
        }
    }
    for place in &mut places {
        slowest = slowest.max(settle(place, &top, &model));
    }
    println!(
        "the slowest change was seen after {} ms",
        slowest.as_millis()
    );
}

fn v3_nobody_goes_back_in_time(ground: &Ground) {
    let top = ground.open_directory("versions");
    for (way, write) in [
        (
            "replaced",
            "put(f'{p}.new', f'{n:08}' * 1000); os.rename(f'{p}.new', p)",
        ),
        ("rewritten", "patch(p, 0, f'{n:08}')"),
    ] {
        let file = format!("{top}/{way}");
        fs::write(&file, "00000000".repeat(1000)).unwrap();
        for writer in 0..2 {
            let mut places: Vec<Place> = ground.everywhere().map(|at| ground.place(at)).collect();
            let first = writer * VERSIONS + 1;
            let last = first + VERSIONS - 1;
            for (number, place) in places.iter_mut().enumerate() {
                if number != writer {
                    place.send(&format!(
                        "follow_versions('{file}', {last}, '{way}' == 'replaced')"
                    ));
                }
            }
            let code = format!(
                "p = '{file}'\nfor n in range({first}, {}):\n {write}\n time.sleep(0.001)",
                last + 1
            );
            places[writer].ask(&code);
            for (number, place) in places.iter_mut().enumerate() {
                if number == writer {
                    continue;
                }
                let seen = place.answer().unwrap();
                assert_eq!(seen["wrong"], json!([]), "{way} at {:?}", place.at());
                assert!(seen["count"].as_u64().unwrap() > 0);
            }
        }
    }
}

fn begin(ground: &Ground, test: &str) -> (String, Model, Dice) {
    let top = ground.open_directory("tree");
    let native = if ground.cluster().is_none() {
        "native"
    } else {
        "view"
    };
    (
        top,
        Model::default(),
        Dice::new(&format!("{test} {native}")),
    )
}

/// One step of the model's, which must end as it says.
fn take(place: &mut Place, model: &mut Model, dice: &mut Dice, top: &str, number: usize) {
    let step = model.propose(dice, number);
    let outcome = place.attempt(&step.code(top)).map(|_| ());
    assert_eq!(
        outcome,
        model.apply(&step),
        "{number}: {step:?} at {:?}",
        place.at()
    );
}

fn open(
    held: &mut Vec<Held>,
    places: &mut [Place],
    who: usize,
    model: &Model,
    dice: &mut Dice,
    top: &str,
    number: usize,
) {
    let Some(file) = model.some_file(dice) else {
        return;
    };
    if held.len() >= HELD {
        return;
    }
    let inode = model.number(&file).expect("a file");
    let name = format!("held{number}");
    places[who].ask(&format!("opened('{name}', '{top}/{file}', os.O_RDWR)"));
    held.push(Held { who, name, inode });
}

/// The whole tree, as the model has it, at the first look.
fn assert_tree(place: &mut Place, top: &str, model: &Model, what: &str) {
    let seen = place.ask(&format!("tree('{top}')"));
    assert!(
        seen == model.tree(),
        "after {what}, {:?} sees {}",
        place.at(),
        difference(&seen, &model.tree())
    );
}

fn assert_listing(ground: &Ground, node: At, top: &str, model: &Model, number: usize) {
    let seen = ground.sh(node, &format!("cd {top}; {LISTING}"));
    let expected = model.listing();
    if seen != expected {
        let pairs = seen.lines().zip(expected.lines());
        let first = pairs.into_iter().find(|(one, two)| one != two);
        panic!("after step {number} a launch at {node:?} sees, and should see: {first:.200?}");
    }
}

/// Waits until a place sees what the model has; how long that took.
fn settle(place: &mut Place, top: &str, model: &Model) -> Duration {
    place.until(&format!("tree('{top}')"), &model.tree())
}

//! How long a machine takes from its first process until it takes tasks, by a clock that counts
//! its instructions.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::run;
use crate::vm::DELAY_CONSOLES;
use crate::vm::guest::{Clock, Firmware, Guest, Plan};
use crate::vm::head::{BOOT, Head};
use crate::vm::stage::Stage;

use super::parts::join;

/// One instruction a nanosecond: a processor of 1 GHz that does one in each cycle.
const SHIFT: u8 = 0;
/// What the agent says when it is up.
const UP: &str = "it takes tasks now";
const END: Duration = Duration::from_secs(60);

/// Two instructions each time, and then a second in which nothing is done.
const YARDSTICK: &str = r#"
#include <stdio.h>
#include <time.h>
static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
int main(void) {
    unsigned long left = 50000000;
    long long began = now();
    __asm__ volatile("1: dec %0\n\tjnz 1b" : "+r"(left));
    printf("%lld", now() - began);
    return 0;
}
"#;
const INSTRUCTIONS: f64 = 100e6;
/// The kernel has its own to do meanwhile: its clock ticks.
const TOLERANCE: f64 = 0.03;
const PAUSE_S: u64 = 2;

/// A new machine, and the same one when it is started anew.
pub(super) fn delay(stage: &Stage<'_>) -> Result<()> {
    let head = Head::found(stage)?;
    let mut plan = Plan::new("guest", Firmware::BiosIpxe).clock(Clock::Counts(SHIFT));
    plan.reboots = true;
    let guest = stage.guest(&head.wire, plan)?;
    let [first, later] = DELAY_CONSOLES;
    join(&head, &guest, "n1", 1)?;
    keep(stage, &guest, first)?;
    check_clock(&head)?;
    head.admin(&["node", "reboot", "n1"])?;
    head.wait_for_state_but("n1", "up", END)?;
    head.wait_for_return(&guest, "n1", BOOT)?;
    keep(stage, &guest, later)?;
    stage.say("n1 has started anew");
    Ok(())
}

/// What its console has shown until it was up.
fn keep(stage: &Stage<'_>, guest: &Guest<'_>, name: &str) -> Result<()> {
    guest.wait_for(UP, BOOT)?;
    let path = stage.logs.join(name);
    fs::write(&path, guest.console.text()).with_context(|| path.display().to_string())
}

/// QEMU's clock is what we take it for: of instructions while the guest works, and of seconds
/// while it waits.
fn check_clock(head: &Head<'_>) -> Result<()> {
    let dir = head.users_folder("yardstick")?;
    let (source, program) = (dir.join("yardstick.c"), dir.join("yardstick"));
    fs::write(&source, YARDSTICK)?;
    let mut compiler = Command::new("gcc");
    run::output(compiler.args(["-static", "-o"]).args([&program, &source]))?;
    let text = head.on_node("n1", &[&program.to_string_lossy()])?;
    let took_ns: f64 = text.parse().with_context(|| text.clone())?;
    let expected_ns = INSTRUCTIONS * f64::from(1 << SHIFT);
    ensure!(
        (took_ns / expected_ns - 1.0).abs() < TOLERANCE,
        "{INSTRUCTIONS} instructions take {took_ns} ns of the guest's clock, not {expected_ns}"
    );
    let timed = |seconds: u64| -> Result<f64> {
        let began = Instant::now();
        head.on_node("n1", &["sleep", &seconds.to_string()])?;
        Ok(began.elapsed().as_secs_f64())
    };
    // What the command takes beside that is in both.
    timed(0)?;
    let waited_s = -timed(0)? + timed(PAUSE_S)?;
    ensure!(
        waited_s > PAUSE_S as f64 * 0.9,
        "{PAUSE_S} s of waiting in the guest take {waited_s:.2} s"
    );
    head.stage.say(&format!(
        "{:.0} million instructions take {:.1} ms of its clock; {PAUSE_S} s of waiting take \
         {waited_s:.2} s",
        INSTRUCTIONS / 1e6,
        took_ns / 1e6
    ));
    Ok(())
}

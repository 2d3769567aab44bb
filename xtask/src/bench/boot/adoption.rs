//! What it takes to adopt many machines.

use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context, Result};

use super::server::Head;
use crate::bench::ground::report::Report;
use crate::bench::ground::statistics::Samples;

/// How many of the first and of the last are looked at.
const END: usize = 50;

/// Adopts them one by one, and says which address each was given.
pub(super) fn adopt(
    head: &Head<'_>,
    macs: &[String],
    report: &mut Report,
) -> Result<Vec<(String, Ipv4Addr)>> {
    println!("\n=== adopting {} machines", macs.len());
    let mut machines = Vec::new();
    let (mut first, mut last) = (Samples::default(), Samples::default());
    let all = Instant::now();
    for (index, mac) in macs.iter().enumerate() {
        let started = Instant::now();
        let said = head.wiglaf(&["node", "adopt", mac])?;
        let took_ms = started.elapsed().as_secs_f64() * 1e3;
        if index < END {
            first.push(took_ms);
        }
        if index + END >= macs.len() {
            last.push(took_ms);
        }
        let address = address_in(&said)
            .with_context(|| format!("`wiglaf node adopt` names no address: {said:?}"))?;
        machines.push((mac.clone(), address));
    }
    report.note(format!(
        "`wiglaf node adopt MAC`, one after the other, {} machines in {:.1} s: of the first {END} \
         {} ms each, of the last {} ms.",
        macs.len(),
        all.elapsed().as_secs_f64(),
        first.text(1),
        last.text(1)
    ));
    Ok(machines)
}

/// `02:… is n1 at 10.77.0.2; it boots …`
fn address_in(said: &str) -> Option<Ipv4Addr> {
    let (_, rest) = said.split_once(" at ")?;
    rest.split(';').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_read_from_what_adopting_says() {
        let said =
            "02:00:00:00:00:00 is n1 at 10.77.0.2; it boots at its next try, and shows a code";
        assert_eq!(address_in(said), Some(Ipv4Addr::new(10, 77, 0, 2)));
        assert_eq!(address_in("02:00:00:00:00:00 is n1; it boots"), None);
    }
}

//! The scenarios: each says what it shows while it does.

mod harness;

use anyhow::Result;

use super::stage::Stage;

pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) play: fn(&Stage<'_>) -> Result<()>,
}

/// What CI has time for.
pub(super) const SMOKE: &[&str] = &["harness"];

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "harness",
    about: "the harness by itself: dnsmasq boots busybox",
    play: harness::harness,
}];

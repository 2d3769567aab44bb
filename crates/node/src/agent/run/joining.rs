//! Joining, however long it takes.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use wiglaf_link::{AgentIdentity, JoinToken, NodeIdentity, approval_code};
use wiglaf_linux::signal::SignalFd;
use wiglaf_wire::boot::Mac;

use super::{AgentConfig, AgentError, SIGINT, SIGTERM, log};
use crate::init::greet;
use crate::join::{Admission, JoinError, join, join_booted};

/// Wait before a machine that could not join tries again; it doubles each time.
const FIRST_JOIN_PAUSE: Duration = Duration::from_millis(100);
const LAST_JOIN_PAUSE: Duration = Duration::from_secs(5);
/// Wait between two questions whether somebody has approved the machine.
const APPROVAL_PAUSE: Duration = Duration::from_secs(2);
/// The head lets a machine join once, soon after it booted: one whose agent or whose head has
/// started anew since has to say again that it is there. How often it does.
const GREETING_PERIOD: Duration = Duration::from_secs(10);
/// How long the head may take to hear of that.
const GREETING_PAUSE: Duration = Duration::from_millis(300);
/// How often its code is shown anew: it may have scrolled away.
const CODE_PERIOD: Duration = Duration::from_secs(60);

/// Joins, however long the head can't be reached. `None`: somebody asked the agent to leave.
pub(super) fn join_at_last(
    config: &AgentConfig,
    token: &JoinToken,
    signals: &SignalFd,
) -> Result<Option<NodeIdentity>, AgentError> {
    let mut pause = FIRST_JOIN_PAUSE;
    loop {
        match join(config.head, token, config.name.clone()) {
            Ok(identity) => return Ok(Some(identity)),
            Err(error) if error.is_passing() => {
                if pause == FIRST_JOIN_PAUSE {
                    log(&config.address, &error);
                }
            }
            Err(error) => return Err(error.into()),
        }
        if is_asked_to_leave(signals, pause)? {
            return Ok(None);
        }
        pause = (pause * 2).min(LAST_JOIN_PAUSE);
    }
}

/// The same for a machine that booted from the network. Its operator may still put right whatever
/// keeps it out, so nothing ends this but somebody who asks for it.
pub(super) fn join_as_booted(
    config: &AgentConfig,
    authority: [u8; 32],
    mac: Mac,
    boot: Option<SocketAddrV4>,
    signals: &SignalFd,
) -> Result<Option<NodeIdentity>, AgentError> {
    let identity = AgentIdentity::create()?;
    let own_code = approval_code(&authority, &identity.public_point(), mac.0);
    let mut pause = FIRST_JOIN_PAUSE;
    let mut trouble = None;
    let mut shown: Option<Instant> = None;
    let mut greeted: Option<Instant> = None;
    loop {
        match join_booted(config.head, authority, mac, &identity) {
            Ok(Admission::Node(identity)) => return Ok(Some(identity)),
            Ok(Admission::AwaitsApproval(code)) => {
                trouble = None;
                pause = APPROVAL_PAUSE;
                if shown.is_none_or(|at| at.elapsed() >= CODE_PERIOD) {
                    shown = Some(Instant::now());
                    show_code(&config.address, mac, &own_code, &code);
                }
            }
            Err(error) => {
                if let JoinError::Refused { .. } = &error
                    && let Some(boot) = boot
                    && greeted.is_none_or(|at| at.elapsed() >= GREETING_PERIOD)
                {
                    greeted = Some(Instant::now());
                    // If the boot service can't be reached now, it can later.
                    if greet(boot, mac).is_ok() {
                        if is_asked_to_leave(signals, GREETING_PAUSE)? {
                            return Ok(None);
                        }
                        continue;
                    }
                }
                let text = error.to_string();
                if trouble.as_ref() != Some(&text) {
                    log(&config.address, &format_args!("{text}; trying again"));
                    trouble = Some(text);
                }
                pause = (pause * 2).min(LAST_JOIN_PAUSE);
            }
        }
        if is_asked_to_leave(signals, pause)? {
            return Ok(None);
        }
    }
}

/// The code is this machine's own: only then does it prove to the operator what key it is that
/// the head has.
fn show_code(name: &str, mac: Mac, code: &str, heads: &str) {
    if code != heads {
        let warning = format!(
            "the head computed the code {heads}, this machine {code}: somebody may stand between \
             them; do not approve it"
        );
        log(name, &warning);
        return;
    }
    let rule = "=".repeat(72);
    log(name, &rule);
    log(
        name,
        &format_args!(
            "This machine asks to join as {mac}. Code {code}. \
             On the head: wiglaf node approve {mac} {code}"
        ),
    );
    log(name, &rule);
}

/// Waits, at most so long.
fn is_asked_to_leave(signals: &SignalFd, pause: Duration) -> Result<bool, AgentError> {
    let until = Timespec::try_from(pause).ok();
    // Too early is no harm.
    let _ = poll(&mut [PollFd::new(signals, PollFlags::IN)], until.as_ref());
    while let Some(signal) = signals.read()? {
        if matches!(signal.signo, SIGTERM | SIGINT) {
            return Ok(true);
        }
    }
    Ok(false)
}

//! How a machine with a token, or one that booted from the network, becomes a node with a
//! certificate.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use wiglaf_link::{
    AgentIdentity, JoinToken, LinkError, NodeIdentity, TrustError, joining_config, pinning_config,
};
use wiglaf_wire::PROTOCOL_VERSION;
use wiglaf_wire::agent::{FromAgent, ToAgent};
use wiglaf_wire::boot::Mac;
use wiglaf_wire::frame::Frame;

use crate::agent::HeadTls;
use crate::agent::{dial, dial_as_root};

/// A head that has not answered by then is asked again.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Why the machine is no node yet.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The head does not want it. Asking again is of no use.
    #[error("the head at {head} refuses this machine: {reason}")]
    Refused {
        /// Where the head was asked.
        head: SocketAddr,
        /// Its own words.
        reason: String,
    },
    /// Keys or TLS can't be made.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The head can't be reached.
    #[error("can't join the head at {head}: {source}")]
    Link {
        /// Where the head was sought.
        head: SocketAddr,
        /// What went wrong.
        #[source]
        source: LinkError,
    },
    /// It is another cluster's. Asking again is of no use.
    #[error(
        "the head at {0} is not of the cluster that the token is for: make a token on that head \
         (`wiglaf node token`), or give the address of the token's"
    )]
    Foreign(SocketAddr),
    /// The same for a machine that booted from the network.
    #[error(
        "the head at {0} is not of the cluster that this machine's image was built for: build an \
         image on that head (`wiglaf image build`), or see that the right head answers on this wire"
    )]
    ForeignImage(SocketAddr),
    /// It does not answer.
    #[error("the head at {0} does not answer")]
    Silent(SocketAddr),
}

impl JoinError {
    /// Whether it may go better next time.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, JoinError::Link { .. } | JoinError::Silent(_))
    }
}

/// Asks the head, whose CA the token names, for a certificate. Waits for the answer.
pub(crate) fn join(
    head: SocketAddr,
    token: &JoinToken,
    name: Option<String>,
) -> Result<NodeIdentity, JoinError> {
    let failed = |source| JoinError::Link { head, source };
    let identity = AgentIdentity::create()?;
    let tls = dial(head, joining_config(token)?).map_err(failed)?;
    let request = FromAgent::Join {
        version: PROTOCOL_VERSION,
        token: token.secret.to_vec(),
        name,
        request: identity.public_point(),
    };
    match ask(tls, head, &request, &identity, JoinError::Foreign)? {
        Admission::Node(identity) => Ok(identity),
        // Nobody approves what has a token.
        Admission::AwaitsApproval(_) => Err(failed(LinkError::Closed)),
    }
}

/// Whether the head has shown the certificate of another CA, which is the first thing that
/// [`pinning_config`] has looked at.
fn is_foreign(error: &LinkError) -> bool {
    matches!(
        error,
        LinkError::Tls(rustls::Error::General(_) | rustls::Error::InvalidCertificate(_))
    )
}

/// What a machine that booted from the network is told.
pub(crate) enum Admission {
    /// It is a node.
    Node(NodeIdentity),
    /// Somebody has to compare this code first.
    AwaitsApproval(String),
}

/// Asks the head that has the CA with this fingerprint for a certificate, with a key that stays
/// the same until there is one. Waits for the answer.
pub(crate) fn join_booted(
    head: SocketAddr,
    authority: [u8; 32],
    mac: Mac,
    identity: &AgentIdentity,
) -> Result<Admission, JoinError> {
    let failed = |source| JoinError::Link { head, source };
    let tls = dial_as_root(head, pinning_config(authority)?).map_err(failed)?;
    let request = FromAgent::JoinBooted {
        version: PROTOCOL_VERSION,
        mac,
        request: identity.public_point(),
    };
    ask(tls, head, &request, identity, JoinError::ForeignImage)
}

/// Sends what asks for a certificate, and waits for the answer. `foreign` is what it means if the
/// head's CA is another one.
fn ask(
    mut tls: HeadTls,
    head: SocketAddr,
    request: &FromAgent,
    identity: &AgentIdentity,
    foreign: fn(SocketAddr) -> JoinError,
) -> Result<Admission, JoinError> {
    let failed = |source| JoinError::Link { head, source };
    tls.queue(request).map_err(failed)?;
    let answer = wait_answer(&mut tls).map_err(|error| {
        if is_foreign(&error) {
            foreign(head)
        } else {
            failed(error)
        }
    })?;
    match answer {
        Some(ToAgent::Certificate {
            certificate,
            authority,
        }) => Ok(Admission::Node(identity.certified(certificate, authority))),
        Some(ToAgent::AwaitApproval { code }) => Ok(Admission::AwaitsApproval(code)),
        Some(ToAgent::Refused { reason }) => Err(JoinError::Refused { head, reason }),
        Some(_) => Err(failed(LinkError::Closed)),
        None => Err(JoinError::Silent(head)),
    }
}

fn wait_answer(tls: &mut HeadTls) -> Result<Option<ToAgent>, LinkError> {
    let until = Instant::now() + ANSWER_WAIT;
    loop {
        tls.flush()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let wait = Timespec::try_from(left).ok();
        let flags = if tls.wants_write() {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        match poll(&mut [PollFd::new(tls, flags)], wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let received = tls.receive();
        match tls.next_frame()? {
            Some(Frame::Message(message)) => return Ok(Some(message)),
            Some(Frame::Data(..)) => return Err(LinkError::Closed),
            None => received.map(|_| ())?,
        }
    }
}

//! Authority, identities and configurations against each other, over real connections.

use super::*;
use crate::TlsLink;
use rustix::net::{AddressFamily, SocketAddrV4, SocketType};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use wiglaf_wire::frame::Frame;

fn tcp_pair() -> (OwnedFd, OwnedFd) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let dialled = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::connect(&dialled, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).unwrap();
    (dialled, listener.accept().unwrap().0.into())
}

type End = TlsLink<String, String>;

fn exchange(client: &mut End, server: &mut End) -> Result<String, crate::LinkError> {
    client.queue(&"hello".to_owned())?;
    for _ in 0..1000 {
        client.flush()?;
        server.flush()?;
        server.receive()?;
        client.receive()?;
        if let Some(Frame::Message(text)) = server.next_frame()? {
            return Ok(text);
        }
    }
    panic!("no message crossed");
}

#[test]
fn a_token_lets_a_machine_join_and_its_certificate_says_who_it_is() {
    let ca = Authority::create("test").unwrap();
    let ca = Authority::load(ca.certificate().to_vec(), ca.key().to_vec()).unwrap();
    let token = JoinToken::create(ca.fingerprint()).unwrap();
    let token: JoinToken = token.reveal().parse().unwrap();
    let head = server_config(&ca.issue(Role::Head).unwrap(), true).unwrap();

    let (a, b) = tcp_pair();
    let config = joining_config(&token).unwrap();
    let mut client = End::client(a, config, server_name(Role::Head)).unwrap();
    let mut server = End::server(b, head.clone()).unwrap();
    assert_eq!(exchange(&mut client, &mut server).unwrap(), "hello");
    assert!(server.peer_certificates().is_none());

    let agent = AgentIdentity::create().unwrap();
    let certificate = ca
        .certify(Role::Node(NodeId(7)), &agent.public_point())
        .unwrap();
    let identity = agent.certified(certificate.to_vec(), ca.certificate().to_vec());
    let (a, b) = tcp_pair();
    let config = client_config(&identity).unwrap();
    let mut client = End::client(a, config, server_name(Role::Head)).unwrap();
    let mut server = End::server(b, head).unwrap();
    assert_eq!(exchange(&mut client, &mut server).unwrap(), "hello");
    let shown = &server.peer_certificates().unwrap()[0];
    assert_eq!(Role::of_certificate(shown), Some(Role::Node(NodeId(7))));
}

#[test]
fn another_clusters_head_or_agent_is_refused() {
    let ours = Authority::create("ours").unwrap();
    let theirs = Authority::create("theirs").unwrap();
    let token = JoinToken::create(ours.fingerprint()).unwrap();
    let head = server_config(&theirs.issue(Role::Head).unwrap(), true).unwrap();
    let (a, b) = tcp_pair();
    let mut client =
        End::client(a, joining_config(&token).unwrap(), server_name(Role::Head)).unwrap();
    let mut server = End::server(b, head).unwrap();
    assert!(exchange(&mut client, &mut server).is_err());

    let head = server_config(&ours.issue(Role::Head).unwrap(), true).unwrap();
    let mut stranger = theirs.issue(Role::Node(NodeId(1))).unwrap();
    stranger.authority = ours.certificate().clone();
    let (a, b) = tcp_pair();
    let mut client = End::client(
        a,
        client_config(&stranger).unwrap(),
        server_name(Role::Head),
    )
    .unwrap();
    let mut server = End::server(b, head).unwrap();
    assert!(exchange(&mut client, &mut server).is_err());
}

#[test]
fn a_node_is_not_taken_for_the_head() {
    let ca = Authority::create("test").unwrap();
    let node = ca.issue(Role::Node(NodeId(1))).unwrap();
    let impostor = server_config(&node, true).unwrap();
    let (a, b) = tcp_pair();
    let config = client_config(&ca.issue(Role::Node(NodeId(2))).unwrap()).unwrap();
    let mut client = End::client(a, config, server_name(Role::Head)).unwrap();
    let mut server = End::server(b, impostor).unwrap();
    assert!(exchange(&mut client, &mut server).is_err());
}

#[test]
fn tokens_that_are_none_are_refused() {
    for text in ["", "wiglaf1", "wiglaf1-00-00", "wiglaf1-é-00", "x-1-2-3"] {
        assert_eq!(text.parse::<JoinToken>(), Err(TokenError));
    }
}

#[test]
fn a_keeping_key_is_a_nodes_own() {
    let ca = Authority::create("c").unwrap();
    let again = Authority::load(ca.certificate().to_vec(), ca.key().to_vec()).unwrap();
    assert_eq!(ca.keeping_key("n1"), again.keeping_key("n1"));
    assert_ne!(ca.keeping_key("n1"), ca.keeping_key("n2"));
    let other = Authority::create("c").unwrap();
    assert_ne!(ca.keeping_key("n1"), other.keeping_key("n1"));
}

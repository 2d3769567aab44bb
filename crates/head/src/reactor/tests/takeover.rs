//! A head that takes over from one that was killed.

use super::*;
use crate::node_table::{Node, Presence};

fn stored(effects: &[Effect]) -> Node {
    let node = effects.iter().rev().find_map(|effect| match effect {
        Effect::StoreNode(node) => Some((**node).clone()),
        _ => None,
    });
    node.expect("the node is stored")
}

/// What a new head makes of a node that the store remembers so.
fn taken_over(node: &Node) -> Presence {
    let mut world = World::new();
    let own = world.reactor.nodes_mut().get_mut(N1).unwrap();
    own.may_live = node.may_live;
    world.event(Event::TakenOver);
    world.reactor.nodes().get(N1).unwrap().presence
}

#[test]
fn p4_only_what_was_a_member_is_waited_for() {
    let mut world = World::new();
    let never = world.reactor.nodes().get(N1).unwrap().clone();
    assert_eq!(taken_over(&never), Presence::Absent);
    let joined = stored(&world.join(vec![]));
    assert_eq!(taken_over(&joined), Presence::Silent);
    let left = stored(&world.event(Event::FromNode(N1, FromAgent::Leaving)));
    assert_eq!(taken_over(&left), Presence::Absent);
}

//! What commands ask of the views on several nodes.

use wiglaf_wire::view::{ViewCheck, ViewState};

use super::*;

const N2: NodeId = NodeId(2);
const N3: NodeId = NodeId(3);

/// Two nodes are connected, a third is not. User 1000 has a task on the first.
fn world() -> World {
    let mut world = World::new();
    for name in ["n2", "n3"] {
        world.reactor.nodes_mut().enrol(name).unwrap();
    }
    world.running();
    let hello = FromAgent::Hello {
        version: wiglaf_wire::PROTOCOL_VERSION,
        incarnation: LIFE,
        machine: Machine::default(),
        tasks: vec![],
    };
    world.event(Event::NodeHello { node: N2, hello });
    world
}

fn as_user(uid: u32) -> Caller {
    let mut caller = caller();
    caller.credential.uid = uid;
    caller
}

fn view(uid: u32) -> ViewState {
    ViewState {
        uid,
        tasks: 0,
        requests: 0,
        questions: 0,
        changes: 0,
        bytes_read: 0,
        bytes_kept: 0,
        bytes_written: 0,
        files: 0,
        content_bytes: 0,
        handles: 0,
    }
}

fn views(request: u64, uids: &[u32], last: bool) -> FromAgent {
    FromAgent::Views {
        request,
        list: uids.iter().copied().map(view).collect(),
        last,
    }
}

fn checked(request: u64, uid: u32, differences: &[&str], last: bool) -> FromAgent {
    let check = ViewCheck {
        uid,
        compared: 7,
        differences: differences.iter().map(|text| (*text).to_owned()).collect(),
    };
    let list = vec![check];
    FromAgent::ViewsChecked {
        request,
        list,
        last,
    }
}

fn status(nodes: Option<&str>) -> Request {
    let nodes = nodes.map(str::to_owned);
    Request::Views { nodes }
}

fn check(nodes: Option<&str>) -> Request {
    let nodes = nodes.map(str::to_owned);
    Request::CheckViews { nodes }
}

/// The nodes that are asked, and the number of the question.
fn asked(effects: &[Effect]) -> Vec<(NodeId, u64)> {
    let number = |effect: &Effect| match effect {
        Effect::ToNode(
            node,
            ToAgent::ListViews { request } | ToAgent::CheckViews { request, .. },
        ) => Some((*node, *request)),
        _ => None,
    };
    effects.iter().filter_map(number).collect()
}

/// Views that a command is told of, as node and user, and the nodes that are missed.
type Told = (Vec<(String, u32)>, Vec<String>);

fn told(effects: &[Effect]) -> Option<Told> {
    effects.iter().find_map(|effect| match effect {
        Effect::Reply(_, Reply::Views { list, silent }) => {
            let views = list.iter().map(|info| (info.node.clone(), info.view.uid));
            Some((views.collect(), silent.clone()))
        }
        Effect::Reply(_, Reply::ViewsChecked { list, silent }) => {
            let of_node = |node: &wiglaf_wire::client::NodeCheck| {
                let name = node.node.clone();
                let uids: Vec<_> = node.views.iter().map(|view| view.uid).collect();
                uids.into_iter().map(move |uid| (name.clone(), uid))
            };
            Some((list.iter().flat_map(of_node).collect(), silent.clone()))
        }
        _ => None,
    })
}

fn on(node: &str, uid: u32) -> (String, u32) {
    (node.to_owned(), uid)
}

#[test]
fn views_of_all_connected_nodes_are_gathered_in_parts() {
    let mut world = world();
    let effects = world.event(Event::Request(as_user(0), status(None)));
    let [(N1, request), (N2, again)] = asked(&effects)[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(request, again);
    let parts = [
        (N2, views(request, &[1000], true)),
        (N1, views(request, &[1001, 0], false)),
        // Another kind of answer, another number, a node that was not asked: not listened to.
        (N1, checked(request, 5, &[], true)),
        (N1, views(request + 1, &[6], true)),
        (N3, views(request, &[7], true)),
    ];
    for (node, part) in parts {
        let effects = world.event(Event::FromNode(node, part));
        assert_eq!(told(&effects), None);
    }
    let last = views(request, &[1000], true);
    let effects = world.event(Event::FromNode(N1, last));
    let expected = vec![on("n1", 0), on("n1", 1000), on("n1", 1001), on("n2", 1000)];
    assert_eq!(told(&effects), Some((expected, vec![])));
}

#[test]
fn s3_an_ordinary_user_is_told_of_no_others_views() {
    let mut world = world();
    let effects = world.event(Event::Request(as_user(1000), status(Some("n1"))));
    let [(N1, request)] = asked(&effects)[..] else {
        panic!("{effects:?}");
    };
    let answer = views(request, &[0, 1000, 1001], true);
    let effects = world.event(Event::FromNode(N1, answer));
    assert_eq!(told(&effects), Some((vec![on("n1", 1000)], vec![])));

    let effects = world.event(Event::Request(as_user(1000), check(Some("n1"))));
    let asks_for_own = |effect: &Effect| {
        matches!(
            effect,
            Effect::ToNode(
                N1,
                ToAgent::CheckViews {
                    uid: Some(1000),
                    ..
                }
            )
        )
    };
    assert!(effects.iter().any(asks_for_own), "{effects:?}");
    let [(N1, request)] = asked(&effects)[..] else {
        panic!("{effects:?}");
    };
    // Even if the node says more than it was asked.
    world.event(Event::FromNode(
        N1,
        checked(request, 0, &["/root/secret"], false),
    ));
    let effects = world.event(Event::FromNode(N1, checked(request, 1000, &[], true)));
    assert_eq!(told(&effects), Some((vec![on("n1", 1000)], vec![])));
}

#[test]
fn s3_deputies_hear_of_a_check_before_the_nodes_and_only_those_concerned() {
    let allowed = |effects: &[Effect]| -> Vec<_> {
        let allow = |(at, effect): (usize, &Effect)| match effect {
            Effect::ToDeputy(deputy, ToDeputy::AllowCheck { node, .. }) => {
                Some((at, *deputy, *node))
            }
            _ => None,
        };
        effects.iter().enumerate().filter_map(allow).collect()
    };
    let mut world = world();
    let effects = world.event(Event::Request(as_user(1001), check(None)));
    assert_eq!(allowed(&effects), vec![]);
    let effects = world.event(Event::Request(as_user(1000), status(None)));
    assert_eq!(allowed(&effects), vec![]);
    for uid in [0, 1000] {
        // The third node is not there.
        let effects = world.event(Event::Request(as_user(uid), check(Some("n[1-3]"))));
        assert_eq!(allowed(&effects), [(0, DEPUTY, N1), (1, DEPUTY, N2)]);
        assert_eq!(asked(&effects).len(), 2);
    }
}

#[test]
fn nodes_that_do_not_answer_are_named() {
    let mut world = world();
    // One is not there at all, one is lost meanwhile, one has answered.
    let effects = world.event(Event::Request(as_user(0), check(Some("n[1-3]"))));
    let request = asked(&effects)[0].1;
    world.event(Event::FromNode(N1, checked(request, 1000, &[], true)));
    let effects = world.event(Event::NodeLost(N2));
    let silent = vec!["n3".to_owned(), "n2".to_owned()];
    assert_eq!(told(&effects), Some((vec![on("n1", 1000)], silent)));

    // One says nothing more: what it has said does not count as its answer.
    let effects = world.event(Event::Request(as_user(0), check(Some("n1"))));
    let request = asked(&effects)[0].1;
    world.event(Event::FromNode(N1, checked(request, 1000, &[], false)));
    let deadline = world.reactor.next_deadline_ms().unwrap();
    assert!(deadline > world.now_ms);
    while world.now_ms < deadline + 60_000 {
        // Its lease is renewed all the while.
        world.now_ms += LEASE_MS / 2;
        let renew = FromAgent::Renew {
            sequence: 1,
            load_centi: 0,
            available_kib: 0,
        };
        let effects = world.event(Event::FromNode(N1, renew));
        if let Some(told) = told(&effects) {
            assert_eq!(told, (vec![], vec!["n1".to_owned()]));
            return;
        }
    }
    panic!("the command waits for ever");
}

#[test]
fn a_node_set_that_names_no_node_is_refused() {
    let mut world = world();
    for request in [status(Some("n9")), check(Some("n[1-"))] {
        let effects = world.event(Event::Request(as_user(0), request));
        assert!(matches!(
            effects.as_slice(),
            [Effect::Reply(_, Reply::Refused { .. })]
        ));
    }
}

#[test]
fn s1_differences_without_end_are_cut_and_still_differences() {
    let mut world = world();
    let effects = world.event(Event::Request(as_user(0), check(Some("n1"))));
    let request = asked(&effects)[0].1;
    let long = "x".repeat(1 << 18);
    for last in [false, false, true] {
        let effects = world.event(Event::FromNode(
            N1,
            checked(request, 1000, &[&long, &long, &long], last),
        ));
        let Some(Effect::Reply(_, Reply::ViewsChecked { list, .. })) = effects.last() else {
            continue;
        };
        let bytes: usize = list[0]
            .views
            .iter()
            .flat_map(|view| &view.differences)
            .map(String::len)
            .sum();
        assert!(bytes < (1 << 20) + 100, "{bytes}");
        let counts: Vec<_> = list[0]
            .views
            .iter()
            .map(|view| view.differences.len())
            .collect();
        assert_eq!(counts, [3, 2, 1]);
        assert_eq!(list[0].views[2].differences, ["3 more"]);
        return;
    }
    panic!("no answer");
}

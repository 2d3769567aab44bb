//! Clients that stay to hear how their tasks end.

use super::*;

impl World {
    fn followed(&mut self) -> TaskId {
        self.join(vec![]);
        let mut request = run_request(0);
        request.follow = true;
        self.event(Event::Request(caller(), Request::Run(Box::new(request))));
        self.event(ghost());
        let ready = FromDeputy::Ready { tasks: vec![] };
        self.event(Event::FromDeputy(DEPUTY, ready));
        let task = TaskId {
            job: JobId(1),
            index: 0,
        };
        self.event(Event::FromKeeper(FromKeeper::Seized { task }));
        self.event(Event::FromNode(N1, FromAgent::Started { task }));
        task
    }
}

fn told(effects: &[Effect]) -> Vec<Status> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Reply(ClientId(9), Reply::Ended { status, .. }) => Some(status.clone()),
            _ => None,
        })
        .collect()
}

#[test]
fn who_follows_is_told_once_and_before_the_ghost_ends() {
    let mut world = World::new();
    let task = world.followed();
    let mut effects = world.ended(task, Status::Exited(3));
    effects.extend(world.ended(task, Status::Exited(3)));
    effects.extend(world.event(Event::FromKeeper(FromKeeper::Gone { task })));
    assert_eq!(told(&effects), [Status::Exited(3)]);
    let reply = effects
        .iter()
        .position(|e| matches!(e, Effect::Reply(_, Reply::Ended { .. })));
    let finish = effects
        .iter()
        .position(|e| matches!(e, Effect::ToKeeper(ToKeeper::Finish { .. })));
    assert!(reply < finish && finish.is_some());
}

#[test]
fn who_follows_hears_of_the_clusters_failure_in_the_users_stead() {
    let mut world = World::new();
    world.followed();
    let effects = world.event(Event::NodeProvenDead(N1));
    assert!(says(&effects).is_none());
    assert!(matches!(told(&effects).as_slice(), [Status::Failed { .. }]));
    assert_eq!(finishes(&effects), [GhostEnd::Exit(125)]);
}

#[test]
fn a_follower_that_has_gone_leaves_the_word_to_the_user() {
    let mut world = World::new();
    world.followed();
    world.event(Event::ClientGone(ClientId(9)));
    let effects = world.event(Event::NodeProvenDead(N1));
    assert!(says(&effects).is_some());
    assert!(told(&effects).is_empty());
}

#[test]
fn a_followed_tasks_own_125_is_told_from_the_clusters_by_its_ghost() {
    let text_of = |status: Status, has_follower: bool| {
        let mut world = World::new();
        let task = world.followed();
        if !has_follower {
            world.event(Event::ClientGone(ClientId(9)));
        }
        let effects = world.ended(task, status);
        let mut texts = effects.iter().filter_map(|effect| match effect {
            Effect::ToKeeper(ToKeeper::Finish { text, .. }) => Some(text.clone()),
            _ => None,
        });
        texts.next().expect("its ghost ends")
    };
    for has_follower in [true, false] {
        let text = text_of(Status::Exited(125), has_follower).expect("it is told");
        assert!(text.ends_with("exited with 125 of itself"), "{text}");
        assert_eq!(text_of(Status::Exited(1), has_follower), None);
    }
}

#[test]
fn nothing_is_added_to_a_followed_tasks_environment() {
    let mut world = World::new();
    let task = world.followed();
    let (job, task) = world.reactor.task(task).unwrap();
    assert!(job.spec_for(task, "n1").env.is_empty());
}

use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::mount::Answer;

const USER: u32 = 1000;

/// Keeps the questions for the test to answer.
#[derive(Default)]
struct Asked {
    questions: Mutex<Vec<(u32, ViewAsk, Answer)>>,
}

impl Asked {
    fn next(&self) -> (u32, ViewAsk, Answer) {
        locked(&self.questions).remove(0)
    }
}

impl Ask for Asked {
    fn ask(&self, uid: u32, what: ViewAsk, reply: Answer) {
        locked(&self.questions).push((uid, what, reply));
    }
}

fn routes() -> (Arc<Asked>, Arc<Routes>) {
    let asked = Arc::new(Asked::default());
    let ask: Arc<dyn Ask + Send + Sync> = asked.clone();
    (asked, Arc::new(Routes::new(&["proc"], ask)))
}

fn file(node: u64, ino: u64, mode: u32) -> Result<ViewReply, i32> {
    Ok(ViewReply::Attributes(ViewAttributes {
        node,
        ino,
        mode,
        links: 1,
        uid: 0,
        gid: 0,
        size: 0,
        blocks: 0,
        rdev: 0,
        times: [(0, 0); 3],
    }))
}

fn then<T: Send + 'static>() -> (Then<T>, Receiver<Result<T, Errno>>) {
    let (sender, receiver) = channel();
    let then = move |result| sender.send(result).expect("the test waits");
    (Box::new(then), receiver)
}

fn look_up(routes: &Arc<Routes>, parent: u64, name: &str) -> Receiver<Result<Found, Errno>> {
    let (then, receiver) = then();
    routes.lookup(USER, parent, name.as_bytes().to_vec(), then);
    receiver
}

#[test]
fn every_question_ends_once() {
    let (asked, routes) = routes();
    let (lost, dropped, odd) = (
        look_up(&routes, ROOT, "a"),
        look_up(&routes, ROOT, "b"),
        look_up(&routes, ROOT, "c"),
    );
    drop(asked.questions.lock().expect("lock").remove(1));
    assert_eq!(dropped.recv().expect("an answer").err(), Some(Errno::IO));
    let (_, _, reply) = locked(&asked.questions).remove(1);
    reply(Ok(ViewReply::Data(Vec::new())));
    assert_eq!(odd.recv().expect("an answer").err(), Some(Errno::IO));
    routes.lose(USER);
    assert_eq!(lost.recv().expect("an answer").err(), Some(Errno::NOTCONN));
    // Too late.
    asked.next().2(file(2, 50, 0o100_644));
    assert!(lost.recv().is_err());
    routes.close();
    let closed = look_up(&routes, ROOT, "d");
    assert_eq!(
        closed.recv().expect("an answer").err(),
        Some(Errno::NOTCONN)
    );
    assert!(locked(&routes.waiting).answers.is_empty());
}

#[test]
fn the_nodes_own_directories_are_nobodys_question() {
    let (asked, routes) = routes();
    let own = look_up(&routes, ROOT, "proc")
        .recv()
        .expect("an answer")
        .expect("found");
    assert!(own.good == Good::Forever && own.node == OWN_FIRST);
    let inside = look_up(&routes, own.node, "self")
        .recv()
        .expect("an answer");
    assert_eq!(inside.err(), Some(Errno::NOENT));
    let handle = routes.open_directory(USER, own.node);
    let (then_entries, entries) = then();
    routes.read_directory(handle, 0, then_entries);
    assert!(
        entries
            .recv()
            .expect("an answer")
            .expect("entries")
            .entries
            .is_empty()
    );
    assert!(locked(&asked.questions).is_empty());
}

#[test]
fn a_new_deputy_is_led_to_the_file_and_a_wrong_one_is_given_back() {
    let (asked, routes) = routes();
    let directory = look_up(&routes, ROOT, "dir");
    asked.next().2(file(2, 50, 0o040_755));
    let directory = directory.recv().expect("an answer").expect("found").node;
    let inside = look_up(&routes, directory, "file");
    asked.next().2(file(3, 51, 0o100_644));
    let inside = inside.recv().expect("an answer").expect("found").node;
    routes.lose(USER);

    let (then_link, link) = then();
    routes.read_link(USER, inside, then_link);
    let (_, what, reply) = asked.next();
    let asked_for = |parent, name: &str| ViewAsk::Lookup {
        parent,
        name: name.into(),
    };
    assert_eq!(what, asked_for(ROOT, "dir"));
    reply(file(8, 50, 0o040_755));
    let (_, what, reply) = asked.next();
    assert_eq!(what, asked_for(8, "file"));
    reply(file(9, 99, 0o100_644));
    assert_eq!(link.recv().expect("an answer"), Err(Errno::STALE));
    assert_eq!(asked.next().1, ViewAsk::Forget { node: 9, count: 1 });
}

#[test]
fn a_listing_is_taken_in_parts_and_asked_once() {
    let (asked, routes) = routes();
    let handle = routes.open_directory(USER, ROOT);
    let list = |offset| {
        let (then_entries, entries) = then();
        routes.read_directory(handle, offset, then_entries);
        entries
    };
    let entry = |next| ViewEntry {
        name: vec![b'x'],
        ino: 5,
        kind: 8,
        next,
    };
    let first = list(0);
    asked.next().2(Ok(ViewReply::Entries(vec![
        entry(70),
        entry(30),
        entry(90),
    ])));
    assert_eq!(first.recv().expect("an answer").expect("entries").skip, 0);
    assert_eq!(
        list(30).recv().expect("an answer").expect("entries").skip,
        2
    );
    let rest = list(90);
    let (_, what, reply) = asked.next();
    assert_eq!(
        what,
        ViewAsk::ReadDirectory {
            node: 1,
            offset: 90
        }
    );
    reply(Ok(ViewReply::Entries(Vec::new())));
    assert!(
        rest.recv()
            .expect("an answer")
            .expect("entries")
            .entries
            .is_empty()
    );
    // Starting over asks anew.
    let _again = list(0);
    assert!(matches!(
        asked.next().1,
        ViewAsk::ReadDirectory { offset: 0, .. }
    ));
}

#[test]
fn a_peers_nonsense_is_an_errno() {
    assert_eq!(errno(0), Errno::IO);
    assert_eq!(errno(-2), Errno::IO);
    assert_eq!(errno(i32::MAX), Errno::IO);
    assert_eq!(errno(13), Errno::ACCESS);
    let (asked, routes) = routes();
    let handle = routes.open_directory(USER, ROOT);
    let (then_data, data) = then();
    routes.read(handle, 0, 4, then_data);
    asked.next().2(Ok(ViewReply::Data(vec![0; 5])));
    assert_eq!(data.recv().expect("an answer"), Err(Errno::IO));
}

#[test]
fn root_without_a_deputy_drops_nobodys_cache() {
    let (asked, routes) = routes();
    let known = look_up(&routes, ROOT, "etc");
    asked.next().2(file(2, 50, 0o040_755));
    let known = known.recv().expect("an answer").expect("found").node;
    let as_root = |name: &str| {
        let (then_found, found) = then();
        routes.lookup(0, ROOT, name.as_bytes().to_vec(), then_found);
        let (uid, _, reply) = asked.next();
        assert_eq!(uid, 0);
        reply(Err(Errno::ACCESS.raw_os_error()));
        found.recv().expect("an answer")
    };
    let found = as_root("etc").expect("as told");
    assert_eq!((found.node, found.good), (known, Good::Once));
    assert_eq!(as_root("unknown").err(), Some(Errno::ACCESS));
    // The kernel was told twice.
    routes.forget(known, 1);
    assert!(locked(&routes.table).walk(USER, known).is_ok());
    routes.forget(known, 1);
    assert!(locked(&routes.table).walk(USER, known).is_err());
}

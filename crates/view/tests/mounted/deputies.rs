//! Deputies for the tests: processes with a user's rights that answer over pipes.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use wiglaf_view::{Answer, Ask, Export};
use wiglaf_wire::frame::{Frame, put_message, take};
use wiglaf_wire::stream::{ViewAnswer, ViewAsk, ViewQuestion};

/// First argument of a deputy's process.
pub(crate) const DEPUTY: &str = "--deputy";
/// The uid that a deputy's process has for signals.
const SERVICE: u32 = 65_533;

/// All deputies of a test.
#[derive(Default)]
pub(crate) struct Deputies {
    links: Mutex<HashMap<u32, Arc<Link>>>,
    hidden: Mutex<PathBuf>,
    asked: Mutex<Vec<ViewAsk>>,
}

struct Link {
    child: Mutex<Child>,
    questions: Mutex<ChildStdin>,
    waiting: Mutex<(u64, HashMap<u64, Answer>)>,
}

impl Deputies {
    pub(crate) fn hiding(path: &Path) -> Arc<Deputies> {
        let deputies = Deputies::default();
        path.clone_into(&mut deputies.hidden.lock().expect("lock"));
        Arc::new(deputies)
    }

    /// Starts the deputy of a user whose gid is its uid.
    pub(crate) fn start(&self, uid: u32) {
        let mut child = Command::new(std::env::current_exe().expect("our own name"))
            .arg(DEPUTY)
            .arg(uid.to_string())
            .arg(&*self.hidden.lock().expect("lock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a deputy");
        let answers = child.stdout.take().expect("a pipe");
        let link = Arc::new(Link {
            questions: Mutex::new(child.stdin.take().expect("a pipe")),
            child: Mutex::new(child),
            waiting: Mutex::default(),
        });
        let reader = Arc::clone(&link);
        std::thread::spawn(move || reader.read_answers(answers));
        self.links.lock().expect("lock").insert(uid, link);
    }

    /// Ends a deputy, as a crash would.
    pub(crate) fn kill(&self, uid: u32) {
        let link = self.links.lock().expect("lock").remove(&uid);
        let link = link.expect("a deputy");
        let mut child = link.child.lock().expect("lock");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// The lengths of all reads so far.
    pub(crate) fn reads(&self) -> Vec<u32> {
        let length = |asked: &ViewAsk| match asked {
            ViewAsk::Read { length, .. } if *length > 0 => Some(*length),
            _ => None,
        };
        let asked = self.asked.lock().expect("lock");
        asked.iter().filter_map(length).collect()
    }
}

impl Ask for Deputies {
    fn ask(&self, uid: u32, what: ViewAsk, reply: Answer) {
        self.asked.lock().expect("lock").push(what.clone());
        let link = self.links.lock().expect("lock").get(&uid).cloned();
        let Some(link) = link else {
            return reply(Err(Errno::ACCESS.raw_os_error()));
        };
        let id = {
            let mut waiting = link.waiting.lock().expect("lock");
            waiting.0 += 1;
            let id = waiting.0;
            waiting.1.insert(id, reply);
            id
        };
        let mut bytes = Vec::new();
        put_message(&mut bytes, &ViewQuestion { id, what }).expect("a small message");
        // A deputy that has ended answers no more; its link's end is what the test tells.
        let _ = link.questions.lock().expect("lock").write_all(&bytes);
    }
}

impl Drop for Deputies {
    fn drop(&mut self) {
        let links = std::mem::take(&mut *self.links.lock().expect("lock"));
        for link in links.into_values() {
            let mut child = link.child.lock().expect("lock");
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Link {
    fn read_answers(&self, mut pipe: ChildStdout) {
        let mut bytes = Vec::new();
        while let Some(answer) = next::<ViewAnswer>(&mut pipe, &mut bytes) {
            let reply = self.waiting.lock().expect("lock").1.remove(&answer.id);
            if let Some(reply) = reply {
                reply(answer.result);
            }
        }
    }
}

/// The deputy's process.
pub(crate) fn serve(arguments: &[String]) {
    let uid: u32 = arguments[0].parse().expect("a uid");
    if uid != 0 {
        wiglaf_linux::creds::become_deputy(SERVICE, SERVICE, uid, uid, &[]).expect("a deputy");
    }
    let mut export = Export::new(vec![PathBuf::from(&arguments[1])]).expect("an export");
    let (mut input, mut output) = (std::io::stdin(), std::io::stdout());
    let mut bytes = Vec::new();
    while let Some(question) = next::<ViewQuestion>(&mut input, &mut bytes) {
        let mut answer = Vec::new();
        put_message(&mut answer, &export.answer(question)).expect("a bounded answer");
        if output
            .write_all(&answer)
            .and_then(|()| output.flush())
            .is_err()
        {
            return;
        }
    }
}

fn next<M: serde::de::DeserializeOwned>(input: &mut impl Read, bytes: &mut Vec<u8>) -> Option<M> {
    const CHUNK_BYTES: usize = 64 << 10;
    loop {
        if let Some((frame, used)) = take::<M>(bytes).expect("a frame") {
            let Frame::Message(message) = frame else {
                panic!("data among messages")
            };
            bytes.drain(..used);
            return Some(message);
        }
        let mut chunk = [0; CHUNK_BYTES];
        let read = input.read(&mut chunk).ok()?;
        if read == 0 {
            return None;
        }
        bytes.extend_from_slice(&chunk[..read]);
    }
}

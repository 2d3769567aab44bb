//! Questions that are passed on, until they are answered: which server is asked, for how long, and
//! what is believed.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::message::{self, Code, Question, Wrong};
use super::names::Names;

/// Questions under way.
pub const MAX_QUESTIONS: usize = 512;
/// Questions under way of one address.
pub const MAX_QUESTIONS_PER_ADDRESS: usize = 64;
/// A server that has not answered by then is asked no longer, and the next one is. The C library
/// gives up after 5 s.
const PATIENCE_MS: u64 = 1_500;
/// Servers that are asked one after the other, from the first again if there are fewer.
const MAX_TRIES: usize = 3;
/// SERVFAIL and REFUSED: another server may know more.
const UNHELPFUL: [u16; 2] = [2, 5];

/// A question under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u64);

/// Who asks by UDP, and on which wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asker {
    /// Behind which interface.
    pub wire: u64,
    /// From where.
    pub peer: SocketAddrV4,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Tell the asker.
    Answer(Asker, Vec<u8>),
    /// Ask a server, by a socket that hears nobody else and whose port nobody can guess. What was
    /// asked under this key before is of no interest any more.
    Ask(Key, SocketAddr, Vec<u8>),
    /// Nothing more is asked under this key.
    Close(Key),
}

/// All of them.
#[derive(Debug, Default)]
pub struct Relay {
    asked: BTreeMap<Key, Asked>,
    by_asker: HashMap<(Asker, u16), Key>,
    by_address: HashMap<Ipv4Addr, usize>,
    next: u64,
    /// The server that answered last is asked first.
    first: usize,
}

#[derive(Debug)]
struct Asked {
    asker: Asker,
    question: Question,
    query: Vec<u8>,
    id: u16,
    server: usize,
    tries: usize,
    due_ms: u64,
    /// What a server said that may be said better by another.
    unhelpful: Option<Vec<u8>>,
}

impl Relay {
    /// Somebody asks who may. `own` is the head's address on that wire, `random` a number that
    /// nobody can guess.
    pub fn query(
        &mut self,
        now_ms: u64,
        asker: Asker,
        message: &[u8],
        (names, servers, own): (&Names, &[SocketAddr], Ipv4Addr),
        random: u16,
    ) -> Option<Effect> {
        let question = match message::parse_question(message) {
            Ok(question) => question,
            Err(Wrong::Mute) => return None,
            Err(Wrong::Answered(code)) => {
                let answer = message::bare_refusal(message, code)?;
                return Some(Effect::Answer(asker, answer));
            }
        };
        if let Some(answer) = names.answer(&question, own) {
            let answer = fitting(&question, answer);
            return Some(Effect::Answer(asker, answer));
        }
        let Some(&server) = servers.get(self.first % servers.len().max(1)) else {
            let answer = question.refusal(Code::Failure);
            return Some(Effect::Answer(asker, answer));
        };
        // It was asked twice, and is answered once.
        if self.by_asker.contains_key(&(asker, question.id)) {
            return None;
        }
        let of_address = self.by_address.entry(*asker.peer.ip()).or_default();
        if self.asked.len() >= MAX_QUESTIONS || *of_address >= MAX_QUESTIONS_PER_ADDRESS {
            if *of_address == 0 {
                self.by_address.remove(asker.peer.ip());
            }
            // It asks again.
            return None;
        }
        *of_address += 1;
        self.next += 1;
        let key = Key(self.next);
        self.by_asker.insert((asker, question.id), key);
        let query = message::with_id(message, random);
        let asked = Asked {
            asker,
            question,
            query: query.clone(),
            id: random,
            server: self.first % servers.len(),
            tries: 1,
            due_ms: now_ms + PATIENCE_MS,
            unhelpful: None,
        };
        self.asked.insert(key, asked);
        Some(Effect::Ask(key, server, query))
    }

    /// A server says something to what was asked under this key.
    pub fn reply(
        &mut self,
        now_ms: u64,
        key: Key,
        message: &[u8],
        servers: &[SocketAddr],
    ) -> Vec<Effect> {
        let Some(asked) = self.asked.get_mut(&key) else {
            return Vec::new();
        };
        if !message::is_answer_to(message, asked.id, &asked.question.bytes) {
            // The right one may still come.
            return Vec::new();
        }
        let answer = message::with_id(message, asked.question.id);
        if message::code_of(message).is_some_and(|code| UNHELPFUL.contains(&code)) {
            asked.unhelpful = Some(answer);
            return self.go_on(now_ms, key, servers);
        }
        self.first = asked.server;
        self.finish(key, answer)
    }

    /// The server can't be reached.
    pub fn failed(&mut self, now_ms: u64, key: Key, servers: &[SocketAddr]) -> Vec<Effect> {
        self.go_on(now_ms, key, servers)
    }

    /// When [`Relay::tick`] has something to do.
    pub fn due_ms(&self) -> Option<u64> {
        self.asked.values().map(|asked| asked.due_ms).min()
    }

    /// Servers that have taken too long.
    pub fn tick(&mut self, now_ms: u64, servers: &[SocketAddr]) -> Vec<Effect> {
        let late = self.asked.iter().filter(|(_, one)| one.due_ms <= now_ms);
        let late: Vec<Key> = late.map(|(key, _)| *key).collect();
        let mut effects = Vec::new();
        for key in late {
            effects.extend(self.go_on(now_ms, key, servers));
        }
        effects
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.asked.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// Asks the next server, or gives up.
    fn go_on(&mut self, now_ms: u64, key: Key, servers: &[SocketAddr]) -> Vec<Effect> {
        let Some(asked) = self.asked.get_mut(&key) else {
            return Vec::new();
        };
        if asked.tries < MAX_TRIES && !servers.is_empty() {
            asked.tries += 1;
            asked.server = (asked.server + 1) % servers.len();
            asked.due_ms = now_ms + PATIENCE_MS;
            let ask = Effect::Ask(key, servers[asked.server], asked.query.clone());
            return vec![ask];
        }
        let refusal = asked.question.refusal(Code::Failure);
        let answer = asked.unhelpful.take().unwrap_or(refusal);
        self.finish(key, answer)
    }

    fn finish(&mut self, key: Key, answer: Vec<u8>) -> Vec<Effect> {
        let Some(asked) = self.asked.remove(&key) else {
            return Vec::new();
        };
        self.by_asker.remove(&(asked.asker, asked.question.id));
        let address = asked.asker.peer.ip();
        if let Some(count) = self.by_address.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(address);
            }
        }
        let answer = fitting(&asked.question, answer);
        vec![Effect::Answer(asked.asker, answer), Effect::Close(key)]
    }
}

/// What the asker takes by UDP; if that is less, it asks again by TCP.
fn fitting(question: &Question, answer: Vec<u8>) -> Vec<u8> {
    if answer.len() <= question.room {
        answer
    } else {
        question.truncated()
    }
}

/// What becomes of a question by TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This is the answer.
    Answer(Vec<u8>),
    /// A server knows it.
    Ask(Question),
    /// It is no question: nobody is answered.
    Nonsense,
}

/// Looks at a question that came by TCP.
pub fn judge(message: &[u8], names: &Names, own: Ipv4Addr) -> Verdict {
    match message::parse_question(message) {
        Ok(question) => match names.answer(&question, own) {
            Some(answer) => Verdict::Answer(answer),
            None => Verdict::Ask(question),
        },
        Err(Wrong::Answered(code)) => {
            message::bare_refusal(message, code).map_or(Verdict::Nonsense, Verdict::Answer)
        }
        Err(Wrong::Mute) => Verdict::Nonsense,
    }
}

//! The shell's grammar, as far as it tells which words are commands.

use super::lex::{Pending, Token};
use super::{Command, Directory, Line, MAX_COMMANDS, Word};

/// Reads one line, or the text of one substitution.
pub(super) struct Parser<'a> {
    pub(super) input: &'a [u8],
    pub(super) at: usize,
    pub(super) depth: usize,
    /// An unmatched `)` ends the text.
    pub(super) closes: bool,
    pub(super) line: &'a mut Line,
    pub(super) pending: Vec<Pending>,
    pub(super) directory: Directory,
    is_substituted: bool,
    open: Vec<Open>,
    command: Command,
}

/// What has begun and not ended.
#[derive(Debug, PartialEq, Eq)]
enum Open {
    If,
    Loop,
    Case,
    Brace,
    /// With the directory outside of it.
    Subshell(Directory),
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A command, or a reserved word.
    Start,
    /// A command's arguments.
    Arguments,
    /// A compound command has ended.
    After,
    /// The name behind `for`.
    ForName,
    /// `in`, or `do`.
    ForIn,
    /// The words behind `in`.
    ForWords,
    /// What `case` looks at.
    CaseWord,
    /// `in` behind it.
    CaseIn,
    /// A pattern, or `esac`.
    Pattern,
    /// The rest of a pattern.
    PatternRest,
    /// Between `[[` and `]]`.
    Test,
    /// The name behind `function`.
    FunctionName,
    /// `()` behind a function's name, or its body.
    FunctionParentheses,
}

impl<'a> Parser<'a> {
    pub(super) fn new(
        input: &'a [u8],
        depth: usize,
        is_substituted: bool,
        line: &'a mut Line,
    ) -> Parser<'a> {
        Parser {
            input,
            at: 0,
            depth,
            closes: false,
            line,
            pending: Vec::new(),
            directory: Directory::Start,
            is_substituted,
            open: Vec::new(),
            command: Command::default(),
        }
    }

    /// To the end of the text, or to the `)` that closes it.
    pub(super) fn run(&mut self) {
        let mut state = State::Start;
        loop {
            let token = self.token();
            if state == State::Test {
                match token {
                    Token::End => {}
                    Token::Word(word) => {
                        if word.is_plain() && word.text == b"]]" {
                            state = State::After;
                        }
                        continue;
                    }
                    _ => continue,
                }
                self.line.is_opaque("a test without an end");
                return;
            }
            state = match token {
                Token::End => {
                    self.finish(false);
                    let is_over = matches!(state, State::Start | State::Arguments | State::After);
                    let is_open = self.closes || !self.open.is_empty();
                    if is_open || !is_over || !self.pending.is_empty() {
                        self.line.is_opaque("it ends too early");
                    }
                    return;
                }
                Token::Next | Token::Background if is_pattern(state) => {
                    // Only newlines may stand between patterns.
                    State::Pattern
                }
                Token::Next => {
                    self.finish(false);
                    match state {
                        State::ForIn | State::CaseIn => state,
                        State::FunctionParentheses => state,
                        _ => State::Start,
                    }
                }
                Token::Background => {
                    self.line.background = true;
                    self.finish(false);
                    State::Start
                }
                Token::Pipe if is_pattern(state) => State::PatternRest,
                Token::Pipe => {
                    self.finish(true);
                    self.command.is_fed = true;
                    State::Start
                }
                Token::CaseEnd => {
                    self.finish(false);
                    if self.open.last() != Some(&Open::Case) {
                        self.line.is_opaque("`;;` outside of `case`");
                    }
                    State::Pattern
                }
                Token::Open => self.opening(state),
                Token::Close => match self.closing(state) {
                    Some(state) => state,
                    None => return,
                },
                Token::Redirection(redirection) => {
                    self.command.redirections.push(redirection);
                    state
                }
                Token::Word(word) => self.take(state, word),
            };
        }
    }

    fn opening(&mut self, state: State) -> State {
        match state {
            State::Start => {
                if self.command.assignments.is_empty() {
                    self.open.push(Open::Subshell(self.directory.clone()));
                    return State::Start;
                }
                // bash's `NAME=(…)`: words, no commands.
                self.open.push(Open::Subshell(self.directory.clone()));
                State::ForWords
            }
            State::Pattern => State::PatternRest,
            // `declare -A NAME=(…)`
            State::Arguments if self.command.words.last().is_some_and(Word::is_assignment) => {
                self.open.push(Open::Subshell(self.directory.clone()));
                State::ForWords
            }
            State::Arguments if self.command.words.len() == 1 => {
                let name = self.command.words.pop().unwrap_or_default();
                self.define(name);
                self.command = Command::default();
                State::FunctionParentheses
            }
            State::FunctionParentheses => State::FunctionParentheses,
            _ => {
                self.line.is_opaque("a parenthesis where none may be");
                self.open.push(Open::Subshell(self.directory.clone()));
                State::Start
            }
        }
    }

    /// `None`: the text ends here.
    fn closing(&mut self, state: State) -> Option<State> {
        match state {
            State::PatternRest => return Some(State::Start),
            State::FunctionParentheses => return Some(State::Start),
            _ => {}
        }
        self.finish(false);
        match self.open.pop() {
            Some(Open::Subshell(outside)) => {
                self.directory = outside;
                Some(State::After)
            }
            Some(other) => {
                self.line.is_opaque("a parenthesis where none may be");
                if self.closes {
                    return None;
                }
                self.open.push(other);
                Some(State::After)
            }
            None if self.closes => None,
            None => {
                self.line.is_opaque("a parenthesis where none may be");
                Some(State::Start)
            }
        }
    }

    fn take(&mut self, state: State, word: Word) -> State {
        let is = |text: &[u8]| word.is_plain() && word.text == text;
        match state {
            State::ForName => State::ForIn,
            State::ForIn if is(b"do") => State::Start,
            State::ForIn | State::ForWords => State::ForWords,
            State::CaseWord => State::CaseIn,
            State::CaseIn => {
                if !is(b"in") {
                    self.line.is_opaque("`case` without `in`");
                }
                State::Pattern
            }
            State::Pattern if is(b"esac") => self.close(&Open::Case),
            State::Pattern | State::PatternRest => State::PatternRest,
            State::FunctionName => {
                self.define(word);
                State::FunctionParentheses
            }
            State::FunctionParentheses | State::Start | State::After => {
                if self.command.words.is_empty()
                    && self.command.assignments.is_empty()
                    && word.is_plain()
                    && let Some(state) = self.reserved(&word.text, state)
                {
                    return state;
                }
                if state == State::After {
                    self.line.is_opaque("words behind a compound command");
                }
                if word.is_assignment() {
                    self.command.assignments.push(word);
                    return State::Start;
                }
                self.command.words.push(word);
                State::Arguments
            }
            State::Arguments => {
                self.command.words.push(word);
                State::Arguments
            }
            State::Test => State::Test,
        }
    }

    fn reserved(&mut self, text: &[u8], state: State) -> Option<State> {
        Some(match text {
            b"if" => self.begin(Open::If, State::Start),
            b"while" | b"until" => self.begin(Open::Loop, State::Start),
            b"for" | b"select" => self.begin(Open::Loop, State::ForName),
            b"case" => self.begin(Open::Case, State::CaseWord),
            b"{" => self.begin(Open::Brace, State::Start),
            b"then" | b"elif" | b"else" => self.within(&Open::If),
            b"do" => self.within(&Open::Loop),
            b"fi" => self.close(&Open::If),
            b"done" => self.close(&Open::Loop),
            b"esac" => self.close(&Open::Case),
            b"}" => self.close(&Open::Brace),
            b"!" if state != State::After => State::Start,
            b"[[" if state != State::After => State::Test,
            b"function" if state != State::After => State::FunctionName,
            b"coproc" if state != State::After => {
                self.line.background = true;
                State::Start
            }
            _ => return None,
        })
    }

    fn define(&mut self, name: Word) {
        if self.line.functions.len() < MAX_COMMANDS {
            self.line.functions.push(name.text);
        } else {
            self.line.is_opaque("very many functions");
        }
    }

    fn begin(&mut self, open: Open, state: State) -> State {
        self.open.push(open);
        state
    }

    fn within(&mut self, open: &Open) -> State {
        if self.open.last() != Some(open) {
            self.line.is_opaque("a reserved word where none may be");
        }
        State::Start
    }

    fn close(&mut self, open: &Open) -> State {
        self.finish(false);
        if self.open.last() == Some(open) {
            self.open.pop();
        } else {
            self.line.is_opaque("a reserved word where none may be");
        }
        State::After
    }

    /// A simple command is complete; so is a compound one with its redirections.
    fn finish(&mut self, is_piped: bool) {
        let mut command = std::mem::take(&mut self.command);
        let is_empty = command.words.is_empty()
            && command.assignments.is_empty()
            && command.redirections.is_empty();
        if is_empty {
            return;
        }
        if self.line.commands.len() >= MAX_COMMANDS {
            return self.line.is_opaque("very many commands");
        }
        command.is_substituted = self.is_substituted;
        command.directory = self.directory.clone();
        let goes = matches!(
            command.words.first(),
            Some(word) if matches!(word.text.as_slice(), b"cd" | b"pushd" | b"popd")
        );
        if goes && !is_piped {
            let is_option = |word: &&Word| !word.text.starts_with(b"-") || word.text == b"-";
            let target = command.words[1..].iter().find(is_option);
            self.directory = self.directory.after(target);
        }
        self.line.commands.push(command);
    }
}

fn is_pattern(state: State) -> bool {
    matches!(state, State::Pattern | State::PatternRest)
}

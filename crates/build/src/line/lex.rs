//! The shell's words and operators.

use super::parse::Parser;
use super::{Line, MAX_DEPTH, Redirection, RedirectionKind, Word};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Token {
    End,
    /// `;`, a newline, `&&`, `||`.
    Next,
    Background,
    Pipe,
    Open,
    Close,
    /// `;;`, `;&`, `;;&`.
    CaseEnd,
    Word(Word),
    Redirection(Redirection),
}

/// A here-document whose body begins at the next newline.
pub(super) struct Pending {
    delimiter: Vec<u8>,
    is_expanded: bool,
    strips_tabs: bool,
}

impl Parser<'_> {
    pub(super) fn token(&mut self) -> Token {
        self.skip_blanks();
        if self.peek(0) == Some(b'#') {
            while self.peek(0).is_some_and(|byte| byte != b'\n') {
                self.at += 1;
            }
        }
        let Some(byte) = self.peek(0) else {
            return Token::End;
        };
        let next = self.peek(1);
        let (length, token) = match (byte, next) {
            (b'\n', _) => {
                self.at += 1;
                self.here_documents();
                return Token::Next;
            }
            (b';', Some(b';')) => (2 + usize::from(self.peek(2) == Some(b'&')), Token::CaseEnd),
            (b';', Some(b'&')) => (2, Token::CaseEnd),
            (b';', _) => (1, Token::Next),
            (b'&', Some(b'&')) | (b'|', Some(b'|')) => (2, Token::Next),
            (b'|', Some(b'&')) => (2, Token::Pipe),
            (b'|', _) => (1, Token::Pipe),
            (b'&', Some(b'>')) => return self.redirection(Some(1)),
            (b'&', _) => (1, Token::Background),
            (b'(', _) => (1, Token::Open),
            (b')', _) => (1, Token::Close),
            (b'<' | b'>', Some(b'(')) => return Token::Word(self.word()),
            (b'<' | b'>', _) => return self.redirection(None),
            (b'0'..=b'9', _) => {
                let digits = self.input[self.at..]
                    .iter()
                    .take_while(|b| b.is_ascii_digit());
                let count = digits.count();
                if count < 6 && matches!(self.peek(count), Some(b'<' | b'>')) {
                    let text = String::from_utf8_lossy(&self.input[self.at..self.at + count]);
                    let fd = text.parse().ok();
                    self.at += count;
                    return self.redirection(fd);
                }
                return Token::Word(self.word());
            }
            _ => return Token::Word(self.word()),
        };
        self.at += length;
        token
    }

    pub(super) fn peek(&self, ahead: usize) -> Option<u8> {
        self.input.get(self.at + ahead).copied()
    }

    fn skip_blanks(&mut self) {
        loop {
            match self.peek(0) {
                Some(b' ' | b'\t' | b'\r') => self.at += 1,
                Some(b'\\') if self.peek(1) == Some(b'\n') => self.at += 2,
                _ => return,
            }
        }
    }

    fn redirection(&mut self, fd: Option<u32>) -> Token {
        let rest = &self.input[self.at..];
        let operators: [(&[u8], RedirectionKind, u32); 11] = [
            (b"<<<", RedirectionKind::Here, 0),
            (b"<<-", RedirectionKind::Here, 0),
            (b"<<", RedirectionKind::Here, 0),
            (b"<&", RedirectionKind::Duplicate, 0),
            (b"<>", RedirectionKind::Input, 0),
            (b"<", RedirectionKind::Input, 0),
            (b"&>", RedirectionKind::Output, 1),
            (b">>", RedirectionKind::Output, 1),
            (b">&", RedirectionKind::Duplicate, 1),
            (b">|", RedirectionKind::Output, 1),
            (b">", RedirectionKind::Output, 1),
        ];
        let found = operators.iter().find(|(text, ..)| rest.starts_with(text));
        let Some((operator, kind, default_fd)) = found else {
            // Only called at one of them.
            self.at += 1;
            return Token::End;
        };
        let (operator, mut kind) = (*operator, *kind);
        self.at += operator.len() + usize::from(rest.starts_with(b"&>>"));
        self.skip_blanks();
        let target = self.word();
        if target.text.is_empty() && target.exact && target.plain_bytes == 0 {
            // `> ` with nothing behind, or with an operator.
            let is_quoted = self
                .input
                .get(self.at.wrapping_sub(1))
                .is_some_and(|b| b"'\"".contains(b));
            if !is_quoted {
                self.line.is_opaque("a redirection to nowhere");
            }
        }
        if operator.starts_with(b"<<") && operator != b"<<<" {
            self.pending.push(Pending {
                is_expanded: target.plain_bytes == target.text.len(),
                delimiter: target.text.clone(),
                strips_tabs: operator == b"<<-",
            });
        }
        // bash's `>& file`.
        let is_number = target.text.iter().all(|b| b.is_ascii_digit() || *b == b'-');
        if kind == RedirectionKind::Duplicate && target.exact && !is_number {
            kind = RedirectionKind::Output;
        }
        Token::Redirection(Redirection {
            fd: fd.unwrap_or(*default_fd),
            kind,
            target,
        })
    }

    /// Skips the bodies of the here-documents that were announced.
    fn here_documents(&mut self) {
        for document in std::mem::take(&mut self.pending) {
            let start = self.at;
            let mut end = self.input.len();
            let mut found = false;
            while self.at < self.input.len() {
                let rest = &self.input[self.at..];
                let length = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
                let mut row = &rest[..length];
                while document.strips_tabs && row.first() == Some(&b'\t') {
                    row = &row[1..];
                }
                let row_start = self.at;
                self.at = (self.at + length + 1).min(self.input.len());
                if row == document.delimiter {
                    end = row_start;
                    found = true;
                    break;
                }
            }
            if !found {
                self.line.is_opaque("a here-document without an end");
            }
            if document.is_expanded {
                let body = self.input[start..end].to_vec();
                self.expansions_of(&body);
            }
        }
    }

    /// The substitutions in text that is expanded as in double quotes.
    fn expansions_of(&mut self, body: &[u8]) {
        if self.depth >= MAX_DEPTH {
            return self.line.is_opaque("nested too deeply");
        }
        let mut inner = Parser::new(body, self.depth + 1, true, self.line);
        let mut word = Word::default();
        while let Some(byte) = inner.peek(0) {
            match byte {
                b'\\' => inner.at += 2,
                b'$' => inner.dollar(&mut word, true),
                b'`' => inner.backquoted(&mut word),
                _ => inner.at += 1,
            }
        }
    }

    /// One word. Moves on by at least a byte unless it stands at an operator.
    fn word(&mut self) -> Word {
        let mut word = Word {
            exact: true,
            ..Word::default()
        };
        let mut plain = None;
        while let Some(byte) = self.peek(0) {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | b';' | b'&' | b'|' | b'(' | b')' => break,
                b'<' | b'>' if self.peek(1) == Some(b'(') && word.text.is_empty() => {
                    // Process substitution.
                    word.exact = false;
                    self.at += 2;
                    self.substitution();
                    word.text.extend(b"<(...)");
                }
                b'<' | b'>' => break,
                b'\\' => {
                    if self.peek(1) != Some(b'\n') {
                        plain.get_or_insert(word.text.len());
                        word.text.extend(self.peek(1));
                    }
                    self.at = (self.at + 2).min(self.input.len());
                }
                b'\'' => {
                    plain.get_or_insert(word.text.len());
                    self.single_quoted(&mut word);
                }
                b'"' => {
                    plain.get_or_insert(word.text.len());
                    self.double_quoted(&mut word);
                }
                b'$' => self.dollar(&mut word, false),
                b'`' => self.backquoted(&mut word),
                _ => {
                    // Names of files are put in the place of patterns.
                    let is_pattern = matches!(byte, b'*' | b'?')
                        || byte == b'~' && word.text.is_empty()
                        || byte == b']' && word.text.contains(&b'[');
                    word.exact &= !is_pattern;
                    word.text.push(byte);
                    self.at += 1;
                }
            }
        }
        word.plain_bytes = plain.unwrap_or(word.text.len());
        word
    }

    fn single_quoted(&mut self, word: &mut Word) {
        let rest = &self.input[self.at + 1..];
        let length = rest.iter().position(|byte| *byte == b'\'');
        if length.is_none() {
            self.line.is_opaque("a quote without an end");
        }
        let length = length.unwrap_or(rest.len());
        word.text.extend(&rest[..length]);
        self.at = (self.at + length + 2).min(self.input.len());
    }

    fn double_quoted(&mut self, word: &mut Word) {
        self.at += 1;
        loop {
            match self.peek(0) {
                None => return self.line.is_opaque("a quote without an end"),
                Some(b'"') => {
                    self.at += 1;
                    return;
                }
                Some(b'\\') => {
                    match self.peek(1) {
                        Some(b'\n') => {}
                        Some(byte @ (b'$' | b'`' | b'"' | b'\\')) => word.text.push(byte),
                        Some(byte) => word.text.extend([b'\\', byte]),
                        None => {}
                    }
                    self.at = (self.at + 2).min(self.input.len());
                }
                Some(b'$') => self.dollar(word, true),
                Some(b'`') => self.backquoted(word),
                Some(byte) => {
                    word.text.push(byte);
                    self.at += 1;
                }
            }
        }
    }

    /// What begins with a dollar sign. Its text is kept as it stands.
    fn dollar(&mut self, word: &mut Word, is_quoted: bool) {
        let start = self.at;
        self.at += 1;
        match self.peek(0) {
            Some(b'(') if self.peek(1) == Some(b'(') && self.arithmetic() => {}
            Some(b'(') => {
                self.at += 1;
                self.substitution();
            }
            Some(b'{') => {
                self.at += 1;
                self.braces();
            }
            Some(b'\'') if !is_quoted => self.dollar_quoted(),
            Some(b'"') if !is_quoted => {}
            Some(byte) if byte.is_ascii_alphanumeric() || byte == b'_' => {
                self.at += 1;
                let is_digit = byte.is_ascii_digit();
                while !is_digit
                    && self
                        .peek(0)
                        .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
                {
                    self.at += 1;
                }
            }
            Some(b'@' | b'*' | b'#' | b'?' | b'-' | b'$' | b'!') => self.at += 1,
            // A dollar sign for itself.
            _ => {
                word.text.push(b'$');
                return;
            }
        }
        word.exact = false;
        let end = self.at.min(self.input.len());
        word.text.extend(&self.input[start..end]);
    }

    /// `$'…'`, with bash's escapes.
    fn dollar_quoted(&mut self) {
        self.at += 1;
        loop {
            match self.peek(0) {
                None => return self.line.is_opaque("a quote without an end"),
                Some(b'\\') => self.at = (self.at + 2).min(self.input.len()),
                Some(b'\'') => {
                    self.at += 1;
                    return;
                }
                Some(_) => self.at += 1,
            }
        }
    }

    /// `${…}`: its quotes and substitutions are looked through for where it ends.
    fn braces(&mut self) {
        if self.depth >= MAX_DEPTH {
            return self.give_up();
        }
        self.depth += 1;
        let mut ignored = Word::default();
        loop {
            match self.peek(0) {
                None => {
                    self.line.is_opaque("a brace without an end");
                    break;
                }
                Some(b'}') => {
                    self.at += 1;
                    break;
                }
                Some(b'\\') => self.at = (self.at + 2).min(self.input.len()),
                Some(b'\'') => self.single_quoted(&mut ignored),
                Some(b'"') => self.double_quoted(&mut ignored),
                Some(b'$') => self.dollar(&mut ignored, false),
                Some(b'`') => self.backquoted(&mut ignored),
                Some(_) => self.at += 1,
            }
            ignored.text.clear();
        }
        self.depth -= 1;
    }

    /// `((…))` behind a dollar sign; what does not end so is a substitution that begins with a
    /// subshell.
    fn arithmetic(&mut self) -> bool {
        let mut depth = 0_usize;
        for (offset, byte) in self.input[self.at..].iter().enumerate() {
            match byte {
                b'(' => depth += 1,
                b')' => depth = depth.saturating_sub(1),
                b'`' | b'\'' | b'"' => return false,
                _ => {}
            }
            if depth == 0 {
                let is_double = self.input[..self.at + offset].ends_with(b")");
                if is_double {
                    let body = self.input[self.at + 2..self.at + offset - 1].to_vec();
                    self.at += offset + 1;
                    self.expansions_of(&body);
                }
                return is_double;
            }
        }
        false
    }

    /// The commands up to the `)` that closes a substitution.
    fn substitution(&mut self) {
        if self.depth >= MAX_DEPTH {
            return self.give_up();
        }
        let mut inner = Parser::new(self.input, self.depth + 1, true, self.line);
        inner.at = self.at;
        inner.directory = self.directory.clone();
        inner.closes = true;
        inner.run();
        self.at = inner.at;
    }

    fn backquoted(&mut self, word: &mut Word) {
        let start = self.at;
        word.exact = false;
        self.at += 1;
        let mut text = Vec::new();
        loop {
            match self.peek(0) {
                None => {
                    self.line.is_opaque("a quote without an end");
                    break;
                }
                Some(b'`') => {
                    self.at += 1;
                    break;
                }
                Some(b'\\') => {
                    match self.peek(1) {
                        Some(byte @ (b'$' | b'`' | b'\\')) => text.push(byte),
                        Some(byte) => text.extend([b'\\', byte]),
                        None => {}
                    }
                    self.at = (self.at + 2).min(self.input.len());
                }
                Some(byte) => {
                    text.push(byte);
                    self.at += 1;
                }
            }
        }
        word.text
            .extend(&self.input[start..self.at.min(self.input.len())]);
        if self.depth >= MAX_DEPTH {
            return self.line.is_opaque("nested too deeply");
        }
        let directory = self.directory.clone();
        let mut inner = Parser::new(&text, self.depth + 1, true, self.line);
        inner.directory = directory;
        inner.run();
    }

    /// What is left is not looked at.
    fn give_up(&mut self) {
        let line: &mut Line = self.line;
        line.is_opaque("nested too deeply");
        self.at = self.input.len();
    }
}

//! From text to names.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::order::Name;
use super::{
    ALL, MAX_NAME_BYTES, MAX_NODES_IN_SET, MAX_NUMBER_DIGITS, MAX_SET_TEXT_BYTES, NodeSetError,
    NodeSetProblem, is_name_char, is_node_name, quoted,
};

/// A position in the text. It only ever steps over ASCII, so it stays on a character.
pub(super) struct Reader<'a> {
    text: &'a str,
    pub(super) at: usize,
}

/// One piece of a term: text, or the numbers of a bracket.
enum Piece<'a> {
    Text(&'a str),
    Numbers(Vec<NumberRange>),
}

struct NumberRange {
    first: u64,
    last: u64,
    step: u64,
    /// Zero when the numbers are not padded.
    width: usize,
}

impl NumberRange {
    fn count(&self) -> u64 {
        (self.last - self.first) / self.step + 1
    }

    fn longest(&self) -> usize {
        self.last.to_string().len().max(self.width)
    }

    fn numbers(&self) -> impl Iterator<Item = String> {
        let (first, step, width) = (self.first, self.step, self.width);
        (0..self.count()).map(move |i| format!("{:0width$}", first + i * step))
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Result<Self, NodeSetError> {
        if text.len() > MAX_SET_TEXT_BYTES {
            return Err(NodeSetError {
                text: quoted(text),
                position: MAX_SET_TEXT_BYTES,
                problem: NodeSetProblem::LongText(text.len()),
            });
        }
        Ok(Self { text, at: 0 })
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    pub(super) fn skip_blanks(&mut self) {
        self.take_while(|c| c == ' ' || c == '\t');
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn take(&mut self, wanted: char) -> bool {
        let there = self.peek() == Some(wanted);
        if there {
            self.at += wanted.len_utf8();
        }
        there
    }

    pub(super) fn error_at(&self, position: usize, problem: NodeSetProblem) -> NodeSetError {
        NodeSetError {
            text: self.text.to_owned(),
            position,
            problem,
        }
    }

    pub(super) fn expected(&self, expected: &'static str) -> NodeSetError {
        let found = self.peek();
        self.error_at(self.at, NodeSetProblem::Expected { expected, found })
    }

    pub(super) fn term(
        &mut self,
        resolve: &dyn Fn(&str) -> Option<Vec<String>>,
        budget: &mut usize,
    ) -> Result<BTreeSet<Name>, NodeSetError> {
        let start = self.at;
        let group = self.take('@');
        let words = if group && self.take('*') {
            vec![ALL.to_owned()]
        } else {
            let pieces = self.pieces(group)?;
            self.expand(start, &pieces, budget)?
        };
        if !group && words != [ALL] {
            if let Some(bad) = words.iter().find(|word| !is_node_name(word)) {
                return Err(self.error_at(start, NodeSetProblem::BadName(bad.clone())));
            }
            return Ok(words.into_iter().map(Name).collect());
        }
        let mut names = BTreeSet::new();
        for word in words {
            let Some(members) = resolve(&word) else {
                return Err(self.error_at(start, NodeSetProblem::UnknownGroup(word)));
            };
            *budget = budget
                .checked_sub(members.len())
                .ok_or_else(|| self.error_at(start, NodeSetProblem::TooMany))?;
            for member in members {
                if !is_node_name(&member) {
                    return Err(self.error_at(start, NodeSetProblem::BadName(member)));
                }
                names.insert(Name(member));
            }
        }
        Ok(names)
    }

    fn pieces(&mut self, group: bool) -> Result<Vec<Piece<'a>>, NodeSetError> {
        let expected = if group {
            "a group's name"
        } else {
            "a node's name, `[`, `@group` or `all`"
        };
        let mut pieces = Vec::new();
        loop {
            match self.peek() {
                Some('[') => {
                    self.at += 1;
                    pieces.push(Piece::Numbers(self.bracket()?));
                }
                Some(c) if c.is_ascii_alphanumeric() => {
                    pieces.push(Piece::Text(self.take_while(is_name_char)));
                }
                Some(c) if is_name_char(c) && !pieces.is_empty() => {
                    pieces.push(Piece::Text(self.take_while(is_name_char)));
                }
                _ if pieces.is_empty() => return Err(self.expected(expected)),
                _ => return Ok(pieces),
            }
        }
    }

    fn bracket(&mut self) -> Result<Vec<NumberRange>, NodeSetError> {
        let mut ranges = Vec::new();
        loop {
            ranges.push(self.range()?);
            match self.peek() {
                Some(',') => self.at += 1,
                Some(']') => {
                    self.at += 1;
                    return Ok(ranges);
                }
                _ => return Err(self.expected("`,` or `]`")),
            }
        }
    }

    fn range(&mut self) -> Result<NumberRange, NodeSetError> {
        let start = self.at;
        let (first_text, first) = self.number("a number")?;
        let is_padded = |text: &str| text.len() > 1 && text.starts_with('0');
        let width = if is_padded(first_text) {
            first_text.len()
        } else {
            0
        };
        let (mut last, mut step) = (first, 1);
        if self.take('-') {
            let (last_text, value) = self.number("the number at which the range ends")?;
            if is_padded(last_text) && last_text.len() != width {
                return Err(self.error_at(start, NodeSetProblem::Padding));
            }
            if value < first {
                let first = i64::try_from(first).unwrap_or(i64::MAX);
                return Err(self.error_at(start, NodeSetProblem::BackwardRange(first)));
            }
            last = value;
            if self.take('/') {
                step = self.number("a step")?.1;
                if step == 0 {
                    return Err(self.error_at(start, NodeSetProblem::ZeroStep));
                }
            }
        }
        Ok(NumberRange {
            first,
            last,
            step,
            width,
        })
    }

    fn number(&mut self, expected: &'static str) -> Result<(&'a str, u64), NodeSetError> {
        let start = self.at;
        let digits = self.take_while(|c| c.is_ascii_digit());
        if digits.is_empty() {
            return Err(self.expected(expected));
        }
        match digits.parse() {
            Ok(value) if digits.len() <= MAX_NUMBER_DIGITS => Ok((digits, value)),
            _ => Err(self.error_at(start, NodeSetProblem::LongNumber)),
        }
    }

    /// The names of a term. Their number and length are bounded before any is made.
    fn expand(
        &self,
        start: usize,
        pieces: &[Piece<'_>],
        budget: &mut usize,
    ) -> Result<Vec<String>, NodeSetError> {
        let too_many = || self.error_at(start, NodeSetProblem::TooMany);
        let mut count = 1_u64;
        let mut longest = 0_usize;
        for piece in pieces {
            match piece {
                Piece::Text(text) => longest = longest.saturating_add(text.len()),
                Piece::Numbers(ranges) => {
                    let numbers = ranges
                        .iter()
                        .fold(0_u64, |sum, range| sum.saturating_add(range.count()));
                    count = count.saturating_mul(numbers);
                    let digits = ranges.iter().map(NumberRange::longest).max().unwrap_or(0);
                    longest = longest.saturating_add(digits);
                }
            }
        }
        if longest > MAX_NAME_BYTES {
            return Err(self.error_at(start, NodeSetProblem::LongName));
        }
        let count = usize::try_from(count).map_err(|_| too_many())?;
        if count > MAX_NODES_IN_SET {
            return Err(too_many());
        }
        *budget = budget.checked_sub(count).ok_or_else(too_many)?;
        let mut names = vec![String::new()];
        for piece in pieces {
            match piece {
                Piece::Text(text) => names.iter_mut().for_each(|name| name.push_str(text)),
                Piece::Numbers(ranges) => {
                    let numbers: Vec<String> =
                        ranges.iter().flat_map(NumberRange::numbers).collect();
                    names = names
                        .iter()
                        .flat_map(|name| numbers.iter().map(move |n| format!("{name}{n}")))
                        .collect();
                }
            }
        }
        Ok(names)
    }

    pub(super) fn bproc_range(
        &mut self,
        budget: &mut usize,
    ) -> Result<RangeInclusive<i32>, NodeSetError> {
        let start = self.at;
        let first = self.bproc_number()?;
        let last = if self.take('-') {
            self.bproc_number()?
        } else {
            first
        };
        if last < first {
            return Err(self.error_at(start, NodeSetProblem::BackwardRange(first.into())));
        }
        let count = usize::try_from(i64::from(last) - i64::from(first) + 1);
        let left = count.ok().and_then(|count| budget.checked_sub(count));
        *budget = left.ok_or_else(|| self.error_at(start, NodeSetProblem::TooMany))?;
        Ok(first..=last)
    }

    fn bproc_number(&mut self) -> Result<i32, NodeSetError> {
        let start = self.at;
        let negative = self.take('-');
        let (_, value) = self.number("a node number or `all`")?;
        match i32::try_from(value) {
            Ok(1) if negative => Ok(-1),
            Ok(value) if !negative => Ok(value),
            _ => Err(self.error_at(start, NodeSetProblem::BadNumber)),
        }
    }
}

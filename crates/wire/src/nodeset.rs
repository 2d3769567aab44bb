//! Sets of node names, as people write them.
//!
//! The grammar is ClusterShell's: `n1,n3`, `n[0-63]`, `n[1-9/2]`, `n[001-010]`,
//! `r[1-2]n[1-3]`, `@group`, `all`; terms are joined by `,` (union), `!` (difference),
//! `&` (intersection) and `^` (symmetric difference), evaluated from left to right.
//! What BProc's tools take instead (`3`, `0-4,7`, `-1`) is read by [`parse_bproc`].

use std::collections::BTreeSet;
use std::fmt;

use order::Name;
use read::Reader;

mod fold;
mod order;
mod read;
#[cfg(test)]
mod tests;

/// Most names that a set may hold.
pub const MAX_NODES_IN_SET: usize = 65_536;
/// Most names that all terms of one expression may expand to together, so that a short
/// text which repeats a large range can't keep the reader busy.
pub const MAX_NAMES_EXPANDED: usize = 4 * MAX_NODES_IN_SET;
/// Longest text that is looked at.
pub const MAX_SET_TEXT_BYTES: usize = 1 << 20;
/// Longest node or group name.
pub const MAX_NAME_BYTES: usize = 64;
/// Longest number in brackets; a longer run of digits in a name is plain text.
pub const MAX_NUMBER_DIGITS: usize = 18;
/// The group of all nodes, also written without `@`, and `@*`.
pub const ALL: &str = "all";

/// How much of a refused text an error repeats.
const MAX_QUOTED_CHARS: usize = 120;

/// An ordered set of node names. The order is the one that people count in: `n2` before `n10`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSet {
    names: BTreeSet<Name>,
}

/// A text that is no node set: the text, where it goes wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad node set `{}`, at character {}: {problem}", quoted(text), position + 1)]
pub struct NodeSetError {
    /// The text as it was given.
    pub text: String,
    /// Byte offset of the place where reading stopped.
    pub position: usize,
    /// What was wrong there.
    pub problem: NodeSetProblem,
}

/// What is wrong with a node set's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeSetProblem {
    /// Something else belongs here.
    #[error("expected {expected}, found {}", found.map_or_else(|| "the end".to_owned(), |c| format!("`{c}`")))]
    Expected {
        /// What could have stood here.
        expected: &'static str,
        /// What stands here; `None` at the end of the text.
        found: Option<char>,
    },
    /// Nobody knows this group.
    #[error("no group is called `{0}`")]
    UnknownGroup(String),
    /// A name, perhaps out of a group, that no node can have.
    #[error(
        "`{0}` can't be a node's name: expected at most {MAX_NAME_BYTES} letters, digits, `-`, `_` and `.`, a letter or digit first, and not `{ALL}`"
    )]
    BadName(String),
    /// The names of this term would be too long.
    #[error("expected names of at most {MAX_NAME_BYTES} characters")]
    LongName,
    /// A range that ends before it starts.
    #[error("expected a range that ends at or after its start ({0})")]
    BackwardRange(i64),
    /// A step of nothing.
    #[error("expected a step of at least 1")]
    ZeroStep,
    /// `[1-010]` or `[01-010]`.
    #[error("expected both ends of a range to be padded to the same width")]
    Padding,
    /// A number with too many digits.
    #[error("expected a number of at most {MAX_NUMBER_DIGITS} digits")]
    LongNumber,
    /// A node number below -1 or above what a node number can be.
    #[error("expected a node number from -1 (the head) to {}", i32::MAX)]
    BadNumber,
    /// More text than is looked at.
    #[error("expected at most {MAX_SET_TEXT_BYTES} bytes, found {0}")]
    LongText(usize),
    /// More names than a set may hold, or than an expression may expand to.
    #[error("expected at most {MAX_NODES_IN_SET} nodes")]
    TooMany,
}

impl NodeSet {
    /// Reads an expression. `resolve` gives the members of a group by its name; the group
    /// [`ALL`] is asked of it too.
    pub fn parse(
        text: &str,
        resolve: &dyn Fn(&str) -> Option<Vec<String>>,
    ) -> Result<Self, NodeSetError> {
        let mut reader = Reader::new(text)?;
        let mut budget = MAX_NAMES_EXPANDED;
        let mut set = Self::default();
        let mut operator = Operator::Union;
        loop {
            reader.skip_blanks();
            let start = reader.at;
            let term = reader.term(resolve, &mut budget)?;
            set.apply(operator, term);
            if set.len() > MAX_NODES_IN_SET {
                return Err(reader.error_at(start, NodeSetProblem::TooMany));
            }
            reader.skip_blanks();
            operator = match reader.peek() {
                None => return Ok(set),
                Some(',') => Operator::Union,
                Some('!') => Operator::Difference,
                Some('&') => Operator::Intersection,
                Some('^') => Operator::SymmetricDifference,
                Some(_) => return Err(reader.expected("one of `,` `!` `&` `^` or the end")),
            };
            reader.at += 1;
        }
    }

    /// The set of these names.
    pub fn from_names<I>(names: I) -> Result<Self, NodeSetError>
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        let mut set = Self::default();
        for name in names {
            let name = name.into();
            let problem = if !is_node_name(&name) {
                NodeSetProblem::BadName(name.clone())
            } else if set.len() == MAX_NODES_IN_SET && !set.contains(&name) {
                NodeSetProblem::TooMany
            } else {
                set.names.insert(Name(name));
                continue;
            };
            return Err(NodeSetError {
                text: name,
                position: 0,
                problem,
            });
        }
        Ok(set)
    }

    /// The compact text: `n[1-3,7]`. It reads back as the same set, unless the set is
    /// empty (then so is the text, which [`NodeSet::parse`] refuses).
    pub fn fold(&self) -> String {
        fold::fold(&self.names)
    }

    /// The names in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + DoubleEndedIterator {
        self.names.iter().map(|name| name.0.as_str())
    }

    /// Whether this node is in the set.
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains(&Name(name.to_owned()))
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn apply(&mut self, operator: Operator, right: BTreeSet<Name>) {
        match operator {
            Operator::Union => self.names.extend(right),
            Operator::Difference => right.iter().for_each(|name| {
                self.names.remove(name);
            }),
            Operator::Intersection => self.names.retain(|name| right.contains(name)),
            Operator::SymmetricDifference => right.into_iter().for_each(|name| {
                if !self.names.remove(&name) {
                    self.names.insert(name);
                }
            }),
        }
    }
}

impl fmt::Display for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fold())
    }
}

/// Whether a node may have this name.
pub fn is_node_name(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES
        && name != ALL
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(is_name_char)
}

/// The nodes that BProc's tools were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BprocNodes {
    /// `all`.
    All,
    /// Node numbers in the order in which they were first named; -1 is the head.
    Numbers(Vec<i32>),
}

/// Reads a node list as BProc's tools take it: `3`, `0-4,7`, `-1`, `all`.
pub fn parse_bproc(text: &str) -> Result<BprocNodes, NodeSetError> {
    let mut reader = Reader::new(text)?;
    if text == ALL {
        return Ok(BprocNodes::All);
    }
    let mut numbers = Vec::new();
    let mut seen = BTreeSet::new();
    let mut budget = MAX_NAMES_EXPANDED;
    loop {
        let start = reader.at;
        for number in reader.bproc_range(&mut budget)? {
            if seen.insert(number) {
                numbers.push(number);
            }
        }
        if numbers.len() > MAX_NODES_IN_SET {
            return Err(reader.error_at(start, NodeSetProblem::TooMany));
        }
        match reader.peek() {
            None => return Ok(BprocNodes::Numbers(numbers)),
            Some(',') => reader.at += 1,
            Some(_) => return Err(reader.expected("`,` or the end")),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Operator {
    Union,
    Difference,
    Intersection,
    SymmetricDifference,
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

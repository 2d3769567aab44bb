//! Which nodes have what a line needs already: files that it reads, or its program and headers.

use std::collections::HashMap;

use super::Node;
use crate::learned::Estimate;
use crate::policy::Judgement;

/// What a node has to fetch before it runs a program for the first time is expected to take so
/// long. Lines that take longer go where most room is.
const COLD_US: u64 = 1_000_000;
/// Nodes that are named to the head.
const MAX_PREFERRED: usize = 16;
/// Files and programs of which it is known where they are.
const MAX_FILES: usize = 65_536;
const MAX_PROGRAMS: usize = 1_024;

/// What each node has by this build.
#[derive(Default)]
pub(super) struct Warmth {
    /// Who has begun lines of a program, the first one first.
    programs: HashMap<String, Vec<String>>,
    /// Who has written a file last, by its path from the tree.
    files: HashMap<Vec<u8>, String>,
}

impl Warmth {
    /// A line has been placed.
    pub(super) fn began(&mut self, program: &str, node: &str) {
        if self.programs.len() >= MAX_PROGRAMS && !self.programs.contains_key(program) {
            return;
        }
        let nodes = self.programs.entry(program.to_owned()).or_default();
        if !nodes.iter().any(|name| name == node) {
            nodes.push(node.to_owned());
        }
    }

    /// A line has made what it was to make, on a node or here.
    pub(super) fn made(&mut self, file: Option<&Vec<u8>>, node: Option<&str>) {
        let Some(file) = file else {
            return;
        };
        match node {
            Some(node) if self.files.len() < MAX_FILES => {
                self.files.insert(file.clone(), node.to_owned());
            }
            _ => {
                self.files.remove(file);
            }
        }
    }

    /// These nodes are up; what the others have may be lost.
    pub(super) fn keep(&mut self, nodes: &[Node]) {
        let is_up = |name: &String| nodes.iter().any(|node| node.name == *name);
        self.programs.values_mut().for_each(|all| all.retain(is_up));
        self.files.retain(|_, name| is_up(name));
    }

    /// The nodes that are best for a line, the best first; of the others all are as good.
    pub(super) fn preferred(&self, line: &Judgement, nodes: &[Node]) -> Vec<String> {
        let mut counts: Vec<(usize, &String)> = Vec::new();
        for node in line.reads.iter().filter_map(|file| self.files.get(file)) {
            match counts.iter_mut().find(|(_, name)| *name == node) {
                Some((count, _)) => *count += 1,
                None => counts.push((1, node)),
            }
        }
        counts.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let mut preferred: Vec<_> = counts.into_iter().map(|(_, name)| name).collect();
        let warm = self.programs.get(&line.program);
        if let Some(warm) = warm
            && warm.len() < nodes.len()
            && line.estimate.is_some_and(is_brief)
        {
            for node in warm {
                if !preferred.contains(&node) {
                    preferred.push(node);
                }
            }
        }
        preferred.truncate(MAX_PREFERRED);
        preferred.into_iter().cloned().collect()
    }
}

fn is_brief(estimate: Estimate) -> bool {
    estimate.wall_us < COLD_US
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::broker::Settings;
    use crate::broker::tests::{node, shell, taught};
    use crate::policy::judge;

    fn nodes() -> Vec<Node> {
        ["n1", "n2", "n3"].map(|name| node(name, 2)).to_vec()
    }

    fn line(text: &str) -> Judgement {
        let learned = taught(&[("gcc -c brief.c", 300), ("gcc -c long.c", 3000)]);
        judge(
            &shell(text),
            &Settings::new(Path::new("/src").to_owned(), 2),
            &learned,
        )
    }

    #[test]
    fn a_line_goes_where_most_of_what_it_reads_was_written() {
        let mut warmth = Warmth::default();
        for (text, node) in [
            ("gcc -c x/a.c -o x/a.o", "n2"),
            ("cd x; gcc -c b.c -o ../x/b.o", "n3"),
            ("gcc -c x/c.c -o ./x/c.o", "n3"),
            ("gcc -c x/d.c -o x/d.o", "n1"),
        ] {
            warmth.made(line(text).makes.as_ref(), Some(node));
        }
        let preferred = |warmth: &Warmth, text: &str| warmth.preferred(&line(text), &nodes());
        let link = "gcc -o x/x x/a.o x/b.o x/c.o";
        assert_eq!(preferred(&warmth, link), ["n3", "n2"]);
        assert_eq!(preferred(&warmth, "cd x && gcc -o y /src/x/d.o"), ["n1"]);
        let none: [&str; 0] = [];
        assert_eq!(preferred(&warmth, "gcc -o z z.o"), none);
        // What is made here anew is nobody's.
        warmth.made(line("gcc -c x/d.c -o x/d.o").makes.as_ref(), None);
        assert_eq!(preferred(&warmth, "cd x && gcc -o y d.o"), none);
        warmth.keep(&nodes()[..2]);
        assert_eq!(preferred(&warmth, link), ["n2"]);
    }

    #[test]
    fn brief_lines_keep_to_nodes_that_have_their_program() {
        let mut warmth = Warmth::default();
        warmth.began("gcc", "n2");
        let preferred = |warmth: &Warmth, text: &str| warmth.preferred(&line(text), &nodes());
        let none: [&str; 0] = [];
        assert_eq!(preferred(&warmth, "gcc -c brief.c"), ["n2"]);
        assert_eq!(preferred(&warmth, "gcc -c long.c"), none);
        warmth.began("gcc", "n1");
        assert_eq!(preferred(&warmth, "gcc -c brief.c"), ["n2", "n1"]);
        // When all have it, all are as good.
        warmth.began("gcc", "n3");
        assert_eq!(preferred(&warmth, "gcc -c brief.c"), none);
    }
}

//! The commands of a guide, as they stand there: its indented blocks.
//!
//! A block is commands if its first word is a program, else it shows what a program prints or
//! what stands in a file.

/// An indented block, and the paragraph that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Counted from one.
    pub(super) line: usize,
    pub(super) text: String,
    pub(super) before: String,
}

impl Block {
    /// Its first word.
    pub(super) fn program(&self) -> &str {
        self.text.split_whitespace().next().unwrap_or_default()
    }
}

/// All indented blocks. Below an item of a list they are further in.
pub(super) fn blocks(guide: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut before = String::new();
    let mut list = 0;
    let mut was_empty = true;
    let mut open: Option<Block> = None;
    for (at, line) in guide.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let is_empty = line.trim().is_empty();
        let is_code = !is_empty && indent >= list + 4;
        match &mut open {
            Some(block) if is_code => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            Some(block) if is_empty => block.text.push('\n'),
            _ if is_code && was_empty => {
                open = Some(Block {
                    line: at + 1,
                    text: format!("{line}\n"),
                    before: std::mem::take(&mut before),
                });
            }
            _ => {
                blocks.extend(open.take());
                if is_empty {
                    was_empty = true;
                    continue;
                }
                if was_empty || item_width(line).is_some() {
                    before.clear();
                }
                before.push_str(line.trim());
                before.push(' ');
                if let Some(width) = item_width(line) {
                    list = width;
                } else if indent == 0 {
                    list = 0;
                }
            }
        }
        was_empty = is_empty;
    }
    blocks.extend(open);
    for block in &mut blocks {
        block.text = without_indent(&block.text);
    }
    blocks
}

/// How far in the text of a list's item begins.
fn item_width(line: &str) -> Option<usize> {
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    let rest = &line[digits..];
    let mark = match digits {
        0 if rest.starts_with("- ") || rest.starts_with("* ") => 2,
        1.. if rest.starts_with(". ") => 2,
        _ => return None,
    };
    Some(digits + mark)
}

fn without_indent(text: &str) -> String {
    let indent = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.len() - line.trim_start().len())
        .min()
        .unwrap_or(0);
    let mut out: String = text
        .lines()
        .map(|line| format!("{}\n", line.get(indent..).unwrap_or_default()))
        .collect();
    out.truncate(out.trim_end().len());
    out
}

/// The first word that follows this one, wherever that is in a command.
pub(super) fn word_after(blocks: &[Block], option: &str) -> Option<String> {
    blocks.iter().find_map(|block| {
        let mut words = block.text.split_whitespace();
        words.find(|word| *word == option)?;
        words.next().map(str::to_owned)
    })
}

/// The first Ethernet address in a text.
pub(super) fn mac_in(text: &str) -> Option<String> {
    text.split(|char: char| !(char.is_ascii_hexdigit() || char == ':'))
        .find(|word| {
            word.len() == 17
                && word
                    .bytes()
                    .enumerate()
                    .all(|(at, byte)| (at % 3 == 2) == (byte == b':'))
        })
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUIDE: &str = "\
# A first node

    wiglaf init

1. **On the head**, say
   where:

       wiglaf boot enable --interface eth1
       wiglaf nodes --unknown    # and so on

   It prints:

       MAC                NAME
       52:54:00:12:34:56  -

2. Then any user may

       wiglaf run -w n1 \\
           uname -a

No list any more; what follows is a block of four.

    exit 7
";

    #[test]
    fn blocks_are_found_below_items_and_without() {
        let blocks = blocks(GUIDE);
        let texts: Vec<&str> = blocks.iter().map(|block| block.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "wiglaf init",
                "wiglaf boot enable --interface eth1\nwiglaf nodes --unknown    # and so on",
                "MAC                NAME\n52:54:00:12:34:56  -",
                "wiglaf run -w n1 \\\n    uname -a",
                "exit 7",
            ]
        );
        assert_eq!(blocks[1].line, 8);
        assert_eq!(blocks[1].before.trim(), "1. **On the head**, say where:");
        assert_eq!(blocks[3].before.trim(), "2. Then any user may");
        assert_eq!(blocks[2].program(), "MAC");
    }

    #[test]
    fn names_that_a_reader_replaces_are_found() {
        let blocks = blocks(GUIDE);
        assert_eq!(word_after(&blocks, "--interface").as_deref(), Some("eth1"));
        assert_eq!(word_after(&blocks, "--wait"), None);
        assert_eq!(mac_in(GUIDE).as_deref(), Some("52:54:00:12:34:56"));
        assert_eq!(mac_in("00:11:22 and 1234-5678"), None);
    }
}

//! make's own arguments, so far as the cluster has something to add to them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Letters of make's options whose value is the rest of the word or the next one (make(1)).
const WITH_VALUE: &[u8] = b"CEIWfo";

/// The long options that are ours and not make's, with whether a value follows.
const OWN: [(&str, bool); 7] = [
    ("--plan", false),
    ("--report", false),
    ("--json", false),
    ("--verbose", false),
    ("--require-cluster", false),
    ("--nodes", true),
    ("--head-slots", true),
];

/// Parts what is typed behind make's first word into our options and make's: no order has to be
/// kept. Behind `--` all is make's.
pub(super) fn part(arguments: Vec<OsString>) -> (Vec<OsString>, Vec<OsString>) {
    let (mut own, mut makes) = (Vec::new(), Vec::new());
    let mut rest = arguments.into_iter();
    while let Some(word) = rest.next() {
        let text = word.to_string_lossy();
        let (name, joined) = match text.split_once('=') {
            Some((name, _)) => (name, true),
            None => (&*text, false),
        };
        let known = OWN.iter().find(|(option, _)| *option == name);
        let has_value = match known {
            Some((_, takes_value)) => *takes_value && !joined,
            None => matches!(last_letter(word.as_bytes()), Some(Last::Value)),
        };
        let side = if known.is_some() {
            &mut own
        } else {
            &mut makes
        };
        let is_end = word.as_bytes() == b"--";
        side.push(word);
        if has_value {
            side.extend(rest.next());
        }
        if is_end {
            break;
        }
    }
    makes.extend(rest);
    (own, makes)
}

/// Gives each `-j` without a number this one: make would start everything at once.
pub(super) fn with_job_count(arguments: &[OsString], jobs: u32) -> Vec<OsString> {
    let mut told = Vec::with_capacity(arguments.len());
    let mut rest = arguments.iter().peekable();
    while let Some(word) = rest.next() {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            told.push(word.clone());
            break;
        }
        if bytes == b"--jobs" {
            told.push(format!("--jobs={jobs}").into());
            continue;
        }
        let mut word = word.clone();
        match last_letter(bytes) {
            Some(Last::Value) => {
                told.push(word);
                told.extend(rest.next().cloned());
                continue;
            }
            // As make has it: a next word of digits alone is the number.
            Some(Last::Jobs) if !rest.peek().is_some_and(|next| is_number(next)) => {
                let mut bytes = word.into_vec();
                bytes.extend(jobs.to_string().into_bytes());
                word = OsString::from_vec(bytes);
            }
            _ => {}
        }
        told.push(word);
    }
    told.extend(rest.cloned());
    told
}

/// How many jobs make starts at once by its arguments, with [`with_job_count`] applied: the last
/// count given. Without any it may still be told by the environment.
pub(super) fn job_count(arguments: &[OsString]) -> Option<u32> {
    let mut count = std::env::var_os("MAKEFLAGS").is_none().then_some(1);
    let mut rest = arguments.iter().peekable();
    while let Some(word) = rest.next() {
        let bytes = word.as_bytes();
        let text = word.to_string_lossy();
        if bytes == b"--" {
            break;
        }
        let told = match (text.strip_prefix("--jobs="), last_letter(bytes)) {
            (Some(number), _) => Some(number.to_owned()),
            (None, Some(Last::Jobs)) => rest.peek().map(|next| next.to_string_lossy().into()),
            (None, Some(Last::Value)) => {
                rest.next();
                None
            }
            (None, None) if text.starts_with("--") || !text.starts_with('-') => None,
            (None, None) => joined_count(&text).map(str::to_owned),
        };
        count = told.and_then(|number| number.parse().ok()).or(count);
    }
    count
}

/// `4` of `-kj4`; the `j` of `-fj4` is a file's name.
fn joined_count(word: &str) -> Option<&str> {
    let at = word.find(|letter: char| {
        let takes_rest = letter.is_ascii() && WITH_VALUE.contains(&(letter as u8));
        takes_rest || matches!(letter, 'j' | 'l' | 'O')
    })?;
    word[at..].strip_prefix('j')
}

/// What a word of short options ends with.
enum Last {
    /// `j` without a number.
    Jobs,
    /// An option whose value is the next word.
    Value,
}

fn last_letter(word: &[u8]) -> Option<Last> {
    let letters = word
        .strip_prefix(b"-")
        .filter(|rest| !rest.starts_with(b"-"))?;
    for (index, letter) in letters.iter().enumerate() {
        let is_last = index + 1 == letters.len();
        match letter {
            b'j' if is_last => return Some(Last::Jobs),
            letter if WITH_VALUE.contains(letter) => return is_last.then_some(Last::Value),
            // The rest of the word is their value.
            b'j' | b'l' | b'O' => return None,
            _ => {}
        }
    }
    None
}

fn is_number(word: &OsStr) -> bool {
    !word.is_empty() && word.as_bytes().iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        let words: Vec<OsString> = text.split(' ').map(OsString::from).collect();
        let told = with_job_count(&words, 8);
        let told: Vec<_> = told.iter().map(|word| word.to_string_lossy()).collect();
        told.join(" ")
    }

    #[test]
    fn a_bare_j_gets_the_clusters_slots() {
        for (given, expected) in [
            ("-j", "-j8"),
            ("-kj all", "-kj8 all"),
            ("--jobs all", "--jobs=8 all"),
            ("-j -k", "-j8 -k"),
            ("-C dir -j", "-C dir -j8"),
        ] {
            assert_eq!(told(given), expected);
        }
    }

    #[test]
    fn our_options_may_stand_anywhere() {
        for (given, own, makes) in [
            ("-j4 --report all", "--report", "-j4 all"),
            ("all --nodes n1 -k", "--nodes n1", "all -k"),
            ("--nodes=n1 --plan", "--nodes=n1 --plan", ""),
            ("-C --plan x", "", "-C --plan x"),
            ("-j -- --plan", "", "-j -- --plan"),
            ("--planned --debug=b", "", "--planned --debug=b"),
        ] {
            let words = given.split(' ').map(OsString::from).collect();
            let (ours, theirs) = part(words);
            let line = |words: &[OsString]| words.join(OsStr::new(" "));
            assert_eq!((line(&ours), line(&theirs)), (own.into(), makes.into()));
        }
    }

    #[test]
    fn the_number_of_jobs_is_known() {
        let count = |text: &str| {
            let words: Vec<OsString> = text.split(' ').map(OsString::from).collect();
            job_count(&words)
        };
        assert_eq!(count("make -kj8 all"), Some(8));
        assert_eq!(count("make -j 3"), Some(3));
        assert_eq!(count("make -j2 --jobs=5 -fj9"), Some(5));
    }

    #[test]
    fn everything_else_stays() {
        for text in [
            "-j4", "-j 4 all", "--jobs=4", "-kj4", "-f j", "-fj", "-C -j", "-- -j", "-Oj", "-l2",
            "jobs", "-", "-I -j", "all V=1",
        ] {
            assert_eq!(told(text), text);
        }
    }
}

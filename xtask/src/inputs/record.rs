//! What `wiglaf make --json` tells of a build in the last line of its output, as far as it is
//! looked at here.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Where lines ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lines {
    pub(crate) all: u64,
    pub(crate) on_nodes: u64,
    /// Meant for nodes, they ran here.
    pub(crate) fallen_back: u64,
    /// Launched more than once.
    pub(crate) tried_again: u64,
}

impl Lines {
    pub(crate) fn read(log: &Path) -> Result<Lines> {
        let text = std::fs::read(log).with_context(|| format!("can't read {}", log.display()))?;
        let text = String::from_utf8_lossy(&text);
        let last = text.lines().last().context("it printed nothing")?;
        let record = serde_json::from_str(last).context("its last line is no JSON")?;
        Lines::of(&record).context("its record has no lines")
    }

    fn of(record: &Value) -> Option<Lines> {
        let lines = record.get("lines")?.as_array()?;
        let count = |is_such: fn(&Value) -> bool| {
            let such = lines.iter().filter(|line| is_such(line));
            such.count() as u64
        };
        Some(Lines {
            all: lines.len() as u64,
            on_nodes: count(|line| {
                line.get("place")
                    .is_some_and(|place| place.get("node").is_some())
            }),
            fallen_back: count(|line| line.get("fell_back").is_some_and(|why| !why.is_null())),
            tried_again: count(|line| {
                line.get("attempts")
                    .and_then(Value::as_u64)
                    .is_some_and(|attempts| attempts > 1)
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        let record = serde_json::json!({"lines": [
            {"place": {"node": "n1"}, "attempts": 1, "fell_back": null},
            {"place": "here", "attempts": 2, "fell_back": "n1 is down"},
            {"place": null, "attempts": 0, "fell_back": null},
            {"place": {"node": "n2"}, "attempts": 2, "fell_back": null},
        ]});
        let lines = Lines {
            all: 4,
            on_nodes: 2,
            fallen_back: 1,
            tried_again: 2,
        };
        assert_eq!(Lines::of(&record), Some(lines));
        assert_eq!(Lines::of(&serde_json::json!({})), None);
    }
}

//! Which crate may depend on which: arrows point down only.

use anyhow::{Result, bail};
use cargo_metadata::Metadata;

/// A crate and the crates of ours that it may name, for its tests too.
type Row = (&'static str, &'static [&'static str]);

/// `head` and `node` never import each other: what has two ends is a crate of its own.
const ARROWS: &[Row] = &[
    (
        "cli",
        &[
            "head", "node", "process", "view", "build", "boot", "image", "link", "wire", "linux",
        ],
    ),
    ("head", &["process", "view", "link", "wire", "linux"]),
    (
        "node",
        &["process", "view", "keep", "link", "wire", "linux"],
    ),
    ("process", &["link", "wire", "linux"]),
    ("view", &["fuse", "link", "wire", "linux"]),
    ("build", &["wire"]),
    ("boot", &["link", "wire", "linux"]),
    ("image", &[]),
    ("keep", &[]),
    ("link", &["wire", "linux"]),
    ("fuse", &["linux"]),
    ("wire", &[]),
    ("linux", &[]),
    ("sim", &["head", "node", "process", "wire"]),
    ("xtask", &[]),
];

pub(crate) fn check(metadata: &Metadata) -> Result<()> {
    let edges = edges(metadata);
    let violations = violations(ARROWS, &edges);
    if !violations.is_empty() {
        bail!("{}", violations.join("\n"));
    }
    println!(
        "{} arrows between our crates, all pointing down",
        edges.iter().filter(|(_, to)| to.is_some()).count()
    );
    Ok(())
}

/// A crate of ours, and one that it depends on (`None` once for the crate itself).
type Edge = (String, Option<String>);

fn edges(metadata: &Metadata) -> Vec<Edge> {
    let mut edges = Vec::new();
    for package in metadata.workspace_packages() {
        let from = short_name(&package.name);
        edges.push((from.clone(), None));
        for dependency in package.dependencies.iter().filter(|d| d.path.is_some()) {
            edges.push((from.clone(), Some(short_name(&dependency.name))));
        }
    }
    edges
}

/// A crate's folder: the binary's crate is called as the product is.
fn short_name(name: &str) -> String {
    match name {
        "wiglaf" => "cli".to_owned(),
        _ => name.strip_prefix("wiglaf-").unwrap_or(name).to_owned(),
    }
}

fn violations(rows: &[Row], edges: &[Edge]) -> Vec<String> {
    let mut violations = Vec::new();
    for (from, to) in edges {
        let row = rows.iter().find(|(name, _)| name == from);
        match (row, to) {
            (None, None) => violations.push(format!(
                "crate `{from}` has no row in xtask/src/arrows.rs: add one that says what it may depend on"
            )),
            (Some((_, allowed)), Some(to)) if !allowed.contains(&to.as_str()) => {
                violations.push(format!(
                    "crate `{from}` depends on `{to}`, but may depend only on: {}",
                    if allowed.is_empty() { "nothing of ours".to_owned() } else { allowed.join(", ") }
                ));
            }
            _ => {}
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: &str, to: Option<&str>) -> Edge {
        (from.to_owned(), to.map(str::to_owned))
    }

    #[test]
    fn the_design_is_allowed() {
        let edges: Vec<Edge> = ARROWS
            .iter()
            .flat_map(|(from, to)| to.iter().map(|to| edge(from, Some(to))))
            .collect();
        assert!(violations(ARROWS, &edges).is_empty());
    }

    #[test]
    fn head_and_node_never_meet() {
        for (from, to) in [
            ("head", "node"),
            ("node", "head"),
            ("wire", "linux"),
            ("view", "process"),
        ] {
            let found = violations(ARROWS, &[edge(from, Some(to))]);
            assert_eq!(found.len(), 1, "{from} -> {to}");
            assert!(found[0].starts_with(&format!("crate `{from}` depends on `{to}`")));
        }
    }

    #[test]
    fn a_new_crate_needs_a_row() {
        assert!(violations(ARROWS, &[edge("garden", None)])[0].contains("`garden` has no row"));
    }

    #[test]
    fn no_table_row_closes_a_circle() {
        // What a row allows stands in a later row, `sim` apart, on which nothing stands.
        for (at, (from, to)) in ARROWS.iter().enumerate().filter(|(_, row)| row.0 != "sim") {
            let later = |to: &&str| ARROWS[at + 1..].iter().any(|row| row.0 == *to);
            assert!(to.iter().all(later), "{from}");
        }
        assert!(ARROWS.iter().all(|(_, to)| !to.contains(&"sim")));
    }

    #[test]
    fn names_are_folders() {
        assert_eq!(short_name("wiglaf"), "cli");
        assert_eq!(short_name("wiglaf-head"), "head");
        assert_eq!(short_name("xtask"), "xtask");
    }
}

//! The tree as a picture: text for people, DOT for Graphviz.

use std::fmt::Write;

use crate::tree::state::lineage::{Lineage, Node};
use crate::tree::{SnapshotId, SnapshotTree};

impl SnapshotTree {
    /// The tree as text: one snapshot a line, below what it was made from. A removed parent is named.
    pub fn to_text(&self) -> String {
        text(&self.walk())
    }

    /// The tree as a graph in Graphviz's language; `dot -Tsvg` draws it. Removed parents are dashed.
    pub fn to_dot(&self) -> String {
        dot(&self.walk())
    }
}

pub(in crate::tree) fn text(places: &[Node]) -> String {
    let mut text = String::from("base\n");
    // Whether a place has a sibling below it, for each depth: looked up from the end.
    let mut last = vec![true; places.len()];
    let mut open: Vec<bool> = Vec::new();
    for (place, last) in places.iter().zip(&mut last).rev() {
        open.resize(place.depth + 1, false);
        *last = !open[place.depth];
        open[place.depth] = true;
    }
    let mut prefix = String::new();
    let mut lengths: Vec<usize> = Vec::new();
    for (place, last) in places.iter().zip(last) {
        lengths.truncate(place.depth);
        prefix.truncate(lengths.last().copied().unwrap_or(0));
        let (branch, below) = if last { ("└── ", "    ") } else { ("├── ", "│   ") };
        // Writing to a String cannot fail.
        let _ = write!(text, "{prefix}{branch}{}", place.id);
        if let Lineage::Removed(parent) = &place.parent {
            let _ = write!(text, " (from {parent}, removed)");
        }
        text.push('\n');
        prefix.push_str(below);
        lengths.push(prefix.len());
    }
    text
}

fn dot(places: &[Node]) -> String {
    let quoted = |id: &SnapshotId| id.as_str().replace('\\', "\\\\").replace('"', "\\\"");
    // No snapshot is called base, and no id contains a tab.
    let mut text = String::from("digraph snapshots {\n  \"base\" [shape=box];\n");
    for Node { id, parent, .. } in places {
        let id = quoted(id);
        // As above.
        let _ = match parent {
            Lineage::Base => writeln!(text, "  \"base\" -> \"{id}\";"),
            Lineage::Snapshot(parent) => writeln!(text, "  \"{}\" -> \"{id}\";", quoted(parent)),
            Lineage::Removed(parent) => {
                let (node, parent) = (format!("\"removed\t{id}\""), quoted(parent));
                writeln!(text, "  {node} [label=\"{parent}\", style=dashed];\n  {node} -> \"{id}\";")
            }
        };
    }
    text.push_str("}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Vec<Node> {
        let id = |id: &str| SnapshotId::new(id).unwrap();
        let of = |parent: &str| Lineage::Snapshot(id(parent));
        [
            ("a", Lineage::Base, 0),
            ("a1", of("a"), 1),
            ("a1x", of("a1"), 2),
            ("a2", of("a"), 1),
            ("b", Lineage::Removed(id("gone")), 0),
            ("b1", of("b"), 1),
        ]
        .map(|(name, parent, depth)| Node { id: id(name), parent, depth })
        .into()
    }

    #[test]
    fn as_text() {
        let expected = "\
base
├── a
│   ├── a1
│   │   └── a1x
│   └── a2
└── b (from gone, removed)
    └── b1
";
        assert_eq!(text(&places()), expected);
        assert_eq!(text(&[]), "base\n");
    }

    #[test]
    fn as_dot() {
        let expected = r#"digraph snapshots {
  "base" [shape=box];
  "base" -> "a\"";
  "a\"" -> "a1";
  "a1" -> "a1x";
  "a\"" -> "a2";
  "removed\tb" [label="gone", style=dashed];
  "removed\tb" -> "b";
  "b" -> "b1";
}
"#;
        let mut places = places();
        let quote = SnapshotId::new("a\"").unwrap();
        places[0].id = quote.clone();
        places[1].parent = Lineage::Snapshot(quote.clone());
        places[3].parent = Lineage::Snapshot(quote);
        assert_eq!(dot(&places), expected.replace("\\t", "\t").replace("a\"\"", "a\\\"\""));
    }
}

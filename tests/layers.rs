//! Which file uses which: floors, and the rooms of the tree, use only those under them, and no two files need each
//! other.
//!
//! Read out of the sources, tests aside. A name that a module re-exports counts for the file that defines it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree};

/// The floors from the ground up, and what each may use beside itself.
const FLOORS: &[(&str, &[&str])] = &[
    ("abi", &[]),
    ("retry", &[]),
    ("units", &[]),
    ("sys", &["abi"]),
    ("kernel", &["abi", "sys", "units"]),
    ("dm", &["abi", "kernel", "retry", "units"]),
    ("loopdev", &["abi", "kernel", "retry", "sys", "units"]),
    ("thin", &["abi", "dm", "kernel", "loopdev", "retry", "units"]),
    ("tree", &["abi", "dm", "kernel", "loopdev", "retry", "thin", "units"]),
    ("docker", &["abi", "dm", "kernel", "thin", "tree", "units"]),
    ("model", &["abi", "dm", "kernel", "loopdev", "thin", "units"]),
];

/// The rooms of the tree, the same way. What lies beside them (errors, options, names) is open to all.
const ROOMS: &[(&str, &[&str])] = &[
    ("state", &[]),
    ("pool", &["state"]),
    ("live", &["pool", "state"]),
    ("stream", &[]),
    ("ops", &["live", "pool", "state", "stream"]),
];

type ModulePath = Vec<String>;

/// A module that has a file of its own.
struct Module {
    file: PathBuf,
    /// What it re-exports or imports: by name, the path.
    uses: HashMap<String, ModulePath>,
    /// What of this crate it names: the path and the line.
    names: Vec<(ModulePath, usize)>,
}

struct Crate {
    modules: BTreeMap<ModulePath, Module>,
}

/// One file needs another one, at that line.
type Needs = BTreeMap<PathBuf, BTreeMap<PathBuf, usize>>;

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = quote::ToTokens::to_token_stream(&attribute.meta).to_string();
        attribute.path().is_ident("cfg")
            && text.split(|c: char| !c.is_alphanumeric()).any(|word| word == "test")
    })
}

impl Crate {
    fn read(src: &Path) -> Self {
        let mut this = Self { modules: BTreeMap::new() };
        this.add(src, src.join("lib.rs"), Vec::new());
        this
    }

    fn add(&mut self, src: &Path, file: PathBuf, path: ModulePath) {
        let syntax = syn::parse_file(&fs::read_to_string(&file).unwrap()).unwrap();
        let directory = match file.file_name().unwrap().to_str().unwrap() {
            "lib.rs" | "mod.rs" => file.parent().unwrap().to_owned(),
            _ => file.with_extension(""),
        };
        let mut collector =
            Collector { path: &path, uses: HashMap::new(), names: Vec::new(), children: Vec::new() };
        collector.visit_file(&syntax);
        let Collector { uses, names, children, .. } = collector;
        let relative = file.strip_prefix(src).unwrap().to_owned();
        self.modules.insert(path.clone(), Module { file: relative, uses, names });
        for child in children {
            let flat = directory.join(format!("{child}.rs"));
            let file = if flat.exists() { flat } else { directory.join(&child).join("mod.rs") };
            let path = path.iter().cloned().chain([child]).collect();
            self.add(src, file, path);
        }
    }

    /// The file that defines what a path names.
    fn file_of(&self, path: &[String]) -> Option<&Path> {
        let mut path = path.to_vec();
        // A re-export can lead to another one.
        for _ in 0..10 {
            let depth = (0..=path.len()).rev().find(|&depth| self.modules.contains_key(&path[..depth]))?;
            let module = &self.modules[&path[..depth]];
            match path.get(depth).and_then(|name| module.uses.get(name)) {
                Some(target) => path = target.iter().chain(&path[depth + 1..]).cloned().collect(),
                None => return Some(&module.file),
            }
        }
        None
    }

    fn needs(&self) -> Needs {
        let mut needs = Needs::new();
        for module in self.modules.values() {
            for (name, line) in &module.names {
                if let Some(other) = self.file_of(name).filter(|&other| other != module.file) {
                    needs.entry(module.file.clone()).or_default().entry(other.to_owned()).or_insert(*line);
                }
            }
        }
        needs
    }
}

struct Collector<'a> {
    path: &'a ModulePath,
    uses: HashMap<String, ModulePath>,
    names: Vec<(ModulePath, usize)>,
    children: Vec<String>,
}

impl Collector<'_> {
    /// From the root of the crate; none if it leads out of it.
    fn absolute(&self, segments: &[String]) -> Option<ModulePath> {
        let up = segments.iter().take_while(|segment| *segment == "super").count();
        match segments[0].as_str() {
            "crate" => Some(segments[1..].to_vec()),
            "self" => Some([&self.path[..], &segments[1..]].concat()),
            "super" => Some([&self.path[..self.path.len() - up], &segments[up..]].concat()),
            first if self.children.iter().any(|child| child == first) => {
                Some([&self.path[..], segments].concat())
            }
            _ => None,
        }
    }

    fn add_use(&mut self, tree: &UseTree, prefix: &[String], public: bool) {
        let extended = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add_use(&path.tree, &extended(&path.ident), public),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_use(tree, prefix, public)),
            UseTree::Name(name) if name.ident == "self" => {
                let last = prefix.last().cloned().unwrap_or_default();
                self.add_name(prefix, last, name.ident.span(), public);
            }
            UseTree::Name(name) => {
                self.add_name(&extended(&name.ident), name.ident.to_string(), name.ident.span(), public);
            }
            UseTree::Rename(rename) => {
                self.add_name(
                    &extended(&rename.ident),
                    rename.rename.to_string(),
                    rename.ident.span(),
                    public,
                );
            }
            UseTree::Glob(_) => panic!("{}: a glob import", self.path.join("::")),
        }
    }

    fn add_name(&mut self, segments: &[String], name: String, span: proc_macro2::Span, public: bool) {
        let Some(path) = self.absolute(segments) else { return };
        self.uses.insert(name, path.clone());
        // A re-export is a place to find a name, no use of it.
        if !public {
            self.names.push((path, span.start().line));
        }
    }
}

impl<'ast> Visit<'ast> for Collector<'_> {
    fn visit_file(&mut self, file: &'ast syn::File) {
        let files = file.items.iter().filter_map(|item| match item {
            Item::Mod(module) if module.content.is_none() && !is_for_tests(&module.attrs) => {
                Some(module.ident.to_string())
            }
            _ => None,
        });
        self.children = files.collect();
        visit::visit_file(self, file);
    }

    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            _ => &Vec::new(),
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_for_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    /// Who may see something is no use of it.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let public = !matches!(item.vis, syn::Visibility::Inherited);
        self.add_use(&item.tree, &[], public);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        // What is in scope by a `use` is known from that, but for a re-export, which is none yet.
        let absolute = match self.uses.get(&segments[0]) {
            Some(target) => Some(target.iter().chain(&segments[1..]).cloned().collect()),
            None => (segments.len() > 1).then(|| self.absolute(&segments)).flatten(),
        };
        if let Some(absolute) = absolute {
            self.names.push((absolute, path.segments[0].ident.span().start().line));
        }
        visit::visit_path(self, path);
    }
}

fn floor(file: &Path) -> &str {
    let first = file.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs")
}

/// What one room of the tree uses of another that it may not.
fn across(needs: &Needs) -> String {
    let rooms: HashMap<_, _> = ROOMS.iter().copied().collect();
    let room = |file: &Path| -> Option<&'static str> {
        let inside = file.strip_prefix("tree").ok()?;
        ROOMS.iter().map(|(room, _)| *room).find(|room| inside.starts_with(room))
    };
    let mut found = String::new();
    for (file, others) in needs {
        let Some(own) = room(file) else { continue };
        for (other, line) in others {
            if room(other).is_some_and(|used| used != own && !rooms[own].contains(&used)) {
                writeln!(found, "src/{}:{line} uses src/{}", file.display(), other.display()).unwrap();
            }
        }
    }
    found
}

/// What a floor re-exports of the one under it is its own.
fn upward(sources: &Crate) -> String {
    let floors: HashMap<_, _> = FLOORS.iter().copied().collect();
    let mut found = String::new();
    for module in sources.modules.values().filter(|module| floor(&module.file) != "lib") {
        let own = floor(&module.file);
        for (name, line) in &module.names {
            if name.first().is_some_and(|used| used != own && !floors[own].contains(&used.as_str())) {
                let name = name.join("::");
                writeln!(found, "src/{}:{line} uses {name}", module.file.display()).unwrap();
            }
        }
    }
    found
}

/// All files that can be reached from each.
fn reachable(needs: &Needs) -> BTreeMap<&Path, BTreeSet<&Path>> {
    let reach = |from: &Path| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(file) = next.pop() {
            for (other, _) in needs.get_key_value(&file).into_iter().flat_map(|(_, others)| others) {
                if seen.insert(other.as_path()) {
                    next.push(other.clone());
                }
            }
        }
        seen
    };
    needs.keys().map(|file| (file.as_path(), reach(file))).collect()
}

fn circles(needs: &Needs) -> String {
    let reachable = reachable(needs);
    let mut found = String::new();
    for (file, others) in needs {
        for (other, line) in others {
            if reachable.get(other.as_path()).is_some_and(|files| files.contains(file.as_path())) {
                writeln!(found, "src/{}:{line} uses src/{}, which needs it", file.display(), other.display())
                    .unwrap();
            }
        }
    }
    found
}

fn sources() -> Crate {
    Crate::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

#[test]
fn a_floor_uses_only_those_under_it() {
    let found = upward(&sources());
    assert!(found.is_empty(), "\n{found}");
}

#[test]
fn a_room_of_the_tree_uses_only_those_under_it() {
    let found = across(&sources().needs());
    assert!(found.is_empty(), "\n{found}");
}

#[test]
fn no_two_files_need_each_other() {
    let found = circles(&sources().needs());
    assert!(found.is_empty(), "\n{found}");
}

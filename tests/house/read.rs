//! The workspace's sources, and what each module of them imports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, Macro, UseTree};

use crate::graph::Graph;

/// Each crate's module tree, by the paths of the modules.
#[derive(Clone)]
pub(crate) struct Workspace {
    crates: Vec<String>,
    modules: BTreeMap<Vec<String>, Vec<Item>>,
}

impl Workspace {
    /// Reads every crate that Cargo.toml names.
    pub(crate) fn read(root: &Path) -> Self {
        let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
        let members = manifest.split_once("members = [").unwrap().1.split_once(']').unwrap().0;
        let folders = members.split('"').skip(1).step_by(2);
        let mut workspace = Self { crates: Vec::new(), modules: BTreeMap::new() };
        for folder in folders {
            let manifest = std::fs::read_to_string(root.join(folder).join("Cargo.toml")).unwrap();
            let name = manifest.split_once("name = \"").unwrap().1.split_once('"').unwrap().0.to_owned();
            let source = root.join(folder).join("src");
            let file = ["lib.rs", "main.rs"].map(|file| source.join(file)).into_iter().find(|file| file.exists()).unwrap();
            workspace.module(vec![name.clone()], &file, &source);
            workspace.crates.push(name);
        }
        workspace
    }

    pub(crate) fn crates(&self) -> impl Iterator<Item = &str> {
        self.crates.iter().map(String::as_str)
    }

    /// The same with more at the end of a module.
    pub(crate) fn with(&self, module: &str, planted: &str) -> Self {
        let mut other = self.clone();
        let path: Vec<_> = module.split("::").map(str::to_owned).collect();
        let items = other.modules.get_mut(&path).unwrap_or_else(|| panic!("there is no module {module}"));
        items.extend(syn::parse_file(planted).unwrap().items);
        other
    }

    /// Which module imports which.
    pub(crate) fn graph(&self) -> Graph {
        let mut graph = Graph::default();
        for (path, items) in &self.modules {
            let mut imports = Imports { workspace: self, file: path, module: path.clone(), names: BTreeMap::new(), found: BTreeSet::new() };
            imports.items(items);
            for to in imports.found.iter().filter(|to| *to != path) {
                graph.add(&path.join("::"), &to.join("::"));
            }
        }
        graph
    }

    fn module(&mut self, path: Vec<String>, file: &Path, folder: &Path) {
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let items = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display())).items;
        for item in &items {
            if let Item::Mod(ItemMod { attrs, ident, content: None, .. }) = item
                && !is_test(attrs)
            {
                let name = ident.to_string();
                let inner = folder.join(&name);
                let files: [PathBuf; 2] = [folder.join(format!("{name}.rs")), inner.join("mod.rs")];
                // A module that Cargo generates or a path attribute names is none of ours.
                if let Some(file) = files.iter().find(|file| file.exists()) {
                    self.module(path.iter().cloned().chain([name]).collect(), file, &inner);
                }
            }
        }
        self.modules.insert(path, items);
    }

    /// The module that a path is in; `None`: it is none of the workspace's.
    fn find(&self, mut path: &[String]) -> Option<Vec<String>> {
        loop {
            match path {
                [] => return None,
                path if self.modules.contains_key(path) => return Some(path.to_vec()),
                [before @ .., _] => path = before,
            }
        }
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && matches!(&attribute.meta, syn::Meta::List(list) if list.tokens.to_string().split(|letter: char| !letter.is_alphanumeric()).any(|word| word == "test"))
    })
}

/// What one file imports.
struct Imports<'w> {
    workspace: &'w Workspace,
    /// The file's module.
    file: &'w [String],
    /// The module that is being read, inline ones too.
    module: Vec<String>,
    /// Names that stand for a path of the workspace here, and those that stand for something else.
    names: BTreeMap<String, Option<Vec<String>>>,
    found: BTreeSet<Vec<String>>,
}

impl Imports<'_> {
    fn items(&mut self, items: &[Item]) {
        let before = self.names.clone();
        for item in items {
            if let Item::Use(ItemUse { attrs, tree, leading_colon, .. }) = item
                && !is_test(attrs)
            {
                self.tree(tree, &mut Vec::new(), leading_colon.is_some());
            }
        }
        for item in items {
            if !is_test(attributes(item)) {
                self.visit_item(item);
            }
        }
        self.names = before;
    }

    fn tree(&mut self, tree: &UseTree, before: &mut Vec<String>, elsewhere: bool) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.tree(&path.tree, before, elsewhere);
                before.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, before, elsewhere)),
            UseTree::Glob(_) => {
                let path = self.resolve(before, elsewhere);
                self.take(path);
            }
            UseTree::Name(name) => {
                let name = name.ident.to_string();
                self.name(&name.clone(), name, before, elsewhere);
            }
            UseTree::Rename(rename) => self.name(&rename.ident.to_string(), rename.rename.to_string(), before, elsewhere),
        }
    }

    fn name(&mut self, name: &str, known: String, before: &[String], elsewhere: bool) {
        let path: Vec<_> = before.iter().cloned().chain((name != "self").then(|| name.to_owned())).collect();
        let path = self.resolve(&path, elsewhere);
        self.take(path.clone());
        let known = if known == "self" { before.last().cloned().unwrap_or_default() } else { known };
        self.names.insert(known, path);
    }

    fn take(&mut self, path: Option<Vec<String>>) {
        self.found.extend(path.and_then(|path| self.workspace.find(&path)));
    }

    /// The whole path, with the crate in front; `None`: it is none of the workspace's.
    fn resolve(&self, path: &[String], elsewhere: bool) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        let of_crate = |name: &str| self.workspace.crates.iter().find(|known| **known == name || lib(known) == name).cloned();
        let start = match first.as_str() {
            _ if elsewhere => vec![of_crate(first)?],
            "crate" => vec![self.file[0].clone()],
            "self" => self.module.clone(),
            "super" => {
                let up = path.iter().take_while(|part| *part == "super").count();
                let kept = self.module.len().saturating_sub(up);
                return Some(self.module[..kept].iter().chain(&path[up..]).cloned().collect());
            }
            name => match (self.names.get(name), of_crate(name)) {
                (Some(known), _) => known.clone()?,
                // A child of this module is nearer than a crate of the same name.
                _ if self.is_child(name) => self.module.iter().cloned().chain([name.to_owned()]).collect(),
                (None, Some(name)) => vec![name],
                (None, None) => return None,
            },
        };
        Some(start.into_iter().chain(rest.iter().cloned()).collect())
    }

    fn is_child(&self, name: &str) -> bool {
        let child: Vec<_> = self.module.iter().cloned().chain([name.to_owned()]).collect();
        self.workspace.modules.contains_key(&child)
    }

    /// Paths among the arguments of a macro, which nobody parses.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.whole(&mut path);
                    }
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.whole(&mut path);
                    self.tokens(group.stream());
                    colons = 0;
                }
                _ => {
                    self.whole(&mut path);
                    colons = 0;
                }
            }
        }
        self.whole(&mut path);
    }

    fn whole(&mut self, path: &mut Vec<String>) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            let path = self.resolve(&path, false);
            self.take(path);
        }
    }
}

/// The name by which other crates import one.
fn lib(name: &str) -> String {
    if name == "filter" { "stepward_filter".to_owned() } else { name.replace('-', "_") }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

impl<'ast> Visit<'ast> for Imports<'_> {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        let Some((_, items)) = item.content.as_ref().filter(|_| !is_test(&item.attrs)) else { return };
        self.module.push(item.ident.to_string());
        self.items(items);
        self.module.pop();
    }

    fn visit_item_use(&mut self, _: &'ast ItemUse) {}

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_block(&mut self, block: &'ast syn::Block) {
        let before = self.names.clone();
        for statement in &block.stmts {
            if let syn::Stmt::Item(Item::Use(item)) = statement {
                self.tree(&item.tree, &mut Vec::new(), item.leading_colon.is_some());
            }
        }
        visit::visit_block(self, block);
        self.names = before;
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if parts.len() > 1 {
            let path = self.resolve(&parts, path.leading_colon.is_some());
            self.take(path);
        }
        visit::visit_path(self, path);
    }

    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    fn visit_macro(&mut self, called: &'ast Macro) {
        self.tokens(called.tokens.clone());
        visit::visit_macro(self, called);
    }
}

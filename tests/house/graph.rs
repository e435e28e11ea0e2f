//! A graph of imports, and its circles.

use std::collections::{BTreeMap, BTreeSet};

/// Which module imports which, each by its path with the crate in front.
#[derive(Debug, Default)]
pub(crate) struct Graph(BTreeMap<String, BTreeSet<String>>);

impl Graph {
    pub(crate) fn add(&mut self, from: &str, to: &str) {
        self.0.entry(from.to_owned()).or_default().insert(to.to_owned());
    }

    pub(crate) fn edges(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|(from, to)| to.iter().map(move |to| (from.as_str(), to.as_str())))
    }

    /// The sets of modules of which each reaches each, largest first.
    pub(crate) fn circles(&self) -> Vec<Vec<String>> {
        let reached: BTreeMap<&str, BTreeSet<&str>> = self.0.keys().map(|from| (from.as_str(), self.reached(from))).collect();
        let mut circles = BTreeSet::new();
        for (module, others) in &reached {
            let circle: Vec<_> = others
                .iter()
                .filter(|other| reached.get(*other).is_some_and(|back| back.contains(module)))
                .map(|other| (*other).to_owned())
                .collect();
            if circle.len() > 1 {
                circles.insert(circle);
            }
        }
        let mut circles: Vec<_> = circles.into_iter().collect();
        circles.sort_by_key(|circle| std::cmp::Reverse(circle.len()));
        circles
    }

    /// The imports within a circle, for whoever has to cut one.
    pub(crate) fn shown(&self, circle: &[String]) -> String {
        let within = |(from, to): &(&str, &str)| [from, to].into_iter().all(|one| circle.iter().any(|module| module == one));
        self.edges().filter(within).map(|(from, to)| format!("{from} -> {to}")).collect::<Vec<_>>().join("; ")
    }

    fn reached(&self, from: &str) -> BTreeSet<&str> {
        let mut reached = BTreeSet::new();
        let mut left: Vec<&str> = self.0.get(from).into_iter().flatten().map(String::as_str).collect();
        while let Some(next) = left.pop() {
            if reached.insert(next) {
                left.extend(self.0.get(next).into_iter().flatten().map(String::as_str));
            }
        }
        reached
    }
}

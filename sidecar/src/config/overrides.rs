//! Variables that override single values of the file, `STEPWARD__SECTION__KEY`.

use settings::document::{Data, Table};
use settings::words::suggestion;
use settings::{Environment, Place, Report};

/// Prefix of the variables that override single values.
const PREFIX: &str = "STEPWARD__";

/// Tables of the top level that a variable may open.
const SECTIONS: &[&str] = &["listen", "envoy", "query", "replay", "log", "store"];

/// Applies `STEPWARD__SECTION__KEY`, `STEPWARD__PROVIDER__NAME__KEY` (or `POLICY`) and `STEPWARD__WEBHOOK__NUMBER__KEY` (from 0).
pub(super) fn apply(root: &mut Table, env: &Environment, report: &Report) {
    // Without `STATE_DIRECTORY` the store would be another one, which has no locks.
    for name in env.not_text().filter(|name| name.starts_with(PREFIX) || *name == "STATE_DIRECTORY") {
        report.mistake(&Place::Variable(name.to_owned()), "is not text in UTF-8");
    }
    for (name, value) in env.variables() {
        let Some(path) = name.strip_prefix(PREFIX) else { continue };
        let path = path.to_ascii_lowercase();
        let place = Place::Variable(name.to_owned());
        let mut steps: Vec<_> = path.split("__").collect();
        let Some(key) = steps.pop().filter(|_| !steps.is_empty()) else {
            report.mistake(&place, "names no key: write STEPWARD__SECTION__KEY, as in STEPWARD__LISTEN__ADMIN");
            continue;
        };
        match open(root, &steps, &place) {
            Ok(table) => table.set(key, name, Data::Given(value.to_owned())),
            Err(message) => report.mistake(&place, message),
        }
    }
}

fn open<'t>(root: &'t mut Table, steps: &[&str], place: &Place) -> Result<&'t mut Table, String> {
    let (start, rest) = match steps {
        ["webhook", number, rest @ ..] => (webhook(root, number)?, rest),
        [kind @ ("provider" | "policy"), name, rest @ ..] => (named(root, kind, name)?, rest),
        ["webhook"] => return Err("names no webhook: write STEPWARD__WEBHOOK__0__KEY for the first one".to_owned()),
        [kind @ ("provider" | "policy")] => {
            return Err(format!("names no key: write STEPWARD__{}__NAME__KEY", kind.to_ascii_uppercase()));
        }
        [section, rest @ ..] if SECTIONS.contains(section) => {
            (root.table(section, place).ok_or_else(|| format!("`{section}` is not a table"))?, rest)
        }
        _ => {
            let given = steps.first().copied().unwrap_or_default();
            let known = [SECTIONS, &["webhook", "provider", "policy"]].concat();
            return Err(format!("there is no section `{given}`; {}", suggestion(given, &known)));
        }
    };
    rest.iter().try_fold(start, |table, step| table.table(step, place).ok_or_else(|| format!("`{step}` is not a table")))
}

fn webhook<'t>(root: &'t mut Table, number: &str) -> Result<&'t mut Table, String> {
    let list = match root.entries.get_mut("webhook").map(|entry| &mut entry.value.data) {
        Some(Data::List(list)) => list.as_mut_slice(),
        _ => &mut [],
    };
    let count = list.len();
    let wrong = || format!("there is no webhook `{number}`: they are numbered from 0, and there are {count}");
    match number.parse::<usize>().ok().and_then(|number| list.get_mut(number)).map(|value| &mut value.data) {
        Some(Data::Table(table)) => Ok(table),
        _ => Err(wrong()),
    }
}

/// Finds the table of a provider or policy; its name may be written with `_` for `-`, which no variable has.
fn named<'t>(root: &'t mut Table, kind: &str, name: &str) -> Result<&'t mut Table, String> {
    let wanted = name.replace('-', "_");
    let tables = match root.entries.get_mut(kind).map(|entry| &mut entry.value.data) {
        Some(Data::Table(table)) => Some(table),
        _ => None,
    };
    let found = tables.and_then(|table| table.entries.iter_mut().find(|(key, _)| key.to_ascii_lowercase().replace('-', "_") == wanted));
    match found.map(|(_, entry)| &mut entry.value.data) {
        Some(Data::Table(table)) => Ok(table),
        _ => Err(format!("there is no {kind} `{name}`: a variable changes one that the file has")),
    }
}

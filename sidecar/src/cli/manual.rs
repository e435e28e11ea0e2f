//! The pages of the manual: what `--help` says, in the sections that a manual has.

use std::io;
use std::path::Path;

use clap::Command;
use clap_mangen::roff::{Roff, bold, roman};
use clap_mangen::{Man, roff};

use super::exit::Exit;

/// Makes the page of a command that was built.
pub(super) fn page(command: &Command, root: &Command) -> io::Result<Vec<u8>> {
    let man = Man::new(command.clone());
    let help = Help::of(command);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    let mut notes = Roff::new();
    paragraphs(&mut notes, &help.notes);
    notes.to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut rest = Roff::new();
    exits(&mut rest, &help.exits);
    files(&mut rest, command, root);
    examples(&mut rest, &help.examples);
    see_also(&mut rest, command, root);
    rest.to_writer(&mut page)?;
    if command.get_version().is_some() {
        man.render_version_section(&mut page)?;
    }
    Ok(page)
}

/// Writes the page of a command and of all below it, each under the name that the others have for it.
pub(super) fn write(command: &Command, root: &Command, dir: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write(below, root, dir)?;
    }
    std::fs::write(dir.join(format!("{}.1", name(command))), page(command, root)?)
}

/// Text below the options of a command's help: examples, notes, and last of all its exit codes.
#[derive(Debug, Default)]
pub(super) struct Help {
    examples: Vec<String>,
    notes: Vec<String>,
    /// Exit codes with their meanings, from a line such as `Exit codes: 0 done, 1 failed, or done by half, 2 usage.`
    pub(super) exits: Vec<(u8, String)>,
}

impl Help {
    pub(super) fn of(command: &Command) -> Self {
        let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let mut help = Self::default();
        let mut in_examples = false;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line == "Exit codes:" {
                // This list is the whole program's, which may end with any of them.
                break;
            } else if line.starts_with("Exit codes") {
                let codes: Vec<&str> = std::iter::once(line).chain(lines.by_ref()).collect();
                help.exits = exit_codes(&codes.join(" "));
            } else if let Some(first) = line.strip_prefix("Examples:").or_else(|| line.strip_prefix("Example:")) {
                in_examples = true;
                help.examples.extend((!first.is_empty()).then(|| first.trim().to_owned()));
            } else if in_examples && !line.trim().is_empty() {
                help.examples.push(line.trim().to_owned());
            } else {
                in_examples = false;
                help.notes.push(line.to_owned());
            }
        }
        help
    }
}

/// Reads exit codes, each with its meaning. A meaning may have commas: a number behind one begins the next code.
fn exit_codes(text: &str) -> Vec<(u8, String)> {
    let mut codes: Vec<(u8, String)> = Vec::new();
    let (_, text) = text.split_once(": ").unwrap_or_default();
    for part in text.trim_end_matches('.').split(", ") {
        let code = part.split_once(' ').and_then(|(code, meaning)| Some((code.parse().ok()?, meaning.to_owned())));
        match (code, codes.last_mut()) {
            (Some(code), _) => codes.push(code),
            (None, Some((_, meaning))) => {
                meaning.push_str(", ");
                meaning.push_str(part);
            }
            (None, None) => {}
        }
    }
    codes
}

fn paragraphs(page: &mut Roff, lines: &[String]) {
    for line in lines {
        if line.trim().is_empty() {
            page.control("PP", []);
        } else {
            page.text([roman(line.as_str())]);
        }
    }
}

fn tagged(page: &mut Roff, tag: roff::Inline, text: &str) {
    page.control("TP", []).text([tag]).text([roman(text)]);
}

fn exits(page: &mut Roff, own: &[(u8, String)]) {
    page.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in own {
        tagged(page, bold(code.to_string()), meaning);
    }
    // Every command may end unread, and a command with others below it may end as they do.
    for (code, meaning) in Exit::ALL.iter().filter(|(code, _)| *code == Exit::UNREAD || own.is_empty()) {
        tagged(page, bold(code.to_string()), meaning);
    }
}

fn files(page: &mut Roff, command: &Command, root: &Command) {
    let takes = |name: &str| command.get_arguments().any(|argument| argument.get_id() == name);
    let wanted = FILES.iter().filter(|(argument, ..)| name(command) == name(root) || takes(argument));
    for (number, (_, file, what)) in wanted.enumerate() {
        if number == 0 {
            page.control("SH", ["FILES"]);
            page.text([roman("As the Debian package has them:")]);
        }
        tagged(page, bold(*file), what);
    }
}

fn examples(page: &mut Roff, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    page.control("SH", ["EXAMPLES"]).control("nf", []);
    for line in lines {
        page.text([roman(line.as_str())]);
    }
    page.control("fi", []);
}

fn see_also(page: &mut Roff, command: &Command, root: &Command) {
    let own = name(command);
    let mut others: Vec<String> = RELATED
        .iter()
        .filter(|group| group.iter().any(|one| *one == own))
        .flat_map(|group| group.iter().map(|one| (*one).to_owned()))
        .chain([name(root)])
        .filter(|other| *other != own)
        .collect();
    others.sort_unstable();
    others.dedup();
    let mut said: Vec<String> = others.into_iter().map(|other| format!("{other}(1)")).collect();
    said.push(format!("the guides in {GUIDES}"));
    page.control("SH", ["SEE ALSO"]).text([roman(said.join(", "))]);
}

/// Returns the name of a command's page, as in `stepward-webhook-send`.
fn name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

/// Folder in which the package has `docs/`.
const GUIDES: &str = "/usr/share/doc/stepward/docs";

/// Files, by the argument that names another one, and what each is.
const FILES: &[(&str, &str, &str)] = &[
    ("config", "/etc/stepward/stepward.toml", "The configuration. A command reads the one that --config or STEPWARD_CONFIG names."),
    ("socket", "/run/stepward", "A folder for each socket of the service, such as admin/admin.sock."),
    ("store", "/var/lib/stepward/stepward.db", "The store: locks, exemptions and decisions; beside it -wal, -shm and .lock."),
];

/// Pages that belong together, by groups: a reader of one may look for the others.
const RELATED: &[&[&str]] = &[
    &["stepward-serve", "stepward-reload", "stepward-healthcheck", "stepward-doctor", "stepward-envoy-config", "stepward-check-config"],
    &["stepward-init", "stepward-check-config", "stepward-envoy-config", "stepward-serve"],
    &["stepward-lock", "stepward-unlock", "stepward-locks", "stepward-exempt", "stepward-unexempt", "stepward-backup"],
    &[
        "stepward-store",
        "stepward-store-status",
        "stepward-store-migrate",
        "stepward-store-copy",
        "stepward-backup",
        "stepward-check-config",
    ],
    &["stepward-decisions", "stepward-explain", "stepward-query", "stepward-locks"],
    &["stepward-webhook", "stepward-webhook-send", "stepward-webhook-verify", "stepward-webhook-rotate", "stepward-explain"],
    &["stepward-policy", "stepward-policy-test", "stepward-query", "stepward-check-config"],
    &["stepward-cache", "stepward-cache-ls", "stepward-cache-purge", "stepward-query", "stepward-reload"],
    &["stepward-version", "stepward-completions", "stepward-man"],
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::super::Cli;
    use super::*;

    fn all(command: &Command) -> Vec<&Command> {
        std::iter::once(command).chain(command.get_subcommands().flat_map(all)).collect()
    }

    fn built() -> Command {
        let mut root = Cli::command().disable_help_subcommand(true);
        root.build();
        root
    }

    #[test]
    fn e22_a_page_has_the_sections_of_a_manual() {
        let root = built();
        for command in all(&root) {
            let page = String::from_utf8(page(command, &root).unwrap()).unwrap();
            let headings: Vec<_> = page.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
            let wanted = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "\"EXIT STATUS\"", "\"SEE ALSO\""];
            let missing: Vec<_> = wanted.iter().filter(|name| !headings.contains(name)).collect();
            assert!(missing.is_empty() && !page.contains("EXTRA"), "{}: {missing:?} of {headings:?}", name(command));
            assert_eq!(headings.contains(&"EXAMPLES"), command.get_after_help().is_some(), "{}", name(command));
            assert!(page.contains("\n\\fB141\\fR\n"), "{page}");
        }
        let send = root.find_subcommand("webhook").unwrap().find_subcommand("send").unwrap();
        let page = String::from_utf8(page(send, &root).unwrap()).unwrap();
        for text in [
            "\n\\fB3\\fR\ndenied\n.TP\n",
            "\n.SH FILES\n",
            "/etc/stepward/stepward.toml",
            "\n.SH EXAMPLES\n.nf\nstepward webhook send \\-\\-config",
            "stepward\\-webhook\\-verify(1)",
        ] {
            assert!(page.contains(text), "{text}: {page}");
        }
    }

    #[test]
    fn e22_exit_codes_are_those_that_there_are_and_the_pages_name_each_other() {
        let root = built();
        let names: BTreeSet<_> = all(&root).into_iter().map(name).collect();
        let related: BTreeSet<_> = RELATED.iter().copied().flatten().map(|name| (*name).to_owned()).chain([name(&root)]).collect();
        assert_eq!(related, names);
        for command in all(&root).into_iter().filter(|command| !command.has_subcommands()) {
            let codes: Vec<u8> = Help::of(command).exits.iter().map(|(code, _)| *code).collect();
            assert!(codes.is_sorted() && codes.starts_with(&[0]) && codes.contains(&2), "{}: {codes:?}", name(command));
            assert!(codes.iter().all(|code| Exit::ALL.iter().any(|(known, _)| known == code)), "{}: {codes:?}", name(command));
        }
        assert_eq!(
            exit_codes("Exit codes, of the last one: 0 done, or half of it, 1 failed (4xx, 5xx), 2 usage."),
            [(0, "done, or half of it".to_owned()), (1, "failed (4xx, 5xx)".to_owned()), (2, "usage".to_owned())]
        );
    }
}

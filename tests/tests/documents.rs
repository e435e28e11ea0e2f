//! What the documents say is so: their commands run, their tables are the code's, their links lead somewhere.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::tools::{envoy, free_port, machine, root, sandbox, step_folder, stepward};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use posture::outcome::{Denial, Refusal};
use posture::policy::NAMED;
use posture::record::{Field, FieldType};
use posture::reply::public;
use posture::time::Window;

#[tokio::test(flavor = "multi_thread")]
async fn readme_leads_to_a_certificate() {
    run("README.md").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_setup_guide_leads_to_a_certificate() {
    run("docs/setup.md").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e1_the_guide_for_compose_leads_to_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = sandbox();
    command.args(["bash", "-euxc"]).arg([CLONE, &blocks("docs/compose.md"), RENEWALS, NOTHING_LEFT].concat());
    let printed = run_by("docs/compose.md", command, folder.path()).await;
    assert!(!printed.contains("the filter is not there"), "{printed}");
    assert!(printed.contains("renew-certificate: the certificate has ended"), "{printed}");
    assert!(printed.contains("renew-certificate: step-ca does not run, or has no /home/step/envoy.crt"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn e10_the_guide_for_packages_leads_to_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = machine();
    // Another root than this one has the folder of the script.
    command.args(["bash", "-euxc"]).arg(blocks("docs/packages.md"));
    let printed = run_by("docs/packages.md", command, folder.path()).await;
    assert!(!printed.contains("the filter is not there"), "{printed}");
}

#[test]
fn no_runnable_block_is_left_out() {
    let found: BTreeSet<_> = documents().into_iter().filter(|document| !blocks(document).is_empty()).collect();
    assert_eq!(found, BTreeSet::from(RUN.map(str::to_owned)), "each needs a test of its own above");
}

#[test]
fn the_page_of_codes_lists_every_denial() {
    let rows = table(&read("docs/codes.md"), "| code | message | when | what to do |");
    let expected: Vec<_> = Denial::ALL.iter().map(|denial| (format!("`{}`", denial.code), denial.message.to_string())).collect();
    let listed: Vec<_> = rows.iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    assert_eq!(listed, expected, "docs/codes.md");
    assert_filled(&rows);
}

#[test]
fn the_table_of_bounds_names_tests_that_there_are() {
    let rows = table(&read("SECURITY.md"), "| resource | bound | who shares it | test |");
    assert!(rows.len() >= 29, "{} rows: a blank line ends the table", rows.len());
    let source = e2e::process::run(Command::new("git").args(["grep", "-hE", r"fn [a-z0-9_]+\("]).current_dir(root()));
    let tests: BTreeSet<_> = source.lines().filter_map(|line| line.split_once("fn ")?.1.split('(').next()).collect();
    for row in &rows {
        let named: Vec<_> = row[3].split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty() || row[3] == "the same", "{row:?}");
        assert!(named.iter().all(|name| tests.contains(name)), "{row:?}");
    }
}

#[test]
fn the_page_of_policies_lists_every_field() {
    let rows = table(&read("docs/policy.md"), "| name | type | what it is |");
    let kind = |field: &Field| match field.holds() {
        FieldType::Text => "text",
        FieldType::Flag => "true or false",
        FieldType::Time => "time",
        FieldType::Groups => "list of texts",
        FieldType::Data => "free columns",
    };
    let expected: Vec<_> = Field::ALL.iter().map(|field| (format!("`device.{}`", field.as_str()), kind(field).to_owned())).collect();
    let listed: Vec<_> = rows.iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    assert_eq!(listed, expected, "docs/policy.md");
    assert_filled(&rows);
}

#[test]
fn the_page_of_policies_lists_every_rule_that_has_a_name() {
    let rows = table(&read("docs/policy.md"), "| key | example | denies with | when |");
    // An address denies nothing.
    let (rules, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| !row[2].is_empty());
    assert_eq!(others.iter().map(|row| &*row[0]).collect::<Vec<_>>(), ["`remediation_url`"]);
    let expected: Vec<_> = NAMED.iter().map(|named| (format!("`{}`", named.key), format!("`{}`", named.denial.code))).collect();
    let listed: Vec<_> = rules.iter().map(|row| (row[0].clone(), row[2].clone())).collect();
    assert_eq!(listed, expected, "docs/policy.md");
    assert_filled(&rules);
}

#[test]
fn the_page_of_codes_lists_every_refusal() {
    let rows = table(&read("docs/codes.md"), "| cause | status | code | when | what to do |");
    let expected: Vec<_> = Refusal::ALL
        .iter()
        .map(|refusal| {
            let (status, code, _) = public(*refusal);
            (format!("`{}`", refusal.as_str()), status.to_string(), format!("`{code}`"))
        })
        .collect();
    let listed: Vec<_> = rows.iter().map(|row| (row[0].clone(), row[1].clone(), row[2].clone())).collect();
    assert_eq!(listed, expected, "docs/codes.md");
    assert_filled(&rows);
}

#[test]
fn the_page_of_codes_lists_every_message_of_a_refusal() {
    let rows = table(&read("docs/codes.md"), "| code | status | message |");
    let listed: BTreeSet<_> = rows.iter().map(|row| (row[0].clone(), row[1].clone(), row[2].clone())).collect();
    let expected: BTreeSet<_> = Refusal::ALL
        .iter()
        .map(|refusal| {
            let (status, code, message) = public(*refusal);
            (format!("`{code}`"), status.to_string(), message.to_owned())
        })
        .collect();
    assert_eq!(listed, expected, "docs/codes.md");
    assert_eq!(rows.len(), expected.len(), "a line stands twice");
}

#[test]
fn the_page_of_configuration_has_every_key_of_the_example() {
    let page = read("docs/configuration.md");
    let example = read("docs/stepward.example.toml");
    let keys: BTreeSet<_> = example.lines().filter_map(key).collect();
    assert!(keys.contains("sockets") && keys.contains("max_bytes"), "{keys:?}");
    let documented: BTreeSet<_> = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(key, _)| key)).collect();
    assert_eq!(documented, keys);
}

#[test]
fn the_page_of_configuration_and_the_example_have_the_window_that_is_the_default() {
    let Window { past, future } = Window::default();
    let window = format!("{{ past = \"{past:?}\", future = \"{future:?}\" }}");
    assert!(
        read("docs/configuration.md").contains(&format!("\n| `window` | `{window}` |")),
        "docs/configuration.md, row `window`: {window}"
    );
    let example = read("docs/stepward.example.toml");
    assert!(example.lines().any(|line| line == format!("window = {window}")), "docs/stepward.example.toml: window = {window}");
}

#[test]
fn every_service_has_its_page_its_link_its_name_in_readme_and_its_word_among_the_types() {
    let (list, configuration) = (read("docs/README.md"), read("docs/configuration.md"));
    let types = configuration.lines().find(|line| line.starts_with("| `type` |")).unwrap();
    let example = read("docs/stepward.example.toml");
    let among = example.lines().find(|line| line.starts_with("# type = \"jamf\"")).unwrap();
    let readme = read("README.md");
    let block = readme.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    // The column of what the sidecar asks goes on over the lines.
    let diagram = block.replace(['│', '▲'], " ").split_whitespace().collect::<Vec<_>>().join(" ");
    let status = readme.split("\n## Status\n").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    for fakes::services::StandIn { word, .. } in fakes::services::SERVICES {
        assert!(root().join(format!("docs/providers/{word}.md")).exists(), "there is no docs/providers/{word}.md");
        let (before, _) = list
            .split_once(&format!("](providers/{word}.md)"))
            .unwrap_or_else(|| panic!("docs/README.md has no link to providers/{word}.md"));
        let name = before.rsplit('[').next().unwrap();
        assert!(diagram.contains(name), "README.md: the diagram has no \"{name}\", which docs/README.md calls providers/{word}.md");
        assert!(status.contains(name), "README.md: the status has no \"{name}\", which docs/README.md calls providers/{word}.md");
        assert!(types.contains(&format!("`{word}`")), "docs/configuration.md, row `type`, has no `{word}`");
        assert!(among.contains(*word), "docs/stepward.example.toml has no `{word}` beside \"jamf\"");
    }
}

#[test]
fn readme_shows_what_envoy_config_prints() {
    let folder = tempfile::tempdir().unwrap();
    e2e::process::run(Command::new(stepward()).args(["init", "."]).current_dir(folder.path()));
    let printed = e2e::process::run(
        Command::new(stepward())
            .args(["envoy-config", "--config", "stepward.toml"])
            .env("STEPWARD__ENVOY__WASM", "/usr/lib/stepward/stepward_filter.wasm")
            .current_dir(folder.path()),
    );
    let printed: BTreeSet<_> = printed.lines().map(str::trim).collect();
    let readme = read("README.md");
    let (_, excerpt) = readme.split_once("```yaml\n").unwrap();
    let (excerpt, _) = excerpt.split_once("```").unwrap();
    for line in excerpt.lines() {
        let line = line.split("  #").next().unwrap().trim();
        assert!(printed.contains(line), "{line}");
    }
}

#[test]
fn the_map_of_the_tree_names_what_is_there() {
    let map = read("ARCHITECTURE.md");
    let paths: Vec<_> = map.split('`').skip(1).step_by(2).filter(|word| word.contains('/') && !word.contains([' ', '<', '*'])).collect();
    assert!(paths.len() > 20, "{paths:?}");
    for path in &paths {
        assert!(root().join(path).exists(), "{path} is not in the tree");
    }
}

#[test]
fn the_map_of_the_tree_leaves_no_folder_out() {
    let map = read("ARCHITECTURE.md");
    let files = e2e::process::run(Command::new("git").args(["ls-files"]).current_dir(root()));
    let folders: BTreeSet<_> = files.lines().filter_map(|path| path.split_once('/').map(|(folder, _)| folder)).collect();
    assert!(folders.contains("posture"), "{folders:?}");
    for folder in folders {
        assert!(map.contains(&format!("`{folder}/")), "ARCHITECTURE.md does not say what {folder}/ is");
    }
}

#[test]
fn the_map_of_the_tree_leaves_no_module_of_the_service_out() {
    let map = read("ARCHITECTURE.md");
    let files = e2e::process::run(Command::new("git").args(["ls-files", "engine/src", "sidecar/src", "sidecar/tests"]).current_dir(root()));
    // `cache.rs` and what is in `cache/` are one.
    let module = |path: &str| path.split('/').take(3).collect::<Vec<_>>().join("/").trim_end_matches(".rs").to_owned();
    let modules: BTreeSet<_> = files.lines().map(module).collect();
    for there in ["engine/src/cache", "sidecar/src/webhook", "sidecar/tests/service"] {
        assert!(modules.contains(there), "{modules:?}");
    }
    for module in modules {
        assert!([".rs`", "/`"].iter().any(|end| map.contains(&format!("`{module}{end}"))), "ARCHITECTURE.md does not say what {module} is");
    }
}

#[test]
fn the_list_of_commands_has_every_one_that_the_help_has() {
    let rows = table(&read("docs/README.md"), "| command | what for | page |");
    let listed: Vec<_> = rows.iter().map(|row| row[0].clone()).collect();
    let under = |command: &String| commands(&[command]).into_iter().map(|name| format!("{command} {name}")).collect::<Vec<_>>();
    let expected = commands(&[]).into_iter().flat_map(|command| match under(&command) {
        none if none.is_empty() => vec![command],
        under => under,
    });
    assert_eq!(listed, expected.map(|command| format!("`{command}`")).collect::<Vec<_>>());
    assert_filled(&rows);
}

#[test]
fn e22_the_page_of_codes_has_the_exit_codes_of_the_help() {
    let help = e2e::process::run(Command::new(stepward()).arg("--help"));
    let (_, codes) = help.split_once("\nExit codes:\n").unwrap();
    let said: Vec<_> = codes.lines().map_while(|line| line.trim().split_once(' ')).map(|(code, what)| vec![code, what.trim()]).collect();
    assert!(said.len() >= 6, "{help}");
    assert_eq!(table(&read("docs/codes.md"), "| code | meaning |"), said);
}

#[test]
fn e19_what_messages_and_alerts_name_of_the_documents_is_there() {
    let files = e2e::process::run(
        Command::new("git")
            .args(["ls-files", "inventory/src", "engine/src", "store/src", "settings/src", "sidecar/src", "filter/src", "deploy"])
            .current_dir(root()),
    );
    let mut seen = 0;
    for file in files.lines() {
        // Of a text that goes on in the next line as well.
        let text = read(file).replace("\\\n", " ").replace("\\\"", "\"");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for named in text.split("docs/").skip(1) {
            let Some((page, rest)) = named.split_once(".md") else { continue };
            // Other projects' pages have capitals.
            if !page.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-/".contains(letter)) {
                continue;
            }
            let page = read(&format!("docs/{page}.md"));
            seen += 1;
            if let Some(heading) = rest.strip_prefix(", \"").and_then(|rest| rest.split('"').next()) {
                let headings: Vec<_> = page.lines().filter(|line| line.starts_with('#')).collect();
                assert!(headings.iter().any(|line| line.contains(heading)), "{file} names \"{heading}\", and there are {headings:?}");
            }
        }
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn e27_what_the_filter_says_is_shown_wherever_envoys_log_is_made_quieter() {
    for file in ["deploy/systemd/stepward-envoy.service", "deploy/docker/Dockerfile.envoy", "tools/demo"] {
        let text = read(file).replace("\", \"", " ");
        let quiet: Vec<_> = text.lines().filter(|line| line.contains("--log-level warning")).collect();
        assert!(!quiet.is_empty() && quiet.iter().all(|line| line.contains("--component-log-level wasm:info")), "{file}: {quiet:?}");
    }
}

#[test]
fn every_decision_is_listed_and_says_what_it_costs() {
    let list = read("docs/decisions/README.md");
    let pages: Vec<_> =
        documents().into_iter().filter(|document| document.starts_with("docs/decisions/") && !document.ends_with("README.md")).collect();
    assert!(!pages.is_empty());
    for page in pages {
        assert!(list.contains(&format!("({})", page.trim_start_matches("docs/decisions/"))), "{page} is not listed");
        let text = read(&page);
        let headings: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!(headings, ["Problem", "Decision", "Why", "Cost"], "{page}");
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for document in documents() {
        let text = read(&document);
        let folder = root().join(&document).parent().unwrap().to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            if target.contains("://") {
                continue;
            }
            let file = if path.is_empty() { root().join(&document) } else { folder.join(path) };
            assert!(file.exists(), "{document} links to {target}, which is not there");
            if !anchor.is_empty() {
                let headings = fs::read_to_string(&file).unwrap();
                assert!(
                    headings.lines().any(|line| anchor_of(line).as_deref() == Some(anchor)),
                    "{document} links to {target}: no such heading"
                );
            }
        }
    }
}

/// As GitHub makes it.
fn anchor_of(line: &str) -> Option<String> {
    let heading = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    Some(kept.collect::<String>().to_lowercase().replace(' ', "-"))
}

/// The key of a line of TOML, one that is commented out too.
fn key(line: &str) -> Option<&str> {
    let (key, _) = line.strip_prefix("# ").unwrap_or(line).split_once(" = ")?;
    key.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_').then_some(key)
}

/// The rows of the table with this header.
fn table(page: &str, header: &str) -> Vec<Vec<String>> {
    let (_, after) = page.split_once(&format!("{header}\n")).unwrap_or_else(|| panic!("there is no table {header}"));
    let rows = after.lines().skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

fn assert_filled(rows: &[Vec<String>]) {
    for row in rows {
        assert!(row.iter().all(|cell| !cell.is_empty()), "{row:?}");
    }
}

/// The commands that the help of one lists, in its order.
fn commands(of: &[&str]) -> Vec<String> {
    let help = e2e::process::run(Command::new(stepward()).args(of).arg("--help"));
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = list.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names.filter(|name| !name.is_empty() && *name != "help").map(str::to_owned).collect()
}

/// Every Markdown file that is in the tree, by its path from the root.
fn documents() -> Vec<String> {
    let mut folders = vec![PathBuf::new()];
    let mut documents = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            let name = path.to_str().unwrap().to_owned();
            if entry.file_type().unwrap().is_dir() {
                if !name.starts_with('.') && !name.ends_with("target") {
                    folders.push(path);
                }
            } else if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
                documents.push(name);
            }
        }
    }
    documents
}

fn read(document: &str) -> String {
    fs::read_to_string(root().join(document)).unwrap_or_else(|error| panic!("read {document}: {error}"))
}

/// The blocks between "```sh runnable" and "```", as one script.
fn blocks(document: &str) -> String {
    let mut script = String::new();
    let mut inside = false;
    for line in read(document).lines() {
        match (inside, line) {
            (false, "```sh runnable") => inside = true,
            (true, "```") => inside = false,
            (true, line) => script += &format!("{line}\n"),
            (false, _) => {}
        }
    }
    assert!(!inside, "a block of {document} does not end");
    script
}

/// Runs a document as a reader does, from the first block to the last, in an empty folder and on ports of its own.
async fn run(document: &str) {
    let folder = tempfile::tempdir().unwrap();
    // Both are made here where they are missing, before the clock runs.
    let programs = [stepward().parent().unwrap().to_owned(), step_folder().to_owned()];
    envoy();
    let inherited = std::env::var_os("PATH").unwrap();
    let path = std::env::join_paths(programs.into_iter().chain(std::env::split_paths(&inherited))).unwrap();
    let mut command = Command::new("bash");
    command.args(["-euxc"]).arg(blocks(document));
    command.env("PATH", path).env("STEPWARD_REPO", root());
    for port in ["PORT", "CA_PORT", "ADMIN_PORT", "STATS_PORT"] {
        command.env(port, free_port().to_string());
    }
    run_by(document, command, folder.path()).await;
}

/// Runs the command that runs a document, and all that it starts, to its end, and has what it printed.
async fn run_by(document: &str, mut command: Command, folder: &Path) -> String {
    let log = folder.join(".log");
    let output = File::create(&log).unwrap();
    command.current_dir(folder);
    // `make test` hands these on, and `make` in a document would say where it is.
    for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL"] {
        command.env_remove(name);
    }
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let group = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    let ended = tokio::time::timeout(LONGEST, child.wait()).await;
    // What it started, whether it ended it or not.
    let _ = killpg(group, Signal::SIGKILL);
    let printed = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
    let status = ended.unwrap_or_else(|_| panic!("{document} takes longer than {LONGEST:?}:\n{printed}")).unwrap();
    assert!(status.success(), "{document}: {status}\n{printed}");
    printed
}

/// Makes the tree a clone, so that `git status` says what a guide leaves in it.
const CLONE: &str = r#"
cd "$STEPWARD_REPO"
git init --quiet
git add --all
git -c user.name=reader -c user.email=reader@example.org commit --quiet --message clone
"#;

/// After the guide for Compose: a certificate that is due, one that has ended, and none.
const RENEWALS: &str = r#"
ca certificate envoy /home/step/envoy.crt /home/step/envoy.key --force --not-before=-50m --not-after=55m \
  --provisioner admin --provisioner-password-file $password
sudo ./renew-certificate
docker compose exec -T step-ca step certificate inspect --short /home/step/envoy.crt
if docker compose exec -T step-ca step certificate needs-renewal /home/step/envoy.crt --expires-in 6m; then false; fi
docker compose exec -T step-ca cat /home/step/envoy.crt | cmp - stepward/tls/server.crt
[ "$(stat --format='%u:%g %a' stepward/tls/server.crt)" = '65533:65532 440' ]
docker compose exec -T step-ca step certificate create envoy /home/step/envoy.crt /home/step/envoy.key --force \
  --profile self-signed --subtle --not-before=-2h --not-after=-1h --no-password --insecure
if sudo ./renew-certificate; then false; fi
docker compose exec -T step-ca rm /home/step/envoy.crt
if sudo ./renew-certificate; then false; fi
"#;

const NOTHING_LEFT: &str = r#"
left=$(git status --porcelain --untracked-files=all)
[ -z "$left" ]
"#;

/// The documents that are run.
const RUN: [&str; 4] = ["README.md", "docs/compose.md", "docs/packages.md", "docs/setup.md"];

/// Longest time for the blocks of one document; they take some seconds, and half a minute where images are built or a Debian
/// boots. Beside other tests it is several times that.
const LONGEST: Duration = Duration::from_secs(480);

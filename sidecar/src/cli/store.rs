//! `stepward store status`, `migrate` and `copy`: the database under a service, from outside of the service.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ::store::{Copied, CopyError, Overview, Place, PlaceError, Progress, Server, UrlError, rfc3339};
use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand};
use posture::secret::Secret;
use serde_json::{Value, json};
use settings::{Environment, Report, SecretSource};

use super::exit::Exit;
use super::output::{Format, OutputArgs, err, out, print, table};
use crate::config::Config;

/// `stepward store …`
#[derive(Clone, Debug, Subcommand)]
pub enum StoreCommand {
    /// Show what a store has and which schema, without a change
    Status(StatusArgs),
    /// Bring a store to the schema of this release
    Migrate(MigrateArgs),
    /// Copy a store from SQLite to PostgreSQL or back, and compare
    Copy(CopyArgs),
}

/// What `store status` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward store status --config stepward.toml
  stepward store status /var/backups/stepward.db
  stepward store status 'postgres://stepward@db.example.org/stepward' --password-file db-password --output json

The service may run meanwhile. Locks and exemptions that have ended are counted until they are deleted. A store of a later
release, or a database of something else, is an error that says what to do.

Exit codes: 0 shown, 1 failed, 2 usage, 3 there is no store, 5 no server answers.")]
pub struct StatusArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    output: OutputArgs,
}

/// What `store migrate` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward store migrate --config stepward.toml
  stepward store migrate 'postgres://stepward@db.example.org/stepward' --password-file db-password

A start of the service does the same; this is for doing it before. Make a backup first: no release brings a schema back.
A file has to be there, no service may use it, and the command runs as the user whose it is. On a server the tables are made
where there are none, and services of an earlier release go on meanwhile, as when the first of several starts with this one.

Exit codes: 0 it has the schema of this release, 1 failed, 2 usage, 3 there is no store, 5 no server answers.")]
pub struct MigrateArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    output: OutputArgs,
}

/// What `store copy` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  stepward store copy --from /var/lib/stepward/stepward.db \\
      --to 'postgres://stepward@db.example.org/stepward' --to-password-file db-password
  stepward store copy --from 'postgres://stepward@/stepward?host=/run/postgresql' --to stepward.db --output json

Locks, exemptions, decisions, keys, pairs of identifiers and the proven time are copied, then read once more in the copy and
compared. Stop every service of both stores first: a store in use is refused, since locks that are made meanwhile would be
missing in the copy. The copy must not be there, or on a server have no rows; it is there as a whole or not at all, so that
after an interruption the same command begins anew. A new file is for the user that runs this: run it as the service's.

Exit codes: 0 copied and the same, 1 failed, 2 usage, 5 no server answers.")]
pub struct CopyArgs {
    /// The store to copy: the path of a SQLite file, or a URL, postgres://USER@HOST/DATABASE
    #[arg(long, value_name = "PLACE")]
    from: String,
    /// The copy: a path or a URL
    #[arg(long, value_name = "PLACE")]
    to: String,
    /// File with the password for --from
    #[arg(long, value_name = "FILE")]
    from_password_file: Option<PathBuf>,
    /// Variable with the password for --from
    #[arg(long, value_name = "VARIABLE", conflicts_with = "from_password_file")]
    from_password_env: Option<String>,
    /// File with the password for --to
    #[arg(long, value_name = "FILE")]
    to_password_file: Option<PathBuf>,
    /// Variable with the password for --to
    #[arg(long, value_name = "VARIABLE", conflicts_with = "to_password_file")]
    to_password_env: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Which store is meant.
#[derive(Args, Clone, Debug)]
struct Which {
    /// The path of a SQLite file, or a URL, postgres://USER@HOST/DATABASE; without it the store of the configuration
    place: Option<String>,
    /// File with the password for PLACE
    #[arg(long, value_name = "FILE", requires = "place")]
    password_file: Option<PathBuf>,
    /// Variable with the password for PLACE
    #[arg(long, value_name = "VARIABLE", requires = "place", conflicts_with = "password_file")]
    password_env: Option<String>,
    /// Configuration file, for the place of the store
    #[arg(long, value_name = "FILE", env = "STEPWARD_CONFIG")]
    config: Option<PathBuf>,
}

/// Runs `store status`, `store migrate` or `store copy`.
///
/// # Errors
/// Where a store cannot be used, or the copy is not the same.
pub async fn run(command: StoreCommand, environment: &Environment) -> anyhow::Result<Exit> {
    match command {
        StoreCommand::Status(args) => status(&args, environment).await,
        StoreCommand::Migrate(args) => migrate(&args, environment).await,
        StoreCommand::Copy(args) => copy(&args, environment).await,
    }
}

async fn status(args: &StatusArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let place = args.which.place(environment)?;
    let overview = match place.overview().await {
        Ok(Some(overview)) => overview,
        Ok(None) => return none(&place),
        Err(error) => return failed(error.is_away(), error.into()),
    };
    print(args.output, &shown(place.kind(), &overview), FIRST)?;
    let Overview { schema, known, .. } = overview;
    if schema < known {
        writeln!(err(), "warning: schema {schema} is an earlier release's: a start brings it to {known}, or `stepward store migrate`")?;
    }
    Ok(Exit::Done)
}

async fn migrate(args: &MigrateArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let place = args.which.place(environment)?;
    let migrated = match place.migrate().await {
        Ok(migrated) => migrated,
        Err(PlaceError::File(error)) if error.is_missing() => return none(&place),
        Err(error) => return failed(error.is_away(), error.into()),
    };
    let ::store::Migrated { from, to } = migrated;
    match (args.output.output, from) {
        (Format::Json, _) => writeln!(out(), "{}", json!({ "place": place.to_string(), "from": from, "to": to }))?,
        (Format::Table, None) => writeln!(out(), "{place} has schema {to} now, and had none")?,
        (Format::Table, Some(from)) if from == to => writeln!(out(), "{place} has schema {to}, as before")?,
        (Format::Table, Some(from)) => writeln!(out(), "{place} has schema {to} now, and had schema {from}")?,
    }
    Ok(Exit::Done)
}

async fn copy(args: &CopyArgs, environment: &Environment) -> anyhow::Result<Exit> {
    let password = |file: &Option<PathBuf>, variable: &Option<String>| password(file.as_ref(), variable.as_ref(), environment);
    let from_password = password(&args.from_password_file, &args.from_password_env)?;
    let to_password = password(&args.to_password_file, &args.to_password_env)?;
    let from = named(&args.from, from_password, "--from-password-file", environment).context("--from")?;
    let to = named(&args.to, to_password, "--to-password-file", environment).context("--to")?;
    let mut last = Instant::now();
    let mut said = move |progress: Progress| {
        if last.elapsed() >= PAUSE {
            last = Instant::now();
            // A reader who has gone is no reason to leave a copy half done.
            let _ = writeln!(err(), "{}", line(progress));
        }
    };
    let copied = match ::store::copy(&from, &to, &mut said).await {
        Ok(copied) => copied,
        Err(error) => {
            let is_away = matches!(&error, CopyError::From(error) | CopyError::To(error) if error.is_away());
            return failed(is_away, error.into());
        }
    };
    let tables: Vec<Value> = copied.iter().map(row).collect();
    match args.output.output {
        Format::Json => writeln!(out(), "{}", json!({ "from": from.to_string(), "to": to.to_string(), "tables": tables }))?,
        Format::Table => table(&tables, &["table", "rows", "sha256"])?,
    }
    writeln!(
        err(),
        "{to} has the same rows as {from}. What a service writes there from now on is not in it: start services with the copy alone"
    )?;
    Ok(Exit::Done)
}

impl Which {
    fn place(&self, environment: &Environment) -> anyhow::Result<Place> {
        let password = password(self.password_file.as_ref(), self.password_env.as_ref(), environment)?;
        if let Some(text) = &self.place {
            return named(text, password, "--password-file", environment);
        }
        let config = Config::load(self.config.as_deref(), environment)?.config;
        let (store, _) = config.store_with_password(environment).map_err(|mistakes| anyhow!("{mistakes}"))?;
        Place::of(&store).ok_or_else(|| anyhow!("there is no store: [store] enabled is false"))
    }
}

/// Reads the place that a text names. `option` is that by which a password is given.
fn named(text: &str, password: Option<Secret>, option: &str, environment: &Environment) -> anyhow::Result<Place> {
    if text.contains("://") {
        // The text is not repeated, since it may have a password.
        return match Server::parse(text, password) {
            Ok(server) => Ok(Place::Server(Box::new(server))),
            Err(UrlError::Password) => {
                bail!("the URL has a password, which everybody may read there: remove it, and give {option} FILE")
            }
            Err(error) => bail!("the URL {error}"),
        };
    }
    if password.is_some() {
        bail!("{text} is a file, which has no password: a server is named by a URL, postgres://USER@HOST/DATABASE");
    }
    Ok(Place::File(environment.directory.join(text)))
}

fn password(file: Option<&PathBuf>, variable: Option<&String>, environment: &Environment) -> anyhow::Result<Option<Secret>> {
    let source = match (file, variable) {
        (Some(file), _) => SecretSource::File(environment.directory.join(file)),
        (None, Some(variable)) => SecretSource::Env(variable.clone()),
        (None, None) => return Ok(None),
    };
    let report = Report::new(None);
    let secret = source.read("the password", environment, &report);
    let (secret, warnings) = report.finish(secret)?;
    for warning in warnings {
        writeln!(err(), "warning: {warning}")?;
    }
    Ok(Some(secret))
}

fn none(place: &Place) -> anyhow::Result<Exit> {
    writeln!(err(), "there is no store {place}: the first start of the service makes it")?;
    Ok(Exit::Denied)
}

fn failed(is_away: bool, error: anyhow::Error) -> anyhow::Result<Exit> {
    if !is_away {
        return Err(error);
    }
    writeln!(err(), "error: {error:#}")?;
    Ok(Exit::Unavailable)
}

fn shown(kind: &str, overview: &Overview) -> Value {
    let Overview { place, schema, known, services, bytes, contents } = overview;
    let date = |id: Option<::store::DecisionId>| id.map(|id| rfc3339(id.at()));
    json!({
        "kind": kind,
        "place": place,
        "schema": schema,
        "known": known,
        "services": services,
        "bytes": bytes,
        "locks": contents.locks,
        "exemptions": contents.exemptions,
        "decisions": contents.decisions,
        "oldest": date(contents.oldest),
        "newest": date(contents.newest),
        "keys": contents.keys,
        "links": contents.links,
    })
}

fn row(copied: &Copied) -> Value {
    json!({ "table": copied.table, "rows": copied.rows, "sha256": hex::encode(copied.digest) })
}

fn line(progress: Progress) -> String {
    let Progress { comparing, table, done, of } = progress;
    format!("{table}: {} {done} of {of}", if comparing { "compared" } else { "copied" })
}

const FIRST: &[&str] =
    &["kind", "place", "schema", "known", "services", "bytes", "locks", "exemptions", "decisions", "oldest", "newest", "keys", "links"];

/// Time between two lines that say how far a copy is.
const PAUSE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_path_from_here_or_a_url_without_a_password() {
        let environment = Environment::new("/here");
        let named = |text: &str, password: bool| {
            let password = password.then(|| Secret::new(b"canary".to_vec()));
            named(text, password, "--to-password-file", &environment).map_err(|error| format!("{error:#}"))
        };
        for (text, path) in [("a.db", "/here/a.db"), ("/a/b.db", "/a/b.db"), ("postgres:a", "/here/postgres:a")] {
            assert_eq!(named(text, false), Ok(Place::File(path.into())), "{text}");
        }
        let server = named("postgres://me@db/stepward", true).unwrap();
        assert_eq!((server.kind(), server.to_string().as_str()), ("postgresql", "postgres://me@db:5432/stepward"));
        assert!(!format!("{server:?}").contains("canary"));
        for (text, password, said) in [
            ("postgres://me:canary@db/stepward", false, "give --to-password-file FILE"),
            ("postgres://me@db/stepward?password=canary", false, "give --to-password-file FILE"),
            ("mysql://me:canary@db/stepward", false, "the URL is no URL of PostgreSQL"),
            ("a.db", true, "a.db is a file, which has no password"),
        ] {
            let error = named(text, password).unwrap_err();
            assert!(error.contains(said) && !error.contains("canary"), "{text}: {error}");
        }
    }

    #[test]
    fn a_password_comes_from_a_file_or_a_variable() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("password"), "canary\n").unwrap();
        let environment = Environment::new(folder.path()).with("PASSWORD", "yellow");
        let read = |file: Option<&str>, variable: Option<&str>| {
            let (file, variable) = (file.map(PathBuf::from), variable.map(str::to_owned));
            let secret = password(file.as_ref(), variable.as_ref(), &environment).map_err(|error| error.to_string())?;
            Ok::<_, String>(secret.map(|secret| secret.expose().to_vec()))
        };
        assert_eq!(read(Some("password"), None), Ok(Some(b"canary".to_vec())));
        assert_eq!(read(None, Some("PASSWORD")), Ok(Some(b"yellow".to_vec())));
        assert_eq!(read(None, None), Ok(None));
        assert!(read(Some("missing"), None).unwrap_err().contains("missing: cannot be read"));
        assert!(read(None, Some("MISSING")).unwrap_err().contains("variable MISSING: is not set"));
    }

    #[test]
    fn progress_is_said_in_words() {
        let progress = Progress { comparing: false, table: "decisions", done: 512, of: 1000 };
        assert_eq!(line(progress), "decisions: copied 512 of 1000");
        assert_eq!(line(Progress { comparing: true, done: 1000, ..progress }), "decisions: compared 1000 of 1000");
    }
}

//! A PostgreSQL server of a test's own: on a UNIX socket in a temporary folder, gone with the process that made it.

use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::unistd::{Uid, User};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _};
use tempfile::TempDir;

use super::server::Server;

/// A server, with the folder of its data and its socket.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    port: u16,
    /// A shell that starts the server and ends it. Once the pipe to it is closed, as by the end of this process, it ends the
    /// server at once and removes the folder.
    keeper: Child,
    orders: ChildStdin,
    databases: AtomicU64,
}

impl Cluster {
    /// Makes a server and starts it, with these settings besides those of a test.
    ///
    /// # Errors
    /// There is no PostgreSQL, or it does not start.
    pub async fn start(settings: &[&str]) -> io::Result<Self> {
        let folder = folder()?;
        run(as_postgres(&programs()?.join("initdb"))
            .args(["--username=stepward", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--pgdata"])
            .arg(folder.path().join("data")))?;
        Self::of(folder, settings).await
    }

    /// Makes a standby of this server and starts it.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn standby(&self) -> io::Result<Self> {
        let folder = folder()?;
        run(as_postgres(&programs()?.join("pg_basebackup"))
            .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--username=stepward", "--host"])
            .arg(&self.folder)
            .arg("--pgdata")
            .arg(folder.path().join("data")))?;
        Self::of(folder, &[]).await
    }

    async fn of(folder: TempDir, settings: &[&str]) -> io::Result<Self> {
        // The keeper removes it.
        let folder = folder.keep();
        let socket = format!("unix_socket_directories={}", folder.display());
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(&folder)
            .args(as_postgres_words())
            .arg(programs()?.join("postgres"))
            .arg("-D")
            .arg(folder.join("data"))
            .args(
                ["listen_addresses=", "fsync=off", "max_connections=200", "shared_buffers=16MB", &socket].iter().flat_map(|it| ["-c", it]),
            )
            .args(settings.iter().flat_map(|it| ["-c", it]))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What is typed at the terminal is for the test.
            .process_group(0)
            .spawn()?;
        let orders = keeper.stdin.take().ok_or_else(|| io::Error::other("the keeper has no pipe"))?;
        let port = settings.iter().find_map(|setting| setting.strip_prefix("port=")?.parse().ok()).unwrap_or(5432);
        let mut cluster = Self { folder, port, keeper, orders, databases: AtomicU64::new(0) };
        cluster.revive().await?;
        Ok(cluster)
    }

    /// Kills the server, as a machine does that loses power.
    ///
    /// # Errors
    /// The keeper is gone.
    pub fn kill(&mut self) -> io::Result<()> {
        self.orders.write_all(b"kill\n")
    }

    /// Stops every process of the server where it is: it neither answers nor ends.
    ///
    /// # Errors
    /// The keeper is gone.
    pub fn freeze(&mut self) -> io::Result<()> {
        self.orders.write_all(b"freeze\n")
    }

    /// Lets a frozen server go on.
    ///
    /// # Errors
    /// The keeper is gone.
    pub fn thaw(&mut self) -> io::Result<()> {
        self.orders.write_all(b"thaw\n")
    }

    /// The number that a query of one row gives.
    ///
    /// # Errors
    /// The error of the server.
    pub async fn number(&self, database: &str, sql: &str) -> Result<i64, sqlx::Error> {
        let mut connection = self.connect(database).await?;
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await
    }

    /// Starts the server again, and waits until it answers.
    ///
    /// # Errors
    /// It does not start.
    pub async fn revive(&mut self) -> io::Result<()> {
        for _ in 0..TRIES {
            // A server does not start while processes of the one before are there yet, so it is started until it runs.
            self.orders.write_all(b"start\n")?;
            tokio::time::sleep(AGAIN).await;
            if self.connect("postgres").await.is_ok() {
                return Ok(());
            }
        }
        let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        Err(io::Error::other(format!("the server does not start: {log}")))
    }

    /// Makes an empty database, and returns the server as a store takes it.
    ///
    /// # Errors
    /// The error of the server.
    pub async fn database(&self) -> io::Result<Server> {
        let name = format!("of_a_test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.run("postgres", &format!("create database {name}")).await.map_err(io::Error::other)?;
        self.named(&name)
    }

    /// The server with a database of this name, as a store takes it.
    ///
    /// # Errors
    /// The name makes no sense.
    pub fn named(&self, database: &str) -> io::Result<Server> {
        Server::parse(&self.url(database), None).map_err(io::Error::other)
    }

    /// The URL of a database of this name.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://stepward@/{database}?host={}&port={}", self.folder.display(), self.port)
    }

    /// The folder of the socket.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a file into the folder of the server's data, as its own, and lets it read its settings again.
    ///
    /// # Errors
    /// The file cannot be written, or the server does not answer.
    pub async fn put(&self, name: &str, text: &str) -> io::Result<()> {
        let path = self.folder.join("data").join(name);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        if let Some(user) = user()? {
            std::os::unix::fs::chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        self.run("postgres", "select pg_reload_conf()").await.map_err(io::Error::other)
    }

    /// Runs a statement as who owns everything.
    ///
    /// # Errors
    /// The error of the server.
    pub async fn run(&self, database: &str, sql: &str) -> Result<(), sqlx::Error> {
        let mut connection = self.connect(database).await?;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.map(drop)
    }

    /// Connects to a database.
    ///
    /// # Errors
    /// The error of the server.
    pub async fn connect(&self, database: &str) -> Result<PgConnection, sqlx::Error> {
        let options = PgConnectOptions::new_without_pgpass().socket(&self.folder).port(self.port).username("stepward").database(database);
        options.ssl_mode(PgSslMode::Disable).disable_statement_logging().connect().await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The pipe is closed only after this.
        let _ = self.orders.write_all(b"end\n");
        let _ = self.keeper.wait();
    }
}

/// Makes a folder that the user of the server owns.
fn folder() -> io::Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("stepward-postgres-").tempdir()?;
    if let Some(user) = user()? {
        std::os::unix::fs::chown(folder.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    Ok(folder)
}

/// The user of the server where we are root, which PostgreSQL does not run as.
fn user() -> io::Result<Option<User>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name)? {
            return Ok(Some(user));
        }
    }
    Err(io::Error::other("there is no user to run PostgreSQL as: tools/setup postgres makes one"))
}

fn as_postgres_words() -> Vec<String> {
    match user() {
        Ok(Some(user)) => {
            vec!["setpriv".to_owned(), format!("--reuid={}", user.uid), format!("--regid={}", user.gid), "--clear-groups".to_owned()]
        }
        _ => Vec::new(),
    }
}

fn as_postgres(program: &Path) -> Command {
    match as_postgres_words().split_first() {
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program).current_dir("/");
            command
        }
        None => Command::new(program),
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let done = command.stdin(Stdio::null()).output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&done.stderr))))
}

/// One of the newest PostgreSQL's programs.
#[cfg(test)]
pub(crate) fn program(name: &str) -> io::Result<PathBuf> {
    Ok(programs()?.join(name))
}

/// The folder of the newest PostgreSQL's programs, as Debian's packages have them.
fn programs() -> io::Result<PathBuf> {
    let missing = || io::Error::other("there is no PostgreSQL: run tools/setup postgres");
    let versions = std::fs::read_dir("/usr/lib/postgresql").map_err(|_| missing())?;
    let version = |entry: io::Result<std::fs::DirEntry>| {
        let bin = entry.ok()?.path().join("bin");
        let number = bin.parent()?.file_name()?.to_str()?.parse::<u32>().ok()?;
        bin.join("initdb").exists().then_some((number, bin))
    };
    versions.filter_map(version).max().map(|(_, bin)| bin).ok_or_else(missing)
}

/// Takes the folder and the command of the server, and does what it reads.
const KEEPER: &str = r#"
folder=$1; shift; child=
all() { [ -z "$child" ] || kill "$1" "$child" $(cat "/proc/$child/task/$child/children" 2>/dev/null) 2>/dev/null; }
runs() { [ -n "$child" ] && [ -e "/proc/$child/exe" ]; }
while read -r order; do
  case $order in
    start) runs || { "$@" </dev/null >>"$folder/log" 2>&1 & child=$!; } ;;
    kill) all -KILL; wait "$child" 2>/dev/null; child= ;;
    freeze) all -STOP ;;
    thaw) all -CONT ;;
    end) break ;;
  esac
done
all -CONT
if runs; then kill -QUIT "$child"; wait "$child" 2>/dev/null; fi
rm -rf "$folder"
"#;

/// Number of looks whether a server answers, and the time between two.
const TRIES: u32 = 600;
const AGAIN: Duration = Duration::from_millis(50);

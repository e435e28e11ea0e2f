//! A PostgreSQL server: where it is, as whom to use it, and by what it proves itself.

use std::fmt;
use std::path::{Path, PathBuf};

use posture::secret::Secret;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// A server, or several of which one takes writes at a time. Prints as its URL, which has no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// At least one, in the order in which they are tried.
    hosts: Vec<Host>,
    user: String,
    database: String,
    tls: Tls,
    password: Option<Secret>,
}

/// One place of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// A name or an address, by TCP.
    Name(String, u16),
    /// The folder of a UNIX socket, which has the port in its name.
    Folder(PathBuf, u16),
}

/// How a server that is reached by TCP proves who it is, and who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tls {
    mode: Mode,
    /// File of certificates that are trusted besides the public ones.
    roots: Option<PathBuf>,
    /// Files of our certificate and of its key.
    client: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The certificate is trusted and has the name by which the server was called.
    Full,
    /// The certificate is trusted, whatever name it has.
    Trusted,
    /// No TLS.
    Off,
}

/// The reason why a text names no server. None quotes a part of the text that could be a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// The text is no URL of PostgreSQL.
    #[error("is no URL of PostgreSQL: write postgres://USER@HOST/DATABASE")]
    Scheme,
    /// The text has a password.
    #[error("has a password, which everybody may read there: remove it, and write [store] password = {{ file = \"…\" }}")]
    Password,
    /// A part is missing.
    #[error("names no {0}: write postgres://USER@HOST/DATABASE")]
    Missing(&'static str),
    /// A part has characters that it cannot have.
    #[error("names a {0} that makes no sense")]
    Senseless(&'static str),
    /// A parameter is not known.
    #[error("has the parameter `{0}`, which there is not: there are {known}", known = PARAMETERS.join(", "))]
    Unknown(String),
    /// A parameter is given twice.
    #[error("has the parameter `{0}` twice")]
    Twice(String),
    /// A parameter has a value that it cannot have.
    #[error("has `{parameter}={value}`: {allowed}")]
    Value {
        /// The parameter.
        parameter: &'static str,
        /// Its value.
        value: String,
        /// What it can be.
        allowed: &'static str,
    },
    /// A certificate comes without its key, or a key without its certificate.
    #[error("has one of `sslcert` and `sslkey`: a certificate needs its key")]
    Half,
    /// The password cannot be sent.
    #[error("has a password that is no UTF-8, or has the character NUL")]
    PasswordNotText,
}

impl Server {
    /// Reads a URL: `postgres://USER@HOST[:PORT][,HOST[:PORT]…]/DATABASE[?PARAMETER=VALUE&…]`.
    ///
    /// A host is a name, an address, `[…]` around one of IPv6, or the folder of a UNIX socket, which is given as `?host=/FOLDER`
    /// instead. Files of `sslrootcert`, `sslcert` and `sslkey` are named by absolute paths. By TCP the server proves who it is
    /// (`sslmode=verify-full`), unless another `sslmode` is given.
    ///
    /// # Errors
    /// [`UrlError`].
    pub fn parse(url: &str, password: Option<Secret>) -> Result<Self, UrlError> {
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")).ok_or(UrlError::Scheme)?;
        // Whatever stands before the last `@` may be a password, also with a character that ends it for others.
        if rest.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) {
            return Err(UrlError::Password);
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let parameters = Parameters::read(query)?;
        let (authority, database) = place.split_once('/').ok_or(UrlError::Missing("database"))?;
        let (user, named) = authority.rsplit_once('@').ok_or(UrlError::Missing("user"))?;
        let user = decoded(user).filter(|user| !user.contains('\0')).ok_or(UrlError::Senseless("user"))?;
        let database = decoded(database).filter(|name| !name.contains(['\0', '/'])).ok_or(UrlError::Senseless("database"))?;
        for (part, name) in [(&user, "user"), (&database, "database")] {
            if part.is_empty() {
                return Err(UrlError::Missing(name));
            }
        }
        let port = match parameters.of("port") {
            Some(text) => port(text).ok_or(UrlError::Senseless("port"))?,
            None => PORT,
        };
        let hosts = match (named, parameters.of("host")) {
            ("", None) => return Err(UrlError::Missing("host")),
            ("", Some(hosts)) => hosts.split(',').map(|host| Host::read(host, port)).collect::<Result<_, _>>()?,
            (hosts, None) => hosts.split(',').map(|host| Host::read_encoded(host, port)).collect::<Result<_, _>>()?,
            (_, Some(_)) => return Err(UrlError::Twice("host".to_owned())),
        };
        let server = Self { hosts, user, database, tls: Tls::read(&parameters)?, password: None };
        match password {
            Some(password) => server.with_password(password),
            None => Ok(server),
        }
    }

    /// The server as one that asks for this password.
    ///
    /// # Errors
    /// [`UrlError::PasswordNotText`].
    pub fn with_password(self, password: Secret) -> Result<Self, UrlError> {
        if std::str::from_utf8(password.expose()).is_ok_and(|text| !text.contains('\0')) {
            Ok(Self { password: Some(password), ..self })
        } else {
            Err(UrlError::PasswordNotText)
        }
    }

    /// The hosts, in the order in which they are tried.
    pub(super) fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The options of a connection to one of the hosts. They print the password, so nobody keeps them.
    pub(super) fn options(&self, host: &Host, application: &str) -> PgConnectOptions {
        let password = self.password.as_ref().and_then(|password| std::str::from_utf8(password.expose()).ok()).unwrap_or_default();
        // Variables of the environment such as PGPASSWORD and PGSSLROOTCERT are defaults there, so everything is given.
        let options = PgConnectOptions::new_without_pgpass()
            .username(&self.user)
            .password(password)
            .database(&self.database)
            .application_name(application)
            .disable_statement_logging();
        match host {
            Host::Folder(folder, port) => options.socket(folder).port(*port).ssl_mode(PgSslMode::Disable),
            Host::Name(name, port) => self.tls.of(options.host(name).port(*port)),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres://{}@", self.user)?;
        for (number, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if number == 0 { "" } else { "," })?;
        }
        write!(f, "/{}", self.database)
    }
}

impl Host {
    /// Reads a host in which nothing is encoded.
    fn read(text: &str, default_port: u16) -> Result<Self, UrlError> {
        if text.starts_with('/') {
            return if text.contains('\0') {
                Err(UrlError::Senseless("host"))
            } else {
                Ok(Self::Folder(PathBuf::from(text), default_port))
            };
        }
        let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, "")) => (address, None),
            Some((address, rest)) => (address, Some(rest.strip_prefix(':').ok_or(UrlError::Senseless("host"))?)),
            None => text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port))),
        };
        let port = port.map_or(Some(default_port), self::port).ok_or(UrlError::Senseless("port"))?;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
        let is_address = text.starts_with('[') && name.parse::<std::net::Ipv6Addr>().is_ok();
        if is_address || (is_name && !text.starts_with('[')) {
            Ok(Self::Name(name.to_owned(), port))
        } else {
            Err(UrlError::Senseless("host"))
        }
    }

    /// Reads a host of the URL, where the folder of a socket is encoded: `%2Frun%2Fpostgresql`.
    fn read_encoded(text: &str, default_port: u16) -> Result<Self, UrlError> {
        let Some((folder, port)) =
            text.starts_with('%').then(|| text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port))))
        else {
            return Self::read(text, default_port);
        };
        let port = port.map_or(Some(default_port), self::port).ok_or(UrlError::Senseless("port"))?;
        let folder = decoded(folder).filter(|folder| folder.starts_with('/')).ok_or(UrlError::Senseless("host"))?;
        Self::read(&folder, port)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name, port) if name.contains(':') => write!(f, "[{name}]:{port}"),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Folder(folder, port) => write!(f, "{}:{port}", folder.display()),
        }
    }
}

impl Tls {
    fn read(parameters: &Parameters) -> Result<Self, UrlError> {
        let mode = match parameters.of("sslmode") {
            None | Some("verify-full") => Mode::Full,
            Some("verify-ca") => Mode::Trusted,
            Some("disable") => Mode::Off,
            Some(other) => {
                let allowed = "it is verify-full, verify-ca or disable, since the others of PostgreSQL believe whoever answers";
                return Err(UrlError::Value { parameter: "sslmode", value: other.to_owned(), allowed });
            }
        };
        if let Some(other) = parameters.of("target_session_attrs").filter(|attributes| *attributes != "read-write") {
            let allowed = "it is read-write, since a standby may not know of a lock yet";
            return Err(UrlError::Value { parameter: "target_session_attrs", value: other.to_owned(), allowed });
        }
        let file = |parameter: &'static str| match parameters.of(parameter) {
            Some(path) if !Path::new(path).is_absolute() => {
                Err(UrlError::Value { parameter, value: path.to_owned(), allowed: "a file is named by its absolute path" })
            }
            path => Ok(path.map(PathBuf::from)),
        };
        let client = match (file("sslcert")?, file("sslkey")?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(UrlError::Half),
        };
        Ok(Self { mode, roots: file("sslrootcert")?, client })
    }

    fn of(&self, options: PgConnectOptions) -> PgConnectOptions {
        let options = options.ssl_mode(match self.mode {
            Mode::Full => PgSslMode::VerifyFull,
            Mode::Trusted => PgSslMode::VerifyCa,
            Mode::Off => PgSslMode::Disable,
        });
        let options = match &self.roots {
            Some(file) => options.ssl_root_cert(file),
            None => options.ssl_root_cert_from_pem(Vec::new()),
        };
        match &self.client {
            Some((certificate, key)) => options.ssl_client_cert(certificate).ssl_client_key(key),
            None => options,
        }
    }
}

/// The parameters of a URL, each at most once.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn read(query: &str) -> Result<Self, UrlError> {
        let mut read = Vec::<(String, String)>::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if name.eq_ignore_ascii_case("password") {
                return Err(UrlError::Password);
            }
            if !PARAMETERS.contains(&name) {
                return Err(UrlError::Unknown(name.to_owned()));
            }
            if read.iter().any(|(known, _)| known == name) {
                return Err(UrlError::Twice(name.to_owned()));
            }
            let value = decoded(value).filter(|value| !value.is_empty() && !value.contains('\0'));
            read.push((name.to_owned(), value.ok_or(UrlError::Senseless("parameter"))?));
        }
        Ok(Self(read))
    }

    fn of(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Decodes `%` and two hexadecimal digits; `None` where that gives no text.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten().filter(|port| *port != 0)
}

const PORT: u16 = 5432;

const PARAMETERS: &[&str] = &["host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs"];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Server, UrlError> {
        Server::parse(url, None)
    }

    #[test]
    fn reads_hosts_and_folders_in_their_order() {
        let name = |name: &str, port| Host::Name(name.to_owned(), port);
        let folder = |folder: &str, port| Host::Folder(PathBuf::from(folder), port);
        for (url, hosts) in [
            ("postgres://me@db/stepward", vec![name("db", 5432)]),
            ("postgresql://me@db:6432/stepward", vec![name("db", 6432)]),
            ("postgres://me@db1.example.org:5433,db2/stepward?port=5434", vec![name("db1.example.org", 5433), name("db2", 5434)]),
            ("postgres://me@[2001:db8::1]:5433,192.0.2.1/stepward", vec![name("2001:db8::1", 5433), name("192.0.2.1", 5432)]),
            ("postgres://me@/stepward?host=/run/postgresql", vec![folder("/run/postgresql", 5432)]),
            ("postgres://me@/stepward?host=/run/a,/run/b&port=5433", vec![folder("/run/a", 5433), folder("/run/b", 5433)]),
            ("postgres://me@%2Frun%2Fpostgresql:5433,db/stepward", vec![folder("/run/postgresql", 5433), name("db", 5432)]),
        ] {
            assert_eq!(parse(url).unwrap().hosts, hosts, "{url}");
        }
        let server = parse("postgres://a%40b@db,[::1]:1/step%20ward?sslmode=disable").unwrap();
        assert_eq!((server.user.as_str(), server.database.as_str()), ("a@b", "step ward"));
        assert_eq!(server.to_string(), "postgres://a@b@db:5432,[::1]:1/step ward");
    }

    #[test]
    fn refuses_what_names_no_server() {
        use UrlError::{Half, Missing, Scheme, Senseless, Twice};
        for (url, error) in [
            ("mysql://me@db/stepward", Scheme),
            ("/var/lib/stepward.db", Scheme),
            ("postgres://db/stepward", Missing("user")),
            ("postgres://@db/stepward", Missing("user")),
            ("postgres://me@/stepward", Missing("host")),
            ("postgres://me@db", Missing("database")),
            ("postgres://me@db/", Missing("database")),
            ("postgres://me@db/a/b", Senseless("database")),
            ("postgres://me%00@db/stepward", Senseless("user")),
            ("postgres://me%4@db/stepward", Senseless("user")),
            ("postgres://me%ff@db/stepward", Senseless("user")),
            ("postgres://me%+1@db/stepward", Senseless("user")),
            ("postgres://me@db,/stepward", Senseless("host")),
            ("postgres://me@d b/stepward", Senseless("host")),
            ("postgres://me@[db]/stepward", Senseless("host")),
            ("postgres://me@[::1]5432/stepward", Senseless("host")),
            ("postgres://me@%2e%2e%2frun/stepward", Senseless("host")),
            ("postgres://me@db:0/stepward", Senseless("port")),
            ("postgres://me@db:65536/stepward", Senseless("port")),
            ("postgres://me@db:+1/stepward", Senseless("port")),
            ("postgres://me@db:/stepward", Senseless("port")),
            ("postgres://me@db/stepward?host=/run", Twice("host".to_owned())),
            ("postgres://me@db/stepward?sslmode=disable&sslmode=disable", Twice("sslmode".to_owned())),
            ("postgres://me@db/stepward?sslmode=", Senseless("parameter")),
            ("postgres://me@db/stepward?sslcert=/a", Half),
        ] {
            assert_eq!(parse(url).unwrap_err(), error, "{url}");
        }
        for (url, said) in [
            ("postgres://me@db/stepward?sslmode=prefer", "verify-full, verify-ca or disable"),
            ("postgres://me@db/stepward?sslmode=require", "believe whoever answers"),
            ("postgres://me@db/stepward?target_session_attrs=any", "it is read-write"),
            ("postgres://me@db/stepward?sslrootcert=ca.pem", "absolute path"),
            ("postgres://me@db/stepward?options=-c%20x", "`options`, which there is not: there are host, port, sslmode"),
        ] {
            assert!(parse(url).unwrap_err().to_string().contains(said), "{url}: {}", parse(url).unwrap_err());
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_never_quoted() {
        for url in [
            "postgres://me:canary@db/stepward",
            "postgres://me:can/ary@db/stepward",
            "postgres://me:can?ary@db/stepward",
            "postgres://me:can@ary@db/stepward",
            "postgres://me@db/stepward?password=canary",
            "postgres://me@db/stepward?PASSWORD=canary",
        ] {
            let error = parse(url).unwrap_err();
            assert_eq!(error, UrlError::Password, "{url}");
            assert!(error.to_string().contains("[store] password = { file = \"…\" }"), "{error}");
        }
    }

    #[test]
    fn the_password_is_in_nothing_that_is_printed() {
        let server = Server::parse("postgres://me@db/stepward", Some(Secret::new(b"canary".to_vec()))).unwrap();
        assert_eq!(format!("{server} {server:?}").matches("canary").count(), 0);
        for wrong in [b"\xff".to_vec(), b"a\0b".to_vec()] {
            assert_eq!(Server::parse("postgres://me@db/stepward", Some(Secret::new(wrong))).unwrap_err(), UrlError::PasswordNotText);
        }
    }
}

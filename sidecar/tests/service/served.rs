//! A running `stepward serve` in a folder of its own, and what is needed to talk to it.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use posture::caller::Peer;
use posture::secret::Secret;
use posture::verify::SigningKeys;
use proto::v1::filter_message::Message as FromFilter;
use proto::v1::filter_service_client::FilterServiceClient;
use proto::v1::sidecar_message::Message as ToFilter;
use proto::v1::{Answer, FilterMessage, Question, SidecarMessage};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

pub(crate) const WEBHOOK: &str = "11111111-2222-4333-8444-555555555555";
pub(crate) const DEVICE: &str = "C02XL0GYJGH5";

/// Time enough for a start on a busy machine.
const LONG: Duration = Duration::from_secs(30);

/// A folder made by `stepward init`, with what a test changes about it.
#[derive(Clone)]
pub(crate) struct Folder {
    folder: Arc<tempfile::TempDir>,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("stepward test ").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let this = Self { folder: Arc::new(folder) };
        assert!(this.command(&["init", "."]).output().unwrap().status.success());
        this.change("stepward.toml", "admin = \"127.0.0.1:9464\"", "admin = \"127.0.0.1:0\"");
        this
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Writes a file by renaming one over it.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let beside = self.path("beside");
        fs::write(&beside, text).unwrap();
        fs::rename(beside, self.path(name)).unwrap();
    }

    pub(crate) fn change(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "{text}");
        self.write(name, &text.replace(from, to));
    }

    /// Returns the command of the binary, in the folder and with no variables but a path.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stepward"));
        command.args(args).current_dir(self.folder.path()).env_clear().stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).env("STEPWARD_CONFIG", "stepward.toml").output().unwrap()
    }

    pub(crate) fn serve(self) -> Served {
        let command = {
            let mut command = self.command(&["serve"]);
            command.env("STEPWARD_CONFIG", "stepward.toml");
            command
        };
        Served::start(self, command)
    }
}

/// The service, killed when it is dropped.
pub(crate) struct Served {
    pub(crate) folder: Folder,
    child: Child,
    pub(crate) admin: String,
}

impl Served {
    pub(crate) fn start(folder: Folder, mut command: Command) -> Self {
        let log = File::create(folder.path("log")).unwrap();
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut this = Self { folder, child, admin: String::new() };
        this.admin = this.printed("serving")["admin"].as_str().unwrap().to_owned();
        this
    }

    /// Starts another service in the same folder, once this one has ended.
    pub(crate) fn again(self) -> Self {
        self.folder.clone().serve()
    }

    /// Returns everything that the service printed, a line at a time.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.folder.read("log").lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| Value::from(line))).collect()
    }

    pub(crate) fn errors(&self) -> Vec<Value> {
        self.lines().into_iter().filter(|line| line["level"] == "ERROR").collect()
    }

    /// Waits for the first line with this message.
    pub(crate) fn printed(&mut self, message: &str) -> Value {
        self.until(|line| line["message"] == message)
    }

    /// Waits for the first line that is so.
    pub(crate) fn until(&mut self, is_so: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(line) = self.lines().into_iter().find(&is_so) {
                return line;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "no such line, {ended:?}: {:?}", self.lines());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the id of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Waits for the end; returns how the service ended, and how long that took.
    pub(crate) fn ended(&mut self) -> (ExitStatus, Duration) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, started.elapsed());
            }
            assert!(started.elapsed() < LONG, "it goes on: {:?}", self.lines());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks for a page; returns its status and body.
    pub(crate) fn page(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: stepward\r\nconnection: close\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
        (status, reply.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    /// Waits until the page of metrics has a line.
    pub(crate) fn counts(&self, line: &str) {
        let deadline = Instant::now() + LONG;
        loop {
            let (_, text) = self.page("/metrics");
            if text.lines().any(|other| other == line) {
                return;
            }
            assert!(Instant::now() < deadline, "no {line}: {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn admin(&self) -> &str {
        &self.admin
    }

    /// Runs `stepward query`; returns exit code and output.
    pub(crate) fn query(&self, args: &[&str]) -> (i32, String) {
        let output = self.folder.run(&[&["query"], args].concat());
        (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    /// Waits for the record of a decision until it is written.
    pub(crate) fn record(&self, id: &str) -> Value {
        let deadline = Instant::now() + LONG;
        loop {
            let output = self.folder.run(&["explain", id, "--output", "json"]);
            if output.status.success() {
                return serde_json::from_slice(&output.stdout).unwrap();
            }
            assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    pub(crate) fn knows(&self, device: &str) -> bool {
        self.query(&[device]).0 == 0
    }

    pub(crate) async fn socket(&self, name: &str) -> UnixStream {
        UnixStream::connect(self.folder.path("run").join(name)).await.unwrap()
    }

    pub(crate) async fn channel(&self, name: &str, window: Option<u32>) -> Result<Channel, tonic::transport::Error> {
        let path = self.folder.path("run").join(name);
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://stepward").initial_stream_window_size(window).connect_with_connector(connector).await
    }

    pub(crate) async fn attach(&self) -> Filter {
        Filter::attach(self.channel("filter.sock", None).await.unwrap(), &self.folder).await
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The filter's end of a stream.
pub(crate) struct Filter {
    pub(crate) questions: mpsc::UnboundedSender<FilterMessage>,
    answers: Streaming<SidecarMessage>,
    pub(crate) certificate: Vec<u8>,
    keys: SigningKeys,
    /// Revision of the webhooks that it was told last.
    revision: u64,
    sequence: u64,
}

impl Filter {
    pub(crate) async fn attach(channel: Channel, folder: &Folder) -> Self {
        Self::try_attach(channel, folder).await.unwrap()
    }

    pub(crate) async fn try_attach(channel: Channel, folder: &Folder) -> Result<Self, tonic::Status> {
        let (questions, receiver) = mpsc::unbounded_channel();
        let answers = FilterServiceClient::new(channel).attach(UnboundedReceiverStream::new(receiver)).await?.into_inner();
        let (_, certificate) = Peer::from_pem(folder.read("client/client.crt").as_bytes()).unwrap();
        let keys = SigningKeys::new(&[Secret::from_base64(&folder.read("secrets/webhook")).unwrap()]);
        Ok(Self { questions, answers, certificate, keys, revision: 0, sequence: 0 })
    }

    pub(crate) async fn next(&mut self) -> Option<ToFilter> {
        self.next_result().await.unwrap()
    }

    pub(crate) async fn next_result(&mut self) -> Result<Option<ToFilter>, tonic::Status> {
        let next = tokio::time::timeout(LONG, self.answers.message()).await.unwrap();
        let next = next.map(|message| message.map(|message| message.message.unwrap()));
        if let Ok(Some(ToFilter::Webhooks(set))) = &next {
            self.revision = set.revision;
        }
        next
    }

    /// Asks about a device and waits for the answer.
    pub(crate) async fn ask(&mut self, device: &str) -> Answer {
        self.ask_for(device, "{}").await
    }

    /// Asks as [`Self::ask`] does, with this certificate request, JSON.
    pub(crate) async fn ask_for(&mut self, device: &str, request: &str) -> Answer {
        self.ask_with(body(device, request)).await
    }

    /// Asks as [`Self::ask`] does, with this body.
    pub(crate) async fn ask_with(&mut self, body: String) -> Answer {
        let signature = self.keys.sign(body.as_bytes()).unwrap().as_bytes().to_vec();
        self.send(body, signature);
        loop {
            match self.next().await {
                Some(ToFilter::Answer(answer)) if answer.sequence == self.sequence => return answer,
                Some(_) => {}
                None => panic!("the stream ended"),
            }
        }
    }

    pub(crate) fn send(&mut self, body: String, signature: Vec<u8>) {
        self.sequence += 1;
        let question = Question {
            sequence: self.sequence,
            webhook_id: WEBHOOK.to_owned(),
            signature,
            body: body.into(),
            peer_certificate: self.certificate.clone(),
            revision: self.revision,
            ..Question::default()
        };
        self.questions.send(FilterMessage { message: Some(FromFilter::Question(question)) }).unwrap();
    }
}

/// Returns what step-ca sends now about a device, with this certificate request, JSON.
pub(crate) fn body(device: &str, request: &str) -> String {
    let now = time::OffsetDateTime::from(SystemTime::now()).format(&time::format_description::well_known::Rfc3339).unwrap();
    format!(r#"{{"timestamp":"{now}","x509CertificateRequest":{request},"attestationData":{{"permanentIdentifier":"{device}"}}}}"#)
}

/// Returns a device file with these devices.
pub(crate) fn devices(identifiers: &[&str]) -> String {
    let devices: Vec<_> = identifiers.iter().map(|identifier| serde_json::json!({ "identifier": identifier, "data": {} })).collect();
    serde_json::json!({ "devices": devices }).to_string()
}

/// Replaces a symbolic link at once, as Kubernetes replaces `..data`.
pub(crate) fn swap_link(link: &Path, target: &str) {
    let beside = link.with_file_name("..swap");
    std::os::unix::fs::symlink(target, &beside).unwrap();
    fs::rename(beside, link).unwrap();
}

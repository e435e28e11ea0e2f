//! A real step-ca issues and refuses certificates by what Stepward says, for every kind of provisioner and webhook.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use e2e::client::{Http, post};
use e2e::deployment::{Addresses, Deployment, Hook, Plan, Tls, device};
use e2e::device::{refusal, subject};
use e2e::pki::{Authority, Credential, Leaf};
use e2e::step::StepCa;
use e2e::tools::{root, step_folder};
use e2e::wait::until;
use e2e::webhook::{Registered, timestamp};
use e2e::world::{World, add_acme, add_jwk, template};
use serde_json::json;
use time::Duration;

const KNOWN: &str = "C02XL0GYJGH5";

#[tokio::test(flavor = "multi_thread")]
async fn a_known_device_gets_a_certificate_with_its_data() {
    let world = World::of_devices().await;
    let issued = world.maker.enrol(&world.ca, "devices", KNOWN).await.unwrap();
    assert_eq!(subject(&issued), "OU=Blue, CN=C02XL0GYJGH5");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_device_fails_at_once_and_is_told_why() {
    let world = World::of_devices().await;
    let started = std::time::Instant::now();
    let (problem, subproblems) = refusal(world.maker.enrol(&world.ca, "devices", "STRANGER01").await);
    assert_eq!(problem, "urn:ietf:params:acme:error:unauthorized");
    assert_eq!(subproblems, ["urn:smallstep:acme:error:device_not_found"]);
    assert!(started.elapsed() < std::time::Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_removed_can_neither_renew_nor_enrol_again() {
    let world = World::of_devices().await;
    let issued = world.maker.enrol(&world.ca, "devices", KNOWN).await.unwrap();
    std::fs::write(world.ca.path("device.crt"), &issued.chain).unwrap();
    std::fs::write(world.ca.path("device.key"), &issued.key).unwrap();
    // The file has to keep most of its rows, or it is taken for a broken one.
    let others: Vec<_> = (0..20).map(|number| device(&format!("FLEET{number:05}"))).collect();
    let mut all = others.clone();
    all.push(device(KNOWN));
    world.stepward.write_devices(&all);
    world.stepward.knows(world.registered(0), "FLEET00001", true).await;
    world.stepward.write_devices(&others);
    world.stepward.knows(world.registered(0), KNOWN, false).await;
    let renewal = world.ca.step(&["ca", "renew", "--force", "device.crt", "device.key"]).unwrap_err();
    assert!(renewal.contains("lacked necessary authorization"), "{renewal}");
    let (problem, subproblems) = refusal(world.maker.enrol(&world.ca, "devices", KNOWN).await);
    assert_eq!(problem, "urn:ietf:params:acme:error:unauthorized");
    assert_eq!(subproblems, ["urn:smallstep:acme:error:device_not_found"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_of_another_kind_than_declared_issues_nothing() {
    let world = World::start(|ca, at| {
        add_acme(ca, "devices", None);
        vec![Hook::new(ca.add_webhook("devices", "posture", at.webhook, &["--kind", "ENRICHING"])).with("kind = \"authorizing\"")]
    })
    .await;
    refusal(world.maker.enrol(&world.ca, "devices", KNOWN).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_another_kind_than_declared_is_never_allowed() {
    let hooks: Vec<_> = ["enriching", "authorizing", "scep_challenge", "notifying"]
        .map(|kind| {
            let hook = Hook::new(Registered::random(kind)).with(&format!("kind = \"{kind}\""));
            if matches!(kind, "scep_challenge" | "notifying") { hook.with("providers = []") } else { hook }
        })
        .into();
    let stepward = Deployment::start(Plan::new(hooks.clone())).await;
    let client = stepward.client(Http::Two);
    let attested = json!({"permanentIdentifier": KNOWN});
    let subject = json!({"subject": {"commonName": KNOWN}});
    let bodies = [
        ("enriching", json!({"attestationData": attested, "x509CertificateRequest": subject})),
        ("authorizing", json!({"attestationData": attested, "x509Certificate": subject})),
        ("scep challenge", json!({"x509CertificateRequest": subject, "scepChallenge": "s", "scepTransactionID": "t"})),
        ("empty scep challenge", json!({"x509CertificateRequest": subject, "scepTransactionID": "t"})),
        ("notifying", json!({"x509CertificateRequest": subject, "x509Certificate": subject, "scepTransactionID": "t"})),
        ("nothing", json!({})),
    ];
    for hook in &hooks {
        let mut verdicts = Vec::new();
        for (name, body) in &bodies {
            let mut body = body.clone();
            body["timestamp"] = timestamp(Duration::ZERO).into();
            let reply = client.send(hook.registered.signed(body.to_string())).await.unwrap();
            verdicts.push((*name, reply.status.as_u16(), if reply.allows() { "allow".to_owned() } else { reply.code() }));
        }
        let expected = match &*hook.registered.id {
            "enriching" => [(200, "allow"), MISMATCH, MISMATCH, MISMATCH, MISMATCH, MISMATCH],
            "authorizing" => [MISMATCH, (200, "allow"), MISMATCH, MISMATCH, MISMATCH, MISMATCH],
            "scep_challenge" => [MISMATCH, MISMATCH, UNSUPPORTED, UNSUPPORTED, MISMATCH, MISMATCH],
            _ => [MISMATCH, MISMATCH, MISMATCH, RECORDED, RECORDED, MISMATCH],
        };
        let verdicts: Vec<_> = verdicts.iter().map(|(_, status, code)| (*status, code.as_str())).collect();
        assert_eq!(verdicts, expected, "{} was sent {:?}", hook.registered.id, bodies.map(|(name, _)| name));
    }
}

const MISMATCH: (u16, &str) = (400, "kind_mismatch");
const UNSUPPORTED: (u16, &str) = (200, "scep_challenge_unsupported");
const RECORDED: (u16, &str) = (200, "notification_recorded");

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_requires_a_bearer_token_issues_with_it_only() {
    let world = World::start(|ca, at| {
        std::fs::write(ca.path("right"), "the-right-token").unwrap();
        std::fs::write(ca.path("wrong"), "another-token").unwrap();
        ["right", "wrong", "none"]
            .map(|name| {
                add_acme(ca, name, Some("posture"));
                let token: &[&str] = if name == "none" { &[] } else { &["--bearer-token-file", name] };
                let token_file = ca.path("right").display().to_string();
                let registered = ca.add_webhook(name, "posture", at.webhook, token);
                Hook::new(registered).with(&format!("bearer = [{{ file = \"{token_file}\" }}]"))
            })
            .into()
    })
    .await;
    let issued = world.maker.enrol(&world.ca, "right", KNOWN).await.unwrap();
    assert_eq!(subject(&issued), "OU=Blue, CN=C02XL0GYJGH5");
    refusal(world.maker.enrol(&world.ca, "wrong", KNOWN).await);
    refusal(world.maker.enrol(&world.ca, "none", KNOWN).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_requires_basic_credentials_issues_with_them_only() {
    let world = World::start(|ca, at| {
        std::fs::write(ca.path("right-password"), "the:right-password").unwrap();
        std::fs::write(ca.path("wrong-password"), "another-password").unwrap();
        [
            ("right", Some(("ca", "right-password"))),
            ("stranger", Some(("other", "right-password"))),
            ("wrong", Some(("ca", "wrong-password"))),
            ("none", None),
        ]
        .map(|(name, credentials)| {
            add_acme(ca, name, Some("posture"));
            let arguments = credentials
                .map(|(username, file)| vec!["--basic-auth-username", username, "--basic-auth-password-file", file])
                .unwrap_or_default();
            let password = ca.path("right-password").display().to_string();
            let registered = ca.add_webhook(name, "posture", at.webhook, &arguments);
            Hook::new(registered).with(&format!("basic = [{{ username = \"ca\", password = {{ file = \"{password}\" }} }}]"))
        })
        .into()
    })
    .await;
    let issued = world.maker.enrol(&world.ca, "right", KNOWN).await.unwrap();
    assert_eq!(subject(&issued), "OU=Blue, CN=C02XL0GYJGH5");
    for provisioner in ["stranger", "wrong", "none"] {
        refusal(world.maker.enrol(&world.ca, provisioner, KNOWN).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorizing_webhook_allows_and_denies_the_finished_certificate() {
    let world = World::start(|ca, at| {
        add_acme(ca, "devices", None);
        vec![Hook::new(ca.add_webhook("devices", "posture", at.webhook, &["--kind", "AUTHORIZING"])).with("kind = \"authorizing\"")]
    })
    .await;
    let issued = world.maker.enrol(&world.ca, "devices", KNOWN).await.unwrap();
    assert_eq!(subject(&issued), "CN=C02XL0GYJGH5");
    let (_, subproblems) = refusal(world.maker.enrol(&world.ca, "devices", "STRANGER01").await);
    assert_eq!(subproblems, ["urn:smallstep:acme:error:device_not_found"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwk_provisioner_issues_to_names_that_are_claimed() {
    let prepare = |ca: &StepCa, at: Addresses| {
        add_jwk(ca, "laptops", Some(("--x509-template", &template("posture"))));
        let registered = ca.add_webhook("laptops", "posture", at.webhook, &[]);
        vec![Hook::new(registered).with("identity = \"claimed\"").with("identity_field = \"subject.cn\"").with("identifier = \"hostname\"")]
    };
    let world = World::start_with(prepare, |plan| plan.identifier = "hostname").await;
    world.stepward.write_devices(&[device(KNOWN), device("laptop.example.org")]);
    let request = |name, file| {
        let arguments =
            ["ca", "certificate", name, file, "laptop.key", "--provisioner", "laptops", "--provisioner-password-file", "password"];
        world.ca.step(&[&arguments[..], &["--force"]].concat())
    };
    until("the list is read", std::time::Duration::from_secs(10), async || request("laptop.example.org", "laptop.crt").ok()).await;
    let issued = Credential::read(&world.ca.path("laptop.crt"), &world.ca.path("laptop.key"));
    assert_eq!(subject(&issued), "OU=Blue, CN=laptop.example.org");
    request("stranger.example.org", "stranger.crt").unwrap_err();
    assert!(!world.ca.path("stranger.crt").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_x5c_provisioner_issues_to_the_certificate_that_asks() {
    let factory = Authority::new("Factory Root");
    let world = World::start(|ca, at| {
        std::fs::write(ca.path("factory.crt"), factory.pem()).unwrap();
        let arguments = ["--type", "X5C", "--x5c-roots", "factory.crt", "--disable-renewal"];
        ca.add_provisioner("machines", &arguments, Some(("--x509-template", &template("posture"))));
        let registered = ca.add_webhook("machines", "posture", at.webhook, &[]);
        vec![Hook::new(registered).with("identity = \"certificate\"").with("identity_field = \"subject.cn\"")]
    })
    .await;
    let request = |name: &str| {
        let credential = factory.issue(&Leaf::client(name));
        std::fs::write(world.ca.path("factory-leaf.crt"), credential.chain).unwrap();
        std::fs::write(world.ca.path("factory-leaf.key"), credential.key).unwrap();
        let file = format!("{name}.crt");
        let arguments = ["ca", "certificate", "any.example.org", &file, "any.key", "--provisioner", "machines", "--force"];
        world.ca.step(&[&arguments[..], &["--x5c-cert", "factory-leaf.crt", "--x5c-key", "factory-leaf.key"]].concat())
    };
    request(KNOWN).unwrap();
    let issued = Credential::read(&world.ca.path(&format!("{KNOWN}.crt")), &world.ca.path("any.key"));
    assert_eq!(subject(&issued), "OU=Blue, CN=any.example.org");
    request("STRANGER01").unwrap_err();
    assert!(!world.ca.path("STRANGER01.crt").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ssh_certificate_is_issued_to_a_known_name_only() {
    let prepare = |ca: &StepCa, at: Addresses| {
        add_jwk(ca, "shells", None);
        let registered = ca.add_webhook("shells", "posture", at.webhook, &["--cert-type", "SSH"]);
        vec![Hook::new(registered).with("identity = \"claimed\"").with("identity_field = \"ssh.key_id\"").with("identifier = \"email\"")]
    };
    let world = World::start_with(prepare, |plan| plan.identifier = "email").await;
    world.stepward.write_devices(&[device(KNOWN), device("ada@example.org")]);
    let request = |name, file| {
        let arguments = ["ssh", "certificate", name, file, "--provisioner", "shells", "--provisioner-password-file", "password"];
        world.ca.step(&[&arguments[..], &["--no-password", "--insecure", "--no-agent", "--force"]].concat())
    };
    until("the list is read", std::time::Duration::from_secs(10), async || request("ada@example.org", "ada").ok()).await;
    assert!(world.ca.path("ada-cert.pub").exists());
    request("mallory@example.org", "mallory").unwrap_err();
    assert!(!world.ca.path("mallory-cert.pub").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_behind_the_filter_ever_allows() {
    let hook = Hook::new(Registered::random("11111111-2222-4333-8444-555555555555"));
    let stepward = Deployment::start(Plan::new(vec![hook])).await;
    for http in [Http::One, Http::Two] {
        let client = stepward.client(http);
        for (request, status) in [
            (post("/", "".into()), 404),
            (post("/webhook", "".into()), 404),
            (post("/webhook/device-attest", "".into()), 401),
            (post("/webhook/device-attest", "".into()).method(::http::Method::GET), 405),
        ] {
            let reply = client.send(request.clone()).await.unwrap();
            assert_eq!(reply.status, status, "{request:?}");
            assert!(!reply.allows());
        }
    }
}

/// What the unit runs, with the paths of the test.
#[tokio::test(flavor = "multi_thread")]
async fn e14_the_unit_for_envoys_certificate_renews_it_and_envoy_shows_the_new_one() {
    let ca = StepCa::start().await;
    let registered = Registered::random("11111111-2222-4333-8444-555555555555");
    let plan = Plan::new(vec![Hook::new(registered.clone())]);
    let stepward = Deployment::start_at(plan, Addresses::default(), Tls::of_step_ca(&ca)).await;
    let client = stepward.client(Http::One);
    let shown = async || client.tls().await.unwrap().get_ref().1.peer_certificates().unwrap()[0].clone();
    let before = shown().await;

    let unit = std::fs::read_to_string(root().join("deploy/systemd/stepward-envoy-renew.service")).unwrap();
    let runs: Vec<_> = unit.lines().filter(|line| line.starts_with("Exec")).collect();
    assert_eq!(runs, ["ExecStart=/usr/lib/stepward/renew-certificate"]);
    let certificate = stepward.path("tls/server.crt");
    let looked = renewal(&ca, &stepward).output().unwrap();
    assert_eq!((looked.status.code(), said(&looked)), (Some(0), format!("{} is not due yet\n", certificate.display())));
    assert!(shown().await == before);
    let renewed = renewal(&ca, &stepward).arg("--now").output().unwrap();
    assert!(renewed.status.success(), "{}", said(&renewed));
    until("Envoy shows the new one", std::time::Duration::from_secs(10), async || (shown().await != before).then_some(())).await;
    assert!(client.send(registered.ask(KNOWN)).await.unwrap().allows());
    let mode = std::fs::metadata(&certificate).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640, "Envoy's group can read it");
    assert!(!stepward.path("tls/server.crt.new").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn e14_a_renewal_that_cannot_work_fails_before_it_is_due_and_says_why() {
    let ca = StepCa::start().await;
    let hook = Hook::new(Registered::random("11111111-2222-4333-8444-555555555555"));
    let stepward = Deployment::start_at(Plan::new(vec![hook]), Addresses::default(), Tls::of_step_ca(&ca)).await;
    let fails = |command: &mut Command, why: &str| {
        let output = command.output().unwrap();
        assert!(output.status.code() == Some(1) && said(&output).contains(why), "{why}: {}", said(&output));
    };
    fails(renewal(&ca, &stepward).env("KEY", ca.path("nothing")), "nothing is not there, or the user");
    fails(renewal(&ca, &stepward).env("CERTIFICATE", ca.path("nothing")), "nothing is not there, or the user");
    fails(renewal(&ca, &stepward).env("STEPPATH", ca.path("nothing")), "no CA is named in ");
    fails(renewal(&ca, &stepward).env("CERTIFICATE", stepward.path("tls/server.key")), "step cannot look when ");
    std::fs::write(ca.path("step/config/defaults.json"), "{").unwrap();
    fails(&mut renewal(&ca, &stepward), "step cannot look when ");
    std::fs::write(ca.path("step/config/defaults.json"), "{}").unwrap();
    assert!(renewal(&ca, &stepward).status().unwrap().success(), "a CA that is away is asked in time");
    fails(renewal(&ca, &stepward).arg("--now"), "the CA did not renew ");
    let ended = ["certificate", "create", "localhost", "ended.crt", "ended.key", "--profile", "self-signed", "--subtle"];
    ca.step(&[&ended[..], &["--not-before=-2h", "--not-after=-1h", "--no-password", "--insecure"]].concat()).unwrap();
    let mut command = renewal(&ca, &stepward);
    fails(command.env("CERTIFICATE", ca.path("ended.crt")).env("KEY", ca.path("ended.key")), "has ended, and step-ca renews none that has");
}

/// `renew-certificate`, for the certificate of this deployment.
fn renewal(ca: &StepCa, stepward: &Deployment) -> Command {
    let path = std::env::join_paths([step_folder(), Path::new("/usr/bin"), Path::new("/bin")]).unwrap();
    let mut command = Command::new(root().join("deploy/systemd/renew-certificate"));
    command.env_clear().env("PATH", path).env("HOME", ca.path("")).env("STEPPATH", ca.path("step")).stdin(Stdio::null());
    command.env("CERTIFICATE", stepward.path("tls/server.crt")).env("KEY", stepward.path("tls/server.key"));
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

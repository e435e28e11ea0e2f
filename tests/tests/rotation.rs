//! The secret of a webhook is replaced, by what `stepward webhook rotate` prints, while a real step-ca issues certificates.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use e2e::client::Http;
use e2e::deployment::Hook;
use e2e::step::StepCa;
use e2e::tools::{step_folder, stepward};
use e2e::wait::until;
use e2e::webhook::Registered;
use e2e::world::{World, add_jwk, template};
use posture::shape::WEBHOOK_ID;

const LAPTOP: &str = "laptop.example.org";

/// One step of the rotation: what is to be done in words, and the commands.
struct Step {
    words: String,
    commands: String,
}

/// The steps as they were printed; a line with a `#` is for people.
fn steps(printed: &str) -> Vec<Step> {
    let begins = |line: &str| line.strip_prefix("# ").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()));
    let mut steps: Vec<Step> = Vec::new();
    for line in printed.lines() {
        if begins(line) {
            steps.push(Step { words: String::new(), commands: String::new() });
        }
        let Some(step) = steps.last_mut() else { continue };
        let part = if line.starts_with('#') { &mut step.words } else { &mut step.commands };
        *part += &format!("{line}\n");
    }
    steps
}

/// The indented lines of a step's words.
fn shown(words: &str) -> String {
    words.lines().filter_map(|line| line.strip_prefix("#    ")).map(|line| format!("{line}\n")).collect()
}

/// Runs commands as the administrator of the CA does, in the folder of the configuration.
fn shell(ca: &StepCa, folder: &Path, commands: &str) -> String {
    let built = stepward();
    let programs = [step_folder(), built.parent().unwrap(), Path::new("/usr/bin"), Path::new("/bin")];
    let output = Command::new("bash")
        .args(["-euc", commands])
        .env_clear()
        .env("PATH", std::env::join_paths(programs).unwrap())
        .env("HOME", folder)
        .env("STEPPATH", ca.path("step"))
        .env("STEP_ADMIN_SUBJECT", "step")
        .env("STEP_ADMIN_PROVISIONER", "admin")
        .env("STEP_ADMIN_PASSWORD_FILE", ca.path("password"))
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{commands}: {out}{err}");
    out
}

/// A certificate's subject, as `step` asks for it and shows it.
fn issue(ca: &StepCa) -> Result<String, String> {
    let provisioner = ["--provisioner", "laptops", "--provisioner-password-file", "password"];
    ca.step(&[&["ca", "certificate", LAPTOP, "laptop.crt", "laptop.key", "--force"], &provisioner[..]].concat())?;
    let text = ca.step(&["certificate", "inspect", "laptop.crt"])?;
    Ok(text.lines().find_map(|line| line.trim().strip_prefix("Subject: ")).unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn e4_a_secret_is_replaced_while_certificates_are_issued() {
    let world = World::start_with(
        |ca, at| {
            std::fs::write(ca.path("token"), "first-token").unwrap();
            add_jwk(ca, "laptops", Some(("--x509-template", &template("posture"))));
            let registered = ca.add_webhook("laptops", "posture", at.webhook, &["--bearer-token-file", "token"]);
            let hook = Hook::new(registered).with("identity = \"claimed\"").with("identifier = \"hostname\"");
            vec![hook.with("bearer = [{ file = \"secrets/token\" }]")]
        },
        |plan| {
            plan.devices.push((LAPTOP.to_owned(), serde_json::json!({"team": "Blue"})));
            plan.identifier = "hostname";
            plan.secrets.push(("token", "first-token"));
        },
    )
    .await;
    let (ca, stepward, old) = (&world.ca, &world.stepward, world.registered(0).clone());
    let folder = stepward.path("");
    until("a certificate is issued", Duration::from_secs(20), async || issue(ca).ok()).await;

    let listed = shell(ca, &folder, "step ca provisioner list > provisioners.json");
    assert_eq!(listed, "");
    let rotate = "stepward webhook rotate --provisioners provisioners.json --config stepward.toml";
    let printed = shell(ca, &folder, rotate);
    let steps = steps(&printed);
    assert_eq!(steps.len(), 6, "{printed}");
    let (issued, over) = (AtomicU32::new(0), AtomicBool::new(false));
    let failures = std::thread::scope(|scope| {
        let issuing = scope.spawn(|| {
            let mut failures = Vec::new();
            while !over.load(Ordering::Relaxed) {
                match issue(ca) {
                    Ok(subject) if subject == format!("OU=Blue,CN={LAPTOP}") => _ = issued.fetch_add(1, Ordering::Relaxed),
                    other => failures.push(other),
                }
            }
            failures
        });
        // Each step lasts until certificates were issued after it, the first of which may have begun before.
        let settle = || {
            let before = issued.load(Ordering::Relaxed);
            let began = std::time::Instant::now();
            while issued.load(Ordering::Relaxed) < before + 2 && began.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        // Whatever comes of it, the other thread ends.
        let went = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rotation(&world, &old, &steps, settle)));
        over.store(true, Ordering::Relaxed);
        let failures = issuing.join().unwrap();
        (went, failures)
    });
    let (went, failures) = failures;
    let new = went.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert!(failures.is_empty(), "{failures:?}");
    assert!(issued.load(Ordering::Relaxed) >= 12);

    // The old id and its secret are good for nothing any more, and the new one is not lent.
    let client = stepward.client(Http::Two);
    let ask = |registered: &Registered| registered.ask(LAPTOP).header("authorization", "Bearer first-token");
    until("the old id is gone", Duration::from_secs(10), async || (client.send(ask(&old)).await.unwrap().status == 401).then_some(()))
        .await;
    assert_eq!(client.send(ask(&old).replace(WEBHOOK_ID, &new.id)).await.unwrap().status, 401);
    assert!(client.send(ask(&new)).await.unwrap().allows());
    let left = shell(ca, &folder, "step ca provisioner list");
    assert!(left.contains(&new.id) && !left.contains(&old.id), "{left}");
}

/// Goes the steps, and returns the webhook that took the place of the old one.
fn rotation(world: &World, old: &Registered, steps: &[Step], settle: impl Fn()) -> Registered {
    let (ca, stepward, folder) = (&world.ca, &world.stepward, world.stepward.path(""));
    let configuration = || std::fs::read_to_string(stepward.path("stepward.toml")).unwrap();
    // 1
    let id = shell(ca, &folder, &steps[0].commands).trim().to_owned();
    assert!(id.len() == 36 && id != old.id, "{id}");
    settle();
    // 2
    let ids = shown(&steps[1].words).replace("NEW_ID", &id);
    let (before, after) = (configuration(), format!("secrets = [{{ file = \"secrets/{}\" }}]\n", old.id));
    let both = before.replace(&format!("id = \"{}\"\n", old.id), &ids).replace(&after, "");
    stepward.write("stepward.toml", &both);
    shell(ca, &folder, &steps[1].commands);
    let secret_file = ids.split("file = \"").nth(1).unwrap().split('"').next().unwrap();
    let new = Registered { id: id.clone(), secret: std::fs::read_to_string(stepward.path(secret_file)).unwrap().trim().to_owned() };
    let doctor = stepward.stepward(&["doctor", "--config", "stepward.toml"]).output().unwrap();
    assert!(String::from_utf8(doctor.stdout).unwrap().contains(&format!("it has several: {id}, {}", old.id)));
    settle();
    // 3
    let line = shown(&steps[2].words);
    let text = format!("{line}{}", template("posture")).replace(".Webhooks.posture.", "$posture.");
    assert!(text.matches("$posture").count() == 2 && line.contains(".Webhooks.posture2 .Webhooks.posture"), "{text}");
    std::fs::write(ca.path("both.tpl"), text).unwrap();
    shell(ca, &folder, &steps[2].commands.replace("TEMPLATE_FILE", &ca.path("both.tpl").display().to_string()));
    settle();
    // 4
    let asked = |commands: &str| {
        let commands: Vec<_> = commands.lines().map(|line| line.replace("NEW_ID", &id)).collect();
        let (last, first) = commands.split_last().unwrap();
        shell(ca, &folder, &first.join("\n"));
        settle();
        settle();
        shell(ca, &folder, last)
    };
    let listed = asked(steps[3].commands.trim());
    assert!(listed.contains(&id) && listed.contains("allow"), "{listed}");
    // 5
    shell(ca, &folder, &steps[4].commands);
    settle();
    // 6
    let line = shown(&steps[5].words).replace("NEW_ID", &id);
    stepward.write("stepward.toml", &configuration().replace(&ids, &line));
    shell(ca, &folder, &steps[5].commands);
    assert!(!stepward.path(&format!("secrets/{}", old.id)).exists());
    settle();
    new
}

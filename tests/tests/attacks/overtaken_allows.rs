//! An allow that a lock, a doubt or a newer fact forbids: through a real Envoy, sidecar and command line.

use std::time::Duration;

use e2e::client::Http;
use e2e::deployment::{Deployment, Hook, Plan};
use e2e::management::Management;
use e2e::wait::until;
use e2e::webhook::Registered;
use fakes::jamf::CLIENT_SECRET;
use fakes::{Device, Fault};

const MAC: &str = "C02XL0GYJGH5";
const FIRST: &str = "11111111-2222-4333-8444-555555555555";
const SECOND: &str = "22222222-2222-4333-8444-555555555555";

fn hook(id: &str, lines: &str) -> Hook {
    Hook::new(Registered::random(id)).with(lines)
}

/// The verdict of the webhook with this number about a device.
async fn verdict(stepward: &Deployment, number: usize, device: &str) -> String {
    let request = stepward.plan().hooks[number].registered.ask(device);
    stepward.client(Http::One).send(request).await.unwrap().verdict().1
}

/// Until the service that was started again answers on all its sockets.
async fn restart(stepward: &mut Deployment) {
    stepward.restart_sidecar();
    let asks = || stepward.stepward(&["locks", "--config", "stepward.toml"]).output().unwrap();
    until("the service answers", Duration::from_secs(20), async || asks().status.success().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a1_a_device_that_is_locked_while_its_provider_hangs_is_not_let_in_by_its_exemption() {
    let management = Management::of(&[Device::computer(MAC)]).await;
    let mut plan = Plan::new(vec![hook(FIRST, "policy = \"macs\"")]);
    management.join(&mut plan, "[policy.macs]\nproviders = [\"jamf\"]");
    let stepward = Deployment::start(plan).await;
    management.server.fail(Some(Fault::Hang));
    // It asks who knows the device as well, and nobody says.
    stepward.ask(&["exempt", MAC, "--ttl", "1h", "--reason", "a test"]);
    assert_eq!(verdict(&stepward, 0, MAC).await, "allow", "the exemption counts while nobody can say");
    let request = stepward.plan().hooks[0].registered.ask(MAC);
    let client = stepward.client(Http::One);
    let webhook = tokio::spawn(async move { client.send(request).await.unwrap().verdict().1 });
    let mut query = stepward.stepward(&["query", MAC, "--policy", "macs", "--config", "stepward.toml"]);
    let query = tokio::task::spawn_blocking(move || query.output().unwrap());
    // Both are waiting for the provider by then.
    tokio::time::sleep(Duration::from_millis(1000)).await;
    stepward.ask(&["lock", MAC, "--reason", "stolen"]);
    assert_eq!(webhook.await.unwrap(), "device_locked");
    let query = query.await.unwrap();
    assert!(String::from_utf8_lossy(&query.stdout).contains("device_locked"), "{query:?}");
    assert_eq!(verdict(&stepward, 0, MAC).await, "device_locked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a2_a_lock_on_an_identifier_of_the_first_record_counts_while_the_second_is_asked() {
    let mac = Device::computer(MAC);
    let (one, two) = (Management::of(std::slice::from_ref(&mac)).await, Management::of(std::slice::from_ref(&mac)).await);
    for combine in ["all_of", "any_of"] {
        let mut plan = Plan::new(vec![hook(FIRST, "policy = \"macs\"")]);
        // Whoever needs one only has to go on to the second, so the first one's record does not pass.
        let rule = if combine == "all_of" { "" } else { "\ngroups_any = [\"Nobody\"]" };
        one.join(&mut plan, &format!("[policy.macs]\nproviders = [\"jamf\", \"second\"]\ncombine = \"{combine}\"{rule}\n"));
        let url = two.server.url();
        plan.secrets.push(("second", CLIENT_SECRET));
        plan.more += &format!(
            "[provider.second]\ntype = \"jamf\"\nbase_url = \"{url}\"\nclient_id = \"{}\"\nclient_secret = {{ file = \"secrets/second\" }}\n",
            fakes::jamf::CLIENT_ID
        );
        let stepward = Deployment::start(plan).await;
        two.server.forget();
        two.server.fail_next(2, Fault::Slow(Duration::from_millis(2000)));
        let (client, request) = (stepward.client(Http::One), stepward.plan().hooks[0].registered.ask(MAC));
        let asking = tokio::spawn(async move { client.send(request).await.unwrap().verdict().1 });
        until("the second is asked", Duration::from_secs(3), async || (!two.server.lookups().is_empty()).then_some(())).await;
        stepward.ask(&["lock", &mac.udid, "--reason", "stolen"]);
        assert_eq!(asking.await.unwrap(), "device_locked", "{combine}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a8_a_lock_by_one_identifier_holds_for_a_file_that_knows_the_other_and_after_a_restart() {
    let mac = Device::computer(MAC);
    let management = Management::of(std::slice::from_ref(&mac)).await;
    let mut plan = Plan::new(vec![hook(FIRST, "providers = [\"jamf\"]"), hook(SECOND, "providers = [\"fleet\"]")]);
    management.join(&mut plan, "");
    let mut stepward = Deployment::start(plan).await;
    assert_eq!((verdict(&stepward, 0, MAC).await, verdict(&stepward, 1, MAC).await), ("allow".to_owned(), "allow".to_owned()));
    // A process that is killed may not have written what it learned a moment before.
    stepward.sidecar().terminate(Duration::from_secs(20));
    restart(&mut stepward).await;
    management.server.fail(Some(Fault::Reset));
    stepward.ask(&["lock", &mac.udid, "--reason", "stolen"]);
    assert_eq!(verdict(&stepward, 1, MAC).await, "device_locked", "what was learned before the restart counts");
    restart(&mut stepward).await;
    assert_eq!(verdict(&stepward, 1, MAC).await, "device_locked");
    stepward.ask(&["unlock", &mac.udid]);
    assert_eq!(verdict(&stepward, 1, MAC).await, "allow");
}

#[tokio::test(flavor = "multi_thread")]
async fn a9_unlocking_one_device_takes_back_no_lock_on_an_identifier_that_its_record_claims() {
    let stolen = Device::computer("STOLEN0001");
    let rogue = Device { udid: stolen.udid.clone(), ..Device::computer("ROGUE00002") };
    let management = Management::of(&[stolen.clone(), rogue]).await;
    let mut plan = Plan::new(vec![hook(FIRST, "providers = [\"jamf\"]")]);
    management.join(&mut plan, "");
    let stepward = Deployment::start(plan).await;
    stepward.ask(&["lock", &stolen.udid, "--reason", "stolen"]);
    assert_eq!(verdict(&stepward, 0, "ROGUE00002").await, "device_locked");
    let unlocked = stepward.stepward(&["unlock", "ROGUE00002", "--config", "stepward.toml"]).output().unwrap();
    assert_eq!(unlocked.status.code(), Some(3), "{unlocked:?}");
    assert_eq!(verdict(&stepward, 0, "STOLEN0001").await, "device_locked");
}

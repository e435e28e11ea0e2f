//! A device management decides, through the real step-ca, Envoy and sidecar: groups, events, locks.

use std::time::Duration;

use e2e::client::{Http, Reply, post};
use e2e::deployment::{Deployment, Hook, Plan};
use e2e::device::{refusal, subject};
use e2e::management::{EVENTS, Management, PUSH, push};
use e2e::wait::until;
use e2e::webhook::{Registered, enriching};
use e2e::world::{World, add_acme, add_acme_with};
use fakes::jamf::{event, id};
use fakes::{Device, Fault, User};
use http::Method;
use serde_json::json;

const MAC: &str = "C02XL0GYJGH5";
const PHONE: &str = "F2LWD0ABCDEF";

/// A subject with what the management knows: the device's name, its user and its first group.
const TEMPLATE: &str = r#"{"subject": {"commonName": {{ toJson .Subject.CommonName }},
 "organization": {{ toJson .Webhooks.posture.device.name }}, "organizationalUnit": {{ toJson .Webhooks.posture.user.username }},
 "locality": {{ toJson (index .Webhooks.posture.groups 0) }}},
 "sans": {{ toJson .SANs }}, "keyUsage": ["digitalSignature"], "extKeyUsage": ["clientAuth"]}"#;

/// Answers are good for a second.
const SHORT: &str = "[provider.jamf.cache]\npositive = \"1s\"\nnegative = \"1s\"";

#[tokio::test(flavor = "multi_thread")]
async fn an_iphone_gets_certificates_while_it_is_in_the_group_that_the_provider_names() {
    let management = Management::of(&[Device::phone(PHONE).in_groups(&["Compliant Phones"])]).await;
    let prepare = |ca: &_, at: e2e::deployment::Addresses| {
        add_acme_with(ca, "phones", Some(TEMPLATE));
        vec![asking_jamf(ca.add_webhook("phones", "posture", at.webhook, &[])).with("mode = \"mobiledevice\"")]
    };
    let lines = format!("device_group = \"Compliant Phones\"\ndevice_enrich = true\n{SHORT}");
    let world = World::start_with(prepare, |plan| management.join(plan, &lines)).await;
    let issued = world.maker.enrol(&world.ca, "phones", PHONE).await.unwrap();
    assert_eq!(subject(&issued), "L=Compliant Phones, O=Phone F2LWD0ABCDEF, OU=ada, CN=F2LWD0ABCDEF");
    management.server.change(PHONE, |phone| phone.groups = vec!["All Managed".to_owned()]);
    outlived().await;
    let (problem, subproblems) = refusal(world.maker.enrol(&world.ca, "phones", PHONE).await);
    assert_eq!(problem, "urn:ietf:params:acme:error:unauthorized");
    assert_eq!(subproblems, ["urn:smallstep:acme:error:group_required"]);
    management.server.change(PHONE, |phone| phone.groups = vec!["Compliant Phones".to_owned()]);
    outlived().await;
    world.maker.enrol(&world.ca, "phones", PHONE).await.unwrap();
    management.server.remove(PHONE);
    outlived().await;
    let (_, subproblems) = refusal(world.maker.enrol(&world.ca, "phones", PHONE).await);
    assert_eq!(subproblems, ["urn:smallstep:acme:error:device_not_found"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mac_that_left_the_group_of_a_policy_is_refused_at_its_next_order() {
    let mac = Device::computer(MAC).in_groups(&["Compliant Macs"]);
    let management = Management::of(std::slice::from_ref(&mac)).await;
    let prepare = |ca: &_, at: e2e::deployment::Addresses| {
        add_acme_with(ca, "macs", Some(TEMPLATE));
        vec![Hook::new(ca.add_webhook("macs", "posture", at.webhook, &[])).with("policy = \"macs\"").with("mode = \"computer\"")]
    };
    let lines = format!(
        "{PUSH}\n[policy.macs]\nproviders = [\"jamf\"]\nmanaged = true\ngroups_any = [\"Compliant Macs\"]\nenrich = true\nremediation_url = \"https://help.example.org\""
    );
    let world = World::start_with(prepare, |plan| management.join(plan, &lines)).await;
    let issued = world.maker.enrol(&world.ca, "macs", MAC).await.unwrap();
    assert_eq!(subject(&issued), "L=Compliant Macs, O=Computer C02XL0GYJGH5, OU=ada, CN=C02XL0GYJGH5");
    management.server.change(MAC, |mac| mac.groups = vec!["All Managed".to_owned()]);
    // What is remembered is good for five minutes, and Jamf Pro says that it is not.
    world.maker.enrol(&world.ca, "macs", MAC).await.unwrap();
    let left: u64 = id(&mac).parse().unwrap();
    let change = json!({
        "computer": true, "groupAddedDevicesIds": [], "groupRemovedDevicesIds": [left],
        "jssid": 3, "name": "Compliant Macs", "smartGroup": true,
    });
    assert_eq!(world.stepward.push(push("SmartGroupComputerMembershipChange", change, EVENTS)).await.status, 204);
    let (problem, subproblems) = refusal(world.maker.enrol(&world.ca, "macs", MAC).await);
    assert_eq!(problem, "urn:ietf:params:acme:error:unauthorized");
    assert_eq!(subproblems, ["urn:smallstep:acme:error:group_required"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_may_be_called_anything_and_stands_in_the_certificate_as_that() {
    let name = r#"{{ .Token }} "Ada" \ O'Neil 🦊"#;
    let mut phone = Device::phone(PHONE).in_groups(&["{{ fail \"no\" }}"]);
    phone.user = Some(User { id: name.to_owned(), name: "x".repeat(4096), ..User::default() });
    let management = Management::of(&[phone]).await;
    let prepare = |ca: &_, at: e2e::deployment::Addresses| {
        add_acme_with(ca, "phones", Some(TEMPLATE));
        vec![asking_jamf(ca.add_webhook("phones", "posture", at.webhook, &[]))]
    };
    let world = World::start_with(prepare, |plan| management.join(plan, "device_enrich = true")).await;
    let issued = world.maker.enrol(&world.ca, "phones", PHONE).await.unwrap();
    let subject = subject(&issued);
    for part in ["{{ .Token }}", "Ada", "O'Neil", "🦊", "{{ fail"] {
        assert!(subject.contains(part), "{subject}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_webhooks_of_one_order_cost_one_lookup() {
    let management = Management::of(&[Device::computer(MAC).in_groups(&["Compliant Macs"])]).await;
    let prepare = |ca: &_, at: e2e::deployment::Addresses| {
        add_acme(ca, "macs", None);
        // The first needs no groups, and what it fetches has to do for the second.
        let enriching = ca.add_webhook("macs", "posture", at.webhook, &[]);
        let authorizing = ca.add_webhook("macs", "judge", at.webhook, &["--kind", "AUTHORIZING"]);
        vec![
            Hook::new(enriching).with("policy = \"names\""),
            Hook::new(authorizing).with("policy = \"groups\"").with("kind = \"authorizing\""),
        ]
    };
    let lines = "[policy.names]\nproviders = [\"jamf\"]\ndata = \"{'name': device.name}\"\n[policy.groups]\nproviders = [\"jamf\"]\ngroups_any = [\"Compliant Macs\"]";
    let world = World::start_with(prepare, |plan| management.join(plan, lines)).await;
    world.maker.enrol(&world.ca, "macs", MAC).await.unwrap();
    let metrics = world.stepward.metrics().await;
    for hook in &world.hooks {
        let webhook = format!("webhook=\"{}\"", hook.registered.id);
        assert_eq!(metrics.sum(&["stepward_decisions_total", &webhook, "decision=\"allow\""]), 1.0, "{}", metrics.text());
    }
    assert_eq!(metrics.sum(&["stepward_provider_calls_total", "provider=\"jamf\""]), 1.0, "{}", metrics.text());
    assert_eq!(management.searches(), (1, 1), "without a hint computers and mobile devices are looked through, once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_effective_on_the_next_request_and_a_forged_one_changes_nothing() {
    let phone = Device::phone(PHONE);
    let (management, stepward) = before(std::slice::from_ref(&phone), PUSH).await;
    let asks = Asks::new(&stepward);
    let first = asks.hook.ask(PHONE);
    assert_eq!(asks.send(&first).await.verdict(), allow());
    management.server.change(PHONE, |phone| phone.managed = false);
    let fetched = management.searches();
    let unenrolled = |secret| push("MobileDeviceUnEnrolled", event(&phone), secret);
    let bare = unenrolled(EVENTS).without("authorization");
    for forged in [
        unenrolled("another-secret"),
        unenrolled(""),
        bare.clone(),
        bare.clone().header("x-stepward-event", EVENTS),
        bare.header("authorization", "Basic amFtZjp0aGUtc2VjcmV0LW9mLWV2ZW50cw=="),
        unenrolled(EVENTS).header("authorization", "Bearer another-secret"),
    ] {
        assert_eq!(stepward.push(forged.clone()).await.status, 401, "{forged:?}");
    }
    for (request, status) in [
        (unenrolled(EVENTS).method(Method::GET), 403),
        (unenrolled(EVENTS).method(Method::PUT), 403),
        (unenrolled(EVENTS).path("/"), 403),
        (unenrolled(EVENTS).path("/push"), 403),
        (unenrolled(EVENTS).path("/push/jamf/"), 403),
        (unenrolled(EVENTS).path("/push/nobody"), 403),
        (unenrolled(EVENTS).path("/push/fleet"), 403),
        (unenrolled(EVENTS).path("/webhook/device-attest"), 403),
        (post("/push/jamf", "{}".into()).header("authorization", &format!("Bearer {EVENTS}")), 400),
    ] {
        assert_eq!(stepward.push(request.clone()).await.status, status, "{request:?}");
    }
    assert_eq!(asks.verdict(PHONE).await, allow(), "what is remembered is good still");
    assert_eq!(management.searches(), fetched, "nothing was dropped");
    assert_eq!(stepward.push(unenrolled(EVENTS)).await.status, 204);
    assert_eq!(asks.verdict(PHONE).await, deny("device_unmanaged"));
    assert_eq!(asks.send(&first).await.verdict(), deny("device_unmanaged"), "nor is the allow of before repeated");
    // Sent again by whoever recorded it, it costs a call and says nothing.
    management.server.change(PHONE, |phone| phone.managed = true);
    assert_eq!(stepward.push(unenrolled(EVENTS)).await.status, 204);
    assert_eq!(asks.verdict(PHONE).await, allow());
    // What an event revoked is not allowed from memory while the management is away.
    assert_eq!(stepward.push(unenrolled(EVENTS)).await.status, 204);
    management.server.fail(Some(Fault::Status(500)));
    assert_eq!(asks.verdict(PHONE).await, unavailable());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_wins_over_what_is_remembered_and_outlives_a_restart() {
    let mac = Device { udid: "00008103-001A2B3C4D5E6F70".to_owned(), ..Device::computer(MAC) };
    let (_management, mut stepward) = before(&[mac.clone(), Device::phone(PHONE)], "").await;
    let asks = Asks::new(&stepward);
    let remembered = asks.hook.ask(MAC);
    assert_eq!(asks.send(&remembered).await.verdict(), allow());
    for identifier in [MAC.to_lowercase(), mac.udid.to_lowercase(), mac.udid.replace('-', "")] {
        stepward.ask(&["lock", &identifier, "--reason", "reported stolen"]);
        assert_eq!(asks.send(&remembered).await.verdict(), deny("device_locked"), "{identifier}, equal bytes");
        assert_eq!(asks.verdict(MAC).await, deny("device_locked"), "{identifier}");
        assert_eq!(asks.verdict(PHONE).await, allow(), "{identifier} is another device");
        stepward.ask(&["unlock", &identifier]);
        assert_eq!(asks.send(&remembered).await.verdict(), allow(), "{identifier} is free again, equal bytes");
        assert_eq!(asks.verdict(MAC).await, allow(), "{identifier} is free again");
    }
    stepward.ask(&["lock", &mac.udid, "--reason", "reported stolen"]);
    stepward.sidecar().terminate(Duration::from_secs(10));
    stepward.restart_sidecar();
    let after = until("the sidecar is back", Duration::from_secs(30), async || {
        let reply = asks.send(&remembered).await;
        (reply.status == 200).then_some(reply)
    })
    .await;
    assert_eq!(after.verdict(), deny("device_locked"));
    assert_eq!(asks.verdict(MAC).await, deny("device_locked"));
    stepward.ask(&["unlock", &mac.udid]);
    assert_eq!(asks.verdict(MAC).await, allow());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_under_way_is_judged_by_the_configuration_that_holds_at_its_end() {
    let (management, stepward) = before(&[Device::phone(PHONE)], "").await;
    let asks = Asks::new(&stepward);
    management.server.fail_next(2, Fault::Slow(Duration::from_millis(2500)));
    let (client, request) = (asks.client.clone(), asks.hook.ask(PHONE));
    let asking = tokio::spawn(async move { client.send(request).await.unwrap().verdict() });
    until("the management is asked", Duration::from_secs(2), async || (management.searches() == (1, 1)).then_some(())).await;
    let mut plan = Plan::new(vec![Hook::new(asks.hook.clone())]);
    plan.secrets.clone_from(&stepward.plan().secrets);
    stepward.configure(&plan);
    stepward.ask(&["reload"]);
    assert_eq!(asks.verdict(PHONE).await, deny("device_not_found"), "the list that is asked from now on does not have it");
    assert_eq!(asking.await.unwrap(), deny("device_not_found"), "so does whoever was asking the provider that is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_provisioners_name_is_not_needed() {
    let (_management, stepward) = before(&[Device::computer(MAC)], "").await;
    let asks = Asks::new(&stepward);
    let mut body: serde_json::Value = serde_json::from_slice(&enriching(MAC)).unwrap();
    assert!(body.get("provisionerName").is_none());
    assert_eq!(asks.send(&asks.hook.signed(body.to_string())).await.verdict(), allow());
    body["provisionerName"] = json!("macs");
    assert_eq!(asks.send(&asks.hook.signed(body.to_string())).await.verdict(), allow());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_finds_the_answer_that_the_first_attempt_fetched() {
    let (management, stepward) = before(&[Device::computer(MAC)], "").await;
    let asks = Asks::new(&stepward);
    management.server.fail_next(2, Fault::Slow(Duration::from_millis(4500)));
    let request = asks.hook.ask(MAC);
    let first = asks.send(&request).await;
    assert_eq!(first.verdict(), unavailable());
    assert!(first.took < LONGEST, "{:?}", first.took);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(asks.send(&request).await.verdict(), allow());
    assert_eq!(management.searches(), (1, 1), "computers and mobile devices were looked through once");
    let metrics = stepward.metrics().await;
    assert_eq!(metrics.sum(&["stepward_provider_calls_total", "provider=\"jamf\""]), 1.0, "{}", metrics.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn observing_allows_and_records_what_would_have_been_denied() {
    let management = Management::of(&[Device { managed: false, ..Device::computer(MAC) }]).await;
    let observed = Registered::random("11111111-2222-4333-8444-555555555555");
    let enforced = Registered::random("22222222-2222-4333-8444-555555555555");
    let hook = |registered: &Registered| Hook::new(registered.clone()).with("policy = \"managed\"");
    let mut plan = Plan::new(vec![hook(&observed).with("enforcement = \"observe\""), hook(&enforced)]);
    management.join(&mut plan, "[policy.managed]\nproviders = [\"jamf\"]\nmanaged = true");
    let mut stepward = Deployment::start(plan).await;
    let client = stepward.client(Http::One);
    let verdict = async |registered: &Registered, device| client.send(registered.ask(device)).await.unwrap().verdict();
    assert_eq!(verdict(&enforced, MAC).await, deny("device_unmanaged"));
    assert_eq!(verdict(&observed, MAC).await, allow());
    stepward.sidecar().printed("\"waived\":\"device_unmanaged\"", Duration::from_secs(10)).await;
    // It softens the policy, and nothing else.
    assert_eq!(verdict(&observed, "STRANGER01").await, deny("device_not_found"));
    stepward.ask(&["lock", MAC, "--reason", "reported stolen"]);
    assert_eq!(verdict(&observed, MAC).await, deny("device_locked"));
}

/// Stepward before a management with these devices, and one webhook that asks it.
async fn before(devices: &[Device], lines: &str) -> (Management, Deployment) {
    let management = Management::of(devices).await;
    let mut plan = Plan::new(vec![asking_jamf(Registered::random("11111111-2222-4333-8444-555555555555"))]);
    management.join(&mut plan, lines);
    (management, Deployment::start(plan).await)
}

fn asking_jamf(registered: Registered) -> Hook {
    Hook::new(registered).with("providers = [\"jamf\"]")
}

/// Sends webhooks of the first hook.
struct Asks {
    hook: Registered,
    client: e2e::client::Client,
}

impl Asks {
    fn new(stepward: &Deployment) -> Self {
        Self { hook: stepward.plan().hooks[0].registered.clone(), client: stepward.client(Http::One) }
    }

    async fn send(&self, request: &e2e::client::Outgoing) -> Reply {
        self.client.send(request.clone()).await.unwrap()
    }

    async fn verdict(&self, device: &str) -> (u16, String) {
        self.send(&self.hook.ask(device)).await.verdict()
    }
}

fn allow() -> (u16, String) {
    (200, "allow".to_owned())
}

fn deny(code: &str) -> (u16, String) {
    (200, code.to_owned())
}

fn unavailable() -> (u16, String) {
    (503, "provider_unavailable".to_owned())
}

/// Waits until what is remembered by [`SHORT`] is no longer good.
async fn outlived() {
    tokio::time::sleep(Duration::from_millis(1100)).await;
}

/// Within this every webhook is answered: the deadline, and the way to Envoy and back.
const LONGEST: Duration = Duration::from_millis(3600);

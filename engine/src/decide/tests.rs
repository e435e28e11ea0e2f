use posture::identity::{DeviceId, IdentifierKind, Trust};
use posture::policy::{Rule, Rules};
use posture::record::{Fact, Group, Record};
use posture::webhook::Kind;
use store::{Ruling, RulingKind};

use super::*;
use crate::cache::{Lifetimes, Limits};
use crate::locks::Which;
use crate::plan::{Own, OwnRules, compile};
use crate::provider;
use crate::provider::ProviderSettings;
use crate::provider::scripted::Scripted;
use inventory::Service;

/// A provider with this answer.
fn provider(name: &str, answer: Answer) -> Link {
    let provider = Arc::new(Scripted::new(move |_| {
        let answer = answer.clone();
        async move { answer }
    }));
    Link { name: name.into(), provider, own: Own::nothing().unwrap() }
}

fn record() -> Record {
    Record {
        serial: Fact::Value("C02A".to_owned()),
        udid: Fact::Value("00008103-001234567890001E".to_owned()),
        managed: Fact::Value(true),
        lost: Fact::Value(false),
        wipe_pending: Fact::Value(false),
        groups: Fact::Value(vec![Group { id: "7".to_owned(), name: "Good".to_owned() }]),
        ..Record::default()
    }
}

fn found(record: Record) -> Answer {
    Answer::Found(Arc::new(record))
}

fn unmanaged() -> Record {
    Record { managed: Fact::Value(false), ..record() }
}

const AWAY: Answer = Answer::Unavailable(Unavailable::Network);

fn managed() -> Arc<Policy> {
    compile(&Rules { managed: true, ..Rules::default() }).unwrap()
}

fn plan(links: Vec<Link>) -> Plan {
    Plan {
        policy: Some("p".into()),
        rules: Some(managed()),
        links,
        on_not_found: OnNotFound::Next,
        on_unavailable: OnUnavailable::Fail,
        combine: Combine::FirstFound,
        enrich: false,
        enforcement: Enforcement::Enforce,
    }
}

fn asker() -> Asker {
    Asker {
        identity: Identity { device: DeviceId::new(IdentifierKind::Serial, "c02a").unwrap(), trust: Trust::Attested },
        kind: RequestKind::Webhook(Kind::Enriching),
        webhook: None,
        caller: None,
        hint: None,
        deadline: Instant::now() + Duration::from_secs(3),
        explain: true,
    }
}

/// The outcome in one word: `allow`, the code of the denial, or the cause of the refusal.
fn said(decision: &Decision) -> String {
    match &decision.outcome {
        Outcome::Allow(_) => "allow".to_owned(),
        Outcome::Deny(denial) => denial.code.to_string(),
        Outcome::Refuse(refusal) => refusal.as_str().to_owned(),
    }
}

async fn says(plan: &Plan) -> String {
    let decided = async |explain| {
        let asker = Asker { explain, ..asker() };
        judged(plan, &asker, &Locks::default()).await
    };
    let (explained, plain) = (decided(true).await, decided(false).await);
    assert_eq!(said(&explained), said(&plain), "to be explained changes nothing");
    assert!(plain.checks.is_empty());
    said(&explained)
}

async fn ruled(plan: &Plan, rulings: &[(RulingKind, &str)]) -> Decision {
    let locks = Locks::default();
    let now = clock::now();
    for (kind, device) in rulings {
        let ruling = Ruling::new(*kind, None, device, "a test", "a test", now, Some(Duration::from_secs(60)));
        match kind {
            RulingKind::Lock => drop(locks.lock(ruling).await.unwrap()),
            RulingKind::Exemption => drop(locks.exempt(ruling).await),
        }
    }
    judged(plan, &asker(), &locks).await
}

/// Decides by a plan that no reload replaces.
async fn judged(plan: &Plan, asker: &Asker, locks: &Locks) -> Decision {
    let plan = Arc::new(plan.clone());
    decide(|| Some(Arc::clone(&plan)), asker, locks, &Metrics::default()).await
}

#[tokio::test]
async fn chains_row_by_row() {
    let (fit, unfit, none) = (|| found(record()), || found(unmanaged()), || Answer::NotFound);
    let rows: Vec<(Combine, OnNotFound, OnUnavailable, Vec<Answer>, &str)> = vec![
        (Combine::FirstFound, OnNotFound::Next, OnUnavailable::Fail, vec![none(), fit()], "allow"),
        (Combine::FirstFound, OnNotFound::Next, OnUnavailable::Fail, vec![fit(), unfit()], "allow"),
        (Combine::FirstFound, OnNotFound::Next, OnUnavailable::Fail, vec![unfit(), fit()], "device_unmanaged"),
        (Combine::FirstFound, OnNotFound::Deny, OnUnavailable::Fail, vec![none(), fit()], "device_not_found"),
        (Combine::FirstFound, OnNotFound::Next, OnUnavailable::Fail, vec![none(), none()], "device_not_found"),
        (Combine::FirstFound, OnNotFound::Next, OnUnavailable::Fail, vec![AWAY, fit()], "provider_unavailable"),
        (Combine::FirstFound, OnNotFound::Next, OnUnavailable::Next, vec![AWAY, fit()], "allow"),
        (Combine::FirstFound, OnNotFound::Next, OnUnavailable::Next, vec![AWAY, none()], "provider_unavailable"),
        (Combine::FirstFound, OnNotFound::Deny, OnUnavailable::Next, vec![AWAY, none(), fit()], "device_not_found"),
        (Combine::FirstFound, OnNotFound::Next, OnUnavailable::Next, vec![Answer::Ambiguous, fit()], "device_ambiguous"),
        (Combine::FirstFound, OnNotFound::Next, OnUnavailable::Fail, vec![Answer::InvalidIdentifier, fit()], "allow"),
        (Combine::FirstFound, OnNotFound::Next, OnUnavailable::Fail, vec![], "device_not_found"),
        (Combine::AllOf, OnNotFound::Next, OnUnavailable::Next, vec![fit(), fit()], "allow"),
        (Combine::AllOf, OnNotFound::Next, OnUnavailable::Next, vec![fit(), unfit()], "device_unmanaged"),
        (Combine::AllOf, OnNotFound::Next, OnUnavailable::Next, vec![fit(), none()], "device_not_found"),
        (Combine::AllOf, OnNotFound::Next, OnUnavailable::Next, vec![fit(), AWAY], "provider_unavailable"),
        (Combine::AllOf, OnNotFound::Next, OnUnavailable::Next, vec![AWAY, fit()], "provider_unavailable"),
        (Combine::AllOf, OnNotFound::Next, OnUnavailable::Next, vec![], "device_not_found"),
        (Combine::AnyOf, OnNotFound::Next, OnUnavailable::Fail, vec![unfit(), fit()], "allow"),
        (Combine::AnyOf, OnNotFound::Next, OnUnavailable::Fail, vec![AWAY, fit()], "allow"),
        (Combine::AnyOf, OnNotFound::Next, OnUnavailable::Fail, vec![AWAY, unfit()], "provider_unavailable"),
        (Combine::AnyOf, OnNotFound::Next, OnUnavailable::Fail, vec![none(), unfit()], "device_unmanaged"),
        (Combine::AnyOf, OnNotFound::Next, OnUnavailable::Fail, vec![Answer::Ambiguous, fit()], "device_ambiguous"),
        (Combine::AnyOf, OnNotFound::Next, OnUnavailable::Fail, vec![], "device_not_found"),
    ];
    for (combine, on_not_found, on_unavailable, answers, expected) in rows {
        let shown = format!("{combine:?} {on_not_found:?} {on_unavailable:?} {answers:?}");
        let links = answers.into_iter().enumerate().map(|(number, answer)| provider(&number.to_string(), answer)).collect();
        let plan = Plan { combine, on_not_found, on_unavailable, ..plan(links) };
        assert_eq!(says(&plan).await, expected, "{shown}");
    }
}

#[tokio::test]
async fn of_all_that_have_to_agree_one_may_be_remembered_and_then_denies_nobody() {
    let stale = |answer: Answer| {
        let mut answering = Scripted::new(move |_| {
            let answer = answer.clone();
            async move { answer }
        });
        answering.source = Source::Stale;
        let provider = answering;
        Link { name: "stale".into(), provider: Arc::new(provider), own: Own::nothing().unwrap() }
    };
    let fit = || provider("fresh", found(record()));
    for (links, expected) in [
        (vec![fit(), stale(found(record()))], "allow"),
        (vec![stale(found(record())), fit()], "allow"),
        (vec![fit(), stale(found(unmanaged()))], "provider_unavailable"),
        (vec![stale(found(unmanaged())), fit()], "provider_unavailable"),
        (vec![stale(found(record())), provider("fresh", found(unmanaged()))], "device_unmanaged"),
    ] {
        let shown = format!("{links:?}");
        assert_eq!(says(&Plan { combine: Combine::AllOf, ..plan(links) }).await, expected, "{shown}");
    }
}

#[tokio::test]
async fn a_group_is_meant_by_its_exact_name_or_by_its_id() {
    let own = |name: &str| Record { groups: Fact::Value(vec![Group { id: "7".to_owned(), name: name.to_owned() }]), ..record() };
    for (demanded, has, expected) in [
        ("Good", "Good", "allow"),
        ("Good", "good", "group_required"),
        ("Good", "Good ", "group_required"),
        ("Good", "Renamed", "group_required"),
        ("7", "Renamed", "allow"),
    ] {
        let rules = Rules { groups_any: vec![demanded.to_owned()], ..Rules::default() };
        let plan = Plan { rules: Some(compile(&rules).unwrap()), ..plan(vec![provider("a", found(own(has)))]) };
        assert_eq!(says(&plan).await, expected, "{demanded} {has}");
    }
}

#[tokio::test]
async fn what_is_not_known_never_passes() {
    let unknown = Record { managed: Fact::Unknown, ..record() };
    assert_eq!(says(&plan(vec![provider("a", found(unknown))])).await, "posture_unknown");
    let absent = Record { managed: Fact::Absent, ..record() };
    assert_ne!(says(&plan(vec![provider("a", found(absent))])).await, "allow");
}

#[tokio::test]
async fn a7_an_exemption_does_not_go_by_the_order_of_those_that_all_have_to_agree() {
    let busy = || Answer::Unavailable(Unavailable::Busy);
    let rows: &[(&[Answer], &str)] = &[
        (&[AWAY, Answer::NotFound], "device_not_found"),
        (&[AWAY, Answer::Ambiguous], "device_ambiguous"),
        (&[AWAY, found(unmanaged())], "allow"),
        (&[AWAY, AWAY, Answer::NotFound], "device_not_found"),
        (&[found(record()), AWAY, Answer::NotFound], "device_not_found"),
        (&[AWAY, busy()], "provider_unavailable"),
    ];
    for (answers, expected) in rows {
        for turned in [false, true] {
            let mut answers = answers.to_vec();
            if turned {
                answers.reverse();
            }
            let links = answers.iter().cloned().map(|answer| provider("a", answer)).collect();
            let plan = Plan { combine: Combine::AllOf, ..plan(links) };
            assert_eq!(said(&ruled(&plan, &[(RulingKind::Exemption, "C02A")]).await), *expected, "{answers:?}");
        }
    }
    // A device that is not exempt is refused without a question to the other providers.
    let plan = Plan { combine: Combine::AllOf, ..plan(vec![provider("a", AWAY), provider("b", Answer::NotFound)]) };
    assert_eq!(judged(&plan, &asker(), &Locks::default()).await.asked.len(), 1);
}

#[tokio::test]
async fn a_lock_wins_on_every_identifier_and_over_everything() {
    let fit = plan(vec![provider("a", found(record()))]);
    for device in ["C02A", "c02a", "00008103-001234567890001E", "00008103001234567890001e"] {
        assert_eq!(said(&ruled(&fit, &[(RulingKind::Lock, device)]).await), "device_locked", "{device}");
    }
    let both = [(RulingKind::Exemption, "C02A"), (RulingKind::Lock, "00008103-001234567890001e")];
    assert_eq!(said(&ruled(&fit, &both).await), "device_locked");
    let observed = Plan { enforcement: Enforcement::Observe, ..fit.clone() };
    assert_eq!(said(&ruled(&observed, &[(RulingKind::Lock, "C02A")]).await), "device_locked");
    let any = Plan { combine: Combine::AnyOf, links: vec![provider("a", found(record())), provider("b", found(record()))], ..fit };
    assert_eq!(said(&ruled(&any, &[(RulingKind::Lock, "00008103-001234567890001E")]).await), "device_locked");
    let away = plan(vec![provider("a", AWAY)]);
    assert_eq!(said(&ruled(&away, &[(RulingKind::Lock, "C02A")]).await), "device_locked", "nobody has to be asked");
}

#[tokio::test]
async fn an_exemption_softens_rules_and_outage_and_nothing_else() {
    let exempt = [(RulingKind::Exemption, "c02a")];
    for (answer, expected) in
        [(found(unmanaged()), "allow"), (AWAY, "allow"), (Answer::NotFound, "device_not_found"), (Answer::Ambiguous, "device_ambiguous")]
    {
        let shown = format!("{answer:?}");
        assert_eq!(said(&ruled(&plan(vec![provider("a", answer)]), &exempt).await), expected, "{shown}");
    }
    let by_record = ruled(&plan(vec![provider("a", found(unmanaged()))]), &[(RulingKind::Exemption, "00008103-001234567890001E")]).await;
    assert_eq!(said(&by_record), "device_unmanaged", "what a record says of itself exempts nobody");
    let decision = ruled(&plan(vec![provider("a", found(unmanaged()))]), &exempt).await;
    assert_eq!(decision.waived, Some(Denial::DEVICE_UNMANAGED));
}

#[tokio::test]
async fn observing_softens_the_rules_and_nothing_else() {
    let observe = |answer| Plan { enforcement: Enforcement::Observe, ..plan(vec![provider("a", answer)]) };
    for (answer, expected, waived) in [
        (found(record()), "allow", None),
        (found(unmanaged()), "allow", Some("device_unmanaged")),
        (found(Record { managed: Fact::Unknown, ..record() }), "allow", Some("posture_unknown")),
        (Answer::NotFound, "device_not_found", None),
        (Answer::InvalidIdentifier, "device_not_found", None),
        (Answer::Ambiguous, "device_ambiguous", None),
        (AWAY, "provider_unavailable", None),
    ] {
        let decision = judged(&observe(answer), &asker(), &Locks::default()).await;
        assert_eq!(said(&decision), expected);
        assert_eq!(decision.waived.as_ref().map(|denial| &*denial.code), waived);
        assert!(waived.is_none() || decision.checks.iter().any(|check| check.denial == decision.waived), "the rule is told");
    }
}

#[tokio::test]
async fn a_provider_demands_what_its_own_settings_say_beside_any_policy() {
    let own = |group: &str| {
        let rules = OwnRules {
            alone: compile(&Rules { managed: true, groups_any: vec![group.to_owned()], ..Rules::default() }).unwrap(),
            beside: Some(compile(&Rules { groups_any: vec![group.to_owned()], ..Rules::default() }).unwrap()),
            enrich: false,
        };
        Own { computer: rules.clone(), mobile_device: rules, not_older: Duration::MAX }
    };
    let link = |answer, group| Link { own: own(group), ..provider("a", answer) };
    assert_eq!(says(&plan(vec![link(found(record()), "Good")])).await, "allow");
    assert_eq!(says(&plan(vec![link(found(record()), "Better")])).await, "group_required");
    let alone = |answer, group| Plan { policy: None, rules: None, ..plan(vec![link(answer, group)]) };
    assert_eq!(says(&alone(found(record()), "7")).await, "allow", "a group is named by its id too");
    assert_eq!(says(&alone(found(unmanaged()), "Good")).await, "device_unmanaged");
}

#[tokio::test]
async fn a_denial_sends_its_person_where_help_is_and_keeps_people_out_of_the_record() {
    let rules = Rules {
        require: vec![Rule {
            expression: "device.user.email.endsWith('@example.org')".to_owned(),
            code: "not_staff".to_owned(),
            message: "this device has no staff user".to_owned(),
            remediation_url: Some("https://help.example.org/staff".to_owned()),
        }],
        ..Rules::default()
    };
    let mut stranger = record();
    stranger.user.email = Fact::Value("eve@elsewhere.example".to_owned());
    let plan = Plan { rules: Some(compile(&rules).unwrap()), ..plan(vec![provider("a", found(stranger))]) };
    let decision = judged(&plan, &asker(), &Locks::default()).await;
    let Outcome::Deny(denial) = &decision.outcome else { panic!("{decision:?}") };
    assert_eq!(message(denial), "this device has no staff user: https://help.example.org/staff");
    let kept = decision.explained().unwrap();
    assert!(kept.contains("not_staff") && kept.contains("(known)") && !kept.contains("eve"), "{kept}");
}

/// A provider that gives this answer, while something else happens.
fn while_asked<F: Future<Output = ()> + Send + 'static>(answer: Answer, happens: impl Fn(usize) -> F + Send + Sync + 'static) -> Link {
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let happens = Arc::new(happens);
    let fake = Scripted::new(move |_| {
        let (answer, happens) = (answer.clone(), Arc::clone(&happens));
        let call = calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async move {
            happens(call).await;
            answer
        }
    });
    Link { name: "slow".into(), provider: Arc::new(fake), own: Own::nothing().unwrap() }
}

fn ruling(kind: RulingKind, device: &str) -> Ruling {
    Ruling::new(kind, None, device, "a test", "a test", clock::now(), Some(Duration::from_secs(60)))
}

async fn lock(locks: &Locks, device: &str) {
    drop(locks.lock(ruling(RulingKind::Lock, device)).await.unwrap());
}

#[tokio::test]
async fn a1_an_exemption_lets_nobody_in_who_is_locked_while_a_provider_hangs() {
    for answer in [AWAY, found(unmanaged())] {
        for locked in ["C02A", "00008103-001234567890001E"] {
            let locks = Arc::new(Locks::default());
            locks.exempt(ruling(RulingKind::Exemption, "C02A")).await.unwrap();
            let during = Arc::clone(&locks);
            let hangs = while_asked(answer.clone(), move |_| {
                let locks = Arc::clone(&during);
                async move { lock(&locks, locked).await }
            });
            let decision = judged(&plan(vec![hangs]), &asker(), &locks).await;
            // Where no record can be had, nobody knows by which other identifier the device may be locked.
            let nameless = answer == AWAY && locked != "C02A";
            let expected = if nameless { "provider_unavailable" } else { "device_locked" };
            assert_eq!(said(&decision), expected, "{answer:?} {locked}");
        }
    }
}

#[tokio::test]
async fn a1_an_exemption_that_is_taken_back_while_a_provider_hangs_lets_nobody_in() {
    let locks = Arc::new(Locks::default());
    locks.exempt(ruling(RulingKind::Exemption, "C02A")).await.unwrap();
    let during = Arc::clone(&locks);
    let hangs = while_asked(AWAY, move |_| {
        let locks = Arc::clone(&during);
        async move {
            let now = clock::now();
            let exemption = Which::MadeBy(RulingKind::Exemption, Some(IdentifierKind::Serial), "C02A".to_owned());
            locks.take_back(&exemption, "a test", now).await.unwrap();
        }
    });
    assert_eq!(said(&judged(&plan(vec![hangs]), &asker(), &locks).await), "provider_unavailable");
}

#[tokio::test]
async fn a2_every_identifier_of_every_record_is_looked_up_at_the_end() {
    for combine in [Combine::AllOf, Combine::AnyOf, Combine::FirstFound] {
        let locks = Arc::new(Locks::default());
        let during = Arc::clone(&locks);
        let second = Record { serial: Fact::Value("C02A".to_owned()), udid: Fact::Absent, ..record() };
        let slow = while_asked(found(second), move |_| {
            let locks = Arc::clone(&during);
            async move { lock(&locks, "00008103-001234567890001E").await }
        });
        // The first record passes only where all have to: another chain ends with it.
        let first = if combine == Combine::AllOf { found(record()) } else { found(unmanaged()) };
        let first = if combine == Combine::FirstFound { vec![slow] } else { vec![provider("first", first), slow] };
        let plan = Plan { combine, ..plan(first) };
        let expected = if combine == Combine::FirstFound { "allow" } else { "device_locked" };
        assert_eq!(said(&judged(&plan, &asker(), &locks).await), expected, "{combine:?}");
    }
}

#[tokio::test]
async fn a6_an_exemption_never_waives_how_well_a_request_is_proven() {
    let trusting = |rules: Rules| Plan { rules: Some(compile(&rules).unwrap()), ..plan(Vec::new()) };
    let shorthand = trusting(Rules { managed: true, trust: Some(Trust::Attested), ..Rules::default() });
    let expression = trusting(Rules {
        require: vec![Rule {
            expression: "trust >= 'attested' && device.managed".to_owned(),
            code: "not_attested".to_owned(),
            message: "this device has to attest itself".to_owned(),
            remediation_url: None,
        }],
        ..Rules::default()
    });
    for (plan, code) in [(shorthand, "trust_insufficient"), (expression, "not_attested")] {
        for (answer, unproven, proven) in [(found(unmanaged()), code, "allow"), (AWAY, code, "allow")] {
            let plan = Plan { links: vec![provider("a", answer.clone())], ..plan.clone() };
            let locks = Locks::default();
            locks.exempt(ruling(RulingKind::Exemption, "C02A")).await.unwrap();
            let mut asker = asker();
            asker.identity.trust = Trust::Claimed;
            let said_of = said(&judged(&plan, &asker, &locks).await);
            assert_ne!(said_of, "allow", "{code} {answer:?}");
            assert!(said_of == unproven || said_of == "posture_unknown", "{code} {answer:?}: {said_of}");
            asker.identity.trust = Trust::Attested;
            // A check that needs more than the proof cannot be made where no record can be had, nor be waived in part.
            if code == "trust_insufficient" {
                assert_eq!(said(&judged(&plan, &asker, &locks).await), proven, "{answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_plan_that_a_reload_replaced_meanwhile_lets_nobody_in() {
    let stricter = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reloads = Arc::clone(&stricter);
    let slow = while_asked(found(record()), move |_| {
        let reloads = Arc::clone(&reloads);
        async move { reloads.store(true, std::sync::atomic::Ordering::SeqCst) }
    });
    let before = Arc::new(plan(vec![slow]));
    let rules = Rules { groups_any: vec!["Better".to_owned()], ..Rules::default() };
    let after = Arc::new(Plan { rules: Some(compile(&rules).unwrap()), ..(*before).clone() });
    let current = || Some(Arc::clone(if stricter.load(std::sync::atomic::Ordering::SeqCst) { &after } else { &before }));
    let decision = decide(current, &asker(), &Locks::default(), &Metrics::default()).await;
    assert_eq!(said(&decision), "group_required");
    let gone = decide(|| None, &asker(), &Locks::default(), &Metrics::default()).await;
    assert_eq!(said(&gone), "provider_unavailable");
}

#[tokio::test]
async fn a14_a_denial_is_judged_by_what_holds_at_its_end_too() {
    let laxer = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reloads = Arc::clone(&laxer);
    let slow = while_asked(found(record()), move |_| {
        let reloads = Arc::clone(&reloads);
        async move { reloads.store(true, std::sync::atomic::Ordering::SeqCst) }
    });
    let after = Arc::new(plan(vec![slow]));
    let rules = Rules { groups_any: vec!["Better".to_owned()], ..Rules::default() };
    let before = Arc::new(Plan { rules: Some(compile(&rules).unwrap()), ..(*after).clone() });
    let current = || Some(Arc::clone(if laxer.load(std::sync::atomic::Ordering::SeqCst) { &after } else { &before }));
    let decision = decide(current, &asker(), &Locks::default(), &Metrics::default()).await;
    assert_eq!(said(&decision), "allow");
}

#[tokio::test]
async fn a12_a_bound_of_our_own_is_no_silence_of_a_service() {
    for (why, expected) in
        [(Unavailable::Network, "allow"), (Unavailable::OutOfBudget, "provider_unavailable"), (Unavailable::Busy, "provider_unavailable")]
    {
        let silent = || provider("a", Answer::Unavailable(why));
        let next = Plan { on_unavailable: OnUnavailable::Next, ..plan(vec![silent(), provider("b", found(record()))]) };
        assert_eq!(says(&next).await, expected, "{why:?}");
        assert_eq!(said(&ruled(&plan(vec![silent()]), &[(RulingKind::Exemption, "C02A")]).await), expected, "{why:?}");
    }
}

#[tokio::test]
async fn b5_a_device_whose_own_record_cannot_be_read_comes_to_no_laxer_provider() {
    for (evidence, expected) in [(Evidence::Silence(None), "allow"), (Evidence::Alone(None), "provider_unavailable")] {
        let mut unread = Scripted::new(|_| async { Answer::Unavailable(Unavailable::Protocol) });
        unread.evidence = evidence;
        let unread = move || Link { name: "a".into(), provider: Arc::new(unread), own: Own::nothing().unwrap() };
        let next = Plan { on_unavailable: OnUnavailable::Next, ..plan(vec![unread(), provider("b", found(record()))]) };
        assert_eq!(says(&next).await, expected);
        let alone = Plan { links: next.links[..1].to_vec(), ..next };
        let exempt = ruled(&alone, &[(RulingKind::Exemption, "C02A")]).await;
        assert_eq!(said(&exempt), "allow", "an exemption is the word of an operator about this very device");
    }
}

#[tokio::test]
async fn a7_a_record_without_identifiers_or_one_of_several_says_nothing_of_a_lock() {
    let listed = || found(Record { managed: Fact::Value(false), ..Record::default() });
    let whole = || found(unmanaged());
    for (links, expected) in [
        (vec![listed()], "provider_unavailable"),
        (vec![whole()], "allow"),
        (vec![listed(), AWAY], "provider_unavailable"),
        (vec![whole(), AWAY], "provider_unavailable"),
        (vec![whole(), listed()], "allow"),
    ] {
        let locks = Locks::default();
        locks.exempt(ruling(RulingKind::Exemption, "C02A")).await.unwrap();
        lock(&locks, "00008103-00AAAAAAAAAA001E").await;
        let links = links.into_iter().map(|answer| provider("a", answer)).collect();
        let plan = Plan { combine: Combine::AllOf, ..plan(links) };
        assert_eq!(said(&judged(&plan, &asker(), &locks).await), expected);
    }
}

#[tokio::test]
async fn a7_an_exemption_lets_nobody_in_whom_a_lock_may_be_about() {
    const UDID: &str = "00008103-001234567890001E";
    let serial = |text: &str| (Some(IdentifierKind::Serial), text.to_owned());
    let udid = |text: &str| (Some(IdentifierKind::Udid), text.to_owned());
    let away = || plan(vec![provider("a", AWAY)]);
    let exempt_beside = async |lock: Ruling, learned: &[&[(Option<IdentifierKind>, String)]]| {
        let locks = Locks::default();
        learned.iter().for_each(|record| locks.learned(record));
        locks.exempt(ruling(RulingKind::Exemption, "C02A")).await.unwrap();
        let id = lock.id;
        drop(locks.lock(lock).await.unwrap());
        let decision = judged(&away(), &asker(), &locks).await;
        let named = decision.explained().is_some_and(|checks| checks.contains("no record can be had") && checks.contains(&id.to_string()));
        (said(&decision), named)
    };
    let refused = ("provider_unavailable".to_owned(), true);
    let allowed = ("allow".to_owned(), false);
    let by = |device: &str, kind| Ruling { identifier_kind: kind, ..ruling(RulingKind::Lock, device) };
    // The locked identifier may be this device's: nothing is known of it.
    assert_eq!(exempt_beside(by(UDID, None), &[]).await, refused);
    assert_eq!(exempt_beside(by(UDID, Some(IdentifierKind::Udid)), &[]).await, refused);
    assert_eq!(exempt_beside(by("OTHER", None), &[]).await, refused);
    // The locked identifier is this device's.
    assert_eq!(exempt_beside(by(UDID, None), &[&[serial("C02A"), udid(UDID)]]).await.0, "device_locked");
    // The locked identifier is another device's.
    assert_eq!(exempt_beside(by("OTHER", Some(IdentifierKind::Serial)), &[]).await, allowed);
    // What records claim proves nothing: agents report it.
    assert_eq!(exempt_beside(by("OTHER", None), &[&[serial("OTHER"), udid("U-2")]]).await, refused);
    let both: &[&[_]] = &[&[serial("OTHER"), udid(UDID)], &[serial("C02A"), udid("U-3")]];
    assert_eq!(exempt_beside(by(UDID, Some(IdentifierKind::Udid)), both).await, refused);
    assert_eq!(exempt_beside(by(UDID, None), both).await, refused);
    assert_eq!(exempt_beside(by(UDID, Some(IdentifierKind::Udid)), &[&[serial(UDID), udid("U-2")]]).await, refused);
    // A record that can be had says by which identifiers the device may be locked.
    let locks = Locks::default();
    locks.exempt(ruling(RulingKind::Exemption, "C02A")).await.unwrap();
    drop(locks.lock(by("OTHER", None)).await.unwrap());
    assert_eq!(said(&judged(&plan(vec![provider("a", found(unmanaged()))]), &asker(), &locks).await), "allow");
}

/// A provider whose answer was overtaken by that to a later question.
fn overtaken(name: &str, answer: Answer) -> Link {
    let mut fake = Scripted::new(move |_| {
        let answer = answer.clone();
        async move { answer }
    });
    fake.evidence = Evidence::Overtaken;
    Link { name: name.into(), provider: Arc::new(fake), own: Own::nothing().unwrap() }
}

#[tokio::test]
async fn what_everybody_said_is_told_and_who_settled_it() {
    let (fit, unfit, none) = (|| found(record()), || found(unmanaged()), || Answer::NotFound);
    let rows: Vec<(Combine, Vec<Answer>, &str, Option<&str>)> = vec![
        (Combine::FirstFound, vec![none(), fit(), fit()], "not_found found", Some("1")),
        (Combine::FirstFound, vec![AWAY, none()], "unavailable not_found", Some("0")),
        (Combine::FirstFound, vec![none(), none()], "not_found not_found", None),
        (Combine::AllOf, vec![fit(), fit()], "found found", Some("0")),
        (Combine::AllOf, vec![fit(), unfit(), fit()], "found found", Some("1")),
        (Combine::AnyOf, vec![unfit(), fit(), fit()], "found found", Some("1")),
        (Combine::AnyOf, vec![unfit(), unfit()], "found found", Some("0")),
        (Combine::AnyOf, vec![none(), unfit()], "not_found found", Some("1")),
    ];
    for (combine, answers, outcomes, settled_by) in rows {
        let shown = format!("{combine:?} {answers:?}");
        let links = answers.into_iter().enumerate().map(|(number, answer)| provider(&number.to_string(), answer)).collect();
        let plan = Plan { combine, on_unavailable: OnUnavailable::Next, ..plan(links) };
        let decision = judged(&plan, &asker(), &Locks::default()).await;
        let said: Vec<_> = decision.answers().iter().map(|answer| answer.outcome).collect();
        assert_eq!(said.join(" "), outcomes, "{shown}");
        assert!(decision.answers().iter().enumerate().all(|(number, answer)| answer.provider == number.to_string()), "{shown}");
        assert_eq!(decision.provider.as_deref(), settled_by, "{shown}");
    }
}

#[tokio::test]
async fn whoever_has_to_agree_has_every_check_told() {
    let plan = Plan { combine: Combine::AllOf, ..plan(vec![provider("a", found(record())), provider("b", found(unmanaged()))]) };
    let decision = judged(&plan, &asker(), &Locks::default()).await;
    let denials: Vec<_> = decision.checks.iter().map(|check| check.denial.is_some()).collect();
    assert_eq!(denials, [false, false, false, false, false, true]);
}

#[tokio::test]
async fn nothing_rests_on_an_answer_that_was_overtaken() {
    let (fit, unfit, none) = (|| found(record()), || found(unmanaged()), || Answer::NotFound);
    for (combine, first, second) in [
        (Combine::FirstFound, unfit(), None),
        (Combine::FirstFound, none(), Some(none())),
        (Combine::FirstFound, none(), Some(unfit())),
        (Combine::AllOf, fit(), Some(fit())),
        (Combine::AllOf, fit(), Some(unfit())),
        (Combine::AnyOf, unfit(), Some(fit())),
        (Combine::AnyOf, unfit(), Some(unfit())),
    ] {
        let shown = format!("{combine:?} {first:?} {second:?}");
        let links: Vec<_> = std::iter::once(overtaken("a", first)).chain(second.map(|answer| provider("b", answer))).collect();
        let asked = ROUNDS * links.len();
        let decision = judged(&Plan { combine, ..plan(links) }, &asker(), &Locks::default()).await;
        assert_eq!(said(&decision), "provider_unavailable", "{shown}");
        assert_eq!(decision.asked.len(), asked, "{shown}");
    }
    // An overtaken answer that there are two devices is for nobody to take back.
    assert_eq!(says(&plan(vec![overtaken("a", Answer::Ambiguous)])).await, "device_ambiguous");
}

#[tokio::test]
async fn a_lock_needs_no_plan_that_holds() {
    let plans = [Enforcement::Enforce, Enforcement::Observe].map(|enforcement| {
        let links = vec![provider("a", found(record()))];
        Arc::new(Plan { enforcement, ..plan(links) })
    });
    let reloaded = || {
        let reads = std::sync::atomic::AtomicUsize::new(0);
        let plans = plans.clone();
        move || Some(Arc::clone(&plans[reads.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 2]))
    };
    let locks = Locks::default();
    assert_eq!(said(&decide(reloaded(), &asker(), &locks, &Metrics::default()).await), "provider_unavailable");
    let lock = ruling(RulingKind::Lock, "C02A");
    let id = lock.id;
    drop(locks.lock(lock).await.unwrap());
    let decision = decide(reloaded(), &asker(), &locks, &Metrics::default()).await;
    assert_eq!(said(&decision), "device_locked");
    assert!(decision.explained().unwrap().contains(&format!("lock {id}")), "{decision:?}");
}

#[tokio::test]
async fn who_hears_nothing_of_others_meanwhile_lets_nobody_in_and_tells_who_was_asked() {
    for reloaded in [false, true] {
        let locks = Arc::new(Locks::default());
        let falls_silent = Arc::clone(&locks);
        let slow = while_asked(found(record()), move |_| {
            falls_silent.fall_silent();
            std::future::ready(())
        });
        let before = Arc::new(plan(vec![slow]));
        let after = Arc::new(Plan { enforcement: Enforcement::Observe, ..(*before).clone() });
        let reads = std::sync::atomic::AtomicUsize::new(0);
        let current = || {
            let is_first = reads.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            Some(Arc::clone(if reloaded && !is_first { &after } else { &before }))
        };
        let decision = decide(current, &asker(), &locks, &Metrics::default()).await;
        assert_eq!((&*said(&decision), decision.asked.len()), ("store_stale", 1), "{reloaded}");
    }
}

#[test]
fn a_plan_is_another_where_anything_that_decides_is_another() {
    let link = provider("a", Answer::NotFound);
    let before = plan(vec![link.clone()]);
    let own = |computer| Own { computer, ..link.own.clone() };
    let nothing = link.own.computer.clone();
    let others = [
        Own { not_older: Duration::ZERO, ..link.own.clone() },
        own(OwnRules { alone: managed(), ..nothing.clone() }),
        own(OwnRules { beside: Some(managed()), ..nothing.clone() }),
        own(OwnRules { enrich: true, ..nothing }),
    ];
    let rules = Rules { managed: true, not_lost: Some(true), ..Rules::default() };
    assert!(before.is_as(&before.clone()));
    assert_eq!((before.revision().as_deref(), Plan { rules: None, ..before.clone() }.revision()), (Some(managed().revision()), None));
    let others = others.map(|own| Plan { links: vec![Link { own, ..link.clone() }], ..before.clone() });
    let other_plans = [
        Plan { rules: None, ..before.clone() },
        Plan { rules: Some(compile(&rules).unwrap()), ..before.clone() },
        Plan { links: vec![link.clone(), link.clone()], ..before.clone() },
        Plan { links: vec![provider("a", Answer::NotFound)], ..before.clone() },
        Plan { on_not_found: OnNotFound::Deny, ..before.clone() },
        Plan { on_unavailable: OnUnavailable::Next, ..before.clone() },
        Plan { combine: Combine::AllOf, ..before.clone() },
        Plan { enrich: true, ..before.clone() },
        Plan { enforcement: Enforcement::Observe, ..before.clone() },
    ];
    for after in other_plans.into_iter().chain(others) {
        assert!(!before.is_as(&after) && !after.is_as(&before), "{after:?}");
    }
}

#[tokio::test]
async fn what_several_agree_on_is_exempted_where_one_record_needs_it() {
    for exempted in [false, true] {
        for turned in [false, true] {
            let mut links = vec![provider("a", found(record())), provider("b", found(if exempted { unmanaged() } else { record() }))];
            if turned {
                links.reverse();
            }
            let decision = ruled(&Plan { combine: Combine::AllOf, ..plan(links) }, &[(RulingKind::Exemption, "C02A")]).await;
            let Outcome::Allow(allowed) = &decision.outcome else { panic!("{decision:?}") };
            assert_eq!(allowed.is_exempted(), exempted);
            assert_eq!(decision.waived.is_some(), exempted);
        }
    }
}

#[tokio::test]
async fn an_old_record_denies_nobody_who_can_be_asked_for_again() {
    const NOT_OLDER: Duration = Duration::from_secs(30);
    let (old, young) = (NOT_OLDER + Duration::from_nanos(1), NOT_OLDER);
    let (fit, unfit) = (|| found(record()), || found(unmanaged()));
    let (enforce, observe) = (Enforcement::Enforce, Enforcement::Observe);
    for (source, age, enforcement, first, again, expected, asked) in [
        (Source::Cached, old, enforce, unfit(), fit(), "allow", 2),
        (Source::Cached, old, enforce, unfit(), unfit(), "device_unmanaged", 2),
        (Source::Cached, old, enforce, unfit(), AWAY, "device_unmanaged", 2),
        (Source::Cached, young, enforce, unfit(), fit(), "device_unmanaged", 1),
        (Source::Live, old, enforce, unfit(), fit(), "device_unmanaged", 1),
        (Source::Cached, old, enforce, fit(), unfit(), "allow", 1),
        (Source::Cached, old, observe, unfit(), fit(), "allow", 2),
        (Source::Cached, old, observe, fit(), unfit(), "allow", 1),
    ] {
        let shown = format!("{source:?} {age:?} {enforcement:?} {first:?} {again:?}");
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let mut fake = Scripted::new(move |_| {
            let answer = if calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 { first.clone() } else { again.clone() };
            async move { answer }
        });
        (fake.source, fake.age) = (source, Some(age));
        let own = Own { not_older: NOT_OLDER, ..Own::nothing().unwrap() };
        let link = Link { name: "a".into(), provider: Arc::new(fake), own };
        let decision = judged(&Plan { enforcement, ..plan(vec![link]) }, &asker(), &Locks::default()).await;
        assert_eq!((&*said(&decision), decision.asked.len(), &decision.waived), (expected, asked, &None), "{shown}");
        assert_eq!(decision.answers()[0].age_ms, Some(u64::try_from(age.as_millis()).unwrap()));
    }
}

#[tokio::test]
async fn templates_get_the_user_where_the_plan_or_the_provider_says_so() {
    let mut owned = record();
    owned.user.email = Fact::Value("eve@example.org".to_owned());
    for (by_plan, by_provider) in [(false, false), (false, true), (true, false)] {
        let mut link = provider("a", found(owned.clone()));
        link.own.computer.enrich = by_provider;
        let plan = Plan { enrich: by_plan, ..plan(vec![link]) };
        assert_eq!(plan.need(&plan.links[0]).contains(posture::record::Field::UserEmail), by_plan || by_provider);
        let decision = judged(&plan, &asker(), &Locks::default()).await;
        let Outcome::Allow(allowed) = &decision.outcome else { panic!("{decision:?}") };
        assert_eq!(allowed.data().as_json().contains("eve@example.org"), by_plan || by_provider);
    }
}

#[tokio::test]
async fn what_a_template_lacks_denies_as_a_rule_does_and_is_waived_as_a_rule_is() {
    let rules = Rules { managed: true, data: Some("{'name': device.name}".to_owned()), ..Rules::default() };
    let nameless = |record| Plan { rules: Some(compile(&rules).unwrap()), ..plan(vec![provider("a", found(record))]) };
    let exempt = [(RulingKind::Exemption, "C02A")];
    assert_eq!(says(&nameless(record())).await, "posture_unknown");
    let observed = Plan { enforcement: Enforcement::Observe, ..nameless(record()) };
    for decision in [
        ruled(&nameless(record()), &exempt).await,
        judged(&observed, &asker(), &Locks::default()).await,
        ruled(&nameless(unmanaged()), &exempt).await,
    ] {
        let Outcome::Allow(allowed) = &decision.outcome else { panic!("{decision:?}") };
        assert_eq!(allowed.data().as_json(), r#"{"name":null}"#);
        assert!(decision.waived.is_some(), "{decision:?}");
    }
    let large = nameless(Record { name: Fact::Value("x".repeat(20_000)), ..record() });
    assert_eq!(said(&ruled(&large, &exempt).await), "data_too_large");
}

#[tokio::test]
async fn the_first_rule_that_denies_is_named_and_a_weak_proof_only_where_an_exemption_waives_it() {
    let own = Rules { groups_any: vec!["Better".to_owned()], ..Rules::default() };
    let trusting = Rules { trust: Some(Trust::Attested), ..Rules::default() };
    let mut link = provider("a", found(record()));
    link.own.computer.beside = Some(compile(&own).unwrap());
    let plan = Plan { rules: Some(compile(&trusting).unwrap()), ..plan(vec![link]) };
    let mut asker = asker();
    asker.identity.trust = Trust::Claimed;
    let locks = Locks::default();
    assert_eq!(said(&judged(&plan, &asker, &locks).await), "group_required");
    locks.exempt(ruling(RulingKind::Exemption, "C02A")).await.unwrap();
    assert_eq!(said(&judged(&plan, &asker, &locks).await), "trust_insufficient");
    let observed = Plan { enforcement: Enforcement::Observe, ..plan };
    assert_eq!(said(&judged(&observed, &asker, &locks).await), "allow");
}

#[tokio::test]
async fn an_allow_holds_by_its_own_plan_while_nobody_is_locked() {
    let plan = Arc::new(plan(vec![provider("a", found(record()))]));
    let locks = Locks::default();
    let decision = judged(&plan, &asker(), &locks).await;
    let Outcome::Allow(allowed) = &decision.outcome else { panic!("{decision:?}") };
    assert!(allowed.holds(&plan, &locks));
    assert!(!allowed.holds(&Plan { enforcement: Enforcement::Observe, ..(*plan).clone() }, &locks));
    lock(&locks, "00008103-001234567890001E").await;
    assert!(!allowed.holds(&plan, &locks));
}

#[tokio::test(start_paused = true)]
async fn a_lock_or_an_event_about_any_device_disturbs_what_began_before() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let token = settings::SecretSource::Env("TOKEN".to_owned());
    let settings = ProviderSettings::Remote(provider::RemoteSettings {
        service: Service::Kandji(inventory::kandji::Settings { token, compliance_from_status: false, list_details: false }),
        endpoint: inventory::http::Endpoint { base_url: "http://127.0.0.1:9".parse().unwrap(), ca_file: None, connections: 5 },
        cache: Lifetimes::default(),
        limits: Limits { per_second: 1, unknown_per_minute: 1 },
        sync: None,
        push: None,
        placeholders: inventory::Placeholders::default(),
    });
    let secrets = [posture::secret::Secret::new(b"token".to_vec())];
    let provider = provider::open("a", &settings, &secrets, None, &Default::default()).unwrap();
    let plan = plan(vec![Link { name: "a".into(), provider, own: Own::nothing().unwrap() }]);
    let pass = || tokio::time::advance(Duration::from_secs(1));
    let locks = Locks::default();
    pass().await;
    let began = Instant::now();
    assert!(plan.undisturbed(began, &locks));
    lock(&locks, "OTHER").await;
    assert!(!plan.undisturbed(began, &locks));
    pass().await;
    let began = Instant::now();
    assert!(plan.undisturbed(began, &locks));
    let device = inventory::Subject::Identifier("other".to_owned());
    plan.links[0].provider.cache().unwrap().apply(&[inventory::Change { device, revoking: false }]);
    assert!(!plan.undisturbed(began, &locks));
}

//! A whole world: step-ca, devices, and Stepward between them.

use crate::deployment::{Addresses, Deployment, Hook, Plan, Tls};
use crate::device::Maker;
use crate::step::StepCa;
use crate::webhook::Registered;

/// A step-ca whose webhooks Stepward answers.
#[derive(Debug)]
pub struct World {
    /// Deployment of Envoy and the sidecar.
    pub stepward: Deployment,
    /// The certificate authority.
    pub ca: StepCa,
    /// The maker that attests the devices.
    pub maker: Maker,
    /// Webhooks, in the order in which they were added.
    pub hooks: Vec<Hook>,
}

impl World {
    /// Starts a CA, lets `prepare` add provisioners and webhooks to it, and starts Stepward with those.
    pub async fn start(prepare: impl FnOnce(&StepCa, Addresses) -> Vec<Hook>) -> Self {
        Self::start_with(prepare, |_| {}).await
    }

    /// Starts a world like [`Self::start`]; `change` may alter the plan.
    pub async fn start_with(prepare: impl FnOnce(&StepCa, Addresses) -> Vec<Hook>, change: impl FnOnce(&mut Plan)) -> Self {
        let ca = StepCa::start().await;
        let maker = Maker::default();
        maker.write_root(&ca.path("attestation.crt"));
        let at = Addresses::default();
        let hooks = prepare(&ca, at);
        let mut plan = Plan::new(hooks.clone());
        change(&mut plan);
        let stepward = Deployment::start_at(plan, at, Tls::of_step_ca(&ca)).await;
        Self { stepward, ca, maker, hooks }
    }

    /// Starts a CA with the ACME provisioner `devices` and its enriching webhook.
    pub async fn of_devices() -> Self {
        Self::start(|ca, at| {
            add_acme(ca, "devices", Some("posture"));
            vec![Hook::new(ca.add_webhook("devices", "posture", at.webhook, &[]))]
        })
        .await
    }

    /// The CA's webhook at this index.
    pub fn registered(&self, index: usize) -> &Registered {
        &self.hooks[index].registered
    }
}

/// Adds a `device-attest-01` provisioner, as the setup guide does. Its template takes the organizational unit from this
/// webhook's data.
pub fn add_acme(ca: &StepCa, name: &str, webhook: Option<&str>) {
    add_acme_with(ca, name, webhook.map(template).as_deref());
}

/// Adds a provisioner like [`add_acme`], with a template of the test's own.
pub fn add_acme_with(ca: &StepCa, name: &str, template: Option<&str>) {
    let arguments = ["--type", "ACME", "--challenge", "device-attest-01", "--attestation-format", "apple"];
    let arguments = [&arguments[..], &["--attestation-roots", "attestation.crt", "--disable-renewal"]].concat();
    ca.add_provisioner(name, &arguments, template.map(|text| ("--x509-template", text)));
}

/// Adds a JWK provisioner, whose key has the password `password`.
pub fn add_jwk(ca: &StepCa, name: &str, template: Option<(&str, &str)>) {
    ca.add_provisioner(name, &["--type", "JWK", "--create", "--password-file", "password", "--disable-renewal"], template);
}

/// A template whose subject has data of a webhook.
pub fn template(webhook: &str) -> String {
    format!(
        r#"{{"subject": {{"commonName": {{{{ toJson .Subject.CommonName }}}}, "organizationalUnit": {{{{ toJson .Webhooks.{webhook}.team }}}}}},
 "sans": {{{{ toJson .SANs }}}}, "keyUsage": ["digitalSignature"], "extKeyUsage": ["clientAuth"]}}"#
    )
}

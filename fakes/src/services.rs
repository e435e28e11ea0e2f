//! All stand-ins, by the words of their services.

use crate::{Service, addigy, fleet, intune, inventory, jamf, kandji, mosyle};

/// A stand-in for a service, and what Stepward needs to query it.
pub struct StandIn {
    /// Word of the service, which is its `type` in stepward.toml.
    pub word: &'static str,
    /// Makes the fake.
    pub start: fn() -> Box<dyn Service>,
    /// Lines of `[provider.fake]` after `type`, in which `{url}` is the address of the fake.
    pub lines: &'static str,
    /// Environment variables with the secrets that the lines name.
    pub secrets: &'static str,
}

/// All stand-ins.
pub const SERVICES: &[StandIn] = &[
    StandIn {
        word: "jamf",
        start: || Box::new(jamf::Jamf::new()),
        lines: "base_url = \"{url}\"\nclient_id = \"client\"\nclient_secret = { env = \"JAMF_CLIENT_SECRET\" }",
        secrets: "JAMF_CLIENT_SECRET=secret",
    },
    StandIn {
        word: "intune",
        start: || Box::new(intune::Intune::new()),
        lines: "tenant_id = \"6f1b2c3d-0000-4000-8000-00000000aaaa\"\nclient_id = \"6f1b2c3d-0000-4000-8000-00000000bbbb\"\n\
                client_secret = { env = \"INTUNE_CLIENT_SECRET\" }\nlogin_url = \"{url}\"\ngraph_url = \"{url}\"",
        secrets: "INTUNE_CLIENT_SECRET=secret",
    },
    StandIn {
        word: "kandji",
        start: || Box::new(kandji::Kandji::default()),
        lines: "base_url = \"{url}\"\ntoken = { env = \"KANDJI_TOKEN\" }",
        secrets: "KANDJI_TOKEN=secret",
    },
    StandIn {
        word: "addigy",
        start: || Box::new(addigy::Addigy::default()),
        lines: "base_url = \"{url}/api/v2\"\napi_key = { env = \"ADDIGY_API_KEY\" }",
        secrets: "ADDIGY_API_KEY=secret",
    },
    StandIn {
        word: "mosyle",
        start: || Box::new(mosyle::Mosyle::new(mosyle::Product::Business)),
        lines: "base_url = \"{url}/v1\"\nproduct = \"business\"\naccess_token = { env = \"MOSYLE_ACCESS_TOKEN\" }\n\
                email = \"api@example.org\"\npassword = { env = \"MOSYLE_PASSWORD\" }",
        secrets: "MOSYLE_ACCESS_TOKEN=secret\nMOSYLE_PASSWORD=secret",
    },
    StandIn {
        word: "fleet",
        start: || Box::new(fleet::Fleet::default()),
        lines: "base_url = \"{url}\"\ntoken = { env = \"FLEET_TOKEN\" }",
        secrets: "FLEET_TOKEN=secret",
    },
    StandIn {
        word: "http",
        start: || Box::new(inventory::Inventory::Listed),
        lines: "base_url = \"{url}\"\npath = \"/devices?serial={identifier}\"\ntoken = { env = \"INVENTORY_TOKEN\" }\n\
                items = \"/devices\"\ntotal = \"/total\"\nidentifier = \"/serial\"\ndata = \"/custom\"\n\n\
                [provider.fake.fields]\nname = \"/name\"\nmanaged = \"/mdm/enrolled\"\nlost = \"/mdm/lost\"\n\
                compliance = \"/compliant\"\ngroups = \"/groups\"\nlast_seen = \"/seen\"\nuser.email = \"/owner/mail\"",
        secrets: "INVENTORY_TOKEN=secret",
    },
];

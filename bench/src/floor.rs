//! The cheapest Proxy-Wasm filter that sees a body: it waits for the body's end, reads nothing, and answers. No filter of
//! that kind can cost less.

use std::fmt::Write as _;

/// The module of the filter. Its answer is as long as Stepward's answer to a wrong signature.
pub(crate) fn module() -> anyhow::Result<Vec<u8>> {
    let body = r#"{"allow":false,"error":{"code":"unauthorized","message":"the request could not be authenticated"}}"#;
    // A map of one pair in the form of the ABI: the number of pairs, both lengths, both texts with a NUL after each.
    let (name, value) = ("content-type", "application/json");
    let mut headers = [1u32, u32::try_from(name.len())?, u32::try_from(value.len())?].map(u32::to_le_bytes).concat();
    headers.extend(format!("{name}\0{value}\0").bytes());
    let text = format!(
        r#"(module
          (import "env" "proxy_send_local_response"
            (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 2)
          (data (i32.const 1024) "{}")
          (data (i32.const 2048) "{}")
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "malloc") (param i32) (result i32) (i32.const 65536))
          (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 1))
          (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
            (if (local.get 2) (then (drop (call $respond
              (i32.const 401) (i32.const 0) (i32.const 0) (i32.const 1024) (i32.const {})
              (i32.const 2048) (i32.const {}) (i32.const -1)))))
            (i32.const 1)))"#,
        escaped(body.as_bytes()),
        escaped(&headers),
        body.len(),
        headers.len()
    );
    Ok(wat::parse_str(text)?)
}

fn escaped(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "\\{byte:02x}");
        text
    })
}

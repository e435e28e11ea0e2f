//! The headers of a request, one a line: the name up to the first blank, and the value after it.

use posture::outcome::Refusal;
use posture::shape::{Authorization, Mode, SIGNATURE, WEBHOOK_ID, shape};

/// Asserts that the judgement is that of a second, plainer reader.
pub fn body(data: &[u8]) {
    let lines = data.split(|byte| *byte == b'\n').filter_map(|line| {
        let at = line.iter().position(|byte| *byte == b' ')?;
        Some((std::str::from_utf8(&line[..at]).ok()?, &line[at + 1..]))
    });
    let headers: Vec<(&str, &[u8])> = lines.collect();
    let all = |name: &str| headers.iter().filter(|header| header.0 == name).map(|header| header.1).collect::<Vec<_>>();
    let (ids, signatures, authorizations) = (all(WEBHOOK_ID), all(SIGNATURE), all("authorization"));
    let path = all(":path").last().and_then(|path| std::str::from_utf8(path).ok()).unwrap_or_default();

    let judged = shape(headers.iter().copied());
    let expected = if all(":method").last() != Some(&&b"POST"[..]) {
        Err(Refusal::Method)
    } else if !path.starts_with("/webhook/") || path.split('?').next() == Some("/webhook") {
        Err(Refusal::Path)
    } else if ids.len() != 1 || ids[0].is_empty() || !short(ids[0]) {
        Err(Refusal::WebhookIdHeader)
    } else if signatures.len() != 1 || signatures[0].len() != 64 || !signatures[0].iter().all(|byte| b"0123456789abcdef".contains(byte)) {
        Err(Refusal::SignatureHeader)
    } else {
        Ok(())
    };
    assert_eq!(judged.as_ref().map(drop).map_err(|refusal| *refusal), expected);

    let Ok(shape) = judged else { return };
    assert_eq!(shape.webhook_id.as_bytes(), ids[0]);
    assert_eq!(shape.signature.to_hex().as_bytes(), signatures[0]);
    match authorizations.as_slice() {
        [] => assert!(matches!(shape.authorization, Authorization::None)),
        [one] => assert_eq!(shape.authorization.value(), Some(*one)),
        _ => assert!(matches!(shape.authorization, Authorization::Several)),
    }
    for (mode, text) in [(Mode::Computer, "mode=computer"), (Mode::MobileDevice, "mode=mobiledevice")] {
        assert!(shape.mode != Some(mode) || path.contains(text), "{path}");
    }
    for text in [&shape.traceparent, &shape.tracestate, &shape.request_id] {
        assert!(short(text.as_bytes()));
    }
}

fn short(text: &[u8]) -> bool {
    text.len() <= 256 && text.iter().all(|byte| (b' '..=b'~').contains(byte))
}

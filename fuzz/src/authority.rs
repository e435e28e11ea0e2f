//! Requests over a UNIX socket, in which the client's names of the service are overwritten so that HTTP accepts them.

use sidecar::server::Names;

/// Asserts that the result does not depend on how the bytes are split, has their length, and does not change when it is
/// overwritten again.
pub fn body(data: &[u8]) {
    let mut whole = data.to_vec();
    Names::default().write_over(&mut whole);
    assert_eq!(whole.len(), data.len());
    let mut again = whole.clone();
    Names::default().write_over(&mut again);
    assert_eq!(again, whole);
    for size in [1, 2, 3, 7] {
        let (mut pieces, mut names) = (data.to_vec(), Names::default());
        pieces.chunks_mut(size).for_each(|piece| names.write_over(piece));
        assert_eq!(pieces, whole, "{size}");
    }
}

//! What a client sends over a UNIX socket, whose names of the service are made such that HTTP takes them.

use sidecar::server::Names;

/// However it comes it is the same, nothing is longer or shorter, and a second time there is nothing to write over.
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

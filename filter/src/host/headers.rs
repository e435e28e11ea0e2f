//! The headers of a request as the proxy hands them over: one piece of memory, from which names and values are borrowed.
//!
//! Proxy-Wasm writes a map as the number of its pairs, the lengths of each pair's name and value, and then the names and
//! values, each followed by a NUL; numbers have four bytes, the lowest first (proxy-wasm-cpp-host `src/pairs_util.cc`).

/// All headers of a request.
#[derive(Clone, Debug, Default)]
pub struct Headers(Vec<u8>);

impl Headers {
    /// Takes a map; `None` where it is not whole, since what cannot be read could be a second signature.
    pub fn new(map: Vec<u8>) -> Option<Self> {
        let (sizes, text) = split(&map)?;
        let mut length = 0usize;
        for size in sizes.as_chunks().0 {
            length = length.checked_add(usize::try_from(u32::from_le_bytes(*size)).ok()?)?.checked_add(1)?;
        }
        (length == text.len()).then_some(Self(map))
    }

    /// Writes pairs as such a map.
    pub fn from_pairs<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p [u8])>) -> Option<Self> {
        let (mut count, mut sizes, mut text) = (0u32, Vec::new(), Vec::new());
        for (name, value) in pairs {
            count = count.checked_add(1)?;
            for part in [name.as_bytes(), value] {
                sizes.extend(u32::try_from(part.len()).ok()?.to_le_bytes());
                text.extend_from_slice(part);
                text.push(0);
            }
        }
        Some(Self([count.to_le_bytes().as_slice(), &sizes, &text].concat()))
    }

    /// The map, as it is passed to the proxy.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Every name with its value. A name that is not UTF-8 is no name that anybody looks for, and comes as an empty one.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let (sizes, mut text) = split(&self.0).unwrap_or_default();
        let mut part = move |size: &[u8; 4]| {
            let (part, rest) = text.split_at_checked(usize::try_from(u32::from_le_bytes(*size)).ok()?)?;
            text = rest.get(1..)?;
            Some(part)
        };
        sizes.as_chunks().0.as_chunks().0.iter().map_while(move |[name, value]: &[[u8; 4]; 2]| {
            let name = std::str::from_utf8(part(name)?).unwrap_or_default();
            Some((name, part(value)?))
        })
    }
}

/// The lengths of a map and its text; a map without a byte has no pairs.
fn split(map: &[u8]) -> Option<(&[u8], &[u8])> {
    if map.is_empty() {
        return Some((&[], &[]));
    }
    let (count, rest) = map.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(8)?)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn pairs(headers: &Headers) -> Vec<(String, Vec<u8>)> {
        headers.iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect()
    }

    #[test]
    fn reads_a_map_as_envoy_writes_it() {
        let map = b"\x02\0\0\0\x05\0\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0:path\0/\0a\0\0";
        let headers = Headers::new(map.to_vec()).unwrap();
        assert_eq!(pairs(&headers), [(":path".to_owned(), b"/".to_vec()), ("a".to_owned(), Vec::new())]);
    }

    #[test]
    fn a_map_without_a_byte_has_no_headers() {
        assert_eq!(pairs(&Headers::new(Vec::new()).unwrap()), []);
    }

    #[test]
    fn a_map_that_is_not_whole_is_none() {
        let whole = Headers::from_pairs([("name", b"value".as_slice()), ("other", b"")]).unwrap().0;
        for length in 1..whole.len() {
            assert!(Headers::new(whole[..length].to_vec()).is_none(), "{length}");
        }
        assert!(Headers::new([whole.as_slice(), b"x"].concat()).is_none());
        assert!(Headers::new(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec()).is_none());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(written in vec(("[ -~]{0,20}", vec(any::<u8>(), 0..40)), 0..20)) {
            let headers = Headers::from_pairs(written.iter().map(|(name, value)| (name.as_str(), value.as_slice()))).unwrap();
            prop_assert_eq!(pairs(&headers), written.clone());
            prop_assert_eq!(pairs(&Headers::new(headers.as_bytes().to_vec()).unwrap()), written);
        }

        #[test]
        fn no_bytes_make_it_panic(map in vec(any::<u8>(), 0..200)) {
            let _ = Headers::new(map).map(|headers| headers.iter().count());
        }
    }
}

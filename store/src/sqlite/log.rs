//! Checks that a start would find what was written. SQLite goes by what it remembers of its log, in memory and in the index
//! beside it, and never looks whether the log still has it: a log that was cut short takes further writes behind the hole, and a
//! start finds nothing of them. The formats are those of <https://sqlite.org/walformat.html>.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

/// SQLite's view of its log, from the header of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Believed {
    page: u64,
    frames: u32,
    /// Salt that tells the log's frames from frames of an earlier log.
    salt: [u8; 8],
}

impl Believed {
    /// Reads the header of the index; `None` while it is being written.
    fn read(index: &File) -> io::Result<Option<Self>> {
        let mut both = [0; 2 * INDEX_HEADER];
        index.read_exact_at(&mut both, 0)?;
        let (one, other) = both.split_at(INDEX_HEADER);
        let word = |at: usize| one.get(at..).and_then(<[u8]>::first_chunk).copied().map(u32::from_ne_bytes);
        let size = one.get(14..).and_then(<[u8]>::first_chunk).copied().map(u16::from_ne_bytes).unwrap_or_default();
        let page = u64::from(size & 0xfe00) + (u64::from(size & 1) << 16);
        let salt = one.get(32..).and_then(<[u8]>::first_chunk).copied();
        Ok((one == other).then_some(()).and(word(16)).zip(salt).map(|(frames, salt)| Self { page, frames, salt }))
    }

    /// Length of a log with that many frames, in bytes.
    fn length(self) -> u64 {
        LOG_HEADER as u64 + u64::from(self.frames) * (FRAME_HEADER as u64 + self.page)
    }
}

/// Number of frames in the log, by its index.
pub(super) fn frames(index: &File) -> io::Result<u32> {
    Ok(Believed::read(index)?.map_or(0, |believed| believed.frames))
}

/// Returns whether the log has what the index says: by its length and header, or if `wholly`, by every frame. Other processes may
/// write meanwhile.
pub(super) fn is_whole(log: &File, index: &File, wholly: bool) -> io::Result<bool> {
    for _ in 0..TRIES {
        if let Some(believed) = Believed::read(index)? {
            if believed.frames == 0 || has(log, believed, wholly)? {
                return Ok(true);
            }
            // A new salt means that the log was begun anew meanwhile.
            if Believed::read(index)?.is_some_and(|now| now.salt == believed.salt) {
                return Ok(false);
            }
        }
        std::thread::sleep(AGAIN);
    }
    // No writer takes that long, so the index is broken.
    Ok(false)
}

fn has(log: &File, believed: Believed, wholly: bool) -> io::Result<bool> {
    if log.metadata()?.len() < believed.length() {
        return Ok(false);
    }
    let mut header = [0; LOG_HEADER];
    log.read_exact_at(&mut header, 0)?;
    let little = match header.first_chunk() {
        Some([0x37, 0x7f, 0x06, 0x82]) => true,
        Some([0x37, 0x7f, 0x06, 0x83]) => false,
        _ => return Ok(false),
    };
    let sums = |bytes: &[u8]| bytes.first_chunk::<8>().map(|bytes| words(bytes, false));
    let mut sum = checksum([0; 2], header.get(..24).unwrap_or_default(), little);
    if header.get(16..24) != Some(believed.salt.as_slice()) || header.get(24..).and_then(sums) != Some(sum) {
        return Ok(false);
    }
    if !wholly {
        return Ok(true);
    }
    let Ok(page) = usize::try_from(believed.page) else { return Ok(false) };
    let mut frame = vec![0; FRAME_HEADER + page];
    for number in 0..believed.frames {
        log.read_exact_at(&mut frame, Believed { frames: number, ..believed }.length())?;
        let (header, page) = frame.split_at(FRAME_HEADER);
        sum = checksum(checksum(sum, header.get(..8).unwrap_or_default(), little), page, little);
        if header.get(8..16) != Some(believed.salt.as_slice()) || header.get(16..).and_then(sums) != Some(sum) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn words(bytes: &[u8; 8], little: bool) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = *bytes;
    [[a, b, c, d], [e, f, g, h]].map(if little { u32::from_le_bytes } else { u32::from_be_bytes })
}

fn checksum([mut one, mut other]: [u32; 2], bytes: &[u8], little: bool) -> [u32; 2] {
    for pair in bytes.as_chunks::<8>().0 {
        let [first, second] = words(pair, little);
        one = one.wrapping_add(first).wrapping_add(other);
        other = other.wrapping_add(second).wrapping_add(one);
    }
    [one, other]
}

const INDEX_HEADER: usize = 48;
const LOG_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// Number of looks at the log while somebody writes.
const TRIES: usize = 100;
const AGAIN: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const SALT: [u8; 8] = *b"saltsalt";

    /// An index that announces `frames` frames, with `other` in its second copy.
    fn index(path: &Path, page: u16, frames: u32, other: u8) -> File {
        let mut header = [0; INDEX_HEADER];
        header[14..16].copy_from_slice(&page.to_ne_bytes());
        header[16..20].copy_from_slice(&frames.to_ne_bytes());
        header[32..40].copy_from_slice(&SALT);
        let mut both = header.to_vec();
        header[0] = other;
        both.extend(header);
        std::fs::write(path, both).unwrap();
        File::open(path).unwrap()
    }

    /// A log of two frames as the format says, in either order of bytes, with one byte of it turned round.
    fn log(path: &Path, page: usize, little: bool, turned: Option<usize>) -> File {
        let word = |bytes: &[u8]| {
            let bytes = bytes.try_into().unwrap();
            if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) }
        };
        let sum = |[mut one, mut other]: [u32; 2], bytes: &[u8]| {
            for pair in bytes.chunks(8) {
                one = one.wrapping_add(word(&pair[..4])).wrapping_add(other);
                other = other.wrapping_add(word(&pair[4..])).wrapping_add(one);
            }
            [one, other]
        };
        let mut bytes = if little { vec![0x37, 0x7f, 0x06, 0x82] } else { vec![0x37, 0x7f, 0x06, 0x83] };
        bytes.extend([1; 12]);
        bytes.extend(SALT);
        let mut sums = sum([0; 2], &bytes);
        bytes.extend(sums.iter().flat_map(|sum| sum.to_be_bytes()));
        for number in 1..=2 {
            let (head, body) = ([number; 8], vec![number; page]);
            sums = sum(sum(sums, &head), &body);
            bytes.extend(head.into_iter().chain(SALT).chain(sums.iter().flat_map(|sum| sum.to_be_bytes())).chain(body));
        }
        if let Some(turned) = turned {
            bytes[turned] ^= 1;
        }
        std::fs::write(path, bytes).unwrap();
        File::open(path).unwrap()
    }

    #[test]
    fn the_index_is_read_once_both_copies_are_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        for (size, page) in [(4096, 4096), (512, 512), (32_768, 32_768), (1, 65_536)] {
            let believed = Believed::read(&index(&path, size, 7, 0)).unwrap().unwrap();
            assert_eq!(believed, Believed { page, frames: 7, salt: SALT });
            assert_eq!(believed.length(), 32 + 7 * (24 + page));
        }
        assert_eq!(frames(&index(&path, 4096, 7, 0)).unwrap(), 7);
        assert_eq!(Believed::read(&index(&path, 4096, 7, 1)).unwrap(), None, "it is being written");
    }

    #[test]
    fn a_log_is_whole_where_its_length_its_header_and_every_frame_that_is_looked_at_are_right() {
        let folder = tempfile::tempdir().unwrap();
        let [index_path, log_path] = ["index", "log"].map(|name| folder.path().join(name));
        let index = index(&index_path, 512, 2, 0);
        let whole = |log: &File| [false, true].map(|wholly| is_whole(log, &index, wholly).unwrap());
        for little in [false, true] {
            let log = |turned| log(&log_path, 512, little, turned);
            assert_eq!(whole(&log(None)), [true, true]);
            // The turned byte is in the magic number, the header, the salt, or the sum.
            for turned in [3, 4, 16, 24, 28] {
                assert_eq!(whole(&log(Some(turned))), [false, false], "{turned}");
            }
            // The turned byte is in the header, the salt, the sum or the page of the first or second frame.
            for frame in [LOG_HEADER, LOG_HEADER + FRAME_HEADER + 512] {
                for turned in [0, 8, 16, 20, 24, 24 + 511] {
                    assert_eq!(whole(&log(Some(frame + turned))), [true, false], "{frame} {turned}");
                }
            }
            log(None);
            File::options().write(true).open(&log_path).unwrap().set_len((LOG_HEADER + 2 * (FRAME_HEADER + 512) - 1) as u64).unwrap();
            assert_eq!(whole(&File::open(&log_path).unwrap()), [false, false]);
        }
    }
}

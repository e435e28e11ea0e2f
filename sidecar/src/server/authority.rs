//! Rewriting of `:authority` in requests over a UNIX socket, to a name that HTTP takes.
//!
//! Clients of gRPC that are built on its C library (Python, Ruby, PHP, C++) put the path of the socket there, percent-encoded, and
//! Java puts it there as it is. RFC 3986 lets a host be percent-encoded, but the crate `http` takes neither form, so that `h2`
//! would end every call. Nobody reads the name: the bytes of it that no host may have are overwritten while they come in, and no
//! other bytes. Lengths stay, so that frames begin where they began, and the tables of RFC 7541 at both ends keep the same size.
//!
//! Go, Swift and Node.js compress the name by the Huffman code of RFC 7541 where that is shorter. Letters of a path have codes of
//! five to eight bits. The code of each letter that no host may have begins like that of a permitted letter of the same length:
//! the bit in which the two differ is flipped as it comes by, so that nothing has to be held back. The rest of a name behind a
//! letter with a longer code is left alone.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Connection whose requests may have any `:authority`.
#[derive(Debug)]
pub(super) struct AnyAuthority<S> {
    stream: S,
    names: Names,
}

impl<S> AnyAuthority<S> {
    /// Wraps a connection of which nothing was read.
    pub(super) fn new(stream: S) -> Self {
        Self { stream, names: Names::default() }
    }
}

impl<S: Connected> Connected for AnyAuthority<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyAuthority<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.names.write_over(buffer.filled_mut().get_mut(before..).unwrap_or_default());
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffers: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }
}

/// Finder of the `:authority` fields in what a client of HTTP/2 sends, in whatever pieces it comes.
#[derive(Clone, Debug, Default)]
pub struct Names {
    frame: Frame,
    block: Block,
}

impl Names {
    /// Overwrites the bytes of each name that no host may have.
    pub fn write_over(&mut self, bytes: &mut [u8]) {
        let mut bytes = bytes.iter_mut();
        while bytes.len() > 0 {
            if let Frame::Other { left } = self.frame {
                let passed = left.min(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
                bytes.nth(usize::try_from(passed.saturating_sub(1)).unwrap_or(usize::MAX));
                self.frame = Frame::other(left.saturating_sub(passed));
            } else if let Some(byte) = bytes.next() {
                self.take(byte);
            }
        }
    }

    fn take(&mut self, byte: &mut u8) {
        self.frame = match self.frame {
            Frame::Head { length, got: got @ 0..3, .. } => {
                Frame::Head { length: (length << 8) | u32::from(*byte), kind: 0, flags: 0, got: got + 1 }
            }
            Frame::Head { length, got: 3, .. } => Frame::Head { length, kind: *byte, flags: 0, got: 4 },
            Frame::Head { length, kind, got: 4, .. } => Frame::Head { length, kind, flags: *byte, got: 5 },
            Frame::Head { length, kind, flags, got: got @ 5..8 } => Frame::Head { length, kind, flags, got: got + 1 },
            Frame::Head { length, kind: HEADERS, flags, .. } => {
                self.block = Block::Field;
                let priority = if flags & PRIORITY == 0 { 0 } else { 5 };
                if flags & PADDED == 0 { Frame::fields(length, priority, 0) } else { Frame::padding(length, priority) }
            }
            Frame::Head { length, kind: CONTINUATION, .. } => Frame::fields(length, 0, 0),
            Frame::Head { length, .. } => Frame::other(length),
            Frame::Padding { left, priority } => Frame::fields(left.saturating_sub(1), priority, u32::from(*byte)),
            Frame::Fields { left, priority: priority @ 1.., padding } => Frame::fields(left.saturating_sub(1), priority - 1, padding),
            Frame::Fields { left, padding, .. } => {
                self.block = self.block.take(byte);
                Frame::fields(left.saturating_sub(1), 0, padding)
            }
            Frame::Other { left } => Frame::other(left.saturating_sub(1)),
        };
    }
}

/// Position of the next byte in the frames of RFC 9113.
#[derive(Clone, Copy, Debug)]
enum Frame {
    /// In the nine bytes of a frame's header, of which `got` have come.
    Head { length: u32, kind: u8, flags: u8, got: u8 },
    /// At the length of the padding.
    Padding { left: u32, priority: u8 },
    /// In fields, behind what is left of a priority and with padding at the end.
    Fields { left: u32, priority: u8, padding: u32 },
    /// In bytes that hold no fields.
    Other { left: u32 },
}

impl Frame {
    const HEAD: Self = Self::Head { length: 0, kind: 0, flags: 0, got: 0 };

    const fn other(left: u32) -> Self {
        if left == 0 { Self::HEAD } else { Self::Other { left } }
    }

    const fn padding(left: u32, priority: u8) -> Self {
        if left == 0 { Self::HEAD } else { Self::Padding { left, priority } }
    }

    const fn fields(left: u32, priority: u8, padding: u32) -> Self {
        if left <= padding { Self::other(left) } else { Self::Fields { left, priority, padding } }
    }
}

impl Default for Frame {
    fn default() -> Self {
        // A client begins with 24 bytes: `PRI * HTTP/2.0`, two empty lines, and `SM` between them (RFC 9113, section 3.4).
        Self::Other { left: 24 }
    }
}

/// Position of the next byte in the fields of RFC 7541.
#[derive(Clone, Copy, Debug, Default)]
enum Block {
    /// At the beginning of a field.
    #[default]
    Field,
    /// Within an integer.
    Integer { of: Integer, value: u32, shift: u32 },
    /// At the length of a text.
    Length(Text),
    /// In a text.
    Text { of: Text, left: u32, coding: Coding, seen: usize },
    /// In bytes that no client sends; `h2` refuses them.
    Lost,
}

/// Coding of the letters of a text.
#[derive(Clone, Copy, Debug)]
enum Coding {
    /// One letter a byte.
    Plain,
    /// Huffman's code, within a letter of which `bits` bits have come.
    Huffman { code: u8, bits: u8 },
    /// Huffman's code, behind a letter with a code that is longer than a byte.
    Beyond,
}

impl Coding {
    const fn new(plain: bool) -> Self {
        if plain { Self::Plain } else { Self::Huffman { code: 0, bits: 0 } }
    }

    /// Follows the letters that have bits in a byte, and flips bits of those that no host may have.
    fn turn(self, byte: &mut u8) -> Self {
        let Self::Huffman { mut code, mut bits } = self else { return self };
        let coded = *byte;
        for place in (0..8).rev() {
            let bit = 1_u8 << place;
            (code, bits) = ((code << 1) | u8::from(coded & bit != 0), bits + 1);
            match (bits, code) {
                // Blank and `%` become `-` and `.`, `/` becomes `3`, `=` `A`, and `:` `B`.
                (5, 0b0_1010) | (6, 0b01_1000 | 0b10_0000) | (7, 0b101_1100) => *byte |= bit,
                // `&` and `,` become `X`, `*` and `;` `Z`.
                (6, 0b11_1110) => *byte |= bit,
                (7, 0b111_1101) => *byte &= !bit,
                _ => {}
            }
            // A letter is complete up to the largest code of five, six, seven and eight bits.
            match (bits, code) {
                (5, 0..=0b0_1001) | (6, 0..=0b10_1101) | (7, 0..=0b111_1011) | (8, 0..=0b1111_1101) => (code, bits) = (0, 0),
                (8, _) => return Self::Beyond,
                _ => {}
            }
        }
        Self::Huffman { code, bits }
    }
}

/// Meaning of an integer.
#[derive(Clone, Copy, Debug)]
enum Integer {
    /// Index of a whole field in a table, or the size of a table.
    Whole,
    /// Index of the name of a field.
    Name,
    /// Length of a text.
    Length { of: Text, plain: bool },
}

/// Meaning of a text.
#[derive(Clone, Copy, Debug)]
enum Text {
    /// Name of a field; `ours`: so far it is `:authority`.
    Name { ours: bool },
    /// Value of a field; `ours`: that of `:authority`.
    Value { ours: bool },
}

impl Block {
    fn take(self, byte: &mut u8) -> Self {
        match self {
            Self::Field if *byte & 0x80 != 0 => Self::integer(Integer::Whole, *byte, 7),
            Self::Field if *byte & 0x40 != 0 => Self::integer(Integer::Name, *byte, 6),
            Self::Field if *byte & 0x20 != 0 => Self::integer(Integer::Whole, *byte, 5),
            Self::Field => Self::integer(Integer::Name, *byte, 4),
            Self::Integer { shift: 28.., .. } | Self::Lost => Self::Lost,
            Self::Integer { of, value, shift } => {
                let value = value + (u32::from(*byte & 0x7f) << shift);
                if *byte & 0x80 == 0 { Self::after(of, value) } else { Self::Integer { of, value, shift: shift + 7 } }
            }
            Self::Length(of) => Self::integer(Integer::Length { of, plain: *byte & 0x80 == 0 }, *byte, 7),
            Self::Text { of, left, coding, seen } => {
                let (mut of, mut coding) = (of, coding);
                match (&mut of, coding) {
                    (Text::Name { ours }, coding) => {
                        *ours = *ours && matches!(coding, Coding::Plain) && NAME.get(seen) == Some(&*byte);
                    }
                    (Text::Value { ours: true }, Coding::Plain) => {
                        if !(byte.is_ascii_alphanumeric() || b"-._~".contains(byte)) {
                            *byte = b'-';
                        }
                    }
                    (Text::Value { ours: true }, compressed) => coding = compressed.turn(byte),
                    (Text::Value { ours: false }, _) => {}
                }
                Self::text(of, left.saturating_sub(1), coding, seen + 1)
            }
        }
    }

    /// Begins an integer in the last `bits` bits of a byte (RFC 7541, section 5.1).
    fn integer(of: Integer, byte: u8, bits: u32) -> Self {
        let most = (1 << bits) - 1;
        let value = u32::from(byte) & most;
        if value == most { Self::Integer { of, value, shift: 0 } } else { Self::after(of, value) }
    }

    fn after(of: Integer, value: u32) -> Self {
        match of {
            Integer::Whole => Self::Field,
            Integer::Name if value == 0 => Self::Length(Text::Name { ours: true }),
            // `:authority` is the first one of the static table (RFC 7541, appendix A).
            Integer::Name => Self::Length(Text::Value { ours: value == 1 }),
            Integer::Length { of, plain } => Self::text(of, value, Coding::new(plain), 0),
        }
    }

    fn text(of: Text, left: u32, coding: Coding, seen: usize) -> Self {
        match of {
            _ if left > 0 => Self::Text { of, left, coding, seen },
            Text::Name { ours } => Self::Length(Text::Value { ours: ours && seen == NAME.len() }),
            Text::Value { .. } => Self::Field,
        }
    }
}

/// Name of the field with the name of the service.
const NAME: &[u8] = b":authority";

/// Types of frames with fields, and flags for what stands before the fields of the first (RFC 9113, section 6.2).
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const END_HEADERS: u8 = 4;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn sent(frames: &[Vec<u8>]) -> Vec<u8> {
        [PREFACE, &frames.concat()].concat()
    }

    fn over(bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        Names::default().write_over(&mut bytes);
        bytes
    }

    fn text(text: &str) -> Vec<u8> {
        let (length, rest) = match text.len() {
            length @ 0..127 => (u8::try_from(length).unwrap(), vec![]),
            length => (127, vec![u8::try_from(length - 127).unwrap()]),
        };
        [&[length], &rest[..], text.as_bytes()].concat()
    }

    #[test]
    fn d11_the_path_of_a_socket_becomes_a_name() {
        // Forms of the field: as Python sends it; as Java does, which knows the name's number; and where it must not be kept in a
        // table.
        let forms = [[b"\x40\x0a", NAME].concat(), vec![0x41], vec![0x01], vec![0x11]];
        let long = format!("run%2F{}", "a".repeat(130));
        for form in &forms {
            for (path, name) in [
                ("tmp%2Fq%201.sock", "tmp-2Fq-201.sock"),
                ("/run/stepward/query.sock", "-run-stepward-query.sock"),
                ("localhost", "localhost"),
                ("[::1]:80", "---1--80"),
                ("\u{e9}\n%@", "-----"),
                (&*long, &*long.replace('%', "-")),
            ] {
                let block =
                    |authority: &str| [b"\x40\x05:path\x06/a%b/c", &form[..], &text(authority), b"\x83\x86\x40\x02te\x08%railers"].concat();
                let whole = |authority: &str| frame(HEADERS, END_HEADERS, &block(authority));
                let padded = |authority: &str| {
                    frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &[b"\x03\x80\0\0\0%", &block(authority)[..], b"\x41\x01/"].concat())
                };
                let parted = |authority: &str| {
                    let block = block(authority);
                    let (first, second) = block.split_at(30);
                    [frame(HEADERS, 0, first), frame(CONTINUATION, END_HEADERS, second)].concat()
                };
                let data = || frame(0, 1, &block(path));
                let all =
                    |authority: &str| sent(&[frame(4, 0, b""), whole(authority), data(), padded(authority), parted(authority), data()]);
                assert_eq!(over(&all(path)).escape_ascii().to_string(), all(name).escape_ascii().to_string(), "{path}");
            }
        }
    }

    /// Letters with codes of up to eight bits, by length; each code is the one before it and one (RFC 7541, appendix B).
    const LETTERS: [(u8, u8, &str); 4] =
        [(5, 0, "012aceiost"), (6, 0x14, " %-./3456789=A_bdfghlmnpru"), (7, 0x5c, ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"), (8, 0xf8, "&*,;XZ")];

    fn huffman(text: &str) -> Vec<u8> {
        let mut bits = String::new();
        for letter in text.chars() {
            let code =
                LETTERS.iter().find_map(|(length, first, letters)| Some((*length, *first + u8::try_from(letters.find(letter)?).unwrap())));
            let (length, code) = code.unwrap();
            bits.push_str(&format!("{code:0width$b}", width = usize::from(length)));
        }
        bits.push_str(&"1".repeat(bits.len().next_multiple_of(8) - bits.len()));
        bits.as_bytes().chunks(8).map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap()).collect()
    }

    #[test]
    fn d11_a_path_that_is_compressed_becomes_a_name_of_the_same_length() {
        let request = |authority: &str| {
            let compressed = huffman(authority);
            let length = 0x80 | u8::try_from(compressed.len()).unwrap();
            sent(&[frame(HEADERS, END_HEADERS, &[&[0x41, length], &compressed[..], b"\x83\x86"].concat())])
        };
        for (path, name) in [
            ("/run/stepward/query.sock", "3run3stepward3query.sock"),
            ("run%2Fstepward%2Fquery.sock", "run.2Fstepward.2Fquery.sock"),
            ("unix:/tmp/q 1.sock", "unixB3tmp3q-1.sock"),
            ("a=1&b;c,d*e", "aA1XbZcXdZe"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(over(&request(path)).escape_ascii().to_string(), request(name).escape_ascii().to_string(), "{path}");
            assert!(name.parse::<http::uri::Authority>().is_ok(), "{name}");
        }
        // Every letter, at each of the eight places in a byte, is one that a host may have, and the others stay.
        let all: String = LETTERS.iter().map(|(_, _, letters)| *letters).collect();
        for letter in all.chars() {
            let allowed = letter.is_ascii_alphanumeric() || "-._".contains(letter);
            let other = match letter {
                ' ' => '-',
                '%' => '.',
                '/' => '3',
                '=' => 'A',
                ':' => 'B',
                '&' | ',' => 'X',
                '*' | ';' => 'Z',
                letter => letter,
            };
            assert_eq!(allowed, other == letter);
            for before in 0..8 {
                let at = |letter: char| request(&format!("{}{letter}a/", "a".repeat(before)));
                assert_eq!(over(&at(letter)), over(&at(other)), "{letter} {before}");
            }
        }
    }

    #[test]
    fn d11_nothing_else_is_written_over() {
        let fields: [&[u8]; 10] = [
            // Another name, a longer one, a shorter one, and one by Huffman's code.
            b"\x40\x0a:authorita\x03a/b",
            b"\x40\x0b:authority2\x03a/b",
            b"\x40\x09:authorit\x03a/b",
            b"\x40\x8a:authority\x03a/b",
            // A value by Huffman's code of which the first letter is a bracket, and padding.
            b"\x41\x83\xff\xd9\x86",
            b"\x41\x82\x1f\xff",
            // Another name's number, of one byte and of two.
            b"\x44\x03a/b",
            b"\x7f\x02\x03a/b",
            // A size, and an integer without an end.
            b"\x3f\xe1\x1f\x82\x84",
            b"\x41\x7f\xff\xff\xff\xff\xff\x41\x03a/b",
        ];
        for field in fields {
            let bytes = sent(&[frame(HEADERS, END_HEADERS, field)]);
            assert_eq!(over(&bytes).escape_ascii().to_string(), bytes.escape_ascii().to_string());
        }
        let bytes = sent(&[frame(HEADERS, END_HEADERS, b"\x41\x7f\xff\xff\xff\xff\xff"), frame(HEADERS, END_HEADERS, b"\x41\x03a/b")]);
        assert!(over(&bytes).ends_with(b"\x41\x03a-b"), "the next request is read again");
    }

    #[test]
    fn d11_the_name_is_found_behind_every_kind_of_field() {
        let long = [&b"\x50\x7f\xc8\x01"[..], &[b'/'; 327]].concat();
        let beyond = [&b"\x44\xa9\xfe"[..], &[0x18; 40]].concat();
        let fields: [&[u8]; 9] = [
            b"",
            // One of the table, by a number of one byte and of two.
            b"\x84",
            b"\xff\x01",
            // Sizes of the table.
            b"\x20",
            b"\x3f\xe1\x1f",
            // A name's number, of which the last four bits are none; a name that must not be kept; a long value.
            b"\x50\x03a/b",
            b"\x10\x02te\x01%",
            &long,
            // Letters with long codes.
            &beyond,
        ];
        for field in fields {
            let request = |authority: &[u8]| sent(&[frame(HEADERS, END_HEADERS, &[field, b"\x41\x03", authority].concat())]);
            assert_eq!(over(&request(b"a/b")).escape_ascii().to_string(), request(b"a-b").escape_ascii().to_string());
        }
        // Behind a letter with a long code nothing of the name is looked at.
        let request = sent(&[frame(HEADERS, END_HEADERS, &[&b"\x41\xa9\xfe"[..], &[0x18; 40]].concat())]);
        assert_eq!(over(&request), request);
    }

    #[tokio::test]
    async fn what_is_written_goes_through_as_it_is() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let (mut client, server) = tokio::net::UnixStream::pair().unwrap();
        let mut stream = AnyAuthority::new(tokio::io::BufWriter::new(server));
        assert!(stream.is_write_vectored());
        stream.write_all(b"a/b").await.unwrap();
        stream.flush().await.unwrap();
        let mut read = [0; 3];
        client.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"a/b");
        stream.shutdown().await.unwrap();
        assert_eq!(client.read(&mut read).await.unwrap(), 0);
    }

    proptest! {
        #[test]
        fn d11_however_it_comes_it_is_the_same(
            frames in prop::collection::vec((0_u8..10, any::<u8>(), prop::collection::vec(prop_oneof![any::<u8>(), Just(0x41), Just(2), Just(b'/')], 0..40)), 0..8),
            pieces in prop::collection::vec(1_usize..20, 1..20),
        ) {
            let frames: Vec<_> = frames.iter().map(|(kind, flags, payload)| frame(*kind, *flags, payload)).collect();
            let bytes = sent(&frames);
            let expected = over(&bytes);
            let mut names = Names::default();
            let (mut got, mut rest) = (bytes.clone(), 0);
            for piece in pieces.iter().cycle() {
                let end = got.len().min(rest + piece);
                names.write_over(&mut got[rest..end]);
                rest = end;
                if rest == got.len() {
                    break;
                }
            }
            prop_assert_eq!(&got, &expected);
            prop_assert_eq!(bytes.len(), got.len());
            prop_assert_eq!(over(&got), got);
        }
    }

    #[test]
    fn d11_a_name_is_found_behind_a_text_of_any_length() {
        // Where the text is taken for a shorter one, its rest would be taken for fields, and hide the name behind it.
        for (length, filled) in [126_usize, 127, 254, 255, 400, 20_000].into_iter().flat_map(|length| [(length, b'%'), (length, 0)]) {
            let mut long = vec![u8::try_from(length.min(127)).unwrap()];
            if length >= 127 {
                let mut rest = length - 127;
                while rest >= 128 {
                    long.push(u8::try_from(rest % 128).unwrap() | 0x80);
                    rest /= 128;
                }
                long.push(u8::try_from(rest).unwrap());
            }
            let block = |name: &[u8]| [b"\x40\x01x", &long[..], &vec![filled; length], b"\x41\x05", name].concat();
            let whole = |name: &[u8]| sent(&[frame(HEADERS, END_HEADERS, &block(name))]);
            assert_eq!(over(&whole(b"a%2Fb")), whole(b"a-2Fb"), "{length} {filled}");
        }
    }
}

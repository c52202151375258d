//! Where the body of an answer ends, and what of its bytes is the body.
//!
//! It keeps no bytes: whatever it is fed, it says at once, and remembers only where it stands.

/// Bytes beside the body that one answer may have in its chunks: extensions and trailers. Nobody
/// sends any; without a bound they would be life signs of a server that says nothing.
const MAX_EXTRA_BYTES: usize = 16 * 1024;
/// Hexadecimal digits of a chunk's size: a `u64` has no more.
const MAX_SIZE_DIGITS: u8 = 16;

/// An answer that is not what HTTP/1.1 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// The body of one answer, while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// So many bytes are still to come.
    Length(u64),
    /// In chunks, of which the last one says that it is.
    Chunked(Chunks),
    /// Until the connection is closed.
    UntilClose,
}

/// Where in its chunks a body stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunks {
    at: At,
    /// Bytes of extensions and trailers until now.
    extra: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In the digits of a size.
    Size { size: u64, digits: u8 },
    /// In blanks behind them.
    Blanks { size: u64 },
    /// In an extension, up to the end of the line.
    Extension { size: u64 },
    /// Before the line feed of a size line.
    SizeEnd { size: u64 },
    /// In data, of which so much is still to come; never 0.
    Data { left: u64 },
    /// Behind data: a carriage return.
    DataEnd,
    /// Behind it: a line feed.
    DataFeed,
    /// At the beginning of a line of the trailers.
    Trailers,
    /// In such a line.
    Trailer,
    /// Before the line feed of such a line.
    TrailerEnd,
    /// Before the last line feed.
    LastFeed,
    /// Behind it.
    Done,
}

impl Body {
    /// A body in chunks.
    pub const fn chunked() -> Self {
        Self::Chunked(Chunks { at: At::Size { size: 0, digits: 0 }, extra: 0 })
    }

    /// Whether nothing more belongs to it. One that lasts until the connection is closed is never
    /// whole before.
    pub const fn is_whole(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunks { at: At::Done, .. }))
    }

    /// Whether the connection may close here.
    pub const fn may_end(&self) -> bool {
        self.is_whole() || matches!(self, Self::UntilClose)
    }

    /// Takes what came from the socket and puts what of it is the body into `into`. Returns what
    /// stands behind the end of the body.
    ///
    /// # Errors
    /// The bytes are no chunks.
    pub fn take<'b>(
        &mut self,
        mut bytes: &'b [u8],
        into: &mut Vec<u8>,
    ) -> Result<&'b [u8], Malformed> {
        match self {
            Self::UntilClose => into.extend_from_slice(std::mem::take(&mut bytes)),
            Self::Length(left) => *left -= data(*left, &mut bytes, into),
            Self::Chunked(chunks) => {
                while !bytes.is_empty() && chunks.at != At::Done {
                    chunks.step(&mut bytes, into)?;
                }
            }
        }
        Ok(bytes)
    }
}

impl Chunks {
    /// Takes at least one byte, of which there must be one.
    fn step(&mut self, bytes: &mut &[u8], into: &mut Vec<u8>) -> Result<(), Malformed> {
        if let At::Data { left } = self.at {
            let left = left - data(left, bytes, into);
            self.at = if left == 0 { At::DataEnd } else { At::Data { left } };
            return Ok(());
        }
        let Some((&byte, rest)) = bytes.split_first() else { return Ok(()) };
        *bytes = rest;
        self.at = match (self.at, byte) {
            (At::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == MAX_SIZE_DIGITS {
                    return Err(Malformed);
                }
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                At::Size { size: size * 16 + digit, digits: digits + 1 }
            }
            (At::Size { digits: 0, .. }, _) => return Err(Malformed),
            (At::Size { size, .. } | At::Blanks { size } | At::Extension { size }, b'\r') => {
                At::SizeEnd { size }
            }
            (At::Size { size, .. } | At::Blanks { size }, b' ' | b'\t') => {
                self.extra()?;
                At::Blanks { size }
            }
            (At::Size { size, .. } | At::Blanks { size }, b';') => At::Extension { size },
            // A line feed alone is where parsers disagree about the end of a line.
            (At::Extension { .. }, b'\n') => return Err(Malformed),
            (At::Extension { size }, _) => {
                self.extra()?;
                At::Extension { size }
            }
            (At::SizeEnd { size: 0 }, b'\n') => At::Trailers,
            (At::SizeEnd { size }, b'\n') => At::Data { left: size },
            (At::DataEnd, b'\r') => At::DataFeed,
            (At::DataFeed, b'\n') => At::Size { size: 0, digits: 0 },
            (At::Trailers, b'\r') => At::LastFeed,
            (At::LastFeed, b'\n') | (At::Done, _) => At::Done,
            (At::Trailer, b'\r') => At::TrailerEnd,
            (At::Trailers | At::Trailer, byte) if byte != b'\n' => {
                self.extra()?;
                At::Trailer
            }
            (At::TrailerEnd, b'\n') => At::Trailers,
            (
                At::Size { .. }
                | At::Blanks { .. }
                | At::SizeEnd { .. }
                | At::Data { .. }
                | At::DataEnd
                | At::DataFeed
                | At::Trailers
                | At::Trailer
                | At::TrailerEnd
                | At::LastFeed,
                _,
            ) => return Err(Malformed),
        };
        Ok(())
    }

    fn extra(&mut self) -> Result<(), Malformed> {
        self.extra += 1;
        if self.extra > MAX_EXTRA_BYTES { Err(Malformed) } else { Ok(()) }
    }
}

/// Moves up to `left` bytes of data from the front of `bytes` to `into`; says how many.
fn data(left: u64, bytes: &mut &[u8], into: &mut Vec<u8>) -> u64 {
    let fits = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    let (data, rest) = bytes.split_at(fits);
    into.extend_from_slice(data);
    *bytes = rest;
    fits as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a body is, fed in pieces of these bytes: what of it was body, whether it is whole, and
    /// what stands behind it.
    fn read(mut body: Body, pieces: &[&[u8]]) -> Result<(String, bool, String), Malformed> {
        let (mut into, mut behind) = (Vec::new(), Vec::new());
        for piece in pieces {
            behind.extend_from_slice(body.take(piece, &mut into)?);
        }
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ok((text(into), body.is_whole(), text(behind)))
    }

    fn whole(text: &str, behind: &str) -> Result<(String, bool, String), Malformed> {
        Ok((text.to_owned(), true, behind.to_owned()))
    }

    #[test]
    fn a_body_ends_where_its_length_says() {
        assert_eq!(read(Body::Length(5), &[b"he", b"llo", b"!"]), whole("hello", "!"));
        assert_eq!(read(Body::Length(0), &[b"x"]), whole("", "x"));
        assert!(!read(Body::Length(6), &[b"hello"]).unwrap().1);
        assert!(Body::UntilClose.may_end() && !Body::UntilClose.is_whole());
    }

    #[test]
    fn chunks_decode_the_same_however_they_are_cut() {
        let sent = b"5\r\nhello\r\n00A ;a=\"b\"\r\n, \r\nworld \r\n1\t\r\n!\r\n0\r\nx: y\r\nz:\r\n\r\nmore";
        let expected = whole("hello, \r\nworld !", "more");
        assert_eq!(read(Body::chunked(), &[sent]), expected);
        for size in 1..sent.len() {
            let pieces: Vec<&[u8]> = sent.chunks(size).collect();
            assert_eq!(read(Body::chunked(), &pieces), expected, "in pieces of {size}");
        }
        for cut in 0..sent.len() - 4 {
            assert!(!read(Body::chunked(), &[&sent[..cut]]).unwrap().1, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        for wrong in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x5\r\n",
            " 5\r\n",
            "5\nhello",
            "5\rx",
            "5 5\r\n",
            "5;a\nhello",
            "5\r\nhello5\r\n",
            "5\r\nhello\n",
            "5\r\nhello\r5",
            "0\r\n\n",
            "0\r\n\rx",
            "0\r\na: b\n\r\n",
            "0\r\na: b\rc",
            "00000000000000005\r\n",
            "10000000000000000\r\n",
        ] {
            assert_eq!(read(Body::chunked(), &[wrong.as_bytes()]), Err(Malformed), "{wrong:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded_in_all() {
        let long = "x".repeat(MAX_EXTRA_BYTES / 2);
        let twice = format!("1;{long}\r\na\r\n0\r\n{long}\r\n\r\n");
        assert_eq!(read(Body::chunked(), &[twice.as_bytes()]), whole("a", ""));
        for too_much in [
            format!("1;{long}{long}x\r\n"),
            format!("1;{long}x\r\na\r\n1;{long}\r\n"),
            format!("1{}\r\n", " ".repeat(MAX_EXTRA_BYTES + 1)),
            format!("0\r\n{long}\r\n{long}x\r\n"),
        ] {
            assert_eq!(read(Body::chunked(), &[too_much.as_bytes()]), Err(Malformed));
        }
    }

    #[test]
    fn a_size_beyond_all_memory_is_only_a_number() {
        let sent = b"ffffffffffffffff\r\nabc";
        assert_eq!(read(Body::chunked(), &[sent]), Ok(("abc".to_owned(), false, String::new())));
    }
}

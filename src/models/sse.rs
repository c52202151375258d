//! Server-sent events out of chunks of bytes, as they come from a socket.
//!
//! It follows the WHATWG rules for lines (`\n`, `\r\n`, `\r`), comments, a byte order mark and data
//! over several lines. Data is handed out as bytes: a character may be split over chunks, but never
//! over events, so UTF-8 is checked where the JSON is read. An event that lies in one chunk is
//! borrowed from it; nothing is allocated for it.

/// Bytes that one event may have. Providers send whole tool arguments and whole texts in one event,
/// hardly ever more than some 100 KiB.
pub const MAX_EVENT_BYTES: usize = 2 * 1024 * 1024;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// What its `event` field said; empty where there was none.
    pub name: &'a [u8],
    /// Its data, lines joined with `\n`.
    pub data: &'a [u8],
}

/// An event is longer than [`MAX_EVENT_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event is too long")]
pub struct TooLong;

/// Decodes one stream.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    /// Data of an event whose end has not come yet, where it could not be borrowed.
    data: Vec<u8>,
    has_data: bool,
    name: Vec<u8>,
    /// The chunk before this one ended in `\r`: a `\n` in front of this one belongs to it.
    after_return: bool,
    has_begun: bool,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a chunk and gives every event that it completes to `on_event`, in order.
    ///
    /// # Errors
    /// [`TooLong`], or the first error of `on_event`. The decoder is of no use afterwards.
    pub fn feed<E: From<TooLong>>(
        &mut self,
        chunk: &[u8],
        on_event: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = chunk;
        // The data of the current event, if it is one line of this chunk.
        let mut here: Option<&[u8]> = None;
        if self.after_return && !rest.is_empty() {
            self.after_return = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(at) = memchr::memchr2(b'\n', b'\r', rest) {
            let (head, tail) = rest.split_at(at);
            rest = match tail {
                [b'\r', b'\n', after @ ..] => after,
                [b'\r'] => {
                    self.after_return = true;
                    &[]
                }
                [_, after @ ..] => after,
                [] => &[],
            };
            self.room_for(head.len() + here.map_or(0, <[u8]>::len))?;
            if self.line.is_empty() {
                self.line_in_chunk(head, &mut here, on_event)?;
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(head);
                // What it says must outlive this chunk's buffer, so nothing is borrowed from it.
                let mut copied = None;
                self.keep(here.take());
                self.line_in_chunk(&line, &mut copied, on_event)?;
                self.keep(copied);
                line.clear();
                self.line = line;
            }
        }
        self.room_for(rest.len() + here.map_or(0, <[u8]>::len))?;
        self.keep(here);
        self.line.extend_from_slice(rest);
        Ok(())
    }

    /// Hands out what is left when the stream has ended without a blank line. The event may be cut
    /// off: its reader must be able to tell.
    ///
    /// # Errors
    /// The first error of `on_event`.
    pub fn finish<E: From<TooLong>>(
        &mut self,
        on_event: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.after_return = false;
        if !self.line.is_empty() {
            self.feed(b"\n", on_event)?;
        }
        self.feed(b"\n", on_event)
    }

    fn room_for(&self, more: usize) -> Result<(), TooLong> {
        if self.line.len() + self.data.len() + more > MAX_EVENT_BYTES {
            return Err(TooLong);
        }
        Ok(())
    }

    fn keep(&mut self, data: Option<&[u8]>) {
        if let Some(data) = data {
            self.data.extend_from_slice(data);
        }
    }

    /// One whole line. `here` is where data may be left that borrows from `line`.
    fn line_in_chunk<'c, E: From<TooLong>>(
        &mut self,
        line: &'c [u8],
        here: &mut Option<&'c [u8]>,
        on_event: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let line = if self.has_begun {
            line
        } else {
            self.has_begun = true;
            line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line)
        };
        if line.is_empty() {
            if self.has_data {
                let data = here.take().unwrap_or(&self.data);
                on_event(Event { name: &self.name, data })?;
                self.has_data = false;
                self.data.clear();
            }
            self.name.clear();
            return Ok(());
        }
        if let Some(value) = field(line, b"data") {
            if self.has_data {
                self.keep(here.take());
                self.data.push(b'\n');
                self.data.extend_from_slice(value);
            } else {
                self.has_data = true;
                *here = Some(value);
            }
        } else if let Some(value) = field(line, b"event") {
            self.name.clear();
            self.name.extend_from_slice(value);
        }
        Ok(())
    }
}

/// The value of the field `name`, if this line is one. A comment has the empty name.
fn field<'c>(line: &'c [u8], name: &[u8]) -> Option<&'c [u8]> {
    match line.strip_prefix(name)? {
        [] => Some(&[]),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        [_, ..] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(chunks: &[&[u8]]) -> Result<Vec<(String, String)>, TooLong> {
        let mut decoder = Decoder::new();
        let mut told = Vec::new();
        let mut tell = |event: Event<'_>| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            told.push((text(event.name), text(event.data)));
            Ok::<(), TooLong>(())
        };
        for chunk in chunks {
            decoder.feed(chunk, &mut tell)?;
        }
        decoder.finish(&mut tell)?;
        Ok(told)
    }

    fn data(chunks: &[&[u8]]) -> Vec<String> {
        decode(chunks).unwrap().into_iter().map(|(_, data)| data).collect()
    }

    #[test]
    fn every_kind_of_line_end_ends_a_line() {
        for stream in
            ["data: a\n\ndata:b\n\n", "data: a\r\n\r\ndata:b\r\n\r\n", "data: a\r\rdata:b\r\r"]
        {
            assert_eq!(data(&[stream.as_bytes()]), ["a", "b"], "{stream:?}");
        }
    }

    #[test]
    fn a_stream_decodes_the_same_however_it_is_cut() {
        let stream = "\u{feff}: hello\r\nevent: one\r\ndata: {\"a\":\"ü🦀\"}\r\n\r\n\n\ndata: x\ndata\n\
                      data:  y\nid: 7\nretry: 1\ndatabase: no\n\nevent: lost\n\rdata: [DONE]\r\r";
        let whole = decode(&[stream.as_bytes()]).unwrap();
        assert_eq!(
            whole,
            [("one", "{\"a\":\"ü🦀\"}"), ("", "x\n\n y"), ("", "[DONE]")]
                .map(|(name, data)| (name.to_owned(), data.to_owned()))
        );
        for size in 1..stream.len() {
            let chunks: Vec<&[u8]> = stream.as_bytes().chunks(size).collect();
            assert_eq!(decode(&chunks).unwrap(), whole, "in chunks of {size}");
        }
    }

    #[test]
    fn an_event_without_its_blank_line_is_handed_out_at_the_end() {
        assert_eq!(data(&[b"data: a\n\ndata: [DONE]"]), ["a", "[DONE]"]);
        assert_eq!(data(&[b"data: a\n\ndata: [DONE]\n"]), ["a", "[DONE]"]);
        assert_eq!(data(&[b"data: a\n\n"]), ["a"]);
    }

    #[test]
    fn an_event_beyond_the_bound_is_an_error_however_it_comes() {
        let long = vec![b'x'; MAX_EVENT_BYTES + 1];
        assert_eq!(decode(&[b"data: ", &long, b"\n\n"]), Err(TooLong));
        assert_eq!(decode(&[b": ", &long]), Err(TooLong));
        let line = [b"data: ".as_slice(), &vec![b'x'; 1024], b"\n"].concat();
        let lines = vec![line.as_slice(); MAX_EVENT_BYTES / 1024 + 1];
        assert_eq!(decode(&lines), Err(TooLong));
        assert_eq!(decode(&[&lines.concat()]), Err(TooLong));
        let fits = vec![b'x'; MAX_EVENT_BYTES - 16];
        assert_eq!(data(&[b"data: ", &fits, b"\n\n"]).len(), 1);
    }

    #[test]
    fn an_error_of_the_reader_stops_the_decoder() {
        let mut seen = 0;
        let result = Decoder::new().feed(b"data: a\n\ndata: b\n\n", &mut |_| {
            seen += 1;
            Err(TooLong)
        });
        assert_eq!((result, seen), (Err(TooLong), 1));
    }

    proptest! {
        #[test]
        fn cutting_hostile_bytes_anywhere_changes_nothing(
            bytes in prop::collection::vec(prop_oneof![
                Just(b'\n'), Just(b'\r'), Just(b':'), Just(b' '), Just(b'd'), Just(b'a'), Just(b't'), any::<u8>()
            ], 0..200),
            cut in 0_usize..200,
        ) {
            let (left, right) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(decode(&[left, right]), decode(&[&bytes]));
        }
    }
}

//! Reading an answer to its end: the part that both wires share.

use std::time::{Duration, Instant};

use super::Show;
use super::fault::Fault;
use super::http::Incoming;
use super::sse::{Decoder, Event};
use crate::domain::retry::FailureKind;

/// How far an answer has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Nothing of it has come.
    #[default]
    Silent,
    /// A part of it has come.
    Speaking,
    /// It is whole, but more may be told about it (tokens, for example).
    Whole,
    /// The end marker has come.
    Done,
}

/// Puts an answer together, event by event.
pub(super) trait Decode: Send {
    /// Takes one event of the stream.
    ///
    /// # Errors
    /// It cannot be read, or says that the call has failed.
    fn event(&mut self, event: &Event<'_>, show: &mut dyn Show) -> Result<(), Fault>;

    /// Takes the answer of a server that does not stream.
    ///
    /// # Errors
    /// It cannot be read, or says that the call has failed.
    fn whole(&mut self, body: &[u8], show: &mut dyn Show) -> Result<(), Fault>;

    /// How far the answer has come.
    fn stage(&self) -> Stage;
}

/// Bytes of text, reasoning and arguments that one answer may have. The longest answers of today have
/// a tenth of it.
pub(super) const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;
/// How long a server may take to tell more about an answer that is whole.
const EPILOGUE: Duration = Duration::from_secs(5);

/// Reads an answer to its end.
///
/// # Errors
/// The stream broke, fell silent, could not be read, reported an error, or ended before the answer
/// was whole. What was shown until then stays shown.
pub(super) async fn read(
    incoming: &mut Incoming,
    decode: &mut dyn Decode,
    show: &mut dyn Show,
) -> Result<(), Fault> {
    if incoming.is_json() {
        let body = Box::pin(incoming.whole()).await?;
        decode.whole(&body, show)?;
        return if decode.stage() >= Stage::Whole { Ok(()) } else { Err(Fault::cut()) };
    }
    let mut decoder = Decoder::new();
    let mut stage = Stage::Silent;
    loop {
        let chunk = match incoming.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            // Nothing that was said is missing, so the answer is not asked for again.
            Err(_) if stage >= Stage::Whole => return Ok(()),
            Err(fault) => return Err(fault),
        };
        decoder.feed(&chunk, &mut |event| take(decode, &event, show))?;
        let before = std::mem::replace(&mut stage, decode.stage());
        match stage {
            Stage::Silent => {}
            Stage::Speaking => incoming.begin(),
            Stage::Whole if before < Stage::Whole => incoming.end_within(EPILOGUE),
            Stage::Whole => {}
            Stage::Done => {
                incoming.drain().await;
                return Ok(());
            }
        }
        if show.is_full() {
            let since = Instant::now();
            show.room().await;
            incoming.forgive(since.elapsed());
        }
    }
    // An event without the blank line behind it may be half an event. One that cannot be read was:
    // then the answer is cut, not broken, or whole already.
    match decoder.finish(&mut |event| take(decode, &event, show)) {
        Err(fault) if fault.kind != FailureKind::Broken => Err(fault),
        Ok(()) | Err(_) if decode.stage() >= Stage::Whole => Ok(()),
        Ok(()) | Err(_) => Err(Fault::cut()),
    }
}

/// Takes one event, unless the end marker has come: what stands behind it is nobody's.
fn take(decode: &mut dyn Decode, event: &Event<'_>, show: &mut dyn Show) -> Result<(), Fault> {
    if decode.stage() == Stage::Done {
        return Ok(());
    }
    decode.event(event, show)
}

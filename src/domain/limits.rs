//! Every bound of a run and of what describes one, each with its reason.

use std::time::Duration;

/// Events in one log: an endless model must end, and a page of the log must stay payable.
pub const MAX_EVENTS: i32 = 50_000;
/// Bytes of `data` in one log, for the same reason.
pub const MAX_LOG_BYTES: u64 = 50 * 1024 * 1024;
/// Output that a run may hold in memory before it is durable; beyond it the provider's socket is not read.
pub const MAX_UNFLUSHED_BYTES: usize = 1024 * 1024;
/// Attempts at one model call, the first included.
pub const MAX_MODEL_ATTEMPTS: i32 = 5;
/// Time over which one model call is tried again.
pub const MODEL_RETRY_WINDOW: Duration = Duration::from_secs(180);
/// A wait named by the provider that is longer than this frees the run's slot.
pub const LONG_MODEL_WAIT: Duration = Duration::from_secs(60);
/// The longest wait that a provider may ask for; beyond it the call has failed.
pub const MAX_MODEL_WAIT: Duration = Duration::from_secs(24 * 3600);
/// Drivers that died with a run since its last committed step, from which on it may be the reason: it
/// goes on in a process of its own. Deaths of drivers with neighbours count up to here and no further.
pub const SUSPECT: i32 = 2;
/// One more, and a process that had nothing else to do died with it: it is the reason.
pub const CONVICTED: i32 = SUSPECT + 1;
/// Runs below a run that no other run called: agents that call one another must come to an end.
pub const MAX_GENERATIONS: u32 = 5;
/// Runs in one family, the one at the top among them: five generations of 128 calls each would be more than
/// anybody wants, and can pay.
pub const MAX_FAMILY: usize = 1_000;
/// Tool calls that one model turn may ask for; what exceeds it is a broken answer.
pub const MAX_CALLS_PER_STEP: usize = 128;
/// Levels of nesting in JSON that a client, a model or a tool wrote (`domain::depth`).
pub const MAX_DEPTH: usize = 64;
/// Bytes of one tool result that the model and the log get; more is cut with a note.
pub const MAX_RESULT_BYTES: usize = 256 * 1024;
/// Messages that may wait until a run's next model call; whoever sends more does not wait for answers.
pub const MAX_STEERING: usize = 100;
/// Characters of the reason of a decision: it is for people and for the model to read.
pub const MAX_REASON_CHARS: usize = 4_096;
/// Tools of an agent.
pub const MAX_TOOLS: usize = 128;
/// Steps that an agent may be given.
pub const MAX_STEPS: u32 = 10_000;
/// Seconds that a run may be given: 30 days.
pub const MAX_TIMEOUT_SECONDS: u64 = 30 * 24 * 3600;
/// Pairs of metadata.
pub const MAX_METADATA: usize = 16;
/// Characters of a metadata key and of a metadata value.
pub const MAX_METADATA_KEY: usize = 64;
/// Characters of a metadata value.
pub const MAX_METADATA_VALUE: usize = 512;
/// Messages in one input.
pub const MAX_INPUT_MESSAGES: usize = 1_000;
/// Turns of a `builtin/script`.
pub const MAX_SCRIPT_TURNS: usize = 1_000;
/// Tokens in one call beyond which a provider's count is taken for nonsense, and counted by us.
pub const MAX_PLAUSIBLE_TOKENS: u64 = 100_000_000;
/// Tokens that an agent's prompts may be given: beyond it no limit is meant.
pub const MAX_CONTEXT_TOKENS: u64 = MAX_PLAUSIBLE_TOKENS;

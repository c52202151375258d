//! What is wrong with an input, field by field.

use serde::Serialize;
use utoipa::ToSchema;

/// One thing that is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// Where, as a JSON pointer (RFC 6901) into the body; empty for the whole.
    pub pointer: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// A list of problems under construction; empty means that the input is fine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// No problem yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One problem.
    pub fn one(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        let mut problems = Self::new();
        problems.add(pointer, message);
        problems
    }

    /// Adds a problem.
    pub fn add(&mut self, pointer: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { pointer: pointer.into(), message: message.into() });
    }

    /// Adds a problem unless `fine`.
    pub fn require(&mut self, fine: bool, pointer: &str, message: impl Into<String>) {
        if !fine {
            self.add(pointer, message);
        }
    }

    /// `Ok` when there is none.
    ///
    /// # Errors
    /// The problems, when there are any.
    pub fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    /// The same problems, seen from a document that holds this one under `prefix`.
    #[must_use]
    pub fn under(mut self, prefix: &str) -> Self {
        for problem in &mut self.0 {
            problem.pointer.insert_str(0, prefix);
        }
        self
    }

    /// Takes over the problems of a part.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The list.
    pub fn into_vec(self) -> Vec<Problem> {
        self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let lead = if i == 0 { "" } else { "; " };
            let pointer = if problem.pointer.is_empty() { "/" } else { &problem.pointer };
            write!(f, "{lead}{pointer}: {}", problem.message)?;
        }
        Ok(())
    }
}

//! Finds the paths in Rust source: just enough of its grammar to tell `a::{b, c::d}` from text.

/// A path as the compiler would see it: `super` and `self` are resolved to `crate::…`.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// From 1.
    pub line: usize,
    /// Its segments.
    pub path: Vec<String>,
    /// Whether it is in a module `tests`.
    pub in_tests: bool,
}

/// The lines that declare a module `tests` without `#[cfg(test)]` right before it.
pub fn unmarked_tests(text: &str) -> Vec<usize> {
    let mark = tokens("#[cfg(test)]");
    let tokens = tokens(text);
    let declares = |at: usize| {
        matches!(
            tokens.get(at..at + 2).map(|two| two.iter().map(|t| &t.kind).collect::<Vec<_>>()),
            Some(two) if *two[0] == Kind::Word("mod".into()) && *two[1] == Kind::Word("tests".into())
        )
    };
    let is_marked = |at: usize| {
        let before = at.checked_sub(mark.len()).and_then(|start| tokens.get(start..at));
        before.is_some_and(|before| before.iter().map(|t| &t.kind).eq(mark.iter().map(|t| &t.kind)))
    };
    (0..tokens.len())
        .filter(|at| declares(*at) && !is_marked(*at))
        .map(|at| tokens[at].line)
        .collect()
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Word(String),
    /// `::`
    Join,
    Sign(char),
}

#[derive(Debug, Clone)]
struct Token {
    line: usize,
    kind: Kind,
}

/// All paths of more than one segment, and crates that are named by `use`, in a file of `module`.
pub fn found_in(text: &str, module: &[String]) -> Vec<Found> {
    let tokens = tokens(text);
    let mut reader = Reader { tokens: &tokens, at: 0, found: Vec::new() };
    // Modules written inside of the file, with the depth of braces that they began at.
    let mut inline: Vec<(String, usize)> = Vec::new();
    let mut depth = 0;
    let mut begun = None;
    while let Some(token) = tokens.get(reader.at) {
        match &token.kind {
            Kind::Sign('{') => {
                if let Some(name) = begun.take() {
                    inline.push((name, depth));
                }
                depth += 1;
                reader.at += 1;
            }
            Kind::Sign('}') => {
                depth = depth.saturating_sub(1);
                if inline.last().is_some_and(|(_, began)| *began == depth) {
                    inline.pop();
                }
                reader.at += 1;
            }
            Kind::Word(word) if word == "mod" => {
                let opens = matches!(reader.kind(2), Some(Kind::Sign('{')));
                if let (Some(Kind::Word(name)), true) = (reader.kind(1), opens) {
                    begun = Some(name.clone());
                }
                reader.at += 2;
            }
            Kind::Word(word) => {
                let is_use = word == "use";
                if is_use {
                    reader.at += 1;
                    // `use ::name` names a crate, too.
                    if reader.kind(0) == Some(&Kind::Join) {
                        reader.at += 1;
                    }
                }
                let first = reader.found.len();
                reader.tree(&[]);
                let here: Vec<String> =
                    module.iter().cloned().chain(inline.iter().map(|(n, _)| n.clone())).collect();
                let fresh = reader.found.split_off(first);
                reader.found.extend(fresh.into_iter().filter(|f| is_use || f.path.len() > 1).map(
                    |f| Found {
                        line: f.line,
                        path: resolved(f.path, &here),
                        in_tests: here.iter().any(|module| module == "tests"),
                    },
                ));
            }
            Kind::Join | Kind::Sign(_) => reader.at += 1,
        }
    }
    reader.found
}

/// Turns `super::x` and `self::x`, said in the module `here`, into `crate::…::x`.
fn resolved(path: Vec<String>, here: &[String]) -> Vec<String> {
    let ups = path.iter().filter(|s| *s == "super").count();
    match path.first().map(String::as_str) {
        Some("super" | "self") => {
            let stem = here.len().saturating_sub(ups);
            let rest = path.iter().filter(|s| *s != "super" && *s != "self");
            std::iter::once("crate")
                .chain(here.iter().take(stem).map(String::as_str))
                .chain(rest.map(String::as_str))
                .map(str::to_owned)
                .collect()
        }
        _ => path,
    }
}

struct Reader<'a> {
    tokens: &'a [Token],
    at: usize,
    found: Vec<Found>,
}

impl Reader<'_> {
    fn kind(&self, ahead: usize) -> Option<&Kind> {
        self.tokens.get(self.at + ahead).map(|t| &t.kind)
    }

    /// Reads a path, or a tree of them, that goes on from `stem`.
    fn tree(&mut self, stem: &[String]) {
        let mut path = stem.to_vec();
        let line = self.tokens.get(self.at).map_or(0, |t| t.line);
        loop {
            match self.kind(0).cloned() {
                Some(Kind::Word(word)) => {
                    path.push(word);
                    self.at += 1;
                }
                Some(Kind::Sign('{')) => {
                    self.at += 1;
                    self.group(&path);
                    return;
                }
                Some(Kind::Sign('*')) => {
                    path.push("*".to_owned());
                    self.at += 1;
                }
                Some(Kind::Join | Kind::Sign(_)) | None => break,
            }
            // A path goes on after `::` with a name, a group or a star, but not with `<` (turbofish).
            let goes_on = matches!(
                (self.kind(0), self.kind(1)),
                (Some(Kind::Join), Some(Kind::Word(_) | Kind::Sign('{' | '*')))
            );
            if !goes_on {
                break;
            }
            self.at += 1;
        }
        self.found.push(Found { line, path, in_tests: false });
    }

    /// Reads `a, b::c as d, …}`.
    fn group(&mut self, stem: &[String]) {
        while let Some(kind) = self.kind(0) {
            match kind {
                Kind::Sign('}') => {
                    self.at += 1;
                    return;
                }
                Kind::Word(word) if word == "as" => self.at += 2,
                Kind::Word(_) | Kind::Sign('*' | '{') => self.tree(stem),
                Kind::Join | Kind::Sign(_) => self.at += 1,
            }
        }
    }
}

/// Cuts source into words and signs; comments, strings and characters are left out.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut tokens = Vec::new();
    let (mut i, mut line) = (0, 1);
    while i < chars.len() {
        let start = i;
        let c = at(i);
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            i = after_block_comment(&at, i, chars.len());
        } else if let Some(hashes) = raw_string(&at, i) {
            i = after_raw_string(&at, i, hashes, chars.len());
        } else if c == '"' {
            i = after_quoted(&at, i + 1, '"', chars.len());
        } else if c == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
            i = after_quoted(&at, i + 1, '\'', chars.len());
        } else if c.is_alphanumeric() || c == '_' {
            while at(i).is_alphanumeric() || at(i) == '_' {
                i += 1;
            }
            let word: String = chars[start..i].iter().collect();
            // In `b"…"` and `c"…"` the letter belongs to the string.
            if at(i) != '"' {
                tokens.push(Token { line, kind: Kind::Word(word) });
            }
        } else if c == ':' && at(i + 1) == ':' {
            tokens.push(Token { line, kind: Kind::Join });
            i += 2;
        } else {
            if !c.is_whitespace() {
                tokens.push(Token { line, kind: Kind::Sign(c) });
            }
            i += 1;
        }
        line += chars[start..i].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

fn after_block_comment(at: &impl Fn(usize) -> char, mut i: usize, end: usize) -> usize {
    let mut depth = 0;
    while i < end {
        match (at(i), at(i + 1)) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => {
                (depth, i) = (depth - 1, i + 2);
                if depth == 0 {
                    break;
                }
            }
            _ => i += 1,
        }
    }
    i
}

/// The number of `#` if a raw string (`r"`, `r#"`, `br#"`) begins here.
fn raw_string(at: &impl Fn(usize) -> char, i: usize) -> Option<usize> {
    let before = if i == 0 { ' ' } else { at(i - 1) };
    if before.is_alphanumeric() || before == '_' {
        return None;
    }
    let r = if matches!(at(i), 'b' | 'c') { i + 1 } else { i };
    if at(r) != 'r' {
        return None;
    }
    let hashes = (0..).take_while(|n| at(r + 1 + n) == '#').count();
    (at(r + 1 + hashes) == '"').then_some(hashes)
}

fn after_raw_string(at: &impl Fn(usize) -> char, mut i: usize, hashes: usize, end: usize) -> usize {
    while at(i) != '"' {
        i += 1;
    }
    i += 1;
    while i < end && !(at(i) == '"' && (1..=hashes).all(|n| at(i + n) == '#')) {
        i += 1;
    }
    i + 1 + hashes
}

fn after_quoted(at: &impl Fn(usize) -> char, mut i: usize, quote: char, end: usize) -> usize {
    while i < end && at(i) != quote {
        i += if at(i) == '\\' { 2 } else { 1 };
    }
    i + 1
}

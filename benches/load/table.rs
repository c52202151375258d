//! What was measured, beside what is aimed at and what the machine can do.

use std::io::Write as _;

use serde::Serialize;

use crate::machine::Used;

/// Others kept so much of a processor busy that a figure says little.
const DISTURBED: f64 = 0.2;

/// What is aimed at.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// The more the better: the floor, and the target.
    AtLeast(f64, f64),
    /// The less the better: the ceiling, and the target.
    AtMost(f64, f64),
    /// None: it is told.
    None,
}

impl Goal {
    fn reached(self, value: f64) -> &'static str {
        let (floor, target) = match self {
            Self::AtLeast(floor, target) => (value >= floor, value >= target),
            Self::AtMost(ceiling, target) => (value <= ceiling, value <= target),
            Self::None => return "",
        };
        match (floor, target) {
            (_, true) => "yes",
            (true, false) => "floor only",
            (false, false) => "NO",
        }
    }

    fn shown(self) -> String {
        match self {
            Self::AtLeast(floor, target) => format!(">= {} ({})", number(target), number(floor)),
            Self::AtMost(ceiling, target) => format!("<= {} ({})", number(target), number(ceiling)),
            Self::None => String::new(),
        }
    }
}

/// One line.
#[derive(Debug, Serialize)]
pub struct Row {
    /// On which database; empty for the machine itself.
    pub database: &'static str,
    /// What.
    pub name: String,
    /// The median.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What is aimed at.
    pub goal: Goal,
    /// What the machine can do, and what that is.
    pub limit: Option<(f64, &'static str)>,
    /// Processors that others kept busy meanwhile.
    pub other_cores: Option<f64>,
}

impl Row {
    /// A figure, and nothing else known.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        let name = name.into();
        Self { database: "", name, value, unit, goal: Goal::None, limit: None, other_cores: None }
    }

    /// With what is aimed at.
    pub fn goal(self, goal: Goal) -> Self {
        Self { goal, ..self }
    }

    /// With what the machine can do.
    pub fn limit(self, value: f64, what: &'static str) -> Self {
        Self { limit: Some((value, what)), ..self }
    }

    /// With who else was at work.
    pub fn used(self, used: &[Used]) -> Self {
        let worst = used.iter().map(Used::other_cores).fold(0.0, f64::max);
        Self { other_cores: Some(worst), ..self }
    }

    fn cells(&self) -> [String; 7] {
        let ratio = self.limit.filter(|(limit, _)| *limit > 0.0);
        let ratio = ratio.map(|(limit, what)| match self.value / limit {
            ratio if ratio < 2.0 => format!("{:.0} % of {what}", ratio * 100.0),
            ratio => format!("{ratio:.1} x {what}"),
        });
        let others = self.other_cores.map(|cores| {
            let mark = if cores > DISTURBED { " !" } else { "" };
            format!("{cores:.2}{mark}")
        });
        [
            self.database.to_owned(),
            self.name.clone(),
            format!("{} {}", number(self.value), self.unit),
            self.goal.shown(),
            self.goal.reached(self.value).to_owned(),
            ratio.unwrap_or_default(),
            others.unwrap_or_default(),
        ]
    }
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    if !value.is_finite() || value == 0.0 || value.fract() == 0.0 && value.abs() < 10_000.0 {
        return format!("{value}");
    }
    let digits = value.abs().log10().floor() as i32;
    let places = usize::try_from(2 - digits).unwrap_or(0);
    let plain = format!("{value:.places$}");
    if digits < 4 {
        return plain;
    }
    // 123456 → 123,456: long numbers are read in groups.
    let (sign, digits) = plain.strip_prefix('-').map_or(("", plain.as_str()), |rest| ("-", rest));
    let mut grouped = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}")
}

const TITLES: [&str; 7] = [
    "database",
    "what",
    "measured",
    "target (floor)",
    "reached?",
    "of the machine's limit",
    "other cores",
];

/// Writes the table to standard output, as Markdown that reads well as it is.
pub fn print(rows: &[Row]) -> std::io::Result<()> {
    let cells: Vec<[String; 7]> = rows.iter().map(Row::cells).collect();
    let titles = TITLES.map(str::to_owned);
    let width = |column: usize| {
        let all = std::iter::once(&titles).chain(&cells).filter_map(|row| row.get(column));
        all.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let mut out = std::io::stdout().lock();
    let mut line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "| {} |", padded.collect::<Vec<_>>().join(" | "))
    };
    line(&titles)?;
    line(&widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>())?;
    cells.iter().try_for_each(|row| line(row))
}

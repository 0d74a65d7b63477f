//! What was measured: each figure beside what it is held against, as a table and as JSON.

use serde_json::{Value, json};

use crate::cli::terminal;

/// What a figure has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// One figure. Its bound is on the ratio when it has one, else on the value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure {
    scenario: &'static str,
    what: String,
    /// One for each round; the figure is their median.
    rounds: Vec<f64>,
    unit: &'static str,
    /// The ratio to what, round by round.
    against: Option<(&'static str, Vec<f64>)>,
    bound: Option<Bound>,
}

impl Figure {
    pub(super) fn new(
        scenario: &'static str,
        what: impl Into<String>,
        rounds: &[f64],
        unit: &'static str,
    ) -> Self {
        Self {
            scenario,
            what: what.into(),
            rounds: rounds.to_vec(),
            unit,
            against: None,
            bound: None,
        }
    }

    /// Puts the ratio to `other` beside it, which was measured in the same rounds.
    pub(super) fn against(mut self, name: &'static str, other: &[f64]) -> Self {
        let ratios = self.rounds.iter().zip(other).map(|(own, other)| own / other).collect();
        self.against = Some((name, ratios));
        self
    }

    pub(super) fn wanted(mut self, bound: Bound) -> Self {
        self.bound = Some(bound);
        self
    }

    fn value(&self) -> f64 {
        median(&self.rounds)
    }

    fn ratio(&self) -> Option<f64> {
        self.against.as_ref().map(|(_, ratios)| median(ratios))
    }

    /// Whether it is what it has to be; `None` when nothing is asked of it.
    fn holds(&self) -> Option<bool> {
        let judged = self.ratio().unwrap_or_else(|| self.value());
        self.bound.map(|bound| match bound {
            Bound::AtLeast(least) => judged >= least,
            Bound::AtMost(most) => judged <= most,
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "scenario": self.scenario, "what": self.what, "value": self.value(), "unit": self.unit,
            "rounds": self.rounds, "ratio": self.ratio(), "to": self.against.as_ref().map(|(name, _)| name),
            "wanted": self.bound.map(|bound| bound.to_string()), "holds": self.holds(),
        })
    }

    fn to_row(&self) -> [String; 6] {
        let ratio =
            self.against.as_ref().map(|(name, ratios)| format!("{:.2} × {name}", median(ratios)));
        [
            self.scenario.to_owned(),
            self.what.clone(),
            format!("{} {}", rounded(self.value()), self.unit),
            ratio.unwrap_or_default(),
            self.bound.map(|bound| bound.to_string()).unwrap_or_default(),
            match self.holds() {
                Some(true) => "yes".to_owned(),
                Some(false) => "NO".to_owned(),
                None => String::new(),
            },
        ]
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "≥ {least}"),
            Self::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

/// All figures of a run, in the order in which they were measured.
#[derive(Debug, Default)]
pub(super) struct Report {
    figures: Vec<Figure>,
}

impl Report {
    pub(super) fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// True while nothing was measured.
    pub(super) fn is_empty(&self) -> bool {
        self.figures.is_empty()
    }

    /// What does not hold.
    pub(super) fn misses(&self) -> Vec<String> {
        let missed = self.figures.iter().filter(|figure| figure.holds() == Some(false));
        missed.map(|figure| format!("{}, {}", figure.scenario, figure.what)).collect()
    }

    pub(super) fn to_json(&self, conditions: &Value) -> Value {
        let figures: Vec<Value> = self.figures.iter().map(Figure::to_json).collect();
        json!({ "conditions": conditions, "figures": figures })
    }

    pub(super) fn to_table(&self) -> String {
        let rows: Vec<_> = self.figures.iter().map(Figure::to_row).collect();
        terminal::table(["SCENARIO", "WHAT", "MEDIAN", "RATIO", "WANTED", "HOLDS"], &rows)
    }
}

/// The middle one; of an even number the lower middle one.
pub(super) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The smallest value that at least this part of all values does not exceed; NaN of none.
pub(super) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a list"
    )]
    let place = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(place.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// Four digits that count.
fn rounded(value: f64) -> String {
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        10.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_a_list() {
        let values = [3.0, 1.0, 2.0];
        assert_eq!(median(&values), 2.0);
        assert_eq!(quantile(&values, 0.99), 3.0);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((quantile(&hundred, 0.5), quantile(&hundred, 0.99)), (50.0, 99.0));
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_ratio_is_what_is_judged() {
        let figure = Figure::new("cycle", "64 agents", &[9000.0, 3000.0, 10_000.0], "cycles/s")
            .against("floor", &[3000.0, 3000.0, 4000.0])
            .wanted(Bound::AtLeast(2.5));
        assert_eq!(
            (figure.value(), figure.ratio(), figure.holds()),
            (9000.0, Some(2.5), Some(true))
        );
        let figure = Figure::new("wake", "p50", &[2.1], "ms").wanted(Bound::AtMost(2.0));
        assert_eq!(figure.holds(), Some(false));
        // What could not be measured does not hold.
        let figure = Figure::new("wake", "p50", &[], "ms").wanted(Bound::AtMost(2.0));
        assert_eq!(figure.holds(), Some(false));
    }
}

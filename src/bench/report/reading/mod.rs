//! What a run says, in plain words. Each rule looks at numbers and either has a sentence that they
//! back, with the rule beside it, or says nothing.

mod batching;
mod capacity;
mod dominance;
mod knob;
mod objectives;
mod scaling;
mod steadiness;
mod tail;
mod validity;

use super::figures::Source;

/// A sentence or two, and by which rule they were come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub topic: &'static str,
    pub claim: String,
    pub rule: &'static str,
}

type Rule = fn(Source<'_>) -> Vec<Finding>;

/// In the order in which they are read: whether to trust it, what it is, what to do.
const RULES: [Rule; 9] = [
    validity::read,
    dominance::read,
    objectives::read,
    tail::read,
    scaling::read,
    batching::read,
    steadiness::read,
    capacity::read,
    knob::read,
];

pub fn read(source: Source<'_>) -> Vec<Finding> {
    RULES.iter().flat_map(|rule| rule(source)).collect()
}

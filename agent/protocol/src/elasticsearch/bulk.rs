//! The items of bulk requests and of their answers, and the searches of an `msearch`.

use crate::observation::{BulkAction, BulkItems, BulkOutcome};

use super::json::{Kind, Scanner};

/// Items by action.
pub(super) type Actions = [u64; BulkAction::ALL.len()];

/// Operations by action in the body of a bulk request, which has to be whole. Each is one line that names
/// the action, and for all but `delete` a second with the document. `None` where a line names no action.
///
/// Source: the servers' `BulkRequestParser`, which also overlooks empty lines between operations.
pub(super) fn count_operations(body: &[u8]) -> Option<Actions> {
    let mut counts = Actions::default();
    let mut lines = body.split(|byte| *byte == b'\n');
    while let Some(line) = lines.next() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let action = action_of(line)?;
        if action != BulkAction::Delete {
            lines.next()?;
        }
        counts[action as usize] += 1;
    }
    Some(counts)
}

/// Searches in the body of an `msearch` request, which has to be whole: a line with the header, which may
/// be empty, and a line with the search. `None` where the lines are no pairs.
pub(super) fn count_searches(body: &[u8]) -> Option<u64> {
    let body = body.strip_suffix(b"\n").unwrap_or(body);
    let lines = 1 + memchr::memchr_iter(b'\n', body).count() as u64;
    lines.is_multiple_of(2).then_some(lines / 2)
}

/// The one key of `{"index":{"_id":"1"}}`.
pub(super) fn action_of(line: &[u8]) -> Option<BulkAction> {
    let mut action = None;
    Scanner::new(line).object(|value, key| {
        action = Some(key);
        value.skip()
    })?;
    named(action?)
}

fn named(action: &[u8]) -> Option<BulkAction> {
    let mut all = BulkAction::ALL.into_iter();
    all.find(|known| known.as_str().as_bytes() == action)
}

/// Items of a bulk request by action and outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    counts: [[u64; BulkOutcome::ALL.len()]; BulkAction::ALL.len()],
}

impl Tally {
    /// Reads one item of an answer: `{"index":{…,"status":201}}`. Where `errors` has said that there
    /// are none, the status needs no reading, but for a `delete`: that its document is not there is
    /// no error.
    pub(super) fn read_item(&mut self, item: &mut Scanner<'_>, errors: Option<bool>) -> Option<()> {
        const OK: u64 = 200;
        let mut read = None;
        item.object(|value, action| {
            let (action, mut status) = (named(action), None);
            if errors == Some(false) && action != Some(BulkAction::Delete) {
                read = action.map(|action| (action, OK));
                return value.skip();
            }
            value.object(|value, key| {
                if key == b"status" && value.peek()? == Kind::Number {
                    status = super::answer::number(value.word()?);
                    Some(())
                } else {
                    value.skip()
                }
            })?;
            read = action.zip(status);
            Some(())
        })?;
        // An item that is none of the API's ends the count: nothing behind it is trusted.
        let (action, status) = read?;
        self.add(action, outcome_of(status), 1);
        Some(())
    }

    /// Adds items that all came to the same end.
    pub(super) fn add(&mut self, action: BulkAction, outcome: BulkOutcome, count: u64) {
        self.counts[action as usize][outcome as usize] += count;
    }

    /// Adds those of the request's items that are not counted yet, by the outcome of each action.
    pub(super) fn add_rest(
        &mut self,
        requested: &Actions,
        outcome: impl Fn(BulkAction) -> BulkOutcome,
    ) {
        for action in BulkAction::ALL {
            let counted = self.counts[action as usize].iter().sum();
            let rest = requested[action as usize].saturating_sub(counted);
            self.add(action, outcome(action), rest);
        }
    }

    /// All items.
    pub(super) fn total(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// What is not 0.
    pub(super) fn items(&self) -> Vec<BulkItems> {
        let mut items = Vec::new();
        for action in BulkAction::ALL {
            for outcome in BulkOutcome::ALL {
                let count = self.counts[action as usize][outcome as usize];
                if count > 0 {
                    items.push(BulkItems {
                        action,
                        outcome,
                        count,
                    });
                }
            }
        }
        items
    }
}

/// The outcome that a status stands for.
pub(super) const fn outcome_of(status: u64) -> BulkOutcome {
    match status {
        0..300 => BulkOutcome::Succeeded,
        404 => BulkOutcome::NotFound,
        409 => BulkOutcome::Conflict,
        429 => BulkOutcome::Rejected,
        _ => BulkOutcome::Failed,
    }
}

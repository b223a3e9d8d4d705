//! Rows in pages, as the kernel side searches them.

use std::collections::HashMap;

use ebpf_common::unwind::{PAGE_BYTES, PAGE_SHIFT, UnwindRule, row, row_low, row_rule};

use super::{MAX_PAGES, MAX_ROWS, Statistics};

/// The rows of one page of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRows {
    /// Index of the first in [`UnwindTable::rows`].
    pub first: u32,
    /// How many: at least one, and the first begins where the page does.
    pub count: u32,
}

/// The unwind rows of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnwindTable {
    /// Address of the first page, in the file's own terms.
    pub start: u64,
    /// Pages of [`PAGE_BYTES`], one behind the other. Equal pages of one row share it.
    pub pages: Vec<PageRows>,
    /// Rows, sorted within a page; their rules are indexes into `rules`.
    pub rows: Vec<u32>,
    /// Different rules; the first one stands for code of which nothing is known.
    pub rules: Vec<UnwindRule>,
    /// What was met on the way.
    pub statistics: Statistics,
}

impl UnwindTable {
    /// The rule for an address of the file: where no row holds, the one of which nothing is known.
    #[must_use]
    pub fn rule_at(&self, address: u64) -> UnwindRule {
        let find = || {
            let inside = address.checked_sub(self.start)?;
            let page = self
                .pages
                .get(usize::try_from(inside >> PAGE_SHIFT).ok()?)?;
            let rows = self
                .rows
                .get(page.first as usize..)?
                .get(..page.count as usize)?;
            let low = (inside % PAGE_BYTES) as u32;
            let after = rows.partition_point(|row| row_low(*row) <= low);
            let row = rows.get(after.checked_sub(1)?)?;
            self.rules.get(row_rule(*row) as usize).copied()
        };
        find().unwrap_or_default()
    }
}

/// Takes rules in the order of their addresses.
pub(super) struct Builder {
    table: UnwindTable,
    known: HashMap<UnwindRule, u16>,
    /// The rule that holds where the last row begins, and after it.
    last: u16,
    /// A page that had a single row: others that have the same share it.
    single: Option<PageRows>,
    is_full: bool,
}

impl Builder {
    /// Of code that begins at `start`.
    pub(super) fn new(start: u64) -> Self {
        let nothing = UnwindRule::default();
        Self {
            table: UnwindTable {
                start: start & !(PAGE_BYTES - 1),
                rules: vec![nothing],
                ..UnwindTable::default()
            },
            known: HashMap::from([(nothing, 0)]),
            last: 0,
            single: None,
            is_full: false,
        }
    }

    /// From `address` on, `rule` holds. False at a limit.
    pub(super) fn add(&mut self, address: u64, rule: UnwindRule) -> bool {
        let rules = &mut self.table.rules;
        let next = u16::try_from(rules.len()).unwrap_or(u16::MAX);
        let index = *self.known.entry(rule).or_insert(next);
        if index == next {
            // The kernel side has room for half as many.
            if index == u16::MAX {
                self.known.remove(&rule);
                return false;
            }
            rules.push(rule);
        }
        self.change(address, index)
    }

    /// From `address` on, nothing is known until the next rule comes.
    pub(super) fn end_at(&mut self, address: u64) {
        // At a limit, the pages end here anyway.
        let _ = self.change(address, 0);
    }

    fn change(&mut self, address: u64, rule: u16) -> bool {
        if rule == self.last {
            return true;
        }
        let Some(inside) = address.checked_sub(self.table.start) else {
            return false;
        };
        let page = inside >> PAGE_SHIFT;
        if page >= MAX_PAGES as u64 || self.is_full {
            return false;
        }
        // Two rows, and the one that ends them all.
        self.is_full = self.table.rows.len() + 3 > MAX_ROWS;
        let rule = if self.is_full { 0 } else { rule };
        while self.table.pages.len() as u64 <= page {
            self.begin_page();
        }
        let low = (inside % PAGE_BYTES) as u16;
        let rows = &mut self.table.rows;
        match (rows.last_mut(), self.table.pages.last_mut()) {
            // Nothing lies between: this one replaces the last.
            (Some(last), Some(page)) if row_low(*last) == u32::from(low) => {
                *last = row(low, rule);
                let before = rows.len().checked_sub(2).and_then(|at| rows.get(at));
                if page.count > 1 && before.is_some_and(|row| row_rule(*row) == u32::from(rule)) {
                    rows.pop();
                    page.count -= 1;
                }
            }
            (_, Some(page)) => {
                rows.push(row(low, rule));
                page.count += 1;
            }
            (_, None) => return false,
        }
        self.last = rule;
        !self.is_full
    }

    /// Begins the next page with the rule that holds so far.
    fn begin_page(&mut self) {
        self.share_single();
        let first = self.table.rows.len() as u32;
        self.table.rows.push(row(0, self.last));
        self.table.pages.push(PageRows { first, count: 1 });
    }

    /// Lets the last page share its row, where it has one alone that an earlier page has as well.
    fn share_single(&mut self) {
        let Some(page) = self.table.pages.last_mut().filter(|page| page.count == 1) else {
            return;
        };
        let rows = &mut self.table.rows;
        match self.single {
            Some(single) if rows[single.first as usize] == rows[page.first as usize] => {
                if single.first != page.first {
                    *page = single;
                    rows.pop();
                }
            }
            _ => self.single = Some(*page),
        }
    }

    /// The finished table.
    pub(super) fn finish(mut self, statistics: Statistics) -> UnwindTable {
        self.share_single();
        self.table.statistics = statistics;
        self.table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::unwind::cfa_kind;
    use proptest::prelude::*;

    fn rule(number: u8) -> UnwindRule {
        UnwindRule::new(cfa_kind::SP, i32::from(number), 0, 0, 0)
    }

    proptest! {
        #[test]
        fn a_table_answers_as_the_list_of_changes_does(
            start in 0..1_u64 << 40,
            changes in prop::collection::vec((0..5000_u64, 0..4_u8), 1..200),
            probes in prop::collection::vec(0..400_000_u64, 50),
        ) {
            let mut builder = Builder::new(start);
            let mut list = Vec::new();
            let mut address = start;
            for (step, number) in changes {
                // Rule 0 says that nothing is known.
                let rule = if number == 0 { UnwindRule::default() } else { rule(number) };
                prop_assert!(builder.add(address, rule));
                list.push((address, rule));
                // Changes at one address, close by, and pages apart.
                address += if step < 1000 { step % 3 } else { step - 1000 };
            }
            builder.end_at(address);
            list.push((address, UnwindRule::default()));
            let table = builder.finish(Statistics::default());
            let near = list.iter().flat_map(|(at, _)| [at.saturating_sub(1), *at, at + 1]);
            for probe in probes.iter().map(|probe| start + probe).chain(near) {
                let after = list.partition_point(|(at, _)| *at <= probe);
                let expected = after.checked_sub(1).map_or(UnwindRule::default(), |at| list[at].1);
                prop_assert_eq!(table.rule_at(probe), expected, "{:#x}", probe);
            }
            for page in &table.pages {
                let rows = &table.rows[page.first as usize..][..page.count as usize];
                prop_assert_eq!(row_low(rows[0]), 0);
                prop_assert!(rows.windows(2).all(|pair| row_low(pair[0]) < row_low(pair[1])));
            }
        }
    }

    #[test]
    fn at_the_limit_nothing_is_known_of_what_follows() {
        let mut builder = Builder::new(0);
        let mut address = 0;
        while builder.add(address, rule((address / 2 % 2) as u8 + 1)) {
            address += 2;
        }
        let table = builder.finish(Statistics::default());
        assert!(table.rows.len() <= MAX_ROWS && table.rows.len() + 8 > MAX_ROWS);
        assert_eq!(table.rule_at(address - 1).cfa_kind(), cfa_kind::SP);
        assert_eq!(table.rule_at(address), UnwindRule::default());
        assert_eq!(table.rule_at(address + 100), UnwindRule::default());
    }

    #[test]
    fn code_that_lies_too_far_off_is_left_out() {
        let mut builder = Builder::new(0);
        assert!(builder.add(0, rule(1)));
        assert!(!builder.add(1 << 40, rule(2)));
        let table = builder.finish(Statistics::default());
        assert!(table.pages.len() <= 1);
    }
}

//! The unwind tables of files in the kernel's maps, each once however many files hold the same.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::Range;

use ebpf_common::unwind::{
    BLOCK_ROWS, MAX_BLOCKS, MAX_PAGES, MAX_RULES, RowBlock, UnwindRule, page, row, row_low,
    row_rule,
};
use profile::unwind::{UnwindSections, UnwindTable};

use super::pool::Pool;
use crate::probes::unwind_maps::UnwindMaps;

/// Blocks that are written in one call: 256 KiB.
const BLOCKS_A_CALL: usize = 64;

/// Tells tables with the same content: hash of what they are made from.
pub(super) type TableKey = u64;

/// Where the kernel has a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Address of the first page, in the file's own terms.
    pub(super) start: u64,
    /// Index of the first page in the map.
    pub(super) first_page: u32,
    /// Pages; 0 for a file without rows.
    pub(super) pages: u32,
}

#[derive(Debug)]
struct Loaded {
    place: Place,
    blocks: Vec<u32>,
    /// Process images that have it mapped.
    users: usize,
    /// Value of the clock when it was last wanted.
    wanted: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tables {
    loaded: HashMap<TableKey, Loaded>,
    rules: HashMap<UnwindRule, u16>,
    blocks: Pool,
    pages: Pool,
    hasher: RandomState,
    /// Counts what was wanted, for telling what was not for longest.
    clock: u64,
    /// Given up, and perhaps still read by a program that runs: free from the next tick on.
    resting: Vec<Loaded>,
}

/// Why a table is not in the kernel.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// There is no room; other tables have to go first.
    #[error("no room for a file's rows")]
    Full,
    /// It would take more than three quarters of all the room, from everything else that runs.
    #[error("a file has rows for more than three quarters of the room")]
    TooLarge,
    /// The kernel refused.
    #[error("the kernel did not take a file's rows: {0}")]
    Kernel(#[from] io::Error),
}

impl Tables {
    pub(super) fn new() -> Self {
        Self {
            loaded: HashMap::new(),
            // The first rule stands for code of which nothing is known: zeroes, as the map has them.
            rules: HashMap::from([(UnwindRule::default(), 0)]),
            blocks: Pool::new(MAX_BLOCKS),
            pages: Pool::new(MAX_PAGES),
            hasher: RandomState::new(),
            clock: 0,
            resting: Vec::new(),
        }
    }

    /// Key of the table that would be built from `sections`. Equal build ids are not relied upon:
    /// a file can claim any, and wrong rows would follow for every other file that has it.
    pub(super) fn key(&self, sections: &UnwindSections<'_>) -> TableKey {
        let content: Vec<_> = sections.content().collect();
        let layout: Vec<_> = sections.layout().collect();
        self.hasher.hash_one((content, layout))
    }

    /// Is it there?
    pub(super) fn contains(&self, key: TableKey) -> bool {
        self.loaded.contains_key(&key)
    }

    /// One more process image uses the table: where it is. `None` where it is not there any more.
    pub(super) fn acquire(&mut self, key: TableKey) -> Option<Place> {
        self.clock += 1;
        let loaded = self.loaded.get_mut(&key)?;
        loaded.users += 1;
        loaded.wanted = self.clock;
        Some(loaded.place)
    }

    /// One less does. The table stays for as long as there is room.
    pub(super) fn release(&mut self, key: TableKey) {
        if let Some(loaded) = self.loaded.get_mut(&key) {
            loaded.users = loaded.users.saturating_sub(1);
        }
    }

    /// Puts a table into the kernel.
    ///
    /// # Errors
    /// See [`LoadError`]; the table is not there then.
    pub(super) fn load(
        &mut self,
        maps: &mut UnwindMaps,
        key: TableKey,
        table: &UnwindTable,
    ) -> Result<(), LoadError> {
        if self.contains(key) {
            return Ok(());
        }
        let rules = self.load_rules(maps, &table.rules)?;
        let plan = Plan::new(table);
        let count = u32::try_from(plan.blocks).unwrap_or(u32::MAX);
        if plan.blocks > MAX_BLOCKS * 3 / 4 || plan.pages.len() > MAX_PAGES * 3 / 4 {
            return Err(LoadError::TooLarge);
        }
        if self.blocks.available() < count {
            return Err(LoadError::Full);
        }
        let pages = self.take_pages(plan.pages.len() as u32)?;
        let blocks: Vec<u32> = (0..count)
            .filter_map(|_| self.blocks.take(1))
            .map(|range| range.start)
            .collect();
        let loaded = Loaded {
            place: Place {
                start: table.start,
                first_page: pages.start,
                pages: pages.end - pages.start,
            },
            blocks,
            users: 0,
            wanted: self.clock,
        };
        let written = write(maps, &plan, table, &rules, &loaded);
        if let Err(error) = written {
            self.resting.push(loaded);
            return Err(error.into());
        }
        self.loaded.insert(key, loaded);
        Ok(())
    }

    /// Lets go of what was given up before the last call of this.
    pub(super) fn tick(&mut self) {
        for loaded in std::mem::take(&mut self.resting) {
            for block in loaded.blocks {
                self.blocks.give_back(block..block + 1);
            }
            let place = loaded.place;
            self.pages
                .give_back(place.first_page..place.first_page + place.pages);
        }
    }

    /// Gives up the table that nobody uses and that was wanted longest ago. Its room is free after
    /// the next tick. False where there is none.
    pub(super) fn give_up_one(&mut self) -> bool {
        let unused = self.loaded.iter().filter(|(_, loaded)| loaded.users == 0);
        let Some(key) = unused
            .min_by_key(|(_, loaded)| loaded.wanted)
            .map(|(key, _)| *key)
        else {
            return false;
        };
        self.resting.extend(self.loaded.remove(&key));
        true
    }

    /// Bytes of rows in use.
    pub(super) fn row_bytes(&self) -> usize {
        (MAX_BLOCKS - self.blocks.available() as usize) * size_of::<RowBlock>()
    }

    fn take_pages(&mut self, pages: u32) -> Result<Range<u32>, LoadError> {
        if pages == 0 {
            return Ok(0..0);
        }
        self.pages.take(pages).ok_or(LoadError::Full)
    }

    /// Index in the kernel's map of each of a table's rules. Rules never leave: a host's
    /// executables have some 5,000 different ones. Those that find no room count as unknown.
    fn load_rules(&mut self, maps: &UnwindMaps, rules: &[UnwindRule]) -> io::Result<Vec<u16>> {
        let first = self.rules.len();
        let mut new = Vec::new();
        let indexes = rules
            .iter()
            .map(|rule| {
                if let Some(index) = self.rules.get(rule) {
                    return *index;
                }
                let next = self.rules.len();
                if next >= MAX_RULES {
                    return 0;
                }
                let index = next as u16;
                self.rules.insert(*rule, index);
                new.push(*rule);
                index
            })
            .collect();
        if let Err(error) = maps.set_rules(first as u32, &new) {
            self.rules.retain(|_, index| usize::from(*index) < first);
            return Err(error);
        }
        Ok(indexes)
    }
}

/// Where a table's pages have their rows, but for which blocks those are.
struct Plan {
    pages: Vec<PlannedPage>,
    blocks: usize,
}

/// A page's rows in their block.
#[derive(Clone, Copy)]
struct PlannedPage {
    block: usize,
    first: usize,
    count: u32,
    /// The page before has the same rows, and these are those.
    is_shared: bool,
}

impl Plan {
    fn new(table: &UnwindTable) -> Self {
        let mut blocks = 0;
        let mut used = BLOCK_ROWS;
        let mut last: Option<(u32, PlannedPage)> = None;
        let pages = table.pages.iter().map(|rows| {
            if let Some((first, planned)) = last
                && first == rows.first
                && rows.count == 1
            {
                return PlannedPage {
                    is_shared: true,
                    ..planned
                };
            }
            let count = rows.count as usize;
            if used + count > BLOCK_ROWS {
                blocks += 1;
                used = 0;
            }
            let planned = PlannedPage {
                block: blocks - 1,
                first: used,
                count: rows.count,
                is_shared: false,
            };
            used += count;
            last = Some((rows.first, planned));
            planned
        });
        let pages = pages.collect();
        Self { pages, blocks }
    }

    /// Makes the blocks one after the other, each in the same room: a table can have millions of rows.
    fn each_block(
        &self,
        table: &UnwindTable,
        rules: &[u16],
        mut done: impl FnMut(usize, &RowBlock) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut block = [0; BLOCK_ROWS];
        let mut number = 0;
        let planned = self.pages.iter().zip(&table.pages);
        for (planned, rows) in planned.filter(|(planned, _)| !planned.is_shared) {
            if planned.block != number {
                done(number, &block)?;
                number = planned.block;
                block = [0; BLOCK_ROWS];
            }
            let source = &table.rows[rows.first as usize..][..rows.count as usize];
            for (target, source) in block[planned.first..].iter_mut().zip(source) {
                let rule = rules.get(row_rule(*source) as usize).copied();
                *target = row(row_low(*source) as u16, rule.unwrap_or_default());
            }
        }
        if self.blocks > 0 {
            done(number, &block)?;
        }
        Ok(())
    }
}

fn write(
    maps: &mut UnwindMaps,
    plan: &Plan,
    table: &UnwindTable,
    rules: &[u16],
    loaded: &Loaded,
) -> io::Result<()> {
    let mut filled = Vec::with_capacity(BLOCKS_A_CALL);
    plan.each_block(table, rules, |number, block| {
        filled.push(*block);
        if filled.len() == BLOCKS_A_CALL || number + 1 == plan.blocks {
            let indexes = &loaded.blocks[number + 1 - filled.len()..=number];
            maps.set_rows(indexes, &filled)?;
            filled.clear();
        }
        Ok(())
    })?;
    let pages: Vec<_> = plan
        .pages
        .iter()
        .map(|planned| {
            let block = loaded.blocks[planned.block] as usize;
            page((block * BLOCK_ROWS + planned.first) as u32, planned.count)
        })
        .collect();
    maps.set_pages(loaded.place.first_page, &pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::unwind::{PAGE_BYTES, page_block, page_first, page_last};

    #[test]
    fn packed_rows_lead_to_the_same_rules() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let sections = UnwindSections::of_elf(&*bytes).unwrap();
        let table = UnwindTable::build(&sections);
        assert!(table.rows.len() > 10_000);
        let rules: Vec<u16> = (0..table.rules.len() as u16).collect();
        let plan = Plan::new(&table);
        // Blocks are nearly full.
        assert!(plan.blocks * BLOCK_ROWS < table.rows.len() * 11 / 10 + BLOCK_ROWS);
        let mut blocks = Vec::new();
        let collected = plan.each_block(&table, &rules, |number, block| {
            assert_eq!(number, blocks.len());
            blocks.push(*block);
            Ok(())
        });
        assert!(collected.is_ok() && blocks.len() == plan.blocks);
        for (index, planned) in plan.pages.iter().enumerate() {
            let first = planned.block * BLOCK_ROWS + planned.first;
            let entry = page(first as u32, planned.count);
            let rows = &blocks[page_block(entry) as usize][page_first(entry) as usize..]
                [..=page_last(entry) as usize];
            for low in [0, 1, 511, 1023] {
                let after = rows.partition_point(|row| row_low(*row) <= low);
                let rule = table.rules[row_rule(rows[after - 1]) as usize];
                let address = table.start + index as u64 * PAGE_BYTES + u64::from(low);
                assert_eq!(rule, table.rule_at(address), "{address:#x}");
            }
        }
    }
}

//! Functions' descriptions in call frame information, evaluated in the order of their addresses.

use std::collections::HashMap;

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, DebugFrame, EhFrame, LittleEndian,
    UnwindContext, UnwindSection,
};

use super::elf::{CodeSegment, UnwindSections};
use super::rule::{self, Reader, Storage};
use super::table::{Builder, UnwindTable};
use super::{Statistics, go};
use crate::go::GoFunction;

/// Common entries that are kept parsed: files have a handful.
const MAX_COMMON_ENTRIES: usize = 256;

/// What functions are aligned to, bytes.
const ALIGNMENT: u64 = 16;

/// A function's description.
#[derive(Clone, Copy)]
struct Function {
    start: u64,
    end: u64,
    source: Source,
    /// Offset of its entry in the section, or its index in Go's table.
    entry: usize,
}

/// What describes a function: of several, the first stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// `.eh_frame`, which is kept correct for exceptions.
    EhFrame,
    /// Go's own table, which knows where stacks end, as `.debug_frame` does not.
    Go,
    /// `.debug_frame`
    DebugFrame,
}

impl UnwindTable {
    /// The rows of a file's code.
    #[must_use]
    pub fn build(sections: &UnwindSections<'_>) -> Self {
        let bases = sections.bases();
        let eh_frame = EhFrame::new(sections.eh_frame.bytes, LittleEndian);
        let mut debug_frame = DebugFrame::new(sections.debug_frame.bytes, LittleEndian);
        debug_frame.set_address_size(8);
        let mut eh_frame = Evaluation::new(eh_frame, &bases, sections.eh_frame.bytes.len());
        let mut debug_frame =
            Evaluation::new(debug_frame, &bases, sections.debug_frame.bytes.len());

        let mut functions = Vec::new();
        eh_frame.list(&mut functions, sections.code(), Source::EhFrame);
        debug_frame.list(&mut functions, sections.code(), Source::DebugFrame);
        if let Some(table) = &sections.go {
            functions.extend((0..table.len()).filter_map(|entry| {
                let function = table.get(entry)?;
                Some(Function {
                    start: function.start - u64::from(go::is_signal_return(function)),
                    end: function.end,
                    source: Source::Go,
                    entry,
                })
            }));
        }
        functions.sort_unstable_by_key(|function| (function.start, function.source));

        let mut builder = Builder::new(functions.first().map_or(0, |first| first.start));
        let mut statistics = Statistics {
            functions: functions.len(),
            ..Statistics::default()
        };
        // Rules that may still be read: functions of a damaged table could share them all.
        let mut go_budget = sections.go.map_or(0, |table| table.bytes().len());
        let mut from = 0;
        for (index, function) in functions.iter().enumerate() {
            // What an earlier description said stands, and the next one begins where it begins.
            let next = functions.get(index + 1).map_or(u64::MAX, |next| next.start);
            let range = (function.start.max(from), function.end.min(next));
            if range.0 >= range.1 {
                continue;
            }
            let evaluated = match function.source {
                Source::EhFrame => {
                    eh_frame.evaluate(function, range, &mut builder, &mut statistics)
                }
                Source::DebugFrame => {
                    debug_frame.evaluate(function, range, &mut builder, &mut statistics)
                }
                Source::Go => (sections.go.as_ref())
                    .and_then(|table| table.get(function.entry))
                    .and_then(|function| {
                        go_rows(
                            function,
                            range,
                            &mut go_budget,
                            &mut builder,
                            &mut statistics,
                        )
                    }),
            };
            if evaluated.is_none() {
                statistics.unreadable += 1;
            }
            // Padding between functions takes no row of its own.
            if next.saturating_sub(range.1) >= ALIGNMENT {
                builder.end_at(range.1);
            }
            from = range.1;
        }
        builder.finish(statistics)
    }
}

/// Adds the rows of a function of Go's within `range`; `None` at a limit.
fn go_rows(
    function: GoFunction<'_, '_>,
    range: (u64, u64),
    budget: &mut usize,
    builder: &mut Builder,
    statistics: &mut Statistics,
) -> Option<()> {
    for (start, rule) in go::rules(function) {
        *budget = budget.checked_sub(1).or_else(|| {
            statistics.truncated = true;
            None
        })?;
        if start >= range.1 {
            break;
        }
        if rule == rule::UNSUPPORTED {
            statistics.unsupported += 1;
        }
        if !builder.add(start.max(range.0), rule) {
            statistics.truncated = true;
            return None;
        }
    }
    Some(())
}

/// One section as it is evaluated.
struct Evaluation<'data, 'bases, S: UnwindSection<Reader<'data>>> {
    section: S,
    bases: &'bases BaseAddresses,
    common: HashMap<usize, CommonInformationEntry<Reader<'data>>>,
    context: Box<UnwindContext<usize, Storage>>,
    /// Bytes of instructions that may still be executed. Each function executes its common
    /// entry's as well, so that a file could ask for the square of its length.
    budget: usize,
}

impl<'data, 'bases, S> Evaluation<'data, 'bases, S>
where
    S: UnwindSection<Reader<'data>>,
    S::Offset: gimli::UnwindOffset<usize>,
{
    fn new(section: S, bases: &'bases BaseAddresses, len: usize) -> Self {
        Self {
            section,
            bases,
            common: HashMap::new(),
            context: Box::new(UnwindContext::new_in()),
            budget: len.saturating_mul(4),
        }
    }

    /// Adds the functions that lie in `code`. What follows an entry that cannot be read is left
    /// out: its length may be wrong as well.
    fn list(&mut self, functions: &mut Vec<Function>, code: &[CodeSegment], source: Source) {
        let section = self.section.clone();
        let mut entries = section.entries(self.bases);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(partial) = entry else {
                continue;
            };
            let Ok(parsed) = partial.parse(|_, _, offset| self.common(offset)) else {
                continue;
            };
            let (start, end) = (parsed.initial_address(), parsed.end_address());
            // The segment that begins last at or below it.
            let segment = code.partition_point(|segment| segment.address <= start);
            let Some(segment) = segment.checked_sub(1).and_then(|index| code.get(index)) else {
                continue;
            };
            let end = end.min(segment.end);
            // The linker leaves a start of 0 where it removed the function.
            if start < end && start != 0 {
                functions.push(Function {
                    start,
                    end,
                    entry: parsed.offset(),
                    source,
                });
            }
        }
    }

    fn common(
        &mut self,
        offset: S::Offset,
    ) -> gimli::Result<CommonInformationEntry<Reader<'data>>> {
        let key = gimli::UnwindOffset::into(offset);
        if let Some(known) = self.common.get(&key) {
            return Ok(known.clone());
        }
        let parsed = self.section.cie_from_offset(self.bases, offset)?;
        if self.common.len() >= MAX_COMMON_ENTRIES {
            self.common.clear();
        }
        self.common.insert(key, parsed.clone());
        Ok(parsed)
    }

    /// Adds the rows of a function within `range`; `None` where its description ends early.
    fn evaluate(
        &mut self,
        function: &Function,
        range: (u64, u64),
        builder: &mut Builder,
        statistics: &mut Statistics,
    ) -> Option<()> {
        let section = self.section.clone();
        let partial = section
            .partial_fde_from_offset(self.bases, S::Offset::from(function.entry))
            .ok()?;
        let parsed = partial.parse(|_, _, offset| self.common(offset)).ok()?;
        let cost = parsed.cie().entry_len() + parsed.entry_len();
        self.budget = self.budget.checked_sub(cost).or_else(|| {
            statistics.truncated = true;
            None
        })?;
        let is_signal_trampoline = parsed.is_signal_trampoline();
        let mut rows = parsed.rows(&section, self.bases, &mut self.context).ok()?;
        while let Some(row) = rows.next_row().ok()? {
            let start = row.start_address().max(range.0);
            if start >= row.end_address() || start >= range.1 {
                continue;
            }
            let rule = rule::of_row(&section, row, is_signal_trampoline);
            if rule == rule::UNSUPPORTED {
                statistics.unsupported += 1;
            }
            if !builder.add(start, rule) {
                statistics.truncated = true;
                return None;
            }
        }
        Some(())
    }
}

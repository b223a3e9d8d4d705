//! Functions' descriptions in call frame information, evaluated in the order of their addresses.

use std::collections::HashMap;

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, DebugFrame, EhFrame, LittleEndian,
    UnwindContext, UnwindSection,
};

use super::Statistics;
use super::elf::{CodeSegment, UnwindSections};
use super::rule::{self, Reader, Storage};
use super::table::{Builder, UnwindTable};

/// Common entries that are kept parsed: files have a handful.
const MAX_COMMON_ENTRIES: usize = 256;

/// What functions are aligned to, bytes.
const ALIGNMENT: u64 = 16;

/// A function's description.
#[derive(Clone, Copy)]
struct Function {
    start: u64,
    end: u64,
    /// Offset of its entry in the section.
    entry: usize,
    /// `.debug_frame` gives way to `.eh_frame`, which is kept correct for exceptions.
    is_debug: bool,
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
        eh_frame.list(&mut functions, sections.code(), false);
        debug_frame.list(&mut functions, sections.code(), true);
        functions.sort_unstable_by_key(|function| (function.start, function.is_debug));

        let mut builder = Builder::new(functions.first().map_or(0, |first| first.start));
        let mut statistics = Statistics {
            functions: functions.len(),
            ..Statistics::default()
        };
        let mut from = 0;
        for (index, function) in functions.iter().enumerate() {
            // What an earlier description said stands, and the next one begins where it begins.
            let next = functions.get(index + 1).map_or(u64::MAX, |next| next.start);
            let range = (function.start.max(from), function.end.min(next));
            if range.0 >= range.1 {
                continue;
            }
            let evaluated = if function.is_debug {
                debug_frame.evaluate(function, range, &mut builder, &mut statistics)
            } else {
                eh_frame.evaluate(function, range, &mut builder, &mut statistics)
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
    fn list(&mut self, functions: &mut Vec<Function>, code: &[CodeSegment], is_debug: bool) {
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
                    is_debug,
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

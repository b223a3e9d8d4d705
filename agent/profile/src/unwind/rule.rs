//! From DWARF's rules of a row to the kernel side's.

use ebpf_common::unwind::{UnwindRule, cfa_kind, fp_kind};
use gimli::{
    CfaRule, EndianSlice, Expression, LittleEndian, Operation, Register, RegisterRule,
    UnwindContextStorage, UnwindExpression, UnwindSection, UnwindTableRow, X86_64,
};

/// How sections are read.
pub(super) type Reader<'data> = EndianSlice<'data, LittleEndian>;

/// Room for the registers of a row and for rows that are remembered. gimli's own has 192 registers,
/// whose copying took most of the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Storage;

impl UnwindContextStorage<usize> for Storage {
    type Rules = [(Register, RegisterRule<usize>); 24];
    type Stack = [UnwindTableRow<usize, Self>; 8];
}

/// How DWARF expressions are encoded in a call frame's rules.
const ENCODING: gimli::Encoding = gimli::Encoding {
    format: gimli::Format::Dwarf32,
    version: 4,
    address_size: 8,
};

/// Longest expression that is looked at: a PLT's has nine operations.
const MAX_OPERATIONS: usize = 9;

/// The rule of a row; [`cfa_kind::UNSUPPORTED`] for what is not followed.
pub(super) fn of_row<'data, S: UnwindSection<Reader<'data>>>(
    section: &S,
    row: &UnwindTableRow<usize, Storage>,
    is_signal_trampoline: bool,
) -> UnwindRule {
    convert(section, row, is_signal_trampoline).unwrap_or(UNSUPPORTED)
}

/// What is not followed.
pub(super) const UNSUPPORTED: UnwindRule = UnwindRule::new(cfa_kind::UNSUPPORTED, 0, 0, 0, 0);

fn convert<'data, S: UnwindSection<Reader<'data>>>(
    section: &S,
    row: &UnwindTableRow<usize, Storage>,
    is_signal_trampoline: bool,
) -> Option<UnwindRule> {
    let expression = |expression: &UnwindExpression<usize>| -> Option<Value> {
        evaluate(expression.get(section).ok()?)
    };
    match row.register(X86_64::RA)? {
        RegisterRule::Undefined => {
            return Some(UnwindRule::new(cfa_kind::OUTERMOST, 0, 0, 0, 0));
        }
        RegisterRule::Offset(-8) => {}
        RegisterRule::Expression(at) if is_signal_trampoline => {
            // `ucontext_t` at `rsp`: where every Linux on x86-64 has it.
            let CfaRule::Expression(cfa) = row.cfa() else {
                return None;
            };
            let is_ucontext = expression(&at)? == Value::Plus(X86_64::RSP, 168)
                && expression(cfa)? == Value::Slot(X86_64::RSP, 160, 0);
            return is_ucontext.then_some(UnwindRule::new(cfa_kind::SIGNAL, 0, 0, 0, 0));
        }
        _ => return None,
    }
    let (fp, fp_offset) = match row.register(X86_64::RBP) {
        None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => (fp_kind::SAME, 0),
        Some(RegisterRule::Offset(offset)) => (fp_kind::AT_CFA, offset),
        Some(RegisterRule::Expression(at)) => match expression(&at)? {
            Value::Plus(X86_64::RBP, offset) => (fp_kind::AT_FP, offset),
            _ => return None,
        },
        _ => return None,
    };
    let fp_offset = i16::try_from(fp_offset).ok()?;
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => Value::Plus(*register, *offset),
        CfaRule::Expression(cfa) => expression(cfa)?,
    };
    let rule = |kind, offset, extra| {
        let offset = i32::try_from(offset).ok()?;
        Some(UnwindRule::new(kind, offset, fp, fp_offset, extra))
    };
    match cfa {
        Value::Plus(X86_64::RSP, offset) => rule(cfa_kind::SP, offset, 0),
        Value::Plus(X86_64::RBP, offset) => rule(cfa_kind::FP, offset, 0),
        Value::Plus(Register(number @ 0..16), offset) => {
            rule(cfa_kind::REGISTER, offset, number as u8)
        }
        Value::Slot(X86_64::RSP, offset, plus) => rule(cfa_kind::SP_SLOT, offset, plus as u8),
        Value::Slot(X86_64::RBP, offset, plus) => rule(cfa_kind::FP_SLOT, offset, plus as u8),
        Value::Plt { offset, threshold } => rule(cfa_kind::PLT, offset, threshold),
        Value::Plus(..) | Value::Slot(..) => None,
    }
}

/// What the expressions that compilers and linkers emit come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// A register plus a number.
    Plus(Register, i64),
    /// The word at a register plus a number, plus a small number.
    Slot(Register, i64, i8),
    /// `rsp + offset + ((rip & 15) >= threshold) * 8`
    Plt { offset: i64, threshold: u8 },
}

fn evaluate(expression: Expression<Reader<'_>>) -> Option<Value> {
    let mut operations = Vec::with_capacity(MAX_OPERATIONS);
    let mut iterator = expression.operations(ENCODING);
    while let Some(operation) = iterator.next().ok()? {
        if operations.len() == MAX_OPERATIONS {
            return None;
        }
        operations.push(operation);
    }
    let register = |operation: &Operation<Reader<'_>>| match operation {
        Operation::RegisterOffset {
            register, offset, ..
        } => Some((*register, *offset)),
        _ => None,
    };
    let (first, rest) = operations.split_first()?;
    let (base, offset) = register(first)?;
    match rest {
        [] => Some(Value::Plus(base, offset)),
        [Operation::Deref { size: 8, .. }] => Some(Value::Slot(base, offset, 0)),
        [
            Operation::Deref { size: 8, .. },
            Operation::PlusConstant { value },
        ] => Some(Value::Slot(base, offset, i8::try_from(*value).ok()?)),
        [
            rip,
            Operation::UnsignedConstant { value: 15 },
            Operation::And,
            Operation::UnsignedConstant { value: threshold },
            Operation::Ge,
            Operation::UnsignedConstant { value: 3 },
            Operation::Shl,
            Operation::Plus,
        ] if base == X86_64::RSP && register(rip)? == (X86_64::RA, 0) => Some(Value::Plt {
            offset,
            threshold: u8::try_from(*threshold).ok()?,
        }),
        _ => None,
    }
}

//! V8's functions: where each version keeps what the kernel side reads, and what a function says of
//! itself.
//!
//! Everything is read from the memory of a process that runs on meanwhile, and whose collector moves
//! things. So nothing is believed that does not fit: a name that is not known is better than a wrong
//! one.

mod file;
mod function;

use crate::python::PYTHON_FRAME;

/// These bits in an address of a stack: the function that the frame before belongs to, by the number
/// in the other bits.
pub const SCRIPT_FRAME: u64 = PYTHON_FRAME | 1 << 62;

pub use file::{V8, V8Error};
pub use function::{FunctionError, read_function};

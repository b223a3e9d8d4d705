//! The lines of a bulk request.

use super::json::Scanner;

/// Operations in the body of a bulk request, which has to be whole. Each is one line that names the
/// action, and for all but `delete` a second with the document. `None` where a line names no action.
///
/// Source: the servers' `BulkRequestParser`, which also overlooks empty lines between operations.
pub(super) fn count_operations(body: &[u8]) -> Option<u64> {
    let mut count = 0;
    let mut lines = body.split(|byte| *byte == b'\n');
    while let Some(line) = lines.next() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let has_source = match action(line)? {
            b"delete" => false,
            b"create" | b"index" | b"update" => true,
            _ => return None,
        };
        if has_source {
            lines.next()?;
        }
        count += 1;
    }
    Some(count)
}

/// The one key of `{"index":{"_id":"1"}}`.
fn action(line: &[u8]) -> Option<&[u8]> {
    let mut action = None;
    Scanner::new(line).object(|value, key| {
        action = Some(key);
        value.skip()
    })?;
    action
}

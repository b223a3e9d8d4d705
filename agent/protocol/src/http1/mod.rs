//! HTTP/1.0 and HTTP/1.1 (RFC 9110, RFC 9112): heads, bodies, and where one message ends.

pub(crate) mod body;
pub(crate) mod chunked;
pub(crate) mod decoder;
pub(crate) mod fields;
pub(crate) mod head;
pub(crate) mod method;

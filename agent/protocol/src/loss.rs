//! What a connection saw and could not report, by reason.

/// Why bytes or messages are missing from the observations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReason {
    /// Bytes of a connection that has shown no message of HTTP/1 yet.
    NotHttp,
    /// Bytes where a message should have begun, and none did.
    Garbage,
    /// Bytes that passed unseen where a message should have begun: lost records, or a message that
    /// began behind the captured part of a segment.
    Gap,
    /// A head whose end was not captured, or that is too long.
    HeadCut,
    /// A chunked body whose framing is not what RFC 9112 says.
    ChunkInvalid,
    /// A response to a request that went unseen, or that can't be told from others.
    OrphanResponse,
    /// A response to a request that was sent before the connection was first seen.
    BeforeAgent,
    /// What looked like a head inside a body whose end is unknown.
    AmbiguousHead,
    /// The queue of requests in flight was full.
    QueueFull,
}

impl LossReason {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::NotHttp,
        Self::Garbage,
        Self::Gap,
        Self::HeadCut,
        Self::ChunkInvalid,
        Self::OrphanResponse,
        Self::BeforeAgent,
        Self::AmbiguousHead,
        Self::QueueFull,
    ];

    /// The value of the `reason` label of `telltale_losses_total`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotHttp => "not_http",
            Self::Garbage => "garbage",
            Self::Gap => "gap",
            Self::HeadCut => "head_cut",
            Self::ChunkInvalid => "chunk_invalid",
            Self::OrphanResponse => "orphan_response",
            Self::BeforeAgent => "before_agent",
            Self::AmbiguousHead => "ambiguous_head",
            Self::QueueFull => "queue_full",
        }
    }
}

/// What was lost for one reason since the last time it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Why.
    pub reason: LossReason,
    /// How often.
    pub count: u64,
    /// How many bytes; 0 where the loss is not one of bytes.
    pub bytes: u64,
}

/// Counters, one a reason.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    counts: [(u64, u64); LossReason::ALL.len()],
    any: bool,
}

impl Losses {
    pub(crate) fn count(&mut self, reason: LossReason, bytes: u64) {
        let (count, sum) = &mut self.counts[reason as usize];
        *count += 1;
        *sum = sum.saturating_add(bytes);
        self.any = true;
    }

    /// Adds bytes to a loss that was counted already.
    pub(crate) fn extend(&mut self, reason: LossReason, bytes: u64) {
        let (_, sum) = &mut self.counts[reason as usize];
        *sum = sum.saturating_add(bytes);
        self.any = true;
    }

    /// Takes the next loss out.
    pub(crate) fn poll(&mut self) -> Option<Loss> {
        if !self.any {
            return None;
        }
        for reason in LossReason::ALL {
            let (count, bytes) = std::mem::take(&mut self.counts[reason as usize]);
            if count != 0 || bytes != 0 {
                return Some(Loss {
                    reason,
                    count,
                    bytes,
                });
            }
        }
        self.any = false;
        None
    }
}

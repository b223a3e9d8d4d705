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

/// What is still to be told, a reason once.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    pending: Vec<Loss>,
}

impl Losses {
    /// Whether all was told.
    pub(crate) const fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub(crate) fn count(&mut self, reason: LossReason, bytes: u64) {
        self.add(reason, 1, bytes);
    }

    /// Adds bytes to a loss that was counted already.
    pub(crate) fn extend(&mut self, reason: LossReason, bytes: u64) {
        self.add(reason, 0, bytes);
    }

    /// Takes the next loss out, in the order of [`LossReason::ALL`].
    pub(crate) fn poll(&mut self) -> Option<Loss> {
        let order = |(_, loss): &(usize, &Loss)| loss.reason as usize;
        let (next, _) = self.pending.iter().enumerate().min_by_key(order)?;
        Some(self.pending.swap_remove(next))
    }

    fn add(&mut self, reason: LossReason, count: u64, bytes: u64) {
        let mut pending = self.pending.iter_mut();
        match pending.find(|loss| loss.reason == reason) {
            Some(loss) => {
                loss.count += count;
                loss.bytes = loss.bytes.saturating_add(bytes);
            }
            None => self.pending.push(Loss {
                reason,
                count,
                bytes,
            }),
        }
    }
}

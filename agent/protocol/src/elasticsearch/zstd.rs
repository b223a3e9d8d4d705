//! zstd (RFC 8878) piece by piece: a block is decoded when all of it is there.

use std::fmt;

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

const MAGIC: u32 = 0xfd2f_b528;

/// Largest window that a frame may ask memory for (RFC 9659 allows HTTP 8 MiB).
const MAX_WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// Largest block, what is compressed as what comes of it (section 3.1.1.2.4).
const MAX_BLOCK_BYTES: usize = 128 * 1024;

const CHECKSUM_BYTES: usize = 4;

/// Frames that nothing can be decoded of: broken, too large, or with a dictionary.
#[derive(Debug)]
pub(super) struct Broken;

/// Decodes one frame after another.
pub(super) struct Decoder {
    frames: FrameDecoder,
    /// The frame that has begun.
    frame: Option<Header>,
    /// What is not decoded yet: less than a header, or than a block.
    coded: Vec<u8>,
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder")
            .field("frame", &self.frame)
            .field("coded_bytes", &self.coded.len())
            .finish_non_exhaustive()
    }
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            frames: FrameDecoder::new(),
            frame: None,
            coded: Vec::new(),
        }
    }

    /// Appends what the next bytes give to `text`: nothing before a frame's window is full or its end
    /// is there.
    ///
    /// # Errors
    /// When they are broken, or `text` gets longer than `max_bytes`: four bytes may be 128 KiB of it.
    pub(super) fn decode(
        &mut self,
        bytes: &[u8],
        text: &mut Vec<u8>,
        max_bytes: usize,
    ) -> Result<(), Broken> {
        self.coded.extend_from_slice(bytes);
        let mut decoded = 0;
        while let Some(len) = self.step(decoded, text)? {
            decoded += len;
            if text.len() > max_bytes {
                return Err(Broken);
            }
        }
        self.coded.drain(..decoded);
        Ok(())
    }

    /// Whether the last frame has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.frame.is_none() && self.coded.is_empty()
    }

    /// Decodes the header or the block at `at`: how long it is, `None` where its end is missing.
    fn step(&mut self, at: usize, text: &mut Vec<u8>) -> Result<Option<usize>, Broken> {
        let coded = &self.coded[at..];
        let Some(frame) = &self.frame else {
            let Some(header) = Header::parse(coded)? else {
                return Ok(None);
            };
            let len = header.len_bytes;
            self.frames.reset(&coded[..len]).map_err(|_| Broken)?;
            self.frame = Some(header);
            return Ok(Some(len));
        };
        let Some(len) = frame.block_bytes(coded)? else {
            return Ok(None);
        };
        let one = BlockDecodingStrategy::UptoBlocks(1);
        let block = self.frames.decode_blocks(&coded[..len], one);
        if block.map_err(|_| Broken)? {
            self.frame = None;
        }
        text.extend(self.frames.collect().unwrap_or_default());
        Ok(Some(len))
    }
}

/// A frame's header: section 3.1.1.1.
#[derive(Debug)]
struct Header {
    len_bytes: usize,
    has_checksum: bool,
}

impl Header {
    /// `None` where its end is missing.
    fn parse(coded: &[u8]) -> Result<Option<Self>, Broken> {
        let Some((magic, [descriptor, rest @ ..])) = coded.split_first_chunk() else {
            return Ok(None);
        };
        if u32::from_le_bytes(*magic) != MAGIC {
            return Err(Broken);
        }
        let is_single_segment = descriptor & 1 << 5 != 0;
        let dictionary_id_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let content_size_bytes = match descriptor >> 6 {
            0 => usize::from(is_single_segment),
            exponent => 1 << exponent,
        };
        let before = usize::from(!is_single_segment) + dictionary_id_bytes;
        let Some(fields) = rest.get(..before + content_size_bytes) else {
            return Ok(None);
        };
        let window_bytes = if is_single_segment {
            let mut size = [0; 8];
            size[..content_size_bytes].copy_from_slice(&fields[before..]);
            u64::from_le_bytes(size)
        } else {
            let base = 1_u64 << (10 + (fields[0] >> 3));
            base + base / 8 * u64::from(fields[0] & 7)
        };
        if window_bytes > MAX_WINDOW_BYTES {
            return Err(Broken);
        }
        Ok(Some(Self {
            len_bytes: magic.len() + 1 + fields.len(),
            has_checksum: descriptor & 1 << 2 != 0,
        }))
    }

    /// Length of the block at the beginning, with the frame's checksum behind the last one: section
    /// 3.1.1.2. `None` where its end is missing.
    fn block_bytes(&self, coded: &[u8]) -> Result<Option<usize>, Broken> {
        const REPEATED: u32 = 1;
        let Some(&[low, middle, high]) = coded.first_chunk() else {
            return Ok(None);
        };
        let header = u32::from_le_bytes([low, middle, high, 0]);
        let (is_last, kind, size) = (header & 1 != 0, header >> 1 & 3, (header >> 3) as usize);
        if size > MAX_BLOCK_BYTES {
            return Err(Broken);
        }
        let mut len = 3 + if kind == REPEATED { 1 } else { size };
        if is_last && self.has_checksum {
            len += CHECKSUM_BYTES;
        }
        Ok((coded.len() >= len).then_some(len))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;
    use zstd::stream::write::Encoder;

    use super::*;

    const MAX_BYTES: usize = 16 * 1024 * 1024;

    /// By the reference implementation; `frames` of the text each.
    fn encoded(text: &[u8], level: i32, has_checksum: bool, frames: usize) -> Vec<u8> {
        let mut coded = Vec::new();
        for part in text.chunks(text.len().div_ceil(frames).max(1)) {
            let mut encoder = Encoder::new(coded, level).unwrap();
            encoder.include_checksum(has_checksum).unwrap();
            encoder.write_all(part).unwrap();
            coded = encoder.finish().unwrap();
        }
        coded
    }

    /// Words that compress as those of documents do, or bytes that don't.
    fn text_of(len: usize, seed: u64, is_random: bool) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        if is_random {
            return (0..len).map(|_| next() as u8).collect();
        }
        let words = [
            "{\"index\":",
            "{}}\n",
            "title",
            "\":\"",
            "aaaaaaaaaaaaaaaa",
            "7",
        ];
        let mut text = Vec::new();
        while text.len() < len {
            text.extend_from_slice(words[next() as usize % words.len()].as_bytes());
        }
        text
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn pieces_give_what_was_encoded(
            len in 0..700_000_usize,
            seed in any::<u64>(),
            is_random in any::<bool>(),
            level in prop::sample::select(vec![1, 3, 9, -5]),
            has_checksum in any::<bool>(),
            frames in 1..4_usize,
            pieces in prop::collection::vec(1..70_000_usize, 1..8),
        ) {
            let text = text_of(len, seed, is_random);
            let coded = encoded(&text, level, has_checksum, frames);
            let mut decoder = Decoder::new();
            let (mut decoded, mut rest) = (Vec::new(), &coded[..]);
            for size in pieces.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, behind) = rest.split_at(rest.len().min(*size));
                rest = behind;
                decoder.decode(piece, &mut decoded, MAX_BYTES).expect("intact");
                prop_assert!(decoder.coded.len() <= 3 + MAX_BLOCK_BYTES + CHECKSUM_BYTES);
            }
            prop_assert!(decoder.has_ended());
            prop_assert_eq!(decoded, text);
        }

        #[test]
        fn a_cut_frame_has_not_ended(len in 1..300_000_usize, seed in any::<u64>(), cut in 1..2000_usize) {
            let coded = encoded(&text_of(len, seed, false), 3, true, 1);
            let mut decoder = Decoder::new();
            let kept = coded.len().saturating_sub(cut).max(1);
            let intact = decoder.decode(&coded[..kept], &mut Vec::new(), MAX_BYTES).is_ok();
            prop_assert!(intact);
            prop_assert!(!decoder.has_ended());
        }

        #[test]
        fn anything_is_survived(
            len in 0..3000_usize,
            seed in any::<u64>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        ) {
            let mut coded = encoded(&text_of(len, seed, false), 3, true, 1);
            for (at, byte) in changes {
                let at = at.index(coded.len());
                coded[at] = byte;
            }
            let (mut decoder, mut text) = (Decoder::new(), Vec::new());
            for piece in coded.chunks(7) {
                if decoder.decode(piece, &mut text, MAX_BYTES).is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn few_bytes_do_not_become_many() {
        // A frame without an end: blocks of one byte each that is repeated.
        let mut coded = MAGIC.to_le_bytes().to_vec();
        coded.extend([0, 0]);
        let block = (MAX_BLOCK_BYTES as u32) << 3 | 1 << 1;
        for _ in 0..1000 {
            coded.extend(&block.to_le_bytes()[..3]);
            coded.push(b'x');
        }
        let intact = |max| Decoder::new().decode(&coded, &mut Vec::new(), max).is_ok();
        assert!(!intact(1 << 20));
        assert!(intact(1 << 30));
    }
}

//! A bounded buffer between a socket and a parser. It takes memory only while it holds something, and little of it for most heads.

/// What is taken at first. Clearing and returning more for each request would cost more than a second read for a long head.
const FIRST_BYTES: usize = 4 * 1024;

/// Bytes that were read and not yet consumed.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// More came than there was room for, once: all that may be taken is taken from then on.
    was_filled: bool,
    capacity: usize,
}

impl Buffer {
    /// An empty buffer that will hold at most `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, end: 0, was_filled: false, capacity }
    }

    /// What it holds.
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Whether nothing more fits.
    pub fn is_full(&self) -> bool {
        self.end - self.start == self.capacity
    }

    /// Where the next bytes may be written: empty only when it is full. Tell with [`Buffer::received`] how many came.
    pub fn space(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = vec![0; FIRST_BYTES.min(self.capacity)];
        } else if self.was_filled {
            self.bytes.resize(self.capacity, 0);
        }
        // Moving what is left to the front is rare and cheap: it happens when less than a quarter is free behind it.
        if self.start > 0 && self.bytes.len() - self.end < self.bytes.len() / 4 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..]
    }

    /// Takes the first `count` bytes of [`Buffer::space`] as written.
    pub fn received(&mut self, count: usize) {
        self.end += count;
        self.was_filled |= self.end == self.bytes.len();
        debug_assert!(self.end <= self.bytes.len(), "no more than there was space");
    }

    /// Drops the first `count` bytes.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end, "no more than there was");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Gives its memory back if it is empty.
    pub fn release(&mut self) {
        if self.start == self.end {
            *self = Self::new(self.capacity);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A fixed walk over all small steps in and out, each `scale` times as long.
    fn walk(capacity: usize, scale: usize) {
        let mut buffer = Buffer::new(capacity);
        let mut model = VecDeque::new();
        for step in 0..10_000 {
            let (put, take) = (step * 7 % 11 * scale, step * 5 % 13 * scale);
            let space = buffer.space();
            let put = put.min(space.len());
            for (index, byte) in space[..put].iter_mut().enumerate() {
                *byte = (step + index) as u8;
                model.push_back(*byte);
            }
            buffer.received(put);
            assert_eq!(buffer.filled(), model.make_contiguous());
            let take = take.min(model.len());
            buffer.consume(take);
            model.drain(..take);
            assert_eq!(buffer.is_full(), model.len() == capacity);
            assert!(!buffer.space().is_empty() || buffer.is_full(), "space is empty only when full");
            if step % 97 == 0 {
                buffer.release();
            }
        }
    }

    #[test]
    fn it_behaves_like_a_queue_of_bounded_size() {
        walk(16, 1);
        walk(4 * FIRST_BYTES, FIRST_BYTES / 2);
    }

    #[test]
    fn it_takes_little_until_that_is_too_little() {
        let mut buffer = Buffer::new(4 * FIRST_BYTES);
        assert_eq!(buffer.space().len(), FIRST_BYTES);
        buffer.received(FIRST_BYTES);
        assert_eq!(buffer.space().len(), 3 * FIRST_BYTES);
        // A long body is read in large pieces from then on.
        buffer.consume(FIRST_BYTES);
        assert_eq!(buffer.space().len(), 4 * FIRST_BYTES);
        buffer.release();
        assert_eq!(buffer.space().len(), FIRST_BYTES);
    }
}

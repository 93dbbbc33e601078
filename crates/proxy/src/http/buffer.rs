//! A bounded buffer between a socket and a parser. It takes memory only while it holds something.

/// Bytes that were read and not yet consumed.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    capacity: usize,
}

impl Buffer {
    /// An empty buffer that will hold at most `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, end: 0, capacity }
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
            self.bytes = vec![0; self.capacity];
        }
        // Moving what is left to the front is rare and cheap: it happens when less than a quarter is free behind it.
        if self.start > 0 && self.capacity - self.end < self.capacity / 4 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..]
    }

    /// Takes the first `count` bytes of [`Buffer::space`] as written.
    pub fn received(&mut self, count: usize) {
        self.end += count;
        debug_assert!(self.end <= self.capacity, "no more than there was space");
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

    #[test]
    fn it_behaves_like_a_queue_of_bounded_size() {
        let mut buffer = Buffer::new(16);
        let mut model = VecDeque::new();
        // A fixed walk over all small steps in and out.
        for step in 0..10_000u32 {
            let (put, take) = ((step * 7 % 11) as usize, (step * 5 % 13) as usize);
            let space = buffer.space();
            let put = put.min(space.len());
            for (index, byte) in space[..put].iter_mut().enumerate() {
                *byte = (step as usize + index) as u8;
                model.push_back(*byte);
            }
            buffer.received(put);
            assert_eq!(buffer.filled(), model.make_contiguous());
            let take = take.min(model.len());
            buffer.consume(take);
            model.drain(..take);
            assert_eq!(buffer.is_full(), model.len() == 16);
            assert!(!buffer.space().is_empty() || buffer.is_full(), "space is empty only when full");
            if step % 97 == 0 {
                buffer.release();
            }
        }
    }
}

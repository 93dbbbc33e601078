//! Numbers for a batch's sites, found by their names as they stand in lines.

use std::collections::HashMap;

/// Counts from zero, in the order in which names come.
pub(super) struct Numbers {
    by_name: HashMap<Vec<u8>, u32>,
    /// The names seen last, by a few bits of them: a look here is quicker than a hash that withstands chosen names.
    recent: Box<[Recent; 1 << BITS]>,
}

/// A name beside its number, so that one line of the processor's cache has both.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Recent {
    name: [u8; SHORT_MAX],
    len: u8,
    number: u32,
}

/// So many bits tell where a name is at hand: there is room for more sites than a batch mostly has.
const BITS: u32 = 10;

/// Longer names are not kept at hand.
const SHORT_MAX: usize = 56;

impl Numbers {
    pub fn new() -> Self {
        // Of no length, which no name has.
        let none = Recent { name: [0; SHORT_MAX], len: 0, number: 0 };
        Self { by_name: HashMap::new(), recent: Box::new([none; 1 << BITS]) }
    }

    /// The number of a name, and whether it is new.
    #[inline]
    pub fn of(&mut self, name: &[u8]) -> (usize, bool) {
        let recent = &mut self.recent[bits_of(name)];
        if recent.name.get(..usize::from(recent.len)) == Some(name) {
            return (recent.number as usize, false);
        }
        let count = self.by_name.len() as u32;
        let (number, is_new) = match self.by_name.get(name) {
            Some(number) => (*number, false),
            None => {
                self.by_name.insert(name.to_vec(), count);
                (count, true)
            }
        };
        if let Some(place) = recent.name.get_mut(..name.len()) {
            place.copy_from_slice(name);
            (recent.len, recent.number) = (name.len() as u8, number);
        }
        (number as usize, is_new)
    }
}

/// Some bits of a name, eight bytes at a time. Whoever chooses names so that they have the same ones makes them slower, nothing else.
#[inline]
fn bits_of(name: &[u8]) -> usize {
    // Bits from everywhere: 2^64 divided by the golden ratio.
    const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |bits: u64, word: u64| (bits ^ word).wrapping_mul(SPREAD).rotate_left(29);
    let mut bits = name.len() as u64;
    match name.last_chunk() {
        Some(last) => {
            for word in name.as_chunks::<8>().0 {
                bits = mix(bits, u64::from_le_bytes(*word));
            }
            // What is left, with what stands before it.
            bits = mix(bits, u64::from_le_bytes(*last));
        }
        None => bits = name.iter().fold(bits, |bits, byte| mix(bits, u64::from(*byte))),
    }
    (bits.wrapping_mul(SPREAD) >> (u64::BITS - BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Many names at one place, and some that are too long for it.
        #[test]
        fn a_name_has_one_number(names in prop::collection::vec((prop::bool::ANY, 1..70_usize, 0..40_u8), 1..400)) {
            let (mut numbers, mut known) = (Numbers::new(), Vec::<Vec<u8>>::new());
            for (is_low, len, last) in names {
                let mut name = vec![if is_low { 0 } else { b'x' }; len];
                name[len - 1] = last;
                let before = known.iter().position(|it| *it == name);
                prop_assert_eq!(numbers.of(&name), (before.unwrap_or(known.len()), before.is_none()));
                if before.is_none() {
                    known.push(name);
                }
            }
        }
    }

    #[test]
    fn places_are_spread() {
        let places = (0..200).map(|n| bits_of(format!("www.site-{n}.example").as_bytes()));
        let places: std::collections::BTreeSet<usize> = places.collect();
        assert!(places.len() > 170, "{}", places.len());
    }
}

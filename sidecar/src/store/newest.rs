//! Which keys each device got lately: by it a device that gets ever new ones has no more than it may, and pushes nobody
//! else's out. An index of the table would do so for all keys, and cost each of them a page that is written at random.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use posture::identity::{DeviceId, PublicKey};

use crate::locks::Mark;

/// The keys that were allowed last, [`TRACKED`] of all devices.
#[derive(Debug, Default)]
pub(super) struct Newest {
    /// Of each device, by a digest of it, the oldest first.
    of_devices: HashMap<Mark, VecDeque<PublicKey>>,
    /// Devices, one for each of their keys, the oldest key first.
    order: VecDeque<Mark>,
}

impl Newest {
    /// Takes a key that was allowed; returns the device's oldest where it has more than `most` now.
    pub(super) fn allowed(&mut self, device: &DeviceId, key: PublicKey, most: usize) -> Option<PublicKey> {
        let digest = Mark::of(Some(device.kind()), device.normal());
        let keys = self.of_devices.entry(digest).or_default();
        if let Some(place) = keys.iter().position(|known| *known == key) {
            keys.remove(place);
            keys.push_back(key);
            return None;
        }
        keys.push_back(key);
        if keys.len() > most {
            return keys.pop_front();
        }
        self.order.push_back(digest);
        if self.order.len() > TRACKED
            && let Some(oldest) = self.order.pop_front()
            && let Entry::Occupied(mut keys) = self.of_devices.entry(oldest)
        {
            keys.get_mut().pop_front();
            if keys.get().is_empty() {
                keys.remove();
            }
        }
        None
    }
}

/// Keys that are tracked, some 6 MB. A device whose keys are older than so many of others is bounded with all of them.
pub(super) const TRACKED: usize = 100_000;

#[cfg(test)]
mod tests {
    use posture::identity::IdentifierKind;

    use super::*;

    #[test]
    fn so_many_keys_are_tracked_and_no_more() {
        let device = |number: usize| DeviceId::new(IdentifierKind::Serial, &format!("D{number}")).unwrap();
        let key = |number: u8| PublicKey::of_digest([number; 32]);
        let mut newest = Newest::default();
        for number in 0..TRACKED {
            assert_eq!(newest.allowed(&device(number), key(1), 1), None);
        }
        assert_eq!(newest.order.len(), TRACKED);
        assert_eq!(newest.allowed(&device(0), key(2), 1), Some(key(1)), "the first is tracked still");
        assert_eq!(newest.allowed(&device(TRACKED), key(1), 1), None);
        assert_eq!((newest.order.len(), newest.of_devices.len()), (TRACKED, TRACKED));
        assert_eq!(newest.allowed(&device(0), key(3), 1), None, "it was the oldest");
        assert_eq!(newest.allowed(&device(2), key(2), 1), Some(key(1)));
    }
}

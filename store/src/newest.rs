//! The keys that each device got lately. They bound the keys of a device that gets ever new ones, so that it pushes out no other
//! device's. An index of the table could do so for all keys, but would cost each key a page that is written at random.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use posture::identity::{DeviceId, PublicKey};

use crate::mark::Mark;

/// The last [`TRACKED`] keys that were allowed, of all devices.
#[derive(Debug, Default)]
pub(crate) struct Newest {
    /// Keys of each device, by the device's digest, the oldest first.
    of_devices: HashMap<Mark, VecDeque<PublicKey>>,
    /// Digests of devices, one for each tracked key, the oldest key first.
    order: VecDeque<Mark>,
}

impl Newest {
    /// Takes a key that was allowed; returns the device's oldest key where the device now has more than `most`.
    pub(crate) fn allowed(&mut self, device: &DeviceId, key: PublicKey, most: usize) -> Option<PublicKey> {
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

/// Number of keys that are tracked, some 6 MB. A device whose keys are older than that many newer ones is bounded only with all
/// devices together.
pub(crate) const TRACKED: usize = 100_000;

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

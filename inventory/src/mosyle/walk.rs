//! The way through the pages of Mosyle's answer.

use serde_json::Value;

use super::page::Page;
use crate::answer::Unavailable;
use crate::shown::{Row, Shown};

/// A way through the pages of one question. It is uncertain whether the first page has the number 0 or 1, and which number an
/// answer gives it. So the first page is asked for without a number, then 1 and so on, and devices that come twice are left out.
#[derive(Debug)]
pub(super) struct Walk {
    /// Number of the next page: an inner `None` for the first, an outer `None` at the end.
    pub(super) next: Option<Option<u64>>,
    /// Number of pages so far.
    pub(super) pages: usize,
    /// Number of devices so far.
    pub(super) count: u64,
    /// Number of devices in all, as the newest page with a count says it.
    rows: Option<u64>,
    /// Whether a device came again with other content.
    pub(super) contradicted: bool,
    /// Devices of the pages before, by serial number, unique identifier and whether each was deleted: the record that an earlier
    /// enrolment left behind counts as another device than the one that took its place.
    seen: Shown<(String, String, String)>,
}

impl Default for Walk {
    fn default() -> Self {
        Self { next: Some(None), pages: 0, count: 0, rows: None, contradicted: false, seen: Shown::default() }
    }
}

impl Walk {
    /// Takes a page: returns its devices that are new or contradict an earlier one, and sets the next page.
    ///
    /// # Errors
    /// [`Unavailable::Protocol`] where the pages end before their own count, or repeat without giving one.
    pub(super) fn take(&mut self, page: Page) -> Result<Vec<Value>, Unavailable> {
        self.pages += 1;
        let shown = page.devices.len();
        let part = |device: &Value, field: &str| device.get(field).map(Value::to_string).unwrap_or_default();
        let key = |device: &Value| (part(device, "serial_number"), part(device, "deviceudid"), part(device, "is_deleted"));
        // Two devices on one page are two, however alike.
        let mut fresh: Vec<(Row, Value)> =
            page.devices.into_iter().map(|device| (self.seen.look(&key(&device), &device), device)).collect();
        fresh.retain(|(row, _)| *row != Row::Slipped);
        for (_, device) in &fresh {
            self.seen.take(key(device), device);
        }
        let new = fresh.iter().filter(|(row, _)| *row == Row::New).count();
        self.count += u64::try_from(new).unwrap_or(0);
        self.rows = page.rows.or(self.rows);
        let missing = self.rows.is_some_and(|rows| self.count < rows);
        let number = self.next.flatten();
        // A page that is not full is the last one. Page 1 may be the first page once more.
        let full = page.size.is_none_or(|size| u64::try_from(shown).is_ok_and(|shown| shown >= size));
        let repeated = shown > 0 && new == 0 && number.is_some_and(|number| number > 1);
        let empty = shown == 0 || repeated;
        self.next = match (missing, empty) {
            (true, true) => return Err(Unavailable::Protocol),
            // Mosyle ignores the number of the page, and no count says whether there are more devices.
            (false, true) if repeated && self.rows.is_none() => return Err(Unavailable::Protocol),
            (true, false) => Some(Some(number.unwrap_or(0) + 1)),
            (false, false) if full => Some(Some(number.unwrap_or(0) + 1)),
            (false, _) => None,
        };
        // A device may change while the first page is read once more.
        self.contradicted |= fresh.len() > new && (new > 0 || number != Some(1));
        Ok(fresh.into_iter().map(|(_, device)| device).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Walks through `total` devices in pages of `size`, whose first has the number `first`; `None` where the number of a page is
    /// ignored.
    fn walk(total: u64, size: u64, first: Option<u64>, counted: bool) -> Result<(u64, usize), Unavailable> {
        let mut walk = Walk::default();
        while let Some(number) = walk.next {
            let index = first.map_or(0, |first| number.unwrap_or(first).saturating_sub(first));
            let numbers = (index * size)..total.min((index + 1) * size);
            let devices: Vec<Value> = numbers.map(|number| json!({"serial_number": number.to_string()})).collect();
            let rows = (counted && !devices.is_empty()).then_some(total);
            walk.take(Page { devices, rows, size: Some(size) })?;
            assert!(walk.pages < 20);
        }
        Ok((walk.count, walk.pages))
    }

    #[test]
    fn sees_every_device_once_whatever_the_number_of_the_first_page() {
        for first in [0, 1] {
            for counted in [true, false] {
                for total in [0, 1, 9, 10, 11, 20, 25] {
                    let (count, _) = walk(total, 10, Some(first), counted).unwrap();
                    assert_eq!(count, total, "from {first}, counted {counted}");
                }
            }
        }
    }

    #[test]
    fn one_page_that_is_not_full_is_one_request() {
        assert_eq!(walk(1, 10, Some(0), true), Ok((1, 1)));
        assert_eq!(walk(0, 10, Some(0), false), Ok((0, 1)));
    }

    #[test]
    fn pages_that_only_repeat_prove_nothing() {
        assert_eq!(walk(25, 10, None, true), Err(Unavailable::Protocol));
        assert_eq!(walk(25, 10, None, false), Err(Unavailable::Protocol));
    }

    #[test]
    fn a_record_that_was_left_behind_hides_no_other_on_a_later_page() {
        let mut walk = Walk::default();
        let page = |deleted| Page {
            devices: vec![json!({"serial_number": "A", "deviceudid": "U", "is_deleted": deleted})],
            rows: Some(2),
            size: Some(1),
        };
        assert_eq!((walk.take(page("1")).unwrap().len(), walk.take(page("0")).unwrap().len(), walk.count), (1, 1, 2));
    }

    #[test]
    fn a_count_that_is_not_reached_is_no_end() {
        let mut walk = Walk::default();
        walk.take(Page { devices: vec![json!({"serial_number": "A"})], rows: Some(3), size: Some(10) }).unwrap();
        assert_eq!(walk.take(Page::default()), Err(Unavailable::Protocol));
    }
}

//! The list of all records of one kind, page by page.

use std::collections::BTreeMap;
use std::time::Duration;

use posture::record::{Form, Record};
use posture::time::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::api::{Api, Filter, Page};
use super::{extras, record};
use crate::answer::Unavailable;
use crate::http::{PAGE, RECORDS};
use crate::shown::{Row, Shown};

/// Sends every record, or those that were heard of after `since`; returns whether it is proven that none was left out.
///
/// # Errors
/// [`Unavailable`], after a page was tried three times.
pub(super) async fn sweep(
    api: &Api,
    form: Form,
    since: Option<UnixTime>,
    departments: Option<&BTreeMap<String, String>>,
    pages: &mpsc::Sender<Vec<Record>>,
) -> Result<bool, Unavailable> {
    let filter = since.and_then(moment).map_or(Filter::All, Filter::Since);
    let mut ids = Shown::default();
    let (mut total, mut whole, mut nameless) = (0, true, 0_u64);
    let (mut number, mut size) = (0, PAGE_SIZE);
    for _ in 0..PAGES {
        let page = match patiently(api, form, &filter, (number, size)).await {
            // Devices can be in hundreds of groups, so a page is halved. It starts at the same record, since sizes are powers of
            // two.
            Err(Unavailable::TooLarge) if size > 1 => {
                (number, size) = (number * 2, size / 2);
                continue;
            }
            page => page?,
        };
        number += 1;
        whole &= !page.contradicts_itself();
        // Records that go meanwhile pull others over the end of a page that was read already, so the largest total of all pages
        // has to be reached. A total can be too small by records that came meanwhile, so only an empty page is the end.
        match page.total {
            Some(said) => total = total.max(said),
            None => whole = false,
        }
        if page.rows.is_empty() {
            if nameless > 0 {
                tracing::info!(
                    kind = form.as_str(),
                    nameless,
                    "records without a serial number, as personal devices are, were passed over"
                );
            }
            return Ok(whole && ids.len() as u64 >= total);
        }
        let mut new = false;
        let mut records = Vec::with_capacity(page.rows.len());
        for row in &page.rows {
            match record::id(form, row) {
                Some(id) => match ids.take(id, row) {
                    Row::New => new = true,
                    Row::Slipped => continue,
                    // Both records are sent, so that neither is believed.
                    Row::Contradiction => whole = false,
                },
                None => (whole, new) = (false, true),
            }
            let mut record = record::of(form, row, clock::now());
            if form == Form::Computer && departments.is_some() {
                record.user.department = extras::department(row, departments);
            }
            // Personal devices have no serial number. The list says nothing of such a device, and Jamf is asked for each one that
            // is not listed. Where the server left out records that fail, the serial number itself may have failed.
            if !record.serial.is_known() {
                nameless += 1;
                whole &= !page.lenient;
            }
            records.push(record);
        }
        // Before the end too: a page that shows no new record may contradict one that was sent.
        let taken = records.is_empty() || pages.send(records).await.is_ok();
        if !taken || !new || ids.len() > RECORDS {
            return Ok(false);
        }
    }
    Ok(false)
}

/// A page, tried again after a fault that may pass: one page in hundreds must not cost the whole sweep.
async fn patiently(api: &Api, form: Form, filter: &Filter, place: (usize, usize)) -> Result<Page, Unavailable> {
    for wait in WAITS {
        match api.page(form, filter, place, Instant::now() + REQUEST, PAGE).await {
            Err(Unavailable::ServerError(after) | Unavailable::RateLimited(after)) => {
                tokio::time::sleep(after.unwrap_or(*wait).min(LONGEST_WAIT)).await;
            }
            Err(Unavailable::Timeout | Unavailable::Network) => tokio::time::sleep(*wait).await,
            other => return other,
        }
    }
    api.page(form, filter, place, Instant::now() + REQUEST, PAGE).await
}

/// The moment as a filter spells it, a minute earlier, since clocks differ.
fn moment(since: UnixTime) -> Option<String> {
    let seconds = since.saturating_sub(Duration::from_secs(60)).as_nanos().div_euclid(1_000_000_000);
    OffsetDateTime::from_unix_timestamp(seconds).ok()?.format(&Rfc3339).ok()
}

/// Longest time for one page.
pub(super) const REQUEST: Duration = Duration::from_secs(60);

/// Rows on a page, a power of two. Jamf allows 2,000; with many groups in each record the server takes long over such a page.
const PAGE_SIZE: usize = 512;

/// Most pages of a list: a million devices of one kind.
const PAGES: usize = 2_000;
const WAITS: &[Duration] = &[Duration::from_secs(1), Duration::from_secs(4)];
const LONGEST_WAIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_has_whole_seconds_and_a_margin() {
        let since = UnixTime::parse("2026-11-24T08:01:00.987Z").unwrap();
        assert_eq!(moment(since).unwrap(), "2026-11-24T08:00:00Z");
        assert_eq!(moment(UnixTime::from_nanos(i64::MIN)).unwrap(), "1677-09-21T00:12:43Z");
    }
}

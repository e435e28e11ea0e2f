//! What lists and questions prove, and whom they prove it of.

use super::*;

#[tokio::test(start_paused = true)]
async fn g3_lists_go_on_after_other_limits_and_lifetimes() {
    let stand = Stand::new();
    let listing = tokio::spawn(Arc::clone(&stand.cache).keep_swept());
    after(1).await;
    assert_eq!(stand.says("C02A").await, "found cached");
    listing.abort();
    let fewer = Settings { cache: config::Cache { max_entries: 10, ..config::Cache::default() }, ..short(Duration::from_secs(5)) };
    for settings in [short(Duration::from_secs(30)), fewer] {
        stand.keeps(["C02A".to_owned(), "NEW".to_owned()].into_iter());
        let stand =
            Stand { cache: Arc::new(stand.cache.with_settings(settings, stand.cache.inventory())), script: Arc::clone(&stand.script) };
        stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial] });
        let listing = tokio::spawn(Arc::clone(&stand.cache).keep_swept());
        after(1).await;
        assert_eq!((stand.says("NEW").await, stand.calls()), ("found cached", 0));
        stand.keeps(["C02A".to_owned(), "LATER".to_owned()].into_iter());
        *stand.script.changed.lock().unwrap() = vec![record("LATER")];
        after(config::Sync::default().partial.as_secs() + 1).await;
        assert!(stand.cache.peek(&question("C02A", Fields::NONE).device).is_some());
        after(config::Sync::default().full.as_secs()).await;
        assert_eq!((stand.says("LATER").await, stand.calls()), ("found cached", 0));
        listing.abort();
        stand.cache.purge(None);
    }
}

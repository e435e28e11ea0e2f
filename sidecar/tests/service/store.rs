//! Tests of `stepward store`: the database under a service, from outside of the service.

use std::fs;

use serde_json::{Value, json};
use store::scripted::Cluster;

use crate::served::{DEVICE, Folder};

/// Runs a command; returns exit code, output and errors.
fn run(folder: &Folder, args: &[&str]) -> (i32, String, String) {
    let output = folder.run(args);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn status(folder: &Folder, place: &[&str]) -> Value {
    let (code, text, errors) = run(folder, &[&["store", "status", "--output", "json"], place].concat());
    assert_eq!(code, 0, "{errors}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_store_is_looked_at_while_its_service_runs_and_copied_and_migrated_only_once_it_has_ended() {
    let folder = Folder::new();
    let (code, _, errors) = run(&folder, &["store", "status"]);
    assert!(code == 3 && errors.contains("the first start of the service makes it"), "{code} {errors}");
    assert_eq!(run(&folder, &["store", "migrate"]).0, 3);
    let served = folder.serve();
    assert_eq!(run(&served.folder, &["lock", DEVICE, "--reason", "stolen"]).0, 0);
    let found = status(&served.folder, &[]);
    assert_eq!((&found["kind"], &found["services"], &found["locks"]), (&json!("sqlite"), &json!(1), &json!(1)));
    assert_eq!(found["schema"], found["known"]);
    for args in [&["store", "migrate"][..], &["store", "copy", "--from", "state/stepward.db", "--to", "copy.db"]] {
        let (code, _, errors) = run(&served.folder, args);
        assert!(code == 1 && errors.contains("stop the service first"), "{args:?}: {errors}");
    }
    // Also where somebody removed the lock file.
    let lock = served.folder.path("state/stepward.db.lock");
    let elsewhere = served.folder.path("state/elsewhere");
    fs::rename(&lock, &elsewhere).unwrap();
    let (code, _, errors) = run(&served.folder, &["store", "copy", "--from", "state/stepward.db", "--to", "copy.db"]);
    assert!(code == 1 && errors.contains("stop the service first"), "{errors}");
    fs::rename(elsewhere, lock).unwrap();
    assert_eq!(run(&served.folder, &["lock", "B", "--reason", "a"]).0, 0, "the service has noticed nothing");
    assert!(!served.page("/readyz?verbose").1.contains("\nstore "));
    let folder = served.folder.clone();
    drop(served);
    assert!(!folder.path("copy.db").exists());
    let (code, text, errors) = run(&folder, &["store", "copy", "--from", "state/stepward.db", "--to", "copy.db"]);
    assert!(code == 0 && text.contains("\nrulings    2     "), "{text} {errors}");
    let (code, _, errors) = run(&folder, &["store", "copy", "--from", "state/stepward.db", "--to", "copy.db"]);
    assert!(code == 1 && errors.contains("nothing is written over"), "{errors}");
    let (code, text, errors) = run(&folder, &["store", "migrate", "copy.db"]);
    assert!(code == 0 && text.contains(", as before"), "{text} {errors}");
    folder.write("stepward.toml", &format!("{}\n[store]\npath = \"copy.db\"\n", folder.read("stepward.toml")));
    let served = folder.serve();
    let (_, held, _) = run(&served.folder, &["locks", "--output", "json"]);
    let held: Vec<Value> = serde_json::from_str(&held).unwrap();
    assert_eq!(held.iter().map(|lock| &lock["device"]).collect::<Vec<_>>(), [&json!(DEVICE), &json!("B")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_goes_to_a_server_and_back_with_a_password_that_nothing_shows() {
    let cluster = Cluster::start(&["password_encryption=scram-sha-256"]).await.unwrap();
    cluster.run("postgres", "create role guarded login superuser password 'canary'").await.unwrap();
    cluster.put("pg_hba.conf", "local all guarded scram-sha-256\nlocal all all trust\n").await.unwrap();
    let url = cluster.url("postgres").replace("stepward@", "guarded@");
    let served = Folder::new().serve();
    assert_eq!(run(&served.folder, &["lock", DEVICE, "--reason", "stolen"]).0, 0);
    let folder = served.folder.clone();
    drop(served);
    folder.write("password", "canary\n");
    folder.write("wrong", "yellow canary\n");
    // The server reads its rules soon; until then it takes any password, and has no store.
    while run(&folder, &["store", "status", &url, "--password-file", "wrong"]).0 == 3 {}
    let wrong = ["store", "copy", "--from", "state/stepward.db", "--to", &url, "--to-password-file", "wrong"];
    let (code, _, errors) = run(&folder, &wrong);
    assert!(code == 5 && errors.contains("password") && !errors.contains("canary"), "{code} {errors}");
    let there = ["store", "copy", "--from", "state/stepward.db", "--to", &url, "--to-password-file", "password", "--output", "json"];
    let (code, there, errors) = run(&folder, &there);
    assert!(code == 0 && errors.contains("start services with the copy alone") && !errors.contains("canary"), "{errors}");
    let found = status(&folder, &[&url, "--password-file", "password"]);
    assert_eq!((&found["kind"], &found["services"], &found["locks"]), (&json!("postgresql"), &json!(0), &json!(1)));
    let back = ["store", "copy", "--from", &url, "--from-password-env", "PASSWORD", "--to", "back.db", "--output", "json"];
    let output = folder.command(&back).env("PASSWORD", "canary").output().unwrap();
    let tables = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap()["tables"].clone();
    assert_eq!(tables(&output.stdout), tables(there.as_bytes()));
    let with_password = url.replace("guarded@", "guarded:canary@");
    let (code, _, errors) = run(&folder, &["store", "status", &with_password]);
    assert!(code == 1 && errors.contains("give --password-file FILE") && !errors.contains("canary"), "{errors}");
}

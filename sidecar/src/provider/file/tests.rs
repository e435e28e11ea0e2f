use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use insta::assert_snapshot;
use posture::identity::{DeviceId, IdentifierKind, normal};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn json_of(devices: &Devices, identifier: &str) -> Option<String> {
    Some(devices.find(&normal(identifier))?.data().unwrap().as_json().to_owned())
}

/// The mistakes as an operator reads them.
fn mistakes(format: Format, text: impl AsRef<[u8]>) -> String {
    let file = match format {
        Format::Json => "staff.json",
        Format::Csv => "staff.csv",
    };
    parse(format, text.as_ref()).unwrap_err().in_file(Path::new(file)).to_string()
}

/// The mistakes of each text, one block each.
fn table(format: Format, texts: &[&str]) -> String {
    texts.iter().map(|text| mistakes(format, text)).collect::<Vec<_>>().join("\n\n")
}

mod json_files {
    use super::*;

    #[test]
    fn gives_data_as_it_stands() {
        let devices = parse_json(
            br#"{"devices": [
                {"identifier": "c02a", "data": {"z": 1.50, "a": [1e2, "\u00e9"], "": {"n": null}}},
                {"data": {}, "identifier": " C02B "},
                {"identifier": "C\u004fNE"}
            ]}"#,
        )
        .unwrap();
        assert_eq!(devices.len(), 3);
        assert_eq!(json_of(&devices, "C02A").unwrap(), r#"{"z": 1.50, "a": [1e2, "\u00e9"], "": {"n": null}}"#);
        assert_eq!(json_of(&devices, "c02b").unwrap(), "{}");
        assert_eq!(json_of(&devices, "cone").unwrap(), "{}");
        assert_eq!(json_of(&devices, "C02"), None);
    }

    #[test]
    fn takes_a_byte_order_mark_and_no_devices() {
        let devices = parse_json(b"\xef\xbb\xbf{\"devices\":[]}\r\n").unwrap();
        assert!(devices.is_empty());
        assert_eq!(json_of(&devices, "a"), None);
    }

    #[test]
    fn names_what_is_wrong_with_the_file() {
        let texts = [
            "",
            "[]",
            "{}",
            "{\"devices\":{}}",
            "{\"devices\":[",
            "{\"devices\":[{\"identifier\":\"a\"},]}",
            "{\"devices\":[]}\n{}",
            "{\n  \"device\": [],\n  \"devices\": [], \"devices\": []}",
            "\u{feff}x",
        ];
        assert_snapshot!(table(Format::Json, &texts), @r"
        staff.json:1:1: EOF while parsing a value

        staff.json:1:1: invalid type: sequence, expected an object with the member `devices`

        staff.json:1:1: the member `devices` is missing

        staff.json:1:11: invalid type: map, expected a list of devices

        staff.json:1:12: EOF while parsing a list

        staff.json:1:32: trailing comma

        staff.json:2:1: trailing characters

        staff.json:2:3: unknown member `device`; the file has `devices` alone
        staff.json:3:18: the member `devices` stands twice

        staff.json:1:1: expected value
        ");
    }

    #[test]
    fn shows_no_value_of_the_file() {
        for (text, said) in [
            (r#"{"devices":"alice@example.org, expected a"}"#, "invalid type: string, expected a list of devices"),
            (r#""alice@example.org""#, "invalid type: string, expected an object"),
            (r#"{"devices":1234567}"#, "invalid type: integer, expected a list of devices"),
            (r#"{"devices":[{"identifier":"a","data":"alice@example.org"}]}"#, "`data` must be an object"),
            (r#"{"devices":[{"identifier":"a","data":{"user":"alice@example.org\u12"}}]}"#, "invalid escape"),
        ] {
            let shown = mistakes(Format::Json, text);
            assert!(shown.contains(said) && !shown.contains("alice") && !shown.contains("1234567"), "{shown}");
        }
    }

    #[test]
    fn names_what_is_wrong_with_a_device() {
        let texts = [
            "{\"devices\":[\n  5, [], null]}",
            "{\"devices\":[{}, {\"data\":{}}]}",
            "{\"devices\":[\n  {\"identifer\":\"a\", \"data\":{}}]}",
            "{\"devices\":[{\"identifier\":7},{\"identifier\":null},{\"identifier\":\"\\ud800\"}]}",
            "{\"devices\":[{\"identifier\":\"\"},{\"identifier\":\" \\t\"},{\"identifier\":\"a\\nb\"}]}",
            "{\"devices\":[{\"identifier\":\"a\",\"identifier\":\"b\"},{\"identifier\":\"c\",\"data\":{},\"data\":{}}]}",
            "{\"devices\":[{\"identifier\":\"a\",\"data\":[]},{\"identifier\":\"b\",\"data\":null}]}",
            "{\"devices\":[{\"identifier\":\"é\",\"data\":{\"x\":{\"y\":1,\n\"y\":2}}}]}",
            "{\"devices\":[{\"identifier\":\"a\",\"data\":{\"x\":1e999}}]}",
            "{\"devices\":[{\"identifier\":\"a\",\"data\":{\"x\":\"\\udc00\"}}]}",
        ];
        assert_snapshot!(table(Format::Json, &texts), @r"
        staff.json:2:3: a device must be an object
        staff.json:2:6: a device must be an object
        staff.json:2:10: a device must be an object

        staff.json:1:13: the device has no `identifier`
        staff.json:1:17: the device has no `identifier`

        staff.json:2:3: the device has no `identifier`
        staff.json:2:4: unknown member `identifer`; a device has `identifier` and `data`

        staff.json:1:27: the identifier must be a string
        staff.json:1:44: the identifier must be a string
        staff.json:1:64: the identifier must be a string

        staff.json:1:27: the identifier is blank
        staff.json:1:45: the identifier is blank
        staff.json:1:66: the identifier has a control character

        staff.json:1:31: the member `identifier` stands twice
        staff.json:1:77: the member `data` stands twice

        staff.json:1:38: `data` must be an object
        staff.json:1:67: `data` must be an object

        staff.json:2:3: the member `y` stands twice

        staff.json:1:47: number out of range

        staff.json:1:49: lone leading surrogate in hex escape
        ");
    }

    #[test]
    fn names_both_lines_of_a_duplicate() {
        let text =
            "{\"devices\":[\n{\"identifier\":\"c02a\"},\n{\"identifier\":\"b\"},\n{\"identifier\":\" C02A\"}, {\"identifier\":\"C02a\"}]}";
        assert_snapshot!(mistakes(Format::Json, text), @r"
        staff.json:4:15: identifier `C02A` is already on line 2
        staff.json:4:39: identifier `C02A` is already on line 2
        ");
    }

    #[test]
    fn an_identifier_is_as_long_as_one_of_a_webhook_may_be() {
        let file = |length: usize| json!({"devices": [{"identifier": "a".repeat(length)}]}).to_string();
        assert_eq!(parse_json(file(254).as_bytes()).unwrap().len(), 1);
        assert!(DeviceId::new(IdentifierKind::Hostname, &"a".repeat(254)).is_ok());
        assert!(DeviceId::new(IdentifierKind::Hostname, &"a".repeat(255)).is_err());
        assert_snapshot!(mistakes(Format::Json, file(255)), @"staff.json:1:27: the identifier has 255 bytes; at most 254 are allowed");
    }

    #[test]
    fn deep_data_is_refused_and_overflows_nothing() {
        let deep = |levels: usize| {
            let (open, close) = (r#"{"a":"#.repeat(levels - 1), "}".repeat(levels - 1));
            format!(r#"{{"devices":[{{"identifier":"a","data":{open}{{}}{close}}}]}}"#)
        };
        assert_eq!(parse_json(deep(64).as_bytes()).unwrap().len(), 1);
        for levels in [65, 1_000, 1_000_000] {
            assert!(mistakes(Format::Json, deep(levels)).ends_with("`data` nests deeper than 64 levels"), "{levels}");
        }
        for text in ["[".repeat(1_000_000), "{\"devices\":".repeat(1_000_000), format!("{{\"devices\":{}", "[".repeat(1_000_000))] {
            assert!(parse_json(text.as_bytes()).is_err());
        }
    }

    #[test]
    fn shows_twenty_mistakes_and_counts_the_rest() {
        let text = format!("{{\"devices\":[{}]}}", ["{}"; 50].join(",\n"));
        let mistakes = parse_json(text.as_bytes()).unwrap_err();
        assert_eq!((mistakes.places().len(), mistakes.more()), (20, 30));
        assert!(mistakes.to_string().ends_with("devices:20:1: the device has no `identifier`\nand 30 more"));
    }

    #[test]
    fn an_object_of_many_members_is_checked_for_twins() {
        let mut members: Vec<_> = (0..1_000).map(|i| format!("\"m{i}\":{i}")).collect();
        let file = |members: &[String]| format!("{{\"devices\":[{{\"identifier\":\"a\",\"data\":{{{}}}}}]}}", members.join(","));
        assert!(parse_json(file(&members).as_bytes()).is_ok());
        members.push("\"m\\u0039\\u0039\":1".to_owned());
        assert!(mistakes(Format::Json, file(&members)).ends_with("the member `m99` stands twice"));
    }
}

mod csv_files {
    use super::*;

    #[test]
    fn other_columns_become_strings() {
        let devices = parse_csv(
            b"\xef\xbb\xbf IDENTIFIER ,Name,\"Full \"\"title\"\"\"\r\n\r\nc02a,Vera,\"a,b\"\"c\r\nd\"\r\n  \r\nC02B,,\xc3\xa9\r\n\"c,d\",1.50,true",
        )
        .unwrap();
        assert_eq!(devices.len(), 3);
        assert_eq!(json_of(&devices, "C02A").unwrap(), r#"{"Name":"Vera","Full \"title\"":"a,b\"c\r\nd"}"#);
        assert_eq!(json_of(&devices, "c02b").unwrap(), r#"{"Name":"","Full \"title\"":"é"}"#);
        assert_eq!(json_of(&devices, "C,D").unwrap(), r#"{"Name":"1.50","Full \"title\"":"true"}"#);
    }

    #[test]
    fn one_column_is_enough() {
        let devices = parse_csv(b"Identifier\nA\n\nB\n").unwrap();
        assert_eq!((devices.len(), json_of(&devices, "b")), (2, Some("{}".to_owned())));
        assert!(parse_csv(b"Identifier").unwrap().is_empty());
    }

    #[test]
    fn a_long_cell_reads_back() {
        for length in [127, 128, 16_383, 16_384, 3_000_000] {
            let cell = "é".repeat(length / 2) + if length % 2 == 1 { "x" } else { "" };
            let devices = parse_csv(format!("Identifier,a,b\nc02a,{cell},end\n").as_bytes()).unwrap();
            assert_eq!(json_of(&devices, "c02a").unwrap(), json!({"a": cell, "b": "end"}).to_string());
        }
    }

    #[test]
    fn names_what_is_wrong() {
        let texts = [
            "",
            "\n \r\n",
            "Name,Identifier\nx,y\n",
            "Identifier;Name\nx;y\n",
            "Identifier,,Name, Name,identifier\nx,y\n",
            "Identifier,Name\na\nb,c,d\n\ne,f\n",
            "Identifier,Name\n,c\n \t,d\na\u{7f},e\n",
            "Identifier,Name\na,b\"c\n\"d\"e,f\ng,h\"\n",
            "Identifier,Name\né,\"b\nc,d\n",
            "Identifier,Name\rx,y\r",
            "Identifier,Name\r\nx,y\r",
            "\"Identifier,Name\r\nx,y",
        ];
        assert_snapshot!(table(Format::Csv, &texts), @r"
        staff.csv:1:1: the file is empty; its first line must be a header that begins with `Identifier`

        staff.csv:1:1: the file is empty; its first line must be a header that begins with `Identifier`

        staff.csv:1:1: the first header is `Name` and must be `Identifier`; cells are separated by commas
        staff.csv:1:6: the header `Identifier` stands twice

        staff.csv:1:1: the first header is `Identifier;Name` and must be `Identifier`; cells are separated by commas

        staff.csv:1:12: the header is empty
        staff.csv:1:18: the header `Name` stands twice
        staff.csv:1:24: the header `identifier` stands twice

        staff.csv:2:1: cells in this row: 1, in the header: 2
        staff.csv:3:5: cells in this row: 3, in the header: 2

        staff.csv:2:1: the identifier is blank
        staff.csv:3:1: the identifier is blank
        staff.csv:4:1: the identifier has a control character

        staff.csv:2:4: a quote in a cell that is not quoted; quote the whole cell and double the quote
        staff.csv:3:4: text after the closing quote of a cell; double the quotes that belong to it
        staff.csv:4:4: a quote in a cell that is not quoted; quote the whole cell and double the quote

        staff.csv:2:3: the quoted cell that begins here does not end

        staff.csv:1:16: a carriage return without a line feed; end the lines with either LF or CR LF

        staff.csv:2:4: a carriage return without a line feed; end the lines with either LF or CR LF

        staff.csv:1:1: the quoted cell that begins here does not end
        ");
    }

    #[test]
    fn names_both_lines_of_a_duplicate() {
        assert_snapshot!(mistakes(Format::Csv, "\nIdentifier,Name\nc02a,\"x\ny\"\nb,x\n C02A,z\n"), @"staff.csv:6:1: identifier `C02A` is already on line 3");
    }

    #[test]
    fn text_that_is_not_utf_8_is_refused() {
        assert_snapshot!(mistakes(Format::Csv, b"Identifier,Name\nc02a,M\xfcller\n"), @"staff.csv:2:7: the text is not UTF-8");
        assert_snapshot!(mistakes(Format::Json, b"{\"devices\":[\n\xff]}"), @"staff.json:2:1: the text is not UTF-8");
    }
}

#[test]
fn look_alikes_are_not_found() {
    let devices = parse_csv("Identifier\nC02A\nſ1\n".as_bytes()).unwrap();
    for other in ["С02A", "\u{a0}C02A", "C02A\u{200b}", "C02", "C02AA", "S1", "s1", ""] {
        assert_eq!(json_of(&devices, other), None, "{other:?}");
    }
}

#[test]
fn twenty_thousand_devices_take_no_more_than_their_share() {
    let rows: Vec<_> = (0..20_000).map(|i| (format!("C02{i:08}"), format!("user{i}"))).collect();
    let as_json: Vec<_> =
        rows.iter().map(|(identifier, user)| json!({"identifier": identifier, "data": {"user": {"username": user}}})).collect();
    let as_csv: String = rows.iter().map(|(identifier, user)| format!("{identifier},{user},\n")).collect();
    for (format, text) in [
        (Format::Json, json!({ "devices": as_json }).to_string()),
        (Format::Csv, format!("Identifier,username,a column with a rather long name that is mostly empty\n{as_csv}")),
    ] {
        let devices = parse(format, text.as_bytes()).unwrap();
        assert_eq!(devices.len(), rows.len());
        assert!(devices.bytes() <= text.len() + 20 * rows.len(), "{format:?}: {} of {}", devices.bytes(), text.len());
        assert!(rows.iter().all(|(identifier, user)| json_of(&devices, identifier).unwrap().contains(user)));
    }
}

#[test]
fn devices_do_not_print() {
    let devices = parse_csv(b"Identifier,Name\nC02A,private\n").unwrap();
    assert!(format!("{devices:?}").starts_with("Devices(1 devices, "));
}

mod provider {
    use super::*;

    struct Inventory {
        folder: tempfile::TempDir,
        settings: Settings,
    }

    impl Inventory {
        fn new(format: Format, text: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let settings = Settings { path: folder.path().join("staff"), format, identifier: IdentifierKind::Serial, max_shrink: 0.1 };
            fs::write(&settings.path, text).unwrap();
            Self { folder, settings }
        }

        fn of(devices: usize) -> Self {
            Self::new(Format::Csv, &rows(devices, ""))
        }

        fn open(&self) -> FileProvider {
            FileProvider::open(&self.settings).unwrap()
        }

        fn write(&self, text: &str) {
            fs::write(&self.settings.path, text).unwrap();
        }

        /// What an error says, without the folder.
        fn says(&self, error: &FileError) -> String {
            error.to_string().replace(&format!("{}/", self.folder.path().display()), "")
        }
    }

    fn rows(devices: usize, edition: &str) -> String {
        let rows: String = (0..devices).map(|i| format!("d{i},{edition}\n")).collect();
        format!("Identifier,edition\n{rows}")
    }

    fn device(identifier: &str) -> DeviceId {
        DeviceId::new(IdentifierKind::Serial, identifier).unwrap()
    }

    fn answer(provider: &FileProvider, identifier: &str) -> Option<String> {
        match provider.lookup(&device(identifier)) {
            Answer::Found(record) => record.data.value().cloned(),
            Answer::NotFound => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a15_a_question_for_another_kind_finds_nothing() {
        let mut inventory = Inventory::new(Format::Json, r#"{"devices":[{"identifier":"a","data":{"x":1}}]}"#);
        for listed in IdentifierKind::ALL {
            inventory.settings.identifier = *listed;
            let provider = inventory.open();
            for kind in IdentifierKind::ALL {
                let answer = provider.lookup(&DeviceId::new(*kind, " A ").unwrap());
                if kind == listed {
                    assert!(matches!(answer, Answer::Found(record) if record.data.value().is_some_and(|json| json == r#"{"x":1}"#)));
                } else {
                    assert_eq!(answer, Answer::InvalidIdentifier, "{kind} of a file of {listed}");
                }
                let other = provider.lookup(&DeviceId::new(*kind, "b").unwrap());
                assert_eq!(other, if kind == listed { Answer::NotFound } else { Answer::InvalidIdentifier });
            }
            assert_eq!((provider.len(), provider.is_empty()), (1, false));
        }
    }

    #[test]
    fn a15_a_udid_is_the_same_with_its_dashes_and_without() {
        let udid = |text: &str| DeviceId::new(IdentifierKind::Udid, text).unwrap();
        for (dashed, plain) in [
            ("00008103-001A2B3C4D5E6F70", "00008103001a2b3c4d5e6f70"),
            ("6F1C2B3A-0D4E-4F5A-8B6C-7D8E9F0A1B2C", "6f1c2b3a0d4e4f5a8b6c7d8e9f0a1b2c"),
        ] {
            for listed in [dashed, plain] {
                let mut inventory = Inventory::new(Format::Csv, &format!("Identifier,x\n{listed},1\nother,2\n"));
                inventory.settings.identifier = IdentifierKind::Udid;
                for asked in [dashed, plain] {
                    assert!(matches!(inventory.open().lookup(&udid(asked)), Answer::Found(_)), "{asked} of {listed}");
                }
                assert_eq!(inventory.open().lookup(&udid(&plain.replace('0', "1"))), Answer::NotFound);
            }
            // One device in two rows.
            let mut inventory = Inventory::new(Format::Csv, &format!("Identifier,x\n{dashed},1\n{plain},2\n"));
            inventory.settings.identifier = IdentifierKind::Udid;
            assert_eq!(inventory.open().lookup(&udid(dashed)), Answer::Ambiguous);
            // A serial number with a dash is another one.
            inventory.settings.identifier = IdentifierKind::Serial;
            inventory.write(&format!("Identifier,x\n{dashed},1\n"));
            assert_eq!(answer(&inventory.open(), plain), None);
        }
        let mut inventory = Inventory::new(Format::Csv, "Identifier,x\n0123456789abcdef0123456789abcdef01234567,1\n");
        inventory.settings.identifier = IdentifierKind::Udid;
        assert!(matches!(inventory.open().lookup(&udid("0123456789ABCDEF0123456789ABCDEF01234567")), Answer::Found(_)));
        assert!(DeviceId::new(IdentifierKind::Udid, "-").is_err(), "without its dashes it is nothing");
    }

    #[test]
    fn a_reload_replaces_the_devices() {
        let inventory = Inventory::new(Format::Csv, "Identifier,x\na,1\nb,2\n");
        let provider = inventory.open();
        assert!(!provider.changed());
        inventory.write("Identifier,x\na,3\nc,4\nd,5\n");
        assert!(provider.changed());
        assert_eq!(answer(&provider, "a").unwrap(), r#"{"x":"1"}"#);
        assert_eq!(provider.reload(false).unwrap(), Reloaded::Applied { had: 2, has: 3 });
        assert!(!provider.changed());
        assert_eq!(answer(&provider, "a").unwrap(), r#"{"x":"3"}"#);
        assert_eq!(answer(&provider, "b"), None);
    }

    #[test]
    fn a_file_with_the_same_bytes_is_unchanged() {
        let inventory = Inventory::of(3);
        let provider = inventory.open();
        fs::rename(&inventory.settings.path, inventory.folder.path().join("old")).unwrap();
        inventory.write(&rows(3, ""));
        assert!(provider.changed());
        assert_eq!(provider.reload(false).unwrap(), Reloaded::Unchanged);
        assert!(!provider.changed());
    }

    #[test]
    fn a_bad_file_leaves_the_old_devices_and_is_read_once() {
        let inventory = Inventory::new(Format::Json, r#"{"devices":[{"identifier":"a"}]}"#);
        let provider = inventory.open();
        inventory.write("{\"devices\":[{\"identifier\":\"a\"},\n{\"identif");
        assert_snapshot!(inventory.says(&provider.reload(true).unwrap_err()), @"staff:2:9: EOF while parsing a string");
        assert!(!provider.changed());
        assert_eq!(answer(&provider, "a").unwrap(), "{}");
        fs::remove_file(&inventory.settings.path).unwrap();
        assert!(provider.changed());
        let error = provider.reload(true).unwrap_err();
        assert_snapshot!(inventory.says(&error), @"device file staff cannot be read");
        assert!(std::error::Error::source(&error).is_some());
        assert!(!provider.changed());
        assert_eq!(answer(&provider, "a").unwrap(), "{}");
        inventory.write(r#"{"devices":[{"identifier":"b"}]}"#);
        assert!(provider.changed());
        assert_eq!(provider.reload(false).unwrap(), Reloaded::Applied { had: 1, has: 1 });
    }

    #[test]
    fn a_file_that_lost_too_many_rows_is_applied_only_when_told() {
        let inventory = Inventory::of(20);
        let provider = inventory.open();
        inventory.write(&rows(17, ""));
        assert_snapshot!(inventory.says(&provider.reload(false).unwrap_err()), @"device file staff shrank from 20 devices to 17, by more than max_shrink = 0.1; if that is right, run `stepward reload --accept-shrink <provider>`");
        assert_eq!((provider.len(), provider.changed()), (20, false));
        assert_eq!(provider.reload(true).unwrap(), Reloaded::Applied { had: 20, has: 17 });
        inventory.write(&rows(20, ""));
        assert_eq!(provider.reload(false).unwrap(), Reloaded::Applied { had: 17, has: 20 });
        inventory.write(&rows(18, ""));
        assert_eq!(provider.reload(false).unwrap(), Reloaded::Applied { had: 20, has: 18 });
    }

    #[test]
    fn max_shrink_ranges_from_nothing_to_everything() {
        let mut inventory = Inventory::of(2);
        for (max_shrink, has, applied) in [(0.0, 1, false), (0.0, 2, true), (0.5, 1, true), (0.5, 0, false), (1.0, 0, true)] {
            inventory.settings.max_shrink = max_shrink;
            inventory.write(&rows(2, ""));
            let provider = inventory.open();
            inventory.write(&rows(has, "new"));
            assert_eq!(provider.reload(false).is_ok(), applied, "{max_shrink} {has}");
        }
    }

    #[test]
    fn follows_the_links_that_kubernetes_swaps() {
        let mut inventory = Inventory::of(0);
        let folder = inventory.folder.path().to_owned();
        let link = |to: &str| {
            std::os::unix::fs::symlink(to, folder.join("..data_tmp")).unwrap();
            fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        };
        for edition in ["one", "two"] {
            fs::create_dir(folder.join(edition)).unwrap();
            fs::write(folder.join(edition).join("staff.csv"), rows(1, edition)).unwrap();
        }
        link("one");
        std::os::unix::fs::symlink("..data/staff.csv", folder.join("staff.csv")).unwrap();
        inventory.settings.path = folder.join("staff.csv");
        let provider = inventory.open();
        link("two");
        assert!(provider.changed());
        provider.reload(false).unwrap();
        assert_eq!(answer(&provider, "d0").unwrap(), r#"{"edition":"two"}"#);
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_refused() {
        let inventory = Inventory::of(3);
        let path = &inventory.settings.path;
        let read = |text: &str| Contents::read(path, || inventory.write(text)).map(|contents| contents.bytes);
        for text in [rows(4, ""), rows(2, ""), rows(3, "")] {
            assert_eq!(inventory.says(&read(&text).unwrap_err()), "device file staff changed while it was read");
        }
        assert_eq!(Contents::read(path, || ()).unwrap().bytes, rows(3, "").as_bytes());
    }

    #[test]
    fn refuses_what_is_no_file_or_too_long() {
        let mut inventory = Inventory::of(1);
        let folder = inventory.folder.path().to_owned();
        inventory.settings.path = folder.join("long");
        fs::File::create(&inventory.settings.path).unwrap().set_len(1 << 32).unwrap();
        assert_snapshot!(inventory.says(&FileProvider::open(&inventory.settings).unwrap_err()), @"device file long has 4294967296 bytes; at most 4294967295 can be taken");
        inventory.settings.path = folder;
        assert!(matches!(FileProvider::open(&inventory.settings), Err(FileError::NotAFile { .. })));
        inventory.settings.path = "/dev/zero".into();
        assert_snapshot!(inventory.says(&FileProvider::open(&inventory.settings).unwrap_err()), @"device file /dev/zero is not a regular file");
    }

    #[test]
    fn g12_a_pipe_that_takes_the_place_of_the_file_keeps_nobody_waiting() {
        let inventory = Inventory::of(3);
        let provider = Arc::new(inventory.open());
        let at = |name: &str| inventory.folder.path().join(name);
        assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        fs::copy(&inventory.settings.path, at("file")).unwrap();
        let (reader, (done, end)) = (Arc::clone(&provider), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            for _ in 0..5_000 {
                // Whatever stands there at the moment.
                let _ = reader.reload(false);
            }
            done.send(()).unwrap();
        });
        // A second name takes the place of the file, so that it is there at every moment.
        let mut ended = false;
        for name in ["pipe", "file"].iter().cycle().take(500_000) {
            ended = end.try_recv().is_ok();
            if ended {
                break;
            }
            fs::hard_link(at(name), at("next")).unwrap();
            fs::rename(at("next"), &inventory.settings.path).unwrap();
        }
        assert!(ended || end.recv_timeout(std::time::Duration::from_secs(30)).is_ok(), "somebody waits for a writer");
        assert_eq!(provider.len(), 3);
    }

    #[test]
    fn lookups_see_one_edition_or_the_next_and_never_go_back() {
        const EDITIONS: u32 = 40;
        let inventory = Inventory::new(Format::Csv, &rows(50, "0"));
        let provider = inventory.open();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..3)
                .map(|reader| {
                    let (provider, done) = (&provider, &done);
                    scope.spawn(move || {
                        let mut last = 0;
                        for i in reader.. {
                            let finished = done.load(Ordering::Acquire);
                            let data: BTreeMap<String, String> =
                                serde_json::from_str(&answer(provider, &format!("d{}", i % 50)).unwrap()).unwrap();
                            let edition = data["edition"].parse::<u32>().unwrap();
                            assert!(edition >= last, "{edition} after {last}");
                            last = edition;
                            if finished {
                                break;
                            }
                        }
                        last
                    })
                })
                .collect();
            for edition in 1..=EDITIONS {
                inventory.write(&rows(50, &edition.to_string()));
                assert_eq!(provider.reload(false).unwrap(), Reloaded::Applied { had: 50, has: 50 });
            }
            done.store(true, Ordering::Release);
            for reader in readers {
                assert_eq!(reader.join().unwrap(), EDITIONS);
            }
        });
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,4}", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Identifiers, no two of which are equal once they are normalised.
fn identifiers() -> impl Strategy<Value = Vec<String>> {
    prop::collection::btree_map(
        "[ -~à-ÿ]{1,20}".prop_filter("blank", |text| !text.trim_ascii().is_empty()).prop_map(|text| (normal(&text).into_owned(), text)),
        Just(()),
        0..20,
    )
    .prop_map(|map| map.into_keys().collect::<BTreeMap<_, _>>().into_values().collect())
}

/// A piece of a row, often one that changes where the row ends.
fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "", "", "a", " ", "é", ",", "\n", "\n \n", "\r", "\r\n", "\"", "\"\"", "\"a,\n\"\"b\"", "\"\"\"\""])
}

proptest! {
    #[test]
    fn json_that_is_printed_reads_back(
        identifiers in identifiers(),
        data in prop::collection::vec(prop::collection::btree_map(".{0,6}", any_json(), 0..4), 20),
        pretty: bool,
    ) {
        let list: Vec<_> = identifiers.iter().zip(&data).map(|(id, data)| json!({"identifier": id, "data": data})).collect();
        let file = json!({ "devices": list });
        let text = if pretty { serde_json::to_string_pretty(&file) } else { serde_json::to_string(&file) }.unwrap();
        let devices = parse_json(text.as_bytes()).unwrap();
        prop_assert_eq!(devices.len(), identifiers.len());
        for (identifier, data) in identifiers.iter().zip(&data) {
            let read: Value = serde_json::from_str(&json_of(&devices, identifier).unwrap()).unwrap();
            let printed: Value = serde_json::from_str(&serde_json::to_string(data).unwrap()).unwrap();
            prop_assert_eq!(read, printed);
        }
    }

    #[test]
    fn csv_that_is_printed_reads_back(
        identifiers in identifiers(),
        cells in prop::collection::vec([any::<String>(), any::<String>()], 20),
        crlf: bool,
        quoted: bool,
    ) {
        let mut writer = ::csv::WriterBuilder::new()
            .terminator(if crlf { ::csv::Terminator::CRLF } else { ::csv::Terminator::Any(b'\n') })
            .quote_style(if quoted { ::csv::QuoteStyle::Always } else { ::csv::QuoteStyle::Necessary })
            .from_writer(Vec::new());
        writer.write_record(["Identifier", "a", "b"]).unwrap();
        for (identifier, [a, b]) in identifiers.iter().zip(&cells) {
            writer.write_record([identifier, a, b]).unwrap();
        }
        let devices = parse_csv(&writer.into_inner().unwrap()).unwrap();
        prop_assert_eq!(devices.len(), identifiers.len());
        for (identifier, [a, b]) in identifiers.iter().zip(&cells) {
            prop_assert_eq!(json_of(&devices, identifier).unwrap(), json!({"a": a, "b": b}).to_string());
        }
    }

    #[test]
    fn whatever_a_mutation_makes_of_a_file_is_read_or_refused(
        format in prop_oneof![Just(Format::Json), Just(Format::Csv)],
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..4),
    ) {
        let mut bytes = match format {
            Format::Json => "{\"devices\":[{\"identifier\":\"é1\",\"data\":{\"a\":[1,-2.5e3,\"\\u00e9\",{}]}},\n{\"identifier\":\"b\"}]}",
            Format::Csv => "Identifier,\"na\"\"me\",x\r\né1,\"a,\r\nb\",\r\nb,c,d\n",
        }.as_bytes().to_vec();
        for (index, byte, how) in mutations {
            if bytes.is_empty() { break; }
            let at = index.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => { bytes.remove(at); }
            }
        }
        if let Err(mistakes) = parse(format, &bytes) {
            prop_assert!(!mistakes.places().is_empty());
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
            prop_assert!(mistakes.places().iter().all(|place| place.line >= 1 && place.line <= lines && place.column >= 1));
        }
    }

    #[test]
    fn rows_that_are_taken_are_those_that_a_lenient_reader_sees(rows in prop::collection::vec((piece(), piece(), piece()), 0..6)) {
        let rows = rows.iter().enumerate().map(|(i, (identifier, cell, end))| format!("{i}{identifier},{cell}{end}\n"));
        let text = format!("Identifier,x\n{}", rows.collect::<String>());
        if let Ok(devices) = parse_csv(text.as_bytes()) {
            let reader = ::csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
            let rows: Vec<_> = reader.into_records().map(Result::unwrap).filter(|row| row.len() > 1).collect();
            prop_assert_eq!(devices.len(), rows.len());
            for row in rows {
                prop_assert_eq!(json_of(&devices, &row[0]).unwrap(), json!({"x": row[1]}).to_string());
            }
        }
    }

    #[test]
    fn whatever_bytes_there_are_are_read_or_refused(bytes: Vec<u8>, text: String) {
        for format in [Format::Json, Format::Csv] {
            for bytes in [&bytes, text.as_bytes()] {
                if let Ok(devices) = parse(format, bytes) {
                    prop_assert!(devices.find("no such device").is_none());
                }
            }
        }
    }
}

#[test]
fn a_dashes_where_no_udid_has_them_make_another_device_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("devices.csv");
    fs::write(&path, "Identifier\n00008103001234567890001E\n").unwrap();
    let settings = Settings { path, format: Format::Csv, identifier: IdentifierKind::Udid, max_shrink: 0.1 };
    let provider = FileProvider::open(&settings).unwrap();
    let found = |text: &str| matches!(provider.lookup(&DeviceId::new(IdentifierKind::Udid, text).unwrap()), Answer::Found(_));
    for text in ["00008103-001234567890001E", "00008103001234567890001e"] {
        assert!(found(text), "{text}");
    }
    for text in ["0000-8103001234567890001E", "-00008103-001234567890001E", "00008103--001234567890001E", "00008103-001234567890001E-"] {
        assert!(!found(text), "{text}");
    }
}

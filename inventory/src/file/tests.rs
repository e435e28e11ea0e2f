use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use insta::assert_snapshot;
use posture::identity::{DeviceId, IdentifierKind, normal};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::placeholders::Placeholders;

/// Settings of a file of this format, by which every text identifies a device.
fn settings(format: Format) -> Settings {
    Settings { placeholders: Placeholders::new([""; 0]), ..Settings::new("staff".into(), format) }
}

fn parse(format: Format, bytes: &[u8]) -> Result<Devices, Mistakes> {
    super::parse(&settings(format), bytes).map(|parsed| parsed.devices)
}

fn parse_json(bytes: &[u8]) -> Result<Devices, Mistakes> {
    parse(Format::Json, bytes)
}

fn parse_csv(bytes: &[u8]) -> Result<Devices, Mistakes> {
    parse(Format::Csv, bytes)
}

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

        staff.json:1:27: the identifier must be a string
        staff.json:1:44: the identifier must be a string
        staff.json:1:64: the identifier must be a string

        staff.json:1:27: the identifier is blank
        staff.json:1:45: the identifier is blank
        staff.json:1:66: the identifier has a control character

        staff.json:1:31: the member `identifier` stands twice
        staff.json:1:77: the member `data` stands twice

        staff.json:1:38: `data` must be an object

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
            "Name,Owner\nx,y\n",
            "Name;Owner,of;Team\nx;y;z\n",
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
        staff.csv:1:1: the file is empty; its first line must be a header, one of which is `Identifier`

        staff.csv:1:1: the file is empty; its first line must be a header, one of which is `Identifier`

        staff.csv:1:1: no header is known for identifiers of kind serial; name one of `Name`, `Owner` by identifier_column, or call it `Identifier`

        staff.csv:1:1: no header is known for identifiers of kind serial; name one of `Name`, `Owner,of`, `Team` by identifier_column, or call it `Identifier`

        staff.csv:1:24: the header `identifier` of the identifiers stands twice

        staff.csv:2:1: cells in this row: 1, in the header: 2
        staff.csv:3:5: cells in this row: 3, in the header: 2

        staff.csv:2:1: the identifier is blank
        staff.csv:3:1: the identifier is blank
        staff.csv:4:1: the identifier has a control character

        staff.csv:2:4: a quote in a cell that is not quoted; quote the whole cell and double the quote
        staff.csv:3:4: text after the closing quote of a cell; double the quotes that belong to it
        staff.csv:4:4: a quote in a cell that is not quoted; quote the whole cell and double the quote

        staff.csv:2:3: the quoted cell that begins here does not end

        staff.csv:1:16: a carriage return without a line feed; end the lines with either LF or CR LF, as a file saved as `CSV UTF-8` does

        staff.csv:2:4: a carriage return without a line feed; end the lines with either LF or CR LF, as a file saved as `CSV UTF-8` does

        staff.csv:1:1: the quoted cell that begins here does not end
        ");
    }

    #[test]
    fn names_both_lines_of_a_duplicate() {
        assert_snapshot!(mistakes(Format::Csv, "\nIdentifier,Name\nc02a,\"x\ny\"\nb,x\n C02A,z\n"), @"staff.csv:6:1: identifier `C02A` is already on line 3");
    }

    #[test]
    fn text_that_is_not_utf_8_is_refused() {
        assert_snapshot!(mistakes(Format::Csv, b"Identifier,Name\nc02a,M\xfcller\n"), @"staff.csv:2:7: the text is neither UTF-8 nor UTF-16 with a byte order mark; save the file as UTF-8, which Excel calls `CSV UTF-8`");
        assert_snapshot!(mistakes(Format::Json, b"{\"devices\":[\n\xff]}"), @"staff.json:2:1: the text is neither UTF-8 nor UTF-16 with a byte order mark; save the file as UTF-8, which Excel calls `CSV UTF-8`");
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
            let settings = Settings::new(folder.path().join("staff"), format);
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

        /// The text of an error, without the folder.
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
            // The file has one device in two rows.
            let mut inventory = Inventory::new(Format::Csv, &format!("Identifier,x\n{dashed},1\n{plain},2\n"));
            inventory.settings.identifier = IdentifierKind::Udid;
            assert_eq!(inventory.open().lookup(&udid(dashed)), Answer::Ambiguous);
            // A serial number with a dash is another serial number.
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
        let readings = provider.readings();
        assert_eq!(provider.reload(false).unwrap(), Reloaded::Applied { had: 2, has: 3 });
        assert!(!provider.changed());
        assert_eq!(provider.readings(), readings + 1, "answers may be others");
        assert_eq!(answer(&provider, "a").unwrap(), r#"{"x":"3"}"#);
        assert!(!provider.is_empty() && Inventory::new(Format::Csv, "Identifier,x\n").open().is_empty());
        assert_eq!(answer(&provider, "b"), None);
    }

    #[test]
    fn a_file_with_the_same_bytes_is_unchanged() {
        let inventory = Inventory::of(3);
        let provider = inventory.open();
        fs::rename(&inventory.settings.path, inventory.folder.path().join("old")).unwrap();
        inventory.write(&rows(3, ""));
        assert!(provider.changed());
        let readings = provider.readings();
        assert_eq!(provider.reload(false).unwrap(), Reloaded::Unchanged);
        assert_eq!((provider.changed(), provider.readings()), (false, readings));
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
        inventory.write(&rows(14, ""));
        assert_snapshot!(inventory.says(&provider.reload(false).unwrap_err()), @"device file staff shrank from 20 devices to 14, by more than max_shrink = 0.1: devices that are gone from it are still let in");
        assert_eq!((provider.len(), provider.changed()), (20, false));
        assert_eq!(provider.reload(true).unwrap(), Reloaded::Applied { had: 20, has: 14 });
        inventory.write(&rows(20, ""));
        assert_eq!(provider.reload(false).unwrap(), Reloaded::Applied { had: 14, has: 20 });
        inventory.write(&rows(18, ""));
        assert_eq!(provider.reload(false).unwrap(), Reloaded::Applied { had: 20, has: 18 });
    }

    #[test]
    fn e5_a_short_list_may_lose_a_few_rows_and_never_all_of_them() {
        let mut inventory = Inventory::of(3);
        for (had, max_shrink, has, applied) in [
            (3, 0.1, 2, true),
            (3, 0.1, 1, true),
            (3, 0.1, 0, false),
            (3, 0.0, 2, false),
            (20, 0.1, 15, true),
            (20, 0.1, 14, false),
            (6, 0.1, 1, true),
            (7, 0.1, 1, false),
            (3, 1.0, 0, true),
        ] {
            inventory.settings.max_shrink = max_shrink;
            inventory.write(&rows(had, ""));
            let provider = inventory.open();
            inventory.write(&rows(has, "new"));
            assert_eq!(provider.reload(false).is_ok(), applied, "{had} {max_shrink} {has}");
        }
    }

    #[test]
    fn e5_a_list_that_waits_for_its_operator_is_not_applied_by_other_settings() {
        let mut inventory = Inventory::of(20);
        let provider = inventory.open();
        assert!(provider.pending_shrink().is_none());
        inventory.write(&rows(3, ""));
        assert!(provider.reload(false).is_err());
        let pending = provider.pending_shrink().unwrap();
        assert_eq!((pending.had, pending.has), (20, 3));
        let before = inventory.settings.clone();
        inventory.settings.max_shrink = 0.2;
        assert!(matches!(FileProvider::open_after(&inventory.settings, &provider), Err(FileError::Shrunk(_))));
        inventory.settings.max_shrink = 1.0;
        assert_eq!(FileProvider::open_after(&inventory.settings, &provider).unwrap().len(), 3, "the new settings let it lose them");
        // A file of other settings is another list, and has lost nothing.
        inventory.settings = Settings { identifier: IdentifierKind::Udid, ..before };
        assert_eq!(FileProvider::open_after(&inventory.settings, &provider).unwrap().len(), 3);
        // The operator's word holds only for the list that it was said of.
        provider.reload(true).unwrap();
        assert!(provider.pending_shrink().is_none());
    }

    #[test]
    fn max_shrink_ranges_from_nothing_to_everything() {
        let mut inventory = Inventory::of(20);
        for (max_shrink, has, applied) in [(0.0, 19, false), (0.0, 20, true), (0.5, 10, true), (0.5, 9, false), (1.0, 0, true)] {
            inventory.settings.max_shrink = max_shrink;
            inventory.write(&rows(20, ""));
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
                // The path names the pipe or the file at random.
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

/// Files as spreadsheets and managements write them.
mod exports {
    use super::*;

    /// The content of a file, and the warnings as an operator reads them.
    fn read(settings: &Settings, bytes: impl AsRef<[u8]>) -> (Parsed, String) {
        let parsed = super::super::parse(settings, bytes.as_ref()).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let warnings = parsed.warnings.in_file(Path::new("staff")).to_string();
        (parsed, warnings)
    }

    fn csv() -> Settings {
        Settings::new("staff".into(), Format::Csv)
    }

    /// Separator, column and name of the column with the identifiers.
    fn header(settings: &Settings, text: &str) -> (char, usize, String) {
        let header = read(settings, text).0.header.unwrap();
        (header.separator, header.column, header.name)
    }

    fn refused(settings: &Settings, text: impl AsRef<[u8]>) -> String {
        super::super::parse(settings, text.as_ref()).unwrap_err().in_file(Path::new("staff")).to_string()
    }

    #[test]
    fn d4_utf_16_that_says_so_is_read_and_everything_else_that_is_not_utf_8_is_refused() {
        let text = "Identifier,Name\r\nc02a,Mü𝄞\r\n";
        let units = |order: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(order).collect::<Vec<u8>>();
        let (little, big) = (units(u16::to_le_bytes), units(u16::to_be_bytes));
        for (mark, bytes) in
            [(&b"\xff\xfe"[..], &little), (b"\xfe\xff", &big), (b"\xef\xbb\xbf", &text.as_bytes().to_vec()), (b"", &text.into())]
        {
            let (parsed, warnings) = read(&csv(), [mark, bytes.as_slice()].concat());
            assert_eq!((json_of(&parsed.devices, "C02A").unwrap(), warnings.as_str()), (r#"{"Name":"Mü𝄞"}"#.to_owned(), ""));
        }
        let json = "{\"devices\":[{\"identifier\":\"a\"}]}".encode_utf16().flat_map(u16::to_le_bytes);
        let json: Vec<u8> = [0xff, 0xfe].into_iter().chain(json).collect();
        assert_eq!(read(&settings(Format::Json), json).0.devices.len(), 1);
        let half = [b"\xff\xfe", little.as_slice(), b"x"].concat();
        let lone = [b"\xff\xfe", little.as_slice(), b"\x00\xd8", b"x\x00"].concat();
        let utf_32: Vec<u8> = "\u{feff}Identifier".chars().flat_map(|letter| u32::from(letter).to_le_bytes()).collect();
        for (bytes, place) in
            [(little, "1:1"), (big, "1:1"), (utf_32, "1:1"), (half, "3:1"), (lone, "3:1"), (b"Identifier\n\xfc\n".to_vec(), "2:1")]
        {
            let said = refused(&csv(), &bytes);
            assert!(said.starts_with(&format!("staff:{place}: ")) && said.contains("save the file as UTF-8"), "{said}");
        }
    }

    #[test]
    fn d4_what_separates_cells_is_said_by_the_first_line_or_found_from_the_header() {
        for (text, expected) in [
            ("Identifier,Name\nA,x\n", (',', 0)),
            ("Identifier;Name\nA;x,y\n", (';', 0)),
            ("Identifier\tName\nA\tx;y\n", ('\t', 0)),
            ("Name;Serial Number\nx;A\n", (';', 1)),
            ("\"Name, first\";\"Serial Number\"\nx;A\n", (';', 1)),
            ("sep=;\r\nIdentifier;Name\r\nA;x\r\n", (';', 0)),
            ("\u{feff}SEP=|\nIdentifier|Name\nA|x\n", ('|', 0)),
            ("\"sep=\t\"\nIdentifier\tName\nA\tx\n", ('\t', 0)),
            ("sep=,\nIdentifier,Name;Serial\nA,x\n", (',', 0)),
            // One column is the same with any separator that does not occur.
            ("Identifier\nA\n", (',', 0)),
            ("Serial Number\nA\n", (',', 0)),
            // Our own header is more certain than one of a management.
            ("Identifier,Name;Serial\nA,x\n", (',', 0)),
        ] {
            let (separator, column, _) = header(&csv(), text);
            assert_eq!((separator, column), expected, "{text:?}");
            assert!(json_of(&read(&csv(), text).0.devices, "a").is_some(), "{text:?}");
        }
        assert_snapshot!(refused(&csv(), "Serial,x;Serial\nA,x\n"), @"staff:1:1: the header can be read with more than one separator; put `sep=;`, or whichever it is, into a line of its own before it");
        assert_snapshot!(refused(&csv(), "sep=#\nIdentifier#x\n"), @"staff:1:1: cells are separated by a comma, a semicolon, a tab or a bar, and not by `#`");
        assert_snapshot!(refused(&csv(), "sep=;\n"), @"staff:2:1: the file is empty; its first line must be a header, one of which is `Identifier`");
        assert_snapshot!(refused(&csv(), "sep=;\nIdentifier,Name\n"), @"staff:2:1: no header is known for identifiers of kind serial; name one of `Identifier,Name` by identifier_column, or call it `Identifier`");
    }

    #[test]
    fn d4_lines_of_an_old_macintosh_are_refused_with_what_to_do() {
        for text in ["Serial Number;Owner\rA;x\r", "Serial Number,Owner\rA,x\r", "Identifier\rA\r"] {
            let said = refused(&csv(), text);
            assert!(said.contains("a carriage return without a line feed") && said.contains("CSV UTF-8") && !said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn d6_exports_of_managements_are_known_by_their_headers() {
        for (kind, text, name) in [
            // Jamf Pro, an advanced search and the template of Inventory Preload.
            (IdentifierKind::Serial, "Computer Name,Serial Number,UDID\nmac-1,A,x\n", "Serial Number"),
            (IdentifierKind::Udid, "Computer Name,Serial Number,UDID\nmac-1,x,A\n", "UDID"),
            (IdentifierKind::Hostname, "Computer Name,Serial Number,UDID\nA,x,y\n", "Computer Name"),
            // Intune: the admin center, the report `Devices`, and Autopilot.
            (IdentifierKind::Serial, "Device ID,Device name,Serial number\n1,pc,A\n", "Serial number"),
            (IdentifierKind::Serial, "DeviceId,DeviceName,SerialNumber,UPN\n1,pc,A,x\n", "SerialNumber"),
            (IdentifierKind::Serial, "Device Serial Number,Windows Product ID,Hardware Hash\nA,,x\n", "Device Serial Number"),
            (IdentifierKind::Email, "Device name,Primary user UPN,Primary user email address\npc,x,A\n", "Primary user email address"),
            // Kandji, Mosyle and Addigy, as their interfaces name it.
            (IdentifierKind::Serial, "device_id,device_name,serial_number,asset_tag\n1,mac,A,\n", "serial_number"),
            (IdentifierKind::Udid, "deviceudid,serial_number,device_name\nA,x,y\n", "deviceudid"),
            // Fleet, hosts/report.
            (IdentifierKind::Serial, "id,hostname,uuid,hardware_serial,computer_name\n1,h,u,A,c\n", "hardware_serial"),
            (IdentifierKind::Udid, "id,hostname,uuid,hardware_serial,computer_name\n1,h,A,s,c\n", "uuid"),
            // Google and Apple.
            (IdentifierKind::Serial, "deviceId,serialNumber,status\n1,A,ACTIVE\n", "serialNumber"),
            (IdentifierKind::Serial, "Serial Number,Asset Tag\nA,7\n", "Serial Number"),
            (IdentifierKind::Yubico, "Name,Serial\nkey,A\n", "Serial"),
            (IdentifierKind::Tpm, "Name,IDENTIFIER\nkey,A\n", "IDENTIFIER"),
        ] {
            let settings = Settings { identifier: kind, ..csv() };
            let (parsed, warnings) = read(&settings, text);
            let header = parsed.header.unwrap();
            assert_eq!((header.name.as_str(), header.is_guessed, warnings.as_str()), (name, true, ""), "{text}");
            let data: Value = serde_json::from_str(&json_of(&parsed.devices, "A").unwrap()).unwrap();
            assert!(data.get(name).is_none(), "{text}");
            assert_eq!(data.as_object().unwrap().len(), text.lines().next().unwrap().split(',').count() - 1, "{text}");
        }
    }

    #[test]
    fn d6_where_several_headers_may_be_meant_the_file_is_refused_until_one_is_named() {
        let text = "Serial Number,Name,hardware_serial\nA,x,B\n";
        assert_snapshot!(refused(&csv(), text), @"staff:1:1: each of the headers `Serial Number`, `hardware_serial` may be that of the identifiers; say which by identifier_column");
        let named = |name: &str| Settings { identifier_column: Some(name.to_owned()), ..csv() };
        let (parsed, warnings) = read(&named("HARDWARE_Serial"), text);
        assert_eq!(json_of(&parsed.devices, "B").unwrap(), r#"{"Serial Number":"A","Name":"x"}"#);
        assert!(!parsed.header.unwrap().is_guessed && warnings.is_empty());
        // A column that the configuration names wins even over our own header.
        let (parsed, _) = read(&named("Asset"), "Identifier;Asset\nx;A\n");
        assert_eq!(json_of(&parsed.devices, "A").unwrap(), r#"{"Identifier":"x"}"#);
        assert_snapshot!(refused(&named("Serial"), text), @"staff:1:1: no header is `Serial`, as identifier_column says; there are `Serial Number`, `Name`, `hardware_serial`");
        assert_snapshot!(refused(&named("name"), "Name,x,NAME\nA,x,B\n"), @"staff:1:8: the header `NAME` of the identifiers stands twice");
        let many = format!("{}\n", (0..20).map(|i| format!("h{i}")).collect::<Vec<_>>().join(","));
        assert!(refused(&csv(), many).contains("`h7` and 12 more by identifier_column"));
    }

    #[test]
    fn d6_columns_that_are_data_only_do_not_make_an_export_unusable() {
        let (parsed, warnings) = read(&csv(), "Serial Number,,Name, Name,\u{a0}Team\u{a0},\nA,1,x,y,z,\n,2,x,y,z,\n,,,,,\n");
        assert_eq!(json_of(&parsed.devices, "A").unwrap(), r#"{"Name":"x","Team":"z"}"#);
        assert_eq!(parsed.devices.len(), 1);
        assert_snapshot!(warnings, @r"
        staff:1:15: the header is empty; its column is passed over
        staff:1:21: the header `Name` stands twice; the first column of this name counts
        staff:1:34: the header is empty; its column is passed over
        staff:3:1: the row has no identifier, and is passed over
        staff:4:1: the row has no identifier, and is passed over
        ");
        // In a list that was made for us a row without an identifier is a mistake, unless all its cells are empty.
        let (parsed, warnings) = read(&csv(), "Identifier,Name\nA,x\n,\n");
        assert_eq!((parsed.devices.len(), warnings.as_str()), (1, "staff:3:1: the row has no identifier, and is passed over"));
        assert_snapshot!(refused(&csv(), "Identifier,Name\n,x\n"), @"staff:2:1: the identifier is blank");
    }

    #[test]
    fn d5_what_cannot_be_seen_at_the_ends_of_an_identifier_is_cut_off_and_said() {
        let (parsed, warnings) =
            read(&csv(), "Identifier,x\n\u{a0}C02A,1\n C02B\t,2\n\u{200b}C02C\u{feff},3\nC02\u{a0}D,4\n\"C02E\n\",5\n");
        for (name, found) in [("C02A", true), ("C02B", true), ("C02C", true), ("C02\u{a0}D", true), ("C02E", true), ("C02D", false)] {
            assert_eq!(json_of(&parsed.devices, name).is_some(), found, "{name}");
        }
        assert_snapshot!(warnings, @r"
        staff:2:1: characters that cannot be seen, such as U+00A0, were cut off the identifier
        staff:4:1: characters that cannot be seen, such as U+200B, were cut off the identifier
        ");
        let text = r#"{"devices":[{"identifier":" \u00a0c02a"}]}"#;
        let (parsed, warnings) = read(&settings(Format::Json), text);
        assert!(json_of(&parsed.devices, "C02A").is_some() && warnings.starts_with("staff:1:27: characters"), "{warnings}");
        assert_eq!(refused(&settings(Format::Json), r#"{"devices":[{"identifier":"\u200b"}]}"#), "staff:1:27: the identifier is blank");
    }

    #[test]
    fn d5_numbers_that_a_spreadsheet_spoiled_are_said() {
        let rows = |rows: &[&str]| format!("Serial Number,x\n{}", rows.iter().map(|row| format!("{row},1\n")).collect::<String>());
        let (parsed, warnings) = read(&csv(), rows(&["5.02E+11", "C02A"]));
        assert_eq!(parsed.devices.len(), 2);
        assert_snapshot!(warnings, @"staff:2:1: identifier `5.02E+11` looks like a number that a spreadsheet rounded; give the column the format Text and export it again");
        assert_snapshot!(refused(&csv(), rows(&["5.02E+11", "5.02E+11"])), @"staff:3:1: identifier `5.02E+11` is already on line 2, and looks like a number that a spreadsheet rounded");
        let twelve = ["001234567890", "101234567891", "201234567892"];
        let (_, warnings) = read(&csv(), rows(&[twelve[0], "1234567893", twelve[1], twelve[2], "C02A", "12345678901234"]));
        assert_snapshot!(warnings, @"staff:3:1: identifier `1234567893` has 10 digits and most have 12; a spreadsheet may have taken zeros off its beginning");
        // Two numbers of one length are no rule; where two lengths are equally frequent the longer one counts as usual.
        assert_eq!(read(&csv(), rows(&[twelve[0], twelve[1], "1234567893"])).1, "");
        let six = [&twelve[..], &["1", "2", "3"]].concat();
        assert_eq!(read(&csv(), rows(&six)).0.warnings.places().len(), 3);
        // The number of a YubiKey may have any length.
        assert_eq!(read(&Settings { identifier: IdentifierKind::Yubico, ..csv() }, rows(&six)).1, "");
    }

    #[test]
    fn d5_placeholders_identify_nobody_and_are_no_duplicates() {
        let text = "Serial Number,x\nDefault string,1\nC02A,2\nDEFAULT STRING,3\n0000,4\nspare,5\n";
        let (parsed, warnings) = read(&csv(), text);
        assert_eq!(parsed.devices.len(), 2);
        assert!(json_of(&parsed.devices, "Default string").is_none() && json_of(&parsed.devices, "spare").is_some());
        assert_snapshot!(warnings, @r"
        staff:2:1: `Default string` identifies no device; the entry is passed over
        staff:4:1: `DEFAULT STRING` identifies no device; the entry is passed over
        staff:5:1: `0000` identifies no device; the entry is passed over
        ");
        let own = Settings { placeholders: Placeholders::new(["spare"]), ..csv() };
        assert!(refused(&own, text).contains("is already on line 2"));
        let json = r#"{"devices":[{"identifier":"n/a","data":{}},{"identifier":"C02A"}]}"#;
        let (parsed, warnings) = read(&Settings::new("staff".into(), Format::Json), json);
        assert_eq!((parsed.devices.len(), warnings.as_str()), (1, "staff:1:27: `n/a` identifies no device; the entry is passed over"));
        let many = format!("Serial Number\n{}", "None\n".repeat(100));
        let (parsed, warnings) = read(&csv(), many);
        assert!(parsed.devices.is_empty() && parsed.warnings.places().len() == 20 && parsed.warnings.more() == 80);
        assert!(warnings.ends_with("\nand 80 more"), "{warnings}");
        assert_eq!(parsed.warnings.sentences(Path::new("staff")).last().unwrap(), "staff: and 80 more");
    }

    #[test]
    fn d7_a_json_file_of_the_connector_is_read_as_go_reads_it() {
        let text = r#"{"Version":2,"Devices":[
            {"Identifier":"a","Data":null,"comment":"x"},
            {"IDENTIFIER":"b","dATA":{"Data":1,"data":2},"Comment":{"y":[]},"comment":1},
            {"identifier":"c","data":{},"comment":""}
        ]}"#;
        let (parsed, warnings) = read(&settings(Format::Json), text);
        let found = ["a", "b", "c"].map(|name| json_of(&parsed.devices, name).unwrap());
        assert_eq!(found, ["{}", r#"{"Data":1,"data":2}"#, "{}"]);
        assert_snapshot!(warnings, @r"
        staff:1:2: the member `Version` is passed over wherever it stands; of the file `devices` alone is read
        staff:2:43: the member `comment` is passed over wherever it stands; of a device `identifier` and `data` are read
        staff:3:58: the member `Comment` is passed over wherever it stands; of a device `identifier` and `data` are read
        ");
        for (text, said) in [
            (r#"{"devices":[],"DEVICES":[]}"#, "staff:1:15: the member `DEVICES` stands twice"),
            (r#"{"devices":[{"identifier":"a","Identifier":"b"}]}"#, "staff:1:31: the member `Identifier` stands twice"),
            (r#"{"devices":[{"identifier":"a","data":{},"Data":null}]}"#, "staff:1:41: the member `Data` stands twice"),
            (r#"{"devices":[{"identifier":null}]}"#, "staff:1:27: the identifier must be a string"),
            (r#"{"devices":null}"#, "staff:1:15: invalid type: null, expected a list of devices"),
        ] {
            assert_eq!(refused(&settings(Format::Json), text), said);
        }
    }

    #[test]
    fn d7_names_of_members_that_are_passed_over_are_bounded() {
        let rows: Vec<_> =
            (0..1_500).map(|i| format!("{{\"identifier\":\"d{i}\",\"x{i}\":{}1{}}}", "[".repeat(200), "]".repeat(200))).collect();
        let (parsed, _) = read(&settings(Format::Json), format!("{{\"devices\":[{}]}}", rows.join(",")));
        assert_eq!((parsed.devices.len(), parsed.warnings.places().len(), parsed.warnings.more()), (1_500, 20, 980));
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
            // A row of blank cells is no device.
            let rows: Vec<_> = rows.into_iter().filter(|row| row.iter().any(|cell| !cell.trim().is_empty())).collect();
            prop_assert_eq!(devices.len(), rows.len());
            for row in rows {
                prop_assert_eq!(json_of(&devices, &row[0]).unwrap(), json!({"x": row[1]}).to_string());
            }
        }
    }

    #[test]
    fn d4_a_file_is_the_same_in_every_encoding_and_with_every_separator(
        identifiers in identifiers(),
        cells in prop::collection::vec([any::<String>(), any::<String>()], 20),
        separator in prop::sample::select(vec![b',', b';', b'\t', b'|']),
        column in 0..3_usize,
        stated: bool,
    ) {
        let mut writer = ::csv::WriterBuilder::new().delimiter(separator).from_writer(Vec::new());
        let row = |identifier: &str, a: &str, b: &str| {
            let mut row = vec![a.to_owned(), b.to_owned()];
            row.insert(column, identifier.to_owned());
            row
        };
        writer.write_record(row("serial_number", "a", "b")).unwrap();
        for (identifier, [a, b]) in identifiers.iter().zip(&cells) {
            writer.write_record(row(identifier, a, b)).unwrap();
        }
        let written = String::from_utf8(writer.into_inner().unwrap()).unwrap();
        let separator = char::from(separator);
        // A bar is taken only where the first line states it.
        let text = if stated || separator == '|' { format!("sep={separator}\n{written}") } else { written };
        let utf_16: Vec<u8> = [0xff, 0xfe].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect();
        for bytes in [text.as_bytes(), &utf_16] {
            let parsed = super::parse(&settings(Format::Csv), bytes).unwrap();
            let header = parsed.header.as_ref().unwrap();
            prop_assert_eq!((header.separator, header.column), (separator, column));
            prop_assert_eq!(parsed.devices.len(), identifiers.len());
            for (identifier, [a, b]) in identifiers.iter().zip(&cells) {
                prop_assert_eq!(json_of(&parsed.devices, identifier).unwrap(), json!({"a": a, "b": b}).to_string());
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
fn a15_dashes_where_no_udid_has_them_make_another_device_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("devices.csv");
    fs::write(&path, "Identifier\n00008103001234567890001E\n").unwrap();
    let settings = Settings { identifier: IdentifierKind::Udid, ..Settings::new(path, Format::Csv) };
    let provider = FileProvider::open(&settings).unwrap();
    let found = |text: &str| matches!(provider.lookup(&DeviceId::new(IdentifierKind::Udid, text).unwrap()), Answer::Found(_));
    for text in ["00008103-001234567890001E", "00008103001234567890001e"] {
        assert!(found(text), "{text}");
    }
    for text in ["0000-8103001234567890001E", "-00008103-001234567890001E", "00008103--001234567890001E", "00008103-001234567890001E-"] {
        assert!(!found(text), "{text}");
    }
}

//! Tests of device files as spreadsheets and managements write them: `check-config` says of them what the service says.

use crate::served::{DEVICE, Folder};

/// Makes a folder whose devices stand in `devices.csv`, with this content.
fn with_csv(content: &[u8]) -> Folder {
    let folder = Folder::new();
    folder.change("stepward.toml", "path = \"devices.json\"", "path = \"devices.csv\"");
    std::fs::write(folder.path("devices.csv"), content).unwrap();
    folder
}

/// Runs a command; returns exit code and output.
fn run(folder: &Folder, args: &[&str]) -> (Option<i32>, String) {
    let output = folder.run(args);
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn d4_check_config_refuses_what_serve_refuses_and_says_the_same() {
    for (content, said) in [
        (&b"Asset,Owner\nA,x\n"[..], "devices.csv:1:1: no header is known for identifiers of kind serial"),
        (b"Serial Number,Owner\rA,x\r", "devices.csv:1:20: a carriage return without a line feed"),
        (b"S\0e\0r\0i\0a\0l\0\n\0A\0\n\0", "devices.csv:1:1: the text is neither UTF-8 nor UTF-16 with a byte order mark"),
        (b"Serial\nM\xfcller\n", "devices.csv:2:2: the text is neither UTF-8"),
        (b"Identifier,Owner\nA,x\na,y\n", "devices.csv:3:1: identifier `A` is already on line 2"),
        (b"", "devices.csv:1:1: the file is empty"),
    ] {
        let folder = with_csv(content);
        let (code, text) = run(&folder, &["check-config"]);
        assert!(code == Some(1) && text.contains(said) && text.contains("1 mistake\n"), "{text}");
        let (code, text) = run(&folder, &["serve"]);
        assert!(code == Some(1) && text.contains(said), "{text}");
    }
    // Mistakes beyond the twentieth are counted, there as here.
    let folder = with_csv(format!("Identifier\n{}", "A\n".repeat(100)).as_bytes());
    let (code, text) = run(&folder, &["check-config"]);
    assert!(code == Some(1) && text.contains("devices.csv: and 79 more\n") && text.contains("21 mistakes\n"), "{text}");
}

#[test]
fn d4_check_config_takes_what_serve_takes_and_warns_of_the_same() {
    let utf_16 = "sep=;\r\nOwner;Serial Number\r\nAda;c02xl0gyjgh5\r\nNobody;Default string\r\n".encode_utf16();
    let content: Vec<u8> = [0xff, 0xfe].into_iter().chain(utf_16.flat_map(u16::to_le_bytes)).collect();
    let folder = with_csv(&content);
    let said = "devices.csv:4:8: `Default string` identifies no device; the entry is passed over";
    let (code, text) = run(&folder, &["check-config"]);
    assert!(code == Some(0) && text.contains(said) && text.ends_with("OK\n"), "{text}");
    let mut served = folder.serve();
    let warned = served.until(|line| line["message"].as_str().is_some_and(|message| message.contains(said)));
    assert_eq!(warned["level"], "WARN");
    let found = served.printed("the identifiers of the device file are taken from this column");
    assert_eq!((&found["level"], &found["column"]), (&"INFO".into(), &"Serial Number".into()));
    assert!(served.knows(DEVICE) && !served.knows("Default string"));
    // A file that is read again is looked at again, one line for each warning.
    std::fs::write(served.folder.path("next"), format!("Serial Number\n\u{a0}{DEVICE}\n{}", "None\n".repeat(30))).unwrap();
    std::fs::rename(served.folder.path("next"), served.folder.path("devices.csv")).unwrap();
    served.until(|line| line["message"].as_str().is_some_and(|message| message.contains("devices.csv: and 11 more")));
    served.printed("reloaded");
    let warnings = |text: &str| served.lines().iter().filter(|line| line["message"].as_str().is_some_and(|it| it.contains(text))).count();
    assert_eq!((warnings("U+00A0, were cut off"), warnings("`None` identifies no device")), (1, 19));
    assert!(served.knows(DEVICE));
}

#[test]
fn d6_the_configuration_names_the_column() {
    let folder = with_csv(b"Serial Number,hardware_serial\nx,A\n");
    let (code, text) = run(&folder, &["check-config"]);
    assert!(code == Some(1) && text.contains("each of the headers `Serial Number`, `hardware_serial`"), "{text}");
    folder.change("stepward.toml", "path = \"devices.csv\"", "path = \"devices.csv\"\nidentifier_column = \"hardware_serial\"");
    assert_eq!(run(&folder, &["check-config"]).0, Some(0));
    let served = folder.serve();
    assert!(served.knows("A") && !served.knows("x"));
}

#[test]
fn d7_a_file_of_the_connector_is_taken_with_what_stands_beside() {
    let folder = Folder::new();
    folder.write("devices.json", r#"{"Devices":[{"Identifier":"A","Data":null,"note":"x"},{"identifier":"B","note":"y"}],"made":1}"#);
    let (code, text) = run(&folder, &["check-config"]);
    assert!(code == Some(0) && text.matches("the member `note` is passed over").count() == 1, "{text}");
    let served = folder.serve();
    assert!(served.knows("A") && served.knows("B"));
}

//! Measures of expressions: their length and depth, what each part takes, and how much is shown of what was read.

use super::*;

#[test]
fn an_expression_is_as_long_and_has_as_many_parts_as_it_may_and_no_more() {
    let padded = |bytes: usize| format!("{:bytes$}", "true");
    assert_eq!(judged(&require(&padded(4096)), &mac()), "pass");
    assert_eq!(refused(&padded(4097)), "4096: an expression has at most 4096 bytes");
    // The list has three parts besides its numbers; a pattern counts as a part, and so do an offset, && and what stands before it.
    let list = |numbers: usize| format!("1 in [{}]", vec!["1"; numbers].join(","));
    let pattern = |numbers: usize| format!("device.name.matches('a') && {}", list(numbers));
    let offset = |numbers: usize| format!("now.getHours('UTC') != 24 && {}", list(numbers));
    for (expression, most) in [(&list as &dyn Fn(usize) -> String, 253), (&pattern, 249), (&offset, 247)] {
        assert_eq!(judged(&require(&expression(most)), &mac()), "pass");
        for more in [most + 1, most + 2, most + 100] {
            let message = refused(&expression(more));
            assert!(message.contains("may have 256 parts") && message.lines().count() == 1, "{more}: {message}");
        }
    }
    let nested = |depth: usize| format!("{}true{}", "!(".repeat(depth), ")".repeat(depth));
    assert_eq!(judged(&require(&nested(47)), &mac()), "not_so", "an odd number of them");
    assert!(refused(&nested(48)).contains("48 inside each other"));
    let map = |depth: usize| Rules { data: Some(format!("{}1{}", "{'a':".repeat(depth), "}".repeat(depth))), ..Rules::default() };
    assert!(Policy::compile(&map(47)).is_ok());
    for depth in [48, 49, 50, 60] {
        let mistakes = Policy::compile(&map(depth)).unwrap_err();
        assert_eq!(mistakes.iter().map(|mistake| &*mistake.message).collect::<Vec<_>>(), ["`data` is too deep"], "{depth}");
    }
}

/// A device with a text of 200 bytes, also in a free column, and 20 groups, whose names are the texts of a free list.
fn measured() -> Record {
    let long = "x".repeat(200);
    let names: Vec<_> = (10..30).map(|number| format!("group {number}")).collect();
    let columns = serde_json::json!({ "long": long, "list": names, "texts": [long, long], "more": { "key": 1, "other": "text" } });
    Record {
        name: text(&long),
        model: text(&long),
        groups: Fact::Value(names.iter().map(|name| group("", name)).collect()),
        data: text(&columns.to_string()),
        ..mac()
    }
}

#[test]
fn g5_each_part_takes_steps_by_what_it_goes_over() {
    let record = measured();
    let inputs = inputs(&record);
    for (expression, taken) in [
        ("true", (1, 0)),
        ("device.name == device.model", (3 + 200 / 64, 0)),
        ("device.name == 'x'", (3, 0)),
        ("device.name.contains('x')", (3 + 200 / 16, 0)),
        ("device.name.matches('x')", (2 + 200 / 4, 0)),
        ("device.name.lowerAscii() == 'x'", (4 + 200 / 64, 200)),
        ("device.name + 'x' == 'x'", (5 + 201 / 64, 201)),
        ("size(device.name) == 200", (4 + 200 / 64, 0)),
        ("size(device.data.long) == 200", (4 + 200 / 64, 0)),
        ("size(device.groups) == 20", (4 + 20 / 8, 0)),
        ("size(device.data.list) == 20", (4 + 20 / 8, 0)),
        ("string(device.data.long) == 'x'", (4 + 200 / 64, 0)),
        ("'x' in device.groups", (3 + 20 / 8, 0)),
        ("'x' in device.data.list", (4 + 20 / 8 + 20 / 8, 0)),
        ("device.groups.exists(g, false)", (2 + 20 + 20, 0)),
        ("device.data.texts.exists(t, t == 'y')", (3 + 2 + 2 * (4 + 200 / 64), 0)),
    ] {
        let root = compile::check(expression).unwrap().root;
        let evaluation = Evaluation::new(&inputs);
        evaluation.holds(&root).unwrap();
        assert_eq!(evaluation.spent(), taken, "{expression}");
    }
    // Each value takes the size of a JSON value, and a text or a key its bytes besides.
    let (one, text) = (size_of::<Json>(), size_of::<String>());
    for (source, bytes) in [
        ("{'a': device.managed}", one),
        ("{'a': device.name}", one + 200),
        ("{'a': device.data.long}", one + 200),
        ("{'a': device.groups}", 20 * (one + 8)),
        ("{'a': device.data.list}", one + 20 * (one + 8)),
        ("{'a': device.data.more}", one + (3 + text + one) + (5 + text + one + 4)),
    ] {
        let root = compile::data(source).unwrap().root;
        let evaluation = Evaluation::new(&inputs);
        root.fill(&evaluation).unwrap();
        assert_eq!(evaluation.spent(), (bytes / 64, bytes), "{source}");
    }
}

#[test]
fn g5_as_many_entries_and_items_are_shown_as_there_is_room_for() {
    // A number takes 16 bytes, and a key 16 more.
    let map = |count: usize| (0..count).map(|number| (format!("{number:016}"), Json::from(1))).collect::<Json>();
    let list = |count: usize| Json::from(vec![1; count]);
    for (make, most) in [(&map as &dyn Fn(usize) -> Json, 4096 / 32), (&list, 4096 / 16)] {
        let whole = make(most);
        assert_eq!(value::Value::Free(&whole).shown(), whole);
        for more in [1, 2, 1000] {
            let shown = value::Value::Free(&make(most + more)).shown();
            let mut expected = make(most);
            let rest = Json::from(format!("… ({more} more)"));
            match &mut expected {
                Json::Object(entries) => drop(entries.insert("…".to_owned(), rest)),
                Json::Array(items) => items.push(rest),
                _ => panic!("neither a map nor a list"),
            }
            assert_eq!(shown, expected, "{more}");
        }
    }
}

//! CEL as people know it: what each function gives, and what becomes of values that are not known, not there, of another
//! type, or too large.

use super::messages::refused_all;
use super::*;

fn with(columns: &Json) -> Record {
    Record { data: text(&columns.to_string()), ..mac() }
}

/// Judges each expression in `require`, and in `deny_if`, which turns only `pass` and `not_so` round.
fn judged_all(record: &Record, cases: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    for (expression, expected) in cases {
        let opposite = match *expected {
            "pass" => "not_so",
            "not_so" => "pass",
            other => other,
        };
        let deny_if = Rules { deny_if: vec![rule(expression)], ..Rules::default() };
        for (rules, expected) in [(require(expression), *expected), (deny_if, opposite)] {
            let judged = Policy::compile(&rules).map(|policy| code_of(&policy.judge(&inputs(record)).result).to_owned());
            if judged.as_deref() != Ok(expected) {
                wrong.push(format!("{expression}: {judged:?} and not {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn d12_numbers_compare_by_value_whatever_they_are_written_as() {
    let columns: Json = serde_json::from_str(
        r#"{"share": 116.32650514309171, "free_gb": 12.5, "whole": 12, "point": 12.0, "minus": -3, "large": 18446744073709551615,
            "sizes": [1, 2.5, 3], "text": "12"}"#,
    )
    .unwrap();
    judged_all(
        &with(&columns),
        &[
            ("device.data.share == 116.32650514309171", "pass"),
            ("device.data.share != 116.32650514309171", "not_so"),
            ("device.data.free_gb > 10", "pass"),
            ("device.data.free_gb > 10u", "pass"),
            ("device.data.free_gb > 12.5", "not_so"),
            ("10 < device.data.free_gb && device.data.free_gb < 13", "pass"),
            ("device.data.whole == 12.0 && device.data.whole == 12u && device.data.point == 12", "pass"),
            ("device.data.point in [12, 13]", "pass"),
            ("device.data.free_gb in [12, 13]", "not_so"),
            ("device.data.free_gb in [12, 12.5, 13u]", "pass"),
            ("device.data.minus < 0u", "pass"),
            ("device.data.large > 9223372036854775807", "pass"),
            ("device.data.large == 18446744073709551615u", "pass"),
            ("device.data.sizes == [1, 2.5, 3]", "pass"),
            ("device.data.sizes.exists(s, s > 2 && s < 3)", "pass"),
            ("device.data.sizes.all(s, s >= 1)", "pass"),
            ("2.5 in device.data.sizes && 3.0 in device.data.sizes && !(4 in device.data.sizes)", "pass"),
            ("1 == 1.0 && 1u == 1 && 2 > 1.5", "pass"),
            // Only a JSON number is a number.
            ("device.data.text == 12", "policy_error"),
            ("device.data.text > 10", "policy_error"),
            ("device.data.free_gb == '12.5'", "policy_error"),
            // Numbers calculate with numbers of their own kind, as in CEL.
            ("device.data.free_gb * 2.0 == 25.0", "pass"),
            ("device.data.whole * 2.0 == 24.0", "pass"),
            ("device.data.free_gb * 2 == 25", "policy_error"),
            ("device.data.large - 1u == 18446744073709551614u", "pass"),
            ("device.data.minus + 1u > 0u", "policy_error"),
            ("int(device.data.free_gb) == 12 && double(device.data.whole) == 12.0 && uint(device.data.whole) == 12u", "pass"),
            ("string(device.data.free_gb) == '12.5' && string(device.data.point) == '12'", "pass"),
        ],
    );
    for expression in ["1 + 1.0 == 2.0", "1 + 1u == 2", "1u * 2.0 == 2.0", "-1u == 1"] {
        assert!(!refused(expression).is_empty(), "{expression}");
    }
}

#[test]
fn d12_lists_are_added_compared_and_asked_by_place() {
    let columns = serde_json::json!({
        "tags": ["a", "b"], "flags": [true, false], "none": [], "mixed": ["a", 1], "nulls": ["a", null], "deep": [["a"]], "one": "a",
        "numbers": [3, 1], "more": {"n": "x"},
    });
    judged_all(
        &with(&columns),
        &[
            ("device.groups == ['Staff', 'Macs', 'Guests']", "pass"),
            ("device.groups != ['Staff', 'Macs']", "pass"),
            ("device.groups[0] == 'Staff' && device.group_ids[2 - 1] == '2'", "pass"),
            ("device.groups[3] == 'x'", "policy_error"),
            ("'x' in [device.data.one, device.form, 'x']", "pass"),
            ("device.groups[0 - 1] != 'x'", "policy_error"),
            ("(device.groups + ['x'])[3] == 'x' && size([] + device.groups) == 3", "pass"),
            ("device.data.tags[1] == 'b' && device.data.tags == ['a', 'b'] && device.data.tags + ['c'] == ['a', 'b', 'c']", "pass"),
            ("device.data.numbers[0] > 2.5 && device.data.numbers + [2.5] == [3, 1, 2.5]", "pass"),
            ("device.data.flags[0] && device.data.flags == [true, false] && false in device.data.flags", "pass"),
            ("device.data.none == [] && size(device.data.none) == 0 && !('a' in device.data.none)", "pass"),
            ("device.data.none.all(n, n == 'a') && device.data.none.all(n, n > 1) && device.data.none + [1] == [1]", "pass"),
            ("'a' in []", "not_so"),
            ("1 in ([] + [1])", "pass"),
            // A list with items of several types is an error, whichever item decides.
            ("device.data.mixed.exists(m, m == 'a')", "policy_error"),
            ("device.data.mixed[0] == 'a'", "policy_error"),
            ("device.data.mixed == ['a', 'b']", "policy_error"),
            ("device.data.mixed != ['a']", "policy_error"),
            ("'a' in device.data.mixed", "policy_error"),
            ("!(1 in device.data.mixed)", "policy_error"),
            ("device.data.nulls.exists(n, n == 'a')", "policy_error"),
            ("device.data.deep[0] == 'a'", "policy_error"),
            ("device.data.one[0] == 'a'", "policy_error"),
            ("device.data.more[0] == 'a'", "policy_error"),
            ("device.data.tags == [1, 2]", "policy_error"),
            ("device.data.tags != [1]", "policy_error"),
            ("(device.data.tags + []) != [1]", "policy_error"),
            ("!(1 in device.data.tags)", "policy_error"),
            ("device.data.numbers != ['a', 'b']", "policy_error"),
            ("device.data.tags[2] == 'c' || true", "pass"),
        ],
    );
    assert_eq!(data_of("{'a': device.groups + ['x'], 'b': device.groups[0]}", &mac()).unwrap()["a"][3], "x");
}

#[test]
fn d12_loops_count_choose_and_make() {
    let record = with(&serde_json::json!({ "tags": ["a-1", "b-2"], "sizes": [1, 2.5] }));
    judged_all(
        &record,
        &[
            ("device.groups.exists_one(g, g.startsWith('S'))", "pass"),
            ("device.groups.exists_one(g, size(g) > 4)", "not_so"),
            // An item that cannot be tested is an error, before and behind the one that is found.
            ("device.groups.exists_one(g, g == 'Macs' || int(g) == 1)", "policy_error"),
            ("device.groups.exists_one(g, g == 'Staff' || int(g) == 1)", "policy_error"),
            ("device.groups.filter(g, g.endsWith('s')) == ['Macs', 'Guests']", "pass"),
            ("device.groups.filter(g, int(g) == 1) == []", "policy_error"),
            ("device.groups.map(g, g.upperAscii()) == ['STAFF', 'MACS', 'GUESTS']", "pass"),
            ("device.groups.map(g, size(g) > 4, g.charAt(0)) == ['S', 'G']", "pass"),
            ("device.groups.map(g, int(g)) == []", "policy_error"),
            ("device.groups.filter(g, g != 'Macs').map(g, size(g)) == [5, 6]", "pass"),
            ("size(device.groups.filter(g, true)) == 3 && !('x' in device.groups.filter(g, false))", "pass"),
            ("device.data.tags.map(t, t.split('-')[0]) == ['a', 'b']", "pass"),
            ("device.data.tags.filter(t, t.endsWith('2'))[0] == 'b-2'", "pass"),
            ("device.data.sizes.map(s, double(s) * 2.0) == [2, 5]", "pass"),
            ("device.data.sizes.map(s, s)[1] == 2.5", "pass"),
            ("device.data.sizes.filter(s, s > 1) == [2.5]", "pass"),
            ("device.groups.map(g, device.serial).all(s, s == 'C02A')", "pass"),
        ],
    );
    assert_eq!(data_of("{'g': device.groups.filter(g, g != 'Macs')}", &mac()).unwrap()["g"], serde_json::json!(["Staff", "Guests"]));
}

#[test]
fn d12_texts_are_cut_sought_and_joined() {
    judged_all(
        &mac(),
        &[
            ("device.user.email.split('@')[1] == 'example.org'", "pass"),
            ("device.user.email.substring(device.user.email.indexOf('@') + 1) == 'example.org'", "pass"),
            ("device.user.email.upperAscii() == 'ADA@EXAMPLE.ORG'", "pass"),
            ("device.model.replace('Mac', '').split(',') == ['15', '3']", "pass"),
            ("device.groups.join(', ') == 'Staff, Macs, Guests' && device.groups.join() == 'StaffMacsGuests'", "pass"),
            ("'  x '.trim() == 'x' && '   '.trim() == '' && ('x ' + ' ').trim() == 'x'", "pass"),
            ("'abc'.reverse() == 'cba'", "pass"),
            (
                "'abc'.split('') == ['a', 'b', 'c'] && 'abc'.split('', 2) == ['a', 'bc'] && ''.split('') == [] && ''.split(',') == ['']",
                "pass",
            ),
            ("'a,b,c'.split(',', 2) == ['a', 'b,c'] && ('a,' + 'b').split(',', 9) == ['a', 'b']", "pass"),
            ("'abc'.replace('', '-') == '-a-b-c-' && 'aaa'.replace('a', 'b', 0) == 'aaa' && 'aaa'.replace('a', 'b', -1) == 'bbb'", "pass"),
            ("'aé🐱'.substring(1, 2) == 'é' && ('aé' + '🐱').charAt(2) == '🐱' && 'aé🐱'.indexOf('🐱') == 2", "pass"),
            ("'éa'.lastIndexOf('a', 0) == -1 && 'ééé'.lastIndexOf('é', 1) == 1", "pass"),
            ("device.name.substring(99) == ''", "policy_error"),
            ("device.name.substring(3, 2) == ''", "policy_error"),
            ("device.name < 'B' && device.platform > 'Linux' && device.user.name <= 'Ada'", "pass"),
            ("bool('true') && !bool(device.data.cost == '1' ? '1' : '0')", "pass"),
            (
                "bool(device.data.vip) && string(double(device.data.seats) / 2.0) == '1.5' && string(1e21) == '1000000000000000000000'",
                "pass",
            ),
            ("bool(device.data.asset)", "policy_error"),
            ("bool(device.data.seats)", "policy_error"),
        ],
    );
}

#[test]
fn d12_times_and_durations_have_parts_and_reach_beyond_1677_and_2262() {
    let record = with(&serde_json::json!({ "expires": "9999-12-31T23:59:59Z", "born": "0001-01-01T00:00:00Z", "stamp": 1_700_000_000,
        "bad": "2099-01-31a00:00:00z", "blank": "2026-01-31 00:00:00Z", "milli": 1_700_000_000_000_i64 }));
    judged_all(
        &record,
        &[
            ("timestamp(device.data.expires) > now && timestamp(device.data.born) < now", "pass"),
            ("timestamp(device.data.expires) - now > duration('1000000d')", "pass"),
            ("timestamp(device.data.expires) - timestamp(device.data.born) > duration('3000000d')", "pass"),
            ("timestamp(device.data.bad) > now", "policy_error"),
            ("timestamp(device.data.blank) < now", "pass"),
            ("timestamp(device.data.stamp) == timestamp('2023-11-14T22:13:20Z') && int(now) > device.data.stamp", "pass"),
            ("timestamp(device.data.milli) > now", "policy_error"),
            ("now.getHours() == 12 && now.getHours('+05:30') == 17 && now.getMinutes('+05:30') == 30", "pass"),
            ("now.getDayOfWeek() == 2 && now.getDayOfWeek() in [1, 2, 3, 4, 5]", "pass"),
            ("now.getFullYear() - device.enrolled_at.getFullYear() == 1 && now.getMonth() == 10 && now.getDate() == 24", "pass"),
            ("(now - device.last_seen).getHours() == 24 && duration('-90m').getHours() == -1", "pass"),
            ("string(now - device.last_seen) == '86400s' && string(duration('1500ms')) == '1.5s'", "pass"),
            ("string(now) == '2026-11-24T12:00:00Z'", "pass"),
            ("now + duration('3650000d') > now", "policy_error"),
            ("device.inventory_at.getHours() == 1", "policy_error"),
        ],
    );
    for (expression, word) in [
        ("timestamp('2099-01-31a00:00:00z') > now", "2026-01-31T00:00:00Z"),
        ("-(now - device.last_seen) < duration('1d')", "duration('0s') - …"),
        ("-duration('1d') < duration('1d')", "duration('0s') - …"),
        ("now.getHours('Europe/Berlin') == 1", "names of places"),
        ("now.getHours(device.name) == 1", "names of places"),
        ("duration('1h').getDate() == 1", "point in time"),
        ("duration('1h').getHours('UTC') == 1", "point in time"),
        ("device.name.getHours() == 1", "point in time"),
        ("device.data.bought.getHours() == 1", "timestamp(…)"),
        ("now.getHours('UTC', 'UTC') == 1", "is not called so"),
    ] {
        assert!(refused(expression).contains(word), "{expression}: {}", refused(expression));
    }
}

/// Expressions with every function, each over the one field `device.name`.
const OVER_NAME: &[&str] = &[
    "device.name.lowerAscii() != ''",
    "device.name.upperAscii() != ''",
    "device.name.trim() != ''",
    "device.name.reverse() != ''",
    "device.name.charAt(0) != ''",
    "device.name.indexOf('x') == -1",
    "device.name.lastIndexOf('x') == -1",
    "device.name.substring(0) != ''",
    "device.name.replace('x', 'y') != ''",
    "'x'.replace('x', device.name) != ''",
    "device.name.split('x') != []",
    "'a'.split(device.name) != []",
    "['a', device.name].join() != ''",
    "device.groups.join(device.name) != ''",
    "device.name < 'B'",
    "[device.name] != []",
    "[device.name][0] != ''",
    "['a'] + [device.name] != []",
    "['a'].map(a, device.name) != []",
    "['a'].filter(a, device.name != '') != []",
    "['a'].exists_one(a, device.name != '')",
    "string(device.name) != ''",
    "dyn(device.name) != ''",
    "'a'.indexOf('a', size(device.name)) != 0",
    "device.name.matches(r'^\\D')",
    "now.getHours() + size(device.name) > 0",
];

#[test]
fn d12_no_function_takes_what_is_not_known_or_not_there_for_false() {
    for expression in OVER_NAME {
        judged_all(&Record { name: Fact::Unknown, ..mac() }, &[(expression, "posture_unknown")]);
        judged_all(&Record { name: Fact::Absent, ..mac() }, &[(expression, "policy_error")]);
        // Not even if the rest would decide, or `has` stands before it.
        for before in [format!("true || {expression}"), format!("!has(device.name) || {expression}")] {
            judged_all(&Record { name: Fact::Unknown, ..mac() }, &[(&before, "posture_unknown")]);
            judged_all(&Record { name: Fact::Absent, ..mac() }, &[(&before, "pass")]);
        }
    }
    for expression in [
        "device.groups[0] != ''",
        "device.groups + ['a'] != []",
        "device.groups == []",
        "device.groups.filter(g, g == 'x') == []",
        "device.groups.map(g, g) == []",
        "device.groups.exists_one(g, g == 'x')",
        "device.groups.join() == ''",
    ] {
        judged_all(&Record { groups: Fact::Unknown, ..mac() }, &[(expression, "posture_unknown")]);
        judged_all(&Record { groups: Fact::Absent, ..mac() }, &[(expression, "policy_error")]);
        // A group without a name is not known either.
        judged_all(&Record { groups: Fact::Value(vec![group("1", "Staff"), group("2", "")]), ..mac() }, &[(expression, "posture_unknown")]);
    }
    for part in
        ["getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getHours", "getMinutes", "getSeconds"]
    {
        let expression = format!("device.last_seen.{part}() >= 0");
        judged_all(&Record { last_seen: Fact::Unknown, ..mac() }, &[(&expression, "posture_unknown")]);
        judged_all(&Record { last_seen: Fact::Value(time("2026-12-24T12:00:00Z")), ..mac() }, &[(&expression, "posture_unknown")]);
        judged_all(&Record { last_seen: Fact::Absent, ..mac() }, &[(&expression, "policy_error")]);
        judged_all(&mac(), &[(&expression, "pass")]);
    }
    for expression in [
        "device.data.other[0] == 'a'",
        "device.data.other.map(o, o) == []",
        "bool(device.data.other)",
        "timestamp(device.data.other) < now",
    ] {
        judged_all(&mac(), &[(expression, "policy_error")]);
        judged_all(&Record { data: Fact::Unknown, ..mac() }, &[(expression, "posture_unknown")]);
    }
}

#[test]
fn d12_types_are_looked_at_before_any_device_is() {
    refused_all(&[
        ("device.managed.trim() == ''", 7, "before trim stands a text"),
        ("device.groups.join(1) == ''", 19, "in join stands a text"),
        ("[1].join() == ''", 0, "before join stands a list"),
        ("device.name.substring('a') == ''", 22, "in substring stands a whole number"),
        ("device.name.substring(1.5) == ''", 22, "in substring stands a whole number"),
        ("device.name.charAt() == ''", 12, "is not called so"),
        ("device.groups[1.5] == ''", 14, "whole number"),
        ("device.managed[0]", 7, "before [ ] stands a list"),
        ("device.groups[0][0] == ''", 13, "before [ ] stands a list"),
        ("['a'] + [1] == []", 6, "lists can be added"),
        ("['a'] - ['a'] == []", 6, "lists can be added"),
        ("device.groups + 'a' == []", 14, "cannot be calculated"),
        ("device.groups == [1]", 17, "a list"),
        ("[1, 2.5] == device.groups", 19, "a list"),
        ("device.groups < ['a']", 14, "lists have no order"),
        ("[[1]] == []", 0, "a list cannot hold a list"),
        ("device.groups.map(g, [g]) == []", 21, "a list cannot hold a list"),
        ("[trust] == []", 0, "a list cannot hold a level of trust"),
        ("device.groups.filter(g, g) == []", 24, "true or false"),
        ("device.groups.map(g, g, g) == []", 21, "true or false"),
        ("device.groups.map(1, g) == []", 18, "a new name"),
        ("device.groups.map(g, device.groups.filter(h, h == g)) == []", 35, "a loop in a loop"),
        ("device.managed.filter(m, m) == []", 7, "what is gone over"),
        ("device.groups.map(g, g).exists(h, g == h)", 34, "there is no `g`"),
        ("device.os_version >= 'a'", 18, "version(…)"),
        ("device.name < '9'", 12, "version(…)"),
        ("device.data.build > '100'", 18, "version(…)"),
        ("device.form < 'mobile_device'", 12, "no order"),
        ("device.compliance >= 'compliant'", 18, "no order"),
        ("device.data.a < device.data.b", 14, "types of free columns"),
        ("device.data.list.exists(a, a == device.data.b)", 29, "types of free columns"),
        ("now in device.data.list", 19, "a list"),
        ("bool(1)", 5, "cannot be made into"),
        ("uint(now) == 1u", 5, "cannot be made into"),
        ("duration(1) == duration('1s')", 9, "cannot be made into"),
        ("size(device.name.split(',') + [1]) == 1", 28, "lists can be added"),
        (r"device.name.matches('^[A&&B]')", 23, "in a class"),
        (r"device.name.matches(r'x\d++')", 26, "(?:…)"),
        (r"device.name.matches('\\d++')", 20, "(?:…)"),
        (r"device.name.matches('(?x)a')", 23, "i, m, s and U"),
        ("device.managed &&\n device.name.matches(\"[a[b]]\")", 42, "a class in a class"),
    ]);
}

#[test]
fn d12_patterns_are_those_of_re2() {
    let named = |name: &str| Record { name: text(name), ..mac() };
    let cyrillic = "\u{430}da@example.org";
    judged_all(&named("١٢٣"), &[(r"device.name.matches('^\\d+$')", "not_so"), (r"device.name.matches(r'^\D+$')", "pass")]);
    // The name of a script may have two words.
    judged_all(
        &named("ada"),
        &[(r"device.name.matches('^\\p{Old_Italic}')", "not_so"), (r"device.name.matches('^\\P{Old_Italic}')", "pass")],
    );
    judged_all(&named(cyrillic), &[(r"device.name.matches(r'^\w+@example[.]org$')", "not_so")]);
    judged_all(&named("ada@example.org"), &[(r"device.name.matches(r'^\w+@example[.]org$')", "pass")]);
}

#[test]
fn d12_each_part_takes_steps_and_bytes_by_what_it_makes() {
    let value = size_of::<value::Value<'_>>();
    let columns = serde_json::json!({ "long": "x".repeat(200), "list": vec!["group 10"; 20], "large": 1e300 });
    let record = Record { name: text(&"x".repeat(200)), ..with(&columns) };
    let inputs = inputs(&record);
    let mut wrong = Vec::new();
    for (expression, (steps, bytes)) in [
        ("device.name.upperAscii() == 'x'", (4 + 200 / 64, 200)),
        ("device.name.reverse() == 'x'", (4 + 200 / 64, 200)),
        ("device.name.trim() == 'x'", (4 + 200 / 16, 0)),
        ("(device.name + 'x').trim() == 'x'", (6 + 201 / 64 + 201 / 16 + 201 / 64, 402)),
        ("device.name.charAt(64) == 'x'", (5 + 64 / 16, 0)),
        ("device.name.substring(64, 128) == 'x'", (6 + 64 / 16 + 128 / 16, 0)),
        ("(device.name + 'x').substring(64, 128) == 'x'", (8 + 201 / 64 + 64 / 16 + 128 / 16 + 64 / 64, 201 + 64)),
        ("device.name.indexOf('y') == 1", (5 + 200 / 16, 0)),
        ("device.name.lastIndexOf('y', 32) == 1", (6 + 32 / 16 + 200 / 16, 0)),
        ("device.name.replace('x', 'yy') == 'x'", (6 + 200 / 16 + 400 / 64 + 200, 400)),
        ("device.name.split('y') == []", (6 + 200 / 16 + value / 64, value)),
        ("device.groups.join('yy') == ''", (5 + 3, 19)),
        ("device.groups[2] == ''", (5, 0)),
        ("device.data.list[2] == 'x'", (7 + 20 / 8 + 20 / 8, 0)),
        ("device.groups.exists_one(g, false)", (2 + 3 + 3, 0)),
        ("device.groups.filter(g, true) == []", (5 + 3 + 3 + 3 * (value / 64), 3 * value)),
        ("device.groups.map(g, g) == []", (5 + 3 + 3 + 3 * (value / 64), 3 * value)),
        ("device.groups == ['Staff', 'Macs', 'Guests']", (6, 0)),
        ("device.groups + ['x'] == []", (7 + 4 * value / 64, 4 * value)),
        ("now.getHours() == 1", (4, 0)),
        ("string(now) == 'x'", (4 + 20 / 4, 20)),
        ("string(device.data.large) == 'x'", (4 + 301 / 4 + 301 / 64, 301)),
    ] {
        let root = compile::check(expression).unwrap().root;
        let evaluation = Evaluation::new(&inputs);
        evaluation.holds(&root).unwrap();
        if evaluation.spent() != (steps, bytes) {
            wrong.push(format!("{expression}: {:?} and not {:?}", evaluation.spent(), (steps, bytes)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn d12_what_is_made_has_a_bound_and_beyond_it_nothing_holds() {
    let columns = serde_json::json!({ "long": "x".repeat(1 << 20), "full": vec!["a"; LONGEST_LIST], "over": vec!["a"; LONGEST_LIST + 1],
        "commas": ",".repeat(LONGEST_LIST - 1), "more": ",".repeat(LONGEST_LIST) });
    let record = with(&columns);
    judged_all(
        &record,
        &[
            ("device.data.long.replace('x', 'xxxxxxxxxxxxxxxxxxxxxxxx') != ''", "policy_error"),
            ("device.data.long.replace('', device.data.long) != ''", "policy_error"),
            ("device.data.full.join(device.data.long) != ''", "policy_error"),
            ("size(device.data.commas.split(',')) == 4096", "pass"),
            ("size(device.data.more.split(',')) == 4097", "policy_error"),
            ("size(device.data.more.split(',', 2)) == 2", "pass"),
            ("size(device.data.long.split('')) > 1", "policy_error"),
            ("size(device.data.full + []) == 4096", "pass"),
            ("size(device.data.full + ['a']) == 4097", "policy_error"),
            ("device.data.over[0] == 'a'", "policy_error"),
            ("device.data.full.map(f, device.data.long.upperAscii()) != []", "policy_error"),
            ("device.data.full.filter(f, device.data.full + [] == device.data.full) != []", "policy_error"),
            ("device.data.full.exists_one(f, device.data.long.indexOf('y') == 1)", "policy_error"),
        ],
    );
    // Expressions that take too much only together, and the checks that follow them.
    let many = Rules {
        require: vec![rule("size(device.data.full.map(f, f + 'b')) == 4096 && size(device.data.long.reverse()) > 1"); 100],
        ..Rules::default()
    };
    assert_eq!(judged(&many, &record), "policy_error");
}

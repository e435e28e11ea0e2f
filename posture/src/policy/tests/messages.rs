//! Messages for an expression that cannot be read.

use super::*;

/// Asserts that each expression is refused at this offset, with these words in the message.
pub(super) fn refused_all(cases: &[(&str, usize, &str)]) {
    let mut wrong = Vec::new();
    for (expression, offset, word) in cases {
        match Policy::compile(&require(expression)) {
            Err(mistakes) if mistakes[0].offset == *offset && mistakes[0].message.contains(word) => {}
            result => wrong.push(format!("{expression}: {result:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn e11_a_message_says_what_to_write_instead() {
    let cases = [
        ("device.platform = 'Mac'", 16, "write ==, which compares"),
        ("device.platform === 'Mac'", 16, "write =="),
        ("device.platform !== 'Mac'", 16, "write !="),
        ("device.platform <> 'Mac'", 16, "write !="),
        ("device.platform =~ 'Mac'", 16, ".matches('…')"),
        ("size(device.groups) => 1", 20, "write >="),
        ("size(device.groups) ≥ 1", 20, "write >="),
        ("device.managed and device.encrypted", 15, "`and` is no operator of CEL: write &&"),
        ("device.managed OR device.encrypted", 15, "`OR` is no operator of CEL: write ||"),
        ("not device.lost", 0, "write !"),
        ("not(device.lost)", 0, "write !"),
        ("device.managed & device.encrypted", 15, "write &&"),
        ("device.managed | device.encrypted", 15, "write ||"),
        ("device.platform == 'Mac", 19, "has no end"),
        ("device.platform == \"Mac'", 19, "has no end"),
        ("device.name == 'Ada's Mac'", 25, "has no end"),
        ("device.name == '''Mac'", 15, "has no end"),
        ("device.name == 'a\nb'", 15, "has no end"),
        ("device.name == r'ab", 16, "has no end"),
        ("device.managed or'a' == 'a'", 15, "`or` is no operator"),
        ("device.name == r'a\\'' && true", 20, "has no end"),
        ("device.platform == “Mac”", 19, "straight"),
        ("device.platform == `Mac`", 19, "straight"),
        ("(device.managed && (device.encrypted)", 0, "`(` is not closed again"),
        ("device.groups.exists(g, g in ['a')", 33, "`)` closes what was not opened"),
        ("device.managed)", 14, "`)` closes what was not opened"),
        ("device.managed &&", 17, "something must follow"),
        ("device.", 7, "something must follow"),
        ("device.managed device.lost", 15, "cannot stand here"),
        ("device.managed == True", 18, "write true"),
        ("device.managed == False", 18, "write false"),
        ("device.user.name == None", 20, "write null"),
        ("device.managed ? true", 21, "something must follow"),
    ];
    refused_all(&cases);
    for (expression, ..) in cases {
        let message = refused(expression);
        for theirs in ["token recognition", "mismatched input", "extraneous input", "viable alternative", "<EOF>"] {
            assert!(!message.contains(theirs), "{expression}: {message}");
        }
    }
    // Every one of several mistakes is found, and none in a text, a comment, or behind a point.
    let several = refused("device.platform = 'Mac' and not device.lost");
    assert_eq!(several.lines().map(|line| line.split(':').next().unwrap()).collect::<Vec<_>>(), ["16", "24", "28"], "{several}");
    assert_eq!(refused("device.name == 'a = b and not c' & // or = \n device.data.and").lines().count(), 1);
    assert_eq!(judged(&require("device.name != 'a = b and ( not' && r'\\' != \"'\" && !has(device.data.or)"), &mac()), "pass");
}

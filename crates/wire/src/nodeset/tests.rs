use super::order::natural_order;
use super::*;
use proptest::prelude::*;

fn groups(name: &str) -> Option<Vec<String>> {
    let members: &[&str] = match name {
        "all" => &["n0", "n1", "n2", "n3"],
        "gpu" => &["n2", "n3"],
        "rack1" => &["a", "b"],
        "rack2" => &["c"],
        "empty" => &[],
        "odd" => &["n 1"],
        _ => return None,
    };
    Some(members.iter().map(|&name| name.to_owned()).collect())
}

fn parse(text: &str) -> Result<NodeSet, NodeSetError> {
    NodeSet::parse(text, &groups)
}

fn names(text: &str) -> Vec<String> {
    let set = parse(text).unwrap_or_else(|error| panic!("{error}"));
    set.iter().map(str::to_owned).collect()
}

fn refusal(text: &str) -> String {
    match parse(text) {
        Ok(set) => panic!("`{text}` was read as {set}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn reads_every_form() {
    for (text, expected) in [
        ("n1,n3", "n1 n3"),
        ("n[0-3]", "n0 n1 n2 n3"),
        ("n[1-9/2]", "n1 n3 n5 n7 n9"),
        ("n[008-010]", "n008 n009 n010"),
        ("n[98-101]", "n98 n99 n100 n101"),
        ("n[09-11,3]", "n3 n09 n10 n11"),
        ("r[1-2]n[1-2]", "r1n1 r1n2 r2n1 r2n2"),
        ("n[1-2]-ib.x", "n1-ib.x n2-ib.x"),
        ("[1-2]", "1 2"),
        ("n[1-3]!n2", "n1 n3"),
        ("n[1-3]&n[2-9]", "n2 n3"),
        ("n[1-3]^n[3-4]", "n1 n2 n4"),
        ("n1,n2!n1,n1", "n1 n2"),
        (" n1 , n2 ", "n1 n2"),
        ("@gpu", "n2 n3"),
        ("@rack[1-2]", "a b c"),
        ("all", "n0 n1 n2 n3"),
        ("@all!@gpu", "n0 n1"),
        ("@*", "n0 n1 n2 n3"),
        ("@empty", ""),
        ("n10,n9,n1", "n1 n9 n10"),
    ] {
        assert_eq!(names(text).join(" "), expected, "{text}");
    }
}

#[test]
fn folds_compactly() {
    for (text, expected) in [
        ("n1,n2,n3,n7", "n[1-3,7]"),
        ("n7", "n7"),
        ("n[008-012]", "n[008-012]"),
        ("n[8-12],n[08-09]", "n[08,8,09,9-12]"),
        ("r1n1,r1n2,r2n1,r2n2", "r[1-2]n[1-2]"),
        ("r1n[1-2],r2n[1-3]", "r1n[1-2],r2n[1-3]"),
        ("b1,a,b2", "a,b[1-2]"),
        ("n[1-9/2]", "n[1,3,5,7,9]"),
    ] {
        assert_eq!(
            parse(text).map(|set| set.to_string()).as_deref(),
            Ok(expected)
        );
    }
}

#[test]
fn errors_say_where_and_what() {
    for (text, expected) in [
        (
            "",
            "bad node set ``, at character 1: expected a node's name, `[`, `@group` or `all`, found the end",
        ),
        (
            "n1,",
            "bad node set `n1,`, at character 4: expected a node's name, `[`, `@group` or `all`, found the end",
        ),
        (
            "n[1-",
            "bad node set `n[1-`, at character 5: expected the number at which the range ends, found the end",
        ),
        (
            "n[1;2]",
            "bad node set `n[1;2]`, at character 4: expected `,` or `]`, found `;`",
        ),
        (
            "n1 n2",
            "bad node set `n1 n2`, at character 4: expected one of `,` `!` `&` `^` or the end, found `n`",
        ),
        (
            "n1,@nowhere",
            "bad node set `n1,@nowhere`, at character 4: no group is called `nowhere`",
        ),
        (
            "n[3-1]",
            "bad node set `n[3-1]`, at character 3: expected a range that ends at or after its start (3)",
        ),
        (
            "n[1-3/0]",
            "bad node set `n[1-3/0]`, at character 3: expected a step of at least 1",
        ),
        (
            "n[1-010]",
            "bad node set `n[1-010]`, at character 3: expected both ends of a range to be padded to the same width",
        ),
        (
            "n[0-65536]",
            "bad node set `n[0-65536]`, at character 1: expected at most 65536 nodes",
        ),
        (
            "ñ",
            "bad node set `ñ`, at character 1: expected a node's name, `[`, `@group` or `all`, found `ñ`",
        ),
    ] {
        assert_eq!(refusal(text), expected);
    }
    assert!(refusal("@odd").contains("`n 1` can't be a node's name"));
    assert!(refusal(&"n".repeat(MAX_NAME_BYTES + 1)).contains("at most 64 characters"));
    assert!(refusal(&format!("n[{}]", "1".repeat(19))).contains("at most 18 digits"));
}

#[test]
fn size_is_bounded_before_anything_is_made() {
    assert_eq!(
        parse("n[0-65535]").map(|set| set.len()),
        Ok(MAX_NODES_IN_SET)
    );
    assert!(refusal("n[0-99999]n[0-99999]n[0-99999]n[0-99999]").contains("at most 65536"));
    assert!(refusal("n[0-999999999999999999]x[0-999999999999999999]").contains("at most 65536"));
    assert!(refusal("n[0-65535],m1").contains("at most 65536"));
    // The same range again and again makes no larger set, only more work.
    assert!(refusal(&["n[0-65535]"; 5].join(",")).contains("at most 65536"));
    assert!(refusal(&"n".repeat(MAX_SET_TEXT_BYTES + 1)).contains("1048577"));
    assert!(NodeSet::from_names((0..=MAX_NODES_IN_SET).map(|i| format!("n{i}"))).is_err());
}

#[test]
fn from_names_refuses_what_would_not_read_back() {
    for bad in ["", "all", "-n1", "n[1]", "a b", "@x", "é"] {
        assert!(NodeSet::from_names([bad]).is_err(), "{bad}");
    }
}

#[test]
fn reads_bproc_lists() {
    let numbers = |text| match parse_bproc(text) {
        Ok(BprocNodes::Numbers(numbers)) => numbers,
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(numbers("3"), [3]);
    assert_eq!(numbers("-1"), [-1]);
    assert_eq!(numbers("0-4,7"), [0, 1, 2, 3, 4, 7]);
    assert_eq!(numbers("-1-2"), [-1, 0, 1, 2]);
    assert_eq!(numbers("7,1-3,2,-1"), [7, 1, 2, 3, -1]);
    assert_eq!(parse_bproc("all"), Ok(BprocNodes::All));
    for bad in [
        "",
        "-2",
        "-0",
        "4-1",
        "n1",
        "1,",
        "1-",
        "0-99999999",
        "2147483648",
        "0 1",
    ] {
        assert!(parse_bproc(bad).is_err(), "{bad}");
    }
    assert_eq!(numbers("2147483647"), [i32::MAX]);
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "n[0-9]{1,3}",
        "r[0-3]n[0-9]{1,2}(-ib)?",
        "[a-z0-9][a-z0-9._-]{0,6}",
        "[0-9]{17,21}",
    ]
    .prop_filter("a node's name", |name| is_node_name(name))
}

fn set() -> impl Strategy<Value = NodeSet> {
    proptest::collection::vec(name(), 1..60)
        .prop_map(|names| NodeSet::from_names(names).unwrap_or_else(|error| panic!("{error}")))
}

proptest! {
    #[test]
    fn fold_reads_back(set in set()) {
        prop_assert_eq!(parse(&set.fold()), Ok(set));
    }

    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        let _ = (parse(&text), parse_bproc(&text));
    }

    #[test]
    fn likely_text_never_panics(text in "[n0-9\\[\\],!&^@/ a-]{0,24}") {
        let _ = parse_bproc(&text);
        if let Ok(set) = parse(&text) && !set.is_empty() {
            prop_assert_eq!(parse(&set.fold()), Ok(set));
        }
    }

    #[test]
    fn operators_are_those_of_sets(a in set(), b in set()) {
        let plain = |set: &NodeSet| set.iter().map(str::to_owned).collect::<BTreeSet<_>>();
        let expected = |names: BTreeSet<String>| NodeSet::from_names(names);
        let (x, y) = (plain(&a), plain(&b));
        let groups = |name: &str| match name {
            "a" => Some(x.iter().cloned().collect()),
            "b" => Some(y.iter().cloned().collect()),
            _ => None,
        };
        let eval = |text: &str| NodeSet::parse(text, &groups);
        prop_assert_eq!(parse(&format!("{a},{b}")), expected(&x | &y));
        prop_assert_eq!(eval("@a,@b"), expected(&x | &y));
        prop_assert_eq!(eval("@a!@b"), expected(&x - &y));
        prop_assert_eq!(eval("@a&@b"), expected(&x & &y));
        prop_assert_eq!(eval("@a^@b"), expected(&x ^ &y));
        prop_assert_eq!(eval("@a!@b,@b"), eval("@a,@b"));
        prop_assert!(eval("@a!@a").is_ok_and(|set| set.is_empty()));
    }

    #[test]
    fn order_is_total(a in name(), b in name(), c in name()) {
        prop_assert_eq!(natural_order(&a, &b), natural_order(&b, &a).reverse());
        prop_assert_eq!(natural_order(&a, &b).is_eq(), a == b);
        if natural_order(&a, &b).is_lt() && natural_order(&b, &c).is_lt() {
            prop_assert!(natural_order(&a, &c).is_lt());
        }
    }
}

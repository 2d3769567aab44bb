use proptest::prelude::*;

use super::*;

/// The commands of a line as text, `?` behind words that are expanded.
fn commands(text: &str) -> Vec<String> {
    let line = Line::parse(text.as_bytes());
    assert_eq!(line.opaque, None, "{text}");
    texts(&line)
}

fn texts(line: &Line) -> Vec<String> {
    let word = |word: &Word| {
        let text = String::from_utf8_lossy(&word.text).into_owned();
        if word.exact { text } else { text + "?" }
    };
    let one = |command: &Command| {
        let words = command.assignments.iter().chain(&command.words);
        words.map(word).collect::<Vec<_>>().join(" ")
    };
    let named = line
        .commands
        .iter()
        .filter(|one| !one.words.is_empty() || !one.assignments.is_empty());
    named.map(one).collect()
}

#[test]
fn words_lose_quotes_and_escapes() {
    assert_eq!(
        commands(r#"a 'b c' "d e"f g\ h 'i"j' "k\"l" m''"#),
        ["a b c d ef g h i\"j k\"l m"]
    );
    assert_eq!(commands("a \\\n  b\\\nc"), ["a bc"]);
    assert_eq!(
        commands(r#"a "$x" $y ${z:-"}"} *.c b'*' ~/x [ $$ $ "$" a$"#),
        [r#"a $x? $y? ${z:-"}"}? *.c? b* ~/x? [ $$? $ $ a$"#]
    );
    assert_eq!(commands("a b#c # d; e\nf"), ["a b#c", "f"]);
    assert_eq!(
        commands("A=1 B='x y' gcc -DX='\"y\"'"),
        ["A=1 B=x y gcc -DX=\"y\""]
    );
    assert_eq!(
        commands("'A'=1 x"),
        ["A=1 x"],
        "a quoted name assigns nothing"
    );
    let line = Line::parse(b"'A'=1 x");
    assert!(line.commands[0].assignments.is_empty());
}

#[test]
fn operators_part_commands() {
    assert_eq!(
        commands("a;b&&c||d|e|&f\ng"),
        ["a", "b", "c", "d", "e", "f", "g"]
    );
    assert_eq!(commands("(a; b) && { c; } || ! d"), ["a", "b", "c", "d"]);
    let line = Line::parse(b"a | b; c");
    let fed: Vec<_> = line.commands.iter().map(|one| one.is_fed).collect();
    assert_eq!(fed, [false, true, false]);
    assert!(Line::parse(b"a & b").background);
    assert!(Line::parse(b"(a; b) & wait").background);
    assert!(!Line::parse(b"a && b 2>&1 >&2 <&- 'a & b'").background);
}

#[test]
fn compound_commands_are_looked_through() {
    assert_eq!(
        commands("if a; then b; elif c\nthen d; else e; fi >x; f"),
        ["a", "b", "c", "d", "e", "f"]
    );
    assert_eq!(
        commands("while a; do b; done; until c; do d; done | e"),
        ["a", "b", "c", "d", "e"]
    );
    assert_eq!(commands("for i in a b $(c); do d $i; done"), ["c", "d $i?"]);
    assert_eq!(commands("for i\ndo d; done; for j do e; done"), ["d", "e"]);
    assert_eq!(
        commands("case $x in a|b) c;; (d) e ;; *) f; g\n;; esac; h"),
        ["c", "e", "f", "g", "h"]
    );
    assert_eq!(commands("case `a` in\n b)\n c;;\nesac"), ["a", "c"]);
    assert_eq!(
        commands("f() { a; }; g () (b); function h { c; }; d"),
        ["a", "b", "c", "d"]
    );
    assert_eq!(commands("[[ $a == b && ( c < d ) ]] && e"), ["e"]);
    assert_eq!(
        commands("echo if then fi do done"),
        ["echo if then fi do done"]
    );
    assert_eq!(
        commands("x=(a b c); declare -A y=([a]=b); z"),
        ["x=", "declare -A y=", "z"]
    );
}

#[test]
fn substitutions_are_looked_into() {
    assert_eq!(
        commands("a $(b \"$(c)\" `d \\`e\\``)"),
        [
            "c",
            "e",
            "d `e`?",
            "b $(c)? `d \\`e\\``?",
            "a $(b \"$(c)\" `d \\`e\\``)?"
        ]
    );
    assert_eq!(
        commands("a \"x`b`y\" ${z:-$(c)}"),
        ["b", "c", "a x`b`y? ${z:-$(c)}?"]
    );
    assert_eq!(
        commands("a $((1 + (2) + $(b)))"),
        ["b", "a $((1 + (2) + $(b)))?"]
    );
    assert_eq!(commands("a $( (b); c )"), ["b", "c", "a $( (b); c )?"]);
    assert_eq!(
        commands("a $(case x in y) b;; esac)"),
        ["b", "a $(case x in y) b;; esac)?"]
    );
    assert_eq!(commands("a <(b) >(c)"), ["b", "c", "a <(...)? <(...)?"]);
    let line = Line::parse(b"a $(b)");
    assert!(line.commands[0].is_substituted && !line.commands[1].is_substituted);
}

#[test]
fn here_documents_are_no_commands() {
    assert_eq!(
        commands("cat <<E >x; a\nmake $(b)\nE\nc"),
        ["cat", "b", "a", "c"]
    );
    assert_eq!(commands("cat <<'E'\nmake $(b)\nE\nc"), ["cat", "c"]);
    assert_eq!(commands("cat <<-E <<F\n\tx\n\tE\ny\nF\nc"), ["cat", "c"]);
    assert_eq!(commands("cat <<<make; c"), ["cat", "c"]);
    assert!(Line::parse(b"cat <<E\nx").opaque.is_some());
}

#[test]
fn redirections_belong_to_their_commands() {
    let line = Line::parse(b"gcc -E x.c >x.i 2>&1 </dev/null 3<>f &>all >>log \\\n > last");
    let [command] = line.commands.as_slice() else {
        panic!("{line:?}");
    };
    let found: Vec<_> = command
        .redirections
        .iter()
        .map(|one| {
            (
                one.fd,
                one.kind,
                String::from_utf8_lossy(&one.target.text).into_owned(),
            )
        })
        .collect();
    use RedirectionKind::{Duplicate, Input, Output};
    assert_eq!(
        found,
        [
            (1, Output, "x.i".to_owned()),
            (2, Duplicate, "1".to_owned()),
            (0, Input, "/dev/null".to_owned()),
            (3, Input, "f".to_owned()),
            (1, Output, "all".to_owned()),
            (1, Output, "log".to_owned()),
            (1, Output, "last".to_owned()),
        ]
    );
    assert_eq!(texts(&line), ["gcc -E x.c"]);
}

#[test]
fn directories_are_followed() {
    let directory = |text: &str| {
        let line = Line::parse(text.as_bytes());
        let found = line
            .commands
            .iter()
            .find(|one| one.words.first().is_some_and(|w| w.text == b"x"));
        found.map(|one| one.directory.clone()).expect("a command x")
    };
    let at = |path: &str| Directory::At(path.as_bytes().to_vec());
    assert_eq!(directory("x"), Directory::Start);
    assert_eq!(directory("cd a && x"), at("a"));
    assert_eq!(directory("cd a; cd ../b; x"), at("a/../b"));
    assert_eq!(directory("cd a && cd /b && x"), at("/b"));
    assert_eq!(directory("(cd a && y); x"), Directory::Start);
    assert_eq!(directory("(cd a && x)"), at("a"));
    assert_eq!(directory("cd a && y $(x)"), at("a"));
    assert_eq!(directory("cd $d && x"), Directory::Unknown);
    assert_eq!(directory("cd -P a && x"), at("a"));
    assert_eq!(directory("cd; x"), Directory::Unknown);
}

#[test]
fn what_is_not_understood_is_told_and_the_rest_kept() {
    for text in [
        "a 'b",
        "a \"b",
        "a `b",
        "a $(b",
        "a ${b",
        "(a",
        "a)",
        "{ a",
        "if a; then b",
        "fi; a",
        "a; ;; b",
        "for x in y; a",
        "a > ; b",
        "[[ a",
    ] {
        assert!(Line::parse(text.as_bytes()).opaque.is_some(), "{text}");
    }
    let line = Line::parse(b"gcc -c x.c; fi; echo 'a");
    assert_eq!(texts(&line), ["gcc -c x.c", "echo a"]);
}

#[test]
fn everything_is_bounded() {
    for text in [
        "$(",
        "`",
        "${",
        "(",
        "$((",
        "a;",
        "\"$(",
        "if ",
        "{ ",
        "<(",
        "x() ",
        "case x in a) ",
    ] {
        let line = Line::parse(text.repeat(20_001).as_bytes());
        assert!(line.opaque.is_some(), "{text}");
        assert!(line.commands.len() <= MAX_COMMANDS);
    }
    let long = vec![b'a'; MAX_LINE_BYTES + 1];
    assert!(Line::parse(&long).opaque.is_some());
}

/// Bytes that mean something to a shell, with others between.
fn shell_bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        proptest::sample::select(vec![
            "$(", "`", ")", "(", "{ ", "}", ";", "&", "|", "&&", "<<E\n", "\nE\n", "'", "\"", "\\",
            "if ", "then ", "fi ", "case ", "in ", "esac", ";;", "for ", "do ", "done ", "cd ",
            ">", "<", "2>&1", "$((", "))", "${", "[[ ", "]]", "=", "x=(", "#", "\n", " ", "make",
            "!",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 0..4),
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn any_bytes_are_taken_apart(bytes in shell_bytes()) {
        let line = Line::parse(&bytes);
        // No byte is in two words of one level: what is found is bounded by what is there.
        let total: usize = line.commands.iter().flat_map(|one| &one.words).map(|word| word.text.len()).sum();
        prop_assert!(total <= bytes.len() * (MAX_DEPTH + 2));
        prop_assert!(line.commands.len() <= bytes.len() + 1);
    }

    #[test]
    fn quoted_words_come_back(words in proptest::collection::vec("[ -~\\n]{0,12}", 1..6)) {
        let quoted: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect();
        let line = Line::parse(format!("x {}", quoted.join(" ")).as_bytes());
        prop_assert_eq!(line.opaque, None);
        let found: Vec<_> = line.commands[0].words[1..].iter().map(|word| word.text.clone()).collect();
        let wanted: Vec<_> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        prop_assert_eq!(found, wanted);
        prop_assert!(line.commands[0].words.iter().all(|word| word.exact));
    }
}

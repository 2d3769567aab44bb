//! What is given unasked.

use wiglaf_wire::view::{Gift, MAX_UNSETTLED_BYTES, PIECE_BYTES, Program, Use};

use super::watched::watched;
use super::*;

impl Rig {
    /// All that a link is given now, taken or not.
    fn gifts(&mut self, link: LinkId, takes: bool) -> Vec<Gift> {
        let mut all = Vec::new();
        while self.export.has_gifts(link) {
            let mut out = Vec::new();
            self.export.give(link, &mut out);
            for (to, told) in out {
                match told {
                    Told::Gifts(gifts) => {
                        assert!(to == link && !gifts.is_empty());
                        let weight = gifts.iter().map(Gift::weight).sum();
                        all.extend(gifts);
                        if takes {
                            self.tell(link, Ask::Took { weight, settled: 0 });
                        }
                    }
                    Told::Changes(changes) => self.heard(to, changes),
                    Told::Answer(answer) => panic!("{answer:?}"),
                }
            }
        }
        all
    }

    /// As a node whose program has used these files.
    fn teach(&mut self, program: FileId, files: &[FileId]) {
        let mut uses = Vec::new();
        for &file in files {
            uses.push(Use::Opened(file));
            uses.extend((0..4).map(|piece| Use::Piece(file, piece)));
        }
        let parent = self.here;
        let name = b"absent".to_vec();
        uses.push(Use::Name { parent, name });
        let program = Some(program);
        self.tell(A, Ask::Used { program, uses });
    }

    fn launch(&mut self, link: LinkId, name: &str) {
        let path = self.file(name).into_os_string().into_encoded_bytes();
        self.tell(link, Ask::Expect(Program::Launched(vec![path])));
    }
}

fn is_watched(rig: &mut Rig) -> bool {
    let here = rig.here;
    let reply = rig.ask(B, Ask::Attributes { file: here });
    matches!(reply, Ok(Reply::Attributes(told)) if told.watched)
}

#[test]
fn what_one_node_used_is_given_to_another_and_believed() {
    let Some((mut rig, _keeper)) = watched() else {
        return;
    };
    rig.write("program", "#!/bin/sh");
    rig.write("small", "little");
    rig.write("large", vec![7; 3 * PIECE_BYTES as usize + 5]);
    let [program, small, large] =
        ["program", "small", "large"].map(|name| rig.find(A, &rig.file(name)).file);
    rig.teach(program, &[small, large]);
    if !is_watched(&mut rig) {
        return;
    }
    rig.ignore_news();
    rig.launch(B, "program");
    let gifts = rig.gifts(B, true);
    let names: Vec<_> = gifts
        .iter()
        .filter_map(|gift| match gift {
            Gift::Name { name, found, .. } => Some((name.as_slice(), found.is_some())),
            _ => None,
        })
        .collect();
    // The directory is known to B by itself.
    assert_eq!(
        names,
        [(&b"small"[..], true), (b"large", true), (b"absent", false)]
    );
    let contents: Vec<_> = gifts
        .iter()
        .filter_map(|gift| match gift {
            Gift::Opened {
                attributes,
                content,
                ..
            } => Some((
                attributes.file,
                content.as_ref().map(|bytes| bytes.0.clone()),
            )),
            _ => None,
        })
        .collect();
    assert_eq!(contents, [(small, Some(b"little".to_vec())), (large, None)]);
    let pieces: Vec<_> = gifts
        .iter()
        .filter_map(|gift| match gift {
            Gift::Piece { file, piece, data } if *file == large => Some((*piece, data.0.len())),
            _ => None,
        })
        .collect();
    let whole = PIECE_BYTES as usize;
    assert_eq!(pieces, [(0, whole), (1, whole), (2, whole), (3, 5)]);

    // What was given is taken back like any answer.
    rig.run(&["-c", "echo more >> large; echo > absent"]);
    let news = rig.news(B);
    for expected in [
        Change::File {
            file: large,
            content: true,
        },
        Change::Name {
            directory: rig.here,
            name: b"absent".to_vec(),
        },
    ] {
        assert!(news.contains(&expected) || news.contains(&Change::Everything));
    }
    // Once is enough.
    rig.launch(B, "program");
    assert!(rig.gifts(B, true).is_empty());
}

#[test]
fn nobody_is_given_more_than_arrives() {
    let Some((mut rig, _keeper)) = watched() else {
        return;
    };
    rig.write("program", "#!/bin/sh");
    let mut files = Vec::new();
    for number in 0..40 {
        let name = format!("file{number}");
        rig.write(&name, vec![1; 60 << 10]);
        files.push(rig.find(A, &rig.file(&name)).file);
    }
    let program = rig.find(A, &rig.file("program")).file;
    rig.teach(program, &files);
    if !is_watched(&mut rig) {
        return;
    }
    rig.launch(B, "program");
    let weight = |gifts: &[Gift]| gifts.iter().map(Gift::weight).sum::<u64>();
    let first = rig.gifts(B, false);
    assert!(weight(&first) < 512 << 10, "{}", weight(&first));
    // A part that is on its way is not sent again; whoever did not keep it gets it.
    let took = Ask::Took {
        weight: weight(&first),
        settled: 0,
    };
    rig.tell(B, took);
    let rest = rig.gifts(B, true);
    let opened = |gifts: &[Gift]| {
        let is_open = |gift: &&Gift| matches!(gift, Gift::Opened { .. });
        gifts.iter().filter(is_open).count()
    };
    assert_eq!(opened(&first) + opened(&rest), files.len());
    rig.export.close(B);
    assert!(!rig.export.has_gifts(B));
}

#[test]
fn a_part_under_way_is_not_sent_twice() {
    let Some((mut rig, _keeper)) = watched() else {
        return;
    };
    rig.write("program.so", vec![7; 2 * PIECE_BYTES as usize]);
    let program = rig.find(A, &rig.file("program.so")).file;
    rig.teach(program, &[program]);
    if !is_watched(&mut rig) {
        return;
    }
    rig.launch(B, "program.so");
    let gifts = rig.gifts(B, false);
    assert!(gifts.iter().any(|gift| matches!(gift, Gift::Piece { .. })));
    let read = |offset: u64, length| Ask::Read {
        file: program,
        handle: None,
        offset,
        length,
    };
    assert_eq!(rig.ask(B, read(10, PIECE_BYTES)), Ok(Reply::Given));
    let weight = gifts.iter().map(Gift::weight).sum();
    rig.tell(B, Ask::Took { weight, settled: 0 });
    let reply = rig.ask(B, read(10, 4));
    assert_eq!(reply, Ok(Reply::Data(Content(vec![7; 4]))));
}

#[test]
fn what_others_write_and_what_is_hidden_is_not_given() {
    let Some((mut rig, _keeper)) = watched() else {
        return;
    };
    rig.write("program", "#!/bin/sh");
    rig.write("log", "line");
    let program = rig.find(A, &rig.file("program")).file;
    let log = rig.find(A, &rig.file("log")).file;
    rig.teach(program, &[log]);
    if !is_watched(&mut rig) {
        return;
    }
    let writer = super::guards::Appender::new(&rig, "log");
    rig.launch(B, "program");
    let gifts = rig.gifts(B, true);
    let is_open = |gift: &Gift| matches!(gift, Gift::Opened { .. } | Gift::Piece { .. });
    assert!(!gifts.iter().any(is_open), "{gifts:?}");
    writer.end();
    // Nor what a node says that it has used without having been told of it.
    let foreign = FileId(log.0 + 1000);
    let uses = vec![Use::Opened(foreign), Use::Piece(foreign, 0)];
    let program = Some(program);
    rig.tell(A, Ask::Used { program, uses });
}

#[test]
fn nobody_is_given_more_pieces_than_there_is_room_for() {
    let Some((mut rig, _keeper)) = watched() else {
        return;
    };
    let most = usize::try_from(MAX_UNSETTLED_BYTES).expect("it is small");
    rig.write("program.so", vec![7; 2 * most]);
    let program = rig.find(A, &rig.file("program.so")).file;
    let pieces = u32::try_from(2 * most / PIECE_BYTES as usize).expect("few");
    let mut uses = vec![Use::Opened(program)];
    uses.extend((0..pieces).map(|piece| Use::Piece(program, piece)));
    let used = Ask::Used {
        program: Some(program),
        uses,
    };
    rig.tell(A, used);
    if !is_watched(&mut rig) {
        return;
    }
    rig.launch(B, "program.so");
    let bytes = |gifts: &[Gift]| -> usize {
        let each = gifts.iter().map(|gift| match gift {
            Gift::Piece { data, .. } => data.0.len(),
            _ => 0,
        });
        each.sum()
    };
    assert_eq!(bytes(&rig.gifts(B, true)), most);
    let settled = 5;
    rig.tell(B, Ask::Took { weight: 0, settled });
    assert!(!rig.export.has_gifts(B));
    let settled = u64::from(PIECE_BYTES);
    rig.tell(B, Ask::Took { weight: 0, settled });
    assert_eq!(bytes(&rig.gifts(B, true)), PIECE_BYTES as usize);
}

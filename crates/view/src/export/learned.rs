//! What programs need of the head's files, as nodes have told: by the program's path, in the order
//! of first use. It holds no more than hints; whether a file is there, and may be read, is seen
//! when it is given.

use std::collections::HashMap;
use std::rc::Rc;

/// Most programs that are remembered.
const MAX_PROGRAMS: usize = 256;
/// Most paths that are remembered of one program.
const MAX_WISHES: usize = 8192;
/// Most paths in all. One has some 200 bytes.
const MAX_WISHES_IN_ALL: usize = 1 << 16;
/// Most pieces of one file: what is larger is rarely read whole by program after program.
const MAX_PIECES: usize = 1024;
/// What was given so often and not used since is forgotten.
const MAX_IN_VAIN: u8 = 8;
/// As often does what an older version of the program used count as given in vain.
const VAIN_BY_UPGRADE: u8 = MAX_IN_VAIN - 2;
/// A program that runs more others than this does not tell which of them will be next.
const MAX_SUCCESSORS: usize = 4;
/// Programs that are planned for when one is run.
const MAX_FOLLOWED: usize = 16;
/// A program that was executed on fewer than two of three nodes that ran another one does not
/// follow that.
const FOLLOWS: (u32, u32) = (2, 3);
/// A path or a name longer than this is not worth it.
const MAX_PATH_BYTES: usize = 1024;

/// What tells one version of a program from another: inode number, modification time and size.
pub(super) type Version = (u64, (i64, u32), u64);

/// A path of the head; empty where there is no program yet.
pub(super) type Path = Rc<[u8]>;

/// What is done with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Named,
    Opened,
    Executed,
    LinkRead,
    Listed,
    Read(u32),
}

/// What a program does with one path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) open: bool,
    pub(super) link: bool,
    pub(super) list: bool,
    /// On how many nodes the program has executed it.
    executions: u32,
    pieces: Vec<Piece>,
    in_vain: u8,
    order: u64,
}

/// One piece of a file, and how often it was given in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    number: u32,
    in_vain: u8,
    order: u64,
}

#[derive(Debug, Default)]
struct Program {
    version: Option<Version>,
    /// On how many nodes it was executed, as far as they have told.
    runs: u32,
    wishes: HashMap<Path, Wish>,
    used: u64,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Learned {
    programs: HashMap<Path, Program>,
    wishes: usize,
    /// Counts uses.
    clock: u64,
}

/// What is to be given before a program asks, in this order.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Names, and small files.
    pub(super) first: Vec<(Path, Path, Wish)>,
    /// Pieces of others: the program, the path, the piece.
    pub(super) then: Vec<(Path, Path, u32)>,
}

impl Learned {
    /// A node has told what a program did.
    pub(super) fn note(&mut self, program: &[u8], path: &[u8], deed: Deed) {
        if path.len() > MAX_PATH_BYTES || program.len() > MAX_PATH_BYTES {
            return;
        }
        self.clock += 1;
        let clock = self.clock;
        if !self.programs.contains_key(program) {
            self.make_room_for_program();
            self.programs.insert(program.into(), Program::default());
        }
        if self.wishes >= MAX_WISHES_IN_ALL {
            self.forget_oldest(program);
        }
        let Some(known) = self.programs.get_mut(program) else {
            return;
        };
        known.used = clock;
        if !known.wishes.contains_key(path) {
            self.wishes -= known.make_room();
            let order = clock;
            let wish = Wish {
                order,
                ..Wish::default()
            };
            known.wishes.insert(path.into(), wish);
            self.wishes += 1;
        }
        if let Some(wish) = known.wishes.get_mut(path) {
            wish.note(deed, clock);
        }
    }

    /// What to give for a program and, if it runs already, for those that it is going to execute.
    pub(super) fn plan(&mut self, program: &[u8], runs: bool) -> Plan {
        let mut plan = Plan::default();
        let mut programs: Vec<Path> = Vec::new();
        programs.extend(
            self.programs
                .get_key_value(program)
                .map(|(path, _)| Rc::clone(path)),
        );
        let mut next = 0;
        while let Some(program) = programs.get(next).cloned() {
            next += 1;
            for successor in self.successors(&program) {
                if runs && programs.len() < MAX_FOLLOWED && !programs.contains(&successor) {
                    programs.push(successor);
                }
            }
            self.add_to(&mut plan, &program);
        }
        plan
    }

    /// What a program executes.
    fn successors(&self, program: &Path) -> Vec<Path> {
        let Some(known) = self.programs.get(program) else {
            return Vec::new();
        };
        let mut successors: Vec<_> = known
            .wishes
            .iter()
            .filter(|(_, wish)| {
                let (part, whole) = FOLLOWS;
                let often = wish.executions.saturating_mul(whole);
                wish.executions > 0 && often >= known.runs.saturating_mul(part)
            })
            .map(|(path, wish)| (wish.order, Rc::clone(path)))
            .collect();
        if successors.len() > MAX_SUCCESSORS {
            return Vec::new();
        }
        successors.sort();
        successors.into_iter().map(|(_, path)| path).collect()
    }

    /// A node has executed a program that it had not executed before.
    pub(super) fn ran(&mut self, program: &[u8]) {
        if let Some(known) = self.programs.get_mut(program) {
            known.runs = known.runs.saturating_add(1);
        }
    }

    fn add_to(&mut self, plan: &mut Plan, program: &Path) {
        self.clock += 1;
        let clock = self.clock;
        let Some(known) = self.programs.get_mut(program) else {
            return;
        };
        known.used = clock;
        let mut wishes: Vec<_> = known.wishes.iter().collect();
        wishes.sort_by_key(|(_, wish)| wish.order);
        let mut pieces = Vec::new();
        for (path, wish) in wishes {
            pieces.extend(wish.pieces.iter().map(|piece| (path, piece)));
            let without = Wish {
                pieces: Vec::new(),
                ..*wish
            };
            plan.first
                .push((Rc::clone(program), Rc::clone(path), without));
        }
        pieces.sort_by_key(|(_, piece)| piece.order);
        plan.then.extend(
            pieces
                .into_iter()
                .map(|(path, piece)| (Rc::clone(program), Rc::clone(path), piece.number)),
        );
    }

    /// The program is this version now: what another one used may still be right.
    pub(super) fn see_version(&mut self, program: &[u8], version: Version) {
        let Some(known) = self.programs.get_mut(program) else {
            return;
        };
        if known
            .version
            .replace(version)
            .is_some_and(|then| then != version)
        {
            for wish in known.wishes.values_mut() {
                wish.in_vain = wish.in_vain.max(VAIN_BY_UPGRADE);
            }
        }
    }

    /// A path was given. If nobody uses it, it will be given a few times more.
    pub(super) fn gave(&mut self, program: &[u8], path: &[u8]) {
        let Some(known) = self.programs.get_mut(program) else {
            return;
        };
        if let Some(wish) = known.wishes.get_mut(path) {
            wish.in_vain += 1;
            if wish.in_vain >= MAX_IN_VAIN {
                known.wishes.remove(path);
                self.wishes -= 1;
            }
        }
    }

    /// The same of one piece.
    pub(super) fn gave_piece(&mut self, program: &[u8], path: &[u8], piece: u32) {
        let known = self.programs.get_mut(program);
        if let Some(wish) = known.and_then(|known| known.wishes.get_mut(path)) {
            for one in &mut wish.pieces {
                one.in_vain += u8::from(one.number == piece);
            }
            wish.pieces.retain(|one| one.in_vain < MAX_IN_VAIN);
        }
    }

    #[cfg(test)]
    fn len(&self) -> (usize, usize) {
        let counted: usize = self.programs.values().map(|known| known.wishes.len()).sum();
        assert_eq!(counted, self.wishes);
        (self.programs.len(), counted)
    }

    fn make_room_for_program(&mut self) {
        if self.programs.len() >= MAX_PROGRAMS {
            self.forget_oldest(&[]);
        }
    }

    /// Forgets the program that was not used for longest, but not this one.
    fn forget_oldest(&mut self, spared: &[u8]) {
        let others = self.programs.iter().filter(|(path, _)| ***path != *spared);
        let oldest = others.min_by_key(|(_, known)| known.used);
        if let Some(path) = oldest.map(|(path, _)| Rc::clone(path))
            && let Some(known) = self.programs.remove(&path)
        {
            self.wishes -= known.wishes.len();
        }
    }
}

impl Program {
    /// Returns how many wishes had to go.
    fn make_room(&mut self) -> usize {
        let before = self.wishes.len();
        if before < MAX_WISHES {
            return 0;
        }
        self.wishes.retain(|_, wish| wish.in_vain == 0);
        if self.wishes.len() >= MAX_WISHES {
            let mut orders: Vec<_> = self.wishes.values().map(|wish| wish.order).collect();
            orders.sort_unstable();
            let first_kept = orders[orders.len() / 4];
            self.wishes.retain(|_, wish| wish.order >= first_kept);
        }
        before - self.wishes.len()
    }
}

impl Wish {
    fn note(&mut self, deed: Deed, order: u64) {
        self.in_vain = 0;
        match deed {
            Deed::Named => {}
            Deed::Opened => self.open = true,
            Deed::Executed => self.executions = self.executions.saturating_add(1),
            Deed::LinkRead => self.link = true,
            Deed::Listed => self.list = true,
            Deed::Read(number) => {
                let mut pieces = self.pieces.iter_mut();
                if let Some(piece) = pieces.find(|piece| piece.number == number) {
                    piece.in_vain = 0;
                } else if self.pieces.len() < MAX_PIECES {
                    self.pieces.push(Piece {
                        number,
                        in_vain: 0,
                        order,
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(plan: &Plan) -> Vec<String> {
        let text = |path: &Path| String::from_utf8(path.to_vec()).unwrap();
        plan.first.iter().map(|(_, path, _)| text(path)).collect()
    }

    #[test]
    fn a_program_gets_what_it_used_in_that_order() {
        let mut learned = Learned::default();
        learned.note(b"/bin/cc1", b"/usr/include/z.h", Deed::Named);
        learned.note(b"/bin/cc1", b"/usr/include/a.h", Deed::Opened);
        learned.note(b"/bin/cc1", b"/usr/include/z.h", Deed::Opened);
        learned.note(b"/bin/cc1", b"/lib/libz.so", Deed::Read(3));
        learned.note(b"/bin/cc1", b"/usr/include/a.h", Deed::Read(7));
        learned.note(b"/bin/cc1", b"/lib/libz.so", Deed::Read(1));
        learned.note(b"/bin/cc1", b"/lib/libz.so", Deed::Read(3));
        learned.note(b"/bin/ls", b"/etc", Deed::Listed);
        let plan = learned.plan(b"/bin/cc1", true);
        let expected = ["/usr/include/z.h", "/usr/include/a.h", "/lib/libz.so"];
        assert_eq!(names(&plan), expected);
        assert!(plan.first[0].2.open && !plan.first[2].2.open);
        let pieces: Vec<_> = plan.then.iter().map(|(_, _, piece)| *piece).collect();
        assert_eq!(pieces, [3, 7, 1]);
        assert!(learned.plan(b"/bin/unknown", true).first.is_empty());
    }

    #[test]
    fn what_a_program_executes_comes_with_it_unless_it_executes_anything() {
        let mut learned = Learned::default();
        learned.note(b"/bin/gcc", b"/bin/cc1", Deed::Executed);
        learned.note(b"/bin/cc1", b"/bin/as", Deed::Executed);
        learned.note(b"/bin/as", b"/bin/gcc", Deed::Executed);
        learned.note(b"/bin/as", b"/lib/libbfd.so", Deed::Opened);
        assert_eq!(
            names(&learned.plan(b"/bin/gcc", true)),
            ["/bin/cc1", "/bin/as", "/bin/gcc", "/lib/libbfd.so"]
        );
        // Not if that is rare.
        for _ in 0..2 {
            learned.ran(b"/bin/gcc");
        }
        assert_eq!(names(&learned.plan(b"/bin/gcc", true)), ["/bin/cc1"]);
        learned.note(b"/bin/gcc", b"/bin/cc1", Deed::Executed);
        assert_eq!(names(&learned.plan(b"/bin/gcc", true)).len(), 4);
        let alone = names(&learned.plan(b"/bin/gcc", false));
        assert_eq!(alone, ["/bin/cc1"]);
        for number in 0..MAX_SUCCESSORS {
            let other = format!("/bin/other{number}");
            for _ in 0..2 {
                learned.note(b"/bin/gcc", other.as_bytes(), Deed::Executed);
            }
        }
        let plan = names(&learned.plan(b"/bin/gcc", true));
        assert!(!plan.contains(&"/lib/libbfd.so".to_owned()));
    }

    #[test]
    fn what_is_given_in_vain_is_forgotten() {
        let mut learned = Learned::default();
        learned.note(b"/bin/a", b"/x", Deed::Opened);
        learned.note(b"/bin/a", b"/y", Deed::Read(7));
        learned.note(b"/bin/a", b"/y", Deed::Read(8));
        for _ in 0..MAX_IN_VAIN {
            learned.gave(b"/bin/a", b"/x");
            learned.gave(b"/bin/a", b"/y");
            learned.note(b"/bin/a", b"/y", Deed::Opened);
            learned.gave_piece(b"/bin/a", b"/y", 7);
            learned.gave_piece(b"/bin/a", b"/y", 8);
            learned.note(b"/bin/a", b"/y", Deed::Read(8));
        }
        let plan = learned.plan(b"/bin/a", true);
        assert_eq!(names(&plan), ["/y"]);
        assert_eq!(plan.then.len(), 1);
        assert_eq!(plan.then[0].2, 8);
        // A new version has to use it soon.
        learned.see_version(b"/bin/a", (1, (0, 0), 9));
        learned.see_version(b"/bin/a", (2, (0, 0), 9));
        for _ in VAIN_BY_UPGRADE..MAX_IN_VAIN {
            assert_eq!(learned.plan(b"/bin/a", true).first.len(), 1);
            learned.gave(b"/bin/a", b"/y");
        }
        assert!(learned.plan(b"/bin/a", true).first.is_empty());
        assert_eq!(learned.len(), (1, 0));
    }

    #[test]
    fn memory_is_bounded() {
        let mut learned = Learned::default();
        for program in 0..MAX_PROGRAMS + 20 {
            let program = format!("/bin/{program}");
            for path in 0..MAX_WISHES_IN_ALL / 100 {
                learned.note(
                    program.as_bytes(),
                    format!("/{path}").as_bytes(),
                    Deed::Named,
                );
            }
        }
        let (programs, wishes) = learned.len();
        assert!(programs <= MAX_PROGRAMS && wishes <= MAX_WISHES_IN_ALL);
        for path in 0..2 * MAX_WISHES {
            learned.note(b"/bin/many", format!("/{path}").as_bytes(), Deed::Named);
        }
        let plan = learned.plan(b"/bin/many", true);
        assert!(plan.first.len() <= MAX_WISHES && plan.first.len() > MAX_WISHES / 2);
        let last = format!("/{}", 2 * MAX_WISHES - 1);
        assert_eq!(names(&plan).last(), Some(&last));
        for piece in 0..2 * u32::try_from(MAX_PIECES).unwrap() {
            learned.note(b"/bin/many", last.as_bytes(), Deed::Read(piece));
        }
        assert_eq!(learned.plan(b"/bin/many", true).then.len(), MAX_PIECES);
        learned.note(b"/bin/many", &[b'x'; 2 * MAX_PATH_BYTES], Deed::Named);
        assert!(learned.plan(b"/bin/many", true).first.len() <= MAX_WISHES);
        learned.len();
    }
}

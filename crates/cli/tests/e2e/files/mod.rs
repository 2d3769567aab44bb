//! Files through the view: every test is a function of a [`Ground`], which is either a cluster
//! whose nodes see the head's files, or this machine alone. The second shows that what is
//! asked of the view is what a local file system does.

mod coherence;
mod everything;
mod faults;
mod ground;
mod locks;
mod model;
mod several;
mod suite;
mod workouts;

pub(crate) use ground::{At, Ground};

/// Makes of each function two tests: `natively::name` and `through_the_view::name`.
macro_rules! on_both_grounds {
    ($($name:ident($nodes:literal)),* $(,)?) => {
        mod natively {
            $(
                #[test]
                fn $name() {
                    if let Some(ground) = $crate::files::Ground::native(stringify!($name), $nodes) {
                        super::$name(&ground);
                        ground.down();
                    }
                }
            )*
        }
        mod through_the_view {
            $(
                #[test]
                fn $name() {
                    if let Some(ground) = $crate::files::Ground::view(stringify!($name), $nodes) {
                        super::$name(&ground);
                        ground.down();
                    }
                }
            )*
        }
    };
}
pub(crate) use on_both_grounds;

//! The node's end of the view: mounting it, and the way to the deputies.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use wiglaf_wire::stream::{ViewAsk, ViewReply};

use crate::fuse;
use crate::routes::Routes;

/// Brings an answer, or an errno.
pub type Answer = Box<dyn FnOnce(Result<ViewReply, i32>) + Send>;

/// The way to the deputies.
pub trait Ask {
    /// Asks the deputy of `uid`. Never waits; `reply` may be called from any thread, and
    /// dropping it answers EIO.
    fn ask(&self, uid: u32, what: ViewAsk, reply: Answer);
}

/// Why the view can't be mounted.
#[derive(thiserror::Error, Debug)]
pub enum ViewError {
    /// No device.
    #[error(
        "can't open /dev/fuse, by which this node would see the head's files: {errno}; {}",
        remedy(*.errno)
    )]
    Device {
        /// Why not.
        errno: Errno,
    },
    /// The mount.
    #[error("can't mount the view at {path}: {errno}")]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why not.
        errno: Errno,
    },
    /// The first words with the kernel.
    #[error("can't start the view at {path}: {source}")]
    Start {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::ACCESS | Errno::PERM => {
            "run as root, or let this user open it (`chmod 666 /dev/fuse`, as most distributions \
             have it; in a container, give it the device)"
        }
        _ => "load the kernel's module (`modprobe fuse`); in a container, give it the device",
    }
}

/// Whether a view can be mounted here at all, before anything is made for it.
///
/// # Errors
/// [`ViewError::Device`].
pub fn check_device() -> Result<(), ViewError> {
    fuse::open_device().map(drop)
}

/// A view, to be told what happens to its deputies.
#[derive(Clone)]
pub struct View {
    routes: Arc<Routes>,
}

/// A mounted view. Dropping it unmounts.
pub struct ViewMount {
    view: View,
    path: PathBuf,
}

impl View {
    /// Mounts the head's `/` at `path`, read-only. The names `own` in it are empty directories
    /// of the node's own, for it to mount on, whatever the head has there: what is mounted
    /// below a name that a deputy is asked for would be detached when that deputy is gone.
    pub fn mount(
        path: &Path,
        own: &[&str],
        ask: Arc<dyn Ask + Send + Sync>,
    ) -> Result<ViewMount, ViewError> {
        let view = View {
            routes: Arc::new(Routes::new(own, ask)),
        };
        fuse::mount(path, Arc::clone(&view.routes))?;
        Ok(ViewMount {
            view,
            path: path.to_owned(),
        })
    }

    /// The deputy of `uid` is lost: what waits for it fails with ENOTCONN, and its numbers
    /// mean nothing any more. Call it before a new deputy can be asked, from the thread that
    /// brings the answers.
    pub fn fail_all(&self, uid: u32) {
        self.routes.lose(uid);
    }
}

impl ViewMount {
    /// The view.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ViewMount {
    fn drop(&mut self) {
        // Copies of the mount in tasks' namespaces may live on; they get ENOTCONN.
        self.view.routes.close();
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
    }
}

//! How a root process that listens to strangers becomes nobody.

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::creds::CredsError;

/// Gives up root for ever, but for binding to ports below 1024 (CAP_NET_BIND_SERVICE), and raw
/// and packet sockets (CAP_NET_RAW). The process must have one thread.
///
/// # Errors
/// The process must not go on.
pub fn become_network_service(uid: u32, gid: u32) -> Result<(), CredsError> {
    let kept = CapabilitySet::NET_BIND_SERVICE | CapabilitySet::NET_RAW;
    for capability in CapabilitySet::all().difference(kept).iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // Above the last one that this kernel has.
            Err(Errno::INVAL) => {}
            result => step("drop the bounding set", result)?,
        }
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let set = rustix::thread::set_keep_capabilities(true);
    step("keep capabilities", set)?;
    let set = rustix::thread::set_thread_groups(&[]);
    step("set the groups", set)?;
    let set = rustix::thread::set_thread_res_gid(gid, gid, gid);
    step("set the gids", set)?;
    let set = rustix::thread::set_thread_res_uid(uid, uid, uid);
    step("set the uids", set)?;
    let set = rustix::thread::set_keep_capabilities(false);
    step("forget capabilities", set)?;
    let set = rustix::thread::clear_ambient_capability_set();
    step("clear the ambient set", set)?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    let set = rustix::thread::set_capabilities(None, sets);
    step("set the capabilities", set)?;
    let set = rustix::thread::set_no_new_privs(true);
    step("forbid new rights", set)?;

    let found = rustix::thread::capabilities(None);
    let found = found.map_err(failed("read the capabilities"))?;
    expect(
        found.permitted == kept && found.effective == kept,
        "set of capabilities",
    )?;
    expect(
        rustix::process::getuid() == uid && rustix::process::geteuid() == uid,
        "uid",
    )?;
    expect(
        rustix::process::getgid() == gid && rustix::process::getegid() == gid,
        "gid",
    )?;
    let groups = rustix::process::getgroups().map_err(failed("read the groups"))?;
    expect(groups.is_empty(), "list of groups")
}

fn failed(step: &'static str) -> impl Fn(Errno) -> CredsError {
    move |errno| CredsError::Failed { step, errno }
}

fn step(step: &'static str, result: Result<(), Errno>) -> Result<(), CredsError> {
    result.map_err(failed(step))
}

fn expect(as_asked: bool, what: &'static str) -> Result<(), CredsError> {
    if as_asked {
        Ok(())
    } else {
        Err(CredsError::NotAsAsked { what })
    }
}

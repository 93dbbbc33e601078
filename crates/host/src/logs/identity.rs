//! Being somebody else for a moment, in one thread.

use rustix::fs::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Runs `work` with the effective user and group `uid` and no other group, in this thread alone; root's rights are asleep meanwhile, also
/// towards a file server. Who is not root stays who it is: then files are what this user may open.
///
/// What was opened stays open: a file's owner counts when it is opened.
pub fn act_as<T>(uid: u32, work: impl FnOnce() -> T) -> T {
    if !rustix::process::geteuid().is_root() {
        return work();
    }
    let become_them = || -> rustix::io::Result<()> {
        set_thread_groups(&[])?;
        set_thread_res_gid(None, Gid::from_raw(uid), None)?;
        set_thread_res_uid(None, Uid::from_raw(uid), None)
    };
    become_them().expect("root may become anybody");
    let back = Back;
    let done = work();
    drop(back);
    done
}

/// Becomes root again, also after a panic: a thread that stayed somebody else would do the rest of its work as them.
struct Back;

impl Drop for Back {
    fn drop(&mut self) {
        let back = set_thread_res_uid(None, Uid::ROOT, None).and_then(|()| set_thread_res_gid(None, Gid::ROOT, None));
        if back.is_err() {
            std::process::abort();
        }
    }
}

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
    set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(None, Gid::from_raw(uid), None))
        .expect("root may be of any group");
    let back = Back(|| set_thread_res_gid(None, Gid::ROOT, None));
    let done = charged_to(uid, work);
    drop(back);
    done
}

/// Runs `work` on files that are open already with the effective user `uid` alone, so that his quota counts rather than root's rights. A third
/// of the calls of [`act_as`].
pub(super) fn charged_to<T>(uid: u32, work: impl FnOnce() -> T) -> T {
    if !rustix::process::geteuid().is_root() {
        return work();
    }
    set_thread_res_uid(None, Uid::from_raw(uid), None).expect("root may become anybody");
    let back = Back(|| set_thread_res_uid(None, Uid::ROOT, None));
    let done = work();
    drop(back);
    done
}

/// Becomes root again, also after a panic: a thread that stayed somebody else would do the rest of its work as them.
struct Back(fn() -> rustix::io::Result<()>);

impl Drop for Back {
    fn drop(&mut self) {
        if (self.0)().is_err() {
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{getegid, geteuid};
    use std::panic::catch_unwind;

    #[test]
    fn who_was_somebody_else_is_root_again() {
        let who = || (geteuid().as_raw(), getegid().as_raw());
        let before = who();
        let (uid, is_root) = (1_234_567, before.0 == 0);
        assert_eq!(charged_to(uid, who), if is_root { (uid, before.1) } else { before });
        assert_eq!(act_as(uid, who), if is_root { (uid, uid) } else { before });
        assert_eq!(who(), before);
        assert!(catch_unwind(|| act_as(uid, || panic!("on purpose"))).is_err());
        assert_eq!(who(), before, "after a panic, too");
    }
}

//! The launcher's memory of who is awake, and what its parts share in their tests.

use super::protocol::Refusal;
use super::table::{Table, Waiter};
use super::wake::Woken;
use phalanx_model::{Account, Limits, Uid};
use phalanx_plan::launcher_config::LauncherConfig;
use tokio::sync::mpsc;

type Answers = mpsc::Receiver<(Uid, Result<(), Refusal>)>;

pub(super) fn account(uid: Uid) -> Account {
    Account {
        name: "alice".parse().expect("a name"),
        uid,
        logical_server: "www".parse().expect("a name"),
        owner: "root".parse().expect("a name"),
        limits: Limits::default(),
        php: Default::default(),
        state: Default::default(),
    }
}

fn uid(place: u32) -> Uid {
    Uid::try_from(Uid::FIRST.get() + place).expect("in the range")
}

fn woken(uid: Uid) -> Woken {
    Woken { account: account(uid), share: "web".parse().expect("a name"), device: "0:44".into() }
}

fn waiter() -> (Waiter, Answers) {
    let (sender, answers) = mpsc::channel(10);
    (Waiter(sender), answers)
}

#[test]
fn concurrent_wakes_of_one_account_are_one() {
    let (mut table, (waiter, mut answers)) = (Table::default(), waiter());
    assert!(table.wanted(uid(0), waiter.clone(), 0));
    assert!(!table.wanted(uid(0), waiter.clone(), 0) && !table.wanted(uid(0), waiter, 0));
    assert_eq!(table.waiting(), 3);
    table.woken(uid(0), Ok(woken(uid(0))), 0);
    for _ in 0..3 {
        assert_eq!(answers.try_recv().expect("an answer"), (uid(0), Ok(())));
    }
    assert!(answers.try_recv().is_err() && table.waiting() == 0);
}

#[test]
fn after_a_failure_the_next_tries_are_refused_for_a_while() {
    let (mut table, (waiter, mut answers)) = (Table::default(), waiter());
    let refusal = Refusal { why: "no home".into(), retry: true };
    assert!(table.wanted(uid(0), waiter.clone(), 0));
    table.woken(uid(0), Err(refusal.clone()), 100);
    assert!(!table.wanted(uid(0), waiter.clone(), 1_000));
    assert!(table.wanted(uid(0), waiter, 2_100));
    assert_eq!(answers.try_recv().expect("the first"), (uid(0), Err(refusal.clone())));
    assert_eq!(answers.try_recv().expect("the second"), (uid(0), Err(refusal)));
}

#[test]
fn who_is_wanted_while_falling_asleep_is_woken_after_it() {
    let (mut table, (waiter, _answers)) = (Table::default(), waiter());
    table.adopted(uid(0), woken(uid(0)), 0);
    assert!(table.falls_asleep(uid(0)) && !table.falls_asleep(uid(0)));
    assert!(!table.wanted(uid(0), waiter, 0));
    assert!(table.asleep(uid(0), 0));
    assert!(!table.falls_asleep(uid(0)), "it is starting");
    table.adopted(uid(1), woken(uid(1)), 0);
    assert!(table.falls_asleep(uid(1)) && !table.asleep(uid(1), 0));
}

#[test]
fn the_idle_sleep_and_the_least_recently_used_make_room() {
    let mut table = Table::default();
    for place in 0..16 {
        table.adopted(uid(place), woken(uid(place)), u64::from(place) * 1_000);
    }
    let settings = LauncherConfig { idle_s: 100, ..LauncherConfig::default() };
    let (now_ms, none): (u64, Vec<Uid>) = (50_000, Vec::new());
    assert_eq!(table.sleepy(&settings, false, now_ms), none);
    assert_eq!(table.sleepy(&settings, true, now_ms), [uid(0), uid(1)]);
    let few = LauncherConfig { awake_max: 13, ..settings };
    assert_eq!(table.sleepy(&few, false, now_ms), [uid(0), uid(1), uid(2)]);
    assert_eq!(table.sleepy(&few, false, 11_500), [uid(0), uid(1)], "who is busy stays");
    table.used(&[uid(0), uid(1)], 100_000);
    let idle: Vec<Uid> = (2..6).map(uid).collect();
    assert_eq!(table.sleepy(&settings, false, 105_500), idle);
}

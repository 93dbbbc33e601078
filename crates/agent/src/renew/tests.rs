//! Nobody is awake here: a renewal ends as soon as it has its turn.

use super::*;
use std::path::Path;

fn renewals(place: &Path) -> Renewals {
    Renewals { notes: place.join("renew"), ..Renewals::new(CrashPoints::default()) }
}

fn place() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

#[tokio::test]
async fn a_note_outlives_who_made_it_and_is_struck_out_by_a_renewal() {
    let place = place();
    let former = renewals(place.path());
    former.resume();
    assert!(!former.is_wanted(Uid::FIRST), "there are no notes yet");
    drop(former.want(Uid::FIRST).expect("noted"));
    let renewals = renewals(place.path());
    assert!(renewals.is_wanted(Uid::FIRST) && !renewals.is_wanted(Uid::LAST));
    renewals.resume();
    renewals.want(Uid::FIRST).expect("noted twice").begin().ended().await;
    assert!(!renewals.is_wanted(Uid::FIRST));
    assert!(renewals.lock().is_empty(), "nothing is left to remember: {renewals:?}");
}

#[tokio::test]
async fn the_note_stays_while_files_change() {
    let place = place();
    let renewals = renewals(place.path());
    let changing = renewals.want(Uid::FIRST).expect("noted");
    renewals.want(Uid::FIRST).expect("noted").begin().ended().await;
    assert!(renewals.is_wanted(Uid::FIRST), "the files are not whole yet");
    changing.begin().ended().await;
    assert!(!renewals.is_wanted(Uid::FIRST) && renewals.lock().is_empty());
}

#[tokio::test]
async fn changes_that_wait_for_their_turn_are_one_renewal() {
    let place = place();
    let renewals = renewals(place.path());
    let all = renewals.slots.clone().acquire_many_owned(AT_ONCE as u32).await.expect("all slots");
    let begun: Vec<Renewal> = (0..5).map(|_| renewals.want(Uid::FIRST).expect("noted").begin()).collect();
    let other = renewals.want(Uid::LAST).expect("noted").begin();
    assert!(begun.iter().all(|renewal| renewal.0.same_channel(&begun[0].0) && renewal.is_under_way()));
    assert!(!begun[0].0.same_channel(&other.0), "each account has its own");
    drop(all);
    for renewal in begun {
        renewal.ended().await;
    }
    assert!(!renewals.is_wanted(Uid::FIRST));
    other.ended().await;
    assert!(renewals.lock().is_empty());
}

#[tokio::test]
async fn a_change_during_a_renewal_is_one_more() {
    let place = place();
    let renewals = renewals(place.path());
    let begun = renewals.want(Uid::FIRST).expect("noted").begin();
    let seen = renewals.changes(Uid::FIRST);
    drop(renewals.want(Uid::FIRST).expect("noted").begin());
    assert!(!renewals.settle(Uid::FIRST, seen, Ok(())), "it has not read the second change");
    assert!(renewals.is_wanted(Uid::FIRST));
    begun.ended().await;
    assert!(!renewals.is_wanted(Uid::FIRST));
}

#[tokio::test]
async fn a_removal_does_not_wait_and_lets_nothing_begin() {
    let place = place();
    let renewals = renewals(place.path());
    let _all = renewals.slots.clone().acquire_many_owned(AT_ONCE as u32).await.expect("all slots");
    let stuck = renewals.want(Uid::FIRST).expect("noted").begin();
    let leaving = renewals.leave(Uid::FIRST).await;
    stuck.ended().await;
    renewals.want(Uid::FIRST).expect("noted").begin().ended().await;
    assert!(renewals.is_wanted(Uid::FIRST), "nobody read anything");
    leaving.gone().expect("struck out");
    assert!(!renewals.is_wanted(Uid::FIRST) && renewals.lock().is_empty());
}

/// With threads of its own, as the agent has, so that the end of one renewal meets the next change at any point.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_is_left_with_nobody_at_it() {
    let place = place();
    let renewals = renewals(place.path());
    for _ in 0..500 {
        let former = renewals.want(Uid::FIRST).expect("noted").begin();
        tokio::task::yield_now().await;
        renewals.want(Uid::FIRST).expect("noted").begin().ended().await;
        former.ended().await;
        assert!(!renewals.is_wanted(Uid::FIRST) && renewals.lock().is_empty());
    }
}

#[tokio::test]
async fn what_failed_is_told_and_tried_again() {
    let place = place();
    let renewals = renewals(place.path());
    drop(renewals.want(Uid::FIRST).expect("noted"));
    renewals.lock().insert(Uid::FIRST, Entry::default());
    assert!(renewals.settle(Uid::FIRST, 0, Err(anyhow::anyhow!("no room"))));
    assert!(renewals.is_wanted(Uid::FIRST));
    assert_eq!(renewals.failures(), [(Uid::FIRST, "no room".to_owned())]);
    let all = renewals.slots.clone().acquire_many_owned(AT_ONCE as u32).await.expect("all slots");
    for _ in 0..2 {
        assert_eq!(
            renewals.retry(Uid::FIRST).expect("noted").as_deref(),
            Some("no room"),
            "as long as that is under way"
        );
    }
    drop(all);
    renewals.want(Uid::FIRST).expect("noted").begin().ended().await;
    assert!(!renewals.is_wanted(Uid::FIRST) && renewals.lock().is_empty());
}

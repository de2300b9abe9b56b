//! Each synchronisation decision of `bus-core`, switched off, and the model that must notice.
//!
//! A model that passes says little until it has been seen to fail. `bus-core`'s `sync.rs` lists its
//! synchronisation decisions as mutants; one is switched off by naming it in `UNISONO_MUTANT`, and
//! then the model in [`CAUGHT`] must fail. To see how one fails, run
//!
//! ```text
//! UNISONO_MUTANT=NoSecondLook cargo test -p loom-tests place_freed
//! ```
//!
//! | guarantee | what is raced | models | mutants |
//! |---|---|---|---|
//! | G1 all or nothing | refusals, cancelling, deadlines | `order::g1_*`, `cancel::g5_a_cancelled_send_has_*`, `cancel::g5_a_send_past_*` | `DeliverToSome`, `Cancel*` |
//! | G2 one order | two senders, overlapping groups, unicast, unequal clocks | `order::g2_*` | `LocksOutOfOrder`, `ReleaseBetweenPushes`, `SequenceFromOneClock`, `AdvanceOneClock`, `SequenceWithoutLock` |
//! | G1, G2, G4, G5 batches | a batch against a message, a join, a reader | `batch::*` | `BatchWithoutRoom`, `BatchDrawsOne`, `BatchFreedWhole` |
//! | G3 causality | a chain over a third party; a chain that shares no lock | `order::g3_*` | `TakenNotFollowed`, `SentNotFollowed` |
//! | G4 views | join and leave between a sender's snapshot and its locks; the empty group; notices | `membership::g4_*`, `drop_when_full::g4_*` | `SkipGenerationCheck`, `ChangeTakesOneLock`, `EmptySetTakesNoLock`, `NoticePassesOlder` |
//! | G4, G5 filters | a filter that changes between a selection and its locks, and while a send goes to wait | `filters::*` | `SelectionKept`, `FilterServesNobody` |
//! | G4 monitors | a monitor that begins between a sender's look and its locks | `monitor::g4_*` | `MonitorsNotCompared` |
//! | G4 monitors | a monitor that begins between a look before an outcome and its locks | `monitor::g4_*` | `OutcomeMonitorsNotCompared` |
//! | G4 join with state | senders with nothing in common; a join and a send | `retained::g4_*` | `RetainWithoutHome`, `StateBeforeJoin` |
//! | G5 no wake-up is lost | a place freed while a send goes to wait; leave, close, end | `waiting::g5_*`, `cancel::*` | `NoSecondLook`, `RoomSeenOnce`, `NoFence*`, `LeaveServesNobody`, `WaitAtOwnQueue` |
//! | G5 others go on | one member full until the others are through | `isolation::*` | `StayRegistered`, `ServeOnlyOne` |
//! | G5 nobody starves | newcomers and younger sends; readers that alternate; dead members | `waiting::g5_*_pass_*`, `reserve::*` | `PassOlder`, `WaiterPassesOlder`, `YoungestFirst`, `NoReservePlace`, `ReservePassesOlder`, `StuckKeepsClaims`, `UnusedStaysWithheld`, `ChangeKeepsClaims`, `GiveUpServesNobody` |
//! | G6 readiness | a watch that begins while a place is freed | `waiting::g6_*` | `ServeNoWatches` |
//! | G7 dropping is visible | drops while the reader reads, sleeps, or is owed to others | `drop_when_full::*` | `DropperPassesOlder`, `LoneGapEarly`, `SleepBesideGap`, `DropWakesNobody`, `NoFenceInDrop` |
//! | G8 bounds | a tick that evicts a member which reads at last; a member that leaves when full, and reads meanwhile | `membership::g8_*`, `drop_when_full::g8_*` | `LeaverStays` |
//! | G9 lifetime | close and shutdown against sends and readers; slots used again | `membership::g9_*`, `cancel::g9_*` | `ClosedSenderCommits`, `SlotNotCompared`, `ShutStillReceives`, `EndWithoutLook` |
//! | requests | reply, cancellation, deadline, close of either side; a look while the next one comes | `requests::*` | `OutcomeTwice`, `AskedNotedLate`, `LookBeforeNone`, `EndWakesNobody` |
//! | G5 wakers | each way to be woken, with a waker that asks the bus | `wakers::*`, `cancel::g5_a_cancelled_sends_waker_*` | |
//! | G4, G5 names | a message against a change of owner; waiting sends; workers that make room at once | `names::*` | `SkipOwnershipCheck`, `OwnerChangeServesNobody`, `WaitAtOneWorker`, `AgainWithoutKey` |
//! | gated groups | admission, withdrawal, expulsion and the owner's end against members | `gated::*` | `OutsiderSends`, `ShareServesNobody`, `AdmittedTooEarly`, `GoneOwnerKeepsPeers`, `WithdrawForgetsAdmission` |
//! | G8, G10 accounts | charges and what is given back, of one connection and of two | `accounts::*` | `HeldNotCompared`, `LentNotCompared`, `LentBackEarly` |
//! | G10 shares | a share that is freed while a send goes to wait; two sends of one user | `shares::*` | `ShareUnbounded`, `ShareFreedLate`, `ShareWaitsAlone` |
//! | rings between processes | cells that are used again; going to sleep on either side; what is held | `shared_ring::*` | `RingTailRelaxed`, `RingConsumedRelaxed`, `NoFenceInPublish`, `NoFenceInArm`, `ArmedBesideInput`, `SleeperForgotten`, `NoFenceInWantRoom`, `NoFenceInFinish`, `HoldingRelaxed`, `HeldNotPassed` |
//! | counting | commits to one group under different locks | `tally::*` | `TallyInOneCell` |
//! | payloads | the end of a loan against readers, the lender and its death; a buffer written again | `loan::*` | `CompletionUnseen`, `LoanEndsTwice`, `LookWithoutFence` |
//! | the queue | a ring that wraps; a reader that goes to sleep; two that want to read | `queue::*`, `reader::*`, `waiting::g5_a_message_*` | `TailRelaxed`, `HeadRelaxed`, `SleepWithoutLook`, `SeatTakenTwice`, `QueueMadeTwice` |

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bus_core_modelled::modelled;

/// A mutant, and the model that fails with it.
const CAUGHT: &[(&str, &str)] = &[
    ("QueueMadeTwice", "reader::a_queue_that_two_senders_make_at_once_is_one"),
    ("SkipGenerationCheck", "membership::g4_join_that_returns_before_the_commit_leaves_no_hole"),
    ("ChangeTakesOneLock", "membership::g4_join_that_returns_before_the_commit_leaves_no_hole"),
    ("LocksOutOfOrder", "order::g2_overlapping_groups_share_one_order"),
    ("EmptySetTakesNoLock", "membership::g4_empty_recipient_set_against_a_join"),
    ("ClosedSenderCommits", "membership::g9_a_closed_endpoint_sends_nothing_more"),
    ("SlotNotCompared", "membership::g9_a_stranger_in_a_reused_slot_gets_nothing"),
    ("ShutStillReceives", "membership::g9_what_was_sent_before_shutdown_receive_is_still_read"),
    ("RoomSeenOnce", "waiting::g5_a_place_freed_while_a_send_goes_to_wait_is_not_lost"),
    ("BatchWithoutRoom", "batch::g1_a_batch_takes_no_place_that_is_not_free"),
    ("BatchDrawsOne", "batch::g2_a_batch_and_a_message_reach_two_members_in_one_order"),
    ("BatchFreedWhole", "batch::g5_a_message_of_a_batch_frees_its_own_place"),
    ("DeliverToSome", "order::g1_a_refused_send_has_reached_nobody"),
    ("ReleaseBetweenPushes", "order::g2_two_senders_reach_two_members_in_one_order"),
    ("MonitorsNotCompared", "monitor::g4_a_monitor_that_begins_before_the_commit_sees_it"),
    ("OutcomeMonitorsNotCompared", "monitor::g4_a_monitor_that_begins_before_an_outcome_sees_it"),
    ("RetainWithoutHome", "retained::g4_the_retained_message_is_the_last_in_the_order"),
    ("StateBeforeJoin", "retained::g4_a_join_with_state_leaves_no_hole_and_gets_nothing_twice"),
    ("TallyInOneCell", "tally::commits_that_share_no_lock_are_both_counted"),
    ("SequenceFromOneClock", "order::g2_sequences_rise_where_clocks_differ"),
    ("AdvanceOneClock", "order::g2_sequences_rise_where_clocks_differ"),
    ("SequenceWithoutLock", "order::g2_sequences_of_disjoint_sends_are_unique"),
    ("TakenNotFollowed", "order::g3_sequences_rise_along_a_chain_that_shares_no_lock"),
    ("SentNotFollowed", "order::g3_sequences_rise_along_a_chain_that_shares_no_lock"),
    ("TailRelaxed", "queue::ring_hands_over_finished_slots_across_its_wrap"),
    ("HeadRelaxed", "queue::ring_hands_over_finished_slots_across_its_wrap"),
    (
        "SleepWithoutLook",
        "waiting::g5_a_message_that_comes_while_its_reader_goes_to_sleep_wakes_it",
    ),
    ("SleepBesideGap", "drop_when_full::g7_a_last_gap_is_told_to_a_reader_that_waits"),
    ("EndWithoutLook", "membership::g9_what_was_sent_before_shutdown_receive_is_still_read"),
    ("SeatTakenTwice", "reader::one_reader_at_a_time_and_the_next_goes_on_where_it_stopped"),
    ("LoneGapEarly", "drop_when_full::g7_a_last_gap_is_told_to_a_reader_that_waits"),
    (
        "DropWakesNobody",
        "drop_when_full::g7_a_gap_is_told_to_a_reader_that_sleeps_beside_its_last_credit",
    ),
    (
        "NoFenceInDrop",
        "drop_when_full::g7_a_gap_is_told_to_a_reader_that_sleeps_beside_its_last_credit",
    ),
    ("NoSecondLook", "waiting::g5_a_place_freed_while_a_send_goes_to_wait_is_not_lost"),
    ("NoFenceInRelease", "waiting::g5_a_place_freed_while_a_send_goes_to_wait_is_not_lost"),
    ("NoFenceInRegister", "waiting::g5_a_place_freed_while_a_send_goes_to_wait_is_not_lost"),
    ("WaitAtOwnQueue", "waiting::g5_a_send_that_lacks_only_its_own_room_is_told_so"),
    ("StayRegistered", "isolation::g5_a_send_that_finds_another_queue_full_waits_there"),
    ("ServeOnlyOne", "waiting::g5_a_place_that_is_not_used_passes_on"),
    ("ServeNoWatches", "waiting::g6_a_watch_is_woken_when_there_is_room"),
    ("YoungestFirst", "waiting::g5_places_are_given_in_the_order_of_arrival"),
    ("PassOlder", "waiting::g5_a_newcomer_does_not_pass_a_waiting_send"),
    ("WaiterPassesOlder", "waiting::g5_a_waiting_send_does_not_pass_an_older_one_at_another_queue"),
    ("DropperPassesOlder", "drop_when_full::g7_a_dropping_membership_does_not_pass_a_waiting_send"),
    ("NoticePassesOlder", "drop_when_full::g4_a_notice_does_not_pass_a_waiting_send"),
    ("NoReservePlace", "reserve::g5_a_fan_out_misses_a_fixed_number_of_offers"),
    ("ReservePassesOlder", "reserve::g5_a_younger_send_leaves_the_reserve_place_to_an_older_one"),
    ("StuckKeepsClaims", "reserve::g5_a_send_that_waits_for_a_dead_member_withholds_nothing"),
    ("UnusedStaysWithheld", "reserve::g5_a_place_that_is_kept_and_not_used_is_for_who_can_use_it"),
    ("GiveUpServesNobody", "reserve::g5_a_cancelled_send_gives_up_the_places_that_it_keeps"),
    ("SelectionKept", "filters::g4_a_filter_that_opens_before_the_commit_leaves_no_hole"),
    ("FilterServesNobody", "filters::g5_a_filter_that_rejects_what_waits_lets_it_go"),
    ("LeaveServesNobody", "cancel::g5_a_leave_wakes_those_who_wait_for_the_member"),
    ("ChangeKeepsClaims", "reserve::g5_a_leave_gives_up_the_places_that_are_kept_for_it"),
    ("SkipOwnershipCheck", "names::g4_a_message_goes_to_who_owns_the_name_at_its_place"),
    (
        "OwnerChangeServesNobody",
        "names::g5_a_send_that_waits_for_a_name_goes_on_with_its_next_owner",
    ),
    (
        "AgainWithoutKey",
        "names::g9_a_request_given_again_while_the_last_worker_dies_has_one_outcome",
    ),
    (
        "WaitAtOneWorker",
        "names::g5_a_place_freed_at_any_worker_while_a_send_goes_to_wait_is_not_lost",
    ),
    (
        "CancelLeavesSend",
        "cancel::g5_a_cancelled_send_has_reached_nobody_and_a_receipt_means_everybody",
    ),
    (
        "CancelForgetsOutcome",
        "cancel::g5_a_cancelled_send_has_reached_nobody_and_a_receipt_means_everybody",
    ),
    ("OutcomeTwice", "requests::a_reply_and_a_cancellation_make_one_outcome"),
    ("AskedNotedLate", "requests::who_takes_a_request_that_is_cancelled_is_told_so"),
    ("LookBeforeNone", "requests::a_deadline_that_is_set_while_the_bus_looks_is_not_lost"),
    ("EndWakesNobody", "requests::the_end_of_a_request_wakes_its_reader"),
    ("OutsiderSends", "gated::g4_an_expelled_member_sends_nothing_more"),
    (
        "ShareServesNobody",
        "gated::g5_a_place_freed_in_a_share_while_a_send_goes_to_wait_is_not_lost",
    ),
    ("LeaverStays", "drop_when_full::g8_a_member_that_leaves_when_full_makes_nobody_wait"),
    ("ShareUnbounded", "shares::g10_two_sends_of_one_user_take_half_of_a_queue_together"),
    ("ShareFreedLate", "shares::g5_a_share_freed_while_a_send_goes_to_wait_is_not_lost"),
    ("ShareWaitsAlone", "shares::g5_a_share_freed_while_a_send_goes_to_wait_is_not_lost"),
    ("AdmittedTooEarly", "gated::g4_a_candidate_that_hears_of_its_admission_is_a_member"),
    ("GoneOwnerKeepsPeers", "gated::g9_an_owner_that_goes_stops_nobody"),
    ("WithdrawForgetsAdmission", "gated::g4_a_withdrawal_against_an_admission_has_one_outcome"),
    ("HeldNotCompared", "accounts::g8_one_connection_charged_from_two_threads_adds_up"),
    ("LentNotCompared", "accounts::g8_what_is_lent_is_lent_once"),
    ("LentBackEarly", "accounts::g8_what_is_given_back_is_not_held_any_more"),
    ("RingTailRelaxed", "shared_ring::shared_ring_hands_over_finished_cells_across_its_wrap"),
    ("RingConsumedRelaxed", "shared_ring::shared_ring_hands_over_finished_cells_across_its_wrap"),
    ("NoFenceInPublish", "shared_ring::shared_ring_wakes_a_reader_that_goes_to_sleep"),
    ("NoFenceInArm", "shared_ring::shared_ring_wakes_a_reader_that_goes_to_sleep"),
    ("ArmedBesideInput", "shared_ring::shared_ring_wakes_a_reader_that_goes_to_sleep"),
    ("SleeperForgotten", "shared_ring::shared_ring_wakes_a_thread_beside_which_another_reads"),
    ("NoFenceInWantRoom", "shared_ring::shared_ring_wakes_a_writer_that_waits_for_room"),
    ("NoFenceInFinish", "shared_ring::shared_ring_wakes_a_writer_that_waits_for_room"),
    ("HoldingRelaxed", "shared_ring::shared_ring_passes_over_what_is_held"),
    ("HeldNotPassed", "shared_ring::shared_ring_passes_over_what_is_held"),
    ("CompletionUnseen", "loan::a_completion_that_comes_while_its_reader_goes_to_sleep_is_seen"),
    ("LoanEndsTwice", "loan::a_loan_ends_once_and_whoever_was_let_in_is_told"),
    ("LookWithoutFence", "loan::a_copy_with_a_byte_of_the_next_payload_is_thrown_away"),
];

/// A model that fails does so at once; this is for one that does not.
const LIMIT: Duration = Duration::from_secs(120);

/// How a model ended in a process of its own, with one decision switched off. A process, because
/// loom aborts where threads deadlock.
fn run(mutant: &str, model: &str) -> Result<(), String> {
    let models = std::env::current_exe().expect("this test runs");
    let mut child = Command::new(models)
        .args(["--exact", model, "--nocapture"])
        .env("UNISONO_MUTANT", mutant)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("this test runs, so it can be run again");
    let start = Instant::now();
    loop {
        match child.try_wait().expect("our own child") {
            Some(status) if status.success() => {
                return Err(format!("{mutant}: {model} passes all the same"));
            }
            Some(_) => return Ok(()),
            None if start.elapsed() > LIMIT => {
                child.kill().expect("our own child");
                child.wait().expect("our own child");
                return Err(format!("{mutant}: {model} has not ended after {LIMIT:?}"));
            }
            // Std has no wait with a time limit; this is how often to look, and decides nothing.
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Each mutant is caught by the model that the table names, so none of these models passes for want
/// of looking, and none of these decisions could be left out unnoticed.
#[test]
fn each_mutant_is_caught() {
    let (even, odd): (Vec<_>, Vec<_>) = CAUGHT.iter().enumerate().partition(|(at, _)| at % 2 == 0);
    let caught = |half: Vec<(usize, &(&str, &str))>| -> Vec<String> {
        half.into_iter().filter_map(|(_, (mutant, model))| run(mutant, model).err()).collect()
    };
    let missed = std::thread::scope(|scope| {
        let other = scope.spawn(|| caught(odd));
        let mut missed = caught(even);
        missed.extend(other.join().unwrap());
        missed
    });
    assert!(missed.is_empty(), "{missed:#?}");
}

/// The table names every mutant that there is, once, and models that there are.
#[test]
fn the_table_is_complete() {
    let named: Vec<&str> = CAUGHT.iter().map(|(mutant, _)| *mutant).collect();
    assert_eq!(named, modelled::mutants().collect::<Vec<_>>());
    let models = std::env::current_exe().expect("this test runs");
    let list = Command::new(models).arg("--list").output().expect("lists");
    let list = String::from_utf8(list.stdout).expect("names of tests");
    let models: BTreeSet<&str> =
        list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    for (mutant, model) in CAUGHT {
        assert!(models.contains(model), "{mutant}: there is no model {model}");
    }
}
